# SPDX-License-Identifier: Apache-2.0
"""Random input, always the same: whatever comes, only the documented errors come out.

Reproducers of what was found stand in the tables of test_bad_*.py.
"""

import copy

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.config import parse_opts
from paddleseg_deeplab.datasets.dataset import read_list_file
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.settings import FORMATS
from paddleseg_deeplab.prediction.outputs import collect_images
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils.errors import UserError

CONFIGS = ROOT / "configs"
RECIPES = [
    CONFIGS / name
    for name in ("quickstart.yml", "deeplabv3p_resnet50_os8.yml", "_base_/shapes.yml")
]


def fuzz(count):
    """Settings that make a run repeatable."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def is_clear(error, *words):
    """One line that holds the words."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    for word in words:
        assert word in text


NAMES = st.sampled_from(
    [
        *("type", "model", "backbone", "loss", "types", "coef", "losses", "transforms", "iters"),
        *("train_dataset", "val_dataset", "optimizer", "lr_scheduler", "test_config", "ema", "crf"),
        *("export", "_base_", "_inherited_", "dataset_root", "num_classes", "mode", "crop_size"),
        *("batch_size", "pretrained", "learning_rate", "decay", "scales", "is_slide", "sampler"),
        *("DeepLabV3P", "ResNet18_vd", "Shapes", "Dataset", "CrossEntropyLoss", "MixedLoss"),
        *("Normalize", "Resize", "SGD", "PolynomialDecay", "train", "val", "0", "1", ""),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    NAMES,
)
KEYS = st.one_of(NAMES, NAMES, NAMES, st.text(max_size=4), st.integers(-1, 3), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def load_and_check(folder, content):
    path = folder / "fuzz.yml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        config = Config(path)
        SegBuilder(config)
        assert isinstance(str(config), str)
    except UserError as error:
        is_clear(error, "fuzz.yml")
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzz(250)
@given(content=st.dictionaries(KEYS, VALUES, max_size=5))
def test_configs_of_random_sections(folder, content):
    load_and_check(folder, content)


def _places(value, place=()):
    """Every (container's path, key) of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*place, key)
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*place, key))


RESOLVED = [Config(path).dic for path in RECIPES]


@st.composite
def mutated(draw):
    """A real recipe with up to three keys dropped, renamed, replaced or doubled."""
    content = copy.deepcopy(draw(st.sampled_from(RESOLVED)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        node = content
        for parent in parents:
            node = node[parent]
        action = draw(st.sampled_from(["drop", "rename", "replace", "copy"]))
        if action == "drop":
            del node[key]
        elif action == "replace":
            node[key] = draw(VALUES)
        elif action == "copy" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif isinstance(node, dict):
            node[draw(KEYS)] = node.pop(key) if action == "rename" else copy.deepcopy(node[key])
    return content


@fuzz(300)
@given(content=mutated())
def test_mutated_recipes(folder, content):
    load_and_check(folder, content)


@pytest.mark.parametrize("content", RESOLVED)
def test_the_recipes_themselves_load(folder, content):
    assert load_and_check(folder, content)


@fuzz(150)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode())))
def test_config_files_of_random_bytes(folder, data):
    path = folder / "bytes.yml"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        Config(path)
    is_clear(caught.value, "bytes.yml")


PATHS = st.lists(st.one_of(NAMES, st.text(max_size=3)), min_size=1, max_size=4).map(".".join)


@fuzz(300)
@given(opts=st.lists(st.one_of(st.text(max_size=12), st.tuples(PATHS, st.text(max_size=12)).map(
    "=".join), st.tuples(PATHS, VALUES.map(repr)).map("=".join)), max_size=3))  # fmt: skip
def test_opts(opts):
    try:
        parse_opts(opts)
        SegBuilder(Config(RECIPES[0], opts=opts))
    except UserError as error:
        is_clear(error)


LIST_TEXT = st.lists(
    st.one_of(
        st.sampled_from(["a.png", "a_label.png", "none.png", " ", ",", "\t", "\n", "\r\n", "#"]),
        st.text(max_size=3),
    ),
    max_size=12,
).map("".join)


@fuzz(300)
@given(
    data=st.one_of(LIST_TEXT.map(lambda text: text.encode()), st.binary(max_size=40)),
    separator=st.sampled_from([" ", ",", "\t", "a"]),
    labels=st.sampled_from(["required", "optional"]),
)
def test_list_files(folder, data, separator, labels):
    for name in ("a.png", "a_label.png"):
        (folder / name).touch()
    path = folder / "list.txt"
    path.write_bytes(data)
    try:
        pairs = read_list_file(str(path), str(folder), separator, labels=labels)
        assert pairs
        assert all(len(pair) == 2 and pair[0] for pair in pairs)
    except UserError as error:
        is_clear(error, "list.txt")
    try:
        collect_images(path)
    except UserError as error:
        is_clear(error, "list.txt")


DEPLOY_KEYS = st.sampled_from(
    [
        *("model", "params", "transforms", "input_shape", "output_op", "format", "img_channels"),
        *("to_rgb", "num_classes", "class_names", "palette", "versions", "checks", "crf"),
    ]
)
DEPLOY_VALUES = st.one_of(
    VALUES, st.sampled_from(["model.json", "model.onnx", "argmax", "none", "pir", [1, 3, 8, 8]])
)
SECTION = st.dictionaries(DEPLOY_KEYS, DEPLOY_VALUES, max_size=8)


@fuzz(250)
@given(
    deploy=st.one_of(SECTION.map(lambda s: {"model": "model.json", **s}), DEPLOY_VALUES),
    ours=st.one_of(SECTION, VALUES),
)
def test_deploy_yaml(folder, deploy, ours):
    for name in ("model.json", "model.pdiparams", "model.onnx"):
        (folder / name).touch()
    path = folder / "deploy.yaml"
    content = {"Deploy": deploy, "DeepLab": ours}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        info = deploy_yaml.read(path)
        assert info.format in FORMATS
        assert len(info.input_shape) == 4
    except UserError as error:
        is_clear(error, "deploy.yaml")


# Sizes stay small, so that a random scale does not fill the memory.
NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.floats(-1, 3),
    st.floats(allow_nan=True, allow_infinity=True, width=16),
    st.booleans(),
    st.none(),
    st.text(max_size=2),
)
PARAMETERS = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=4), st.tuples(*2 * [st.integers(1, 40)]))
TRANSFORMS = sorted(set(registry.TRANSFORMS.components_dict) - {"Compose"})


@st.composite
def steps(draw):
    """A transform's name and some of its parameters."""
    import inspect

    name = draw(st.sampled_from(TRANSFORMS))
    known = list(inspect.signature(registry.TRANSFORMS[name]).parameters)
    chosen = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
    return name, {key: draw(PARAMETERS) for key in chosen}


IMAGES = st.tuples(
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([1, 3, 4, 5]),
    st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64]),
)


@fuzz(600)
@given(chain=st.lists(steps(), min_size=1, max_size=2), image=IMAGES, seed=st.integers(0, 99))
def test_transforms(chain, image, seed):
    height, width, channels, dtype = image
    try:
        built = [registry.TRANSFORMS[name](**parameters) for name, parameters in chain]
    except (TypeError, ValueError) as error:  # what SegBuilder turns into one line
        is_clear(error)
        return
    rng = np.random.default_rng(seed)
    img = rng.integers(0, 256, (height, width, channels)).astype(dtype)
    label = rng.integers(0, 4, (height, width)).astype(np.uint8)
    sample = {"img": img, "label": label, "gt_fields": ["label"], "rng": rng}
    before = img.copy(), label.copy()
    try:
        out = Compose(built, img_channels=channels)(sample)
    except UserError as error:
        is_clear(error)
        return
    finally:
        np.testing.assert_array_equal(img, before[0])
        np.testing.assert_array_equal(label, before[1])
    assert out["img"].dtype == np.float32
    assert out["img"].shape == (channels, *out["label"].shape)

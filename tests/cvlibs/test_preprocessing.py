# SPDX-License-Identifier: Apache-2.0
"""What is said of a config's preprocessing when it is read: refused, warned of, or nothing."""

import logging
from types import SimpleNamespace

import pytest
import yaml
from bad_input import good_config, refuses
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import export, predict, train, val
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.data_facts import dataset_facts
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import save_image

N = {"type": "Normalize"}
IMAGENET = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PAD = {"type": "Padding", "target_size": [64, 64]}
RECIPES = sorted(p for p in (ROOT / "configs").rglob("*.yml") if p.parent.name != "_base_")
VERBS = {"train": train, "val": val, "predict": predict, "export": export}


class Mine:
    """A user's own step that says nothing."""

    def __call__(self, data):
        return data


class Declared(Mine):
    effect = "colour"


@pytest.fixture(autouse=True)
def own(monkeypatch):
    known = {**registry.TRANSFORMS.components_dict, "Mine": Mine, "Declared": Declared}
    monkeypatch.setattr(registry.TRANSFORMS, "_components_dict", known)


def said(path, caplog, *opts):
    """The warnings of a builder."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="paddleseg_deeplab"):
        SegBuilder(Config(str(path), opts=opts))
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipes_give_no_warning(path, caplog):
    assert said(path, caplog) == []


# As in PaddleSeg's own files: cityscapes and ade20k, pascal_voc12 and cityscapes_769x769, the
# older ones with a resize.
@pytest.mark.parametrize(
    "steps",
    [
        [N],
        [PAD, N],
        [{"type": "Padding", "target_size": [2049, 1025]}, N],
        [{"type": "Resize", "target_size": [512, 512]}, N],
        [{"type": "ResizeByLong", "long_size": 512}, PAD, N],
        [{"type": "LimitLong", "max_long": 512}, N],
    ],
)
def test_paddleseg_s_files_give_no_warning(steps, tmp_path, caplog):
    distort = {"type": "RandomDistort", "brightness_range": 0.4}
    crop = {"type": "RandomPaddingCrop", "crop_size": [32, 32]}
    augmented = [{"type": "ResizeStepScaling"}, crop, {"type": "RandomHorizontalFlip"}, distort, N]
    sections = {"train_dataset": {"transforms": augmented}, "val_dataset": {"transforms": steps}}
    assert said(good_config(tmp_path, **sections), caplog) == []


def flags_of(verb, folder, config):
    path = folder / "image.png"
    flags = ["--config", config, "--device", "cpu", "--save_dir", folder / "out"]
    if verb == "predict":
        flags += ["--image_path", path]
    return [*flags, *([] if verb == "train" else ["--model_path", folder / "none.pdparams"])]


@pytest.fixture
def image(tmp_path):
    save_image(str(tmp_path / "image.png"), [[[0, 0, 0]] * 32] * 32)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "step",
    [
        {"type": "RandomHorizontalFlip"},
        {"type": "RandomRotation"},
        {"type": "RandomPaddingCrop", "crop_size": [32, 32]},
        {"type": "ResizeStepScaling"},
        {"type": "Mine"},
        {"type": "Compose", "transforms": [{"type": "RandomVerticalFlip"}]},
    ],
    ids=lambda step: step["type"],
)
def test_geometry_is_refused_by_name(verb, step, tmp_path, capsys, image):
    config = good_config(tmp_path, val_dataset={"transforms": [N, step]})
    name = step.get("transforms", [step])[0]["type"]
    words = ["c.yml: val_dataset.transforms.1", name, "train_dataset only"]
    refuses(VERBS[verb].main, flags_of(verb, tmp_path, config), words, capsys, tmp_path)


def test_geometry_of_an_export_is_refused(tmp_path, capsys):
    config = good_config(tmp_path, export={"transforms": [{"type": "RandomAffine"}, N]})
    words = ["export.transforms.0", "RandomAffine"]
    refuses(export.main, flags_of("export", tmp_path, config), words, capsys, tmp_path)


def test_a_step_that_declares_itself_is_taken(tmp_path, caplog):
    steps = {"transforms": [N, {"type": "Declared"}]}
    assert said(good_config(tmp_path, train_dataset=steps, val_dataset=steps), caplog) == []


# (train_dataset, val_dataset, export), each transforms or a section; the place and words told.
WARNED = [
    (None, [{"type": "RandomDistort"}, N], None, ["val_dataset.transforms.0", "at random"]),
    (None, [{"type": "RandomBlur"}, N], None, ["val_dataset.transforms.0", "RandomBlur"]),
    (None, None, [{"type": "RandomNoise"}, N], ["export.transforms.0", "RandomNoise"]),
    (None, [{"type": "Resize", "interp": "RANDOM"}, N], None, ["Resize", "at random"]),
    (None, [{"type": "ResizeByShort", "short_size": [9, 8]}, N], None, ["ResizeByShort"]),
    ([N, {"type": "RandomDistort"}], None, None, ["train_dataset.transforms.1", "behind"]),
    ([N, {"type": "RandomPaddingCrop"}], None, None, ["train_dataset.transforms.1", "127.5"]),
    (None, [N, PAD], None, ["val_dataset.transforms.1", "127.5", "-1 to 1"]),
    ([N, N], [N, N], None, ["train_dataset.transforms.1", "second time"]),
    # The sections differ.
    (None, [], None, ["train_dataset: RGB, Normalize(mean=0.5", "val_dataset: RGB, no Normalize"]),
    ([], None, None, ["train_dataset: RGB, no Normalize", "val_dataset: RGB, Normalize"]),
    (None, [IMAGENET], None, ["mean=0.5", "mean=[0.485, 0.456, 0.406]"]),
    ([IMAGENET], [{**IMAGENET, "std": [1.0]}], None, ["std=[0.229, 0.224, 0.225]", "std=1"]),
    (None, None, [IMAGENET], ["export: RGB, Normalize(mean=[0.485"]),
    (None, [N, {"type": "Declared"}], None, ["val_dataset: RGB, Normalize", "Declared()"]),
]


@pytest.mark.parametrize(("one", "two", "three", "words"), WARNED)
def test_warnings(one, two, three, words, tmp_path, caplog):
    given = {"train_dataset": one, "val_dataset": two, "export": three}
    sections = {key: {"transforms": value} for key, value in given.items() if value is not None}
    found = said(good_config(tmp_path, **sections), caplog)
    # The second Normalize is told of both sections, everything else once.
    assert len(found) == (2 if words[-1] == "second time" else 1), found
    for word in [*words, "c.yml"]:
        assert word in found[0], found[0]


@pytest.fixture
def files(tmp_path):
    """A config of `Dataset`, whose sections take ``to_rgb``, without data."""
    section = {"type": "Dataset", "dataset_root": str(tmp_path), "num_classes": 3}
    content = yaml.safe_load(good_config(tmp_path).read_text(encoding="utf-8"))
    for mode in ("train", "val"):
        more = {"mode": mode, f"{mode}_path": "list.txt", "transforms": [N]}
        content[f"{mode}_dataset"] = {**section, **more}
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_order_of_channels(files, caplog):
    [line] = said(files, caplog, "val_dataset.to_rgb=False")
    assert "train_dataset: RGB, Normalize" in line
    assert "val_dataset: BGR, Normalize" in line
    assert said(files, caplog, "val_dataset.to_rgb=False", "train_dataset.to_rgb=False") == []
    # Of other images than of three channels it changes nothing.
    many = ["val_dataset.img_channels=5", "train_dataset.img_channels=5"]
    assert said(files, caplog, "val_dataset.to_rgb=False", *many) == []


@pytest.mark.parametrize("verb", ["predict", "export"])
@pytest.mark.parametrize(
    "without", ["val_dataset", "transforms", "both sections"], ids=lambda w: w.replace(" ", "_")
)
def test_no_preprocessing_is_refused(verb, without, tmp_path, capsys, image):
    """It cost 79 % of the pixels of the quick start's scenes, without a word."""
    if without == "transforms":
        path = good_config(tmp_path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        del content["val_dataset"]["transforms"]
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    else:
        model = {"num_classes": 3, "aspp_out_channels": 4}
        more = {} if without == "val_dataset" else {"train_dataset": None}
        path = good_config(tmp_path, val_dataset=None, model=model, **more)
    words = ["val_dataset.transforms", "export.transforms", "transforms: []"]
    refuses(VERBS[verb].main, flags_of(verb, tmp_path, path), words, capsys, tmp_path)


def test_an_empty_list_is_a_decision_and_is_said(tmp_path, caplog):
    steps = {"transforms": []}
    builder = SegBuilder(Config(good_config(tmp_path, train_dataset=steps, val_dataset=steps)))
    with caplog.at_level(logging.INFO, logger="paddleseg_deeplab"):
        assert builder.val_transforms == builder.export_transforms == []
    assert "val_dataset.transforms is empty: images go into the network as they are" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_either_section_is_enough(tmp_path):
    steps = {"transforms": [PAD, N]}
    path = good_config(tmp_path, val_dataset=None, export=steps, model={"num_classes": 3})
    builder = SegBuilder(Config(str(path)))
    assert [type(step).__name__ for step in builder.val_transforms] == ["Padding", "Normalize"]
    # A validation set without its own is evaluated, and predicted, as it is exported.
    content = yaml.safe_load(good_config(tmp_path, export=steps).read_text(encoding="utf-8"))
    del content["val_dataset"]["transforms"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    builder = SegBuilder(Config(str(path)))
    assert builder.val_dataset[0]["img"].shape == (3, 64, 64)


def facts(path, *opts):
    builder = SegBuilder(Config(str(path), opts=opts))
    # In place of the network, which takes a second to make.
    builder.model = SimpleNamespace(num_classes=builder.config.model_cfg["num_classes"])
    return dataset_facts(builder)[0]


@pytest.mark.parametrize(
    "missing",
    [
        ["val_dataset.dataset_root=nowhere"],
        ["val_dataset.dataset_root=null"],
        ["val_dataset.val_path=nowhere.txt"],
        ["val_dataset.class_names=nowhere.txt"],
        ["val_dataset={type: CamVid, mode: val, dataset_root: nowhere, transforms: []}"],
        ["val_dataset={type: Cityscapes, mode: val, dataset_root: ., transforms: []}"],
        ["val_dataset={type: Dataset, mode: val, num_classes: 3, transforms: []}"],
    ],
)
def test_data_that_are_not_there_are_forgiven(missing, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a.png b.png\n")  # files that are not there either
    classes = {"CamVid": 11, "Cityscapes": 19}
    count = next((n for name, n in classes.items() if name in missing[0]), 3)
    more = [f"train_dataset.num_classes={count}"]
    assert facts(files, *missing, *more) is None


def test_listed_files_that_are_not_there_are_forgiven(files, tmp_path):
    (tmp_path / "list.txt").write_text("a.png b.png\n")
    assert facts(files) is None


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("val_dataset.val_path=null", "val_path"),
        ("val_dataset.class_names=[a,b]", "2 names for 3 classes"),
        ("val_dataset.palette=[[1,2,3]]", "palette"),
        ("val_dataset.label_map={0: 9}", "label_map"),
        ("val_dataset.mode=vals", "mode"),
        ("val_dataset.edge=True", "edge"),
        ("val_dataset.separator=''", "separator"),
        ("val_dataset={type: Shapes, mode: val, num_classes: 3, image_size: [1, 1]}", "16 pixels"),
    ],
)
def test_mistakes_in_the_config_are_not(wrong, word, files, tmp_path):
    (tmp_path / "list.txt").write_text("a.png b.png\n")
    with pytest.raises(UserError, match=word):
        facts(files, wrong)


def test_a_list_of_another_form_is_not_forgiven(files, tmp_path):
    (tmp_path / "list.txt").write_text("a.png b.png c.png\n")
    with pytest.raises(UserError, match=r"list\.txt:1"):
        facts(files)

# SPDX-License-Identifier: Apache-2.0
"""Loading of configs: merging, --opts, and a table of mistakes."""

import logging

import pytest
from places import ROOT

from paddleseg_deeplab.cvlibs import Config
from paddleseg_deeplab.cvlibs.config import parse_opts, read_yaml
from paddleseg_deeplab.utils.errors import UserError, nearest

RECIPES = sorted(p for p in (ROOT / "configs").rglob("*.yml") if p.parent.name != "_base_")
GOOD = """
batch_size: 2
iters: 10
train_dataset: {type: Shapes, transforms: [{type: Normalize}]}
model: {type: DeepLabV3P, backbone: {type: ResNet18_vd, pretrained: x}, pretrained: y}
optimizer: {type: SGD, weight_decay: 4e-5}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.1}
loss:
  types: [{type: MixedLoss, losses: [{type: CrossEntropyLoss}, {type: DiceLoss}], coef: [1, 1]}]
"""


def write(folder, text, name="c.yml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path):
    return write(tmp_path, GOOD)


def test_properties_and_overrides(good):
    config = Config(str(good), learning_rate=0.5, batch_size=3, iters=7)
    assert (config.batch_size, config.iters) == (3, 7)
    assert config.lr_scheduler_cfg["learning_rate"] == 0.5
    assert config.loss_cfg["coef"] == [1]
    assert config.accumulation_steps == 1


def test_number_without_a_dot_is_a_number(good):
    assert Config(good).optimizer_cfg["weight_decay"] == 4e-5


def test_base_files_merge_and_inherited_false_replaces(tmp_path):
    write(tmp_path, "iters: 1\nmodel: {type: A, x: 1, b: {type: B, y: 2}}\n", "one.yml")
    write(tmp_path, "batch_size: 9\niters: 5\n", "two.yml")
    child = "_base_: [one.yml, two.yml]\nmodel: {b: {y: 3}}\n"
    config = Config(write(tmp_path, child))
    # The first base named wins over the second, the file itself over both.
    assert config.iters == 1
    assert config.batch_size == 9
    assert config.model_cfg == {"type": "A", "x": 1, "b": {"type": "B", "y": 3}}
    replaced = "_base_: one.yml\nmodel: {_inherited_: False, type: C}\n"
    assert Config(write(tmp_path, replaced)).model_cfg == {"type": "C"}


@pytest.mark.parametrize(
    ("opt", "value"),
    [
        ("a=1", 1),
        ("a=1e-3", 1e-3),
        ("a=2e-5", 2e-5),
        ("a=null", None),
        ("a=true", True),
        ("a=True", True),
        ("a=[1, 2]", [1, 2]),
        ("a=0.75,1.0", [0.75, 1.0]),
        ("a=data/x", "data/x"),
        ("a=x=y", "x=y"),
        ("a=", None),
    ],
)
def test_opts_values(opt, value):
    assert parse_opts([opt]) == [(["a"], value)]


def test_opts_reach_into_lists_and_new_sections(good):
    opts = [
        "loss.types.0.coef=[0.8, 0.2]",
        "loss.types.0.losses.1.type=LovaszSoftmaxLoss",
        "test_config.is_slide=True",
        "dataset_root=data/x",
    ]
    config = Config(good, opts=opts)
    mixed = config.loss_cfg["types"][0]
    assert mixed["coef"] == [0.8, 0.2]
    assert mixed["losses"][1]["type"] == "LovaszSoftmaxLoss"
    assert config.test_config == {"is_slide": True}
    assert config.train_dataset_cfg["dataset_root"] == "data/x"


def test_one_loss_type_serves_several_outputs(tmp_path):
    config = Config(write(tmp_path, "loss: {types: [{type: CrossEntropyLoss}], coef: [1, 0.4]}\n"))
    assert [item["type"] for item in config.loss_cfg["types"]] == ["CrossEntropyLoss"] * 2


def test_data_format_and_pretrained(good):
    config = Config(good)
    config.set_data_format("NHWC")
    config.drop_pretrained()
    model = config.model_cfg
    assert model["data_format"] == model["backbone"]["data_format"] == "NHWC"
    assert model["pretrained"] is None
    assert model["backbone"]["pretrained"] is None


@pytest.mark.parametrize(("old", "new"), [("sgd", "SGD"), ("adam", "Adam"), ("AdamW", "AdamW")])
def test_lower_case_optimizers_of_older_files(good, old, new):
    assert Config(good, opts=[f"optimizer.type={old}"]).optimizer_cfg["type"] == new


def test_text_reads_back_as_the_same_config(good, tmp_path):
    config = Config(good)
    assert Config(write(tmp_path, str(config), "again.yml")).dic == config.dic


BAD_FILES = [
    ("", "empty"),
    ("- 1\n- 2\n", "keys and values"),
    ("a: [1\n", "not valid YAML"),
    ("iters: 1\niters: 2\n", "'iters' is given twice"),
    ("iter: 1\n", r"iter: unknown key\. Did you mean 'iters'\?"),
    ("iters: ten\n", "iters: should be int"),
    ("iters: true\n", "iters: should be int"),
    ("iters: 0\n", "iters: should be at least 1"),
    ("batch_size: -2\n", "batch_size: should be at least 1"),
    ("model: DeepLabV3P\n", "model: should be dict"),
    ("model: {num_classes: 2}\n", "model: needs a `type`"),
    ("loss: {coef: [1]}\n", "loss.types: should be a list"),
    ("loss: {types: [CrossEntropyLoss]}\n", "loss.types.0: should have a `type`"),
    ("loss: {types: [{type: A}, {type: B}], coef: [1]}\n", "2 types but 1 coefficients"),
    ("loss: {types: [{type: A}], coef: [a]}\n", "list of numbers"),
    ("loss: {types: [{type: A}], coefs: [1]}\n", "loss.coefs: unknown key"),
    ("test_config: {slide: 1}\n", "test_config.slide: unknown key. Did you mean 'is_slide'"),
    ("_base_: missing.yml\n", "does not exist"),
    ("_base_: c.yml\n", "circle"),
    ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ("? [1, 2]\n: 3\n", "plain word"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_files_are_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        Config(path)
    assert "c.yml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["iters"], "key=value"),
        (["=1"], "key=value"),
        (["modle.type=A"], "there is no modle in the config. Did you mean 'model'"),
        (["model.backbon.depth=1"], "Did you mean 'backbone'"),
        (["iters.x=1"], "below a plain value"),
        (["loss.types.3.type=A"], "index below 1"),
        (["loss.types.x=A"], "index below 1"),
        (["iterz=3"], "unknown key"),
        (
            ["test_config.crf.iterations=5"],
            r'no test_config\.crf in the config\. Give it as a whole: test_config\.crf="{iter',
        ),
    ],
)
def test_bad_opts(good, opts, message):
    with pytest.raises(UserError, match=message):
        Config(good, opts=opts)


def test_hints_where_nothing_is_known(good):
    assert nearest("a", []) == "There is nothing to choose from."
    assert Config(good, opts=["test_config.crf={iterations: 5}"]).dic["test_config"] == {
        "crf": {"iterations": 5}
    }


def test_missing_file_and_wrong_suffix(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        Config(tmp_path / "nothing.yml")
    with pytest.raises(UserError, match=r"\.yml or \.yaml"):
        Config(write(tmp_path, "iters: 1\n", "c.txt"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_opens_with_its_command(path):
    config = Config(path)
    assert config.iters > 0
    assert config.model_cfg["type"]
    first = path.read_text(encoding="utf-8").splitlines()[0]
    place = path.relative_to(ROOT).as_posix()
    # Those in compat are for weights from elsewhere.
    commands = {"quickstart": "# make quickstart", "compat": "# paddleseg-deeplab convert_weights"}
    kind = path.stem if path.stem == "quickstart" else path.parent.name
    assert first.startswith(commands.get(kind, "# python train"))
    assert place in first or path.stem == "quickstart"


def test_read_yaml_takes_a_byte_order_mark(tmp_path):
    path = tmp_path / "bom.yml"
    path.write_bytes(b"\xef\xbb\xbfiters: 3\n")
    assert read_yaml(path) == {"iters": 3}


ROOTS = "train_dataset: {{type: Dataset{}}}\nval_dataset: {{type: Dataset{}}}\n{}"


@pytest.mark.parametrize(
    ("train", "val", "general", "opts", "expected"),
    [
        # In files, the section's own wins.
        ("", "", "g", [], ("g", "g")),
        ("t", "", "g", [], ("t", "g")),
        ("", "v", "g", [], ("g", "v")),
        ("t", "v", "", [], ("t", "v")),
        ("", "", "", [], (None, None)),
        # Typed for a section, whatever the files say and in any order.
        ("", "", "g", ["train_dataset.dataset_root=o"], ("o", "g")),
        ("t", "v", "g", ["val_dataset.dataset_root=o"], ("t", "o")),
        ("t", "", "g", ["dataset_root=p", "train_dataset.dataset_root=o"], ("o", "p")),
        ("t", "", "g", ["train_dataset.dataset_root=o", "dataset_root=p"], ("o", "p")),
        ("t", "", "g", ["train_dataset={type: D, dataset_root: o}", "dataset_root=p"], ("o", "p")),
        ("t", "v", "", ["train_dataset={type: D}", "dataset_root=p"], ("p", "p")),
        # Typed for both: the files' sections do not hold it up.
        ("t", "v", "", ["dataset_root=p"], ("p", "p")),
        ("t", "v", "g", ["dataset_root=p", "dataset_root=q"], ("q", "q")),
        # None, too, is a value of the section's own.
        ("", "", "g", ["val_dataset.dataset_root=None"], ("g", None)),
    ],
)
def test_the_special_dataset_root_wins(tmp_path, train, val, general, opts, expected):
    parts = [f", dataset_root: {root}" if root else "" for root in (train, val)]
    text = ROOTS.format(*parts, f"dataset_root: {general}\n" if general else "")
    config = Config(write(tmp_path, text), opts=opts)
    sets = (config.train_dataset_cfg, config.val_dataset_cfg)
    assert tuple(cfg.get("dataset_root") for cfg in sets) == expected
    assert "dataset_root" not in config.dic
    # The resolved config says the same again, with and without a typed one.
    again = write(tmp_path, str(config), "again.yml")
    assert str(Config(again)) == str(config)
    assert Config(again, opts=["dataset_root=z"]).val_dataset_cfg["dataset_root"] == "z"


@pytest.mark.parametrize(
    ("base", "child", "expected", "warned"),
    [
        (("b", "b", ""), "dataset_root: c\n", ("b", "b"), True),
        (("c", "c", ""), "dataset_root: c\n", ("c", "c"), False),
        (("b", "", ""), "dataset_root: c\n", ("b", "c"), False),
        (("", "", "dataset_root: g\n"), "val_dataset: {dataset_root: c}\n", ("g", "c"), False),
        (("", "", "dataset_root: g\n"), "dataset_root: c\n", ("c", "c"), False),
        (("b", "b", ""), "val_dataset: {dataset_root: c}\n", ("b", "c"), False),
    ],
)
def test_a_dataset_root_of_a_base(tmp_path, caplog, monkeypatch, base, child, expected, warned):
    monkeypatch.setattr(logging.getLogger("paddleseg_deeplab"), "propagate", True)
    train, val, general = base
    parts = [f", dataset_root: {root}" if root else "" for root in (train, val)]
    write(tmp_path, ROOTS.format(*parts, general), "base.yml")
    config = Config(write(tmp_path, f"_base_: base.yml\n{child}"))
    sets = (config.train_dataset_cfg, config.val_dataset_cfg)
    assert tuple(cfg.get("dataset_root") for cfg in sets) == expected
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == warned
    if warned:
        assert told[0] == (
            f"{tmp_path / 'c.yml'}: dataset_root c has no effect beside those of "
            "train_dataset and val_dataset."
        )


def test_what_is_typed_by_name_wins_over_a_flag(good):
    opts = ["lr_scheduler.learning_rate=0.2", "iters=5", "batch_size=2"]
    config = Config(good, learning_rate=0.5, iters=7, batch_size=3, opts=opts)
    assert config.lr_scheduler_cfg["learning_rate"] == 0.2
    assert (config.iters, config.batch_size) == (5, 2)
    whole = ["lr_scheduler={type: PolynomialDecay, power: 1.0}"]
    assert Config(good, learning_rate=0.5, opts=whole).lr_scheduler_cfg["learning_rate"] == 0.5
    assert Config(good, learning_rate=0.5, opts=whole).lr_scheduler_cfg["power"] == 1.0

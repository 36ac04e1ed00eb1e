# SPDX-License-Identifier: Apache-2.0
"""The config.yml beside the weights: what changes results is listed, the rest is not.

Such differences gave, on a network trained to mIoU 0.917 on scenes: another `align_corners` 0.891,
other ASPP rates 0.913, another mean and std 0.880, a second Normalize 0.208.
"""

import logging

import pytest
import yaml
from bad_input import good_config

from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.trained_config import config_beside, warn_of_other_config

IMAGENET = "[{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}]"
N = [{"type": "Normalize"}]
PADDED = "[{type: Padding, target_size: [64, 64]}, {type: Normalize}]"


@pytest.fixture
def run(tmp_path):
    """A training's folder without its weights, and the config that it had."""
    path = good_config(tmp_path)
    folder = tmp_path / "output"
    for name in ("best_model", "iter_1"):
        (folder / name).mkdir(parents=True)
    config = Config(str(path))
    SegBuilder(config)  # fills in what follows from the dataset, as training does
    (folder / "config.yml").write_text(str(config), encoding="utf-8")
    (folder / "iter_1" / "config.yml").write_text(str(config), encoding="utf-8")
    return path, folder


def listed(run, *opts, **how):
    path, folder = run
    config = Config(str(path), opts=opts)
    SegBuilder(config)
    return warn_of_other_config(config, str(folder / "best_model"), **how)


DIFFERENT = [
    ("model.aspp_ratios=[1,6]", "model.aspp_ratios: [1, 2] in training, [1, 6] here"),
    ("model.align_corners=True", "model.align_corners: False in training, True here"),
    ("model.image_pooling=False", "model.image_pooling: True in training, False here"),
    ("model.logits_size=stride", "model.logits_size: input in training, stride here"),
    ("model.bn_epsilon=0.1", "model.bn_epsilon: None in training, 0.1 here"),
    (
        "model.backbone.output_stride=8",
        "model.backbone.output_stride: 16 in training, 8 here (the weights fit both)",
    ),
    (
        "model.backbone.multi_grid=[1,2]",
        "model.backbone.multi_grid: [1, 1, 1] in training, [1, 2] here",
    ),
    (
        "model.backbone={type: ResNet34_vd, output_stride: 16}",
        "model.backbone.type: ResNet18_vd in training, ResNet34_vd here",
    ),
    (
        f"val_dataset.transforms={IMAGENET}",
        "how images are prepared: RGB, Normalize(mean=0.5, std=0.5) in training, RGB, "
        "Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]) here",
    ),
    (
        "val_dataset.transforms=[]",
        "how images are prepared: RGB, Normalize(mean=0.5, std=0.5) in training, RGB, no "
        "transforms here",
    ),
    (
        f"val_dataset.transforms={PADDED}",
        "how images are prepared: RGB, Normalize(mean=0.5, std=0.5) in training, RGB, "
        "Padding(target_size=[64, 64], im_padding_value=127.5), Normalize(mean=0.5, std=0.5) here",
    ),
]


@pytest.mark.parametrize(("opts", "line"), DIFFERENT)
def test_what_changes_results_is_listed(run, opts, line, caplog):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        assert listed(run, opts) == [line]
    [record] = [r for r in caplog.records if "were trained with" in r.getMessage()]
    for word in ("best_model", "config.yml", "c.yml", f"\n  {line}"):
        assert word in record.getMessage()


def test_one_warning_lists_all(run, caplog):
    opts = ["model.aspp_ratios=[1,6]", "model.align_corners=True", "val_dataset.transforms=[]"]
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        assert len(listed(run, *opts)) == 3
    assert caplog.text.count("were trained with") == 1


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["batch_size=7", "iters=9"],
        ["lr_scheduler.learning_rate=3", "optimizer={type: AdamW}"],
        ["train_dataset.num_samples=9", "val_dataset.num_samples=9", "val_dataset.seed=4"],
        ["train_dataset.transforms=[{type: RandomDistort}, {type: Normalize}]"],
        ["model.pretrained=a.pdparams", "model.backbone.pretrained=b.pdparams"],
        ["model.aspp_dropout=0.5", "model.decoder_dropout=0.2", "model.bn_momentum=0.8"],
        ["model.freeze_bn=True", "model.data_format=NHWC", "model.backbone.data_format=NHWC"],
        ["loss.types=[{type: DiceLoss}]", "ema.decay=0.5", "to_static_training=True"],
        # As the defaults and other ways to write the same.
        ["model.align_corners=False", "model.logits_size=input", "model.low_level_channels=48"],
        ["model.backbone.multi_grid=[1,1,1]", "model.backbone_indices=(0,3)"],
        ["val_dataset.transforms=[{type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5]}]"],
        # How it is evaluated was asked for.
        ["test_config.is_slide=True", "test_config.crop_size=[32,32]"],
    ],
)
def test_the_rest_is_silent(run, opts, caplog):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        assert listed(run, *opts, labels=True) == []
    assert "were trained with" not in caplog.text


# Rates that are left out follow the output stride: 16 -> 1, 6, 12, 18; 8 -> 1, 12, 24, 36.
@pytest.mark.parametrize(
    ("trained", "now", "keys"),
    [
        ("null", ["model.aspp_ratios=[1,6,12,18]"], []),
        ("[1,6,12,18]", ["model.aspp_ratios=null"], []),
        ("null", ["model.aspp_ratios=[1,12,24,36]"], ["aspp_ratios"]),
        ("null", ["model.aspp_ratios=null", "model.backbone.output_stride=8"], ["output_stride"]),
        (
            "[1,6,12,18]",
            ["model.aspp_ratios=null", "model.backbone.output_stride=8"],
            ["aspp_ratios", "output_stride"],
        ),
    ],
)
def test_rates_that_follow_the_stride(run, trained, now, keys):
    path, folder = run
    text = str(Config(str(path), opts=[f"model.aspp_ratios={trained}"]))
    (folder / "config.yml").write_text(text, encoding="utf-8")
    found = listed(run, *now)
    assert [line.split(":")[0].rpartition(".")[2] for line in found] == keys


def test_an_export_may_resize_on_purpose(run):
    resized = "[{type: Resize, target_size: [64, 64]}, {type: Normalize}]"
    assert listed(run, f"export.transforms={resized}", section="export") == []
    [line] = listed(run, f"export.transforms={IMAGENET}", section="export")
    assert line.startswith("how images are prepared")
    assert listed(run, f"export.transforms={IMAGENET}") == []  # predict takes val_dataset's


def test_preprocessing_that_only_an_export_has(run):
    """`predict` takes it where val_dataset has none; so did the training's run."""
    path, folder = run
    for place, transforms in ((folder / "config.yml", N), (path, yaml.safe_load(IMAGENET))):
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
        del content["val_dataset"]
        content["export"] = {"transforms": transforms}
        place.write_text(yaml.safe_dump(content), encoding="utf-8")
    for section in ("val_dataset", "export"):
        [line] = listed(run, section=section)
        assert line.startswith("how images are prepared: RGB, Normalize(mean=0.5, std=0.5) in")
        assert listed(run, "export.transforms=[{type: Normalize}]", section=section) == []


def with_names(run, trained, now):
    """The run's config and today's, both of `Dataset` with names of classes."""
    path, folder = run
    for place, names in ((folder / "config.yml", trained), (path, now)):
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
        section = {"type": "Dataset", "mode": "val", "dataset_root": str(folder), "val_path": "x"}
        more = {"num_classes": 3, "transforms": [{"type": "Normalize"}], "class_names": names}
        content["val_dataset"] = {**section, **more}
        place.write_text(yaml.safe_dump(content), encoding="utf-8")


def test_the_order_of_classes(run):
    _, folder = run
    with_names(run, ["sky", "Road", "car"], ["sky", "car", "road"])
    swapped = [
        "class 1: 'road' in training, 'car' here",
        "class 2: 'car' in training, 'road' here",
    ]
    assert listed(run) == swapped
    with_names(run, ["sky", "Road", "car"], ["Sky", "road ", "car"])
    assert listed(run) == []
    with_names(run, ["sky", "road", "car"], "names.txt")
    assert listed(run) == []  # a file that is not there tells nothing
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # as the dataset reads it
        (folder / "names.txt").write_text("sky\ncar\nroad\n", encoding=encoding)
        assert listed(run) == swapped
    with_names(run, None, ["sky", "car", "road"])
    assert listed(run) == []


def test_how_masks_are_read_counts_where_they_are(run):
    with_names(run, None, None)
    opts = ["val_dataset.label_map={0: 0, 1: 2, 2: 1}"]
    assert listed(run, *opts) == []
    [line] = listed(run, *opts, labels=True)
    assert line == "val_dataset.label_map: None in training, {0: 0, 1: 2, 2: 1} here"


def test_where_it_is_looked_for(run, tmp_path):
    _, folder = run
    assert config_beside(str(folder / "best_model")) == folder / "config.yml"
    assert config_beside(str(folder / "best_model" / "model.pdparams")) == folder / "config.yml"
    assert config_beside(str(folder / "iter_1")) == folder / "iter_1" / "config.yml"
    # Not of any folder above: that may be of something else.
    (folder / "other").mkdir()
    assert config_beside(str(folder / "other" / "model.pdparams")) is None
    for none in (None, "https://example.org/best_model/model.pdparams", str(tmp_path / "x")):
        assert config_beside(none) is None


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "a: b: c", "model: 3", "val_dataset: [1]", "model: {backbone: 1}"]
)
def test_a_file_that_tells_nothing_stops_nothing(run, content, caplog):
    _, folder = run
    (folder / "config.yml").write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        assert listed(run) == []
    assert "cannot be compared" in caplog.text

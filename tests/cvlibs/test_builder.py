# SPDX-License-Identifier: Apache-2.0
"""SegBuilder: what it builds, what follows from the dataset, and a table of mistakes."""

import logging

import numpy as np
import paddle
import pytest
import yaml

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import save_image

GOOD = """
batch_size: 2
iters: 10
train_dataset:
  type: Shapes
  num_classes: 4
  image_size: [32, 32]
  num_samples: 6
  mode: train
  transforms:
    - type: RandomHorizontalFlip
    - type: Normalize
val_dataset:
  type: Shapes
  num_classes: 4
  image_size: [32, 32]
  num_samples: 2
  mode: val
  transforms:
    - type: Normalize
model:
  type: DeepLabV3P
  backbone:
    type: ResNet18_vd
    output_stride: 16
  backbone_indices: [0, 3]
  aspp_ratios: [1, 2, 3, 4]
  aspp_out_channels: 8
optimizer:
  type: SGD
  momentum: 0.9
  weight_decay: 4.0e-5
lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.1
  end_lr: 0
  power: 0.9
loss:
  types:
    - type: MixedLoss
      losses:
        - type: CrossEntropyLoss
        - type: LovaszSoftmaxLoss
      coef: [0.8, 0.2]
  coef: [1]
"""
PARTS = ("lr_scheduler", "train_dataset", "val_dataset", "val_transforms", "loss", "model")


def config_of(folder, text=GOOD, **settings):
    path = folder / "recipe.yml"
    path.write_text(text, encoding="utf-8")
    return Config(str(path), **settings)


def build_all(config):
    builder = SegBuilder(config)
    for part in (*PARTS, "optimizer"):
        getattr(builder, part)
    return builder


def test_everything_is_built_once(tmp_path):
    builder = build_all(config_of(tmp_path))
    assert type(builder.model).__name__ == "DeepLabV3P"
    assert builder.model is builder.model
    assert builder.model.num_classes == 4
    assert len(builder.train_dataset) == 6
    assert builder.val_dataset.mode == "val"
    assert [type(t) for t in builder.val_transforms] == [Normalize]
    assert builder.loss["coef"] == [1]
    assert builder.loss["types"][0].names == ["CrossEntropyLoss", "LovaszSoftmaxLoss"]
    assert isinstance(builder.optimizer, paddle.optimizer.Momentum)
    assert builder.optimizer.get_lr() == pytest.approx(0.1)
    assert builder.lr_scheduler.decay_steps == 10


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["model.type=DeepLabV3Plus"], ["model.type", "DeepLabV3Plus", "DeepLabV3P"]),
        (["model.type=[1]"], ["model", "type"]),
        (["model.asp_ratios=[1]"], ["model.asp_ratios", "aspp_ratios"]),
        (["model.backbone.type=ResNet5"], ["model.backbone.type", "ResNet50_vd"]),
        (["model.backbone.outputstride=8"], ["model.backbone.outputstride", "output_stride"]),
        (["model.backbone=ResNet50_vd"], ["model.backbone", "`type`", "ResNet50_vd"]),
        (["model.backbone_indices=[0]"], ["model", "backbone_indices"]),
        (["model.backbone.output_stride=5"], ["model.backbone", "5"]),
        (["train_dataset.type=Shape"], ["train_dataset.type", "Shapes"]),
        (["train_dataset.num_class=4"], ["train_dataset.num_class", "num_classes"]),
        (["train_dataset.transforms=Normalize"], ["train_dataset.transforms", "list"]),
        (["train_dataset.transforms.0.type=Normalise"], ["transforms.0.type", "Normalize"]),
        (["train_dataset.transforms.0.probability=1"], ["transforms.0.probability", "prob"]),
        (["train_dataset.transforms.0.prob=2"], ["transforms.0", "prob", "2"]),
        (["train_dataset.transforms.0=5"], ["transforms.0", "`type`"]),
        (["train_dataset.num_samples=-1"], ["train_dataset", "num_samples"]),
        (["train_dataset.num_classes=[4]"], ["num_classes"]),
        (["val_dataset.num_classes=5"], ["num_classes", "train_dataset 4", "val_dataset 5"]),
        (["model.num_classes=7"], ["model.num_classes", "7", "4"]),
        (["model.backbone.in_channels=1"], ["model.backbone.in_channels", "1", "3"]),
        (["loss.types.0.losses.1.ignore_index=0"], ["losses.1.ignore_index", "255"]),
        (["loss.types.0.type=MixLoss"], ["loss.types.0.type", "MixedLoss"]),
        (["loss.types.0.losses.0.type=CrossEntropy"], ["losses.0.type", "CrossEntropyLoss"]),
        (["loss.types.0.losses.0.weights=[1]"], ["losses.0.weights", "weight"]),
        (["loss.types.0.losses.0.weight=heavy"], ["losses.0", "heavy"]),
        (["loss.types.0.coef=[1]"], ["loss.types.0", "coef"]),
        (["optimizer.type=Sgd"], ["optimizer.type", "SGD"]),
        (["optimizer.momentm=0.9"], ["optimizer.momentm", "momentum"]),
        (["optimizer.momentum=2"], ["optimizer", "momentum", "2"]),
        (["optimizer.custom_cfg=[{'name': 'hed'}]"], ["optimizer", "hed", "head"]),
        (["lr_scheduler.type=PolyDecay"], ["lr_scheduler", "PolynomialDecay"]),
        (["lr_scheduler.pwer=1"], ["lr_scheduler", "pwer", "power"]),
        (["lr_scheduler.learning_rate=fast"], ["lr_scheduler", "fast"]),
    ],
)
def test_mistakes_name_file_key_and_remedy(tmp_path, opts, words):
    with pytest.raises(UserError) as caught:
        build_all(config_of(tmp_path, opts=opts))
    text = str(caught.value)
    for word in [str(tmp_path / "recipe.yml"), *words]:
        assert word in text, text
    assert text.count("optimizer: ") <= 1
    assert text.count("lr_scheduler: ") <= 1


@pytest.mark.parametrize("name", ["model", "train_dataset", "val_dataset", "loss", "optimizer"])
def test_a_missing_section_is_named_when_it_is_needed(tmp_path, name):
    content = yaml.safe_load(GOOD)
    del content[name]
    builder = SegBuilder(config_of(tmp_path, yaml.safe_dump(content)))
    with pytest.raises(UserError, match=rf"recipe\.yml: {name}"):
        getattr(builder, name)


def test_a_missing_parameter_is_named(tmp_path):
    text = GOOD.replace("  backbone:\n    type: ResNet18_vd\n    output_stride: 16\n", "")
    with pytest.raises(UserError, match=r"recipe\.yml: model: DeepLabV3P needs backbone"):
        assert SegBuilder(config_of(tmp_path, text)).model


def test_only_a_config_is_taken():
    with pytest.raises(TypeError, match="dict"):
        SegBuilder({})


def test_what_follows_from_the_dataset_is_filled_in(tmp_path):
    opts = [f"{name}_dataset.img_channels=2" for name in ("train", "val")]
    config = config_of(tmp_path, opts=opts)
    builder = SegBuilder(config)
    assert config.model_cfg["num_classes"] == 4
    assert config.model_cfg["backbone"]["in_channels"] == 2
    for part in config.loss_cfg["types"][0]["losses"]:
        assert part["ignore_index"] == 255
    assert "ignore_index" not in config.loss_cfg["types"][0]  # MixedLoss takes none
    assert "num_classes: 4" in str(config)
    assert list(next(iter(builder.model.parameters())).shape)[1] == 2


def test_the_class_attribute_of_a_dataset_counts(tmp_path):
    content = yaml.safe_load(GOOD)
    for name, mode in (("train_dataset", "train"), ("val_dataset", "val")):
        content[name] = {"type": "PascalVOC", "dataset_root": "none", "mode": mode}
        content[name]["transforms"] = [{"type": "Normalize"}]
    config = config_of(tmp_path, yaml.safe_dump(content))
    SegBuilder(config)  # opens no data
    assert config.model_cfg["num_classes"] == 21


def masks(folder, count=4):
    """Files of which three quarters are class 0, the rest class 1, and one row is void."""
    label = np.zeros((9, 8), np.uint8)
    label[6:8] = 1
    label[8] = 255
    for i in range(count):
        save_image(folder / f"{i}.png", np.zeros((9, 8, 3), np.uint8))
        save_image(folder / f"{i}_label.png", label)
    lines = "".join(f"{i}.png {i}_label.png\n" for i in range(count))
    (folder / "list.txt").write_text(lines, encoding="utf-8")
    common = {"type": "Dataset", "dataset_root": str(folder), "num_classes": 3}
    common["transforms"] = [{"type": "Normalize"}]
    content = yaml.safe_load(GOOD)
    content["train_dataset"] = {**common, "mode": "train", "train_path": "list.txt"}
    content["val_dataset"] = {**common, "mode": "val", "val_path": "list.txt"}
    content["loss"]["types"][0]["losses"][0]["weight"] = "auto"
    return yaml.safe_dump(content)


def test_auto_weights(tmp_path, caplog):
    config = config_of(tmp_path, masks(tmp_path))
    with caplog.at_level(logging.INFO, logger="paddleseg_deeplab"):
        loss = SegBuilder(config).loss["types"][0].losses[0]
    expected = class_weights_from_counts([4 * 48, 4 * 16, 0])
    assert expected == pytest.approx([2 / 3, 2, 1])  # median 128 of the counts 192 and 64
    np.testing.assert_allclose(loss.weight.numpy(), expected, rtol=1e-6)
    assert "4 of 4 training images: 0.6667, 2, 1" in caplog.text
    # The kept config still says auto: a run from it counts again.
    assert config.loss_cfg["types"][0]["losses"][0]["weight"] == "auto"


def test_auto_weights_of_void_alone(tmp_path):
    text = masks(tmp_path)
    for i in range(4):
        save_image(tmp_path / f"{i}_label.png", np.full((9, 8), 255, np.uint8))
    with pytest.raises(UserError, match=r"recipe\.yml: loss: weight: auto: .*no labelled pixel"):
        assert SegBuilder(config_of(tmp_path, text)).loss


def test_a_paddleseg_style_file_loads(tmp_path):
    """PaddleSeg's keys, layout and inheritance, written for one's own files."""
    masks(tmp_path)
    base = f"""
        batch_size: 4
        iters: 100
        train_dataset:
          type: Dataset
          dataset_root: {tmp_path}
          train_path: {tmp_path}/list.txt
          num_classes: 3
          mode: train
          transforms:
            - type: ResizeStepScaling
              min_scale_factor: 0.5
              max_scale_factor: 2.0
              scale_step_size: 0.25
            - type: RandomPaddingCrop
              crop_size: [16, 8]
            - type: RandomHorizontalFlip
            - type: RandomDistort
              brightness_range: 0.5
            - type: Normalize
              mean: [0.5, 0.5, 0.5]
              std: [0.5, 0.5, 0.5]
        val_dataset:
          type: Dataset
          dataset_root: {tmp_path}
          val_path: {tmp_path}/list.txt
          num_classes: 3
          mode: val
          transforms:
            - type: Normalize
        optimizer: {{type: SGD, momentum: 0.9, weight_decay: 4.0e-5}}
        lr_scheduler: {{type: PolynomialDecay, learning_rate: 0.01, end_lr: 0, power: 0.9}}
        loss:
          types: [{{type: CrossEntropyLoss}}]
          coef: [1]
    """
    (tmp_path / "base.yml").write_text(base, encoding="utf-8")
    child = """
        _base_: base.yml
        model:
          type: DeepLabV3
          backbone:
            type: ResNet18_vd
            output_stride: 8
            multi_grid: [1, 2, 4]
            pretrained: null
          backbone_indices: [3]
          aspp_ratios: [1, 12, 24, 36]
          aspp_out_channels: 8
          align_corners: False
          pretrained: null
        optimizer:
          weight_decay: 0.0001
    """
    builder = build_all(config_of(tmp_path, child))
    assert builder.model.num_classes == 3
    assert builder.train_dataset[0]["img"].shape == (3, 8, 16)
    assert builder.config.optimizer_cfg == {"type": "SGD", "momentum": 0.9, "weight_decay": 1e-4}


def test_a_component_of_one_s_own_without_the_shared_keys(tmp_path):
    """A registered loss that takes no ignore_index does not get one."""

    def plain_loss(scale=1.0):
        return scale

    registry.LOSSES.add_component(plain_loss)
    try:
        opts = ["loss.types.0={'type': 'plain_loss', 'scale': 3.0}"]
        assert SegBuilder(config_of(tmp_path, opts=opts)).loss["types"] == [3.0]
    finally:
        del registry.LOSSES.components_dict["plain_loss"]

# SPDX-License-Identifier: Apache-2.0
"""`inspect_model --memory`: what a training step takes, against hand counts and Paddle's count."""

import json

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.base import core as paddle_core

from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.models import losses as all_losses
from paddleseg_deeplab.models.layers import ConvBNReLU
from paddleseg_deeplab.models.losses import base as losses_base
from paddleseg_deeplab.tools.inspect_model import memory
from paddleseg_deeplab.tools.inspect_model.saved import _record, saved_maps
from paddleseg_deeplab.tools.inspect_model.stages import units_of

QUICK = "configs/quickstart.yml"


class Tiny(nn.Layer):
    """Two blocks, dropout, a classifier and a resize: each kept map by hand."""

    def __init__(self, data_format="NCHW"):
        super().__init__()
        self.data_format = data_format
        how = {"bias_attr": False, "data_format": data_format}
        self.one = ConvBNReLU(3, 8, 3, stride=2, **how)
        self.two = ConvBNReLU(8, 16, 3, dilation=2, **how)
        self.drop = nn.Dropout(0.5)
        self.cls = nn.Conv2D(16, 5, 1, data_format=data_format)

    def forward(self, x):
        return [self.cls(self.drop(self.two(self.one(x))))]


def by_hand(height, width):
    """Bytes: the convolutions' results that batch norm keeps, and ReLU's results, which the next
    convolution keeps too; the mask of dropout, and its result, which the classifier keeps. The
    image and the classifier's result are not among them."""
    pixels = -(-height // 2) * -(-width // 2)
    one, two = 8 * pixels * 4, 16 * pixels * 4
    return {"one": 2 * one, "two": 2 * two, "cls": two, memory.BETWEEN: 16 * pixels}


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(64, 64), (97, 161), (33, 400)])
def test_kept_maps_by_hand(size, data_format):
    model = Tiny(data_format)
    found = saved_maps(model, size)
    sums = {}
    for saved in found.maps:
        sums[saved.stage] = sums.get(saved.stage, 0) + saved.size()
    assert sums == by_hand(*size)  # in NHWC the image is a view of the batch's own tensor
    assert found.outputs == [(-(-size[0] // 2), -(-size[1] // 2))]
    assert found.classes == 5
    assert found.parameters == {"one": 216 + 16, "two": 1152 + 32, "cls": 85}


def test_the_parts_by_hand():
    """Three images: weights and all that grows with them, with the pixels and with the classes."""
    model = Tiny()
    cross_entropy = all_losses.CrossEntropyLoss()
    known = memory.TrainingMemory(
        *(model, (64, 96), {"types": [cross_entropy]}), moments=1, use_ema=True
    )
    found = known.estimate(3)
    trained, numbers, kernels = 216 + 16 + 1152 + 32 + 85, 1501 + 48, 216 + 1152 + 80
    assert numbers == trained + 2 * (8 + 16)
    kept, pixels = by_hand(64, 96), 3 * 32 * 48
    assert {stage: row["fp32"] for stage, row in found.stages.items() if row["fp32"]} == {
        stage: 3 * size for stage, size in kept.items()
    }
    halves = {stage: size // 2 for stage, size in kept.items()}
    halves[memory.BETWEEN] = kept[memory.BETWEEN]  # a mask has a byte an element in any precision
    for column in ("O1", "O2"):
        assert {s: row[column] for s, row in found.stages.items() if row[column]} == {
            stage: 3 * size for stage, size in halves.items()
        }
    fp32 = {name: row["fp32"] for name, row in found.parts.items()}
    losses = pixels * (8 * 5 + 33)
    assert fp32 == {
        "weights": 4 * numbers,
        "optimizer": 4 * trained,
        "average of weights": 4 * numbers,
        "batch": 3 * 64 * 96 * (3 * 4 + 8),
        "activations": 3 * sum(kept.values()),
        "logits": pixels * 5 * 4,
        "losses": losses,
        "gradients of weights": 4 * trained,
    }
    # The fullest moment of so shallow a network is the classifier's backward pass: all maps are
    # there, and three gradients of the size of its input.
    resting = sum(fp32[k] for k in ("weights", "optimizer", "average of weights", "batch"))
    maps = fp32["activations"] + 3 * 3 * kept["cls"]
    assert found.peak["fp32"] == resting + fp32["logits"] + maps > resting + losses
    assert found.parts["weights"]["O1"] == 4 * numbers + 2 * kernels
    assert found.parts["weights"]["O2"] == (2 + 4) * kernels + 4 * (numbers - kernels)
    assert found.parts["gradients of weights"]["O2"] == 2 * trained


@pytest.mark.parametrize(
    ("config", "opts", "size"),
    [
        (QUICK, [], (150, 201)),
        (QUICK, ["model.backbone.type=MobileNetV2"], (129, 230)),
        (
            "configs/pascal_voc12/deeplabv2_resnet101_os8_voc12aug_321x321_20k.yml",
            ["model.backbone.type=ResNet18_vd"],  # frozen batch norm, three scales
            (129, 201),
        ),
    ],
)
def test_small_images_tell_of_large_ones(config, opts, size):
    """The sum from small images is that of an image of the size itself, to the byte."""
    config = Config(config, opts=opts)
    config.drop_pretrained()
    model = SegBuilder(config).model
    model.train()
    found = saved_maps(model, size)
    recorder, outputs, _ = _record(model, units_of(model), size, 3)
    assert [m.elements for m in found.maps] == [row[1] for row in recorder.rows]
    assert found.outputs == outputs


def test_frozen_parts_keep_less():
    """A part without gradients keeps nothing, and has none of its own."""
    model = Tiny()
    for parameter in model.one.parameters():
        parameter.stop_gradient = True
    found = saved_maps(model, (64, 64))
    assert {m.stage for m in found.maps} == {"two", "cls", memory.BETWEEN}
    assert "one" not in found.parameters


# -- against Paddle's own count -----------------------------------------------------------------


def peak_of(work):
    paddle_core.host_memory_stat_reset_peak_value("Allocated", 0)
    before = paddle_core.host_memory_stat_current_value("Allocated", 0)
    work()
    return paddle_core.host_memory_stat_peak_value("Allocated", 0) - before


@pytest.mark.parametrize("classes", [8, 19])
@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (all_losses.CrossEntropyLoss(), memory.CROSS_ENTROPY),
        (all_losses.CrossEntropyLoss(label_smoothing=0.1), memory.SMOOTHED_CROSS_ENTROPY),
        (all_losses.LovaszSoftmaxLoss(), memory.LOVASZ_ON_A_DEVICE),
        (all_losses.DiceLoss(), memory._LOSSES["DiceLoss"]),
        (all_losses.FocalLoss(), memory._LOSSES["FocalLoss"]),
    ],
    ids=["ce", "smoothed ce", "lovasz", "dice", "focal"],
)
def test_the_losses_constants(classes, loss, told, monkeypatch):
    """In the form that a device takes; 15 %: they were fitted to 4, 19 and 75 classes."""
    monkeypatch.setattr(losses_base, "NUMPY_ON_CPU", False)
    pixels = 2 * 96 * 96
    logits = paddle.rand([2, classes, 96, 96])
    label = paddle.randint(0, classes, [2, 96, 96])
    logits.stop_gradient = False
    found = peak_of(lambda: loss(logits, label).backward())
    assert found == pytest.approx(told.at_peak(classes, pixels), rel=0.15)


# -- the command --------------------------------------------------------------------------------


def test_the_largest_batch_is_the_last_that_fits():
    known = memory.TrainingMemory(Tiny(), (64, 64), {"types": [all_losses.CrossEntropyLoss()]})
    for column in memory.COLUMNS:
        room = memory.RESERVED + known.estimate(37).peak[column]
        assert known.largest_batch(room / memory.GIB, column) == 37
        assert known.largest_batch((room - 1) / memory.GIB, column) == 36
    assert known.largest_batch(1.0, "fp32") == 0


def test_the_commands_text_and_file(tmp_path, capsys):
    flags = ["--config", QUICK, "--output_strides", "16", "--save_dir", str(tmp_path)]
    assert run_verb("inspect_model", [*flags, "--memory", "2", "--batch_size", "3"]) == 0
    text = capsys.readouterr().out
    assert "Memory of a training step in GiB, estimated (batch 3 of 64x64, NCHW)" in text
    content = json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))
    found = content["memory"]
    assert (content["input_size"], found["batch_size"]) == ([64, 64], 3)
    for column in ("fp32", "O1", "O2"):
        parts = {name: row[column] for name, row in found["parts"].items()}
        assert sum(row[column] for row in found["stages"].values()) == parts["activations"]
        assert parts["activations"] < found["peak"][column] < sum(parts.values()) * 1.5
        assert f"{column} {found['largest_batch'][column]}" in text
    assert found["largest_batch"]["O1"] > found["largest_batch"]["fp32"] > 3


def test_without_the_flag_nothing_changes(tmp_path):
    flags = ["--config", QUICK, "--output_strides", "16", "--save_dir", str(tmp_path)]
    assert run_verb("inspect_model", flags) == 0
    content = json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))
    assert "memory" not in content
    assert content["input_size"] == [513, 513]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--memory", "-1"], "--memory takes the GiB"),
        (["--memory", "nan"], "--memory takes the GiB"),
        (["--memory", "--batch_size", "0"], "--batch_size should be at least 1"),
        (["--batch_size", "2"], "--batch_size is for --memory"),
        (
            ["--memory", "--opts", "train_dataset={'type': 'CamVid', 'dataset_root': 'x'}"],
            "give --input_size W H",
        ),
    ],
)
def test_errors(flags, told, capsys, tmp_path):
    assert run_verb("inspect_model", ["--config", QUICK, "--save_dir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("cfg", "size"),
    [
        ({"image_size": [64, 48]}, (48, 64)),
        ({"transforms": [{"type": "RandomPaddingCrop", "crop_size": [1024, 512]}]}, (512, 1024)),
        ({"transforms": [{"type": "RandomPaddingCrop"}]}, (512, 512)),
        (
            {
                "image_size": [9, 9],
                "transforms": [
                    {"type": "Resize", "target_size": [300, 200]},
                    {"type": "RandomPaddingCrop", "crop_size": [96, 64]},
                    {"type": "Normalize"},
                ],
            },
            (64, 96),
        ),
        ({"transforms": [{"type": "Normalize"}]}, None),
        ({}, None),
    ],
)
def test_the_size_that_a_config_trains_on(cfg, size):
    assert memory.crop_of(cfg) == size


def test_weights_from_labels_are_not_needed():
    cfg = {"types": [{"type": "MixedLoss", "losses": [{"weight": "auto"}, {"weight": [1, 2]}]}]}
    memory.forget_class_weights(cfg)
    assert cfg["types"][0]["losses"] == [{}, {"weight": [1, 2]}]


def test_mixed_and_unknown_losses():
    class Mine(nn.Layer):
        pass

    both = all_losses.MixedLoss(
        [all_losses.CrossEntropyLoss(), all_losses.LovaszSoftmaxLoss()], [1, 1]
    )
    known = memory.TrainingMemory(Tiny(), (64, 64), {"types": [both]})
    pixels = 32 * 32
    # Kept by both, and the larger of what each has more at its own time.
    rest = pixels * ((0 + 4) * 5 + 17)
    more = pixels * max((8 - 0) * 5 + 33 - 17, (5 - 4) * 5 + 221)
    assert known.estimate(1).parts["losses"]["fp32"] == rest + more
    own = memory.TrainingMemory(Tiny(), (64, 64), {"types": [Mine()]})
    plain = memory.TrainingMemory(Tiny(), (64, 64), {"types": [all_losses.CrossEntropyLoss()]})
    assert own.estimate(2).unknown_losses == ["Mine"]
    assert own.estimate(2).peak == plain.estimate(2).peak
    assert np.isfinite(list(own.estimate(2).peak.values())).all()

# SPDX-License-Identifier: Apache-2.0
"""The verb inspect: valid weights, multiply-adds, receptive fields, pictures and its errors."""

import json

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddleseg_deeplab.cli import main
from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.models import DeepLabV3P, ResNet50, ResNet50_vd
from paddleseg_deeplab.tools.inspect_model import draw, report
from paddleseg_deeplab.tools.inspect_model.network import AtrousLayer, inspect_network
from paddleseg_deeplab.tools.inspect_model.stages import stage_names
from paddleseg_deeplab.tools.inspect_model.valid_taps import (
    curves,
    effective_kernel,
    valid_counts,
    valid_share,
    valid_taps,
)

QUICK = "configs/quickstart.yml"

# -- valid weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "rate", "stride", "padding"),
    [
        ((9, 9), (3, 3), (1, 1), (1, 1), (None, None)),
        ((9, 12), (3, 3), (4, 4), (1, 1), (None, None)),
        ((9, 7), (3, 3), (12, 6), (1, 1), (None, None)),
        ((17, 10), (3, 5), (6, 2), (1, 1), (None, None)),
        ((17, 16), (3, 3), (2, 2), (2, 2), ((2, 2), (2, 2))),
        ((17, 16), (3, 3), (3, 2), (1, 2), ((1, 4), (0, 3))),
        ((1, 1), (3, 3), (6, 6), (1, 1), (None, None)),
    ],
)
def test_valid_weights_by_counting(size, kernel, rate, stride, padding):
    """A convolution of ones over a map of ones counts the taps that lie on the map."""
    spans = [effective_kernel(k, r) for k, r in zip(kernel, rate)]
    pads = [((s - 1) // 2,) * 2 if p is None else p for p, s in zip(padding, spans)]
    counted = F.conv2d(
        paddle.ones([1, 1, *size]),
        paddle.ones([1, 1, *kernel]),
        stride=stride,
        padding=[*pads[0], *pads[1]],
        dilation=rate,
    ).numpy()
    axes = (size, kernel, rate, stride, padding)
    assert valid_share(*axes) == pytest.approx(counted.mean() / (kernel[0] * kernel[1]), abs=1e-6)
    taps, positions = np.unique(np.rint(counted).astype(int), return_counts=True)
    counts = valid_counts(*axes)
    assert list(counts) == taps.tolist()
    assert list(counts.values()) == pytest.approx((positions / counted.size).tolist(), abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 33, 64, 65])
@pytest.mark.parametrize("rate", [1, 2, 6, 18, 36, 64, 65, 200])
def test_valid_weights_in_closed_form(size, rate):
    one_axis = 1 - 2 * min(rate, size) / (3 * size)
    share = valid_share((size, size), (3, 3), (rate, rate))
    assert share == pytest.approx(one_axis**2, abs=1e-12)


def test_large_rates_degenerate_to_1x1():
    """Figure 4 of the V3 paper: on 65x65 from rate 65 on only the middle tap is left."""
    shares, mean = curves((65, 65), [1, 33, 64, 65, 80])
    assert set(shares) == {1, 2, 4, 6, 9}
    assert shares[9][0] == pytest.approx((63 / 65) ** 2)
    assert shares[9][1:].tolist() == [0, 0, 0, 0]
    assert shares[1].tolist() == pytest.approx([0, (1 / 65) ** 2, (63 / 65) ** 2, 1, 1])
    assert mean[-2:].tolist() == pytest.approx([1 / 9, 1 / 9])
    assert np.allclose(sum(shares.values()), 1)


def test_valid_taps_refuses_nonsense():
    assert valid_taps(3, 3, 1, padding=0).tolist() == [3]
    assert valid_taps(2, 3, 1, padding=0).size == 0
    assert valid_share((2, 2), (3, 3), (1, 1), paddings=(0, 0)) == 0.0
    with pytest.raises(ValueError, match="rate 0"):
        valid_taps(5, 3, 0)


# -- costs ---------------------------------------------------------------------------------------


class Tiny(nn.Layer):
    """Stride 2 convolution, depthwise dilated, pointwise, transposed: all numbers by hand."""

    def __init__(self, linear=False):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2D(8)
        self.deep_0 = nn.Conv2D(8, 8, 3, padding=6, dilation=6, groups=8, bias_attr=False)
        self.deep_1 = nn.Conv2D(8, 16, 1)
        self.up = nn.Conv2DTranspose(16, 4, 4, stride=2, padding=1, bias_attr=False)
        self.linear = nn.Linear(4, 5) if linear else None
        self.unused = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = self.up(self.deep_1(self.deep_0(x)))
        return x if self.linear is None else self.linear(x.mean(axis=(2, 3)))


HAND = {
    "stem": (3 * 8 * 9 + 8, 10 * 13 * 3 * 8 * 9),
    "norm": (16, 0),
    "deep_0": (8 * 9, 10 * 13 * 8 * 9),
    "deep_1": (8 * 16 + 16, 10 * 13 * 8 * 16),
    "up": (16 * 4 * 16, 10 * 13 * 16 * 4 * 16),  # each input position meets the whole kernel
    "unused": (12, 0),
}


@pytest.mark.parametrize("linear", [False, True])
def test_costs_counted_by_hand(linear):
    """Thin or, with a linear layer, by a real run: the same numbers."""
    facts = inspect_network(lambda: Tiny(linear), (19, 26))
    hand = {**HAND, "linear": (25, 20)} if linear else HAND
    found = {s.name: (s.parameters, s.multiply_adds) for s in facts.stages}
    # deep_0 and deep_1 are of one stage by their names.
    deep = tuple(a + b for a, b in zip(hand["deep_0"], hand["deep_1"]))
    assert {k: v for k, v in found.items() if k != "deep"} == {
        k: v for k, v in hand.items() if not k.startswith("deep")
    }
    assert found["deep"] == deep
    assert facts.parameters == sum(p for p, _ in hand.values())
    assert facts.multiply_adds == sum(m for _, m in hand.values())
    assert facts.numbers == facts.parameters + 16
    assert facts.receptive_fields is not linear
    assert facts.stages[-1].name == "unused"
    assert facts.stages[-1].size is None
    [layer] = facts.atrous
    assert (layer.name, layer.size, layer.effective) == ("deep_0", (10, 13), (13, 13))


def test_a_real_run_agrees():
    """The thin network's sizes and counts against hooks on the real one, on odd sizes."""
    thin = inspect_network(lambda: SegBuilder(Config(QUICK)).model, (65, 49))

    def nhwc():
        config = Config(QUICK)
        config.set_data_format("NHWC")  # is not made thin
        return SegBuilder(config).model

    real = inspect_network(nhwc, (65, 49))
    assert thin.receptive_fields
    assert not real.receptive_fields
    assert (thin.tensors, thin.numbers, thin.parameters, thin.multiply_adds) == (
        *(real.tensors, real.numbers, real.parameters, real.multiply_adds),
    )
    assert thin.atrous == real.atrous
    for a, b in zip(thin.stages, real.stages):
        assert (a.name, a.multiply_adds, a.channels, a.size) == (
            *(b.name, b.multiply_adds, b.channels, b.size),
        )


def test_published_costs():
    """torchvision states 4.089e9 for resnet50 at 224x224, 2,048,000 of them in its classifier."""
    facts = inspect_network(lambda: ResNet50(32), (224, 224))
    assert round((facts.multiply_adds + 2048 * 1000) / 1e9, 3) == 4.089
    assert facts.parameters == 25_557_032 - 2048 * 1000 - 1000


def test_several_scales_count_all():
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 4, 3, padding=2, dilation=2)

        def forward(self, x):
            return self.conv(x), self.conv(F.interpolate(x, scale_factor=0.5))

    facts = inspect_network(Twice, (20, 20))
    assert facts.multiply_adds == (20 * 20 + 10 * 10) * 3 * 4 * 9
    assert [layer.size for layer in facts.atrous] == [(20, 20), (10, 10)]


# -- receptive fields ------------------------------------------------------------------------------


def chain(*layers):
    """A network of (kernel, stride, dilation); "pool" for a max pool 3x3 of stride 2."""

    class Chain(nn.Layer):
        def __init__(self):
            super().__init__()
            self.parts = nn.LayerList()
            for layer in layers:
                if layer == "pool":
                    self.parts.append(nn.MaxPool2D(3, 2, 1))
                    continue
                kernel, stride, rate = layer
                pad = rate * (kernel - 1) // 2
                conv = nn.Conv2D(3, 3, kernel, stride, pad, rate)
                self.parts.append(nn.Sequential(conv, nn.ReLU6()))

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    return Chain


def closed_form(layers):
    """1 + sum of (k - 1) * rate * stride so far."""
    field, jump = 1, 1
    for kernel, stride, rate in (((3, 2, 1) if x == "pool" else x) for x in layers):
        field += (kernel - 1) * rate * jump
        jump *= stride
    return field, jump


def caffe_resnet(blocks):
    """(kernel, stride, rate) along the longest path, the stride in the first 1x1 of a stage."""
    layers = [(7, 2, 1), "pool"]
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers += [(1, stride, 1), (3, 1, 1), (1, 1, 1)]
    return layers


@pytest.mark.parametrize(
    ("layers", "known"),
    [
        ([(3, 1, 1)], 3),
        ([(3, 2, 1), (3, 1, 6), (5, 2, 3), "pool"], None),
        ([(3, 1, 1), (3, 1, 2), (3, 1, 4)], 15),
        # Published for the ResNets of the original paper's authors at stride 32.
        (caffe_resnet((3, 4, 6, 3)), 483),
        (caffe_resnet((3, 4, 23, 3)), 1027),
    ],
)
def test_receptive_fields_in_closed_form(layers, known):
    facts = inspect_network(chain(*layers), (64, 64))
    field, jump = closed_form(layers)
    assert known in (None, field)
    last = facts.stages[-1]
    if layers[-1] == "pool":  # belongs to no stage, as it has no weights
        field, jump = closed_form(layers[:-1])
    assert (last.receptive_field, last.stride) == (field, jump)


def test_receptive_fields_of_a_model():
    """ResNet50_vd at stride 8, multi-grid, ASPP and decoder, by hand along the longest path."""
    facts = inspect_network(
        lambda: DeepLabV3P(4, ResNet50_vd(8, (1, 2, 4)), aspp_ratios=(1, 12, 24, 36)), (65, 65)
    )
    fields = {s.name: s.receptive_field for s in facts.stages}
    stem = 3 + 2 * 2 + 2 * 2  # three 3x3, the first of stride 2
    first = stem + 2 * 2 + 3 * 2 * 4  # max pool, three blocks
    second = first + 2 * 4 + 3 * 2 * 8
    third = second + 6 * 2 * 2 * 8
    fourth = third + 2 * 8 * 4 * (1 + 2 + 4)
    assert fields["backbone.conv1"] == stem
    assert fields["backbone.bb_0"] == first
    assert fields["backbone.bb_1"] == second
    assert fields["backbone.bb_2"] == third
    assert fields["backbone.bb_3"] == fourth
    assert fields["head.aspp"] == fourth + 2 * 8 * 36
    assert fields["head.decoder.conv_bn_relu1"] == first
    # The bilinear resize from stride 8 to 4 takes one more pixel of stride 8, then 3x3 at 4 each.
    assert fields["head.decoder.conv_bn_relu2"] == fields["head.aspp"] + 8 + 8
    assert fields["head.decoder.conv"] == fields["head.aspp"] + 8 + 16


@pytest.mark.parametrize(("stride_in", "field"), [("1x1", 483), ("3x3", 427)])
def test_receptive_field_of_resnet50(stride_in, field):
    """The original's published field, and torchvision's, whose 3x3 convolutions stride."""
    facts = inspect_network(lambda: ResNet50(32, stride_in=stride_in), (64, 64))
    assert facts.stages[-1].receptive_field == field


def test_a_field_of_the_whole_image_is_none():
    class Pooled(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 3, 3, padding=1)
            self.gate = nn.Conv2D(3, 3, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.gate(y + y.mean(axis=(2, 3), keepdim=True))

    fields = [s.receptive_field for s in inspect_network(Pooled, (32, 32)).stages]
    assert fields == [3, None]


# -- stages, tables, pictures, command ---------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "channels", "names"),
    [
        (["c1_1", "c1_2", "b_0_0", "b_0_1", "b_1_0"], {}, ["c1", "c1", "b_0", "b_0", "b_1_0"]),
        (["layer1.0", "layer1.1"], {"layer1.0": 4, "layer1.1": 4}, ["layer1", "layer1"]),
        (["fusion.0.0", "fusion.0.1", "fusion.1.0"], {}, ["fusion"] * 3),
        (
            [f"blocks.{i}" for i in range(4)],
            {"blocks.0": 8, "blocks.1": 16, "blocks.2": 16, "blocks.3": 32},
            ["blocks.0", "blocks.1-2", "blocks.1-2", "blocks.3"],
        ),
    ],
)
def test_stage_names(units, channels, names):
    assert list(stage_names(units, channels).values()) == names


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--config", QUICK, "--input_size", "97", "65", "--save_dir", str(out)]
    assert main.main(["inspect_model", *flags, "--output_strides", "8", "16", "64"]) == 0
    text = capsys.readouterr().out
    content = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert (content["output_stride"], content["input_size"]) == (16, [65, 97])
    assert set(content["strides"]) == {"8", "16"}
    assert "output_stride" in content["skipped"]["64"]
    assert "Output stride 64 is left out" in text
    own = content["strides"]["16"]
    assert f"{own['parameters']:,} trained parameters" in text
    assert own["parameters"] == content["strides"]["8"]["parameters"]
    assert own["multiply_adds"] < content["strides"]["8"]["multiply_adds"]
    # Stride 16 on 97x65 is a map of 5x7: rates 6, 12, 18 meet it with the middle column or tap.
    last = own["atrous"][-1]
    assert (last["rate"], last["size"], last["counts"]) == ([18, 18], [5, 7], {"1": 1.0})
    assert last["share"] == pytest.approx(1 / 9)
    for name in ("valid_weights.png", "kernels.png", "valid_weights_by_rate.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None, name
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_pictures_and_tables_of_odd_layers():
    """Unequal axes, one layer, no layer."""
    axes = ((9, 20), (1, 5), (1, 3))
    layer = AtrousLayer("a", *axes[1:], (1, 13), axes[0], valid_share(*axes), valid_counts(*axes))
    pictures = draw.draw_all([layer, layer], "title")
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())
    assert draw.merge_alike([layer, layer]) == [(layer, 2)]
    lines = report.atrous_table([layer, layer])
    assert "a and 1 alike" in lines[1]
    taps, share = max(layer.counts.items(), key=lambda item: item[1])
    assert f"{taps} taps ({100 * share:.0f} % of positions)" in lines[1]
    assert draw.draw_all([], "title") == {}
    assert report.atrous_table([]) == ["No atrous convolution: every rate is 1."]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--config", "no.yml"], "There is no config file no.yml"),
        (["--config", QUICK, "--input_size", "0", "5"], "--input_size takes"),
        (["--config", QUICK, "--output_strides", "-8"], "--output_strides takes"),
        (
            ["--config", QUICK, "--opts", "model.backbone.output_stride=5"],
            "give one of [8, 16, 32]",
        ),
        (["--config", QUICK, "--opts", "model.backbone.multigrid=1"], "no such parameter"),
    ],
)
def test_errors(flags, told, capsys, tmp_path):
    assert run_verb("inspect_model", [*flags, "--save_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_save_dir_may_not_be_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_verb("inspect_model", ["--config", QUICK, "--save_dir", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err

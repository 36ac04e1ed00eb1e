# SPDX-License-Identifier: Apache-2.0
"""Resize by a factor, against its definition in NumPy, at sizes that the factor does not divide."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.models.layers import resize_by, scale_fraction

# Coordinates are float32: near pixel 100 they are 1e-5 off, times differences of values up to 8.
TOLERANCE = 1e-4


def _weights(old, scale, align_corners):
    """[new, old]: each row the shares of two pixels, from the definition with float64."""
    new = math.floor(old * scale)
    if align_corners:
        source = np.linspace(0, old - 1, new)
    else:
        source = (np.arange(new) + 0.5) / scale - 0.5
    source = np.clip(source, 0, old - 1)  # the edge goes on beyond its centre
    distance = np.abs(source[:, None] - np.arange(old)[None, :])
    return np.clip(1 - distance, 0, None)


def _expected(x, scale, align_corners):
    rows = _weights(x.shape[2], scale, align_corners)
    columns = _weights(x.shape[3], scale, align_corners)
    return np.einsum("ih,jw,nchw->ncij", rows, columns, x.astype(np.float64))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [0.75, 0.5, 1.0, 1 / 3, 0.7, 1.25, 2])
@pytest.mark.parametrize("size", [(33, 49), (50, 64), (51, 35)])
def test_definition(size, scale, align_corners):
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    expected = _expected(x, scale, align_corners)
    for data_format, order in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))):
        given = paddle.to_tensor(x.transpose(order))
        y = resize_by(given, scale, align_corners, data_format).numpy()
        y = y.transpose(np.argsort(order))
        assert y.shape == expected.shape
        assert np.abs(y - expected).max() <= TOLERANCE


def test_a_size_that_was_rounded_down_does_not_stretch_the_image():
    """A ramp keeps its slope: 36 pixels for 49 are 4 / 3 apart, not 49 / 36."""
    ramp = paddle.arange(49, dtype="float32").reshape([1, 1, 1, 49]).tile([1, 1, 4, 1])
    y = resize_by(ramp, 0.75).numpy()[0, 0, 0]
    np.testing.assert_allclose(np.diff(y)[1:], 4 / 3, atol=1e-4)
    stretched = F.interpolate(ramp, [3, 36], mode="bilinear").numpy()[0, 0, 0]
    assert abs(np.diff(stretched)[1] - 4 / 3) > 0.02


class _Halves(nn.Layer):
    """Logits at 3/4 of the size, brought back; with a weight, since Paddle saves no network
    without one."""

    data_format, num_classes = "NCHW", 3

    def __init__(self, align_corners):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)
        self.align_corners = align_corners

    def forward(self, x):
        y = resize_by(self.conv(x), 0.75, self.align_corners)
        return [F.interpolate(y, x.shape[2:], mode="bilinear")]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("form", ["pir", "legacy", "onnx"])
def test_exported_with_free_sizes(form, align_corners, tmp_path):
    """`export` compares the program with the layer at two sizes, one of which 4 does not divide."""
    if form == "onnx":
        pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    sample = np.random.default_rng(1).standard_normal((3, 51, 66)).astype(np.float32)
    info = export(
        _Halves(align_corners), str(tmp_path / "out"), sample=sample, format=form, output_op="none"
    )
    assert info.checks["max_abs_logits_difference"] <= TOLERANCE
    sizes = [side for shape in info.checks["inputs"] for side in shape[2:]]
    assert any(side % 4 for side in sizes)


@pytest.mark.parametrize("scale", [0, -0.5, "1", None, True, 0.7071, float("nan"), float("inf")])
def test_scales_that_are_refused(scale):
    with pytest.raises(ValueError, match="denominator up to 100"):
        scale_fraction(scale)


def test_fractions():
    found = {s: scale_fraction(s) for s in (0.75, 1 / 3, 0.7, 1, 1.25)}
    assert [(f.numerator, f.denominator) for f in found.values()] == [
        (3, 4),
        (1, 3),
        (7, 10),
        (1, 1),
        (5, 4),
    ]

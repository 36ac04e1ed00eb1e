# SPDX-License-Identifier: Apache-2.0
"""Structure and settings of MobileNetV2; its numbers are in tests/parity."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleseg_deeplab.models as models
from paddleseg_deeplab import registry
from paddleseg_deeplab.models import DeepLabV3P, MobileNetV2, MobileNetV2_x0_25, MobileNetV2_x1_0


def _image(n=1, c=3, h=65, w=49, seed=0):
    values = np.random.default_rng(seed).standard_normal((n, c, h, w)).astype(np.float32)
    return paddle.to_tensor(values)


def _small(stride=16, **kwargs):
    return MobileNetV2_x0_25(output_stride=stride, **kwargs)


def _features(net, x):
    net.eval()
    with paddle.no_grad():
        return [y.numpy() for y in net(x)]


def _varied(net):
    """Batch norm statistics that differ by channel: those of a new network are 0 and 1."""
    rng = np.random.default_rng(0)
    for name, tensor in net.state_dict().items():
        if name.endswith("_variance"):
            tensor.set_value(rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32))
        elif name.endswith(("_mean", "_batch_norm.bias")):
            tensor.set_value(rng.normal(0, 0.1, tensor.shape).astype(np.float32))
    return net


# Channels from torchvision's rule (multiples of 8, at least 0.9 of the exact number). Numbers at
# scale 1: torchvision's 3,504,872 parameters less the classifier's 1,281,000 and the last
# convolution's 412,160, plus mean and variance of 15,776 channels.
@pytest.mark.parametrize(
    ("suffix", "scale", "channels", "numbers"),
    [
        ("x0_25", 0.25, [8, 8, 24, 80], 141_248),
        ("x0_5", 0.5, [16, 16, 48, 160], 496_304),
        ("x0_75", 0.75, [24, 24, 72, 240], 1_069_744),
        ("x1_0", 1.0, [24, 32, 96, 320], 3_504_872 - 1_281_000 - 412_160 + 2 * 15_776),
        ("x1_5", 1.5, [40, 48, 144, 480], 4_059_248),
        ("x2_0", 2.0, [48, 64, 192, 640], 7_116_672),
    ],
)
def test_variants(suffix, scale, channels, numbers):
    name = f"MobileNetV2_{suffix}"
    build = registry.BACKBONES[name]
    assert getattr(models, name) is build
    net = build()
    assert net.scale == scale
    assert net.feat_channels == channels
    state = net.state_dict()
    assert len(state) == 5 * (1 + 2 + 3 * 16)
    assert sum(int(np.prod(t.shape)) for t in state.values()) == numbers


def test_any_scale():
    net = MobileNetV2(scale=1.4, output_stride=32)
    assert net.feat_channels == [32, 48, 136, 448]
    assert registry.BACKBONES["MobileNetV2"] is MobileNetV2


@pytest.mark.parametrize(
    ("stride", "strides"), [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16]), (32, [4, 8, 16, 32])]
)
@pytest.mark.parametrize("size", [(64, 96), (65, 33), (50, 71)])
def test_sizes(stride, strides, size):
    net = _small(stride)
    assert net.feat_strides == strides
    for y, channels, s in zip(
        _features(net, _image(h=size[0], w=size[1])), net.feat_channels, strides
    ):
        assert y.shape == (1, channels, math.ceil(size[0] / s), math.ceil(size[1] / s))


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (8, [(1, 1), (1, 2), (1, 2), (1, 2), *[(1, 2)] * 3, (1, 2), (1, 4), (1, 4), (1, 4)]),
        (16, [(2, 1), (1, 1), (1, 1), (1, 1), *[(1, 1)] * 3, (1, 1), (1, 2), (1, 2), (1, 2)]),
        (32, [(2, 1), (1, 1), (1, 1), (1, 1), *[(1, 1)] * 3, (2, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_strides_and_rates(stride, expected):
    """Of the blocks from 64 channels on; those before never change."""
    convs = [c for c in _small(stride).sublayers() if isinstance(c, nn.Conv2D) and c._groups > 1]
    steps = [(c._stride[0], c._dilation[0]) for c in convs]
    assert steps[:6] == [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1)]
    assert steps[6:] == expected
    assert all(c._padding == c._dilation[0] for c in convs)


@pytest.mark.parametrize("size", [(129, 65), (64, 50)])
@pytest.mark.parametrize(("dense", "strided"), [(8, 16), (16, 32), (8, 32)])
def test_atrous_property(dense, strided, size):
    """The dense features contain the strided ones (same weights, evaluation).

    The same products are summed; 1e-5 of the largest value is for another order of the sums.
    """
    x = _image(h=size[0], w=size[1])
    a, b = _varied(_small(dense)), _small(strided)
    b.set_state_dict(a.state_dict())
    strides = zip(a.feat_strides, b.feat_strides)
    for y, z, (s, t) in zip(_features(a, x), _features(b, x), strides):
        step = t // s
        assert np.abs(y[:, :, ::step, ::step] - z).max() <= 1e-5 * np.abs(z).max()


def test_layouts_agree():
    """One state_dict, both layouts. Float32 sums in another order: 1e-4 of the largest value."""
    nchw, nhwc = _varied(_small(8)), _small(8, data_format="NHWC")
    nhwc.set_state_dict(nchw.state_dict())
    x = _image(n=2)
    for a, b in zip(_features(nchw, x), _features(nhwc, x.transpose([0, 2, 3, 1]))):
        assert np.abs(a - b.transpose(0, 3, 1, 2)).max() <= 1e-4 * np.abs(a).max()


def test_features_are_linear_bottlenecks():
    """Without ReLU: negative values; and inside no value passes 6."""
    net, inside = _varied(_small()), []
    for block in net.blocks:
        norm = block.depthwise._batch_norm  # made large, so that the bound of 6 is reached
        norm.weight.set_value(np.full(norm.weight.shape, 100, np.float32))
        block.project._conv.register_forward_pre_hook(lambda _, x: inside.append(x[0].numpy()))
    features = _features(net, _image())
    assert all(y.min() < 0 for y in features)
    assert min(y.min() for y in inside) == 0.0
    assert max(y.max() for y in inside) == 6.0


def test_gradients_reach_every_parameter():
    net = _small(in_channels=1)
    sum((y * y).mean() for y in net(_image(n=2, c=1))).backward()
    for name, p in net.named_parameters():
        if not p.stop_gradient:
            assert p.grad is not None, name
            assert bool(paddle.isfinite(p.grad).all()), name
            assert float(p.grad.abs().max()) > 0, name


def test_a_model_takes_it():
    net = DeepLabV3P(5, _small(), backbone_indices=(0, 3), aspp_out_channels=16)
    net.eval()
    with paddle.no_grad():
        assert net(_image())[0].shape == [1, 5, 65, 49]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: MobileNetV2(scale=0), "scale"),
        (lambda: MobileNetV2(scale="1.0"), "scale"),
        (lambda: MobileNetV2(scale=float("nan")), "scale"),
        (lambda: MobileNetV2_x1_0(output_stride=4), "8, 16, 32"),
        (lambda: MobileNetV2_x1_0(in_channels=0), "in_channels"),
        (lambda: MobileNetV2_x1_0(data_format="CHWN"), "NCHW"),
        (lambda: _small().torchvision_name("head.cls.weight"), "no tensor of MobileNetV2"),
    ],
)
def test_errors(build, text):
    with pytest.raises(ValueError, match=text):
        build()

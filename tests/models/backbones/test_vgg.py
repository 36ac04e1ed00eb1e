# SPDX-License-Identifier: Apache-2.0
"""VGG16_LargeFOV: sizes, rates, settings and errors; its numbers are in tests/parity."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddleseg_deeplab import registry
from paddleseg_deeplab.models import VGG16_LargeFOV
from paddleseg_deeplab.models.layers import resize
from paddleseg_deeplab.utils.errors import UserError

# Of the largest value: float32 sums in another order, over 16 layers.
TOLERANCE = 1e-4
SMALL = {"fov_channels": 16}


def _image(n=1, c=3, h=33, w=47, seed=0):
    values = np.random.default_rng(seed).standard_normal((n, c, h, w)).astype(np.float32)
    return paddle.to_tensor(values)


def _features(backbone, x):
    backbone.eval()
    with paddle.no_grad():
        return backbone(x)


def _same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


@pytest.fixture(scope="module")
def fused():
    paddle.seed(0)
    return VGG16_LargeFOV(multi_scale_features=True, **SMALL)


def _like(backbone, **kwargs):
    """Another of the same weights."""
    other = VGG16_LargeFOV(**{**SMALL, **kwargs})
    other.set_state_dict(backbone.state_dict())
    return other


def test_registry():
    assert registry.BACKBONES["VGG16_LargeFOV"] is VGG16_LargeFOV


@pytest.mark.parametrize(
    ("stride", "strides"), [(8, [4, 8, 8, 8]), (16, [4, 8, 16, 16]), (32, [4, 8, 16, 32])]
)
def test_sizes_and_strides(stride, strides, fused):
    backbone = _like(fused, output_stride=stride, multi_scale_features=True)
    assert backbone.feat_strides == strides
    assert backbone.feat_channels == [128, 256, 512, 16 + 640]
    for h, w in ((32, 64), (33, 47), (50, 31)):
        features = _features(backbone, _image(h=h, w=w))
        assert len(features) == 4
        for y, channels, s in zip(features, backbone.feat_channels, strides):
            assert y.shape == [1, channels, math.ceil(h / s), math.ceil(w / s)]


@pytest.mark.parametrize(
    ("stride", "pools", "conv5", "fc6"),
    [
        (8, [2, 2, 2, 1, 1], 2, 12),
        (16, [2, 2, 2, 2, 1], 1, 6),
        (32, [2, 2, 2, 2, 2], 1, 3),
    ],
)
def test_rates_follow_the_stride(stride, pools, conv5, fc6):
    with paddle.LazyGuard():
        backbone = VGG16_LargeFOV(stride)
    assert [pool.stride for pool in backbone.pool_list] == pools
    for block, rate in zip(backbone.block_list, (1, 1, 1, 1, conv5)):
        for conv in block:
            assert (conv._dilation, conv._padding) == ([rate, rate], rate)
    assert (backbone.fc6._dilation, backbone.fc6._padding) == ([fc6, fc6], fc6)


# V1 paper, table 2: kernel, rate, channels -> millions of parameters, with the classifier of 21.
@pytest.mark.parametrize(
    ("kernel", "rate", "channels", "millions", "span"),
    [
        (7, 4, 4096, 134.3, 25),
        (4, 4, 4096, 65.1, 13),
        (4, 8, 4096, 65.1, 25),
        (3, 12, 1024, 20.5, 25),
    ],
)
def test_fields_of_view_of_the_paper(kernel, rate, channels, millions, span):
    with paddle.LazyGuard():  # counts without allocating
        backbone = VGG16_LargeFOV(fov_kernel=kernel, fov_rate=rate, fov_channels=channels)
    numbers = sum(math.prod(p.shape) for p in backbone.parameters()) + 21 * (channels + 1)
    assert round(numbers / 1e6, 1) == millions
    assert backbone.fc6._dilation[0] * (kernel - 1) + 1 == span
    assert backbone.feat_channels == [128, 256, 512, channels]


@pytest.mark.parametrize(("kernel", "rate"), [(7, 4), (4, 4), (4, 8), (3, 12), (1, 1)])
def test_every_field_of_view_keeps_the_size(kernel, rate):
    backbone = VGG16_LargeFOV(fov_kernel=kernel, fov_rate=rate, fov_channels=4)
    assert _features(backbone, _image(h=50, w=31))[-1].shape == [1, 4, 7, 4]


def test_fusion_is_what_the_paper_says(fused):
    """fc7 and, resized to its grid, five maps of 128 channels computed at every pixel."""
    x = _image(h=65, w=49)  # 8k + 1: with aligned corners the grids meet in pixels
    features = _features(fused, x)
    pools = [x]
    with paddle.no_grad():
        for block, pool in zip(fused.block_list, fused.pool_list):
            for conv in block:
                x = F.relu(conv(x))
            x = pool(x)
            pools.append(x)
        joined = [F.relu(fused.fc7(F.relu(fused.fc6(x))))]
        for (first, second), source in zip(fused.fusion, pools):
            y = F.relu(F.conv2d(source, first.weight, first.bias, padding=1))
            y = F.relu(second(y))
            joined.append(resize(y, [9, 7], align_corners=True))
    _same(features[-1], paddle.concat(joined, axis=1))


def test_pools_of_a_larger_stride_are_among_those_of_a_smaller(fused):
    x = _image(h=50, w=65)
    dense = _features(fused, x)
    sparse = _features(_like(fused, output_stride=16, multi_scale_features=True), x)
    _same(sparse[1], dense[1])
    _same(sparse[2], dense[2][:, :, ::2, ::2])


@pytest.mark.parametrize("kwargs", [{}, {"output_stride": 16, "average_pool": True}], ids=str)
def test_layouts_agree(kwargs, fused):
    kwargs = {"multi_scale_features": True, **kwargs}
    x = _image(n=2)
    nchw = _features(_like(fused, **kwargs), x)
    nhwc = _features(_like(fused, data_format="NHWC", **kwargs), x.transpose([0, 2, 3, 1]))
    for a, b in zip(nhwc, nchw):
        _same(a.transpose([0, 3, 1, 2]), b)


def test_average_pool_keeps_an_even_map_inside(fused):
    """Between pool 5 and fc6; zeros at the border count (9 in a corner, 4 of them pixels)."""
    pool = VGG16_LargeFOV(average_pool=True, **SMALL).average_pool
    y = pool(paddle.ones([1, 1, 4, 5]))[0, 0].numpy()
    np.testing.assert_allclose(y[1:-1, 1:-1], 1, rtol=1e-6)
    np.testing.assert_allclose(y[0], [4 / 9, 6 / 9, 6 / 9, 6 / 9, 4 / 9], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_in_channels(channels):
    backbone = VGG16_LargeFOV(in_channels=channels, multi_scale_features=True, **SMALL)
    assert backbone.conv1_1.weight.shape == [64, channels, 3, 3]
    assert backbone.fusion[0][0].weight.shape == [128, channels, 3, 3]
    assert _features(backbone, _image(c=channels))[-1].shape == [1, 656, 5, 6]


def test_dropout_is_for_training(fused):
    x = _image()
    expected = _features(fused, x)[-1]
    for rate, share in ((0.0, 0.0), (0.9, 0.9)):
        backbone = _like(fused, multi_scale_features=True, dropout=rate)
        _same(_features(backbone, x)[-1], expected)
        backbone.train()
        y = backbone(x)[-1].numpy()
        if not share:
            _same(y, expected)
        else:  # of 480 values a tenth is left, and the branches are whole
            assert (y[:, :16] != 0).mean() < 0.2
            _same(y[:, 16:], expected[:, 16:])


def test_gradients(fused):
    """They reach every parameter, and the ReLU that overwrites its input changes none."""
    gradients = []
    for relu in (fused.relu, nn.ReLU()):
        backbone = _like(fused, multi_scale_features=True, dropout=0.0)
        backbone.relu = relu
        sum(y.square().mean() for y in backbone(_image(n=2))).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, gradient in gradients[0].items():
        assert float(gradient.abs().max()) > 0, name
        _same(gradient, gradients[1][name])


def test_traced_program_takes_any_size(fused):
    fused.eval()
    traced = paddle.jit.to_static(
        _like(fused, multi_scale_features=True),
        input_spec=[InputSpec([None, 3, None, None], "float32")],
        full_graph=True,
    )
    traced.eval()
    for h, w in ((33, 47), (40, 24)):
        x = _image(h=h, w=w)
        for a, b in zip(_features(traced, x), _features(fused, x)):
            _same(a, b)


def test_pretrained(fused, tmp_path):
    file = str(tmp_path / "vgg.pdparams")
    state = {k: v for k, v in fused.state_dict().items() if k.startswith("conv")}
    assert len(state) == 26
    paddle.save(state, file)
    with pytest.raises(UserError, match=r"fc6\.weight"):
        VGG16_LargeFOV(pretrained=file, **SMALL)
    backbone = VGG16_LargeFOV(pretrained=file, pretrained_skip=["fc6.*", "fc7.*"], **SMALL)
    np.testing.assert_array_equal(backbone.conv5_3.weight.numpy(), fused.conv5_3.weight.numpy())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output_stride": 4}, r"output_stride is 4; give one of \[8, 16, 32\]"),
        ({"in_channels": 0}, "in_channels is 0; give a positive integer"),
        ({"data_format": "NCWH"}, "data_format is 'NCWH'"),
        ({"fov_kernel": 3.0}, "fov_kernel is 3.0"),
        ({"fov_rate": 0}, "fov_rate is 0"),
        ({"fov_channels": True}, "fov_channels is True"),
        ({"fov_rate": 3, "output_stride": 16}, "a rate of 1.5 at output stride 16"),
        ({"fov_rate": 5, "fov_kernel": 4}, "fov_rate 5 .* fov_kernel 4 .*even"),
        ({"fov_rate": 4, "fov_kernel": 4, "output_stride": 32}, "a rate of 1 at output stride 32"),
        ({"dropout": 1.0}, "dropout is 1.0; .*from 0 to below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": False}, "dropout is False"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VGG16_LargeFOV(**{**SMALL, **kwargs})

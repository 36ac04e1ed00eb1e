# SPDX-License-Identifier: Apache-2.0
"""ResNet: strides, rates, sizes, layouts, the cascade, and what stays when the stride changes.

Values against independent torch networks are in tests/parity/test_torch_logits.py.
"""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.models import ResNet, ResNet50, ResNet101, ResNet152

# Of the largest value: float32 sums in another order.
TOLERANCE = 1e-4


def _image(h, w, c=3):
    rng = np.random.default_rng(0)
    return paddle.to_tensor(rng.standard_normal((1, c, h, w)).astype(np.float32))


def _features(backbone, x):
    backbone.eval()
    with paddle.no_grad():
        return [f.numpy() for f in backbone(x)]


def _stages(backbone):
    return [getattr(backbone, name) for name in backbone.stage_names]


def _rates(backbone):
    return [tuple(b.conv2._conv._dilation[0] for b in stage) for stage in _stages(backbone)]


def _strides(backbone, stride_in):
    conv = "conv1" if stride_in == "1x1" else "conv2"
    return [getattr(stage[0], conv)._conv._stride[0] for stage in _stages(backbone)]


@pytest.mark.parametrize(
    ("build", "blocks", "tensors", "numbers"),
    [
        # Numbers of torchvision's parameters without the classifier, and the running statistics.
        (ResNet50, 16, 265, 25_557_032 - 2_049_000 + 53_120),
        (ResNet101, 33, 520, 44_549_160 - 2_049_000 + 105_344),
        (ResNet152, 50, 775, 60_192_808 - 2_049_000 + 151_424),
    ],
)
def test_counts(build, blocks, tensors, numbers):
    with paddle.LazyGuard():  # without values, which would take seconds to draw
        backbone = build()
    assert sum(len(stage) for stage in _stages(backbone)) == blocks
    state = backbone.state_dict()
    assert len(state) == tensors
    assert sum(int(np.prod(t.shape)) for t in state.values()) == numbers


@pytest.mark.parametrize(
    ("stride_in", "output_stride", "grid", "extra", "rates", "strides"),
    [
        ("3x3", 32, None, 0, [(1, 1, 1)], (1, 2, 2, 2)),
        ("3x3", 16, None, 0, [(1, 2, 2)], (1, 2, 2, 1)),
        ("3x3", 8, None, 0, [(2, 4, 4)], (1, 2, 1, 1)),
        ("1x1", 8, None, 0, [(4, 4, 4)], (1, 2, 1, 1)),
        ("1x1", 16, (1, 2, 4), 0, [(2, 4, 8)], (1, 2, 2, 1)),
        ("3x3", 16, (1, 2, 4), 0, [(1, 4, 8)], (1, 2, 2, 1)),
        ("1x1", 16, (1, 2, 1), 3, [(n, 2 * n, n) for n in (2, 4, 8, 16)], (1, 2, 2) + 4 * (1,)),
        ("1x1", 8, None, 3, [(4,) * 3, (8,) * 3, (16,) * 3, (32,) * 3], (1, 2) + 5 * (1,)),
        ("1x1", 64, None, 3, [(1,) * 3, (1,) * 3, (2,) * 3, (4,) * 3], (1, 2, 2, 2, 2, 1, 1)),
        ("3x3", 256, None, 3, [(1,) * 3] * 4, (1,) + 6 * (2,)),
        ("3x3", 128, (2, 1, 1), 2, [(2, 1, 1)] * 3, (1,) + 5 * (2,)),
    ],
)  # fmt: skip
def test_rates_and_strides(stride_in, output_stride, grid, extra, rates, strides):
    """Base rates of block4 to block7 are 2, 4, 8, 16 at stride 16 and twice that at 8."""
    with paddle.LazyGuard():
        backbone = ResNet50(output_stride, grid, stride_in=stride_in, extra_stages=extra)
    assert _rates(backbone)[3:] == rates
    assert _strides(backbone, stride_in) == list(strides)
    assert backbone.feat_strides[-1] == output_stride
    assert backbone.feat_channels == [256, 512, 1024, *[2048] * (1 + extra)]
    for stage in _stages(backbone):
        for block in stage:
            assert block.conv2._conv._padding == block.conv2._conv._dilation[0]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(65, 49), (64, 70)])
def test_sizes(output_stride, size):
    backbone = ResNet50(output_stride)
    features = _features(backbone, _image(*size))
    for feature, stride in zip(features, backbone.feat_strides):
        assert feature.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(
    ("size", "kwargs", "expected"),
    [
        (64, {"stride_in": "1x1"}, 17),
        (65, {"stride_in": "1x1"}, 17),
        (64, {"stride_in": "3x3"}, 16),
        (64, {"stride_in": "3x3", "ceil_mode": True}, 17),
        (64, {"stride_in": "1x1", "ceil_mode": False}, 16),
    ],
)
def test_the_pool_rounds_up_in_caffe(size, kwargs, expected):
    """ceil((32 - 1) / 2) + 1 = 17 of the 32 rows behind the stem, also in torch and Caffe."""
    backbone = ResNet50(**kwargs)
    y = backbone.maxpool(backbone.conv1(_image(size, size)))
    assert y.shape[2:] == [expected, expected]


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_dense_features_contain_the_strided_ones(stride_in):
    """The atrous property: stride 8 subsampled by 2 is stride 16, by 4 stride 32."""
    dense = ResNet50(8, (1, 2, 4), stride_in=stride_in)
    x = _image(129, 65)
    fine = _features(dense, x)[-1]
    for stride in (16, 32):
        strided = ResNet50(stride, (1, 2, 4), stride_in=stride_in)
        strided.set_state_dict(dense.state_dict())
        coarse = _features(strided, x)[-1]
        step = stride // 8
        assert np.abs(fine[:, :, ::step, ::step] - coarse).max() <= TOLERANCE * np.abs(fine).max()


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_layouts_agree(stride_in):
    kwargs = {"output_stride": 16, "stride_in": stride_in}
    nchw, nhwc = ResNet50(**kwargs), ResNet50(data_format="NHWC", **kwargs)
    nhwc.set_state_dict(nchw.state_dict())
    x = _image(50, 65)
    for a, b in zip(_features(nchw, x), _features(nhwc, x.transpose([0, 2, 3, 1]))):
        assert np.abs(a - b.transpose(0, 3, 1, 2)).max() <= TOLERANCE * np.abs(a).max()


def test_extra_stages_go_on_from_block4():
    """Without them the features are those of the plain network with the same weights."""
    cascade = ResNet50(16, extra_stages=1, in_channels=4)
    plain = ResNet50(16, in_channels=4)
    state = cascade.state_dict()
    missing, _ = plain.set_state_dict({k: v for k, v in state.items() if "layer5" not in k})
    assert not missing
    x = _image(33, 33, c=4)
    long, short = _features(cascade, x), _features(plain, x)
    assert len(long) == 5
    np.testing.assert_array_equal(long[3], short[3])
    names = {k.replace("layer5", "layer4") for k in state if k.startswith("layer5.")}
    assert names == {k for k in state if k.startswith("layer4.")}


def test_gradients_reach_everything():
    backbone = ResNet50(8, stride_in="1x1")
    sum(f.square().mean() for f in backbone(_image(33, 33))).backward()
    for name, p in backbone.named_parameters():
        if not p.stop_gradient:  # batch norm's running statistics count as parameters
            assert p.grad is not None, name
            assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"layers": 18}, "50, 101, 152"),
        ({"output_stride": 4}, "8, 16, 32"),
        ({"output_stride": 64}, "extra_stages"),
        ({"output_stride": 512, "extra_stages": 3}, "256"),
        ({"extra_stages": 4}, "0 to 3"),
        ({"extra_stages": True}, "0 to 3"),
        ({"stride_in": "7x7"}, "1x1"),
        ({"multi_grid": (1, 2)}, "3 positive"),
        ({"multi_grid": (1, 2, 0)}, "3 positive"),
        ({"multi_grid": 2}, "3 positive"),
        ({"in_channels": 0}, "in_channels"),
        ({"data_format": "HWC"}, "NCHW"),
    ],
)
def test_errors(kwargs, text):
    with pytest.raises(ValueError, match=text):
        ResNet(**kwargs)


def test_no_convolution_has_a_bias():
    with paddle.LazyGuard():
        convs = [x for x in ResNet50().sublayers() if isinstance(x, nn.Conv2D)]
    assert len(convs) == 53
    assert all(conv.bias is None for conv in convs)

# SPDX-License-Identifier: Apache-2.0
"""Shapes, settings and errors of models and backbones; names and logits are in tests/parity."""

import logging
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models import (
    DeepLabV3,
    DeepLabV3P,
    ResNet18_vd,
    ResNet34_vd,
    ResNet50_vd,
    ResNet101_vd,
    ResNet_vd,
)
from paddleseg_deeplab.models.layers import DEFAULT_ASPP_RATIOS, ASPPModule, ConvBN, SyncBatchNorm
from paddleseg_deeplab.utils.errors import UserError


def _image(n=1, c=3, h=64, w=64, seed=0):
    values = np.random.default_rng(seed).standard_normal((n, c, h, w)).astype(np.float32)
    return paddle.to_tensor(values)


def _small(model=DeepLabV3P, stride=16, **kwargs):
    """An 18-layer model of few ASPP channels."""
    names = ("multi_grid", "in_channels", "data_format")
    backbone = {k: v for k, v in kwargs.items() if k in names}
    rest = {k: v for k, v in kwargs.items() if k not in names or k == "data_format"}
    rest.setdefault("num_classes", 5)
    rest.setdefault("aspp_out_channels", 32)
    return model(backbone=ResNet18_vd(output_stride=stride, **backbone), **rest)


def _numbers(model):
    state = model.state_dict()
    return len(state), sum(int(np.prod(t.shape)) for t in state.values())


@pytest.mark.parametrize(
    ("model", "backbone", "classes", "expected"),
    [
        (DeepLabV3P, ResNet50_vd, 19, (360, 26_794_243)),
        (DeepLabV3P, ResNet18_vd, 21, (200, 12_384_261)),
        (DeepLabV3P, ResNet101_vd, 19, (615, 45_838_595)),
        (DeepLabV3, ResNet50_vd, 21, (312, 39_125_365)),
    ],
)
def test_state_counts(model, backbone, classes, expected):
    assert _numbers(model(classes, backbone())) == expected


def test_registries():
    for depth in (18, 34, 50, 101, 152):
        assert f"ResNet{depth}_vd" in registry.BACKBONES
    assert registry.MODELS["DeepLabV3P"] is DeepLabV3P
    assert registry.MODELS["DeepLabV3"] is DeepLabV3


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (65, 33), (50, 71)])
def test_backbone_sizes(stride, size):
    backbone = ResNet18_vd(output_stride=stride)
    backbone.eval()
    assert backbone.feat_strides == [4, 8, min(16, stride), stride]
    with paddle.no_grad():
        features = backbone(_image(h=size[0], w=size[1]))
    for y, channels, s in zip(features, backbone.feat_channels, backbone.feat_strides):
        assert y.shape == [1, channels, math.ceil(size[0] / s), math.ceil(size[1] / s)]


@pytest.mark.parametrize(
    ("build", "stride", "multi_grid", "rates"),
    [
        (ResNet18_vd, 8, (1, 2), [(2, 2), (4, 8)]),
        (ResNet18_vd, 16, (1, 1), [(1, 1), (2, 2)]),
        (ResNet34_vd, 16, (1, 2, 4), [(1,) * 6, (2, 4, 8)]),
        (ResNet50_vd, 8, (1, 2, 4), [(2,) * 6, (4, 8, 16)]),
        (ResNet50_vd, 32, (2, 2, 2), [(1,) * 6, (2, 2, 2)]),
        (ResNet50_vd, 16, None, [(1,) * 6, (2, 2, 2)]),
    ],
)
def test_rates_and_padding(build, stride, multi_grid, rates):
    backbone = build(output_stride=stride, multi_grid=multi_grid)
    for stage, expected in zip(backbone.stage_list[2:], rates):
        convs = [[c for c in _convs(block) if c._kernel_size == [3, 3]] for block in stage]
        assert tuple(block[0]._dilation[0] for block in convs) == expected
        for block in convs:
            assert all(conv._padding == conv._dilation[0] for conv in block)
    strides = [
        max(conv._stride[0] for block in stage for conv in _convs(block))
        for stage in backbone.stage_list
    ]
    assert strides == [1, 2, 2 if stride >= 16 else 1, 2 if stride == 32 else 1]


def _convs(layer):
    return [x for x in layer.sublayers() if isinstance(x, nn.Conv2D)]


def test_dense_features_contain_strided_ones():
    """Same weights, twice the rate, on a map of twice the size: every second pixel is equal."""
    strided, dense = ResNet18_vd(output_stride=16), ResNet18_vd(output_stride=8)
    dense.set_state_dict(strided.state_dict())
    strided.eval(), dense.eval()
    x = _image(c=256, h=17, w=16)
    with paddle.no_grad():
        a = strided.stage_list[2][1](x[:, :, ::2, ::2]).numpy()
        b = dense.stage_list[2][1](x).numpy()
    np.testing.assert_allclose(b[:, :, ::2, ::2], a, atol=1e-5)


@pytest.mark.parametrize("model", [DeepLabV3P, DeepLabV3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_layouts_agree(model, align_corners):
    """One state_dict, both layouts. Float32 sums in another order: 1e-4 of the largest logit."""
    nchw = _small(model, align_corners=align_corners)
    nhwc = _small(model, align_corners=align_corners, data_format="NHWC")
    nhwc.set_state_dict(nchw.state_dict())
    x = _image(n=2, h=49, w=64)
    nchw.eval(), nhwc.eval()
    with paddle.no_grad():
        a = nchw(x)[0].numpy()
        b = nhwc(x.transpose([0, 2, 3, 1]))[0].numpy()
    assert a.shape == (2, 5, 49, 64)
    assert b.shape == (2, 49, 64, 5)
    assert np.abs(a - b.transpose(0, 3, 1, 2)).max() <= 1e-4 * np.abs(a).max()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"in_channels": 1},
        {"in_channels": 4},
        {"multi_grid": (1, 2)},
        {"use_sep_conv": False},
        {"image_pooling": False},
        {"low_level_channels": 8, "aspp_out_channels": 40},
        {"decoder_dropout": 0.5, "classifier_dropout": 0.1, "aspp_dropout": 0.0},
        {"model": DeepLabV3},
        {"model": DeepLabV3, "data_format": "NHWC", "image_pooling": False},
        {"num_classes": 1},
    ],
)
def test_settings(kwargs):
    model = _small(**kwargs)
    c, classes = kwargs.get("in_channels", 3), kwargs.get("num_classes", 5)
    x = _image(c=c, h=33, w=48)
    if model.data_format == "NHWC":
        x = x.transpose([0, 2, 3, 1])
    model.eval()
    with paddle.no_grad():
        (y,) = model(x)
    if model.data_format == "NHWC":
        y = y.transpose([0, 3, 1, 2])
    assert y.shape == [1, classes, 33, 48]
    assert y.dtype == paddle.float32
    assert bool(paddle.isfinite(y).all())


@pytest.mark.parametrize(
    ("model", "grid"), [(DeepLabV3P, (16, 17)), (DeepLabV3, (4, 5))], ids=["v3p", "v3"]
)
def test_logits_size(model, grid):
    net = _small(model, logits_size="stride")
    x = _image(n=2, h=64, w=65)
    assert net(x)[0].shape == [2, 5, *grid]
    net.eval()
    assert net(x)[0].shape == [2, 5, 64, 65]
    net.logits_size = "input"
    net.train()
    assert net(x)[0].shape == [2, 5, 64, 65]


def test_align_corners_is_used():
    model = _small(DeepLabV3)
    model.eval()
    x = _image(h=65, w=65)
    with paddle.no_grad():
        grid = model.head(model.backbone(x))[0].numpy()
        for flag in (True, False):
            model.align_corners = flag
            out = model(x)[0].numpy()
            # With aligned corners every 16th pixel of the 65 is one of the 5 grid values.
            same = np.allclose(out[:, :, ::16, ::16], grid, atol=1e-4)
            assert same is flag


def test_changing_the_output_stride_keeps_the_weights():
    model = _small(stride=16)
    for stride in (8, 32):
        other = _small(stride=stride)
        missing, unexpected = other.set_state_dict(model.state_dict())
        assert not missing
        assert not unexpected


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_ratios_follow_the_stride(stride, caplog):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        model = _small(DeepLabV3, stride)
    assert [_rate(b) for b in model.head.aspp.aspp_blocks] == list(DEFAULT_ASPP_RATIOS[stride])
    assert not caplog.records


def _rate(block):
    return _convs(block)[0]._dilation[0]


@pytest.mark.parametrize(
    ("stride", "ratios", "warns"),
    [
        (8, (1, 6, 12, 18), True),
        (16, [1, 12, 24, 36], True),
        (16, (1, 6, 12, 18), False),
        (16, (6, 12), False),
    ],
)
def test_given_ratios_are_kept(stride, ratios, warns, caplog):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        model = _small(DeepLabV3, stride, aspp_ratios=ratios)
    assert [_rate(b) for b in model.head.aspp.aspp_blocks] == list(ratios)
    assert bool(caplog.records) is warns


@pytest.mark.parametrize("model", [DeepLabV3P, DeepLabV3])
def test_batch_of_one_trains(model):
    """Image pooling's 1x1 map has one value per channel: see ASPPModule's pooled convolution."""
    net = _small(model)
    pooled = net.head.aspp.global_avg_pool[1]
    before = pooled._batch_norm._variance.numpy().copy()
    y = net(_image())[0]
    (y * y).mean().backward()
    for name, p in net.named_parameters():
        if not p.stop_gradient:
            assert bool(paddle.isfinite(p.grad).all()), name
    # It learns, unlike under Paddle's batch norm, which passes one value on without a gradient.
    assert float(pooled._conv.weight.grad.abs().max()) > 0
    np.testing.assert_array_equal(pooled._batch_norm._variance.numpy(), before)
    net(_image(n=2))
    assert np.abs(pooled._batch_norm._variance.numpy() - before).max() > 0


def test_batch_of_one_pools_as_in_evaluation():
    aspp = ASPPModule((1,), 4, 3, False, image_pooling=True, dropout=0.0)
    x = _image(c=4, h=5, w=6)
    trained = aspp.global_avg_pool(x).numpy()
    aspp.eval()
    np.testing.assert_allclose(trained, aspp.global_avg_pool(x).numpy(), atol=1e-6)


def test_one_step_lowers_the_loss():
    paddle.seed(1)
    model = _small(aspp_dropout=0.0)
    x = _image(n=2)
    label = paddle.to_tensor(np.random.default_rng(1).integers(0, 5, (2, 64, 64)))
    step = paddle.optimizer.SGD(0.05, parameters=model.parameters())

    def loss():
        return nn.functional.cross_entropy(model(x)[0], label, axis=1)

    first = loss()
    first.backward()
    step.step()
    assert float(loss()) < float(first)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: ResNet_vd(layers=20), ValueError, "18, 34, 50"),
        (lambda: ResNet18_vd(output_stride=4), ValueError, "8, 16, 32"),
        (lambda: ResNet18_vd(in_channels=0), ValueError, "in_channels"),
        (lambda: ResNet18_vd(data_format="CHWN"), ValueError, "NCHW"),
        (lambda: ResNet34_vd(multi_grid=(1, 2)), ValueError, "3 blocks"),
        (lambda: ResNet34_vd(multi_grid=(1, 2, 4, 8)), ValueError, "3 blocks"),
        (lambda: ResNet18_vd(multi_grid=(1,)), ValueError, "2 blocks"),
        (lambda: ResNet18_vd(multi_grid=2), ValueError, "positive integers"),
        (lambda: ResNet18_vd(multi_grid=(1, 0)), ValueError, "positive integers"),
        (lambda: _small(num_classes=0), ValueError, "num_classes"),
        (lambda: _small(backbone_indices=(0, 4)), ValueError, "0 to 3"),
        (lambda: _small(backbone_indices=(3,)), ValueError, "low-level feature"),
        (lambda: _small(backbone_indices=(3, 0)), ValueError, "order"),
        (lambda: _small(DeepLabV3, backbone_indices=(0, 3)), ValueError, "head's input"),
        (lambda: _small(aspp_ratios=()), ValueError, "aspp_ratios"),
        (lambda: _small(aspp_ratios=(0, 6)), ValueError, "aspp_ratios"),
        (lambda: _small(logits_size="half"), ValueError, "stride"),
        (lambda: DeepLabV3P(5, nn.Conv2D(3, 3, 1)), TypeError, "feat_channels"),
        (lambda: DeepLabV3P(5, ResNet18_vd(), data_format="NHWC"), ValueError, "both the same"),
        (lambda: DeepLabV3P(5, ResNet18_vd(), backbone_indices=(0, 0)), ValueError, "stride"),
        (lambda: ConvBN(3, 3, 2), ValueError, "odd kernel_size"),
    ],
)
def test_errors(build, error, text):
    with pytest.raises(error, match=text):
        build()


def test_a_third_number_for_18_layers_is_ignored_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        backbone = ResNet18_vd(output_stride=8, multi_grid=[1, 2, 4])
    assert [_rate(b.conv0) for b in backbone.stage_list[3]] == [4, 8]
    assert "uses the first 2" in caplog.text


def test_same_padding_keeps_the_dilation():
    """Paddle's padding="same" would drop it."""
    layer = ConvBN(2, 2, 3, dilation=4)
    assert layer._conv._dilation == [4, 4]
    assert layer(_image(c=2, h=9, w=10)).shape == [1, 2, 9, 10]


@pytest.mark.parametrize(
    ("device", "ranks", "kind"),
    [
        ("cpu", 2, nn.BatchNorm2D),
        ("gpu:0", 1, nn.BatchNorm2D),
        ("gpu:0", 2, nn.SyncBatchNorm),
    ],
)
def test_sync_batch_norm(device, ranks, kind, monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: ranks)
    layer = SyncBatchNorm(4)
    assert isinstance(layer, kind)
    assert set(layer.state_dict()) == {"weight", "bias", "_mean", "_variance"}


class _Declares(nn.Layer):
    """Two features, of strides 4 and 8 and of 6 and 10 channels, and what it says of them."""

    def __init__(self, channels=(6, 10), strides=(4, 8), gives=lambda features: features):
        super().__init__()
        self.feat_channels, self.feat_strides, self.gives = list(channels), strides, gives
        self.low = nn.Conv2D(3, 6, 3, stride=4, padding=1)
        self.high = nn.Conv2D(6, 10, 3, stride=2, padding=1)

    def forward(self, x):
        low = self.low(x)
        return self.gives([low, self.high(low)])


@pytest.mark.parametrize(
    ("declares", "message"),
    [
        (
            {"channels": (6, 12)},
            r"features of \[6, 10\] channels, and its feat_channels says \[6, 12\]",
        ),
        ({"strides": (4, 16)}, "a feature of height 8 for an input of height 64, .* stride 16"),
        ({"gives": lambda features: features[0]}, "no list of features, .* declares 2"),
        ({"gives": lambda features: features[1:]}, "1 features, .* declares 2"),
    ],
)
def test_a_backbone_gives_what_it_declares(declares, message):
    model = DeepLabV3P(5, _Declares(**declares), (0, 1), (1, 2), 8)
    with pytest.raises(UserError, match=f"The backbone _Declares gives {message}"):
        model(_image())


@pytest.mark.parametrize("strides", [(4, 8), None])
def test_a_right_declaration_passes(strides):
    for size in (64, 33, 17, 9):
        assert DeepLabV3P(5, _Declares(strides=strides), (0, 1), (1, 2), 8)(_image(h=size))

# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3P's settings: biases, widths, learned upsampling, batch norm; on a tiny backbone."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.deploy.settings import FORMATS
from paddleseg_deeplab.models import DeepLabV3P, ResNet18_vd
from paddleseg_deeplab.models.layers import BilinearDeconv, batch_norms, resize
from paddleseg_deeplab.models.layers.upsample import bilinear_kernel

# Of the largest value: float32 sums in another order, over few layers.
TOLERANCE = 1e-5
CLASSES = 5


class Stem(nn.Layer):
    """Two strided convolutions: features of stride 4 and of another."""

    def __init__(self, stride=16, data_format="NCHW"):
        super().__init__()
        self.data_format = data_format
        self.feat_channels, self.feat_strides = [6, 10], [4, stride]
        kwargs = {"padding": 1, "data_format": data_format}
        self.low = nn.Conv2D(3, 6, 3, stride=4, **kwargs)
        self.high = nn.Conv2D(6, 10, 3, stride=stride // 4, **kwargs)

    def forward(self, x):
        low = self.low(x)
        return [low, self.high(low)]


def build(stride=16, data_format="NCHW", **kwargs):
    settings = {"aspp_out_channels": 8, "low_level_channels": 4, "decoder_channels": 12}
    settings["aspp_ratios"] = (1, 2, 3)
    backbone = Stem(stride, data_format)
    return DeepLabV3P(CLASSES, backbone, (0, 1), data_format=data_format, **{**settings, **kwargs})


def _image(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _logits(model, x):
    model.eval()
    with paddle.no_grad():
        return model(x)[0].numpy()


def _same(a, b):
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


def _biases(model):
    """Convolutions of the head that have a bias, separable ones by the name of the whole."""
    names = model.head.state_dict()
    return {
        n.replace("._conv.bias", "").replace(".depthwise_conv", "").replace(".piontwise_conv", "")
        for n in names
        if n.endswith("_conv.bias") or n == "decoder.conv.bias"
    }


ALL_BIASES = {
    *(f"aspp.aspp_blocks.{i}" for i in range(3)),
    "aspp.conv_bn_relu",
    *(f"decoder.conv_bn_relu{i}" for i in (1, 2, 3)),
    "decoder.conv.bias",
}


@pytest.mark.parametrize("use_sep_conv", [True, False])
@pytest.mark.parametrize(
    ("head_bias", "expected"),
    [
        ("all", ALL_BIASES),
        ("projection", {"aspp.conv_bn_relu"}),
        ("classifier", {"decoder.conv.bias"}),
    ],
)
def test_head_bias(head_bias, expected, use_sep_conv):
    model = build(head_bias=head_bias, use_sep_conv=use_sep_conv)
    assert _biases(model) == expected
    # Both halves of a separable convolution: two in ASPP and two in the decoder, twice.
    count = sum(n.endswith("_conv.bias") for n in model.head.state_dict())
    assert count == {"all": 11 if use_sep_conv else 7, "projection": 1, "classifier": 0}[head_bias]
    assert _logits(model, _image(1, 3, 33, 47)).shape == (1, CLASSES, 33, 47)


def test_the_default_has_paddlesegs_keys():
    names = set(build().state_dict())
    assert names == set(build(head_bias="all", upsample="bilinear").state_dict())
    assert not any("deconv" in name for name in names)


def test_widths():
    model = build(decoder_channels=20, low_level_channels=7, aspp_out_channels=9)
    decoder = model.head.decoder
    assert decoder.conv_bn_relu1._conv.weight.shape == [7, 6, 1, 1]
    assert decoder.conv_bn_relu2.piontwise_conv._conv.weight.shape == [20, 16, 1, 1]
    assert decoder.conv_bn_relu3.piontwise_conv._conv.weight.shape == [20, 20, 1, 1]
    assert decoder.conv.weight.shape == [CLASSES, 20, 1, 1]
    assert _logits(model, _image(1, 3, 33, 47)).shape == (1, CLASSES, 33, 47)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_deconv_starts_as_bilinear_interpolation(factor, data_format):
    """In every pixel, the border too."""
    layer = BilinearDeconv(3, factor, data_format)
    x = _image(2, 3, 5, 7)
    expected = resize(x, [5 * factor, 7 * factor]).numpy()
    if data_format == "NHWC":
        y = layer(x.transpose([0, 2, 3, 1]), [5 * factor, 7 * factor]).transpose([0, 3, 1, 2])
    else:
        y = layer(x, [5 * factor, 7 * factor])
    _same(y.numpy(), expected)


def test_deconv_of_a_ramp():
    """Straight lines stay straight: pixel i reads the ramp at (i + 0.5) / f - 0.5."""
    ramp = np.arange(6, dtype=np.float32)
    x = paddle.to_tensor(np.broadcast_to(ramp, (1, 1, 6, 6)).copy())
    y = BilinearDeconv(1, 4)(x, [24, 24]).numpy()[0, 0]
    expected = np.clip((np.arange(24) + 0.5) / 4 - 0.5, 0, 5)
    np.testing.assert_allclose(y, np.broadcast_to(expected, (24, 24)), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "first"), [((20, 24), (0, 0)), ((17, 23), (1, 0)), ((18, 21), (1, 1))]
)
def test_deconv_keeps_the_middle(size, first):
    layer, x = BilinearDeconv(2, 4), _image(1, 2, 5, 6)
    whole = layer(x, [20, 24]).numpy()
    (top, left), (h, w) = first, size
    np.testing.assert_array_equal(
        layer(x, list(size)).numpy(), whole[:, :, top : top + h, left : left + w]
    )


def test_deconv_kernel():
    for factor in range(2, 9):
        kernel = bilinear_kernel(factor)
        size = 2 * factor - factor % 2
        assert kernel.shape == (size, size)
        # What reaches one output pixel adds up to 1, at each of its phases.
        padded = np.zeros((2 * factor, 2 * factor))
        padded[:size, :size] = kernel
        np.testing.assert_allclose(padded.reshape(2, factor, 2, factor).sum((0, 2)), 1)


@pytest.mark.xfail(strict=True, reason="paddle_quirks: bilinear_initializer")
def test_paddles_own_initializer_is_bilinear():
    """Where this passes, `bilinear_kernel` can be ``nn.initializer.Bilinear``."""
    attr = paddle.ParamAttr(initializer=nn.initializer.Bilinear())
    layer = nn.Conv2DTranspose(1, 1, 4, stride=2, weight_attr=attr)
    np.testing.assert_allclose(layer.weight.numpy()[0, 0], bilinear_kernel(2), atol=1e-6)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_deconv_network_starts_as_the_bilinear_one(stride):
    plain = build(stride)
    learned = build(stride, upsample="deconv")
    missing, unexpected = learned.set_state_dict(plain.state_dict())
    assert not unexpected
    names = ["head.decoder.deconv.deconv.weight"] if stride > 4 else []
    assert missing == [*names, "head.logits_deconv.deconv.weight"]
    x = _image(2, 3, 64, 96)  # whole strides: nothing is cut
    _same(_logits(learned, x), _logits(plain, x))
    for h, w in ((65, 49), (66, 67), (33, 100)):
        assert _logits(learned, _image(1, 3, h, w)).shape == (1, CLASSES, h, w)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"upsample": "deconv"},
        {"upsample": "deconv", "use_sep_conv": False, "head_bias": "projection"},
        {"head_bias": "classifier", "image_pooling": False},
    ],
    ids=str,
)
def test_layouts_agree(kwargs):
    nchw, nhwc = build(**kwargs), build(data_format="NHWC", **kwargs)
    missing, unexpected = nhwc.set_state_dict(nchw.state_dict())
    assert not missing
    assert not unexpected
    x = _image(2, 3, 49, 66)
    _same(_logits(nhwc, x.transpose([0, 2, 3, 1])).transpose(0, 3, 1, 2), _logits(nchw, x))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"upsample": "deconv"},
        {"upsample": "deconv", "data_format": "NHWC"},
        {"head_bias": "projection", "use_sep_conv": False},
        {"head_bias": "classifier", "decoder_dropout": 0.5, "classifier_dropout": 0.1},
    ],
    ids=str,
)
def test_gradients_and_learning(kwargs):
    paddle.seed(0)
    model = build(aspp_dropout=0.0, **kwargs)
    shape = (2, 65, 49, 3) if model.data_format == "NHWC" else (2, 3, 65, 49)
    x, target = _image(*shape), _image(1, seed=1)
    optimizer = paddle.optimizer.SGD(0.05, parameters=model.parameters())
    losses = []
    for step in range(4):
        loss = (model(x)[0] - target).square().mean()
        loss.backward()
        if step == 0:
            for name, p in model.named_parameters():
                if p.stop_gradient:  # running statistics are parameters in Paddle
                    assert name.endswith(("_mean", "_variance")), name
                    continue
                assert p.grad is not None, name
                # Batch norm takes off what a bias before it adds: its gradient is 0.
                if not name.endswith("_conv.bias"):
                    assert float(p.grad.abs().max()) > 0, name
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_batch_norm_settings():
    model = build(freeze_bn=True, bn_momentum=0.5, bn_epsilon=1e-3)
    model.train()
    before = {n: t.numpy().copy() for n, t in model.state_dict().items() if "_batch_norm" in n}
    model(_image(2, 3, 33, 47))[0].mean().backward()
    norms = list(batch_norms(model))
    assert len(norms) == 12  # two for each of four separable convolutions, and four
    for norm in norms:
        assert (norm.training, norm._momentum, norm._epsilon) == (False, 0.5, 1e-3)
        assert norm.weight.grad is None
    for name, value in before.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)


def test_dropouts():
    model = build(aspp_dropout=0.3, decoder_dropout=0.5, classifier_dropout=0.1)
    head = model.head
    rates = [
        d.p for d in (head.aspp.dropout, head.decoder.dropout, head.decoder.classifier_dropout)
    ]
    assert rates == [0.3, 0.5, 0.1]
    x = _image(2, 3, 33, 47)
    _same(_logits(model, x), _logits(model, x))
    model.train()
    assert (model(x)[0] - model(x)[0]).abs().max() > 1e-3


def test_logits_size_stride():
    model = build(logits_size="stride")
    assert model(_image(2, 3, 33, 47))[0].shape == [2, CLASSES, 9, 12]
    assert _logits(model, _image(2, 3, 33, 47)).shape == (2, CLASSES, 33, 47)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_export_of_the_deconv_network(form, data_format, tmp_path):
    """`export` runs what it wrote on two sizes, one of them odd, and compares."""
    if data_format == "NHWC" and form != "pir":
        pytest.skip("export refuses NHWC in this format")
    if form == "onnx":
        pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = build(data_format=data_format, upsample="deconv", head_bias="projection")
    model.eval()
    sample = np.random.default_rng(0).standard_normal((3, 65, 98), np.float32)
    info = export(model, str(tmp_path / "o"), sample=sample, format=form, output_op="none")
    assert info.checks["inputs"] == [[1, 3, 65, 98], [2, 3, 33, 39]]
    assert info.checks["max_abs_logits_difference"] < 1e-4


def _undeclared(**kwargs):
    backbone = Stem()
    backbone.feat_strides = None
    return DeepLabV3P(CLASSES, backbone, (0, 1), (1, 2), 8, **kwargs)


def _uneven(**kwargs):
    backbone = Stem()
    backbone.feat_strides = [4, 18]
    return DeepLabV3P(CLASSES, backbone, (0, 1), (1, 2), 8, **kwargs)


def _indices(*indices):
    """Both at the output stride of 8, where the decoder would have no finer feature to join."""

    def make(**kwargs):
        return DeepLabV3P(CLASSES, ResNet18_vd(output_stride=8), indices, **kwargs)

    return make


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (build, {"head_bias": "none"}, "head_bias is 'none'; give one of"),
        (build, {"decoder_channels": 0}, "decoder_channels is 0; give a positive integer"),
        (build, {"low_level_channels": 4.0}, r"low_level_channels is 4\.0"),
        (build, {"aspp_out_channels": "8"}, "aspp_out_channels is '8'"),
        (build, {"upsample": "nearest"}, r"upsample is 'nearest'; give one of \['bilinear'"),
        (build, {"upsample": "deconv", "logits_size": "stride"}, "would never learn"),
        (_undeclared, {"upsample": "deconv"}, "declares none"),
        (_uneven, {"upsample": "deconv"}, "strides 4 and 18"),
        (build, {"aspp_dropout": 1.5}, "aspp_dropout is 1.5; .*from 0 to below 1"),
        (build, {"decoder_dropout": -0.5}, "decoder_dropout is -0.5"),
        (build, {"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
        (build, {"classifier_dropout": None}, "classifier_dropout is None"),
        (_indices(3, 3), {}, "one feature twice"),
        (_indices(3, -1), {}, "one feature twice"),
        (_indices(1, 3), {}, r"strides \[8, 8\]; give features of rising strides"),
    ],
)
def test_errors(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_factor_errors():
    for factor in (0, 2.0, True):
        with pytest.raises(ValueError, match="upsampling factor"):
            BilinearDeconv(3, factor)
    with pytest.raises(ValueError, match="20x20, less than the 21x20"):
        BilinearDeconv(3, 4)(_image(1, 3, 5, 5), [21, 20])


def test_deconv_on_resnet():
    """The factors follow the declared strides, and a map of odd size is cut to the image's."""
    kwargs = {"aspp_out_channels": 8, "upsample": "deconv"}
    model = DeepLabV3P(CLASSES, ResNet18_vd(output_stride=8), **kwargs)
    assert model.head.decoder.deconv.factor == 2
    assert model.head.logits_deconv.factor == 4
    assert _logits(model, _image(1, 3, 65, 50)).shape == (1, CLASSES, 65, 50)

# SPDX-License-Identifier: Apache-2.0
"""The copy that is exported: fewer operations, the same numbers, and the model as it was.

Tolerance of logits: 2e-4 of the largest. The same float32 sums, rounded at other places, in
networks of up to 100 layers; rounding moves them by about 1e-5 of the largest.
"""

import importlib

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.deploy.fold import WidenedDepthwise, folded_copy
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.models.layers import ConvBN, ConvBNReLU, SeparableConvBNReLU

TOL = 2e-4
SIZES = ((1, 3, 33, 47), (2, 3, 40, 64))  # an odd one and an even one


def settle(model, seed=0):
    """Gives batch norms statistics, weights and biases of all kinds, and convolutions a bias."""
    rng = np.random.default_rng(seed)
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, nn.BatchNorm2D):
            count = layer._mean.shape[0]
            layer._mean.set_value(rng.normal(0, 0.3, count).astype("float32"))
            layer._variance.set_value(rng.uniform(0.5, 2, count).astype("float32"))
            layer.weight.set_value(rng.uniform(0.5, 1.2, count).astype("float32"))
            # Above 0 mostly: units that all die at a ReLU would hide what is behind them.
            layer.bias.set_value(rng.uniform(-0.2, 1, count).astype("float32"))
        elif isinstance(layer, nn.Conv2D) and layer.bias is not None:
            layer.bias.set_value(rng.normal(0, 0.5, layer.bias.shape).astype("float32"))
    model.eval()
    return model


def state(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def run(model, shape, seed=1):
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    with paddle.no_grad():
        return infer_logits(model, paddle.to_tensor(x)).numpy()


def assert_same(model, folded):
    for shape in SIZES:
        expected = run(model, shape)
        largest = np.abs(expected).max()
        assert expected.std() > 1e-2 * largest, "a network this flat proves nothing"
        np.testing.assert_allclose(run(folded, shape), expected, rtol=0, atol=TOL * largest)


def biases_before_batch_norm(model):
    pairs = (layer for layer in model.sublayers() if hasattr(layer, "_batch_norm"))
    return sum(layer._conv.bias is not None for layer in pairs)


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model.sublayers())


def network(name, backbone, backbone_settings=None, **settings):
    paddle.seed(1)
    settings = {"num_classes": 4, **settings}
    layout = {"data_format": settings["data_format"]} if "data_format" in settings else {}
    base = registry.BACKBONES[backbone](**{**(backbone_settings or {}), **layout})
    return settle(registry.MODELS[name](backbone=base, **settings))


# Model, its settings, how many separable convolutions are folded and how many of them widened.
NETWORKS = {
    "V1": ("DeepLabV1", "VGG16_LargeFOV", {"fov_channels": 32}, {}, 0, 0),
    "V2": ("DeepLabV2", "ResNet18_vd", {"output_stride": 8}, {"freeze_bn": False}, 0, 0),
    "V3": ("DeepLabV3", "ResNet18_vd", {"output_stride": 16}, {"aspp_out_channels": 16}, 0, 0),
    "V3 conv3x3": (
        "DeepLabV3", "ResNet18_vd", {"output_stride": 16},
        {"aspp_out_channels": 16, "head": "conv3x3", "aux": True}, 0, 0,
    ),
    "V3P stride 8": (
        "DeepLabV3P", "ResNet18_vd", {"output_stride": 8}, {"aspp_out_channels": 16}, 5, 3,
    ),
    "V3P frozen, stride 16": (
        "DeepLabV3P", "ResNet18_vd", {"output_stride": 16},
        {"aspp_out_channels": 16, "freeze_bn": True, "bn_epsilon": 1e-3}, 5, 2,
    ),
    "V3P deconv": (
        "DeepLabV3P", "ResNet18_vd", {"output_stride": 16},
        {"aspp_out_channels": 16, "upsample": "deconv", "head_bias": "classifier"}, 5, 2,
    ),
    "V3P NHWC": (
        "DeepLabV3P", "ResNet18_vd", {"output_stride": 8},
        {"aspp_out_channels": 16, "data_format": "NHWC"}, 5, 0,
    ),
    "V3P MobileNetV2": (
        "DeepLabV3P", "MobileNetV2_x0_25", {},
        {"aspp_out_channels": 16, "backbone_indices": [0, 3]}, 5, 2,
    ),
    "V3P Xception": (
        "DeepLabV3P", "Xception41_deeplab", {},
        {"aspp_out_channels": 16, "backbone_indices": [0, 1]}, 41, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_the_same_logits_with_less_to_do(case):
    name, backbone, backbone_settings, settings, separable, widened = NETWORKS[case]
    model = network(name, backbone, backbone_settings, **settings)
    before = state(model)
    folded = folded_copy(model, widen=True)
    assert type(folded) is type(model)
    assert folded is not model
    assert biases_before_batch_norm(folded) == 0
    assert count(model, nn.BatchNorm2D) - count(folded, nn.BatchNorm2D) == separable
    assert count(folded, WidenedDepthwise) == widened
    assert_same(model, folded)
    after = state(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)


class Pair(nn.Layer):
    """Two layers of ours in a row, which may share parts."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return [self.second(self.first(x))]


def test_what_two_layers_share_stays_as_it_is():
    paddle.seed(2)
    one, two = ConvBN(3, 3, 3), ConvBNReLU(3, 3, 3)
    two._batch_norm = one._batch_norm  # of two convolutions
    model = settle(Pair(one, two))
    assert biases_before_batch_norm(folded_copy(model)) == 2
    assert_same(model, folded_copy(model))

    one, two = ConvBN(3, 3, 3), ConvBN(3, 3, 3)
    two._conv = one._conv  # in front of two batch norms
    model = settle(Pair(one, two))
    assert biases_before_batch_norm(folded_copy(model)) == 2
    assert_same(model, folded_copy(model))

    one, two = ConvBN(3, 3, 3), ConvBN(3, 3, 3)
    two._conv.weight = one._conv.weight  # a parameter alone
    model = settle(Pair(one, two))
    assert biases_before_batch_norm(folded_copy(model)) == 2
    assert_same(model, folded_copy(model))


def test_a_layer_that_runs_twice_is_folded():
    """Both runs want the same algebra."""
    paddle.seed(3)
    layer = SeparableConvBNReLU(3, 3, 3)

    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return [self.layer(self.layer(x))]

    model = settle(Twice())
    folded = folded_copy(model)
    assert count(folded, nn.BatchNorm2D) == 1
    assert_same(model, folded)


def test_layers_of_others_stay_as_they_are():
    class Between(ConvBN):  # derived, and does something between the two
        def forward(self, x):
            return self._batch_norm(paddle.abs(self._conv(x)))

    paddle.seed(4)
    model = settle(Pair(Between(3, 3, 3), nn.Conv2D(3, 2, 1)))
    assert biases_before_batch_norm(folded_copy(model)) == 1
    assert_same(model, folded_copy(model))


def plain(**settings):
    return SeparableConvBNReLU(4, 6, 3, **settings)


def with_depthwise(conv, **settings):
    model = plain(**settings)
    model.depthwise_conv._conv = conv
    if conv._out_channels != 4:
        model.depthwise_conv._batch_norm = nn.BatchNorm2D(conv._out_channels)
        model.piontwise_conv._conv = nn.Conv2D(conv._out_channels, 6, 1)
    return model


def with_pointwise(conv):
    model = plain()
    model.piontwise_conv._conv = conv
    return model


def with_hook(part, hook=lambda layer, x, y: y * 2):
    model = plain()
    layer = model
    for name in part.split("."):
        layer = getattr(layer, name)
    layer.register_forward_post_hook(hook)
    return model


def with_norm(reweighted):
    model = plain()
    reweighted(model.depthwise_conv._conv)
    return model


def with_batch_statistics():
    model = plain()
    model.depthwise_conv._batch_norm._use_global_stats = False
    return model


class OwnNorm(nn.BatchNorm2D):
    def forward(self, x):
        return super().forward(paddle.abs(x))


def with_own_norm():
    model = plain()
    model.depthwise_conv._batch_norm = OwnNorm(4)
    return model


# None of them is what a separable convolution of ours is, by what somebody put into it.
STRANGE = {
    "multiplier": lambda: with_depthwise(nn.Conv2D(4, 8, 3, padding=1, groups=4, bias_attr=False)),
    "grouped, wide": lambda: with_depthwise(
        nn.Conv2D(4, 4, 3, padding=12, dilation=12, groups=2, bias_attr=False), dilation=12
    ),
    "grouped pointwise": lambda: with_pointwise(nn.Conv2D(4, 6, 1, groups=2)),
    "padded pointwise": lambda: with_pointwise(nn.Conv2D(4, 6, 1, padding=1)),
    "pointwise in steps": lambda: with_pointwise(nn.Conv2D(4, 6, 1, stride=2)),
    "weight norm": lambda: with_norm(nn.utils.weight_norm),
    "spectral norm": lambda: with_norm(nn.utils.spectral_norm),
    "hook on the layer": lambda: with_hook("depthwise_conv"),
    "hook on the convolution": lambda: with_hook("depthwise_conv._conv"),
    "hook on the batch norm": lambda: with_hook("piontwise_conv._batch_norm"),
    "batch statistics": with_batch_statistics,
    "a batch norm of one's own": with_own_norm,
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_not_as_it_seems_stays_as_it_is(case):
    paddle.seed(6)
    model = settle(STRANGE[case]())
    folded = folded_copy(model, widen=True)
    assert count(folded, nn.BatchNorm2D) == count(model, nn.BatchNorm2D) == 2
    assert count(folded, WidenedDepthwise) == 0
    x = paddle.to_tensor(np.random.default_rng(1).standard_normal((2, 4, 33, 40), np.float32))
    with paddle.no_grad():
        expected = model(x).numpy()
        got = folded(x).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOL * np.abs(expected).max())


def test_widening_leaves_paddles_random_state_alone():
    model = settle(SeparableConvBNReLU(4, 6, 3, dilation=12))
    paddle.seed(5)
    expected = paddle.rand([1]).item()
    paddle.seed(5)
    assert count(folded_copy(model, widen=True), WidenedDepthwise) == 1
    assert paddle.rand([1]).item() == expected


def test_half_precision_and_the_other_layout_are_not_widened():
    for model in (
        settle(SeparableConvBNReLU(4, 6, 3, dilation=12, data_format="NHWC")),
        settle(SeparableConvBNReLU(4, 6, 3, dilation=12)).to(dtype="bfloat16"),
    ):
        folded = folded_copy(model, widen=True)
        assert count(folded, nn.BatchNorm2D) == 1
        assert count(folded, WidenedDepthwise) == 0


def test_a_network_that_cannot_be_copied_is_taken_as_it_is(caplog):
    class Stubborn(nn.Layer):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    model = Stubborn()
    assert folded_copy(model) is model
    assert "not me" in caplog.text


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "size"),
    [(3, 12, 12, (20, 31)), (3, 36, 36, (9, 8)), (5, 14, 7, (11, 17)), (3, [2, 8], [2, 8], (7, 9))],
)
def test_widening_changes_no_number(kernel, padding, dilation, size):
    """A multiplication by one and sums over the same terms in the same order, but for zeros."""
    paddle.seed(5)
    conv = nn.Conv2D(6, 6, kernel, padding=padding, dilation=dilation, groups=6, bias_attr=False)
    x = paddle.randn([2, 6, *size])
    np.testing.assert_allclose(
        WidenedDepthwise(conv)(x).numpy(), conv(x).numpy(), rtol=0, atol=1e-6
    )


def test_not_finite_statistics_stay_to_be_found():
    model = settle(Pair(SeparableConvBNReLU(3, 3, 3), nn.Conv2D(3, 2, 1)))
    model.first.depthwise_conv._batch_norm._variance.set_value(np.array([1, -5, 1], "float32"))
    folded = folded_copy(model)
    assert count(folded, nn.BatchNorm2D) == 2
    np.testing.assert_array_equal(run(folded, SIZES[0]), run(model, SIZES[0]))


@pytest.mark.parametrize(
    ("form", "target", "widen"),
    [
        ("legacy", "cpu", True),
        ("pir", "cpu", True),
        ("legacy", "gpu", False),
        ("pir", "gpu", False),
        ("onnx", "cpu", False),
    ],
)
def test_only_paddle_on_a_cpu_gets_the_widened_one(form, target, widen, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(model, asked):
        raise Enough(asked)

    # The package gives its function under the module's name.
    export = importlib.import_module("paddleseg_deeplab.deploy.export")
    monkeypatch.setattr(export, "folded_copy", stop)
    sample = np.zeros((3, 32, 32), np.float32)
    with pytest.raises(Enough, match=str(widen)):
        export.export(
            nn.Conv2D(3, 2, 1), str(tmp_path / "o"), sample=sample, format=form, target=target
        )

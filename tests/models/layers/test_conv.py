# SPDX-License-Identifier: Apache-2.0
"""The convolution of the layers against Paddle's own, which it is derived from."""

import numpy as np
import paddle
import pytest
from near import assert_near, random
from paddle import nn

from paddleseg_deeplab import kernels
from paddleseg_deeplab.models import DeepLabV1, VGG16_LargeFOV
from paddleseg_deeplab.models.layers import Conv2D, ConvBN

SETTINGS = {
    "3x3": {"padding": 1},
    "rate 2": {"padding": 2, "dilation": 2},
    "strided": {"padding": 1, "stride": 2},
    "depthwise": {"padding": 1, "groups": 4},
    "without bias": {"padding": 1, "bias_attr": False},
    "same": {"padding": "same", "stride": 2},
    "same, dilated": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
    "one side": {"padding": [0, 1, 0, 1]},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "NHWC": {"padding": 1, "data_format": "NHWC"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_it_computes_what_paddle_s_own_does(case):
    """Result and gradients, up to the order of sums."""
    settings = SETTINGS[case]
    ours, plain = (kind(4, 8, 3, **settings) for kind in (Conv2D, nn.Conv2D))
    plain.set_state_dict(ours.state_dict())
    results = []
    for layer in (ours, plain):
        if layer.bias is not None:
            layer.bias.set_value(np.arange(8, dtype="float32"))
        x = random(2, 4, 10, 9) if "data_format" not in settings else random(2, 10, 9, 4)
        y = layer(x)
        (y * random(*y.shape, seed=3)).sum().backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for mine, other in zip(*results, strict=True):
        assert_near(mine, other, 2e-5)


def test_it_is_paddle_s_layer():
    layer = Conv2D(3, 4, 3)
    assert isinstance(layer, nn.Conv2D)
    assert layer.full_name().startswith("conv2d_")  # what exported programs call its tensors
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_it_asks_for_the_faster_way(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "conv2d", lambda *about: asked.append(about))
    Conv2D(4, 4, 3, padding=1)(random(1, 4, 6, 6))
    Conv2D(4, 4, 3, padding="same")(random(1, 4, 6, 6))
    Conv2D(4, 4, 3, padding=1, padding_mode="reflect")(random(1, 4, 6, 6))
    Conv2D(4, 4, 3, data_format="NHWC")(random(1, 6, 6, 4))
    assert len(asked) == 1
    assert asked[0][2:] == ([1, 1], [1, 1], [1, 1], 1)


def test_every_convolution_of_a_network_is_one():
    model = DeepLabV1(3, VGG16_LargeFOV(fov_channels=8, multi_scale_features=True))
    assert {type(x) for x in model.sublayers() if isinstance(x, nn.Conv2D)} == {Conv2D}


@pytest.mark.parametrize("trains", [True, False])
def test_a_forward_of_an_object_s_own_is_called(trains):
    """As quantization and the like put one into a layer."""
    block = ConvBN(3, 4, 3)
    (block.train if trains else block.eval)()
    plain = block._conv.forward
    block._conv.forward = lambda x: 0 * plain(x) + 5
    with paddle.no_grad():
        y = block(random(2, 3, 8, 8))
    expected = np.zeros(y.shape) if trains else np.full(y.shape, 5 / np.sqrt(1 + 1e-5))
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)

# SPDX-License-Identifier: Apache-2.0
"""The blocks against the same composed of Paddle's own layers."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

from paddleseg_deeplab.models import DeepLabV3P, ResNet18_vd
from paddleseg_deeplab.models.layers import Activation, ASPPModule, ConvBN, ConvBNReLU, resize

# Both sides are float32 and add the bias at another place; values are near 1.
TOLERANCE = 1e-5


def _image(*shape, seed=0):
    return paddle.to_tensor(
        np.random.default_rng(seed).standard_normal(shape).astype(np.float32),
        stop_gradient=False,
    )


class _Plain(nn.Layer):
    """ConvBNReLU as PaddleSeg computes it: a bias that is added, a ReLU out of place."""

    def __init__(self, layer):
        super().__init__()
        self._conv, self._batch_norm = layer._conv, layer._batch_norm

    def forward(self, x):
        return nn.functional.relu(self._batch_norm(self._conv(x)))


def _pair(data_format="NCHW"):
    """Two equal blocks, one of them plain, with statistics and biases that matter."""
    blocks = [ConvBNReLU(3, 4, 3, dilation=2, data_format=data_format) for _ in range(2)]
    rng = np.random.default_rng(1)
    for a, b in zip(*(block.state_dict().values() for block in blocks)):
        value = rng.uniform(0.5, 1.5, a.shape).astype(np.float32)
        a.set_value(value), b.set_value(value)
    return blocks[0], _Plain(blocks[1])


def _close(a, b):
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_bias_in_training(data_format):
    """Outputs, statistics and gradients, of two passes before one backward."""
    block, plain = _pair(data_format)
    shape = (2, 3, 8, 9) if data_format == "NCHW" else (2, 8, 9, 3)
    grads = []
    for net in (block, plain):
        x, z = _image(*shape), _image(*shape, seed=2)
        y = net(x) * net(z)
        (y * y).mean().backward()
        grads.append((y, x.grad, net._conv.weight.grad, net._batch_norm.weight.grad))
    for a, b in zip(*grads):
        _close(a, b)
    _close(block._batch_norm._mean, plain._batch_norm._mean)
    _close(block._batch_norm._variance, plain._batch_norm._variance)
    # In exact arithmetic it is 0; the optimizer still has to see it, for weight decay.
    assert float(block._conv.bias.grad.abs().max()) == 0


def test_bias_in_evaluation():
    block, plain = _pair()
    block.eval(), plain.eval()
    x = _image(2, 3, 8, 9)
    before = block._batch_norm._mean.numpy().copy()
    with paddle.no_grad():
        _close(block(x), plain(x))
    np.testing.assert_array_equal(block._batch_norm._mean.numpy(), before)


def test_bias_with_frozen_statistics_has_its_gradient():
    block, plain = _pair()
    grads = []
    for net in (block, plain):
        net._batch_norm.eval()
        net(_image(2, 3, 8, 9)).sum().backward()
        grads.append(net._conv.bias.grad)
    _close(*grads)
    assert float(grads[0].abs().max()) > 0


def test_no_bias():
    layer = ConvBN(3, 4, 3, bias_attr=False)
    x = _image(2, 3, 8, 9)
    _close(layer(x), layer._batch_norm(layer._conv(x)))


@pytest.mark.parametrize(
    ("align_corners", "expected"),
    [(True, [0, 1 / 3, 2 / 3, 1]), (False, [0, 0.25, 0.75, 1])],
)
def test_resize_closed_form(align_corners, expected):
    x = paddle.to_tensor([0.0, 1.0]).reshape([1, 1, 1, 2])
    y = resize(x, [1, 4], align_corners).numpy().ravel()
    np.testing.assert_allclose(y, expected, atol=1e-6)
    z = resize(x.transpose([0, 2, 3, 1]), [1, 4], align_corners, "NHWC").numpy().ravel()
    np.testing.assert_array_equal(y, z)


def test_activation():
    x = paddle.to_tensor([-1.0, 0.0, 2.0])
    assert Activation()(x) is x
    assert Activation("relu")(x).tolist() == [0, 0, 2]
    with pytest.raises(KeyError, match="relu6"):
        Activation("rellu")


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, float("nan"), True, "0.1", None])
def test_aspp_refuses_a_dropout_out_of_range(dropout):
    with pytest.raises(ValueError, match=r"dropout is .*from 0 to below 1"):
        ASPPModule((1, 2), 4, 4, False, dropout=dropout)


def test_aspp_takes_no_dropout():
    assert ASPPModule((1, 2), 4, 4, False, dropout=0).dropout.p == 0


def test_traced_with_dynamic_shapes():
    """What export does; no block may depend on a size that is known only at run time."""
    model = DeepLabV3P(3, ResNet18_vd(output_stride=16), aspp_out_channels=16)
    model.eval()
    spec = [InputSpec([None, 3, None, None], "float32")]
    traced = paddle.jit.to_static(model.forward, input_spec=spec, full_graph=True)
    for shape in [(1, 3, 32, 48), (2, 3, 33, 49)]:
        x = _image(*shape).detach()
        with paddle.no_grad():
            expected = model.head(model.backbone(x))[0]
            expected = resize(expected, shape[2:])
            _close(traced(x)[0], expected)

# SPDX-License-Identifier: Apache-2.0
"""Training with the network as a compiled program equals training without."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.models import (
    CrossEntropyLoss,
    DeepLabV3,
    DeepLabV3P,
    LovaszSoftmaxLoss,
    MixedLoss,
    backbones,
)
from paddleseg_deeplab.utils.errors import UserError


def v3p(data_format="NCHW"):
    backbone = backbones.ResNet18_vd(output_stride=16, data_format=data_format)
    settings = {"aspp_out_channels": 16, "data_format": data_format}
    return DeepLabV3P(4, backbone, backbone_indices=(0, 3), **settings)


def v3():
    return DeepLabV3(4, backbones.MobileNetV2_x0_25(), backbone_indices=(-1,), aspp_out_channels=16)


class Dropping(nn.Layer):
    """With dropout, the network's own randomness."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.Dropout(0.5), nn.Conv2D(8, 4, 1)
        )

    def forward(self, x):
        return [self.body(x)]


def batches(seed, count=2, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [
        (
            paddle.to_tensor(rng.standard_normal((2, 3, 48, 40)).astype(dtype)),
            paddle.to_tensor(rng.integers(0, 4, (2, 48, 40))),
        )
        for _ in range(count)
    ]


def train(make, to_static, iterations=2, dtype="float32"):
    """Losses, gradients of the first iteration, the network, its step."""
    paddle.seed(0)
    net = make()
    net.to(dtype=dtype)
    net.train()
    loss = MixedLoss([CrossEntropyLoss(), LovaszSoftmaxLoss()], [0.8, 0.2])
    optimizer = paddle.optimizer.Momentum(0.01, parameters=net.parameters(), weight_decay=1e-4)
    losses = {"types": [loss], "coef": [1.0]}
    step = TrainStep(net, optimizer, losses, to_static=to_static)
    values, gradients = [], {}

    def keep():
        gradients.update(
            {k: p.grad.numpy() for k, p in net.named_parameters() if p.grad is not None}
        )
        type(optimizer).step(optimizer)

    for i in range(iterations):
        paddle.seed(i)
        optimizer.step = keep if i == 0 else lambda: type(optimizer).step(optimizer)
        values.append(step(batches(i, dtype=dtype))[0])
    return values, gradients, net, step


# Losses are float32 in both, which the gradients inherit: 1e-5 and some. In float32 the gradients
# of such deep networks on so few pixels are themselves only known to 2e-2 (against float64).
TOLERANCE = {"float64": 1e-4, "float32": 2e-2}


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        pytest.param(v3p, "float64", id="v3p", marks=pytest.mark.slow),
        pytest.param(v3, "float64", id="v3", marks=pytest.mark.slow),
        pytest.param(v3, "float32", id="v3-float32"),
        pytest.param(lambda: v3p("NHWC"), "float32", id="v3p-nhwc-float32", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_those_of_the_plain_network(make, dtype):
    values, gradients, net, _ = train(make, False, dtype=dtype)
    static_values, static_gradients, static_net, _ = train(make, True, dtype=dtype)
    assert static_gradients.keys() == gradients.keys()
    for name, value in gradients.items():
        size, gap = np.linalg.norm(value), np.linalg.norm(static_gradients[name] - value)
        # 1e-5: of a bias in front of a batch norm the gradient is 0, and noise in float32.
        assert gap <= TOLERANCE[dtype] * size + 1e-5, (name, gap, size)
    # The second is of weights that such gradients have moved.
    np.testing.assert_allclose(static_values, values, rtol=1e-5 if dtype == "float64" else 1e-2)
    assert static_values[0] == pytest.approx(values[0], rel=1e-5)
    state, static_state = net.state_dict(), static_net.state_dict()
    assert list(state) == list(static_state)
    for name, tensor in state.items() if dtype == "float64" else ():
        one, other = static_state[name].numpy(), tensor.numpy()
        gap = np.linalg.norm(one - other)
        assert gap <= TOLERANCE[dtype] * np.linalg.norm(other) + 1e-5, (name, gap)


def test_dropout_draws_the_same_and_evaluation_is_the_plain_network_s():
    values, gradients, net, _ = train(Dropping, False, iterations=3)
    static_values, static_gradients, static_net, step = train(Dropping, True, iterations=3)
    # A few products a number: equal to the last digits, and far from it with another mask.
    np.testing.assert_allclose(static_values, values, rtol=1e-5)
    for name, value in gradients.items():
        np.testing.assert_allclose(static_gradients[name], value, atol=1e-5, err_msg=name)
    images, _ = batches(9)[0]
    outputs = []
    for one in (net, static_net):
        one.eval()
        outputs.append(one(images)[0].numpy())
        one.train()
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)
    assert (static_net(images)[0].numpy() != outputs[1]).any()
    step(batches(10))  # goes on after an evaluation


@pytest.fixture
def onednn():
    name = "FLAGS_use_mkldnn"
    paddle.set_flags({name: True})
    yield
    paddle.set_flags({name: False})


@pytest.mark.skipif(paddle.get_device() != "cpu", reason="about CPUs")
def test_onednn_is_refused(onednn):
    net = Dropping()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    with pytest.raises(UserError, match=r"to_static_training.*FLAGS_use_mkldnn"):
        TrainStep(net, optimizer, {"types": [], "coef": []}, to_static=True)


class Plain(nn.Layer):
    """Any size of images gives as many pixels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(), nn.Conv2D(8, 4, 1)
        )

    def forward(self, x):
        return [self.body(x)]


def test_sizes_that_are_new_in_the_middle_of_an_accumulated_step():
    """Tracing one must not lose the gradients of the micro-batches before it."""
    steps = [[(9, 8), (9, 7)], [(9, 8), (11, 8), (5, 6)], [(9, 7), (9, 8)]]
    found = []
    for to_static in (False, True):
        paddle.seed(0)
        net = Plain()
        net.train()
        optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
        losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
        step = TrainStep(net, optimizer, losses, to_static=to_static)
        rng = np.random.default_rng(0)
        for sizes in steps:
            value, _ = step(
                [
                    (
                        paddle.to_tensor(rng.standard_normal((2, 3, *size)).astype("float32")),
                        paddle.to_tensor(rng.integers(0, 4, (2, *size))),
                    )
                    for size in sizes
                ]
            )
            found.append((value, {k: v.numpy() for k, v in net.state_dict().items()}))
    for (value, state), (static_value, static_state) in zip(found[:3], found[3:]):
        assert static_value == pytest.approx(value, rel=1e-5)
        for name, tensor in state.items():
            # Rounding alone: a lost gradient moves weights by some 1e-3 here.
            np.testing.assert_allclose(static_state[name], tensor, atol=1e-5, err_msg=name)


class Refusing(Plain):
    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [UserError("Give it colours."), ZeroDivisionError("odd")])
def test_what_the_network_itself_raises_comes_out_as_it_is(error):
    net = Refusing()
    net.error = error
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    step = TrainStep(net, optimizer, {"types": [CrossEntropyLoss()], "coef": [1.0]}, to_static=True)
    with pytest.raises(type(error)) as caught:
        step(batches(0))
    assert str(caught.value) == str(error)
    assert paddle.in_dynamic_mode()


class Wilful(Dropping):
    def forward(self, x):
        return [self.body(x) * float(np.float32(x.mean().numpy()))]


def test_a_network_that_cannot_be_traced_is_named():
    net = Wilful()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
    step = TrainStep(net, optimizer, losses, to_static=True)
    with pytest.raises(UserError, match="Wilful cannot be compiled") as caught:
        step(batches(0))
    assert "\n" not in str(caught.value)
    assert not any(mark in str(caught.value).partition("40] (")[2] for mark in "[]")

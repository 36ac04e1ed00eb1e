# SPDX-License-Identifier: Apache-2.0
"""One training iteration: gradients, parts of the loss, and what it refuses."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.training.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.models import CrossEntropyLoss, DiceLoss, MixedLoss
from paddleseg_deeplab.models.losses.total import compute_losses
from paddleseg_deeplab.utils.errors import UserError

RATE = 0.5


class Net(nn.Layer):
    """A 1x1 convolution, then normalisation with fixed statistics where asked for."""

    def __init__(self, data_format="NCHW", frozen_norm=False, outputs=1, classes=4):
        super().__init__()
        self.data_format = data_format
        self.conv = nn.Conv2D(3, classes, 1, data_format=data_format)
        self.norm = nn.BatchNorm2D(classes, use_global_stats=True) if frozen_norm else None
        self.outputs = outputs

    def forward(self, x):
        y = self.conv(x)
        return [y if self.norm is None else self.norm(y)] * self.outputs


def batch(count=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, 3, 5, 6)).astype("float32")
    return images, rng.integers(0, 4, (count, 5, 6))


def tensors(images, labels):
    return paddle.to_tensor(images), paddle.to_tensor(labels)


def ce(**settings):
    return {"types": [CrossEntropyLoss(**settings)], "coef": [1.0]}


def make(net, losses, rate=RATE):
    scheduler = paddle.optimizer.lr.StepDecay(rate, 1, 0.1)
    optimizer = paddle.optimizer.SGD(scheduler, parameters=net.parameters())
    return TrainStep(net, optimizer, losses)


def copies(net):
    other = type(net)(net.data_format, net.norm is not None, net.outputs)
    other.set_state_dict(net.state_dict())
    return other


def weights(net):
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


def numpy_update(weight, bias, images, labels):
    """Loss before, weight and bias after a step of gradient descent on the mean cross-entropy."""
    x = images.astype("float64").transpose(0, 2, 3, 1).reshape(-1, 3)
    z = x @ weight.reshape(4, 3).T.astype("float64") + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    hot = np.eye(4)[labels.reshape(-1)]
    loss = -np.log((p * hot).sum(1)).mean()
    d = (p - hot) / len(x)
    return loss, weight - RATE * (d.T @ x).reshape(weight.shape), bias - RATE * d.sum(0)


def test_accumulation_equals_numpy():
    images, labels = batch()
    net = Net()
    before = weights(net)
    step = make(net, ce())
    loss, parts = step([tensors(images[i : i + 2], labels[i : i + 2]) for i in (0, 2)])
    expected = numpy_update(before["conv.weight"], before["conv.bias"], images, labels)
    # Float32 sums over 120 pixels against float64: about 1e-6.
    assert loss == pytest.approx(expected[0], abs=1e-5)
    assert parts == pytest.approx({"CrossEntropyLoss": loss})
    np.testing.assert_allclose(net.conv.weight.numpy(), expected[1], atol=1e-5)
    np.testing.assert_allclose(net.conv.bias.numpy(), expected[2], atol=1e-5)
    assert step.optimizer.get_lr() == pytest.approx(RATE * 0.1)  # stepped once, not per batch


def test_accumulation_equals_one_big_batch_with_frozen_norm():
    images, labels = batch()
    one = Net(frozen_norm=True)
    two = copies(one)
    make(one, ce())([tensors(images, labels)])
    make(two, ce())([tensors(images[i : i + 2], labels[i : i + 2]) for i in (0, 2)])
    for name, value in weights(one).items():
        np.testing.assert_allclose(weights(two)[name], value, atol=1e-6)


@pytest.mark.parametrize("bad", [0, 1])
def test_non_finite_loss_touches_nothing(bad):
    images, labels = batch()
    net = Net()
    step = make(net, ce())
    before = weights(net)
    batches = [tensors(images, labels), tensors(images, labels)]
    images = images.copy()
    images[0, 0, 0, 0] = np.nan
    batches[bad] = tensors(images, labels)
    with pytest.raises(NonFiniteLoss, match=r"nan.*CrossEntropyLoss"):
        step(batches)
    for name, value in before.items():
        np.testing.assert_array_equal(weights(net)[name], value)
    assert step.optimizer.get_lr() == RATE
    # No gradient of the good batch is left over for the next step.
    good = batch(seed=1)
    twin = copies(net)
    make(twin, ce())([tensors(*good)])
    step([tensors(*good)])
    np.testing.assert_array_equal(net.conv.weight.numpy(), twin.conv.weight.numpy())


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp64"])
@pytest.mark.skipif(paddle.get_device() != "cpu", reason="about CPUs")
def test_mixed_precision_is_refused_on_a_cpu(precision):
    net = Net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    with pytest.raises(UserError, match=precision):
        TrainStep(net, optimizer, ce(), precision)


def test_parts_are_weighted_and_named():
    images, labels = batch()
    net = Net(outputs=2)
    mixed = MixedLoss([CrossEntropyLoss(), DiceLoss()], [0.5, 2.0])
    losses = {"types": [mixed, CrossEntropyLoss()], "coef": [3.0, 0.4]}
    logits = net(paddle.to_tensor(images))[0]
    label = paddle.to_tensor(labels)
    cross, dice = float(CrossEntropyLoss()(logits, label)), float(DiceLoss()(logits, label))
    loss, parts = make(net, losses)([tensors(images, labels)])
    expected = {
        "CrossEntropyLoss": 1.5 * cross,
        "DiceLoss": 6.0 * dice,
        "CrossEntropyLoss_output1": 0.4 * cross,
    }
    # Products of float32 numbers near 1.
    assert parts == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(sum(expected.values()), rel=1e-5)


def test_outputs_and_losses_have_to_match():
    with pytest.raises(UserError, match=r"2 output.*1 types"):
        make(Net(outputs=2), ce())([tensors(*batch())])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("loss_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("net_format", ["NCHW", "NHWC"])
def test_layouts_agree(net_format, loss_format, mixed):
    images, labels = batch()
    plain = Net()
    net = Net(net_format)
    net.set_state_dict(plain.state_dict())
    losses = ce(data_format=loss_format)
    if mixed:
        losses["types"] = [MixedLoss(losses["types"], [1.0])]
    loss, _ = make(net, losses)([tensors(images, labels)])
    expected, _ = make(plain, ce())([tensors(images, labels)])
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(net.conv.weight.numpy(), plain.conv.weight.numpy(), atol=1e-6)


class OneElement(CrossEntropyLoss):
    """Gives [1] as old Paddle's losses do, and so its share."""

    def forward(self, logit, label):
        return super().forward(logit, label).reshape([1])

    def batch_weight(self, label):
        return super().batch_weight(label).reshape([1])


def test_losses_that_give_one_element_for_a_number():
    images, labels = batch()
    labels[0] = 255
    values = []
    for loss in (CrossEntropyLoss, OneElement):
        paddle.seed(0)
        net = Net()
        step = make(net, {"types": [loss()], "coef": [1.0]})
        value = step([tensors(images[:2], labels[:2]), tensors(images[2:], labels[2:])])[0]
        values.append((value, net.conv.weight.numpy()))
    assert values[1][0] == values[0][0]
    np.testing.assert_array_equal(values[1][1], values[0][1])


def test_label_goes_to_the_logits_grid_by_nearest():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 12, 9))
    label[0, :3] = 255
    logits = paddle.to_tensor(rng.standard_normal((2, 4, 4, 3)).astype("float32"))
    loss, _ = compute_losses([logits], paddle.to_tensor(label), ce())
    # Three pixels a cell: the middle one.
    expected = CrossEntropyLoss()(logits, paddle.to_tensor(label[:, 1::3, 1::3]))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)

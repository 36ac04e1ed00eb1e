# SPDX-License-Identifier: Apache-2.0
"""Losses that are read later: the same numbers, no waiting in the step, nothing bad is kept."""

import types

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.distributed import Ranks
from paddleseg_deeplab.core.figures import Figures, Journal
from paddleseg_deeplab.core.forward import compute_losses
from paddleseg_deeplab.core.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.models import CrossEntropyLoss, DiceLoss, LovaszSoftmaxLoss, MixedLoss
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.optimizers.optimizer import SGD, Adam, AdamW

CLIP = {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0}


def network():
    paddle.seed(0)
    return nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.Conv2D(8, 4, 1))


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return [self.body(x)]


def batch(seed, void=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (2, 6, 5))
    labels[0, :void] = 255
    images = rng.standard_normal((2, 3, 6, 5)).astype("float32")
    return paddle.to_tensor(images), paddle.to_tensor(labels)


def make(optimizer=None, parts=(CrossEntropyLoss, DiceLoss, LovaszSoftmaxLoss)):
    net = Net()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, 2, 0.5)
    optimizer = (optimizer or SGD(1e-3, momentum=0.9))(net, scheduler)
    loss = MixedLoss([part() for part in parts], [0.5] * len(parts))
    return net, TrainStep(net, optimizer, {"types": [loss], "coef": [1.0]})


def weights(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


class Monitor:
    """Keeps what it is told; a line is due at every fourth iteration."""

    def __init__(self):
        self.told = []

    def tells(self, iteration):
        return iteration % 4 == 0

    def record(self, *figures):
        self.told.append(figures)


def watch():
    return types.SimpleNamespace(lap=lambda: 0.25)


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_weights_and_numbers(count):
    iterations = [[batch(10 * i + k, void=k) for k in range(count)] for i in range(3)]
    net, step = make()
    expected = [step(batches) for batches in iterations]
    late, late_step = make()
    figures = [late_step.run(batches, wait=False) for batches in iterations]
    assert [f.read() for f in figures] == expected  # each bit of each number
    for name, value in weights(net).items():
        np.testing.assert_array_equal(weights(late)[name], value, err_msg=name)


def test_shares_on_the_device_round_as_numbers_do():
    net, step = make()
    images, labels = batch(0)
    shares = np.random.default_rng(0).random(3)
    logits = net(images)
    with_numbers = compute_losses(logits, labels, step.losses, shares=shares)
    with_tensor = compute_losses(logits, labels, step.losses, shares=paddle.to_tensor(shares))
    assert float(with_numbers[0]) == float(with_tensor[0])
    for one, other in zip(with_numbers[1].values(), with_tensor[1].values()):
        assert float(one) == float(other)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "optimizer", [SGD(1e-3, CLIP, momentum=0.9), SGD(), Adam(grad_clip_cfg=CLIP), AdamW()]
)
def test_the_step_reads_nothing_from_the_device(optimizer, count, monkeypatch):
    # Lovasz-Softmax is left out: on a CPU it is computed in NumPy.
    net, step = make(optimizer, (CrossEntropyLoss, DiceLoss))
    ema = ModelEMA(net)
    batches = [batch(k) for k in range(count)]
    step(batches)  # what is made once, such as momenta
    ema.update()

    def refuse(*_, **__):
        raise AssertionError("a value was read")

    with monkeypatch.context() as patch:
        kind = type(batches[0][0])
        for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__"):
            patch.setattr(kind, name, refuse)
        figures = [step.run(batches, wait=False) for _ in range(2)]
        ema.update()
        with pytest.raises(AssertionError, match="a value was read"):
            step.run(batches)  # the check sees what it should
    assert all(np.isfinite(f.read()[0]) for f in figures)


def test_the_journal_reads_at_its_interval_and_where_a_line_is_due():
    monitor = Monitor()
    journal = Journal(monitor, watch(), 3)
    seen = []
    for iteration in range(1, 9):
        journal.add(iteration, Figures(["a"], [[iteration, 2.0]]), 0.1, 0.5, 1.0)
        seen.append(len(monitor.told))
    assert seen == [0, 0, 3, 4, 4, 4, 7, 8]
    journal.read()  # nothing waits
    assert [told[0] for told in monitor.told] == list(range(1, 9))
    assert monitor.told[1] == (2, 2.0, {"a": 2.0}, 0.1, 0.5, 1.0)
    assert monitor.told[2][-1] == 1.25  # the wait is computing time of the last


def test_the_first_bad_iteration_is_named_and_those_before_it_are_told():
    net, step = make()
    monitor = Monitor()
    journal = Journal(monitor, watch(), 10)

    def explain(error):
        return NonFiniteLoss(f"iteration {iteration}: {error}.")

    for iteration in (1, 2):
        images, labels = batch(iteration)
        if iteration == 2:
            images = images * float("nan")
        bound = explain if iteration == 2 else None
        journal.add(iteration, step.run([(images, labels)], bound, wait=False), 0.1, 0.0, 0.0)
    images, labels = batch(3)
    journal.add(3, step.run([(images, labels)], wait=False), 0.1, 0.0, 0.0)
    with pytest.raises(NonFiniteLoss) as caught:
        journal.read()
    text = str(caught.value)
    assert text.startswith("iteration 2: the loss is nan (CrossEntropyLoss nan")
    assert "after iteration 3 (--loss_interval 10)" in text
    assert [told[0] for told in monitor.told] == [1]
    assert np.isnan(net.body[2].weight.numpy()).any()  # which is why nothing may be saved


class WithAnother(Ranks):
    """Two ranks, of which the other gives nothing."""

    def __init__(self):
        super().__init__(0, 2)

    def sum(self, values):
        return np.asarray(values, np.float64).reshape(-1)

    def gather(self, value):
        return [value, None]

    def sum_gradients(self, parameters, count=None):
        pass


def test_several_ranks_agree_before_the_weights_move():
    _, step = make()
    late, late_step = make()
    late_step.ranks = WithAnother()
    assert late_step.run([batch(0)], wait=False).read() == step([batch(0)])
    images, labels = batch(1)
    before = weights(late)
    with pytest.raises(NonFiniteLoss, match="nan"):
        late_step.run([(images * float("nan"), labels)], wait=False)
    for name, value in before.items():
        if not name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(weights(late)[name], value, err_msg=name)


def test_gradients_are_released():
    net, step = make()
    step([batch(0)])
    assert all(p.grad is None for p in net.parameters() if not p.stop_gradient)

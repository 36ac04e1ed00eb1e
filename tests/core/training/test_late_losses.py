# SPDX-License-Identifier: Apache-2.0
"""Losses that are read later: the same numbers, no waiting in the step, nothing bad is kept."""

import dataclasses
import types

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.ranks import Ranks
from paddleseg_deeplab.core.training.gradients import square_sum
from paddleseg_deeplab.core.training.late_losses import Iteration, Journal, StepResult, read_all
from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.core.training.watch.watcher import Watcher
from paddleseg_deeplab.models import CrossEntropyLoss, DiceLoss, LovaszSoftmaxLoss, MixedLoss
from paddleseg_deeplab.models.losses.total import compute_losses
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


def make(optimizer=None, parts=(CrossEntropyLoss, DiceLoss, LovaszSoftmaxLoss), **how):
    net = Net()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, 2, 0.5)
    optimizer = (optimizer or SGD(1e-3, momentum=0.9))(net, scheduler)
    loss = MixedLoss([part() for part in parts], [0.5] * len(parts))
    return net, TrainStep(net, optimizer, {"types": [loss], "coef": [1.0]}, **how)


def weights(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


FOURTH = Schedule(iters=100, log_iters=4)  # a line is due at every fourth iteration


class Monitor(Watcher):
    """Keeps what it is told."""

    def __init__(self):
        self.reports = []

    def after_iteration(self, report):
        self.reports.append(dataclasses.astuple(report))


def watch():
    return types.SimpleNamespace(lap=lambda: 0.25)


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_weights_and_numbers(count):
    iterations = [[batch(10 * i + k, void=k) for k in range(count)] for i in range(3)]
    net, step = make()
    expected = [step(batches) for batches in iterations]
    late, late_step = make(reads_at_once=False)
    results = [late_step.run(batches) for batches in iterations]
    assert all(isinstance(result.vector, paddle.Tensor) for result in results)
    values = read_all(results)
    found = [result.checked(value) for result, value in zip(results, values)]
    assert found == expected  # each bit of each number
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
    parts = (CrossEntropyLoss, DiceLoss)
    net, step = make(optimizer, parts, reads_at_once=False)
    at_once = make(optimizer, parts, reads_at_once=True)[1]
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
        results = [step.run(batches) for _ in range(2)]
        ema.update()
        with pytest.raises(AssertionError, match="a value was read"):
            at_once.run(batches)  # the check sees what it should
    assert all(np.isfinite(result.read()[0]) for result in results)


def test_one_wait_reads_what_ten_iterations_left(monkeypatch):
    step = make(reads_at_once=False, parts=(CrossEntropyLoss,))[1]
    waiting = [step.run([batch(k)]) for k in range(10)]
    reads, numpy = [], paddle.Tensor.numpy
    monkeypatch.setattr(paddle.Tensor, "numpy", lambda t, *a: reads.append(t.shape) or numpy(t, *a))
    assert len(read_all(waiting)) == 10
    assert reads == [[10, 3]]


def test_the_journal_reads_where_a_line_is_due_and_when_asked():
    monitor = Monitor()
    journal = Journal([monitor], FOURTH, watch())
    seen = []
    for iteration in range(1, 7):
        vector = paddle.to_tensor([iteration, 2.0, 1.0], "float64")
        journal.add(Iteration(iteration, StepResult(["a"], vector), 0.1, 0.5, 1.0))
        seen.append(len(monitor.reports))
    assert seen == [0, 0, 0, 4, 4, 4]
    journal.read()
    journal.read()  # nothing waits
    assert [report[0] for report in monitor.reports] == list(range(1, 7))
    assert monitor.reports[1] == (2, 2.0, {"a": 2.0}, 0.1, 0.5, 1.0)
    assert monitor.reports[3][-1] == 1.25  # the wait is computing time of the last


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_first_bad_iteration_is_named_and_those_before_it_are_told(what):
    monitor = Monitor()
    journal = Journal([monitor], FOURTH, watch())

    def explain(error):
        return NonFiniteLoss(f"iteration {bad}: {error}.")

    bad = 2
    for iteration in (1, 2, 3):
        vector = [1.0, 1.0, 4.0]
        if iteration >= bad:
            vector[0 if what == "loss" else 2] = float("nan")
        bound = explain if iteration == bad else None
        result = StepResult(["a"], paddle.to_tensor(vector, "float64"), bound)
        journal.add(Iteration(iteration, result, 0.1, 0.0, 0.0))
    with pytest.raises(NonFiniteLoss) as caught:
        journal.read()
    text = str(caught.value)
    expected = "the loss is nan (a 1)" if what == "loss" else "the gradient is not finite"
    assert text.startswith(f"iteration 2: {expected}")
    assert "after iteration 3: the weights have moved since iteration 2" in text
    assert [report[0] for report in monitor.reports] == [1]


def masked_by_relu(net):
    """Paddle's ReLU on a CPU makes 0 of NaN, so that the loss does not show what is wrong."""
    conv, norm, last = net.body
    net.body = nn.Sequential(conv, norm, nn.ReLU(), last)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_that_is_not_finite_moves_nothing(value, count):
    net, step = make(parts=(CrossEntropyLoss,))
    masked_by_relu(net)
    step([batch(0)] * count)
    before, state = weights(net), step.optimizer.state_dict()
    state = {k: v.numpy() for k, v in state.items() if isinstance(v, paddle.Tensor)}
    images, labels = batch(1)
    images[0, 0, 0, 0] = value
    with pytest.raises(NonFiniteLoss, match=r"gradient is not finite.*body\.0\.weight"):
        step([batch(2)] * (count - 1) + [(images, labels)])
    for name, old in before.items():
        if not name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(weights(net)[name], old, err_msg=name)
    for name, old in state.items():
        np.testing.assert_array_equal(step.optimizer.state_dict()[name].numpy(), old, err_msg=name)
    assert all(p.grad is None for p in net.parameters())


def test_the_square_sum_is_the_gradient_s():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in [(3, 4), (5,), (1, 2, 3)]]
    expected = sum((a.astype("float64") ** 2).sum() for a in arrays)
    tensors = [paddle.to_tensor(a) for a in arrays]
    # float32 sums of 23 squares
    assert float(square_sum(tensors)) == pytest.approx(expected, rel=1e-6)
    for value in (float("nan"), float("inf"), -float("inf"), 1e25):
        tensors[1][2] = value
        assert not np.isfinite(float(square_sum(tensors)))


class WithAnother(Ranks):
    """Two ranks over a device, of which the other gives nothing."""

    def __init__(self):
        super().__init__(0, 2, on_host=False)
        self.reads = 0

    def sum_in_place(self, tensor, wait=True):
        return None if wait else types.SimpleNamespace(wait=lambda: None)

    def gather(self, value):
        return [value, None]

    def agree(self, error=None, values=()):
        self.reads += 1
        return super().agree(error, values)


def test_several_ranks_agree_once_an_iteration_and_before_the_weights_move():
    _, step = make()
    ranks = WithAnother()
    late, late_step = make(ranks=ranks, reads_at_once=False)
    assert late_step.run([batch(0)]).read() == step([batch(0)])
    assert ranks.reads == 1
    images, labels = batch(1)
    before = weights(late)
    with pytest.raises(NonFiniteLoss, match="nan"):
        late_step.run([(images * float("nan"), labels)])
    assert ranks.reads == 2
    for name, value in before.items():
        if not name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(weights(late)[name], value, err_msg=name)


@pytest.mark.parametrize("count", [1, 2])
def test_several_ranks_read_once_from_a_device(count, monkeypatch):
    """What they agree on; Lovasz-Softmax is left out, since a CPU computes it in NumPy."""
    step = make(None, (CrossEntropyLoss, DiceLoss), ranks=WithAnother(), reads_at_once=False)[1]
    batches = [batch(k) for k in range(count)]
    step.run(batches)
    reads = []
    for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__"):
        plain = getattr(paddle.Tensor, name)
        monkeypatch.setattr(
            paddle.Tensor,
            name,
            lambda tensor, *args, _plain=plain, _name=name: (
                reads.append(_name) or _plain(tensor, *args)
            ),
        )
    result = step.run(batches)
    assert reads == ["numpy"]
    result.read()
    assert reads == ["numpy"]  # it is in host memory already


@pytest.mark.parametrize("signal", [0, 2, 15])
def test_a_stop_signal_comes_back_with_the_result(signal):
    for ranks in (Ranks(), WithAnother()):
        _, step = make(ranks=ranks, reads_at_once=ranks.size == 1)
        assert step.run([batch(0)], signal=lambda: signal).signal == signal


@pytest.mark.parametrize("where", ["reading", "network", "loss"])
def test_a_rank_at_fault_on_a_device_ends_by_itself(where, monkeypatch):
    """Its network may have exchanges of its own, which the others wait in."""
    ranks = WithAnother()
    net, step = make(ranks=ranks, reads_at_once=False)
    error = ValueError("what went wrong")

    def fails(*_):
        raise error

    if where == "network":
        step._network = fails
    if where == "loss":
        monkeypatch.setattr(step.losses["types"][0], "forward", fails)
    fault = error if where == "reading" else None
    with pytest.raises(ValueError, match="what went wrong") as caught:
        step.run([batch(0)], fault=fault)
    assert caught.value.unagreed
    assert ranks.reads == 0
    assert all(p.grad is None for p in net.parameters())

# SPDX-License-Identifier: Apache-2.0
"""One kernel for all parameters (`use_multi_tensor`) updates as one for each does."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.progress import Progress
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.optimizers.optimizer import SGD, Adam, AdamW, Momentum
from paddleseg_deeplab.utils.errors import UserError


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.body = nn.Sequential(nn.Conv2D(3, 6, 3, padding=1), nn.BatchNorm2D(6))
        self.head = nn.Conv2D(6, 4, 1)
        self.other = nn.Conv2D(6, 4, 1)
        self.use_other = False

    def forward(self, x):
        y = self.body(x)
        return [self.head(y) + self.other(y) if self.use_other else self.head(y)]


def make(kind=SGD, **settings):
    groups = [{"name": "head", "lr_mult": 10.0, "weight_decay_mult": 0.5}]
    clip = {"name": "ClipGradByGlobalNorm", "clip_norm": 0.1}
    momentum = {} if kind is Adam else {"momentum": 0.9}
    settings = {**momentum, "custom_cfg": groups, "grad_clip_cfg": clip, **settings}
    net = Net()
    net.train()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, 2, 0.5)
    optimizer = kind(weight_decay=1e-2, no_decay_bias_norm=True, **settings)(net, scheduler)
    return net, TrainStep(net, optimizer, {"types": [CrossEntropyLoss()], "coef": [1.0]})


def batch(seed):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((2, 3, 6, 5)).astype("float32")
    return [(paddle.to_tensor(images), paddle.to_tensor(rng.integers(0, 4, (2, 6, 5))))]


def assert_same(net, other):
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), value.numpy(), name)


@pytest.mark.parametrize("kind", [SGD, Momentum])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_same_bits(kind, nesterov):
    net, step = make(kind, use_nesterov=nesterov)
    fused, fused_step = make(kind, use_nesterov=nesterov, use_multi_tensor=True)
    for seed in range(4):
        assert step(batch(seed)) == fused_step(batch(seed))
    assert_same(net, fused)


def adam_run(fused, make_lr, clip, groups):
    """Parameters before and after 20 updates by Adam, from gradients that are the same each time.

    (Gradients of a network would not do: where they are 0 but for rounding, as those of a bias in
    front of batch norm, Adam makes steps of full length from the rounding.)
    """
    rng = np.random.default_rng(0)
    net = nn.LayerList([nn.Linear(3 + i, 4) for i in range(6)])
    for p in net.parameters():
        p.set_value(rng.standard_normal(p.shape).astype("float32"))
    before = [p.numpy() for p in net.parameters()]
    lr = make_lr()
    optimizer = Adam(
        weight_decay=1e-2,
        grad_clip_cfg=clip,
        custom_cfg=groups,
        no_decay_bias_norm=bool(groups),
        use_multi_tensor=fused,
    )(net, lr)
    for _ in range(20):
        for p in net.parameters():
            p.grad = paddle.to_tensor(rng.standard_normal(p.shape).astype("float32"))
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        if not isinstance(lr, float):
            lr.step()
    return before, [p.numpy() for p in net.parameters()]


GROUPS = [{"name": "0.", "lr_mult": 0.0}, {"name": "1.", "lr_mult": 10.0, "weight_decay_mult": 5.0}]


@pytest.mark.parametrize("clip", [None, {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0}])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize(
    "make_lr", [lambda: 0.01, lambda: paddle.optimizer.lr.PolynomialDecay(0.01, 40, 0.0, 0.9)]
)
def test_adam_is_the_same_up_to_rounding(make_lr, groups, clip):
    """20 updates of numbers around 1, each rounded in another order: within 20 of float32's
    steps at 4, 5e-7 each. A factor that is lost moves some of them by more than 0.01."""
    (before, plain), (_, fused) = (adam_run(way, make_lr, clip, groups) for way in (False, True))
    for one, other in zip(plain, fused):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    moved = [np.abs(one - old).max() for one, old in zip(plain, before)]
    assert max(moved) > 0.02
    assert (moved[0] == 0) == (groups is not None)


def test_adamw_has_none():
    with pytest.raises(TypeError, match="use_multi_tensor"):
        AdamW(use_multi_tensor=True)


@pytest.mark.parametrize(("kind", "ways"), [(SGD, (True, False)), (Adam, (True,))])
def test_a_resumed_run_goes_on_bit_for_bit(kind, ways, tmp_path):
    net, step = make(kind, use_multi_tensor=True)
    for seed in range(2):
        step(batch(seed))
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(2))
    runs = [make(kind, use_multi_tensor=fused) for fused in ways]
    for other, other_step in runs:
        checkpoint.resume(folder, other, other_step)
    for seed in (2, 3):
        step(batch(seed))
    for other, other_step in runs:
        for seed in (2, 3):
            other_step(batch(seed))
        assert_same(net, other)


def test_gradients_that_come_and_go_are_refused():
    net, step = make(use_multi_tensor=True)
    step(batch(0))
    net.use_other = True
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match="use_multi_tensor"):
        step(batch(1))
    for name, value in net.named_parameters():
        if not name.endswith(("_mean", "_variance")):
            np.testing.assert_array_equal(value.numpy(), before[name])
    net, step = make()  # without, it is no matter
    step(batch(0))
    net.use_other = True
    step(batch(1))


def test_it_needs_momentum():
    with pytest.raises(UserError, match="use_multi_tensor needs momentum"):
        SGD(use_multi_tensor=True)


def test_another_paddle_that_does_not_say_so_is_refused(monkeypatch):
    class Silent(paddle.optimizer.Momentum):
        def __init__(self, **options):
            super().__init__(**options)
            del self._use_multi_tensor

    monkeypatch.setattr(paddle.optimizer, "Momentum", Silent)
    make()
    with pytest.raises(UserError, match=r"use_multi_tensor needs .*Paddle \S+ lacks\. Leave"):
        make(use_multi_tensor=True)

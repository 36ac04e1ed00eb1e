# SPDX-License-Identifier: Apache-2.0
"""Optimizers against their formulas in NumPy float64.

Five steps in float32 on numbers near 1: tolerance 2e-6 absolute (a few rounding errors). Adam's
1 - beta2^t starts at 0.001, where float32 has 6e-5 relative error, halved by the root, on a way of
at most 5: 1.5e-4. An ignored multiplier changes the result by more than 1e-3.
"""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.optimizers import SGD, Adam, AdamW, Momentum
from paddleseg_deeplab.utils.errors import UserError

LR, DECAY, STEPS = 0.1, 0.05, 5


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2D(1, 2, 1), nn.BatchNorm2D(2))
        self.head = nn.Linear(2, 3)


@pytest.fixture
def net():
    model = Net()
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.set_value(rng.normal(size=p.shape).astype("float32"))
    return model


def run(model, optimizer, steps=STEPS):
    """Steps with fixed gradients (loss = sum of weight x constant).

    Returns start, gradients and end of the trainable parameters, by name.
    """
    rng = np.random.default_rng(1)
    named = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
    grads = {n: rng.normal(size=p.shape) for n, p in named.items()}
    start = {n: p.numpy().astype("float64") for n, p in named.items()}
    for _ in range(steps):
        loss = sum(
            (p * paddle.to_tensor(grads[n].astype("float32"))).sum() for n, p in named.items()
        )
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    end = {n: p.numpy().astype("float64") for n, p in named.items()}
    return start, grads, end


def sgd(w, g, lr, decay):
    for _ in range(STEPS):
        w = w - lr * (g + decay * w)
    return w


def momentum(w, g, lr, decay, nesterov=False):
    v = 0.0
    for _ in range(STEPS):
        d = g + decay * w
        v = 0.9 * v + d
        w = w - lr * (d + 0.9 * v if nesterov else v)
    return w


def adam(w, g, lr, decay, decoupled=False):
    m = v = 0.0
    for t in range(1, STEPS + 1):
        d = g + (0.0 if decoupled else decay * w)
        m = 0.9 * m + 0.1 * d
        v = 0.999 * v + 0.001 * d * d
        if decoupled:
            w = w - lr * decay * w
        w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


MAKERS = {
    "sgd": (lambda **k: SGD(**k), sgd),
    "sgd with momentum": (lambda **k: SGD(momentum=0.9, **k), momentum),
    "momentum": (lambda **k: Momentum(**k), momentum),
    "nesterov": (
        lambda **k: Momentum(use_nesterov=True, **k),
        lambda *a: momentum(*a, nesterov=True),
    ),
    "adam": (lambda **k: Adam(**k), adam),
    "adamw": (lambda **k: AdamW(**k), lambda *a: adam(*a, decoupled=True)),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def check(model, make, formula, multipliers, **settings):
    """multipliers: parameter name -> (lr factor, decay factor)."""
    optimizer = make(weight_decay=DECAY, **settings)(model, LR)
    start, grads, end = run(model, optimizer)
    for name in start:
        lr_mult, decay_mult = multipliers(name)
        expected = formula(start[name], grads[name], LR * lr_mult, DECAY * decay_mult)
        atol = 1.5e-4 if "Adam" in type(optimizer).__name__ else 2e-6
        np.testing.assert_allclose(end[name], expected, atol=atol, rtol=0, err_msg=name)


@KINDS
def test_formula(net, kind):
    check(net, *MAKERS[kind], lambda name: (1.0, 1.0))


@KINDS
def test_group_multipliers_act(net, kind):
    groups = [
        {"name": "head.bias", "lr_mult": 2.0, "weight_decay_mult": 0.0},
        {"name": "head", "lr_mult": 10.0},
        {"name": "backbone.0", "weight_decay_mult": 3.0},
    ]

    def multipliers(name):
        if name == "head.bias":
            return 2.0, 0.0
        if name.startswith("head"):
            return 10.0, 1.0
        return (1.0, 3.0) if name.startswith("backbone.0") else (1.0, 1.0)

    check(net, *MAKERS[kind], multipliers, custom_cfg=groups)


@KINDS
def test_patterns_fit_the_full_name(net, kind):
    """V2's three groups: the classifier's weights, its biases without decay, and the rest."""
    groups = [
        {"name": "head*.weight", "lr_mult": 2.0},
        {"name": "head*.bias", "lr_mult": 4.0, "weight_decay_mult": 0.0},
        {"name": "*.1.*", "lr_mult": 0.5},
    ]

    def multipliers(name):
        if name.startswith("head"):
            return (2.0, 1.0) if name.endswith("weight") else (4.0, 0.0)
        return (0.5 if name.startswith("backbone.1.") else 1.0), 1.0

    check(net, *MAKERS[kind], multipliers, custom_cfg=groups)


@KINDS
def test_no_decay_for_biases_and_norms(net, kind):
    def multipliers(name):
        return 1.0, 1.0 if name in ("backbone.0.weight", "head.weight") else 0.0

    check(net, *MAKERS[kind], multipliers, no_decay_bias_norm=True)


def test_group_decay_wins_over_no_decay(net):
    groups = [{"name": "head.bias", "weight_decay_mult": 1.0}]

    def multipliers(name):
        decays = name in ("backbone.0.weight", "head.weight", "head.bias")
        return 1.0, 1.0 if decays else 0.0

    check(net, *MAKERS["sgd"], multipliers, no_decay_bias_norm=True, custom_cfg=groups)


def test_a_second_optimizer_starts_afresh(net):
    SGD(DECAY, custom_cfg=[{"name": "head", "lr_mult": 10.0, "weight_decay_mult": 0.0}])(net, LR)
    check(net, *MAKERS["sgd"], lambda name: (1.0, 1.0))


def test_layers_own_factor_is_kept():
    model = nn.Linear(2, 2, weight_attr=paddle.ParamAttr(learning_rate=3.0))
    groups = [{"name": "weight", "lr_mult": 2.0}]
    check(model, *MAKERS["sgd"], lambda n: (6.0 if n == "weight" else 1.0, 1.0), custom_cfg=groups)


def test_global_norm_spans_all_groups(net):
    """With groups as dicts, Paddle would clip each by its own norm."""
    groups = [{"name": "head", "lr_mult": 10.0}]
    clip = {"name": "ClipGradByGlobalNorm", "clip_norm": 0.5}
    optimizer = SGD(grad_clip_cfg=clip, custom_cfg=groups)(net, LR)
    start, grads, end = run(net, optimizer, steps=1)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert norm > 1.0
    for name in start:
        lr = LR * (10.0 if name.startswith("head") else 1.0)
        expected = start[name] - lr * grads[name] * 0.5 / norm
        np.testing.assert_allclose(end[name], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("clip", "change"),
    [
        ({"name": "ClipGradByNorm", "clip_norm": 0.5}, lambda g: g * 0.5 / np.sqrt((g**2).sum())),
        ({"name": "ClipGradByValue", "max": 0.1}, lambda g: np.clip(g, -0.1, 0.1)),
        ({"name": "ClipGradByValue", "max": 0.1, "min": 0.0}, lambda g: np.clip(g, 0.0, 0.1)),
    ],
)
def test_other_clips(clip, change):
    model = nn.Linear(4, 5, bias_attr=False)
    start, grads, end = run(model, SGD(grad_clip_cfg=clip)(model, 1.0), steps=1)
    expected = start["weight"] - change(grads["weight"])
    np.testing.assert_allclose(end["weight"], expected, atol=2e-6)


def test_frozen_parameters_stay_out(net):
    net.head.weight.stop_gradient = True
    before = net.head.weight.numpy().copy()
    start, _, end = run(net, AdamW(weight_decay=0.5)(net, LR))
    np.testing.assert_array_equal(before, net.head.weight.numpy())
    assert (start["head.bias"] != end["head.bias"]).all()


def test_scheduler_drives_the_rate(net):
    scheduler = paddle.optimizer.lr.StepDecay(1.0, step_size=1, gamma=0.5)
    optimizer = Momentum()(net, scheduler)
    assert optimizer.get_lr() == 1.0
    scheduler.step()
    assert optimizer.get_lr() == 0.5


def test_int_rate(net):
    assert SGD()(net, 1).get_lr() == 1.0


def test_registered():
    for name in ("SGD", "Momentum", "Adam", "AdamW"):
        assert name in registry.OPTIMIZERS


def test_positions_are_paddlesegs():
    clip = {"name": "ClipGradByNorm", "clip_norm": 1.0}
    groups = [{"name": "x"}]
    assert SGD(0.1, clip, groups).weight_decay == 0.1
    assert Momentum(0.8, True, 0.1, clip, groups).custom_cfg == groups
    assert Adam(0.8, 0.9, 1e-6, False, 0.1, clip, groups).weight_decay == 0.1
    assert AdamW(0.8, 0.9, 1e-6, 0.1, False, clip, groups).weight_decay == 0.1


BAD = [
    ({"weight_decay": "4e-5"}, "4e-5.*with a point"),
    ({"weight_decay": -1.0}, "at least 0"),
    ({"momentum": 1.0}, "below 1"),
    ({"use_nesterov": True}, "needs momentum"),
    ({"grad_clip_cfg": {"name": "ClipNorm"}}, "ClipGradByGlobalNorm"),
    ({"grad_clip_cfg": {"name": "ClipGradByNorm", "norm": 1.0}}, "clip_norm"),
    ({"grad_clip_cfg": {"name": "ClipGradByNorm", "clip_norm": "1"}}, "number"),
    ({"custom_cfg": {"name": "head"}}, "list"),
    ({"custom_cfg": [{"lr_mult": 1.0}]}, "name"),
    ({"custom_cfg": [{"name": "head", "lr_mul": 1.0}]}, "Did you mean 'lr_mult'"),
    ({"custom_cfg": [{"name": "head", "lr_mult": -1.0}]}, "at least 0"),
]


@pytest.mark.parametrize(("settings", "text"), BAD)
def test_bad_settings(settings, text):
    with pytest.raises(UserError, match=text):
        SGD(**settings)


def test_group_that_fits_nothing_names_near_ones(net):
    with pytest.raises(UserError, match=r"'backbon3'.*Near: backbone"):
        SGD(custom_cfg=[{"name": "backbon3"}])(net, LR)
    with pytest.raises(UserError, match="already belongs to the group 'head'"):
        SGD(custom_cfg=[{"name": "head"}, {"name": "head.bias"}])(net, LR)
    # A pattern is of the full name, and bites where a part would not.
    with pytest.raises(UserError, match=r"'\*\.hed\*' fits no parameter's full name.*Near: head"):
        SGD(custom_cfg=[{"name": "*.hed*"}])(net, LR)
    with pytest.raises(UserError, match=r"'ead\.\*' fits no parameter's full name"):
        SGD(custom_cfg=[{"name": "ead.*"}])(net, LR)
    with pytest.raises(UserError, match=r"already belongs to the group '\*\.bias'"):
        SGD(custom_cfg=[{"name": "*.bias"}, {"name": "head.b*"}])(net, LR)


def test_group_of_frozen_parameters_is_no_error(net):
    net.head.weight.stop_gradient = True
    net.head.bias.stop_gradient = True
    SGD(custom_cfg=[{"name": "head"}])(net, LR)


def test_nothing_to_train(net):
    for p in net.parameters():
        p.stop_gradient = True
    with pytest.raises(UserError, match="no trainable parameter"):
        SGD()(net, LR)


def test_factors_of_adamw_are_not_silently_left_out_by_another_paddle(net, monkeypatch):
    monkeypatch.delattr(paddle.optimizer.AdamW, "_append_optimize_op")
    with pytest.raises(UserError, match=r"AdamW with weight_decay_mult .*Paddle \S+ lacks\. Leave"):
        AdamW(no_decay_bias_norm=True)(net, LR)
    with pytest.raises(UserError, match="AdamW with weight_decay_mult"):
        AdamW(custom_cfg=[{"name": "head", "weight_decay_mult": 0.5}])(net, LR)
    AdamW()(net, LR)  # needs none of it

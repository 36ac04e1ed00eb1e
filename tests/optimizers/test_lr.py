# SPDX-License-Identifier: Apache-2.0
"""Learning rates against literal lists and closed forms (float64: exact up to 1e-12)."""

import math

import pytest

from paddleseg_deeplab import registry
from paddleseg_deeplab.optimizers import build_lr_scheduler
from paddleseg_deeplab.utils.errors import UserError


def rates(cfg, iters, count):
    scheduler = build_lr_scheduler(cfg, iters)
    found = []
    for _ in range(count):
        found.append(scheduler.get_lr() if not found else scheduler())
        scheduler.step()
    return found


def poly(t, base=0.01, steps=10, end=0.0, power=0.9):
    return (base - end) * (1 - min(t, steps) / steps) ** power + end


CASES = [
    (
        {"type": "PolynomialDecay", "learning_rate": 1.0, "power": 1.0},
        4,
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    ),
    (
        {"type": "PolynomialDecay", "learning_rate": 0.01},
        10,
        [poly(t) for t in range(10)] + [0.0, 0.0],
    ),
    (
        {"type": "PolynomialDecay", "learning_rate": 0.01, "end_lr": 0.001, "decay_steps": 5},
        100,
        [poly(t, steps=5, end=0.001) for t in range(5)] + [0.001, 0.001],
    ),
    # Updates every 4 iterations; past the end (10) it stays at the value of t = 8.
    (
        {"type": "PolynomialDecay", "learning_rate": 0.01, "step_size": 4},
        10,
        [poly(0)] * 4 + [poly(4)] * 4 + [poly(8)] * 5,
    ),
    (
        {"type": "CosineAnnealingDecay", "learning_rate": 2.0},
        4,
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0],
    ),
    (
        {"type": "CosineAnnealingDecay", "learning_rate": 2.0, "T_max": 2, "eta_min": 1.0},
        100,
        [2.0, 1.5, 1.0],
    ),
    ({"type": "ConstantLR", "learning_rate": 0.5}, 3, [0.5] * 5),
    (
        {"type": "StepDecay", "learning_rate": 1.0, "step_size": 2, "gamma": 0.5},
        9,
        [1.0, 1.0, 0.5, 0.5, 0.25],
    ),
    (
        {"type": "MultiStepDecay", "learning_rate": 1.0, "milestones": [1, 3]},
        9,
        [1.0, 0.1, 0.1, 0.01],
    ),
    (
        {"type": "PiecewiseDecay", "boundaries": [2, 3], "values": [0.3, 0.2, 0.1]},
        9,
        [0.3, 0.3, 0.2, 0.1, 0.1],
    ),
    # Any other class of paddle.optimizer.lr.
    ({"type": "ExponentialDecay", "learning_rate": 1.0, "gamma": 0.5}, 9, [1.0, 0.5, 0.25]),
    # Warm-up of 2, then poly over the remaining 4 of 6.
    (
        {
            "type": "PolynomialDecay",
            "learning_rate": 1.0,
            "power": 1.0,
            "warmup_iters": 2,
            "warmup_start_lr": 0.2,
        },
        6,
        [0.2, 0.6, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    ),
    (
        {"type": "ConstantLR", "learning_rate": 0.4, "warmup_iters": 4},
        9,
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.4],
    ),
    (
        {
            "type": "PiecewiseDecay",
            "boundaries": [1],
            "values": [0.4, 0.1],
            "warmup_iters": 2,
        },
        9,
        [0.0, 0.2, 0.4, 0.1],
    ),
    (
        {"type": "CosineAnnealingDecay", "learning_rate": 2.0, "warmup_iters": 1},
        3,
        [0.0, 2.0, 1.0, 0.0],
    ),
    ({"type": "ConstantLR", "learning_rate": 0.4, "warmup_iters": 0}, 9, [0.4, 0.4]),
]


@pytest.mark.parametrize(("cfg", "iters", "expected"), CASES)
def test_rates(cfg, iters, expected):
    before = dict(cfg)
    assert rates(cfg, iters, len(expected)) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert cfg == before


def test_cosine_does_not_drift():
    cfg = {"type": "CosineAnnealingDecay", "learning_rate": 0.1}
    found = rates(cfg, 20000, 20001)
    expected = [0.05 * (1 + math.cos(math.pi * t / 20000)) for t in range(20001)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("cfg", [case[0] for case in CASES])
def test_resume_goes_on(cfg):
    """A scheduler that loads the state after 3 steps gives the same rates as one that never
    stopped."""
    one = build_lr_scheduler(cfg, 8)
    for _ in range(3):
        one.step()
    two = build_lr_scheduler(cfg, 8)
    two.set_state_dict(one.state_dict())
    assert two() == one()
    for _ in range(5):
        one.step()
        two.step()
        assert two() == pytest.approx(one(), rel=1e-12)


BAD = [
    ({"learning_rate": 0.1}, 9, "type"),
    ({"type": "PolynomialDecy", "learning_rate": 0.1}, 9, "Did you mean 'PolynomialDecay'"),
    ({"type": "LRScheduler", "learning_rate": 0.1}, 9, "unknown"),
    ({"type": "PolynomialDecay", "learning_rate": 0.1, "powr": 1.0}, 9, "Did you mean 'power'"),
    ({"type": "PolynomialDecay", "learning_rate": "1e-2"}, 9, "1.0e-2"),
    ({"type": "PolynomialDecay", "learning_rate": -0.1}, 9, ">= 0"),
    ({"type": "PolynomialDecay"}, 9, "learning_rate"),
    ({"type": "PolynomialDecay", "learning_rate": 0.1, "step_size": 0}, 9, "step_size"),
    ({"type": "PolynomialDecay", "learning_rate": 0.1, "decay_steps": -3}, 9, "decay_steps"),
    ({"type": "PolynomialDecay", "learning_rate": 0.1}, 0, "iters"),
    ({"type": "ConstantLR", "learning_rate": 0.1, "warmup_iters": 1.5}, 9, "warmup_iters"),
    (
        {"type": "ConstantLR", "learning_rate": 0.1, "warmup_iters": 2, "warmup_start_lr": 0.2},
        9,
        "below the first rate",
    ),
    (["PolynomialDecay"], 9, "section"),
]


@pytest.mark.parametrize(("cfg", "iters", "text"), BAD)
def test_bad_configs(cfg, iters, text):
    with pytest.raises(UserError, match=text):
        build_lr_scheduler(cfg, iters)


def test_registered():
    for name in ("PolynomialDecay", "CosineAnnealingDecay", "PiecewiseDecay", "StepDecay"):
        assert name in registry.LR_SCHEDULERS

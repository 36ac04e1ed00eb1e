# SPDX-License-Identifier: Apache-2.0
"""Learning rates per iteration: every scheduler here is stepped once after each update."""

import inspect
import math
import numbers
from typing import Any

import paddle.optimizer.lr as paddle_lr

from paddleseg_deeplab import registry
from paddleseg_deeplab.utils.errors import UserError, did_you_mean

# Classes of paddle.optimizer.lr that a config cannot use: they need a function, the loss, or
# another scheduler.
_NOT_BY_CONFIG = ("LRScheduler", "LambdaDecay", "MultiplicativeDecay", "ReduceOnPlateau")


@registry.LR_SCHEDULERS.add_component
class PolynomialDecay(paddle_lr.PolynomialDecay):
    """(learning_rate - end_lr) (1 - t / decay_steps)^power + end_lr, then end_lr.

    Poly policy of the DeepLab papers (V2, section 4.1.1; power 0.9). The defaults of end_lr and
    power are the papers'; Paddle's own are 0.0001 and 1.0.

    Args:
        learning_rate (float): Rate at t = 0.
        decay_steps (int): Iterations until end_lr. :func:`build_lr_scheduler` fills it in.
        end_lr (float): Last rate.
        power (float): Exponent, above 0.
        cycle (bool): Start over with a longer period instead of staying at end_lr.
        last_epoch (int), verbose (bool): Paddle's.
        step_size (int): The rate changes every step_size iterations (kazuto1011's DeepLab uses
            10); t is rounded down to a multiple of it. Past decay_steps it stays as it was.
    """

    last_epoch: int

    def __init__(
        self,
        learning_rate: float,
        decay_steps: int,
        end_lr: float = 0.0,
        power: float = 0.9,
        cycle: bool = False,
        last_epoch: int = -1,
        verbose: bool = False,
        *,
        step_size: int = 1,
    ) -> None:
        _check_count("step_size", step_size)
        self.step_size = step_size
        super().__init__(learning_rate, decay_steps, end_lr, power, cycle, last_epoch, verbose)

    def get_lr(self) -> float:
        if self.step_size == 1:
            return super().get_lr()
        t = self.last_epoch
        self.last_epoch = (t if self.cycle else min(t, self.decay_steps)) // self.step_size
        self.last_epoch *= self.step_size
        try:
            return super().get_lr()
        finally:
            self.last_epoch = t


@registry.LR_SCHEDULERS.add_component
class CosineAnnealingDecay(paddle_lr.CosineAnnealingDecay):
    """eta_min + (learning_rate - eta_min) (1 + cos(pi t / T_max)) / 2.

    Past T_max it rises again, as Paddle's. The closed form replaces Paddle's recursion, whose
    rounding errors add up over tens of thousands of iterations.

    Args:
        learning_rate (float): Rate at t = 0.
        T_max (int): Half a period, iterations. :func:`build_lr_scheduler` fills it in.
        eta_min (float): Lowest rate.
        last_epoch (int), verbose (bool): Paddle's.
    """

    def get_lr(self) -> float:
        cosine = math.cos(math.pi * self.last_epoch / self.T_max)
        return self.eta_min + (self.base_lr - self.eta_min) * (1.0 + cosine) / 2.0


@registry.LR_SCHEDULERS.add_component
class ConstantLR(paddle_lr.LRScheduler):
    """Always ``learning_rate`` (float)."""

    def get_lr(self) -> float:
        return self.base_lr


registry.LR_SCHEDULERS.add_component(
    [paddle_lr.PiecewiseDecay, paddle_lr.StepDecay, paddle_lr.MultiStepDecay]
)


def build_lr_scheduler(cfg: dict[str, Any], iters: int) -> paddle_lr.LRScheduler:
    """Makes the scheduler of a config's ``lr_scheduler`` section.

    ``type`` names a registered scheduler or any other class of ``paddle.optimizer.lr`` that plain
    numbers can build; the rest of the keys are its parameters. ``warmup_iters`` and
    ``warmup_start_lr`` (default 0; PaddleSeg demands it) put a linear rise before it, from
    warmup_start_lr to the scheduler's first rate. PolynomialDecay's ``decay_steps`` and
    CosineAnnealingDecay's ``T_max``, where left out, are the iterations that remain after the
    warm-up, so training ends with the schedule.

    Args:
        cfg (dict): The section; not changed.
        iters (int): Iterations of the training.

    Returns:
        paddle.optimizer.lr.LRScheduler: to be stepped once an iteration.

    Raises:
        UserError: unknown type or key, a value of the wrong kind.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise UserError(f"lr_scheduler must be a section with a type, not {cfg!r}.")
    _check_count("iters", iters)
    options = dict(cfg)
    cls = _scheduler_class(options.pop("type"))
    warmup = options.pop("warmup_iters", 0)
    start = options.pop("warmup_start_lr", 0.0)
    if warmup != 0:
        _check_count("warmup_iters", warmup)
    _check_rate("warmup_start_lr", start)
    for key in ("learning_rate", "end_lr", "eta_min"):
        if key in options:
            _check_rate(key, options[key])
    for parent, key in ((PolynomialDecay, "decay_steps"), (CosineAnnealingDecay, "T_max")):
        if issubclass(cls, parent) and options.get(key) is None:
            options[key] = max(iters - warmup, 1)
    scheduler = _build(cls, options)
    if warmup == 0:
        return scheduler
    first = scheduler.last_lr
    if not first > start:
        raise UserError(
            f"lr_scheduler: warmup_start_lr {start} must be below the first rate, {first}."
        )
    return paddle_lr.LinearWarmup(
        learning_rate=scheduler, warmup_steps=warmup, start_lr=float(start), end_lr=first
    )


def _scheduler_class(name):
    if name in registry.LR_SCHEDULERS:
        return registry.LR_SCHEDULERS[name]
    others = {
        key: value
        for key, value in vars(paddle_lr).items()
        if inspect.isclass(value)
        and issubclass(value, paddle_lr.LRScheduler)
        and key not in _NOT_BY_CONFIG
    }
    if name in others:
        return others[name]
    known = sorted(set(registry.LR_SCHEDULERS.components_dict) | set(others))
    raise UserError(
        f"lr_scheduler: type {name!r} is unknown; known: {', '.join(known)}."
        + did_you_mean(name, known)
    )


def _build(cls, options):
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for key in options:
        if key not in known:
            raise UserError(
                f"lr_scheduler: unknown key {key!r} for {cls.__name__}, which takes "
                f"{', '.join(known)}." + did_you_mean(key, known)
            )
    try:
        return cls(**options)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"lr_scheduler: {cls.__name__} with {options}: {error}") from error


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"lr_scheduler: {name} must be a whole number above 0, not {value!r}.")


def _check_rate(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        # PyYAML reads 1e-2 as text; it wants 1.0e-2.
        hint = " Write it with a point, as in 1.0e-2." if isinstance(value, str) else ""
        raise UserError(f"lr_scheduler: {name} must be a number >= 0, not {value!r}.{hint}")

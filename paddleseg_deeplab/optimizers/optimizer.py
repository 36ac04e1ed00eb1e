# SPDX-License-Identifier: Apache-2.0
"""Optimizers by name, with settings per group of parameters.

Paddle clips groups given as dicts each by its own norm (paddle_quirks: clip_by_group). Here
all parameters stay in one list, and each parameter carries its learning rate factor
(``optimize_attr``) and its decay (``regularizer``), which Paddle's kernels honour one by one; so
``ClipGradByGlobalNorm`` sees the whole network. (A deviation from PaddleSeg, which passes groups.)
"""

import difflib
import fnmatch
import inspect
import math
import numbers
from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.regularizer import L2Decay

from paddleseg_deeplab import registry
from paddleseg_deeplab.utils.errors import UserError, did_you_mean
from paddleseg_deeplab.utils.logger import logger

_CLIPS = ("ClipGradByGlobalNorm", "ClipGradByNorm", "ClipGradByValue")
_GROUP_KEYS = ("name", "lr_mult", "weight_decay_mult")


def _check_number(name, value, low=None):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        # PyYAML reads 1e-4 as text; it wants 1.0e-4.
        hint = " Write it with a point, as in 1.0e-4." if isinstance(value, str) else ""
        raise UserError(f"optimizer: {name} must be a number, not {value!r}.{hint}")
    if low is not None and not low <= value < math.inf:
        raise UserError(f"optimizer: {name} must be at least {low} and finite, not {value!r}.")


class BaseOptimizer:
    """Settings of an optimizer; called with a model, it makes the Paddle optimizer.

    Args:
        weight_decay (float or None): L2 coefficient, added to the gradient after clipping
            (decoupled, learning rate x coefficient x weight, for AdamW).
        grad_clip_cfg (dict or None): ``name``: ClipGradByGlobalNorm or ClipGradByNorm with
            ``clip_norm``, or ClipGradByValue with ``max`` and perhaps ``min``.
        custom_cfg (list[dict] or None): Groups: ``name``, a part of the parameters' names (as in
            ``model.named_parameters()``), with ``lr_mult`` and ``weight_decay_mult``. With ``*``
            (any characters) in it, ``name`` is a pattern of the full name: ``head.*.bias``. The
            first entry that fits a parameter holds for it. (PaddleSeg has no patterns.)
        no_decay_bias_norm (bool): No decay for biases and normalisation weights (all parameters
            with fewer than two dimensions). A group's ``weight_decay_mult`` wins over it.

    Raises:
        UserError: a setting of the wrong kind, an unknown key.
    """

    def __init__(
        self,
        weight_decay: float | None = None,
        grad_clip_cfg: dict[str, Any] | None = None,
        custom_cfg: Sequence[dict[str, Any]] | None = None,
        *,
        no_decay_bias_norm: bool = False,
    ) -> None:
        if weight_decay is not None:
            _check_number("weight_decay", weight_decay, 0)
        self.weight_decay = None if weight_decay is None else float(weight_decay)
        self.grad_clip = _build_clip(grad_clip_cfg)
        self.custom_cfg = _check_groups(custom_cfg)
        self.no_decay_bias_norm = bool(no_decay_bias_norm)

    def __call__(
        self, model: nn.Layer, lr: float | paddle.optimizer.lr.LRScheduler
    ) -> paddle.optimizer.Optimizer:
        """Makes the optimizer of the model's trainable parameters.

        Args:
            model (paddle.nn.Layer): The network; parameters with ``stop_gradient`` are left out.
            lr (float or paddle.optimizer.lr.LRScheduler): Learning rate.

        Returns:
            paddle.optimizer.Optimizer

        Raises:
            UserError: nothing to train, or a group that fits no parameter of the model.
        """
        named = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
        if not named:
            raise UserError("optimizer: the model has no trainable parameter.")
        decay_mults = self._apply_groups(model, named)
        lr = float(lr) if isinstance(lr, numbers.Real) else lr  # Paddle refuses an int
        return self._build([p for _, p in named], lr, decay_mults)

    def _build(self, parameters, lr, decay_mults):
        raise NotImplementedError

    def _apply_groups(self, model, named):
        """Writes the factors to the parameters; returns {parameter.name: decay factor}."""
        members = [[] for _ in self.custom_cfg]
        decay_mults = {}
        for name, param in named:
            index = next((i for i, g in enumerate(self.custom_cfg) if _fits(g["name"], name)), None)
            group = {} if index is None else self.custom_cfg[index]
            if index is not None:
                members[index].append(name)
            # The layer's own factor (ParamAttr), kept so that a second optimizer starts from it.
            attr = param.optimize_attr
            own = attr.setdefault("own_learning_rate", attr.get("learning_rate", 1.0))
            attr["learning_rate"] = own * group.get("lr_mult", 1.0)
            exempt = self.no_decay_bias_norm and param.ndim < 2
            decay_mults[param.name] = group.get("weight_decay_mult", 0.0 if exempt else 1.0)
        self._report(model, named, members)
        return decay_mults

    def _report(self, model, named, members):
        for i, (group, names) in enumerate(zip(self.custom_cfg, members)):
            pattern = group["name"]
            if names:
                logger.info("Optimizer group %s: %d parameters.", group, len(names))
                continue
            earlier = [
                g["name"]
                for g in self.custom_cfg[:i]
                if any(_fits(pattern, name) and _fits(g["name"], name) for name, _ in named)
            ]
            if earlier:
                raise UserError(
                    f"optimizer: every parameter with {pattern!r} in its name already belongs to "
                    f"the group {earlier[0]!r}; put {pattern!r} before it in custom_cfg."
                )
            if any(_fits(pattern, name) for name, _ in model.named_parameters()):
                logger.warning("Optimizer group %s: all its parameters are frozen.", group)
                continue
            is_part = "*" not in pattern
            how = "is part of no parameter's name" if is_part else "fits no parameter's full name"
            raise UserError(
                f"optimizer: custom_cfg name {pattern!r} {how}."
                f"{_near(pattern, [name for name, _ in named])}"
            )


def _fits(pattern, name):
    """A part of the name (PaddleSeg's rule), or with ``*`` a pattern of the whole of it."""
    return fnmatch.fnmatchcase(name, pattern) if "*" in pattern else pattern in name


def _near(pattern, names):
    """Names or dotted parts of names that look like the pattern, as a sentence."""
    parts = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 2)}
    parts |= {part for name in names for part in name.split(".") if not part.isdigit()}
    plain = pattern.replace("*", "").strip(".")
    near = difflib.get_close_matches(plain, sorted(parts), n=3, cutoff=0.5)
    if near:
        return " Near: " + ", ".join(near) + "."
    return " The first names: " + ", ".join(names[:3]) + "."


def _build_clip(cfg):
    if cfg is None:
        return None
    if not isinstance(cfg, dict) or cfg.get("name") not in _CLIPS:
        raise UserError(
            f"optimizer: grad_clip_cfg must be a dict with name {', '.join(_CLIPS)}, not {cfg!r}."
        )
    options = {key: value for key, value in cfg.items() if key != "name"}
    for key, value in options.items():
        if key != "group_name":
            _check_number(f"grad_clip_cfg {key}", value)
    try:
        return getattr(nn, cfg["name"])(**options)
    except TypeError as error:
        known = list(inspect.signature(getattr(nn, cfg["name"])).parameters)
        raise UserError(
            f"optimizer: grad_clip_cfg {cfg!r}: {cfg['name']} takes {', '.join(known)}."
        ) from error


def _check_groups(custom_cfg):
    if custom_cfg is None:
        return []
    if not isinstance(custom_cfg, (list, tuple)):
        raise UserError(f"optimizer: custom_cfg must be a list of dicts, not {custom_cfg!r}.")
    for group in custom_cfg:
        if not isinstance(group, dict) or not isinstance(group.get("name"), str):
            raise UserError(f"optimizer: custom_cfg entry {group!r} must be a dict with a name.")
        for key, value in group.items():
            if key not in _GROUP_KEYS:
                raise UserError(
                    f"optimizer: unknown key {key!r} in custom_cfg; known: "
                    f"{', '.join(_GROUP_KEYS)}." + did_you_mean(key, _GROUP_KEYS)
                )
            if key != "name":
                _check_number(f"custom_cfg {key}", value, 0)
    return [dict(group) for group in custom_cfg]


def _of_another_paddle(what):
    """The error's text where a private name of Paddle's is gone."""
    return (
        f"optimizer: {what} needs an inner part of Paddle that Paddle {paddle.__version__} lacks. "
        "Leave it out, or install Paddle 3.3."
    )


def _checked(optimizer, use_multi_tensor):
    """The optimizer, if it says whether one kernel updates all parameters. `TrainStep` asks for it,
    and refuses what would silently be done wrong."""
    if use_multi_tensor and not hasattr(optimizer, "_use_multi_tensor"):
        raise UserError(_of_another_paddle("use_multi_tensor"))
    return optimizer


class _L2Optimizer(BaseOptimizer):
    """Optimizers whose decay is added to the gradient."""

    def _set_regularizers(self, parameters, decay_mults):
        for param in parameters:
            own = param.optimize_attr.setdefault("own_regularizer", param.regularizer)
            mult = decay_mults[param.name]
            if own is not None:  # as in Paddle, a layer's own regularizer wins
                param.regularizer = own
            elif self.weight_decay is not None:
                # Never None: Paddle would fall back to the optimizer's decay.
                param.regularizer = L2Decay(self.weight_decay * mult)
            else:
                param.regularizer = None


@registry.OPTIMIZERS.add_component
class SGD(_L2Optimizer):
    """Stochastic gradient descent; with ``momentum`` it is :class:`Momentum`.

    Args:
        weight_decay, grad_clip_cfg, custom_cfg, no_decay_bias_norm: see :class:`BaseOptimizer`.
        momentum (float or None): Momentum, in [0, 1); None for plain SGD. (In PaddleSeg the config
            reader turns ``type: SGD`` with this key into Momentum.)
        use_nesterov (bool): Nesterov's form; needs momentum.
        use_multi_tensor (bool): One kernel updates all parameters, in place of one for each; the
            same numbers, for a GPU. Needs momentum.
    """

    def __init__(
        self,
        weight_decay: float | None = None,
        grad_clip_cfg: dict[str, Any] | None = None,
        custom_cfg: Sequence[dict[str, Any]] | None = None,
        *,
        momentum: float | None = None,
        use_nesterov: bool = False,
        no_decay_bias_norm: bool = False,
        use_multi_tensor: bool = False,
    ) -> None:
        super().__init__(
            weight_decay, grad_clip_cfg, custom_cfg, no_decay_bias_norm=no_decay_bias_norm
        )
        if momentum is not None:
            _check_number("momentum", momentum, 0)
            if momentum >= 1:
                raise UserError(f"optimizer: momentum must be below 1, not {momentum!r}.")
        elif use_nesterov or use_multi_tensor:
            name = "use_nesterov" if use_nesterov else "use_multi_tensor"
            raise UserError(f"optimizer: {name} needs momentum.")
        self.use_multi_tensor = bool(use_multi_tensor)
        self.momentum = momentum
        self.use_nesterov = bool(use_nesterov)

    def _build(self, parameters, lr, decay_mults):
        self._set_regularizers(parameters, decay_mults)
        common = {"learning_rate": lr, "parameters": parameters, "grad_clip": self.grad_clip}
        if self.momentum is None:
            return paddle.optimizer.SGD(**common)
        optimizer = paddle.optimizer.Momentum(
            momentum=float(self.momentum),
            use_nesterov=self.use_nesterov,
            use_multi_tensor=self.use_multi_tensor,
            **common,
        )
        return _checked(optimizer, self.use_multi_tensor)


@registry.OPTIMIZERS.add_component
class Momentum(SGD):
    """Paddle's momentum: v = momentum v + g, w = w - lr v (lr (g + momentum v) with Nesterov).

    Args:
        momentum (float): In [0, 1).
        use_nesterov (bool): Nesterov's form.
        weight_decay, grad_clip_cfg, custom_cfg, no_decay_bias_norm: see :class:`BaseOptimizer`.
        use_multi_tensor (bool): See :class:`SGD`.
    """

    def __init__(
        self,
        momentum: float = 0.9,
        use_nesterov: bool = False,
        weight_decay: float | None = None,
        grad_clip_cfg: dict[str, Any] | None = None,
        custom_cfg: Sequence[dict[str, Any]] | None = None,
        *,
        no_decay_bias_norm: bool = False,
        use_multi_tensor: bool = False,
    ) -> None:
        super().__init__(
            weight_decay,
            grad_clip_cfg,
            custom_cfg,
            momentum=momentum,
            use_nesterov=use_nesterov,
            no_decay_bias_norm=no_decay_bias_norm,
            use_multi_tensor=use_multi_tensor,
        )


@registry.OPTIMIZERS.add_component
class Adam(_L2Optimizer):
    """Adam (Kingma and Ba 2015, Algorithm 1).

    Args:
        beta1, beta2 (float): Decay of the two moments, in [0, 1).
        epsilon (float): Added to the root of the second moment.
        lazy_mode (bool): Update only the rows that have a gradient.
        weight_decay, grad_clip_cfg, custom_cfg, no_decay_bias_norm: see :class:`BaseOptimizer`.
        use_multi_tensor (bool): One kernel updates all parameters; the same numbers up to rounding,
            for a GPU. (Paddle's AdamW has no such kernel.)
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-08,
        lazy_mode: bool = False,
        weight_decay: float | None = None,
        grad_clip_cfg: dict[str, Any] | None = None,
        custom_cfg: Sequence[dict[str, Any]] | None = None,
        *,
        no_decay_bias_norm: bool = False,
        use_multi_tensor: bool = False,
    ) -> None:
        super().__init__(
            weight_decay, grad_clip_cfg, custom_cfg, no_decay_bias_norm=no_decay_bias_norm
        )
        for name, value in (("beta1", beta1), ("beta2", beta2), ("epsilon", epsilon)):
            _check_number(name, value, 0)
            if name != "epsilon" and not value < 1:
                raise UserError(f"optimizer: {name} must be below 1, not {value!r}.")
        self.options = {
            "beta1": float(beta1),
            "beta2": float(beta2),
            "epsilon": float(epsilon),
            "lazy_mode": bool(lazy_mode),
        }
        self.use_multi_tensor = bool(use_multi_tensor)

    def _build(self, parameters, lr, decay_mults):
        self._set_regularizers(parameters, decay_mults)
        optimizer = paddle.optimizer.Adam(
            learning_rate=lr,
            parameters=parameters,
            grad_clip=self.grad_clip,
            use_multi_tensor=self.use_multi_tensor,
            **self.options,
        )
        return _checked(optimizer, self.use_multi_tensor)


class _GroupedAdamW(paddle.optimizer.AdamW):
    """AdamW with a decay factor per parameter; Paddle's own knows on or off only."""

    def __init__(self, decay_mults, **options):
        super().__init__(**options)
        # Without what is overridden below the factors would silently be left out.
        is_hook = "_append_optimize_op" in vars(paddle.optimizer.AdamW)
        works = is_hook and hasattr(self, "_weight_decay")
        if not works and set(decay_mults.values()) != {1.0}:
            what = "AdamW with weight_decay_mult or no_decay_bias_norm"
            raise UserError(_of_another_paddle(what))
        self._decay_mults = decay_mults

    def _append_optimize_op(self, block, param_and_grad):
        base = self._weight_decay
        self._weight_decay = base * self._decay_mults.get(param_and_grad[0].name, 1.0)
        try:
            return super()._append_optimize_op(block, param_and_grad)
        finally:
            self._weight_decay = base


@registry.OPTIMIZERS.add_component
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        beta1, beta2, epsilon, weight_decay, lazy_mode, grad_clip_cfg, custom_cfg: PaddleSeg's
            order; see :class:`Adam` and :class:`BaseOptimizer`.
        no_decay_bias_norm (bool): See :class:`BaseOptimizer`.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-08,
        weight_decay: float | None = 0.01,
        lazy_mode: bool = False,
        grad_clip_cfg: dict[str, Any] | None = None,
        custom_cfg: Sequence[dict[str, Any]] | None = None,
        *,
        no_decay_bias_norm: bool = False,
    ) -> None:
        super().__init__(
            beta1,
            beta2,
            epsilon,
            lazy_mode,
            weight_decay,
            grad_clip_cfg,
            custom_cfg,
            no_decay_bias_norm=no_decay_bias_norm,
        )

    def _build(self, parameters, lr, decay_mults):
        return _GroupedAdamW(
            decay_mults,
            learning_rate=lr,
            parameters=parameters,
            weight_decay=self.weight_decay or 0.0,
            grad_clip=self.grad_clip,
            **self.options,
        )

# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import nn


class ModelEMA:
    """Keeps an average of a model's state beside it, without a second model.

    After update t (from 0): average = d average + (1 - d) value with
    d = min(decay, (1 + t) / (10 + t)), so the first, poor weights are soon forgotten. Parameters
    and floating-point buffers (batch norm's running statistics, which belong to the averaged
    weights) are averaged in float32; other buffers are copied. Under O2 precision the model's
    half-precision weights are what is averaged.

    Args:
        model (paddle.nn.Layer): The network in training.
        decay (float): Largest d, in [0, 1).

    Raises:
        ValueError: decay outside [0, 1).
    """

    def __init__(self, model: nn.Layer, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must lie in [0, 1), not {decay!r}.")
        self.decay = float(decay)
        self.updates = 0
        self._model = model
        self._applied = False
        self._average = {
            name: (_float32(t) if t.is_floating_point() else t).detach().clone()
            for name, t in model.state_dict().items()
        }

    @paddle.no_grad()
    def update(self) -> None:
        """Takes in the model's present state; call it after each optimizer step.

        Raises:
            RuntimeError: called inside :meth:`applied`.
        """
        self._refuse_applied("update")
        d = min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        for name, value in self._model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                # What lerp_ computes, bit for bit, in a quarter of its time on a CPU.
                gap = _float32(value) - average
                average.add_(gap.scale_(1.0 - d))
            else:
                paddle.assign(value, output=average)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[nn.Layer]:
        """Within the block the model holds the averaged state; after it, its own again, bit for
        bit, also when the block raises. For evaluation and saving: what is trained inside is lost.

        Raises:
            RuntimeError: nested use.
        """
        self._refuse_applied("applied")
        state = self._model.state_dict()
        kept = {name: value.detach().clone() for name, value in state.items()}
        self._applied = True
        try:
            _write(state, self._average)
            yield self._model
        finally:
            _write(state, kept)
            self._applied = False

    def state_dict(self) -> dict[str, Any]:
        """dict: ``average`` (name -> Tensor, not copies), ``updates`` and ``decay``, for
        ``paddle.save``."""
        return {"average": dict(self._average), "updates": self.updates, "decay": self.decay}

    @paddle.no_grad()
    def set_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave; ``decay`` stays as it was set here.

        Raises:
            ValueError: names or shapes that are not this model's.
        """
        self._refuse_applied("set_state_dict")
        average = state["average"]
        missing = sorted(set(self._average) - set(average))
        unexpected = sorted(set(average) - set(self._average))
        wrong = [
            name
            for name, own in self._average.items()
            if name in average and list(average[name].shape) != list(own.shape)
        ]
        if missing or unexpected or wrong:
            raise ValueError(
                "EMA: the saved average belongs to another model: missing "
                f"{missing[:3]}, unexpected {unexpected[:3]}, of another shape {wrong[:3]} "
                f"({len(missing)}, {len(unexpected)} and {len(wrong)} in all)."
            )
        for name, own in self._average.items():
            saved = average[name]
            saved = saved if isinstance(saved, paddle.Tensor) else paddle.to_tensor(saved)
            paddle.assign(saved.astype(own.dtype), output=own)
        self.updates = int(state["updates"])

    def _refuse_applied(self, what):
        if self._applied:
            raise RuntimeError(f"EMA: {what} inside applied(): the model holds the average now.")


def _float32(tensor):
    """The tensor in float32; itself, without a copy, where it is."""
    return tensor if tensor.dtype == paddle.float32 else tensor.astype("float32")


@paddle.no_grad()
def _write(state, values):
    for name, tensor in state.items():
        value = values[name]
        if value.dtype != tensor.dtype:  # under O2
            value = value.astype(tensor.dtype)
        paddle.assign(value, output=tensor)

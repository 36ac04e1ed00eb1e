# SPDX-License-Identifier: Apache-2.0
"""A weighted set of losses on one output."""

import math
from collections.abc import Sequence

from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import is_number


@registry.LOSSES.add_component
class MixedLoss(nn.Layer):
    """Computes several losses of the same logits and keeps them apart, so each can be reported.

    Args:
        losses (list[nn.Layer]): The losses.
        coef (list[float]): A factor for each, finite.

    Attributes:
        names (list[str]): Class name of each loss; a repeated one gets ``_2``, ``_3``, ...

    Raises:
        TypeError: an argument that is no list, a loss that is no layer, a factor that is no number.
        ValueError: lists that are empty or differ in length, or a factor that is not finite.
    """

    def __init__(self, losses: Sequence[nn.Layer], coef: Sequence[float]) -> None:
        super().__init__()
        for name, value in (("losses", losses), ("coef", coef)):
            if not isinstance(value, (list, tuple)):
                raise TypeError(f"MixedLoss: `{name}` must be a list, not {value!r}.")
        if len(losses) != len(coef) or not losses:
            raise ValueError(
                f"MixedLoss: `losses` has {len(losses)} items and `coef` {len(coef)}; they need "
                "the same number, at least one."
            )
        for loss in losses:
            if not isinstance(loss, nn.Layer):
                raise TypeError(f"MixedLoss: every loss must be a paddle.nn.Layer, not {loss!r}.")
        for factor in coef:
            if not is_number(factor):
                raise TypeError(f"MixedLoss: every coef must be a number, not {factor!r}.")
            if not math.isfinite(factor):
                raise ValueError(f"MixedLoss: every coef must be finite, not {factor!r}.")
        self.losses = nn.LayerList(losses)
        self.coef = [float(value) for value in coef]
        self.names: list[str] = []
        counts: dict[str, int] = {}
        for loss in losses:
            name = type(loss).__name__
            counts[name] = counts.get(name, 0) + 1
            self.names.append(name if counts[name] == 1 else f"{name}_{counts[name]}")

    def forward(self, logits: Tensor, label: Tensor) -> list[Tensor]:
        """Returns list[Tensor]: coef x loss for each loss, float32 scalars, in order."""
        return [
            loss(logits, label) * factor
            for loss, factor in zip(self.losses, self.coef)  # same length: checked above
        ]

# SPDX-License-Identifier: Apache-2.0
"""The losses of an iteration's batches, on all ranks, as if they were one batch's."""

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor

from paddleseg_deeplab.core.ranks import Ranks
from paddleseg_deeplab.core.training.late_losses import as_vector
from paddleseg_deeplab.models.losses.total import (
    batch_weights,
    compute_losses,
    output_sizes,
    part_count,
)

# Images float32 [N, C, H, W] and labels int64 [N, H, W] of each batch.
Batches = Sequence[tuple[Tensor, Tensor]]


class LossSum:
    """Adds up an iteration's losses, each batch by its share.

    A batch's share of a loss part is what it counts in it (pixels, images) over what all batches of
    all ranks count. What one counts is known with the size of the network's outputs, so the ranks
    exchange it at the first batch.

    Args:
        batches (list[tuple[Tensor, Tensor]]): Images [N, C, H, W] and labels [N, H, W].
        losses (dict): ``types`` and ``coef`` as `SegBuilder.loss`.
        ranks (Ranks): Those that train together.
        layout (str): "NCHW" or "NHWC", of the outputs.
        sizes (dict): (height, width) of images to those of the outputs; is filled.

    Attributes:
        names (list[str]): Of the loss's parts.
        vector (Tensor | None): float64 [1 + parts], loss and parts so far.
    """

    def __init__(
        self,
        batches: Batches,
        losses: Mapping[str, Any],
        ranks: Ranks,
        layout: str,
        sizes: dict[tuple[int, int], list[tuple[int, int]]],
    ) -> None:
        self.names: list[str] = []
        self.vector: Tensor | None = None
        self._batches = batches
        self._losses = losses
        self._ranks = ranks
        self._layout = layout
        self._sizes = sizes
        self._added = 0
        self._shares = None  # Tensor float64 [batches, parts]; None for ones
        self._is_shared = ranks.size > 1 or len(batches) > 1
        self._exchanged = False

    def add(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Takes the next batch's logits.

        Args:
            logits (list[Tensor]): The network's outputs.
            labels (Tensor): int64 [N, H, W].

        Returns:
            Tensor: The batch's part of the loss, a scalar, to go backward from.
        """
        if self._is_shared and self._shares is None:
            self._share(self._weights(logits))
        # Losses compute in float32, outside autocast.
        loss, parts = compute_losses(
            logits,
            labels,
            self._losses,
            self._layout,
            shares=None if self._shares is None else self._shares[self._added],
        )
        self._added += 1
        one = as_vector(loss, parts.values())
        self.names = list(parts)
        self.vector = one if self.vector is None else self.vector + one
        return loss

    def give_up(self) -> None:
        """What a rank does that cannot go on: the others wait for what it counts, nothing."""
        if self._is_shared and not self._exchanged:
            self._share(paddle.zeros([1, part_count(self._losses)], "float64"))

    def _share(self, weights):
        """Sums the weights over the ranks; each batch's share of them."""
        total = weights.sum(axis=0)
        self._exchanged = True
        self._ranks.sum_in_place(total)
        # Where nothing counts at all, every loss is 0 and so is any share of it.
        self._shares = weights / paddle.where(total > 0, total, paddle.ones_like(total))

    def _weights(self, logits):
        """How much each batch counts in each loss part, Tensor float64 [batches, parts]."""
        first = tuple(self._batches[0][0].shape[2:])
        self._sizes[first] = output_sizes(logits, self._layout)
        rows = []
        for images, labels in self._batches:
            size = tuple(images.shape[2:])
            # Of a size not seen yet the outputs are not known; they are as fine as the first's.
            sizes = self._sizes.get(size) or [
                tuple(-(-s * out // of) for s, of, out in zip(size, first, outputs))
                for outputs in self._sizes[first]
            ]
            rows.append(batch_weights(labels, sizes, self._losses))
        flat = [
            # A loss written for PaddleSeg may give [1].
            w.astype("float64").reshape([])
            if isinstance(w, paddle.Tensor)
            else paddle.full([], w, "float64")
            for row in rows
            for w in row
        ]
        return paddle.stack(flat).reshape([len(rows), -1])

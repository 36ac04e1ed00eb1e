# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the hard pixels (online hard example mining, Shrivastava et al. 2016)."""

import math

from paddle import Tensor

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import (
    ClassWeights,
    SegmentationLoss,
    is_integer,
    mean_over,
)
from paddleseg_deeplab.models.losses.cross_entropy import check_fraction
from paddleseg_deeplab.models.losses.hard_pixels import among_hardest
from paddleseg_deeplab.models.losses.pixel_cross_entropy import pixel_cross_entropy


@registry.LOSSES.add_component
class OhemCrossEntropyLoss(SegmentationLoss):
    """Mean cross-entropy of the pixels whose true class has probability at most ``thresh``.

    At least ``min_kept`` valid pixels are kept: if fewer are that hard, the threshold rises to the
    min_kept-th smallest probability; with no more valid pixels than that, all are kept. Class
    weights multiply the loss and not the divisor, as in PaddleSeg. Differences from PaddleSeg:
    pixels exactly at the threshold are kept (there they are dropped, so equal probabilities give
    loss 0), and nothing is added to the divisor.

    Args:
        thresh (float): Probability in [0, 1].
        min_kept (int): Pixels of the whole batch kept at least, >= 0.
        ignore_index (int): Label of the pixels that do not count.
        weight (sequence of float, "auto" or None): Factor per class.
        data_format (str): "NCHW" or "NHWC".
    """

    layout = None

    def __init__(
        self,
        thresh: float = 0.7,
        min_kept: int = 10000,
        ignore_index: int = 255,
        weight: ClassWeights | str | None = None,
        *,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__(ignore_index, weight, data_format)
        check_fraction("thresh", thresh)
        if not is_integer(min_kept):
            raise TypeError(f"min_kept must be an integer, not {min_kept!r}.")
        if min_kept < 0:
            raise ValueError(f"min_kept must be >= 0, not {min_kept!r}.")
        self.thresh = float(thresh)
        self.min_kept = int(min_kept)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        loss = pixel_cross_entropy(logits, label, valid, self.data_format)
        kept = self._hard(loss.detach(), valid).astype("float32")
        if self.weight is not None:
            loss = loss * self.pixel_weights(label, valid)
        return mean_over(loss * kept, kept.sum())

    def _hard(self, loss, valid):
        # The true class's probability is exp(-loss). It is compared as the loss, since that of a
        # very wrong pixel is 0 in float32.
        limit = -math.log(self.thresh) if self.thresh else math.inf
        kept = (loss >= limit) & valid
        if self.min_kept > 0:
            kept = kept | among_hardest(loss, valid, self.min_kept)
        return kept

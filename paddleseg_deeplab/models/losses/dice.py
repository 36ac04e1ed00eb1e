# SPDX-License-Identifier: Apache-2.0
"""Soft Dice loss (Milletari et al. 2016, "V-Net", with one term per class)."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import (
    ClassWeights,
    SegmentationLoss,
    is_number,
    is_valid,
    mean_over,
)


@registry.LOSSES.add_component
class DiceLoss(SegmentationLoss):
    """1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth) per image and class, averaged.

    p is the softmax, g the one-hot truth, sums over the image's valid pixels. The mean is over the
    images with a valid pixel and over all classes (weights multiply the terms and do not change
    the divisor), as in PaddleSeg, except that PaddleSeg also counts all-void images and overwrites
    the caller's label. A class absent from an image costs sum(p) / (sum(p) + smooth): only what is
    wrongly predicted as it.

    Args:
        weight (sequence of float, "auto" or None): Factor per class.
        ignore_index (int): Label of the pixels that do not count.
        smooth (float): Laplace smoothing, >= 0.
        data_format (str): "NCHW" or "NHWC".
    """

    layout = "NHWC"

    def __init__(
        self,
        weight: ClassWeights | str | None = None,
        ignore_index: int = 255,
        smooth: float = 1.0,
        *,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__(ignore_index, weight, data_format)
        if not is_number(smooth):
            raise TypeError(f"smooth must be a number, not {smooth!r}.")
        if smooth < 0:
            raise ValueError(f"smooth must be >= 0, not {smooth!r}.")
        self.smooth = float(smooth)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        n, h, w, c = logits.shape
        probs = F.softmax(logits, axis=-1).reshape([n, h * w, c])
        # Void is a class of its own here, whose row is cut off below.
        known = paddle.where(valid, label, paddle.full_like(label, c))
        truth = F.one_hot(known.reshape([n, h * w]), c + 1)
        # The soft confusion matrix holds all sums in one product: [N, truth, prediction].
        matrix = paddle.matmul(truth, probs, transpose_x=True)[:, :c]
        overlap = paddle.diagonal(matrix, axis1=1, axis2=2)  # [N, C]
        total = matrix.sum(axis=1) + truth.sum(axis=1)[:, :c]
        loss = 1.0 - (2.0 * overlap + self.smooth) / (total + self.smooth + 1e-8)
        if self.weight is not None:
            loss = loss * self.weight
        labelled = valid.any(axis=[1, 2]).astype("float32")  # [N]
        return mean_over(loss * labelled.unsqueeze(1), labelled.sum() * c)

    def batch_weight(self, label: Tensor) -> Tensor:
        """Images with a valid pixel."""
        return is_valid(label, self.ignore_index).any(axis=[1, 2]).astype("float64").sum()

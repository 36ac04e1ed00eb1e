# SPDX-License-Identifier: Apache-2.0
"""Focal losses (Lin et al. 2017, "Focal Loss for Dense Object Detection", equations 4 and 5)."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import (
    ClassWeights,
    SegmentationLoss,
    is_number,
    mean_over,
    one_hot,
    valid_pixels,
)
from paddleseg_deeplab.models.losses.cross_entropy import check_fraction
from paddleseg_deeplab.models.losses.pixel_cross_entropy import pixel_cross_entropy


def _check_gamma(gamma):
    if not is_number(gamma):
        raise TypeError(f"gamma must be a number, not {gamma!r}.")
    if not gamma >= 0:
        raise ValueError(f"gamma must be >= 0, not {gamma!r}.")


def _modulate(loss, gamma):
    """(1 - exp(-loss)) ** gamma, with finite gradients at loss 0."""
    if gamma == 0:
        return paddle.ones_like(loss)
    # Below 1 the slope of x ** gamma at 0 is infinite; the clip cuts it where the value is nil.
    return paddle.clip(-paddle.expm1(-loss), min=1e-7) ** gamma


@registry.LOSSES.add_component
class FocalLoss(SegmentationLoss):
    """Sigmoid focal loss: each channel is its own yes-or-no question.

    The mean over valid pixels and channels of alpha_t (1 - p_t)^gamma BCE. PaddleSeg allows two
    channels only; here any number.

    Args:
        alpha (float): Factor where the channel's answer is yes, 1 - alpha where it is no; in
            [0, 1].
        gamma (float): Focusing exponent, >= 0; 0 gives weighted binary cross-entropy.
        ignore_index (int): Label of the pixels that do not count.
        data_format (str): "NCHW" or "NHWC".
    """

    layout = "NHWC"

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_index: int = 255,
        *,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__(ignore_index, None, data_format)
        check_fraction("alpha", alpha)
        _check_gamma(gamma)
        self.alpha = float(alpha)
        self.gamma = float(gamma)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        truth = one_hot(label, valid, logits.shape[-1])
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        loss = loss * _modulate(loss, self.gamma)
        # Divided by the channels before the sum, which then stays in float32's range.
        classes = logits.shape[-1]
        yes, no = self.alpha / classes, (1.0 - self.alpha) / classes
        loss = (loss * (no + (yes - no) * truth)).sum(axis=-1)
        mask = valid.astype("float32")
        return mean_over(loss * mask, mask.sum())

    def batch_weight(self, label: Tensor) -> Tensor:
        return valid_pixels(label, self.ignore_index)


@registry.LOSSES.add_component
class MultiClassFocalLoss(SegmentationLoss):
    """Softmax focal loss: the mean over valid pixels of alpha (1 - p_t)^gamma (-log p_t).

    Args:
        alpha (float or sequence of float): One factor for all, or one per class (PaddleSeg's code
            takes the single one only).
        gamma (float): Focusing exponent, >= 0; 0 with alpha 1 gives CrossEntropyLoss.
        ignore_index (int): Label of the pixels that do not count.
        data_format (str): "NCHW" or "NHWC".
    """

    layout = None

    def __init__(
        self,
        alpha: float | ClassWeights = 1.0,
        gamma: float = 2.0,
        ignore_index: int = 255,
        *,
        data_format: str = "NCHW",
    ) -> None:
        single = is_number(alpha)
        super().__init__(ignore_index, None if single else alpha, data_format)
        if not single and self.weight is None:
            raise TypeError(f"alpha must be a number or a list of them, not {alpha!r}.")
        if is_number(alpha) and not (np.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be >= 0, not {alpha!r}.")
        _check_gamma(gamma)
        self.alpha = alpha
        self.gamma = float(gamma)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        loss = pixel_cross_entropy(logits, label, valid, self.data_format)
        loss = loss * _modulate(loss, self.gamma)
        if self.weight is None:
            loss = loss * self.alpha
        # Per-class factors do not enter the divisor: alpha scales a class, it does not average.
        return mean_over(loss * self.pixel_weights(label, valid), valid.astype("float32").sum())

    def batch_weight(self, label: Tensor) -> Tensor:
        return valid_pixels(label, self.ignore_index)

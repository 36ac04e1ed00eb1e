# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy with class weights, label smoothing and hard-pixel mining."""

import math
import numbers

import paddle
import paddle.nn.functional as F

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models.losses.base import (
    SegmentationLoss,
    largest_indices,
    mean_over,
    valid_pixels,
)
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts  # noqa: F401


def check_fraction(name, value, low_open=False, high_open=False):
    """Raises unless the value is a number in 0..1 (bounds open as told)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value <= 1 or (low_open and value == 0) or (high_open and value == 1):
        raise ValueError(
            f"{name} must lie in {'(' if low_open else '['}0, 1{')' if high_open else ']'}, "
            f"not {value!r}."
        )


@manager.LOSSES.add_component
class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross-entropy averaged over pixels.

    The average is PaddleSeg's: sum of (class weight x loss) / sum of (class weight) over the valid
    pixels; with ``avg_non_ignore=False`` the divisor is the number of all pixels, void ones
    included, whatever the weights. Differences from PaddleSeg: with ``top_k_percent_pixels`` and
    ``avg_non_ignore`` the share is taken of the valid pixels and void never enters the average
    (there it counts as class 0), and no 1e-8 is added to the divisor.

    Args:
        weight (sequence of float, "auto" or None): Factor per class; "auto" is replaced by the
            builder with :func:`class_weights_from_counts` of the training set.
        ignore_index (int): Label of the pixels that do not count.
        top_k_percent_pixels (float): Share of pixels, the hardest, that enter; in (0, 1].
        avg_non_ignore (bool): Average over the valid pixels only.
        data_format (str): "NCHW" or "NHWC".
        label_smoothing (float): Probability spread evenly over all classes, in [0, 1). The pixel's
            class weight stays that of its true class.
    """

    layout = "NHWC"  # Paddle's fused kernel on the last axis takes half the time of axis=1 on a CPU

    def __init__(
        self,
        weight=None,
        ignore_index=255,
        top_k_percent_pixels=1.0,
        avg_non_ignore=True,
        data_format="NCHW",
        *,
        label_smoothing=0.0,
    ):
        super().__init__(ignore_index, weight, data_format)
        check_fraction("top_k_percent_pixels", top_k_percent_pixels, low_open=True)
        check_fraction("label_smoothing", label_smoothing, high_open=True)
        self.top_k_percent_pixels = top_k_percent_pixels
        self.avg_non_ignore = avg_non_ignore
        self.label_smoothing = label_smoothing

    def forward(self, logits, label, semantic_weights=None):
        """As :meth:`SegmentationLoss.forward`; ``semantic_weights`` (float [N, H, W] or None)
        multiplies each pixel's loss and, as in PaddleSeg, not the divisor."""
        return super().forward(logits, label, semantic_weights=semantic_weights)

    def compute(self, logits, label, valid, semantic_weights=None):
        loss = pixel_cross_entropy(logits, label, valid, self.ignore_index, self.label_smoothing)
        weights = self.pixel_weights(label, valid)
        if self.weight is not None:
            loss = loss * weights
        if semantic_weights is not None:
            loss = loss * semantic_weights.astype("float32").reshape(loss.shape)
        share = weights if self.avg_non_ignore else paddle.ones_like(weights)
        if self.top_k_percent_pixels < 1.0:
            loss, share = self._hardest(loss.flatten(), share.flatten(), valid)
        return mean_over(loss, share.sum())

    def batch_weight(self, label):
        """The divisor of the average; 1.0 with top_k_percent_pixels, whose pixels each batch
        chooses among its own."""
        if self.top_k_percent_pixels < 1.0:
            return 1.0
        if not self.avg_non_ignore:
            return float(math.prod(label.shape))
        if self.weight is None:
            return valid_pixels(label, self.ignore_index)
        # Clipped since nothing has looked at these labels yet; `forward` names a wrong one.
        label = label.astype("int64")
        known = label.clip(0, len(self.weight) - 1)
        weights = self.pixel_weights(known, label != self.ignore_index)
        return weights.astype("float64").sum()

    def _hardest(self, loss, share, valid):
        if self.avg_non_ignore:
            keep = paddle.nonzero(valid.flatten()).flatten()
            if keep.shape[0] == 0:
                return loss, share
            loss, share = paddle.gather(loss, keep), paddle.gather(share, keep)
        chosen = largest_indices(loss, max(int(self.top_k_percent_pixels * loss.shape[0]), 1))
        return paddle.gather(loss, chosen), paddle.gather(share, chosen)


def pixel_cross_entropy(logits, label, valid, ignore_index, label_smoothing=0.0):
    """Cross-entropy of each pixel, float32 [N, H, W], 0 where not valid; logits [N, H, W, C]."""
    if not label_smoothing:
        return F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")
    # -sum_c q_c log p_c with q = (1 - s) one-hot + s / C.
    log_p = F.log_softmax(logits, axis=-1)
    known = paddle.where(valid, label, paddle.zeros_like(label))
    own = paddle.take_along_axis(log_p, known.unsqueeze(-1), axis=-1).squeeze(-1)
    loss = -(1.0 - label_smoothing) * own - label_smoothing * log_p.mean(axis=-1)
    return loss * valid.astype("float32")

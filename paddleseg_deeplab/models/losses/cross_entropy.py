# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy with class weights, label smoothing and hard-pixel mining."""

import math

import paddle
from paddle import Tensor

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import (
    ClassWeights,
    SegmentationLoss,
    is_number,
    is_valid,
    mean_over,
    valid_pixels,
)
from paddleseg_deeplab.models.losses.hard_pixels import hardest_share
from paddleseg_deeplab.models.losses.pixel_cross_entropy import pixel_cross_entropy


def check_fraction(
    name: str, value: float, low_open: bool = False, high_open: bool = False
) -> None:
    """Raises unless the value is a number in 0..1 (bounds open as told)."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value <= 1 or (low_open and value == 0) or (high_open and value == 1):
        raise ValueError(
            f"{name} must lie in {'(' if low_open else '['}0, 1{')' if high_open else ']'}, "
            f"not {value!r}."
        )


@registry.LOSSES.add_component
class CrossEntropyLoss(SegmentationLoss):
    """Softmax cross-entropy averaged over pixels.

    The average is PaddleSeg's: sum of (class weight x loss) / sum of (class weight) over the valid
    pixels; with ``avg_non_ignore=False`` the divisor is the number of all pixels, void ones
    included, whatever the weights. Differences from PaddleSeg: with ``top_k_percent_pixels`` and
    ``avg_non_ignore`` the share is taken of the valid pixels and void never enters the average
    (there it counts as class 0), pixels with equal losses at the share's end count alike, no 1e-8
    is added to the divisor, and a pixel's loss has no upper limit (on a CPU Paddle's ends at 64).

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

    layout = None

    def __init__(
        self,
        weight: ClassWeights | str | None = None,
        ignore_index: int = 255,
        top_k_percent_pixels: float = 1.0,
        avg_non_ignore: bool = True,
        data_format: str = "NCHW",
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(ignore_index, weight, data_format)
        check_fraction("top_k_percent_pixels", top_k_percent_pixels, low_open=True)
        check_fraction("label_smoothing", label_smoothing, high_open=True)
        self.top_k_percent_pixels = top_k_percent_pixels
        self.avg_non_ignore = avg_non_ignore
        self.label_smoothing = label_smoothing

    def forward(
        self, logits: Tensor, label: Tensor, semantic_weights: Tensor | None = None
    ) -> Tensor:
        """As :meth:`SegmentationLoss.forward`; ``semantic_weights`` (float [N, H, W] or None)
        multiplies each pixel's loss and, as in PaddleSeg, not the divisor."""
        return self._checked_and_computed(logits, label, semantic_weights=semantic_weights)

    def compute(
        self, logits: Tensor, label: Tensor, valid: Tensor, semantic_weights: Tensor | None = None
    ) -> Tensor:
        loss = pixel_cross_entropy(logits, label, valid, self.data_format, self.label_smoothing)
        weights = self.pixel_weights(label, valid)
        if self.weight is not None:
            loss = loss * weights
        if semantic_weights is not None:
            loss = loss * semantic_weights.astype("float32").reshape(loss.shape)
        share = weights if self.avg_non_ignore else paddle.ones_like(weights)
        if self.top_k_percent_pixels < 1.0:
            among = valid if self.avg_non_ignore else paddle.ones_like(valid)
            chosen = hardest_share(loss.detach(), among, self.top_k_percent_pixels)
            loss, share = loss * chosen, share * chosen
        return mean_over(loss, share.sum())

    def batch_weight(self, label: Tensor) -> float | Tensor:
        """The divisor of the average; 1.0 with top_k_percent_pixels, whose pixels each batch
        chooses among its own."""
        if self.top_k_percent_pixels < 1.0:
            return 1.0
        if not self.avg_non_ignore:
            return float(math.prod(label.shape))
        if self.weight is None:
            return valid_pixels(label, self.ignore_index)
        # Clipped since nothing has looked at these labels yet; `forward` names a wrong one.
        known = label.astype("int64").clip(0, len(self.weight) - 1)
        weights = self.pixel_weights(known, is_valid(label, self.ignore_index))
        return weights.astype("float64").sum()

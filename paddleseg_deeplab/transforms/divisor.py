# SPDX-License-Identifier: Apache-2.0
"""Sides that a number divides: for networks that saw only such sides in training."""

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import (
    Sample,
    changed,
    check_colors,
    check_int,
    image_size,
    recorded,
)


@registry.TRANSFORMS.add_component
class PaddingByDivisor:
    """Repeats the last row and column until a number divides both sides; recorded in trans_info.

    PaddleSeg has no such transform; the setting ``size_divisor`` of evaluation and prediction does
    the same around the network.

    Args:
        size_divisor (int): The number, such as 16, the output stride of most networks here.
        label_padding_value (int): Label of the padding.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(self, size_divisor: int = 16, label_padding_value: int = 255) -> None:
        self.size_divisor = check_int("PaddingByDivisor", "size_divisor", size_divisor)
        _, self.label_padding_value = check_colors("PaddingByDivisor", 0, label_padding_value)

    def __call__(self, data: Sample) -> Sample:
        size = functional.rounded_up(image_size(data), self.size_divisor)
        return changed(
            recorded(data, "padding"),
            lambda img: functional.repeat_edges(img, size),
            lambda label: functional.pad(label, size, self.label_padding_value),
        )

# SPDX-License-Identifier: Apache-2.0
"""Transforms that change an image's scale. Masks are always resized by nearest, on the same
half-pixel grid as the image (see `functional.nearest_index`)."""

import math
from collections.abc import Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import (
    Sample,
    check_int,
    check_number,
    check_range,
    check_size,
    image_size,
    recorded,
    resized,
    rng_of,
)


@registry.TRANSFORMS.add_component
class Resize:
    """Resizes the image to a given size; recorded in trans_info.

    Args:
        target_size (list | tuple): (width, height) in pixels.
        keep_ratio (bool): Keep the proportions: the largest size whose long and short side fit the
            long and short side of `target_size`.
        size_divisor (int | None): Round both sides up to multiples of this.
        interp (str): NEAREST, LINEAR, CUBIC, AREA, LANCZOS4, or RANDOM for one of them drawn for
            each sample. CUBIC and LANCZOS4 overshoot at edges, as in PaddleSeg.

    Raises:
        TypeError, ValueError: A parameter of the wrong type or value.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    interp_dict = functional.INTERPOLATIONS

    def __init__(
        self,
        target_size: Sequence[int] = (512, 512),
        keep_ratio: bool = False,
        size_divisor: int | None = None,
        interp: str = "LINEAR",
    ) -> None:
        self.target_size = check_size("Resize", "target_size", target_size)
        if interp != "RANDOM" and interp not in self.interp_dict:
            raise ValueError(
                f"Resize: interp must be one of {[*self.interp_dict, 'RANDOM']}, "
                f"but it is {interp!r}."
            )
        if size_divisor is not None:
            check_int("Resize", "size_divisor", size_divisor)
        self.keep_ratio = keep_ratio
        self.size_divisor = size_divisor
        self.interp = interp

    def __call__(self, data: Sample) -> Sample:
        interp = self.interp
        if interp == "RANDOM":
            interp = list(self.interp_dict)[rng_of(data).integers(len(self.interp_dict))]
        size: Sequence[int] = self.target_size[::-1]
        if self.keep_ratio:
            size = functional.size_within(image_size(data), size)
        if self.size_divisor:
            size = tuple(math.ceil(s / self.size_divisor) * self.size_divisor for s in size)
        return resized(recorded(data, "resize"), size, self.interp_dict[interp])


@registry.TRANSFORMS.add_component
class ResizeByLong:
    """Scales the image so that its longer side has a given length; recorded in trans_info.

    Args:
        long_size (int): Pixels.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(self, long_size: int) -> None:
        self.long_size = check_int("ResizeByLong", "long_size", long_size)

    def __call__(self, data: Sample) -> Sample:
        size = functional.size_by_long(image_size(data), self.long_size)
        return resized(recorded(data, "resize"), size)


@registry.TRANSFORMS.add_component
class ResizeByShort:
    """Scales the image so that its shorter side has a given length; recorded in trans_info.

    Two deviations from PaddleSeg: there the setting shrinks for good after the first image that
    `max_size` limits, and a list is drawn from once when the transform is built; here every sample
    starts from the setting and draws anew.

    Args:
        short_size (int | list[int]): Pixels, or a list to draw from for each sample.
        max_size (float): The longer side does not exceed this; the shorter one then shrinks.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(
        self, short_size: int | list[int] | tuple[int, ...], max_size: float = 1e10
    ) -> None:
        sizes = list(short_size) if isinstance(short_size, (list, tuple)) else [short_size]
        if not sizes:
            raise ValueError("ResizeByShort: short_size must not be an empty list.")
        for size in sizes:
            check_int("ResizeByShort", "short_size", size)
        self.short_size = short_size
        self.max_size = check_number("ResizeByShort", "max_size", max_size, low=1)
        self._sizes = sizes

    def __call__(self, data: Sample) -> Sample:
        size = image_size(data)
        short = self._sizes[0]
        if len(self._sizes) > 1:
            short = self._sizes[rng_of(data).integers(len(self._sizes))]
        if short / min(size) * max(size) > self.max_size:
            short = max(1, int(self.max_size / max(size) * min(size)))
        return resized(recorded(data, "resize"), functional.size_by_short(size, short))


@registry.TRANSFORMS.add_component
class LimitLong:
    """Brings the longer side into [min_long, max_long], in proportion; recorded in trans_info.

    Args:
        max_long (int | None): Pixels; None for no upper limit.
        min_long (int | None): Pixels; None for no lower limit.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(self, max_long: int | None = None, min_long: int | None = None) -> None:
        for name, value in (("max_long", max_long), ("min_long", min_long)):
            if value is not None:
                check_int("LimitLong", name, value)
        if max_long is not None and min_long is not None and min_long > max_long:
            raise ValueError(
                "LimitLong: min_long must not exceed max_long, "
                f"but they are {min_long} and {max_long}."
            )
        self.max_long = max_long
        self.min_long = min_long

    def __call__(self, data: Sample) -> Sample:
        size = image_size(data)
        target = max(size)
        if self.max_long is not None:
            target = min(target, self.max_long)
        if self.min_long is not None:
            target = max(target, self.min_long)
        return resized(recorded(data, "resize"), functional.size_by_long(size, target))


@registry.TRANSFORMS.add_component
class ResizeRangeScaling:
    """Scales the image so that its longer side has a random length.

    Args:
        min_value (int): Smallest length, pixels.
        max_value (int): Largest length, pixels.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(self, min_value: int = 400, max_value: int = 600) -> None:
        self.min_value, self.max_value = check_range(
            "ResizeRangeScaling", "min_value", min_value, "max_value", max_value
        )

    def draw(self, size: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
        """The new (height, width) of an image of (height, width) `size`."""
        long_size = int(rng.uniform(self.min_value, self.max_value) + 0.5)
        return functional.size_by_long(size, long_size)

    def __call__(self, data: Sample) -> Sample:
        return resized(data, self.draw(image_size(data), rng_of(data)))


@registry.TRANSFORMS.add_component
class ResizeStepScaling:
    """Scales the image by a random factor.

    Args:
        min_scale_factor (float): Smallest factor.
        max_scale_factor (float): Largest factor.
        scale_step_size (float): Distance of the factors that are drawn from; 0 draws any factor of
            the range. If the steps do not fill the range they are stretched to do so.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(
        self,
        min_scale_factor: float = 0.75,
        max_scale_factor: float = 1.25,
        scale_step_size: float = 0.25,
    ) -> None:
        self.min_scale_factor, self.max_scale_factor = check_range(
            "ResizeStepScaling",
            "min_scale_factor",
            min_scale_factor,
            "max_scale_factor",
            max_scale_factor,
        )
        self.scale_step_size = check_number(
            "ResizeStepScaling", "scale_step_size", scale_step_size, low=0
        )

    def draw(self, size: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
        """The new (height, width) of an image of (height, width) `size`."""
        low, high, step = self.min_scale_factor, self.max_scale_factor, self.scale_step_size
        if low == high:
            factor = low
        elif step == 0:
            factor = rng.uniform(low, high)
        else:
            # PaddleSeg truncates (high - low) / step as floating point computes it, which loses a
            # step where that is 4.999...
            steps = int((high - low) / step + 1e-6)
            factor = low + (high - low) * rng.integers(steps + 1) / max(steps, 1)
        return functional.scaled_size(size, factor)

    def __call__(self, data: Sample) -> Sample:
        return resized(data, self.draw(image_size(data), rng_of(data)))

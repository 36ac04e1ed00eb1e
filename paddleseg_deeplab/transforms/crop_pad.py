# SPDX-License-Identifier: Apache-2.0
"""Transforms that cut or pad. Padding goes to the right and the bottom, except in ScalePadding."""

import numbers
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import (
    Sample,
    changed,
    check_colors,
    check_int,
    check_number,
    check_size,
    image_size,
    recorded,
    resized,
    rng_of,
)
from paddleseg_deeplab.utils.errors import UserError


def _padded(data, size, colors, offset=(0, 0)):
    """A copy of the sample on a canvas of (height, width) `size`; colors: (image, label)."""
    return changed(
        data,
        lambda img: functional.pad(img, size, colors[0], offset),
        lambda label: functional.pad(label, size, colors[1], offset),
    )


def _cropped(data, top, left, size):
    return changed(
        data,
        lambda img: functional.crop(img, top, left, size),
        lambda label: functional.crop(label, top, left, size),
    )


@registry.TRANSFORMS.add_component
class Padding:
    """Pads the image to a given size; recorded in trans_info.

    Args:
        target_size (list | tuple): (width, height) in pixels; no image may be larger.
        im_padding_value (float): Colour of the padding, one number or one for each channel.
        label_padding_value (int): Label of the padding.

    Raises:
        UserError: When called: the image is larger than `target_size`.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(
        self,
        target_size: Sequence[int],
        im_padding_value: functional.Color = 127.5,
        label_padding_value: int = 255,
    ) -> None:
        self.target_size = check_size("Padding", "target_size", target_size)
        self.im_padding_value, self.label_padding_value = check_colors(
            "Padding", im_padding_value, label_padding_value
        )

    def __call__(self, data: Sample) -> Sample:
        height, width = image_size(data)
        target_width, target_height = self.target_size
        if width > target_width or height > target_height:
            source = f"image {data['im_path']}" if "im_path" in data else "an image"
            raise UserError(
                f"Padding: {source} is {width}x{height} (width x height) here, larger than "
                f"target_size {target_width}x{target_height}. Raise target_size, or put a Resize "
                "or LimitLong before Padding."
            )
        return _padded(
            recorded(data, "padding"),
            (target_height, target_width),
            (self.im_padding_value, self.label_padding_value),
        )


@registry.TRANSFORMS.add_component
class PaddingByAspectRatio:
    """Pads the image until its width / height is a given ratio; recorded in trans_info.

    PaddleSeg leaves trans_info alone when the ratio holds already; here the step is always
    recorded, so that its length does not depend on the image.

    Args:
        aspect_ratio (float): Width / height.
        im_padding_value (float): Colour of the padding, one number or one for each channel.
        label_padding_value (int): Label of the padding.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(
        self,
        aspect_ratio: float = 1,
        im_padding_value: functional.Color = 127.5,
        label_padding_value: int = 255,
    ) -> None:
        self.aspect_ratio = check_number(
            "PaddingByAspectRatio", "aspect_ratio", aspect_ratio, above=0
        )
        self.im_padding_value, self.label_padding_value = check_colors(
            "PaddingByAspectRatio", im_padding_value, label_padding_value
        )

    def __call__(self, data: Sample) -> Sample:
        height, width = image_size(data)
        if width / height > self.aspect_ratio:
            size = (max(height, int(width / self.aspect_ratio)), width)
        else:
            size = (height, max(width, int(height * self.aspect_ratio)))
        colors = (self.im_padding_value, self.label_padding_value)
        return _padded(recorded(data, "padding"), size, colors)


@registry.TRANSFORMS.add_component
class ScalePadding:
    """Pads the image to a square with the image in its middle, then resizes the square.

    The image is resized by CUBIC and kept within its own range. Both steps are recorded in
    trans_info; the padding's entry has a third element, the (top, left) of the image, unless it is
    (0, 0). Deviations from PaddleSeg: there nothing is recorded, so a prediction cannot be brought
    back; labels are resized by CUBIC, which invents classes; the image is rounded to 8 bits.

    Args:
        target_size (list | tuple): (width, height) in pixels.
        im_padding_value (float): Colour of the padding, one number or one for each channel.
        label_padding_value (int): Label of the padding.
    """

    thread_safe = draws_from_rng = True
    effect = "undone"

    def __init__(
        self,
        target_size: Sequence[int] = (512, 512),
        im_padding_value: functional.Color = 127.5,
        label_padding_value: int = 255,
    ) -> None:
        self.target_size = check_size("ScalePadding", "target_size", target_size)
        self.im_padding_value, self.label_padding_value = check_colors(
            "ScalePadding", im_padding_value, label_padding_value
        )

    def __call__(self, data: Sample) -> Sample:
        height, width = image_size(data)
        side = max(height, width)
        offset = ((side - height) // 2, (side - width) // 2)
        colors = (self.im_padding_value, self.label_padding_value)
        square = _padded(recorded(data, "padding", offset), (side, side), colors, offset)
        low, high = square["img"].min(), square["img"].max()
        out = resized(recorded(square, "resize"), self.target_size[::-1], cv2.INTER_CUBIC)
        return {**out, "img": np.clip(out["img"], low, high)}


@registry.TRANSFORMS.add_component
class RandomPaddingCrop:
    """Cuts a random part of a given size; an image that is smaller is padded first.

    Args:
        crop_size (list | tuple): (width, height) in pixels.
        im_padding_value (float): Colour of the padding, one number or one for each channel.
        label_padding_value (int): Label of the padding.
        category_max_ratio (float): Below 1, a crop is drawn again while one class has this share
            of its pixels or more, or it has one class only; pixels of `ignore_index` do not count.
            Needs "label" in gt_fields, else it has no effect.
        ignore_index (int): Label of pixels that do not count for the share.
        loop_times (int): Number of crops that are looked at; the one drawn after the last of them
            is taken as it is.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(
        self,
        crop_size: Sequence[int] = (512, 512),
        im_padding_value: functional.Color = 127.5,
        label_padding_value: int = 255,
        category_max_ratio: float = 1.0,
        ignore_index: int = 255,
        loop_times: int = 10,
    ) -> None:
        # As (height, width), which is how PaddleSeg keeps this one attribute too.
        self.crop_size = check_size("RandomPaddingCrop", "crop_size", crop_size)[::-1]
        self.im_padding_value, self.label_padding_value = check_colors(
            "RandomPaddingCrop", im_padding_value, label_padding_value
        )
        self.category_max_ratio = check_number(
            "RandomPaddingCrop", "category_max_ratio", category_max_ratio, above=0
        )
        self.loop_times = check_int("RandomPaddingCrop", "loop_times", loop_times)
        if not isinstance(ignore_index, numbers.Integral):
            raise TypeError(
                f"RandomPaddingCrop: ignore_index must be an integer, but it is {ignore_index!r}."
            )
        self.ignore_index = ignore_index

    def _balanced(self, label):
        classes, counts = np.unique(label, return_counts=True)
        counts = counts[classes != self.ignore_index]
        return len(counts) > 1 and counts.max() < self.category_max_ratio * counts.sum()

    def canvas(self, size: Sequence[int]) -> tuple[int, int]:
        """(height, width) of an image of (height, width) `size` once it is padded."""
        height, width = (max(s, c) for s, c in zip(size, self.crop_size))
        return height, width

    def looks(self, data: Sample) -> bool:
        """Whether crops are chosen by their label."""
        return self.category_max_ratio < 1.0 and "label" in data.get("gt_fields", ())

    def draw(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        label_at: Callable[[int, int], np.ndarray] | None = None,
    ) -> tuple[int, int]:
        """Draws a crop.

        Args:
            size (tuple[int, int]): (height, width) of the image, not padded yet.
            rng (numpy.random.Generator): Is not drawn from where the image has the crop's size.
            label_at (callable, optional): Takes (top, left), returns the label there, padded and
                cropped; None to take the first crop.

        Returns:
            tuple[int, int]: (top, left) in the padded image.
        """
        if size == self.crop_size:
            return 0, 0
        margins = [s - c for s, c in zip(self.canvas(size), self.crop_size)]
        top, left = (int(rng.integers(m + 1)) for m in margins)
        if label_at is not None:
            for _ in range(self.loop_times):
                if self._balanced(label_at(top, left)):
                    break
                top, left = (int(rng.integers(m + 1)) for m in margins)
        return top, left

    def __call__(self, data: Sample) -> Sample:
        size = image_size(data)
        if size == self.crop_size:
            return dict(data)
        colors = (self.im_padding_value, self.label_padding_value)
        out = _padded(data, self.canvas(size), colors)

        def label_at(top, left):
            return functional.crop(out["label"], top, left, self.crop_size)

        looks = self.looks(data)
        corner = self.draw(size, rng_of(data), label_at if looks else None)
        return _cropped(out, *corner, self.crop_size)


@registry.TRANSFORMS.add_component
class RandomCenterCrop:
    """Cuts random margins off, at most a given share of each side.

    Deviation from PaddleSeg: there a ratio of 1 for one side only fails, and the largest margin and
    the last column and row are never drawn.

    Args:
        retain_ratio (list | tuple): Smallest share that is left of (width, height), in 0..1.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(self, retain_ratio: Sequence[float] = (0.5, 0.5)) -> None:
        if not isinstance(retain_ratio, (list, tuple)):
            raise TypeError(
                "RandomCenterCrop: retain_ratio must be a list or tuple (width, height), "
                f"but it is {retain_ratio!r}."
            )
        if len(retain_ratio) != 2:
            raise ValueError(
                f"RandomCenterCrop: retain_ratio must have 2 elements, but it is {retain_ratio!r}."
            )
        for ratio in retain_ratio:
            check_number("RandomCenterCrop", "each element of retain_ratio", ratio, 0, 1)
        self.retain_ratio = tuple(retain_ratio)

    def __call__(self, data: Sample) -> Sample:
        rng = rng_of(data)
        kept, offset = [], []
        for side, ratio in zip(image_size(data), self.retain_ratio[::-1]):
            most = min(int(side * (1 - ratio)), side - 1)  # at least one pixel is left
            removed = int(rng.integers(most + 1))
            kept.append(side - removed)
            offset.append(int(rng.integers(removed + 1)))
        top, left = offset
        return _cropped(data, top, left, tuple(kept))

# SPDX-License-Identifier: Apache-2.0
"""A random resize followed by a random crop, made on the crop's part of the image alone.

`Compose` takes this way where its list begins with RandomPaddingCrop, or with one of the random
resizes and RandomPaddingCrop. The same random numbers are drawn in the same order as by the two
transforms one after the other. Labels are equal to theirs. Images are equal but for rounding:
OpenCV computes in float32 where a pixel lies, a little differently in a part than in the whole.
Half a unit in the last place of 4096 is 1/8192 of a pixel; two axes, whole and part: up to 1/2048
of the step between neighbouring pixels, so 1/8 of a grey level where black borders on white.
"""

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import Sample, Transform, image_size, naming, rng_of
from paddleseg_deeplab.transforms.crop_pad import RandomPaddingCrop
from paddleseg_deeplab.transforms.resize import ResizeRangeScaling, ResizeStepScaling

_Kind = TypeVar("_Kind")


def with_resize_crop(transforms: Sequence[Transform]) -> list[Transform]:
    """A new list of transforms in which a random resize and crop at the start, or a random crop
    alone, is one `ResizeCrop`.

    A class that has its own `__call__` is left alone: what it does is not known here.
    """
    first, second = [*transforms[:2], None, None][:2]
    if _calls(first, RandomPaddingCrop):
        return [ResizeCrop(None, first), *transforms[1:]]
    if _calls(second, RandomPaddingCrop) and (
        _calls(first, ResizeRangeScaling) or _calls(first, ResizeStepScaling)
    ):
        return [ResizeCrop(first, second), *transforms[2:]]
    return list(transforms)


def _calls(step: object, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether a step is of this kind, with the kind's own `__call__`."""
    return isinstance(step, kind) and type(step).__call__ is kind.__call__


class ResizeCrop:
    """Both transforms as one step, on a sample whose ``img`` is a source (see
    `transforms.reading.source`). It returns img as float32 [h, w, C] of the crop's size.

    Args:
        resize (ResizeRangeScaling | ResizeStepScaling | None): None to crop alone.
        crop (RandomPaddingCrop): The crop.
    """

    def __init__(
        self, resize: ResizeRangeScaling | ResizeStepScaling | None, crop: RandomPaddingCrop
    ) -> None:
        self.resize, self.crop = resize, crop

    def __call__(self, data: Sample) -> Sample:
        scaled, rng = image_size(data), rng_of(data)
        if self.resize is not None:
            with naming(self.resize, data):
                scaled = self.resize.draw(scaled, rng)
        with naming(self.crop, data):
            return self._cropped(data, scaled, rng)

    def _cropped(self, data, scaled, rng):
        """The sample resized to (height, width) `scaled` and cropped."""
        crop = self.crop
        part = tuple(min(s, c) for s, c in zip(scaled, crop.crop_size))  # of the crop, not padding

        def label_at(top, left, key="label"):
            label = functional.nearest_window(data[key], scaled, top, left, part)
            return functional.pad(label, crop.crop_size, crop.label_padding_value)

        top, left = crop.draw(scaled, rng, label_at if crop.looks(data) else None)
        img = _resized_part(data["img"], scaled, (top, left), part)
        out = {**data, "img": functional.pad(img, crop.crop_size, crop.im_padding_value)}
        for key in data.get("gt_fields", ()):
            out[key] = label_at(top, left, key)
        return out


def _resized_part(source, scaled, corner, part):
    """float32 [h, w, C]: `part` (h, w) at `corner` of the source resized to `scaled`."""
    old = source.shape[:2]
    axes = [functional.resize_window(*each) for each in zip(old, scaled, corner, part)]
    starts, lengths, outputs, places = zip(*axes)
    img = functional.resize(source.window(*starts, lengths), outputs)
    return functional.crop(img, *places, part)

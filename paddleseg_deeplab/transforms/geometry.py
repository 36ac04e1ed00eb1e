# SPDX-License-Identifier: Apache-2.0
"""Transforms that move pixels. Image and gt_fields go through the same map: the image bilinearly,
the gt_fields by nearest."""

from collections.abc import Sequence

import cv2
import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import (
    Sample,
    changed,
    check_colors,
    check_number,
    check_range,
    check_size,
    image_size,
    resized,
    rng_of,
)


def _warped(data, matrix, size, im_padding_value, label_padding_value):
    return changed(
        data,
        lambda img: functional.warp_affine(img, matrix, size, cv2.INTER_LINEAR, im_padding_value),
        lambda label: functional.warp_affine(
            label, matrix, size, cv2.INTER_NEAREST, label_padding_value
        ),
    )


@registry.TRANSFORMS.add_component
class RandomHorizontalFlip:
    """Mirrors left and right.

    Args:
        prob (float): Probability, 0..1.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = check_number("RandomHorizontalFlip", "prob", prob, 0, 1)

    def __call__(self, data: Sample) -> Sample:
        if rng_of(data).random() < self.prob:
            return changed(data, functional.horizontal_flip, functional.horizontal_flip)
        return dict(data)


@registry.TRANSFORMS.add_component
class RandomVerticalFlip:
    """Mirrors top and bottom.

    Args:
        prob (float): Probability, 0..1.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(self, prob: float = 0.1) -> None:
        self.prob = check_number("RandomVerticalFlip", "prob", prob, 0, 1)

    def __call__(self, data: Sample) -> Sample:
        if rng_of(data).random() < self.prob:
            return changed(data, functional.vertical_flip, functional.vertical_flip)
        return dict(data)


@registry.TRANSFORMS.add_component
class RandomRotation:
    """Rotates by a random angle; the canvas grows so that nothing is cut off.

    The centre of rotation is the image's centre; PaddleSeg's is up to a pixel off.

    Args:
        max_rotation (float): The angle is drawn from [-max_rotation, max_rotation] degrees.
        im_padding_value (float): Colour outside the image, one number or one for each channel.
        label_padding_value (int): Label outside the image.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(
        self,
        max_rotation: float = 15,
        im_padding_value: functional.Color = 127.5,
        label_padding_value: int = 255,
    ) -> None:
        self.max_rotation = check_number("RandomRotation", "max_rotation", max_rotation, low=0)
        self.im_padding_value, self.label_padding_value = check_colors(
            "RandomRotation", im_padding_value, label_padding_value
        )

    def __call__(self, data: Sample) -> Sample:
        if self.max_rotation == 0:
            return dict(data)
        angle = rng_of(data).uniform(-self.max_rotation, self.max_rotation)
        matrix, size = functional.rotation(image_size(data), angle)
        return _warped(data, matrix, size, self.im_padding_value, self.label_padding_value)


@registry.TRANSFORMS.add_component
class RandomScaleAspect:
    """Cuts a part of random area and proportions and resizes it to the image's size.

    Ten parts are drawn at most; if none fits the image, it stays as it is.

    Args:
        min_scale (float): Smallest area of the part, as a share of the image's, 0..1; 0 switches
            the transform off.
        aspect_ratio (float): Smallest width / height of the part; the largest is its inverse;
            0..1, 0 switches the transform off.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(self, min_scale: float = 0.5, aspect_ratio: float = 0.33) -> None:
        self.min_scale = check_number("RandomScaleAspect", "min_scale", min_scale, 0, 1)
        self.aspect_ratio = check_number("RandomScaleAspect", "aspect_ratio", aspect_ratio, 0, 1)

    def __call__(self, data: Sample) -> Sample:
        if self.min_scale == 0 or self.aspect_ratio == 0:
            return dict(data)
        rng = rng_of(data)
        height, width = image_size(data)
        for _ in range(10):
            area = height * width * rng.uniform(self.min_scale, 1.0)
            ratio = rng.uniform(self.aspect_ratio, 1 / self.aspect_ratio)
            sides = (np.sqrt(area / ratio), np.sqrt(area * ratio))
            part = tuple(max(1, int(side)) for side in sides)
            if rng.random() < 0.5:
                part = part[::-1]
            if part[0] <= height and part[1] <= width:
                break
        else:
            return dict(data)
        top = int(rng.integers(height - part[0] + 1))
        left = int(rng.integers(width - part[1] + 1))

        def cut(array):
            return functional.crop(array, top, left, part)

        return resized(changed(data, cut, cut), (height, width))


@registry.TRANSFORMS.add_component
class RandomAffine:
    """Centres the image on a canvas of a given size, fits it in the mean, rotates and scales it.

    Deviation from PaddleSeg: the image stays float, there it is cut to 8 bits.

    Args:
        size (list | tuple): (width, height) of the canvas in pixels.
        translation_offset (float): The centre of rotation and scaling is drawn up to so many pixels
            away from the canvas' centre, on each axis.
        max_rotation (float): The angle is drawn from [-max_rotation, max_rotation] degrees.
        min_scale_factor (float): Smallest scale, on top of the mean of canvas over image, width
            and height.
        max_scale_factor (float): Largest scale.
        im_padding_value (float): Colour outside the image, one number or one for each channel.
        label_padding_value (int): Label outside the image.
    """

    thread_safe = draws_from_rng = True
    effect = "geometry"

    def __init__(
        self,
        size: Sequence[int] = (224, 224),
        translation_offset: float = 0,
        max_rotation: float = 15,
        min_scale_factor: float = 0.75,
        max_scale_factor: float = 1.25,
        im_padding_value: functional.Color = 128,
        label_padding_value: int = 255,
    ) -> None:
        self.size = check_size("RandomAffine", "size", size)
        self.translation_offset = check_number(
            "RandomAffine", "translation_offset", translation_offset, low=0
        )
        self.max_rotation = check_number("RandomAffine", "max_rotation", max_rotation, low=0)
        self.min_scale_factor, self.max_scale_factor = check_range(
            "RandomAffine",
            "min_scale_factor",
            min_scale_factor,
            "max_scale_factor",
            max_scale_factor,
        )
        self.im_padding_value, self.label_padding_value = check_colors(
            "RandomAffine", im_padding_value, label_padding_value
        )

    def __call__(self, data: Sample) -> Sample:
        rng = rng_of(data)
        height, width = image_size(data)
        out_width, out_height = self.size
        offset = rng.uniform(-1, 1, 2) * self.translation_offset
        angle = rng.uniform(-self.max_rotation, self.max_rotation)
        scale = rng.uniform(self.min_scale_factor, self.max_scale_factor)
        scale *= (out_width / max(width - 1, 1) + out_height / max(height - 1, 1)) / 2
        center = (float(out_width / 2 + offset[0]), float(out_height / 2 + offset[1]))
        matrix: np.ndarray = cv2.getRotationMatrix2D(center, angle, scale)
        # Before that, the image's centre is moved to the canvas' centre.
        shift = ((out_width - (width - 1)) / 2, (out_height - (height - 1)) / 2)
        matrix[:, 2] += matrix[:, :2] @ shift
        return _warped(
            data,
            matrix,
            (out_height, out_width),
            self.im_padding_value,
            self.label_padding_value,
        )

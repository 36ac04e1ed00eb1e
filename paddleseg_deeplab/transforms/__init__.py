# SPDX-License-Identifier: Apache-2.0
"""Transforms of samples, and the path of an image through a network. No Paddle in here."""

from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.color import Normalize, RandomBlur, RandomDistort, RandomNoise
from paddleseg_deeplab.transforms.compose import Compose
from paddleseg_deeplab.transforms.crop_pad import (
    Padding,
    PaddingByAspectRatio,
    RandomCenterCrop,
    RandomPaddingCrop,
    ScalePadding,
)
from paddleseg_deeplab.transforms.divisor import PaddingByDivisor
from paddleseg_deeplab.transforms.geometry import (
    RandomAffine,
    RandomHorizontalFlip,
    RandomRotation,
    RandomScaleAspect,
    RandomVerticalFlip,
)
from paddleseg_deeplab.transforms.resize import (
    LimitLong,
    Resize,
    ResizeByLong,
    ResizeByShort,
    ResizeRangeScaling,
    ResizeStepScaling,
)

__all__ = [
    "Compose",
    "LimitLong",
    "Normalize",
    "Padding",
    "PaddingByAspectRatio",
    "PaddingByDivisor",
    "RandomAffine",
    "RandomBlur",
    "RandomCenterCrop",
    "RandomDistort",
    "RandomHorizontalFlip",
    "RandomNoise",
    "RandomPaddingCrop",
    "RandomRotation",
    "RandomScaleAspect",
    "RandomVerticalFlip",
    "Resize",
    "ResizeByLong",
    "ResizeByShort",
    "ResizeRangeScaling",
    "ResizeStepScaling",
    "ScalePadding",
    "functional",
]

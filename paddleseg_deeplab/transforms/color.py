# SPDX-License-Identifier: Apache-2.0
"""Transforms that change values and move nothing. The random ones expect images in 0..255 and
keep that range; masks pass through them untouched."""

from collections.abc import Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import Sample, check_number, rng_of
from paddleseg_deeplab.transforms.reading.values import LIMIT

_BLURS = {
    "gaussian": functional.gaussian_blur,
    "median": functional.median_blur,
    "blur": functional.box_blur,
}


@registry.TRANSFORMS.add_component
class RandomBlur:
    """Blurs the image with a window of 3 to 9 pixels.

    Deviations from PaddleSeg: `prob` is the probability (there 1 / int(1 / prob), so 0.7 blurs
    every image), an unknown blur_type is an error (there Gaussian), and only the median rounds the
    image to 8 bits.

    Args:
        prob (float): Probability, 0..1.
        blur_type (str): "gaussian", "median", "blur" (mean) or "random": gaussian with 0.3, median
            with 0.3, blur with 0.4.
    """

    thread_safe = draws_from_rng = True
    effect = "colour"
    random = True

    def __init__(self, prob: float = 0.1, blur_type: str = "gaussian") -> None:
        self.prob = check_number("RandomBlur", "prob", prob, 0, 1)
        if blur_type != "random" and blur_type not in _BLURS:
            raise ValueError(
                f"RandomBlur: blur_type must be one of {[*_BLURS, 'random']}, "
                f"but it is {blur_type!r}."
            )
        self.blur_type = blur_type

    def __call__(self, data: Sample) -> Sample:
        rng = rng_of(data)
        if rng.random() >= self.prob:
            return dict(data)
        size = int(rng.choice((3, 5, 5, 7, 7, 9, 9)))  # 3 to 9, even ones raised to the next odd
        kind = self.blur_type
        if kind == "random":
            kind = str(rng.choice(list(_BLURS), p=(0.3, 0.3, 0.4)))
        return {**data, "img": _BLURS[kind](data["img"], size)}


@registry.TRANSFORMS.add_component
class RandomNoise:
    """Adds Gaussian noise to the image.

    Args:
        prob (float): Probability, 0..1.
        max_sigma (float): The noise's standard deviation is drawn from [0, max_sigma), in grey
            levels of 255.
    """

    thread_safe = draws_from_rng = True
    effect = "colour"
    random = True

    def __init__(self, prob: float = 0.5, max_sigma: float = 10.0) -> None:
        self.prob = check_number("RandomNoise", "prob", prob, 0, 1)
        self.max_sigma = check_number("RandomNoise", "max_sigma", max_sigma, low=0)

    def __call__(self, data: Sample) -> Sample:
        rng = rng_of(data)
        if rng.random() >= self.prob:
            return dict(data)
        sigma = np.float32(rng.random() * self.max_sigma)
        noise = rng.standard_normal(data["img"].shape, dtype=np.float32)
        return {**data, "img": functional.add_noise(data["img"], noise * sigma)}


@registry.TRANSFORMS.add_component
class RandomDistort:
    """Changes brightness, contrast, saturation, hue and sharpness, each with its own probability,
    in random order.

    Saturation and hue are defined for three channels (RGB) and are left out for other numbers of
    channels. Deviation from PaddleSeg: values are not rounded to 8 bits after each step.

    Args:
        brightness_range (float): The factor is drawn from [1 - range, 1 + range], not below 0.
        brightness_prob (float): Probability, 0..1.
        contrast_range (float): As for brightness.
        contrast_prob (float): Probability, 0..1.
        saturation_range (float): As for brightness.
        saturation_prob (float): Probability, 0..1.
        hue_range (float): The hue is turned by up to so many 256ths of the colour circle.
        hue_prob (float): Probability, 0..1.
        sharpness_range (float): As for brightness.
        sharpness_prob (float): Probability, 0..1.
    """

    thread_safe = draws_from_rng = True
    effect = "colour"
    random = True

    def __init__(
        self,
        brightness_range: float = 0.5,
        brightness_prob: float = 0.5,
        contrast_range: float = 0.5,
        contrast_prob: float = 0.5,
        saturation_range: float = 0.5,
        saturation_prob: float = 0.5,
        hue_range: float = 18,
        hue_prob: float = 0.5,
        sharpness_range: float = 0.5,
        sharpness_prob: float = 0,
    ) -> None:
        settings = {
            "brightness": (brightness_range, brightness_prob),
            "contrast": (contrast_range, contrast_prob),
            "saturation": (saturation_range, saturation_prob),
            "hue": (hue_range, hue_prob),
            "sharpness": (sharpness_range, sharpness_prob),
        }
        for name, (extent, prob) in settings.items():
            check_number("RandomDistort", f"{name}_range", extent, low=0)
            check_number("RandomDistort", f"{name}_prob", prob, 0, 1)
            setattr(self, f"{name}_range", extent)
            setattr(self, f"{name}_prob", prob)

    def __call__(self, data: Sample) -> Sample:
        rng, img = rng_of(data), data["img"]
        names = ["brightness", "contrast", "sharpness"]
        if img.ndim == 3 and img.shape[2] == 3:
            names += ["saturation", "hue"]
        for name in rng.permutation(names):
            if rng.random() >= getattr(self, f"{name}_prob"):
                continue
            extent = getattr(self, f"{name}_range")
            amount = rng.uniform(-extent, extent)
            if name != "hue":
                amount = max(0.0, 1 + amount)
            img = getattr(functional, name)(img, amount)
        return {**data, "img": img}


@registry.TRANSFORMS.add_component
class Normalize:
    """``(img / 255 - mean) / std``.

    Args:
        mean (list | tuple): One number, or one for each channel, in units of 255.
        std (list | tuple): Likewise; not 0.

    Raises:
        ValueError: When built, a std of 0 or so near to it that values become infinite; when
            called, a length that is neither 1 nor the image's number of channels.
    """

    thread_safe = draws_from_rng = True
    effect = "colour"

    def __init__(
        self,
        mean: Sequence[float] | np.ndarray = (0.5,),
        std: Sequence[float] | np.ndarray = (0.5,),
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, (list, tuple, np.ndarray)) or np.ndim(values) != 1:
                raise TypeError(
                    f"Normalize: {name} must be a list of numbers, but it is {values!r}."
                )
            if len(values) == 0:
                raise ValueError(f"Normalize: {name} must not be empty.")
            for value in values:
                check_number("Normalize", f"each element of {name}", value)
        if any(value == 0 for value in std):
            raise ValueError(f"Normalize: std must not contain 0, but it is {std!r}.")
        self.mean = np.array(mean, dtype=np.float64)
        self.std = np.array(std, dtype=np.float64)
        most = (LIMIT / 255 + abs(self.mean).max()) / abs(self.std).min()
        if not most < np.finfo(np.float32).max:
            raise ValueError(
                f"Normalize: with mean {mean!r} and std {std!r} values become infinite; the usual "
                "std is about 0.2 to 0.5."
            )

    def __call__(self, data: Sample) -> Sample:
        return {**data, "img": functional.normalize(data["img"], self.mean, self.std)}

# SPDX-License-Identifier: Apache-2.0
"""What values a config's own sections may hold; those of components are checked by themselves."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_SWITCHES = ("aug_eval", "flip_horizontal", "flip_vertical", "is_slide")


def _is_number(value):
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_size(value):
    pair = [value, value] if isinstance(value, int) else value
    return (
        isinstance(pair, list) and len(pair) == 2 and all(type(v) is int and v >= 1 for v in pair)
    )


def value_faults(dic: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values that no run could use.

    Args:
        dic (dict): A config whose sections have the right shape.

    Yields:
        tuple[str, str]: The place and what is wrong there.
    """
    coef = (dic.get("loss") or {}).get("coef")
    for i, value in enumerate(coef if isinstance(coef, list) else []):
        if not _is_number(value) or value < 0:
            yield f"loss.coef.{i}", f"should be a finite number, at least 0, not {value!r}."
    decay = dic.get("ema", {}).get("decay", 0.5)
    if not _is_number(decay) or not 0 <= decay < 1:
        yield "ema.decay", f"should lie in 0 to 1, 1 left out, not be {decay!r}."
    transforms = dic.get("export", {}).get("transforms", [])
    if not isinstance(transforms, list):
        yield "export.transforms", f"should be a list, not {transforms!r}."
    yield from _test_faults(dic.get("test_config", {}))


def _test_faults(settings):
    for key in _SWITCHES:
        if not isinstance(settings.get(key, False), bool):
            yield f"test_config.{key}", f"should be True or False, not {settings[key]!r}."
    scales = settings.get("scales", 1.0)
    each = scales if isinstance(scales, list) else [scales]
    if not each or not all(_is_number(scale) and scale > 0 for scale in each):
        yield "test_config.scales", f"should be positive numbers, not {scales!r}."
    for key in ("crop_size", "stride"):
        value = settings.get(key)
        if value is not None and not _is_size(value):
            yield f"test_config.{key}", f"should be [width, height] in pixels, not {value!r}."
    divisor = settings.get("size_divisor")
    if divisor is not None and (not isinstance(divisor, int) or divisor is True or divisor < 1):
        message = f"should be a positive whole number, or null for none, not {divisor!r}."
        yield "test_config.size_divisor", message
    above = settings.get("slide_above")
    if above is not None and (not _is_number(above) or above < 1):
        message = f"should be a number of at least 1, or null for none, not {above!r}."
        yield "test_config.slide_above", message
    elif above is not None and settings.get("is_slide"):
        message = "is_slide puts every image into windows already; give one of the two."
        yield "test_config.slide_above", message
    crop, stride = (settings.get(key) for key in ("crop_size", "stride"))
    if _is_size(crop) and _is_size(stride):
        sides = [value if isinstance(value, list) else [value, value] for value in (crop, stride)]
        if any(step > side for side, step in zip(*sides)):
            message = f"{stride!r} is larger than crop_size {crop!r}: pixels would be left out."
            yield "test_config.stride", message

# SPDX-License-Identifier: Apache-2.0
"""What all transforms share: checks of their parameters, and work on samples.

A transform is a callable that takes a sample (a dict) and returns a new one; the given dict, its
lists and its arrays stay as they were. Keys used: ``img`` (float32 [H, W, C], 0..255),
``gt_fields`` (names of the arrays, such as ``label`` [H, W], that move with the image),
``trans_info`` (what has to be undone after prediction) and ``rng`` (a `numpy.random.Generator`).
"""

import contextlib
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.reading.values import LIMIT
from paddleseg_deeplab.utils.errors import UserError

Sample = dict[str, Any]  # see above
Transform = Callable[[Sample], Sample]


def rng_of(data: Sample) -> np.random.Generator:
    """The sample's random generator; a fresh one, seeded by the system, when it has none."""
    rng = data.get("rng")
    return np.random.default_rng() if rng is None else rng


@contextlib.contextmanager
def naming(transform: Transform, data: Sample) -> Iterator[None]:
    """Within it, a `functional.Misfit` becomes a `UserError` that names transform and image."""
    try:
        yield
    except functional.Misfit as error:
        path = f" Image: {data['im_path']}." if "im_path" in data else ""
        name = type(transform).__name__
        raise UserError(f"{name}: {str(error).rstrip('.')}.{path}") from error


def image_size(data: Sample) -> tuple[int, int]:
    """(height, width) of the sample's image."""
    height, width = data["img"].shape[:2]
    return int(height), int(width)


def changed(
    data: Sample,
    on_image: Callable[[np.ndarray], np.ndarray],
    on_label: Callable[[np.ndarray], np.ndarray],
) -> Sample:
    """A copy of the sample with `on_image` done to its image, `on_label` to its gt_fields."""
    out = dict(data)
    out["img"] = on_image(data["img"])
    for key in data.get("gt_fields", ()):
        out[key] = on_label(data[key])
    return out


def resized(data: Sample, size: Sequence[int], interp: int = cv2.INTER_LINEAR) -> Sample:
    """`changed` by a resize to (height, width); gt_fields by nearest."""
    return changed(
        data,
        lambda img: functional.resize(img, size, interp),
        lambda label: functional.resize(label, size, cv2.INTER_NEAREST),
    )


def recorded(data: Sample, kind: str, offset: Sequence[int] | None = None) -> Sample:
    """A copy whose trans_info ends with ``(kind, size before the step)``.

    Args:
        data (dict): The sample.
        kind (str): "resize" or "padding".
        offset (tuple[int, int]): (top, left) of the image in its padding; left out when (0, 0).
    """
    step: tuple[Any, ...] = (kind, image_size(data))
    if offset is not None and tuple(offset) != (0, 0):
        step = (*step, tuple(offset))
    return {**data, "trans_info": [*data.get("trans_info", ()), step]}


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def check_number(
    owner: str,
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> float:
    """Returns `value`; ValueError unless it is a finite number, >= low, <= high, > above."""
    rules = []
    if low is not None and high is not None:
        rules.append(f"in [{low}, {high}]")
    elif low is not None:
        rules.append(f"at least {low}")
    if above is not None:
        rules.append(f"greater than {above}")
    good = (
        _is_number(value)
        and np.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
    if not good:
        rule = " ".join(["a finite number", *rules])
        error = ValueError if _is_number(value) else TypeError
        raise error(f"{owner}: {name} must be {rule}, but it is {value!r}.")
    return value


def check_int(owner: str, name: str, value: int) -> int:
    """Returns `value`; TypeError unless it is an integer, ValueError unless it is positive."""
    if not _is_int(value):
        raise TypeError(f"{owner}: {name} must be an integer, but it is {value!r}.")
    if value <= 0:
        raise ValueError(f"{owner}: {name} must be positive, but it is {value!r}.")
    return value


def check_size(owner: str, name: str, value: Sequence[int]) -> tuple[int, int]:
    """Returns (width, height) as a tuple; errors unless it is a pair of positive integers."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{owner}: {name} must be a list or tuple (width, height), but it is {value!r}."
        )
    if len(value) != 2:
        raise ValueError(
            f"{owner}: {name} must have 2 elements (width, height), but it is {value!r}."
        )
    width, height = (int(check_int(owner, f"each element of {name}", v)) for v in value)
    return width, height


def check_range(
    owner: str, low_name: str, low: float, high_name: str, high: float
) -> tuple[float, float]:
    """Returns (low, high); ValueError unless 0 < low <= high."""
    check_number(owner, low_name, low, above=0)
    check_number(owner, high_name, high, above=0)
    if low > high:
        raise ValueError(
            f"{owner}: {low_name} must not exceed {high_name}, but they are {low!r} and {high!r}."
        )
    return low, high


def check_colors(
    owner: str, im_padding_value: functional.Color, label_padding_value: int
) -> tuple[functional.Color, int]:
    """Returns both padding values; errors unless they are a number (or one for each channel), and
    an integer."""
    if isinstance(im_padding_value, (list, tuple)):
        for value in im_padding_value:
            check_number(owner, "each element of im_padding_value", value, -LIMIT, LIMIT)
    else:
        check_number(owner, "im_padding_value", im_padding_value, -LIMIT, LIMIT)
    if not _is_int(label_padding_value):
        raise TypeError(
            f"{owner}: label_padding_value must be an integer, but it is {label_padding_value!r}."
        )
    return im_padding_value, label_padding_value

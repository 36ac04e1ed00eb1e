# SPDX-License-Identifier: Apache-2.0
"""What the values of an image may be, and the value that marks pixels without data. No Paddle.

One NaN in one image is enough to ruin a training in silence: on a CPU the loss stays finite while
the weights do not (paddle_quirks: relu_hides_nan). So values are looked at where images are
read. Those of 8 and 16 bits are numbers below the limit by their type and are not looked at.
"""

import functools
import math
import numbers

import numpy as np

from paddleseg_deeplab.utils.errors import UserError

LIMIT = 1e6  # magnitude; beyond it lie the marks of missing data, such as -3.4e38, and damage
VOID = 255  # the label of pixels that are not counted
# Names that annotation programs give to class 0, where it is what no shape covers, and to void.
BACKGROUNDS = ("background", "_background_", "__background__")
IGNORED = ("__ignore__", "_ignore_")
_BLOCK = 1 << 18  # bytes that are looked at twice, for the least and the greatest: they stay cached


def parse_nodata(owner: str, value: float | str | None) -> float | None:
    """Checks the setting `nodata`.

    Args:
        owner (str): Of the setting, for the message.
        value (float | str | None): A number; NaN and infinity too, also as "nan", "inf", "-inf".

    Returns:
        float | None

    Raises:
        UserError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf"):
        value = float(value)
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            pass
    raise UserError(
        f"{owner}: nodata must be a number, such as -9999, or .nan, not {value!r}. Leave it out "
        "where all pixels hold data."
    )


def nodata_mask(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Where an image has no data.

    Args:
        values (np.ndarray): [H, W] or [H, W, C], as the file holds them.
        nodata (float | None): Compared in the array's own type, as the file would hold it.

    Returns:
        np.ndarray | None: bool [H, W], True where any channel equals `nodata` (NaN equals NaN);
        None where no pixel does.
    """
    if nodata is None:
        return None
    if values.dtype.kind != "f":
        if not float(nodata).is_integer():  # fractions, NaN, infinity
            return None
        found = values == int(nodata)
    elif math.isnan(nodata):
        found = np.isnan(values)
    else:
        with np.errstate(over="ignore"):
            value = values.dtype.type(nodata)
        if np.isinf(value) and not math.isinf(nodata):
            return None
        found = values == value
    if not found.any():
        return None
    # A plane after the other: NumPy's `any` along an axis of a few takes ten times as long.
    return functools.reduce(np.logical_or, np.moveaxis(found, 2, 0)) if found.ndim == 3 else found


def mark_void(labels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Labels with void (255) where `mask` is True.

    Args:
        labels (np.ndarray): Numbers [H, W] or [H, W, C]; they stay as they are.
        mask (np.ndarray | None): bool [H, W]; None: nowhere.
    """
    if mask is None:
        return labels
    marked = labels.astype(np.result_type(labels.dtype, np.uint8))  # int8 has no 255
    marked[mask] = VOID
    return marked


def describe_faults(
    values: np.ndarray, mask: np.ndarray | None = None, limit: float = LIMIT
) -> tuple[str, str]:
    """Counts the values that no image has.

    Args:
        values (np.ndarray): [H, W] or [H, W, C].
        mask (np.ndarray, optional): bool [H, W], where values do not matter.
        limit (float): Of the magnitude.

    Returns:
        tuple[str, str]: Such as "12 of 4096 values are NaN, 3 infinite", and one of them as YAML
        has it; "" both where there are none.
    """
    if (values.dtype.kind in "bui" and values.dtype.itemsize <= 2) or not values.size:
        return "", ""
    counts, example = np.zeros(3, np.int64), ""
    if mask is None and values.flags.c_contiguous:
        values = values.reshape(-1)  # planes are no smaller blocks than the cache
    step = max(_BLOCK // max(values[:1].nbytes, 1), 1)
    with np.errstate(invalid="ignore"):
        for top in range(0, len(values), step):
            part = values[top : top + step]
            if part.dtype == np.float16:  # NumPy compares those one by one
                part = part.astype(np.float32)
            if -math.inf < part.min() >= -limit and math.inf > part.max() <= limit:  # no NaN
                continue
            part = part[~mask[top : top + step]] if mask is not None else part
            kinds = [np.isnan(part), np.isinf(part)]
            # Not by `abs`, which leaves the least whole number of a type negative.
            kinds.append(((part > limit) | (part < -limit)) & ~kinds[1])
            found = [int(kind.sum()) for kind in kinds]
            if any(found) and not example:
                example = _yaml(part[kinds[next(i for i in range(3) if found[i])]][0])
            counts += found
    faults = [
        f"{count} {what}"
        for count, what in zip(counts, ("NaN", "infinite", "beyond 1e6 in magnitude"))
        if count
    ]
    if not faults:
        return "", ""
    count, what = faults[0].split(" ", 1)
    return ", ".join([f"{count} of {values.size} values are {what}", *faults[1:]]), example


def check_values(values: np.ndarray, name: str, mask: np.ndarray | None = None) -> None:
    """Refuses values that are NaN, infinite, or beyond 1e6 in magnitude.

    Args:
        values (np.ndarray): [H, W] or [H, W, C].
        name (str): Of the image, for the message.
        mask (np.ndarray, optional): bool [H, W], pixels without data.

    Raises:
        UserError: Naming image and counts.
    """
    text, example = describe_faults(values, mask)
    if text:
        raise UserError(
            f"{name}: {text}. Repair it, or, if the value marks pixels without data, set "
            f"nodata: {example} on the dataset: they become void."
        )


def check_input(img: np.ndarray, name: str) -> None:
    """Refuses a network's input that is not finite, which transforms or datasets may make.

    Args:
        img (np.ndarray): float [..., H, W].
        name (str): Of the image, for the message.

    Raises:
        UserError: Naming image and counts.
    """
    text, _ = describe_faults(np.asarray(img), limit=math.inf)
    if text:
        raise UserError(
            f"{name}: the network's input is not finite: {text}. A transform or dataset of your "
            "own makes them; those of this package keep finite values finite."
        )


def _yaml(value):
    value = float(value)
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return f"{value:.0f}" if abs(value) < 1e16 and value.is_integer() else repr(value)

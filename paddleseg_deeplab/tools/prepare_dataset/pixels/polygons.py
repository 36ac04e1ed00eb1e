# SPDX-License-Identifier: Apache-2.0
"""Pixels inside drawn shapes: a pixel belongs to a shape if its centre does.

Points are (x, y) with the origin at the image's upper left corner, so the centre of the first pixel
is (0.5, 0.5). Drawing libraries also paint the pixels that an outline touches, which makes every
object up to a pixel wider on each side; here neighbours that share an edge share no pixel.
"""

import base64
import itertools
from collections.abc import Sequence

import numpy as np

from paddleseg_deeplab.transforms.reading import limit
from paddleseg_deeplab.utils.errors import UserError

_FARTHEST = 1e9  # pixels from the origin; also keeps NaN and infinity out


def check_points(points: Sequence[Sequence[float]], least: int, what: str) -> np.ndarray:
    """Points as float64 [N, 2].

    Args:
        points (list): [x, y] each.
        least (int): So many at least.
        what (str): The shape, for the message.

    Raises:
        ValueError: Too few points, or something that is no pair of finite numbers.
    """
    try:
        table = (
            np.array(points, dtype=np.float64).reshape(-1, 2) if len(points) else np.zeros((0, 2))
        )
        flat = all(len(point) == 2 for point in points)
    except (TypeError, ValueError, OverflowError):
        flat = False
    if not flat or not (np.abs(table) < _FARTHEST).all():
        raise ValueError(f"{what} has points that are no pairs of finite numbers")
    if len(table) < least:
        raise ValueError(f"{what} has {len(table)} points, needs {least}")
    return table


def _range(low, high, end):
    """Slice of the pixels with centres in low..high, cut to 0..end."""
    first = int(np.clip(np.ceil(low - 0.5), 0, end))
    last = int(np.clip(np.floor(high - 0.5) + 1, first, end))
    return first, last


def _centres(points, margin, size):
    """Slices of the box around points, and the pixel centres (y [h, 1], x [1, w]) in it."""
    (left, top), (right, bottom) = points.min(axis=0) - margin, points.max(axis=0) + margin
    rows, columns = _range(top, bottom, size[0]), _range(left, right, size[1])
    y, x = np.arange(*rows)[:, None] + 0.5, np.arange(*columns)[None] + 0.5
    return (slice(*rows), slice(*columns)), y, x


def polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside a polygon, by the even-odd rule.

    A centre exactly on an edge belongs to the side right of or below it, so that of two polygons
    with a common edge exactly one has it.

    Args:
        points (numpy.ndarray): float64 [N, 2] of (x, y); it is closed by itself.
        size (tuple): (height, width) of the mask.

    Returns:
        numpy.ndarray: bool [height, width].
    """
    low, high = points.min(axis=0), points.max(axis=0)
    (left, right), (top, bottom) = (_range(low[i], high[i], size[1 - i]) for i in (0, 1))
    # Each crossing of an edge with a row's middle turns inside and outside from there on.
    turns = np.zeros((bottom - top, right - left + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        first = int(np.clip(np.ceil(y0 - 0.5), top, bottom))
        end = int(np.clip(np.ceil(y1 - 0.5), first, bottom))
        if first < end:
            rows = np.arange(first, end)
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
            turns[rows - top, columns - left] ^= 1
    mask = np.zeros(size, bool)
    inside = np.bitwise_xor.accumulate(turns, axis=1)[:, :-1]
    mask[top:bottom, left:right] = inside.astype(bool)
    return mask


def rectangle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels with their centre between two opposite corners [2, 2]: bool [height, width]."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return polygon(np.array(corners), size)


def disc(centre: Sequence[float] | np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    """Pixels with their centre not further than `radius` from (x, y): bool [height, width]."""
    mask = np.zeros(size, bool)
    place, y, x = _centres(np.array([centre]), radius, size)
    mask[place] = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    return mask


def strip(points: np.ndarray, width: float, size: tuple[int, int]) -> np.ndarray:
    """Pixels with their centre not further than width / 2 from a line through points.

    Args:
        points (numpy.ndarray): float64 [N, 2] of (x, y), N >= 1; it is not closed.
        width (float): In pixels.
        size (tuple): (height, width) of the mask.

    Returns:
        numpy.ndarray: bool [height, width].
    """
    mask = np.zeros(size, bool)
    for begin, end in itertools.pairwise(points):
        place, y, x = _centres(np.stack([begin, end]), width / 2, size)
        (dx, dy), square = end - begin, float(((end - begin) ** 2).sum())
        along = ((x - begin[0]) * dx + (y - begin[1]) * dy) / square if square else 0.0 * (x + y)
        along = np.clip(along, 0, 1)
        off = (begin[0] + along * dx - x) ** 2 + (begin[1] + along * dy - y) ** 2
        mask[place] |= off <= (width / 2) ** 2
    return mask


def stamp(points: np.ndarray, coded: str | None, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a mask drawn by hand: labelme's base64 PNG between two corners, both inside.

    Raises:
        ValueError: It is no picture, or does not fit between its corners.
    """
    try:
        with limit.open_image(base64.b64decode(coded or "", validate=True)) as file:
            picture = np.array(file)
    except UserError as error:
        raise ValueError(f"its mask {error}") from error
    except Exception as error:  # decoders raise anything over damaged files
        raise ValueError(f"its mask is no base64 PNG ({type(error).__name__})") from error
    (left, top), (right, bottom) = points.astype(np.int64)
    if picture.shape != (bottom + 1 - top, right + 1 - left):
        raise ValueError(f"its mask is {picture.shape}, its corners are {points.tolist()}")
    mask = np.zeros(size, bool)
    rows, columns = slice(max(top, 0), bottom + 1), slice(max(left, 0), right + 1)
    picture = picture[max(-top, 0) :, max(-left, 0) :]
    part = mask[rows, columns]
    part |= picture[: part.shape[0], : part.shape[1]] > 0
    return mask

# SPDX-License-Identifier: Apache-2.0
"""What a mask says in other forms: pixels of each class, outlines, COCO's run lengths. No Paddle.

A mask is integers [H, W]. Classes are 0, 1, ...; 255 is void and never a class.

Points are (x, y) in corners of pixels: (0, 0) is the image's upper left corner, (1, 1) the lower
right corner of the first pixel, (W, H) the image's lower right corner. The pixel in row r and
column c covers x from c to c + 1 and y from r to r + 1, its centre is (c + 0.5, r + 0.5).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import cv2
import numpy as np

from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError

VOID_NAME = "void"


class ClassArea(NamedTuple):
    """Pixels of one class; `share` is the part of all pixels of the mask, 0 to 1."""

    class_id: int
    name: str
    pixels: int
    share: float


@dataclasses.dataclass(frozen=True)
class Polygon:
    """The outline of one region, as int64 [N, 2] points (x, y) in corners of pixels.

    An outline begins with the topmost of its points, of several with the leftmost: the pixel below
    and right of it lies inside the outline.

    Attributes:
        outer (np.ndarray): Clockwise on the screen. It ends where it began without saying so.
        holes (list[np.ndarray]): Counter-clockwise.
    """

    outer: np.ndarray
    holes: list[np.ndarray]


class Rle(TypedDict):
    """A mask as COCO and pycocotools write it."""

    size: list[int]  # height, width
    counts: str


def checked_mask(mask: np.ndarray) -> np.ndarray:
    """The mask itself.

    Raises:
        UserError: It is not integers [H, W], has no pixels, or has negative ones.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise UserError(f"A mask must be integers [H, W], not {mask.dtype} {list(mask.shape)}.")
    if not mask.size:
        raise UserError(f"The mask is empty: its shape is {list(mask.shape)}.")
    if mask.dtype.kind == "i" and mask.min() < 0:
        raise UserError(f"A mask must hold classes from 0 on, this one holds {mask.min()}.")
    return mask


def names_of(classes: int | Sequence[str]) -> list[str]:
    """Class names; where there is only their number, "class 0", "class 1", ..."""
    if isinstance(classes, int):
        return [f"class {number}" for number in range(classes)]
    return list(classes)


def class_areas(mask: np.ndarray, class_names: int | Sequence[str]) -> list[ClassArea]:
    """How many pixels each class has.

    Args:
        mask (np.ndarray): Integers [H, W].
        class_names (int | Sequence[str]): Names of the classes, or how many there are.

    Returns:
        list[ClassArea]: All classes in their order, those without pixels too; then what else the
        mask holds, such as 255, each with the name "void". The pixels add up to those of the mask.

    Raises:
        UserError: See `checked_mask`.
    """
    counts = np.bincount(checked_mask(mask).ravel())
    names = names_of(class_names)
    areas = []
    for number in range(max(len(names), len(counts))):
        pixels = int(counts[number]) if number < len(counts) else 0
        if number < len(names) or pixels:
            name = names[number] if number < len(names) else VOID_NAME
            areas.append(ClassArea(number, name, pixels, pixels / mask.size))
    return areas


def classes_in(mask: np.ndarray) -> list[int]:
    """The numbers that a mask holds, in their order; void too."""
    return np.flatnonzero(np.bincount(checked_mask(mask).ravel())).tolist()


def box_of(part: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around the True pixels, of which there is one."""
    rows, columns = (np.flatnonzero(part.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def polygons(mask: np.ndarray, classes: Sequence[int] | None = None) -> dict[int, list[Polygon]]:
    """The outlines of all regions, exactly: what lies inside them is the mask again.

    Pixels of a class that share an edge are one region, so that of two regions one lies inside a
    hole of the other or they lie side by side. Outlines run along the pixels' edges and are not
    made smoother; one that touches itself passes that corner twice.

    Args:
        mask (np.ndarray): Integers [H, W].
        classes (Sequence[int], optional): Wanted ones; all but void (255) by default.

    Returns:
        dict: {class: its regions}, from the top down, for each class that has pixels.

    Raises:
        UserError: See `checked_mask`.
    """
    found = {}
    for number in classes_in(mask):
        if number in classes if classes is not None else number != VOID:
            part = mask == number
            rows, columns = box_of(part)
            found[number] = _outlines(part[rows, columns], (columns.start, rows.start))
    return found


# Two by two pixels around a corner, as bits: 1 upper left, 2 upper right, 4 lower left, 8 lower
# right. Outlines turn where one or three of them belong to a region, or two that touch only here (6
# and 9); there two outlines pass, one round each pixel, and the corner is taken as two. With its
# region on the right, an outline leaves `_SIDEWAYS` corners to the left or right, the others up or
# down.
_TURNS = np.isin(np.arange(16), (1, 2, 4, 6, 7, 8, 9, 11, 13, 14))
_SIDEWAYS = np.isin(np.arange(16), (1, 8, 11, 13))
_BEGINS_REGION = 8  # the corner of an outer outline that comes first from the top down; else a hole


def _outlines(part, origin):
    """`Polygon`s of a bool array whose corner lies at `origin` (x, y)."""
    padded = np.pad(part, 1).astype(np.uint8)
    around = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    y, x = np.nonzero(_TURNS[around])
    around = around[y, x]
    places = np.repeat(np.arange(len(y)), 1 + np.isin(around, (6, 9)))
    again = np.append(False, places[1:] == places[:-1])
    y, x, code = y[places], x[places], around[places].astype(np.int64)
    # Of the two in one place the one with its outline to the left comes first.
    code = np.where(code == 9, np.where(again, 8, 1), code)
    code = np.where(code == 6, np.where(again, 2, 4), code)
    # The regions' numbers, looked up at the first of the four pixels that belongs to one.
    bit = code & -code
    inside = cv2.connectedComponents(padded, connectivity=4)[1]
    inside = inside[y + (bit >= 4), x + ((bit == 2) | (bit == 8))]
    follower = np.arange(len(y)) ^ 1  # along a row, outlines join the corners in pairs
    column = np.lexsort((np.isin(code, (4, 8)), y, x))  # and so along a column
    beside = np.empty_like(column)
    beside[column[::2]], beside[column[1::2]] = column[1::2], column[::2]
    follower = np.where(_SIDEWAYS[code], follower, beside).tolist()
    points = np.stack([x, y], axis=1) + np.array(origin)
    regions = {}
    for first in range(len(follower)):
        ring = []
        while follower[first] >= 0:
            ring.append(first)
            follower[first], first = -1, follower[first]
        if ring:
            line = points[ring]
            if code[ring[0]] == _BEGINS_REGION:
                regions[int(inside[ring[0]])] = Polygon(line, [])
            else:
                regions[int(inside[ring[0]])].holes.append(line)
    return list(regions.values())


def area_of(outline: np.ndarray) -> int:
    """Pixels inside an outline [N, 2], those of its holes too; of a hole, less than 0."""
    x, y = outline.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def rle_encode(part: np.ndarray) -> Rle:
    """Run lengths of a mask, as pycocotools' `encode` gives them, but as text.

    Args:
        part (np.ndarray): bool [H, W].

    Raises:
        UserError: See `checked_mask`.
    """
    mask = checked_mask(part).astype(bool)
    return _encode(mask.view(np.uint8), [1])[1]


def rle_of_classes(mask: np.ndarray) -> dict[int, Rle]:
    """`rle_encode` of each number that a mask holds, in one pass over the mask.

    Args:
        mask (np.ndarray): Integers [H, W].

    Raises:
        UserError: See `checked_mask`.
    """
    return _encode(checked_mask(mask))


def _encode(mask, numbers=None):
    # Column by column, runs of 0 and 1 in turn, beginning with 0.
    if mask.dtype != np.uint8:  # of a byte a pixel it takes a third of the time
        mask = mask.astype(np.uint8 if mask.max() <= VOID else np.int32)
    flat = cv2.transpose(mask).ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    found = {}
    for number in np.unique(values).tolist() if numbers is None else numbers:
        own = np.flatnonzero(values == number)
        edges = np.stack([starts[own], ends[own]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        if len(counts) > 1 and not counts[-1]:
            counts = counts[:-1]
        found[number] = {"size": list(map(int, mask.shape)), "counts": _run_text(counts)}
    return found


def _run_text(counts):
    """COCO's text: `tools/prepare_dataset/pixels/rle.py` tells the rule and reads it."""
    rest = counts.astype(np.int32)
    rest[3:] -= rest[1:-2].copy()
    text = np.zeros((len(rest), 7), np.uint8)  # 7 groups of 5 bits hold 32
    rows = np.arange(len(rest))
    for column in range(text.shape[1]):
        group = rest & 31
        rest = rest >> 5
        follows = rest != -(group >> 4)  # 0, or -1 where the group's highest bit is the sign
        text[rows, column] = group + 32 * follows + 48
        rows, rest = rows[follows], rest[follows]
    return text[text > 0].tobytes().decode("ascii")

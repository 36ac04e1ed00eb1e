# SPDX-License-Identifier: Apache-2.0
"""Pictures that their EXIF field turns, and which way their masks fit.

A mask that was drawn on the pixels as they are stored does not lie on the picture as it is shown.
Its size tells, unless the picture is square, mirrored or turned by 180 degrees. Then its borders
may: where a mask fits, the picture changes more across them than elsewhere.
"""

import dataclasses

import numpy as np

from paddleseg_deeplab.transforms.reading import exif

READ, STORED, UNKNOWN = "as read", "as stored", "not told"
_CLEARER = 1.2  # times: so much stronger are the edges below the borders, or neither way is said


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a picture and its mask fit, of which one is turned and the other not likewise.

    Attributes:
        image, label: Their orientations.
        as_read, as_stored: See `edges`, with the pixels as they are read (both turned as their
            files say), and with those of both as they are stored; None where sizes differ.
    """

    image: int
    label: int
    as_read: float | None
    as_stored: float | None

    @property
    def is_open(self) -> bool:
        """Whether both ways are possible by their sizes."""
        return self.as_read is not None and self.as_stored is not None

    @property
    def verdict(self) -> str:
        """`READ`, `STORED` or `UNKNOWN`."""
        if self.as_read is None:
            return STORED
        if self.as_stored is None:
            return READ
        if self.as_read > _CLEARER * self.as_stored:
            return READ
        return STORED if self.as_stored > _CLEARER * self.as_read else UNKNOWN

    def __str__(self) -> str:
        text = f"picture {exif.describe(self.image)}; mask {exif.describe(self.label)}; "
        if not self.is_open:
            return text + f"by its size the mask fits {self.verdict} only"
        return text + (
            f"edges below the mask's borders: {self.as_read:.2f} times the average as read, "
            f"{self.as_stored:.2f} with the pixels as stored"
        )


def compare(image: np.ndarray, label: np.ndarray, turns: tuple[int, int]) -> Fit | None:
    """How a picture and its mask fit.

    Args:
        image: [H, W] or [H, W, C], as it is read: turned.
        label: [H, W], likewise.
        turns: Orientations of the two; None comes back where they are the same.
    """
    if turns[0] == turns[1]:
        return None
    stored = exif.turn(exif.turn_back(label, turns[1]), turns[0])
    ways = [edges(image, way) if way.shape == image.shape[:2] else None for way in (label, stored)]
    return Fit(*turns, *ways)


def edges(image: np.ndarray, label: np.ndarray) -> float:
    """How much an image changes across the borders of a label, as a multiple of its average change.

    1 where there are no borders, or no changes.
    """
    grey = image.astype(np.float32)
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    total, steps, at_borders, borders = 0.0, 0, 0.0, 0
    for axis in (0, 1):
        change = np.abs(np.diff(grey, axis=axis))
        border = np.diff(label.astype(np.int64), axis=axis) != 0
        total, steps = total + float(change.sum()), steps + change.size
        at_borders, borders = at_borders + float(change[border].sum()), borders + int(border.sum())
    if not borders or not total:
        return 1.0
    return (at_borders / borders) / (total / steps)

# SPDX-License-Identifier: Apache-2.0
"""The orientation that a camera notes in a file, which is obeyed in every format, by images and by
labels: what counts is what a viewer shows. Labelling programs draw on it too.

The rule is the file's own EXIF field: of a JPEG, WebP or AVIF, a PNG's eXIf chunk, a TIFF's tag.
XMP and texts that hold EXIF data do not count, for browsers and OpenCV do not look at them.
"""

import contextlib
import struct

import numpy as np
from PIL import Image

from paddleseg_deeplab.utils.pictures.png_chunks import SIGNATURE

_TAG = 0x0112
_NAMES = {
    1: "not turned",
    2: "left and right swapped",
    3: "turned by 180 degrees",
    4: "top and bottom swapped",
    5: "turned to the right, left and right swapped",
    6: "turned to the right",
    7: "turned to the left, left and right swapped",
    8: "turned to the left",
}


def orientation(content: bytes, image: Image.Image) -> int:
    """What the EXIF field of a file says.

    Args:
        content: The file.
        image: The same, opened with Pillow and not yet decoded.

    Returns:
        1 to 8; 1 where there is none, or another number.
    """
    if image.format == "TIFF":
        value = getattr(image, "tag_v2", {}).get(_TAG, 1)
    else:
        value = _of_exif(image.info.get("exif") or _late_exif(content))
    return value if value in _NAMES else 1


def left_by_pillow(content: bytes, image: Image.Image) -> int:
    """What is left to `turn` when Pillow has decoded an image: it turns a TIFF by itself."""
    return 1 if image.format == "TIFF" else orientation(content, image)


def describe(number: int) -> str:
    """An orientation in words."""
    return f"{number}: {_NAMES[number]}"


def swaps_sides(number: int) -> bool:
    """Whether an orientation makes the height of the width."""
    return number >= 5


def turn(array: np.ndarray, number: int) -> np.ndarray:
    """An array [H, W] or [H, W, C] as an orientation says; a copy where it is turned."""
    if number == 1:
        return array
    if swaps_sides(number):
        array = array.swapaxes(0, 1)
    if number in (3, 4, 7, 8):
        array = array[::-1]
    if number in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def turn_back(array: np.ndarray, number: int) -> np.ndarray:
    """Undoes `turn`."""
    return turn(array, {6: 8, 8: 6}.get(number, number))


def _of_exif(data: bytes) -> int:
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # Pillow raises anything over damaged fields
        exif.load(data)
        return int(exif.get(_TAG, 1))
    return 1


def _late_exif(content: bytes) -> bytes:
    """The eXIf chunk of a PNG that stands behind its pixels, where Pillow does not look."""
    if content[:8] != SIGNATURE:
        return b""
    place = len(SIGNATURE)
    while place + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        if name == b"eXIf":
            return bytes(content[place + 8 : place + 8 + length])
        place += 12 + length
    return b""

# SPDX-License-Identifier: Apache-2.0
"""Label files as the numbers that stand in them.

Decoders make pictures. A grey file of 2 bits holds 0 to 3, and its picture 0, 85, 170 and 255; one
of 16 bits and three channels loses its lower half. A label's numbers are classes, so what a decoder
did to them is undone here. Of one bit, white is 1 in every format.
"""

import dataclasses
import re

import cv2
import numpy as np

from paddleseg_deeplab.transforms.reading import exif, limit, tiff
from paddleseg_deeplab.utils.errors import UserError

# What Pillow calls grey of less than 8 bits, and grey whose 0 is white ("I"). "R" is the order of
# bits in a byte, which it has seen to.
_GREY = re.compile(r"L(?:;([248]?)(I?)R?)?")
_COLOURS = {"LA": 1, "La": 1, "PA": 1, "RGBA": 3, "RGBa": 3}  # channels without transparency


@dataclasses.dataclass(frozen=True)
class LabelPixels:
    """A decoded label.

    Attributes:
        numbers: [H, W], or [H, W, C] where the file holds colours.
        mode: Pillow's name of the file's channels.
        orientation: Of its EXIF field, which is obeyed.
        palette: uint8 [256, 3] RGB of a palette file, else None.
        others: What a decoder that makes pictures gives for the number 1, where it is not 1.
    """

    numbers: np.ndarray
    mode: str
    orientation: int = 1
    palette: np.ndarray | None = None
    others: int | None = None


def decode_label(content: bytes) -> LabelPixels:
    """Decodes a label with Pillow, since OpenCV turns palette indices into colours.

    A TIFF of 16 bits and more is not left to Pillow, which gives wrong numbers where it is
    compressed, has a sign and the greater byte first.

    Args:
        content: The file.

    Raises:
        UserError: More pixels than the limit, see `limit.open_image`.
        Exception: Damaged files; Pillow raises anything over them.
    """
    header = tiff.look(content)
    if header is not None and header.bits >= 16:
        limit.check_size(header.width, header.height)
        return LabelPixels(_one(_of_tiff(content, header)), str(header), header.orientation)
    with limit.open_image(content) as file:
        mode, orientation = file.mode, exif.orientation(content, file)
        left = exif.left_by_pillow(content, file)
        raw, most = _stored_as(file)
        pixels = np.array(file)  # before the palette, which some formats have behind the pixels
        palette = _palette(file) if mode == "P" else None
    others = None
    if (";16" in raw or most > 255) and not mode.startswith("I"):
        pixels, others = _deep(content), 0
    elif most not in (0, 255, 65535):  # the greatest of their types stay as they are
        top, dtype = (65535, np.int32) if mode == "I" else (255, np.uint8)
        pixels, others = np.rint(pixels * (most / top)).astype(dtype), round(top / most)
    elif mode == "L" and (found := _GREY.fullmatch(raw)):
        pixels, others = _grey(pixels, int(found[1] or 8), bool(found[2]))
    if pixels.ndim == 3:
        pixels = _one(pixels[:, :, : _COLOURS.get(mode, pixels.shape[2])])
    return LabelPixels(exif.turn(pixels, left), mode, orientation, palette, others)


def _one(pixels):
    """[H, W] of an array whose channels are all equal."""
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, 0])
    return pixels


def _stored_as(file):
    """Pillow's name of the numbers in an opened file; the greatest number of a PGM or PPM, or 0."""
    args = file.tile[0][3] if file.tile else ""
    args = args if isinstance(args, tuple) else (args,)
    most = args[1] if file.format == "PPM" and len(args) == 2 else 0
    return str(args[0]) if args else "", most


def _grey(pixels, bits, inverted):
    step = 255 // (2**bits - 1)
    numbers = (255 - pixels if inverted else pixels) // step
    first = 255 - step if inverted else step
    return numbers, None if first == 1 else first


def _deep(content):
    """Numbers of 16 bits and several channels, of which Pillow keeps the upper half."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UserError("holds 16 bits in a form that cannot be read: write it as a grey PNG")
    return pixels


def _of_tiff(content, header):
    if header.opencv_reads(header.samples):
        return _deep(content)
    return tiff.read(content, header, header.samples)


def _palette(file):
    flat = file.getpalette() or []
    table = np.zeros((256, 3), np.uint8)
    table[: len(flat) // 3] = np.reshape(flat[: len(flat) // 3 * 3], (-1, 3))[:256]
    return table

# SPDX-License-Identifier: Apache-2.0
"""TIFF files: what they hold, from the header alone, and those that OpenCV reads wrong or not.

OpenCV brings pictures of 8 and 16 bits to the channels that are asked for. Other files it refuses
(2 channels, 5 and more, floats of 16 bits), or gives without a word what is not in them: bands that
are stored one after the other end in noise, colours come multiplied by their transparency, and
numbers with a sign lose it. Those are read by Pillow where it can and by the package tifffile (the
extra `tiff`).
"""

import contextlib
import dataclasses
import io
import logging
import struct

import cv2
import numpy as np

from paddleseg_deeplab.transforms.reading import exif, limit
from paddleseg_deeplab.utils.errors import UserError, import_extra

_TAGS = {
    256: "width",
    257: "height",
    258: "bits",
    262: "photometric",
    274: "orientation",
    277: "samples",
    284: "planar",
    338: "alpha",
    339: "kind",
}
_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
_MOST_TAGS = 4096
_MOST_PAGES = 512  # as many as an image may have channels
_GREY, _RGB = 1, 2  # of `photometric`; others are palettes, CMYK, YCbCr
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # of `kind`
_NAMES = {_UNSIGNED: "whole numbers", _SIGNED: "whole numbers with a sign", _FLOAT: "floats"}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its first picture; the numbers are the format's own.

    Attributes:
        bits: Of one number of the first channel.
        photometric: 0 and 1 grey, 2 RGB, and more.
        samples: Channels.
        planar: 2 where channels are stored one after the other.
        alpha: What the first channel beyond the colours is: 1 or 2 transparency, 0 not said.
        kind: 1 whole numbers, 2 those with a sign, 3 floats.
        pages: Pictures of the same size, the first included; those behind an other one not.
    """

    width: int = 0
    height: int = 0
    bits: int = 1
    photometric: int = _GREY
    orientation: int = 1
    samples: int = 1
    planar: int = 1
    alpha: int = 0
    kind: int = _UNSIGNED
    pages: int = 1

    @property
    def is_wide(self) -> bool:
        """Whether numbers are taken as they are: floats, a sign, or 32 bits and more."""
        return self.bits >= 32 or self.kind != _UNSIGNED

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is transparency, or a fourth one beside RGB."""
        return self.samples == (4 if self.photometric == _RGB else 2) and (
            self.photometric == _RGB or self.alpha in (1, 2)
        )

    def opencv_reads(self, img_channels: int) -> bool:
        """Whether OpenCV gives what is in the file, as an image of so many channels."""
        if self.has_pages(img_channels):
            return False
        colours = self.photometric == _RGB and self.samples in (3, 4)
        if self.is_wide:
            known = (32, 64) if self.kind == _FLOAT else (8, 16, 32)
            plain = self.samples == 1 or (colours and self.planar == 1 and self._is_plain)
            return plain and self.bits in known
        if img_channels not in (1, 3):
            return colours and self.samples == img_channels == 4 and self._is_plain
        if self.samples == 1 or self.photometric not in (_GREY, _RGB):
            return True
        return colours and self._is_plain

    @property
    def _is_plain(self) -> bool:
        """Of three and four channels: neither noise nor multiplied by a transparency."""
        if self.bits > 8:
            return self.planar == 1
        return self.samples == 3 or self.alpha != 2

    def has_pages(self, img_channels: int) -> bool:
        """Whether the channels are pages of one channel each."""
        return self.samples == 1 and self.pages == img_channels > 1

    def __str__(self) -> str:
        count = self.samples if self.samples > 1 else self.pages
        return f"{count} channels of {self.bits}-bit {_NAMES.get(self.kind, 'numbers')}"


def look(content: bytes) -> Header | None:
    """The header of a file, None where it is no TIFF or the header is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        return None
    try:
        (version,) = struct.unpack_from(f"{order}H", content, 2)
        if version not in (42, 43):
            return None
        # 43 is BigTIFF: the same with offsets and counts of 8 bytes.
        word, start, size = ("I", 4, 12) if version == 42 else ("Q", 8, 20)
        (place,) = struct.unpack_from(order + word, content, start)
        found, place = _directory(content, order, word, place, size)
        pages = 1
        with contextlib.suppress(struct.error):  # a page that is not there counts for nothing
            while place and pages < _MOST_PAGES:
                other, place = _directory(content, order, word, place, size)
                if any(other.get(side) != found.get(side) for side in ("width", "height")):
                    break
                pages += 1
        return Header(**found, pages=pages)
    except struct.error:
        return None


def _directory(content, order, word, place, size):
    """({name: first value} of a picture, where the next one's directory stands, or 0)."""
    head = order + ("H" if word == "I" else "Q")
    (count,) = struct.unpack_from(head, content, place)
    place += struct.calcsize(head)
    found = {}
    for first in range(place, place + size * min(count, _MOST_TAGS), size):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", content, first)
        if tag in _TAGS and kind in _FORMS and values:
            at, form = first + 4 + struct.calcsize(word), order + _FORMS[kind]
            if values * struct.calcsize(form) > struct.calcsize(word):  # too many to stand here
                (at,) = struct.unpack_from(order + word, content, at)
            (found[_TAGS[tag]],) = struct.unpack_from(form, content, at)
    following = place + size * count
    if following + struct.calcsize(word) > len(content):
        return found, 0
    return found, struct.unpack_from(order + word, content, following)[0]


def read(content: bytes, header: Header, img_channels: int) -> np.ndarray:
    """Reads a file that OpenCV does not: `Header.opencv_reads`.

    Args:
        content: The file.
        header: Its own.
        img_channels: Channels wanted. One and three are made of each other where the file holds
            pictures of 8 or 16 bits, and transparency is then dropped.

    Returns:
        [H, W, C] of the file's own numbers, C what the file holds if it is neither; three and four
        channels in OpenCV's order.

    Raises:
        UserError: tifffile is missing or cannot read it; the text is the rest of a sentence.
    """
    limit.check_size(header.width, header.height)
    if header.width * header.height * header.samples > limit.max_pixels() * max(4, img_channels):
        raise UserError(
            f"declares {header}, {header.width} x {header.height}: too much for an image of "
            f"{img_channels}. Set img_channels to what the files hold"
        )
    image = _by_pillow(content, header)
    if image is None:
        count = img_channels if header.has_pages(img_channels) else 1
        image = exif.turn(_by_tifffile(content, header, count), header.orientation)
    if img_channels in (1, 3):
        if header.has_alpha:
            image = image[:, :, :-1]
        if not header.is_wide and image.shape[2] == 4 - img_channels:
            way = cv2.COLOR_GRAY2RGB if img_channels == 3 else cv2.COLOR_RGB2GRAY
            image = cv2.cvtColor(np.ascontiguousarray(image), way)
            image = image.reshape(*image.shape[:2], img_channels)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(image.shape[2])
    return image if order is None else np.take(image, order, axis=2)


def _by_pillow(content, header):
    """Pictures of 8 bits with their transparency, which Pillow turns; None where it is no such."""
    if header.bits != 8 or header.kind != _UNSIGNED or header.pages > 1 or header.alpha != 2:
        return None
    with contextlib.suppress(Exception), limit.open_image(content) as file:
        if file.mode in ("LA", "RGBA"):
            image = np.array(file)
            return image if image.shape[2] == header.samples else None
    return None


def _by_tifffile(content, header, count):
    """[H, W, C] of the first `count` pages, which is not asked what other files it belongs to."""
    if header.samples > _MOST_PAGES:
        raise UserError(f"holds {header.samples} channels; at most {_MOST_PAGES} are read")
    tifffile = import_extra("tifffile", need=f"holds {header}: reading it", extra="tiff")
    # It logs what it finds damaged; where nobody listens, that would go to the console.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            return np.concatenate([_page(file.pages[k]) for k in range(count)], axis=2)
    except Exception as error:  # a decoder raises anything over damaged files
        text = " ".join(str(error).split())
        if "imagecodecs" in text:
            raise UserError(
                f"is compressed in a way that needs the package imagecodecs ({text}): pip install "
                "imagecodecs, or save it without compression"
            ) from error
        raise UserError(f"cannot be read: {text}") from error


def _page(page):
    image = page.asarray(maxworkers=1)
    if image.shape != page.shape or not set("YX") <= set(page.axes) <= set("YXS"):
        raise ValueError(f"its pixels are no image: {page.axes} {page.shape}")
    order = [page.axes.index(axis) for axis in ("YXS" if "S" in page.axes else "YX")]
    return image.transpose(order).reshape(*(image.shape[k] for k in order[:2]), -1)

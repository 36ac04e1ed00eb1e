# SPDX-License-Identifier: Apache-2.0
"""The first rows of a PNG file as a PNG file of their own, which costs OpenCV little to decode.

Most of the time of decoding a PNG is decompression, of every row even where a few are wanted. Here
the stream is decompressed down to the last row that is wanted, by the package `isal` where it is
installed (about three times as fast as zlib), and written again without compression. The pixels are
made by the same decoder as those of the file itself.
"""

import contextlib
import struct
import zlib
from collections.abc import Sequence
from types import ModuleType

from paddleseg_deeplab.utils.pictures.png_chunks import SIGNATURE, walk

_zlib: ModuleType = zlib
with contextlib.suppress(ImportError):
    from isal import isal_zlib as _zlib

# Values of a pixel by colour type: grey, RGB, palette, grey with alpha, RGBA.
_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Chunks that do not make the image another size or one of several; eXIf, which turns images, and
# those of animations are missing here, and texts that may hold EXIF data are looked at.
_KNOWN = (
    *(b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT"),
    *(b"bKGD", b"pHYs", b"tIME", b"tEXt"),
)
_BLOCK = 65535  # the largest block that a stream can hold without compression
_MOST_BYTES = 1 << 30  # a chunk's length has 31 bits


def is_fast() -> bool:
    """Whether decoding a whole file by way of this module is faster than without."""
    return _zlib is not zlib


class Png:
    """A file whose chunks are all there and whose checksums are right; made by `parse`.

    That says nothing about the stream inside, which may be damaged or end early all the same.

    Attributes:
        size (tuple[int, int]): (height, width).
        is_plain_grey (bool): One value of 8 bits for each pixel, not a palette's.
    """

    def __init__(
        self,
        content: bytes,
        size: tuple[int, int],
        row_bytes: int,
        start: int,
        pieces: Sequence[memoryview],
    ) -> None:
        self.size = size
        self.is_plain_grey = content[24:26] == b"\x08\x00"
        self._content, self._row_bytes = content, row_bytes
        self._start, self._pieces = start, pieces

    def first_rows(self, rows: int) -> bytes | None:
        """The file of an image of the first `rows` rows, not compressed: bytes.

        None where its stream is damaged or too short down to there; what follows is not looked at.
        """
        count = rows * self._row_bytes
        if count > _MOST_BYTES:
            return None
        try:
            raw = _zlib.decompressobj().decompress(b"".join(self._pieces), count)
        except Exception:  # isal and zlib have errors of their own; the decoder names the file
            return None
        if len(raw) != count:
            return None
        head = bytearray(self._content[: self._start])
        struct.pack_into(">I", head, 20, rows)
        struct.pack_into(">I", head, 29, zlib.crc32(head[12:29]))
        return b"".join([head, *_chunk(b"IDAT", _stored(raw)), *_chunk(b"IEND", [])])


def _stored(raw):
    """The pieces of a zlib stream that holds `raw` as it is."""
    view, pieces = memoryview(raw), [b"\x78\x01"]
    for at in range(0, len(raw), _BLOCK):
        part = view[at : at + _BLOCK]
        last = at + _BLOCK >= len(raw)
        pieces += [struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF), part]
    return [*pieces, struct.pack(">I", _zlib.adler32(raw))]


def _chunk(name, pieces):
    crc = _zlib.crc32(name)
    for piece in pieces:
        crc = _zlib.crc32(piece, crc)
    length = sum(map(len, pieces))
    return [struct.pack(">I", length), name, *pieces, struct.pack(">I", crc)]


def parse(content: bytes) -> Png | None:
    """Looks a file through and checks its checksums.

    Args:
        content (bytes): A file of any kind.

    Returns:
        Png | None: None where it is no PNG, interlaced, animated or to be turned, where a chunk is
            missing at its end, or where a checksum is wrong.
    """
    if content[:8] != SIGNATURE or content[8:16] != b"\0\0\0\x0dIHDR" or len(content) < 33:
        return None
    width, height, depth, colours, *rest = struct.unpack_from(">IIBBBBB", content, 16)
    if not (width and height and depth and colours in _VALUES) or any(rest):
        return None
    row_bytes = 1 + (width * depth * _VALUES[colours] + 7) // 8
    start: int | None = None
    pieces: list[memoryview] = []
    with contextlib.suppress(EOFError, ValueError):  # the decoder tells what is wrong
        for place, name, data in walk(content, _zlib.crc32):
            if name == b"IEND" and start is not None:
                return Png(content, (height, width), row_bytes, start, pieces)
            if name not in _KNOWN or (name == b"tEXt" and b"profile" in bytes(data[:92])):
                return None
            if name == b"IDAT":
                start = place if start is None else start
                pieces.append(data)
    return None

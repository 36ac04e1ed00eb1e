# SPDX-License-Identifier: Apache-2.0
"""Picture files written byte by byte or by tifffile, so that what stands in them is known."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def chunk(name, content):
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(array, bits=8, colours=0, palette=None, late=b""):
    """A PNG of the numbers [H, W] or [H, W, C], with `late` between its pixels and its end."""
    rows = b"".join(b"\0" + packed(row, bits, ">u2") for row in array)
    size = array.shape[1::-1]
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colours, 0, 0, 0))]
    if palette is not None:
        parts.append(chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes()))
    parts += [chunk(b"IDAT", zlib.compress(rows)), late, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed(row, bits, deep):
    """The bytes of a row of numbers."""
    if bits > 8:
        return row.astype(deep).tobytes()
    every = np.unpackbits(row.reshape(-1).astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(every).tobytes()


def tiff(array, **settings):
    """A TIFF by tifffile; [H, W, C] is stored as RGB where it may be."""
    file = io.BytesIO()
    channels = array.shape[2] if array.ndim == 3 else 1
    settings.setdefault("photometric", "rgb" if channels in (3, 4) else "minisblack")
    if channels > 1:
        planar = settings.setdefault("planarconfig", "contig")
        array = array if planar == "contig" else np.moveaxis(array, 2, 0)
    tifffile.imwrite(file, array, **settings)
    return file.getvalue()


def grey_tiff(array, bits, photometric):
    """A TIFF of grey numbers (0: 0 is white, 1: 0 is black) of any number of bits."""
    height, width = array.shape
    rows = b"".join(packed(row, bits, "<u2") for row in array)
    rows += b"\0" * (len(rows) % 2)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(rows))]
    head = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(tags))
    return head + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(4)


def turned(array, orientation, form, **settings):
    """A file of Pillow's form whose EXIF field has an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, form, exif=exif, **settings)
    return file.getvalue()

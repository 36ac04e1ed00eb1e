# SPDX-License-Identifier: Apache-2.0
"""The chunks that a PNG file is made of (ISO/IEC 15948, section 5)."""

import zlib
from collections.abc import Callable, Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def walk(
    content: bytes, crc32: Callable[[memoryview], int] = zlib.crc32
) -> Iterator[tuple[int, bytes, memoryview]]:
    """Goes through a PNG's chunks, to the last, IEND, and checks their checksums.

    Args:
        content (bytes): The file, whose signature is not looked at.
        crc32 (callable): As `zlib.crc32`, which a faster one may replace.

    Yields:
        tuple[int, bytes, memoryview]: The byte at which a chunk begins, its name, its content.

    Raises:
        EOFError: The file ends before its last chunk.
        ValueError: A checksum is wrong.
    """
    view, place = memoryview(content), len(SIGNATURE)
    while place + 12 <= len(view):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        if end + 4 > len(view):
            break
        name = bytes(view[place + 4 : place + 8])
        if crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(
                f"the checksum of its {name.decode('latin-1')} chunk at byte {place} is wrong"
            )
        yield place, name, view[place + 8 : end]
        if name == b"IEND":
            return
        place = end + 4
    raise EOFError(f"a PNG of {len(view)} bytes without its last chunk")

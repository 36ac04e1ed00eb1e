# SPDX-License-Identifier: Apache-2.0
"""How many bits the values of a TIFF file have, from its header alone.

OpenCV turns what has 8 or 16 bits to the depth and channels that are asked for. Of floats and of
whole numbers of 32 bits it makes nothing then, with a warning on the console for each file; so one
has to know before it is asked.
"""

import struct

_BITS_PER_SAMPLE, _SHORT = 258, 3
_MOST_TAGS = 4096


def is_wide(content: bytes) -> bool:
    """Whether a file is a TIFF whose values have 32 bits or more (float or whole numbers).

    Args:
        content (bytes): The file; damaged ones give False.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        return False
    try:
        return _bits(content, order) >= 32
    except (struct.error, IndexError):
        return False


def _bits(content, order):
    """Bits of the first channel's values; 1 where the file does not say."""
    (version,) = struct.unpack_from(f"{order}H", content, 2)
    if version not in (42, 43):
        return 0
    # 43 is BigTIFF: the same with offsets and counts of 8 bytes.
    word, start, size = ("I", 4, 12) if version == 42 else ("Q", 8, 20)
    (place,) = struct.unpack_from(order + word, content, start)
    head = order + ("H" if version == 42 else "Q")
    (tags,) = struct.unpack_from(head, content, place)
    place += struct.calcsize(head)
    for first in range(place, place + size * min(tags, _MOST_TAGS), size):
        tag, kind, count = struct.unpack_from(f"{order}HH{word}", content, first)
        if tag == _BITS_PER_SAMPLE and kind == _SHORT:
            value = first + 4 + struct.calcsize(word)
            if 2 * count > struct.calcsize(word):  # too many to stand here
                (value,) = struct.unpack_from(order + word, content, value)
            return struct.unpack_from(f"{order}H", content, value)[0]
    return 1

# SPDX-License-Identifier: Apache-2.0
"""Which numbers are finite, in arrays and in an exported folder's parameters. No Paddle here."""

from pathlib import Path

import numpy as np

from paddleseg_deeplab.utils.errors import UserError

# Numbers of framework.proto's types; bfloat16 as its bits.
_TYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}
_TYPES[22] = "<u2"


def finite(array: np.ndarray) -> np.ndarray | None:
    """Which numbers are neither NaN nor infinite, as booleans; None for integers and booleans.

    Args:
        array (np.ndarray): Of uint16: bfloat16, as Paddle gives and takes it.
    """
    if array.dtype == np.uint16:
        return (array & 0x7F80) != 0x7F80  # an exponent of ones alone
    return np.isfinite(array) if array.dtype.kind in "fc" else None


def check_exported(path: str | Path) -> None:
    """Refuses a ``model.pdiparams`` with numbers that are not finite.

    On a CPU such a network would run and give finite results, see `utils.weights.load`. A file of
    another layout is left to the runtime.

    Raises:
        UserError: naming the file and how many tensors; the file holds no names.
    """
    try:
        tensors = list(_tensors(np.memmap(path, np.uint8, mode="r")))
    except (ValueError, IndexError, KeyError, OSError):
        return
    marks = [finite(tensor) for tensor in tensors]
    bad = sum(mark is not None and not mark.all() for mark in marks)
    if bad:
        raise UserError(
            f"{path}: {bad} of {len(tensors)} tensors hold NaN or infinite numbers, so that its "
            "results would be wrong. The training diverged, or the file is damaged: export an "
            "earlier checkpoint, or copy the folder again."
        )


def _tensors(content):
    """Arrays of Paddle's combined parameters, one after the other.

    Each is: its version, levels of detail, a version again, and a protobuf message (TensorDesc)
    that gives type and sizes, then its numbers.

    Raises:
        ValueError, IndexError, KeyError: another layout.
    """
    at = 0

    def number(dtype):
        nonlocal at
        size = np.dtype(dtype).itemsize
        value = int(np.frombuffer(content[at : at + size].tobytes(), dtype)[0])
        at += size
        return value

    while at < len(content):
        if number("<u4") != 0 or number("<u8") != 0 or number("<u4") != 0:
            raise ValueError("another version, or levels of detail")
        length = number("<i4")
        dtype, sizes = _description(content[at : at + length].tobytes())
        at += length
        count = int(np.prod(sizes, dtype=np.int64))
        end = at + count * dtype.itemsize
        if count < 0 or end > len(content):
            raise ValueError("truncated")
        yield np.frombuffer(content, dtype, count, at)
        at = end


def _description(message):
    """(dtype, sizes) of a TensorDesc: field 1 the type, field 2 the sizes, one by one or packed."""
    at, kind, sizes = 0, None, []

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(message):
        tag = varint()
        if tag == 0x08:
            kind = varint()
        elif tag == 0x10:
            sizes.append(varint())
        elif tag == 0x12:
            end = varint() + at
            while at < end:
                sizes.append(varint())
        else:
            raise ValueError(f"field {tag}")
    return np.dtype(_TYPES[kind]), sizes

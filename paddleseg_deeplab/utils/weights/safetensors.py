# SPDX-License-Identifier: Apache-2.0
"""Files of the format safetensors, as NumPy arrays, and back."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from paddleseg_deeplab.utils.errors import UserError

# safetensors' names of types; bfloat16, which NumPy lacks, is the upper half of a float32.
_DTYPES = {f"{t}{8 * n}": f"<{t.lower()}{n}" for t in "FIU" for n in (1, 2, 4, 8)[t == "F" :]}
_DTYPES["BOOL"] = "?"
_NAMES = {np.dtype(numpy).newbyteorder("="): name for name, numpy in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, of safetensors; its own readers have the same limit


@contextmanager
def readable(file: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns whatever a reader raises over a broken file into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        first_line = (str(e).splitlines() or [""])[0]
        raise UserError(
            f"The weights file {file} cannot be read ({type(e).__name__}: {first_line}). It is "
            f"truncated or no {kind} file; copy or download it again."
        ) from e


def read_safetensors(file: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of a ``.safetensors`` file in their own types, bfloat16 as float32.

    Raises:
        UserError: the file is damaged, or its header is longer than 100 MB or than the file.
    """
    try:
        from safetensors import deserialize
    except ImportError as e:
        raise UserError(f"Reading {file} needs safetensors: pip install safetensors.") from e
    with readable(file, ".safetensors"), open(file, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        header = int.from_bytes(f.read(8), "little")
        if header > min(_MAX_HEADER, size - 8):
            raise ValueError(f"a header of {header} bytes in a file of {size}")
        f.seek(0)
        entries = deserialize(f.read())
    return {name: _decoded(entry, name, file) for name, entry in entries}


def safetensors_bytes(tensors: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """Content of a ``.safetensors`` file.

    Args:
        tensors (dict[str, tuple[str, ndarray]]): Name to (type, array); the type is NumPy's name
            of it, or "bfloat16" with an array of its bits, uint16.
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pd"}}
    pieces, end = [], 0
    # Wide types first, so that every tensor begins at a multiple of its width.
    for name, (dtype, array) in sorted(tensors.items(), key=lambda t: -t[1][1].itemsize):
        kind = "BF16" if dtype == "bfloat16" else _NAMES.get(array.dtype.newbyteorder("="))
        if kind is None:
            raise UserError(f"{name} is of type {dtype}, which safetensors cannot hold.")
        piece = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [end, end + len(piece)],
        }
        pieces.append(piece)
        end += len(piece)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])


def _decoded(entry, name, file):
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(shape)
    if dtype not in _DTYPES:
        raise UserError(
            f"{file}: {name} is of type {dtype}; save it as one of BF16, {', '.join(_DTYPES)}."
        )
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)

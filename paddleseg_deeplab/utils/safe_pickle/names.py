# SPDX-License-Identifier: Apache-2.0
"""Third: what the names in a pickle of tensors mean.

A name in the file never becomes the object that it names. It stays a `Name`. Calling one of those
in `CALLS` has a meaning: a function below, of plain values, that runs nothing of the file and takes
no memory for which the bytes do not lie in the file.
"""

from collections import OrderedDict
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

_MAX_DIMENSIONS = 32
# Numbers can be chosen so that a table of them takes hours to fill; text cannot.
_MAX_NUMBER_KEYS = 1000
_MAX_KEY_PARTS = 8  # of a tuple that is a key
_DTYPES = {
    *("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "?"),
}


class Refused(Exception):
    """The file asks for something that tables of tensors do not need."""


class Damaged(Exception):
    """The file does not follow the format."""


class Name:
    """A module's attribute that the file names. Only its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self):
        return f"the name {self.name}"


class PendingDtype:
    """A dtype, to which the file adds the byte order later."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype) -> None:
        self.value = value

    def __str__(self):
        return "a type of arrays"

    def build(self, state: tuple[Any, ...]) -> "PendingDtype":
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(v not in (None, -1, 0) for v in rest):
            raise Refused("an array has a compound type")
        self.value = self.value.newbyteorder(order)
        return self


class PendingArray:
    """An array before its content; `places` are where the machine remembers it."""

    __slots__ = ("places",)

    def __init__(self) -> None:
        self.places: list[int] = []

    def __str__(self):
        return "an array without content"

    def build(self, state: tuple[Any, ...]) -> np.ndarray:
        _, shape, dtype, is_fortran, data = state if len(state) == 5 else (1, *state)
        if isinstance(data, list):
            raise Refused("an array holds Python objects")
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin-1")
        if type(dtype) is not PendingDtype or type(shape) is not tuple:
            raise Damaged("an array without a type or a shape")
        if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
            raise Damaged("an array of an impossible shape")
        dtype = dtype.value
        if prod(shape) * dtype.itemsize != len(data):
            raise Damaged(
                f"an array {str(shape)[:80]} of {dtype} with {len(data)} bytes in the file"
            )
        array = np.frombuffer(data, dtype) if len(data) else np.empty(0, dtype)
        return array.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind, shape, code):
    if type(kind) is not Name or kind.name != "numpy.ndarray":
        raise Refused(f"an array is of the class {getattr(kind, 'name', type(kind).__name__)}")
    return PendingArray()


def _dtype(spec, align=False, copy=True):
    if type(spec) is not str or spec not in _DTYPES:
        spec = _short(spec)
        what = "Python objects" if spec.startswith(("O", "object")) else f"the type {spec}"
        raise Refused(f"an array holds {what}")
    return PendingDtype(np.dtype(spec))


def _scalar(dtype, data):
    data = data.encode("latin-1") if isinstance(data, str) else data
    if type(dtype) is not PendingDtype or len(data) != dtype.value.itemsize:
        raise Damaged("a number of another size than its type")
    return np.frombuffer(data, dtype.value)[0]


def _encode(text, encoding):
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it encodes text as {_short(encoding)}")
    return text.encode("latin-1")


def _ordered(pairs=()):
    pairs = [(k, v) for k, v in pairs]
    check_keys([k for k, _ in pairs])
    return OrderedDict(pairs)


def _set(items=()):
    return set(check_keys(list(items)))


def make_frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(check_keys(list(items)))


def _tuple(items=()):
    if type(items) not in (tuple, list):
        raise Damaged("a tuple of no list")
    return tuple(items)


def _bytes():
    return b""


def _named_data(expression, names):
    """Paddle saves a bare DenseTensor as eval('data', {'data': array}); nothing is evaluated."""
    if expression != "data" or type(names) is not dict or set(names) != {"data"}:
        raise Refused("it asks for builtins.eval to be called")
    return names["data"]


CALLS = {
    "numpy.ndarray": None,  # never called: the first argument of _reconstruct
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "builtins.frozenset": make_frozenset,
    "builtins.tuple": _tuple,
    "builtins.bytes": _bytes,
    "builtins.eval": _named_data,
}
OTHER_SPELLINGS = {"__builtin__": "builtins", "numpy.core.multiarray": "numpy._core.multiarray"}


def check_keys(keys: list[Any], already: int = 0) -> list[Any]:
    """Keys of a dict or members of a set: text, numbers, or tuples of them."""
    numbers = already
    for key in keys:
        if type(key) is str:
            continue
        numbers += 1
        parts = key if type(key) is tuple else (key,)
        # Python hashes tuples and long integers anew for each table that they are a key of.
        if len(parts) > _MAX_KEY_PARTS or any(_is_long(p) for p in parts):
            raise Refused(f"a {type(key).__name__} too long for a key is the key of a table")
        if not all(isinstance(p, (str, bytes, int, float, type(None), np.generic)) for p in parts):
            raise Refused(f"a {type(key).__name__} is the key of a table")
        if numbers > _MAX_NUMBER_KEYS:
            raise Refused(f"a table has more than {_MAX_NUMBER_KEYS} keys that are not text")
    return keys


def _is_long(value):
    return type(value) is int and value.bit_length() > 1024


def _short(value):
    """A value of the file in a message. Others than text are not printed: they may have no end."""
    return value[:80] if isinstance(value, str) else f"a {type(value).__name__}"

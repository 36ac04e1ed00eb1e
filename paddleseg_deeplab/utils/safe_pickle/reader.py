# SPDX-License-Identifier: Apache-2.0
"""First: from a file of ``paddle.save`` (.pdparams, .pdopt) to tensors; see the package's text."""

import os
from collections import OrderedDict
from typing import Any

import numpy as np

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.safe_pickle import machine
from paddleseg_deeplab.utils.safe_pickle.names import Damaged, Refused

# Keys that paddle.save adds: the names of the tensors (Paddle 2.0), the parts of a large one.
_NAMES = "StructuredToParameterName@@"
_PARTS = "UnpackBigParamInfor@@"
# A pickle may name one array, or one list of arrays, again and again. Real files hardly do.
_MAX_DEPTH = 32
_MAX_VALUES = 2_000_000
_MAX_GROWTH = 4
_SPARE_BYTES = 1 << 20
_PLAIN = (str, bytes, int, float, bool, type(None))


def load(path: str | os.PathLike[str], *, return_numpy: bool = False) -> Any:
    """Reads a file of ``paddle.save``; the result is what ``paddle.load`` gives.

    Tensors carry the names they were saved with. Not read: a single variable saved with
    ``use_binary_format`` and a static program, which ``paddle.load`` takes too.

    Args:
        path (str | os.PathLike): A ``.pdparams`` or ``.pdopt`` file of Paddle 2.0 or later.
        return_numpy (bool): Leave tensors as arrays (bfloat16 as its bits, uint16), as the
            argument of ``paddle.load`` does; Paddle is then not needed.

    Returns:
        dict | list | tuple | Tensor | ...: containers, numbers, text and tensors.

    Raises:
        UserError: the file is damaged, no file of ``paddle.save``, asks for code to be run, or
            would take far more memory than its size. It names the file and what was asked for.
        OSError: the file is missing or cannot be opened.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        content = file.read()
    try:
        value = machine.run(content)
        value = _Copier(len(content)).copy(value)
        del content  # the arrays are copies
        if isinstance(value, dict) and _PARTS in value:
            value = _joined(value)
    except Refused as error:
        raise UserError(
            f"{path} is refused: {_printable(error)}. Only tensors, numbers, text and plain "
            "containers are loaded, since the rest may run any code; nothing in the file was run. "
            "If you trust it, save its tensors alone where it came from: "
            "paddle.save(model.state_dict(), ...)."
        ) from error
    except Damaged as error:
        raise UserError(
            f"{path} cannot be read: it is damaged or no file of paddle.save "
            f"({_printable(error)}). Copy or download it again."
        ) from error
    try:
        return _with_tensors(value, return_numpy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: its table of tensor names is damaged ({type(error).__name__})."
        ) from error


def _printable(error):
    """The error's text in one line: names in it come from the file, line breaks and all."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))


class _Copier:
    """Copies a value, so that it holds its own memory, as long as it stays near the file's size."""

    def __init__(self, file_bytes):
        self._values_left = min(_MAX_VALUES, file_bytes * _MAX_GROWTH + 1000)
        self._most_bytes = file_bytes * _MAX_GROWTH + _SPARE_BYTES
        self._bytes_left = self._most_bytes

    def copy(self, value, depth=0):
        self._values_left -= 1
        if depth > _MAX_DEPTH or self._values_left < 0:
            raise Refused(
                f"it is nested deeper than {_MAX_DEPTH} levels, or without end, or holds far more "
                "values than its size allows"
            )
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            items = value.items()
            return kind((k, self.copy(v, depth + 1)) for k, v in items)
        if kind in (list, tuple, set, frozenset):
            return kind([self.copy(v, depth + 1) for v in value])
        if kind is np.ndarray:
            self._bytes_left -= value.nbytes
            if self._bytes_left < 0:
                raise Refused(f"its tensors take more than {self._most_bytes} bytes")
            # Aligned, writable and of this machine's byte order, which a view is not.
            return np.array(value, dtype=value.dtype.newbyteorder("="), order="A")
        if isinstance(value, (*_PLAIN, np.generic)):
            return value
        if kind is memoryview:  # a long text of bytes
            self._bytes_left -= len(value)
            return bytes(value)
        raise Refused(f"{value} stands where a value is expected")


def _joined(table):
    """Puts tensors of 1 GB and more together, which protocol 2 saves in parts."""
    try:
        out = {key: value for key, value in table.items() if key != _PARTS}
        for key, how in table[_PARTS].items():
            parts = [out.pop(name) for name in how["slices"]]
            out[key] = np.concatenate(parts).reshape(how["OriginShape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged("the parts of its tensors do not fit") from error
    return out


def _with_tensors(value, return_numpy):
    """Makes tensors of arrays by the rules of ``paddle.load``."""
    if isinstance(value, dict) and _NAMES in value:
        names = value.pop(_NAMES)
        for key, name in names.items():
            if isinstance(value[key], np.ndarray):
                value[key] = _tensor(value[key], name, return_numpy)
        return value
    # A tensor is (name, array) since Paddle 2.1, and arrays beside such pairs are meant as arrays.
    if _any_named(value):
        return _replaced(value, _is_named, lambda pair: _tensor(pair[1], pair[0], return_numpy))
    return _replaced(
        value, lambda v: isinstance(v, np.ndarray), lambda v: _tensor(v, None, return_numpy)
    )


def _tensor(array, name, return_numpy):
    if return_numpy:
        return array
    import paddle

    tensor = paddle.to_tensor(array)
    if name is not None:
        tensor.name = name
    return tensor


def _is_named(value):
    return (
        type(value) is tuple
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], np.ndarray)
    )


def _any_named(value):
    if _is_named(value):
        return True
    if isinstance(value, dict):
        return any(map(_any_named, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_any_named, value))


def _replaced(value, condition, convert):
    if condition(value):
        return convert(value)
    if isinstance(value, dict):
        return type(value)((k, _replaced(v, condition, convert)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)([_replaced(v, condition, convert) for v in value])
    return value

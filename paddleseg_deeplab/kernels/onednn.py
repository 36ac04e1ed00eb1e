# SPDX-License-Identifier: Apache-2.0
"""oneDNN's convolution and gradient of ReLU, from the library that Paddle's CPU wheels bring along.

Paddle uses that library for inference only: its dygraph convolution on a CPU writes every window
of the image out (im2col), its depthwise one works on one thread. Here the same library is called
by its C interface, which is stable within a major version: https://uxlfoundation.github.io/oneDNN/
Nothing in this file knows Paddle's tensors: all arrays are addresses of contiguous float32 memory,
images as [N, C, H, W].

Where the library is missing, of another version, or cannot do something, `find` and the classes
say so, and callers use Paddle's own operator.
"""

import contextlib
import ctypes
import importlib.util
import sys
import threading
import weakref
from collections.abc import Sequence
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

from paddleseg_deeplab.utils.cpu import switched_off, thread_count
from paddleseg_deeplab.utils.logger import logger

SWITCH = "PADDLESEG_DEEPLAB_ONEDNN"
_FILES = {"linux": "libdnnl.so.3", "win32": "dnnl.dll"}
_MAJOR = 3
_MAX_DIMS = 12

# Names and numbers of dnnl_types.h.
_F32, _CPU, _IN_ORDER = 3, 1, 1
_ANY, _A, _NCHW, _GOIHW = 1, 2, 5, 6
_TRAINING, _DIRECT, _RELU_BY_OUTPUT = 64, 1, 0x100
_QUERY = {"x": 129, "dx": 130, "w": 131, "dw": 132, "y": 133, "dy": 134}
_ARG = {"x": 1, "y": 17, "w": 33, "dx": 129, "dy": 145, "dw": 161}


_CANNOT = (2, 3)  # invalid arguments, unimplemented


class Unsupported(Exception):
    """The library has no implementation of this; use another."""


class Failed(Exception):
    """The library could not do this now, for want of memory for instance; it may later."""


_warned: list[Failed] = []


def warn(error: Failed) -> None:
    """Logs once that another implementation is used because of `error`."""
    if not _warned:
        _warned.append(error)
        logger.warning(f"oneDNN: {error}; Paddle's operator is used where it fails.")


class _Arg(ctypes.Structure):
    _fields_ = [("number", c_int), ("memory", c_void_p)]


class _Library:
    """The loaded library with one engine and one stream; calls are made one at a time."""

    def __init__(self, path):
        self._lib = ctypes.CDLL(str(path))
        # Linked with GNU's OpenMP, but Paddle loads Intel's before, which then serves both.
        self._pools = [self._lib, *(ctypes.CDLL(str(p)) for p in path.parent.glob("libiomp5*"))]
        version = ctypes.cast(self.address("dnnl_version", c_void_p), ctypes.POINTER(c_int))
        if version[0] != _MAJOR:
            raise Unsupported(f"oneDNN {version[0]}, not {_MAJOR}")
        self._local, self.lock = threading.local(), threading.RLock()
        self.engine, self.stream = c_void_p(), c_void_p()
        self.call("dnnl_engine_create", byref(self.engine), _CPU, c_size_t(0))
        self.call("dnnl_stream_create", byref(self.stream), self.engine, _IN_ORDER)

    def call(self, name, *arguments):
        status = getattr(self._lib, name)(*arguments)
        if status:
            raise (Unsupported if status in _CANNOT else Failed)(f"{name} returned {status}")

    def address(self, name, kind, *arguments):
        function = getattr(self._lib, name)
        function.restype = kind
        return function(*arguments)

    def use_threads(self):
        """OpenMP's thread count belongs to each calling thread; Paddle leaves it at one."""
        if not getattr(self._local, "told", False):
            self._local.told = True
            for pool in self._pools:
                with contextlib.suppress(AttributeError):  # built with another threading
                    pool.omp_set_num_threads(thread_count())


class _Owner:
    """What the library made for this object; the library gets it back when the object goes."""

    def __init__(self, lib):
        self._lib, self._owned = lib, []
        # Not at the end of the process, when the library may be gone before.
        weakref.finalize(self, _destroy, lib, self._owned).atexit = False

    def _own(self, kind, handle):
        self._owned.append((kind, handle))
        return handle

    def _make(self, kind, name, *arguments):
        """What `name` makes; `kind` as in the name of its `destroy` function."""
        out = c_void_p()
        self._lib.call(name, byref(out), *arguments)
        return self._own(kind, out)

    def _layout(self, shape, tag):
        dims, make = (c_int64 * _MAX_DIMS)(*shape), "dnnl_memory_desc_create_with_tag"
        return self._make("memory_desc", make, len(shape), dims, _F32, tag)

    def _primitive(self, descriptor):
        return self._make("primitive", "dnnl_primitive_create", descriptor)


def _destroy(lib, owned):
    with lib.lock:
        while owned:
            kind, handle = owned.pop()
            lib.address(f"dnnl_{kind}_destroy", c_int, handle)


_found: list[_Library | None] = []
_finding = threading.RLock()


def find() -> _Library | None:
    """The library, or None where there is none that this file can use.

    The environment variable `PADDLESEG_DEEPLAB_ONEDNN` set to 0 switches it off.
    """
    with _finding:
        if not _found:
            try:
                _found.append(_load())
            except Failed as error:
                warn(error)
                return None
        return _found[0]


def _load():
    spec = importlib.util.find_spec("paddle")
    name = _FILES.get(sys.platform)
    if name and spec and spec.origin and not switched_off(SWITCH):
        with contextlib.suppress(OSError, AttributeError, Unsupported):
            return _Library(Path(spec.origin).parent / "libs" / name)
    return None


def _library():
    lib = find()
    if lib is None:
        raise (Unsupported if _found else Failed)("no library")
    return lib


class _Operand(_Owner):
    """One array of a primitive: plain memory, and the layout that the primitive wants."""

    def __init__(self, lib, plain, wanted):
        super().__init__(lib)
        self.same = bool(lib.address("dnnl_memory_desc_equal", c_int, plain, wanted))
        self.size = lib.address("dnnl_memory_desc_get_size", c_size_t, wanted)
        self.memory = self.plain = self._memory(plain)
        if not self.same:
            self.memory = self._memory(wanted)
            self._to = self._reorder(plain, wanted)
            self._from = self._reorder(wanted, plain)

    def _memory(self, descriptor):
        engine = self._lib.engine
        return self._make("memory", "dnnl_memory_create", descriptor, engine, c_void_p())

    def _reorder(self, source, target):
        engine, make = self._lib.engine, "dnnl_reorder_primitive_desc_create"
        descriptor = self._make("primitive_desc", make, source, engine, target, engine, None)
        return self._primitive(descriptor)

    def place(self, address, buffer):
        self._lib.call("dnnl_memory_set_data_handle", self.plain, c_void_p(address))
        if not self.same:
            self._lib.call("dnnl_memory_set_data_handle", self.memory, c_void_p(buffer))

    def fetch(self):
        if not self.same:
            _execute(self._lib, self._to, {1: self.plain, 17: self.memory})

    def store(self):
        if not self.same:
            _execute(self._lib, self._from, {1: self.memory, 17: self.plain})


def _execute(lib, primitive, arguments):
    items = (_Arg * len(arguments))(*(_Arg(k, m) for k, m in arguments.items()))
    lib.call("dnnl_primitive_execute", primitive, lib.stream, len(items), items)


class _Work(_Owner):
    """A primitive with its operands by name (as in `_ARG`); those in `outputs` are written."""

    def __init__(self, lib, descriptor, plain, outputs):
        super().__init__(lib)
        self._outputs, self._made = outputs, self._primitive(descriptor)
        self._operands = {}
        for name, layout in plain.items():
            ask = "dnnl_primitive_desc_query_md"
            wanted = c_void_p(lib.address(ask, c_void_p, descriptor, _QUERY[name], 0))
            self._operands[name] = _Operand(lib, layout, wanted)

    def run(self, allocate, **addresses):
        """Works on memory at these addresses.

        Args:
            allocate (callable): Takes a number of bytes; (address, what keeps that memory alive).
        """
        lib = self._lib
        with lib.lock:
            lib.use_threads()
            kept = []
            for name, operand in self._operands.items():
                buffer = 0
                if not operand.same:
                    buffer, keeper = allocate(operand.size)
                    kept.append(keeper)
                operand.place(addresses[name], buffer)
                if name not in self._outputs:
                    operand.fetch()
            memory = {_ARG[name]: operand.memory for name, operand in self._operands.items()}
            _execute(lib, self._made, memory)
            for name in self._outputs:
                self._operands[name].store()


class Convolution(_Owner):
    """A convolution of one geometry, and its gradients.

    Args:
        x_shape (tuple[int]): [N, C, H, W].
        w_shape (tuple[int]): [O, C / groups, kh, kw].
        stride, padding, dilation (tuple[int, int]): For rows and columns.
        groups (int): Groups.

    Raises:
        Unsupported: no implementation, or no library.
        Failed: the library could not, now. So do `work` and what it gives.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        super().__init__(_library())
        y_shape = result_shape(x_shape, w_shape, stride, padding, dilation)
        weights = (list(w_shape), _NCHW)
        if groups > 1:
            weights = ([groups, w_shape[0] // groups, *w_shape[1:]], _GOIHW)
        shapes = {"x": (x_shape, _NCHW), "w": weights, "y": (y_shape, _NCHW)}
        self._plain = {k: self._layout(*v) for k, v in shapes.items()}
        self._any = {k: self._layout(v[0], _ANY) for k, v in shapes.items()}
        pads = (c_int64 * _MAX_DIMS)(*padding)
        steps = (c_int64 * _MAX_DIMS)(*stride), (c_int64 * _MAX_DIMS)(*(d - 1 for d in dilation))
        self._geometry = (*steps, pads, pads)
        self._works: dict[str, _Work] = {}
        self._lib.use_threads()  # counts when a primitive is made, too
        self._hint = self._describe("forward", (_TRAINING, _DIRECT), bias=True)
        self.work("forward")

    def _describe(self, kind, first, hint=(), bias=False):
        any_ = self._any
        arrays = [any_["x"], any_["w"], *([None] if bias else []), any_["y"]]
        make = f"dnnl_convolution_{kind}_primitive_desc_create"
        arguments = (self._lib.engine, *first, *arrays, *self._geometry, *hint, None)
        return self._make("primitive_desc", make, *arguments)

    def work(self, kind: str) -> _Work:
        """What to run: forward (x, w -> y), backward_data (w, dy -> dx), backward_weights
        (x, dy -> dw)."""
        with self._lib.lock:
            if kind not in self._works:
                self._lib.use_threads()
                self._works[kind] = _Work(self._lib, *self._parts(kind))
            return self._works[kind]

    def _parts(self, kind):
        plain = self._plain
        if kind == "forward":
            return self._hint, plain, ("y",)
        if kind == "backward_data":
            operands = {"dx": plain["x"], "w": plain["w"], "dy": plain["y"]}
            return self._describe(kind, (_DIRECT,), (self._hint,)), operands, ("dx",)
        operands = {"x": plain["x"], "dw": plain["w"], "dy": plain["y"]}
        return self._describe(kind, (_DIRECT,), (self._hint,), bias=True), operands, ("dw",)


def result_shape(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """[N, O, H, W] of a convolution's result; the arguments are `Convolution`'s."""
    sizes = zip(x_shape[2:], w_shape[2:], stride, padding, dilation)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    return [x_shape[0], w_shape[0], *size]


class ReluGradient(_Owner):
    """`work` (y, dy -> dx): dy where y is above 0, else 0. dx may be dy.

    Args:
        count (int): How many numbers.

    Raises:
        Unsupported: no library.
        Failed: the library could not, now.
    """

    def __init__(self, count: int) -> None:
        super().__init__(_library())
        lib, zero = self._lib, ctypes.c_float(0)
        lib.use_threads()
        plain, kind = self._layout((count,), _A), "primitive_desc"
        make = "dnnl_eltwise_forward_primitive_desc_create"
        relu = (_RELU_BY_OUTPUT, plain, plain)
        forward = self._make(kind, make, lib.engine, _TRAINING, *relu, zero, zero, None)
        make = "dnnl_eltwise_backward_primitive_desc_create"
        grad = (_RELU_BY_OUTPUT, plain, plain, plain)
        backward = self._make(kind, make, lib.engine, *grad, zero, zero, forward, None)
        operands = {"y": plain, "dy": plain, "dx": plain}
        self.work = _Work(lib, backward, operands, ("dx",))

# SPDX-License-Identifier: Apache-2.0
"""Faster ways for what Paddle's dygraph does slowly on a CPU; the same results up to rounding.

    convolution, 3x3 and depthwise   oneDNN (`kernels.onednn`) in place of im2col
    weight gradient of a depthwise 3x3 at a large rate   NumPy, without the padding
    ReLU's gradient   oneDNN, on all threads
    bilinear resize   two matrix products

Each function answers None where it does not apply: tracing, a GPU, channels last, another dtype,
no library. The caller then uses Paddle's operator. docs/performance.md has what each gives.

Convolution and ReLU are a `PyLayer` each, which can do less than an operator: one backward pass
through a graph, and no second-order gradients. What they cannot do they refuse: ``backward()`` then
raises (`utils.py_layer` has what) with a text that names the switch to Paddle's operators,
`PADDLESEG_DEEPLAB_ONEDNN=0`. Hooks on their results act as on those of operators.
"""

import ctypes
import functools
import threading
from collections.abc import Sequence

import numpy as np
import paddle
from paddle.autograd import PyLayer

from paddleseg_deeplab.kernels import depthwise, onednn
from paddleseg_deeplab.utils.py_layer import apply_once, saved

try:
    from paddle.jit.sot.psdb import in_sot
except ImportError:  # another version of Paddle

    def in_sot() -> bool:
        return False


_LARGE = 1024  # pixels of a map from which NumPy's calls are worth their overhead
_WIDEST, _WIDEST_TRAINED = 384, 1024  # height + width of a map whose resize is worth products
_GEOMETRIES = 512  # primitives kept: evaluation at several scales meets many sizes
_INSTEAD = f"set {onednn.SWITCH}=0, which uses Paddle's operators"


def applies(*tensors: paddle.Tensor) -> bool:
    """Whether these are float32 tensors in a CPU's memory, outside of tracing, and results belong
    there, too."""
    # `to_static` without full_graph reads the bytecode in dynamic mode; there this says True.
    if not paddle.in_dynamic_mode() or in_sot() or paddle.get_device() != "cpu":
        return False
    return all(x.dtype == paddle.float32 and x.place.is_cpu_place() for x in tensors)


def _cached(make):
    """`make(...)` remembered by its arguments; None where the library cannot do it, or fails.

    Each thread remembers its own: oneDNN gives a primitive memory to work in that belongs to the
    thread that made it, and in another thread the process ends with a segmentation fault.
    """
    kept = threading.local()

    def made(*arguments):
        try:
            return make(*arguments)
        except onednn.Unsupported:
            return None

    def made_or_none(*arguments):
        if not hasattr(kept, "made"):
            kept.made = functools.lru_cache(maxsize=_GEOMETRIES)(made)
        try:
            return kept.made(*arguments)
        except onednn.Failed as error:  # not remembered: it may work the next time
            onednn.warn(error)
            return None

    return made_or_none


def _empty(shape, dtype="float32"):
    tensor = paddle.empty(shape, dtype=dtype)
    # Before a backward pass another device may have been chosen.
    return tensor if tensor.place.is_cpu_place() else tensor.cpu()


def _allocate(size):
    """`size` bytes, as `onednn` asks for them."""
    memory = _empty([size], "uint8")
    return memory.data_ptr(), memory


def _run(work, **tensors):
    work.run(_allocate, **{name: tensor.data_ptr() for name, tensor in tensors.items()})


def _plain(x):
    """x without gaps in its memory: slices and transposes are views."""
    return x if x.is_contiguous() else x.contiguous()


# -- what a PyLayer lacks ----------------------------------------------------------------------


def _apply(layer, *arguments):
    """`utils.py_layer.apply_once` of a layer of this file."""
    return apply_once(
        layer,
        *arguments,
        again="a second backward() through one graph, which a PyLayer of Paddle does not survive: "
        f"add the losses up and call backward() once, or {_INSTEAD}",
    )


def _save(ctx, *tensors):
    # Detached: a context that held the layer's own result would be a cycle through C++, which
    # Python's collector cannot free. Detached tensors share memory and version.
    ctx.save_for_backward(*(t.detach() for t in tensors))


def _saved(ctx):
    """What `_save` got, unless its gradients would be wrong, as Paddle's operators check."""
    if paddle.is_grad_enabled():  # under create_graph only
        raise RuntimeError(f"second-order gradients of this operator do not exist here: {_INSTEAD}")
    return saved(
        ctx,
        "a tensor that a gradient needs was changed in place after the forward pass: change a copy "
        "of it",
    )


# -- convolution -------------------------------------------------------------------------------


class _Geometry:
    """Convolution of one geometry, forward and backward."""

    def __init__(self, x_shape, w_shape, stride, padding, dilation, groups):
        self._y_shape = onednn.result_shape(x_shape, w_shape, stride, padding, dilation)
        if min(self._y_shape) < 1:
            raise onednn.Unsupported("nothing to compute")
        self._work = onednn.Convolution(x_shape, w_shape, stride, padding, dilation, groups).work
        self._rate = dilation[0]
        # A depthwise convolution that keeps the size is its own gradient, with the kernel turned
        # round; oneDNN's forward pass takes half the time of its backward pass.
        square = tuple(w_shape) == (x_shape[1], 1, 3, 3) and dilation[0] == dilation[1]
        self._turns = groups > 1 and square and stride == (1, 1) and padding == dilation
        # oneDNN's weight gradient of a dilated one is a general one, for the padding, too.
        large = x_shape[2] * x_shape[3] >= _LARGE
        self._by_taps = self._turns and self._rate > 1 and large

    def prepare_gradients(self):
        """Raises `onednn.Unsupported` or `Failed` now, where the backward pass would."""
        if not self._turns:
            self._work("backward_data")
        if not self._by_taps:
            self._work("backward_weights")

    def forward(self, x, weight):
        y = _empty(self._y_shape)
        _run(self._work("forward"), x=x, w=weight, y=y)
        return y

    def x_gradient(self, x, weight, dy):
        if self._turns:
            return self.forward(dy, paddle.flip(weight, [2, 3]))
        dx = _empty(x.shape)
        _run(self._work("backward_data"), dx=dx, w=weight, dy=dy)
        return dx

    def weight_gradient(self, x, weight, dy):
        if self._by_taps:
            sums = depthwise.weight_gradient(_array(x), _array(dy), self._rate)
            return paddle.to_tensor(sums, place=x.place)
        dw = _empty(weight.shape)
        _run(self._work("backward_weights"), x=x, dw=dw, dy=dy)
        return dw


_geometry = _cached(_Geometry)


class _Convolve(PyLayer):
    """Differentiable by those of x and weight that are in `tracked`.

    As one list: of inputs that are arguments of their own, `paddle.grad` by some demands None for
    the others, without saying which.
    """

    @staticmethod
    def forward(ctx, tracked, inputs, notice):
        notice(ctx)
        way, x, weight = inputs()
        ctx.way, ctx.wanted = way, (not x.stop_gradient, not weight.stop_gradient)
        _save(ctx, x, weight)
        return way.forward(x, weight)

    @staticmethod
    def backward(ctx, dy):
        x, weight = _saved(ctx)
        dy, gradients = _plain(dy), (ctx.way.x_gradient, ctx.way.weight_gradient)
        return [make(x, weight, dy) for make, wanted in zip(gradients, ctx.wanted) if wanted]


def conv2d(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> paddle.Tensor | None:
    """`F.conv2d` of [N, C, H, W] without bias, or None.

    Args:
        x, weight (Tensor): float32.
        stride, padding, dilation (int | Sequence[int]): As `F.conv2d` takes them.
        groups (int): 1, or one for each channel.
    """
    if not applies(x, weight) or x.ndim != 4 or weight.ndim != 4:
        return None
    # 1x1 is one matrix product, which Paddle does at the machine's rate.
    if weight.shape[2] == weight.shape[3] == 1:
        return None
    numbers = [_pair(*limited) for limited in ((stride, 1), (padding, 0), (dilation, 1))]
    if None in numbers or groups not in (1, x.shape[1]) or 0 in x.shape:
        return None
    way = _geometry(tuple(x.shape), tuple(weight.shape), *numbers, groups)
    if way is None:
        return None
    x, weight = _plain(x), _plain(weight)
    tracked = [t for t in (x, weight) if paddle.is_grad_enabled() and not t.stop_gradient]
    try:
        if not tracked:
            return way.forward(x, weight)
        way.prepare_gradients()
        return _apply(_Convolve, tracked, lambda: (way, x, weight))
    except onednn.Unsupported:
        return None
    except onednn.Failed as error:
        onednn.warn(error)
        return None


def _array(x):
    """NumPy's view of a tensor without gaps, which has to outlive it; it may be written."""
    count = int(np.prod(x.shape))
    numbers = (ctypes.c_float * count).from_address(x.data_ptr())
    return np.frombuffer(numbers, dtype=np.float32).reshape(x.shape)


def _pair(value, least):
    """Two integers of at least `least`, or None."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    return tuple(pair) if all(isinstance(v, int) and v >= least for v in pair) else None


# -- ReLU --------------------------------------------------------------------------------------


_relu_gradient = _cached(onednn.ReluGradient)


class _ReLU(PyLayer):
    """In place; its gradient needs the result alone."""

    @staticmethod
    def forward(ctx, x, gradient, notice):
        notice(ctx)
        paddle.nn.functional.relu_(x)
        ctx.gradient = gradient
        _save(ctx, x)
        return x

    @staticmethod
    def backward(ctx, dy):
        (y,) = _saved(ctx)
        dx = _empty(dy.shape)
        _run(ctx.gradient.work, y=y, dy=_plain(dy), dx=dx)
        return dx


def relu_(x: paddle.Tensor) -> paddle.Tensor | None:
    """ReLU in place, or None."""
    if not applies(x) or 0 in x.shape or not x.is_contiguous():
        return None
    if x.stop_gradient or not paddle.is_grad_enabled():
        return None
    gradient = _relu_gradient(int(np.prod(x.shape)))
    return None if gradient is None else _apply(_ReLU, x, gradient)


# -- bilinear resize ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _bilinear_matrix(size, target, align_corners):
    """float32 Tensor [target, size]: row i weighs the pixels that bilinear resize mixes for i."""
    # As Paddle does: a float32 step, and positions that are rounded to float32 once.
    step = (size - 1) / max(target - 1, 1) if align_corners else size / target
    step = step if target > 1 else 0.0
    edge = 0.0 if align_corners else 0.5
    at = float(np.float32(step)) * (np.arange(target) + edge) - edge
    at = np.maximum(at.astype(np.float32), np.float32(0))
    low = np.minimum(at.astype(np.int64), size - 1)
    share = at - low.astype(np.float32)
    matrix = np.zeros((target, size), np.float32)
    rows = np.arange(target)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return paddle.to_tensor(matrix, place=paddle.CPUPlace())


def resize(
    x: paddle.Tensor, size: Sequence[int], align_corners: bool, data_format: str
) -> paddle.Tensor | None:
    """Bilinear resize of [N, C, H, W] to (height, width), or None.

    Paddle's own goes pixel by pixel on one thread, and its gradient even slower.

    A product takes every pixel of a row and a column, most of them times 0. So one Inf or NaN
    makes its whole map NaN (all of that channel's), where Paddle's own keeps it to the pixels
    around. Both say that the network has diverged.
    """
    if not applies(x) or data_format != "NCHW" or x.ndim != 4 or 0 in x.shape:
        return None
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        return None
    n, c, height, width = x.shape
    if (height, width) == tuple(size):
        return None  # the result would share x's memory
    # The products grow with the map's sides, and Paddle's forward pass does not.
    trains = paddle.is_grad_enabled() and not x.stop_gradient
    if height + width > (_WIDEST_TRAINED if trains else _WIDEST):
        return None
    if height == width == 1:
        return x.expand([n, c, *size])
    if width != size[1]:
        across = _bilinear_matrix(width, size[1], bool(align_corners))
        x = paddle.matmul(x.reshape([n * c * height, width]), across, transpose_y=True)
    if height != size[0]:
        down = _bilinear_matrix(height, size[0], bool(align_corners))
        x = paddle.matmul(down, x.reshape([n * c, height, size[1]]))
    return x.reshape([n, c, *size])

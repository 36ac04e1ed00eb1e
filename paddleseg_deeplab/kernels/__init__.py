# SPDX-License-Identifier: Apache-2.0
"""The door to the faster ways on a CPU: each function here answers None where there is none.

The caller then goes the plain way, which is always there. So everything works, only slower, where
the files of this folder are empty, or where the environment variable `PADDLESEG_DEEPLAB_KERNELS` is
0 (or false, no, off; read when this file is imported). What is asked for is imported at the first
question, so that reading files needs no Paddle. docs/performance.md has what each way gives.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from paddleseg_deeplab.utils import cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import numpy as np
    import paddle
    from paddle import nn

    from paddleseg_deeplab.kernels.png import Png

SWITCH = "PADDLESEG_DEEPLAB_KERNELS"
_OFF = cpu.switched_off(SWITCH)
# Question: the file that answers it, and the name there. (No question is called like a file, which
# would take its place in this package when it is imported.)
_WAYS = {
    "conv2d": ("cpu_ops", "conv2d"),
    "conv_bn": ("bias_in_mean", "conv_bn"),
    "relu_": ("cpu_ops", "relu_"),
    "resize": ("cpu_ops", "resize"),
    "pixel_cross_entropy": ("cross_entropy", "cross_entropy_numpy"),
    "pixel_cross_entropy_gradient": ("cross_entropy", "cross_entropy_gradient_numpy"),
    "lovasz_softmax": ("lovasz", "lovasz_softmax_numpy"),
    "parse_png": ("png", "parse"),
    "reads_png_fast": ("png", "is_fast"),
}


def has(question: str) -> bool:
    """bool: whether there is a way for this question, the name of one of the functions below."""
    return _way(question) is not _none


@functools.cache
def _way(question):
    if _OFF:
        return _none
    file, name = _WAYS[question]
    return getattr(importlib.import_module(f"{__name__}.{file}"), name, _none)


def _none(*_: Any) -> None:
    return None


def conv2d(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> paddle.Tensor | None:
    """``F.conv2d`` of [N, C, H, W] without bias, see `cpu_ops.conv2d`; or None."""
    return _way("conv2d")(x, weight, stride, padding, dilation, groups)


def conv_bn(
    conv: nn.Conv2D,
    norm: nn.BatchNorm2D,
    x: paddle.Tensor,
    batch_norm: Callable[..., paddle.Tensor],
) -> paddle.Tensor | None:
    """``norm(conv(x))`` of a convolution with bias, see `kernels.bias_in_mean`; or None."""
    return _way("conv_bn")(conv, norm, x, batch_norm)


def relu_(x: paddle.Tensor) -> paddle.Tensor | None:
    """``F.relu_`` with a faster gradient, see `cpu_ops.relu_`; or None."""
    return _way("relu_")(x)


def resize(
    x: paddle.Tensor, size: Sequence[int], align_corners: bool, data_format: str
) -> paddle.Tensor | None:
    """Bilinear resize to (height, width), see `cpu_ops.resize`; or None."""
    return _way("resize")(x, size, align_corners, data_format)


def pixel_cross_entropy(
    logits: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    smoothing: float,
    loss: np.ndarray,
    probs: np.ndarray | None,
) -> None:
    """Writes each pixel's loss, see `kernels.cross_entropy`. It answers None either way: ask `has`
    before."""
    return _way("pixel_cross_entropy")(logits, label, valid, smoothing, loss, probs)


def pixel_cross_entropy_gradient(
    probs: np.ndarray, label: np.ndarray, valid: np.ndarray, smoothing: float, upstream: np.ndarray
) -> None:
    """Turns probabilities into the gradient, see `kernels.cross_entropy`. Ask `has` before."""
    return _way("pixel_cross_entropy_gradient")(probs, label, valid, smoothing, upstream)


def lovasz_softmax(
    logits: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    classes: str | Sequence[int],
    grad: np.ndarray,
) -> float | None:
    """float: the loss, whose gradient is written, see `kernels.lovasz`; or None."""
    return _way("lovasz_softmax")(logits, label, valid, classes, grad)


def parse_png(content: bytes) -> Png | None:
    """png.Png: a file of which the first rows can be decoded alone, see `kernels.png`; or None."""
    return _way("parse_png")(content)


def reads_png_fast() -> bool | None:
    """bool: whether a whole file is decoded faster by way of `parse_png`; or None."""
    return _way("reads_png_fast")()

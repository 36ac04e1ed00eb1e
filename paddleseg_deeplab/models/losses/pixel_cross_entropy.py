# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy of each pixel, for finite logits of any size.

It is log(sum(exp(z - m))) - (z_y - m) with m the largest logit, which has no limit. In Paddle's CPU
kernels it ends at 64 (paddle_quirks: cross_entropy_limit).
"""

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from paddleseg_deeplab import kernels
from paddleseg_deeplab.models.losses.base import (
    apply_once,
    as_numpy,
    in_numpy,
    writable,
    written,
)
from paddleseg_deeplab.utils.py_layer import saved

_LARGEST = float(np.finfo("float32").max)


def pixel_cross_entropy(
    logits: Tensor, label: Tensor, valid: Tensor, data_format: str, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each pixel; 0, with gradient 0, where not valid.

    Args:
        logits (Tensor): float32 [N, C, H, W] or, with data_format "NHWC", [N, H, W, C].
        label (Tensor): int64 [N, H, W]; valid (Tensor): bool [N, H, W].
        label_smoothing (float): Probability spread evenly over all classes, in [0, 1).

    Returns:
        Tensor: float32 [N, H, W]. Finite for finite logits: a difference of logits beyond
        float32's largest number (3.4e38) counts as that number.
    """
    axis = 1 if data_format == "NCHW" else 3
    fast = in_numpy(logits) and kernels.has("pixel_cross_entropy")
    form = _InNumpy if fast else _InPaddle
    return apply_once(form, logits, label, valid, axis, float(label_smoothing))


_CHANGED = (
    "the logits were changed in place after the loss was computed, and its gradient needs them: "
    "change a copy of them"
)


class _InNumpy(PyLayer):
    @staticmethod
    def forward(ctx, logits, label, valid, axis, smoothing, seen):
        seen(ctx)
        ctx.pixels = *(as_numpy(x).reshape(label.shape[0], -1) for x in (label, valid)), smoothing
        ctx.axis = axis
        ctx.save_for_backward(logits.detach())
        tensor, loss = writable(label.shape)
        ctx.probs = None if logits.stop_gradient else writable(logits.shape)
        _InNumpy.fill(ctx, logits, loss)
        return written(tensor, loss)

    @staticmethod
    def fill(ctx, logits, loss):
        flat = _flat_view(as_numpy(logits), ctx.axis)
        probs = None if ctx.probs is None else _flat_view(ctx.probs[1], ctx.axis)
        kernels.pixel_cross_entropy(flat, *ctx.pixels, loss.reshape(len(flat), -1), probs)

    @staticmethod
    def backward(ctx, upstream):
        if ctx.probs is None:  # `paddle.grad` came before and has them
            (logits,) = saved(ctx, _CHANGED)
            ctx.probs = writable(logits.shape)
            _InNumpy.fill(ctx, logits, np.empty(upstream.shape, "float32"))
        (tensor, array), ctx.probs = ctx.probs, None
        upstream = as_numpy(upstream).reshape(len(array), -1)
        kernels.pixel_cross_entropy_gradient(_flat_view(array, ctx.axis), *ctx.pixels, upstream)
        return written(tensor, array)


def _flat_view(array, axis):
    """[N, C, P] view of [N, C, H, W] or, with axis 3, [N, H, W, C]."""
    if axis == 1:
        return array.reshape(*array.shape[:2], -1)
    return array.reshape(array.shape[0], -1, array.shape[3]).swapaxes(1, 2)


class _InPaddle(PyLayer):
    """The same in Paddle's operators, without a stop of the device."""

    @staticmethod
    def forward(ctx, logits, label, valid, axis, smoothing, seen):
        seen(ctx)
        known = paddle.where(valid, label, paddle.zeros_like(label)).unsqueeze(axis)
        top = logits.max(axis=axis, keepdim=True)
        shifted = logits - top
        own = paddle.take_along_axis(shifted, known, axis)
        target = (1.0 - smoothing) * _reachable(own, paddle.take_along_axis(logits, known, axis))
        if smoothing:
            share = smoothing / logits.shape[axis]
            target += (_reachable(shifted, logits) * share).sum(axis=axis, keepdim=True)
        total = shifted.exp_().sum(axis=axis, keepdim=True)
        loss = paddle.log(total) - target
        ctx.save_for_backward(logits.detach(), known, valid, top, total)
        ctx.axis, ctx.smoothing = axis, smoothing
        # 0 at void, whatever its logits are.
        return paddle.where(valid.unsqueeze(axis), loss, paddle.zeros_like(loss)).squeeze(axis)

    @staticmethod
    def backward(ctx, upstream):
        logits, known, valid, top, total = saved(ctx, _CHANGED)
        axis, valid = ctx.axis, valid.unsqueeze(ctx.axis)
        with paddle.amp.auto_cast(enable=False):
            upstream = upstream.unsqueeze(axis)
            slope = (logits - top).exp_().multiply_(upstream / total)
            if ctx.smoothing:
                slope.subtract_(upstream * (ctx.smoothing / logits.shape[axis]))
            own = paddle.take_along_axis(slope, known, axis) - upstream * (1.0 - ctx.smoothing)
            slope.put_along_axis_(known, own, axis)
            return slope.masked_fill_(~valid, 0.0)


def _reachable(shifted, logits):
    """Shifted logits: where two finite logits differ by more than float32 holds, the largest
    number that it does."""
    lowest = paddle.clip(shifted, min=-_LARGEST)
    return paddle.where(logits == -float("inf"), shifted, lowest)

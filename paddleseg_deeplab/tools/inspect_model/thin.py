# SPDX-License-Identifier: Apache-2.0
"""Sizes and receptive fields of a network, without the cost of running it.

Neither depends on the number of channels. So each convolution gets a kernel of ones with one
channel (its input's channels are added up before it), each batch norm one neutral channel;
everything between them stays. This *thin* network takes milliseconds where the real one takes
seconds. Since all its weights are positive, nothing cancels: the gradient of an output by the
image is non-zero exactly where a path leads, which is the receptive field.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.tools.inspect_model.stages import BATCH_NORMS

CONVS = (nn.Conv2D, nn.Conv2DTranspose)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2D, nn.AdaptiveMaxPool2D)
# Neighbouring outputs whose receptive fields are compared: where a map was upsampled they differ.
_PHASES = 8
_LENGTHS = (4096, 16384, 65536)  # of the image that receptive fields are sought in
# So small that ReLU6 and the like never reach their bend, so large that nothing underflows.
_SMALL = 1e-150


class NotThin(Exception):
    """The network has layers of a kind whose sizes cannot be found in one channel."""


def _constant(shape, value):
    tensor = paddle.create_parameter(
        shape, "float64", default_initializer=nn.initializer.Constant(value)
    )
    tensor.stop_gradient = True
    return tensor


def _add_channels(layer, inputs):
    x = inputs[0]
    return (x if x.shape[1] == 1 else x.sum(axis=1, keepdim=True), *inputs[1:])


def make_thin(model: nn.Layer) -> None:
    """Makes a network thin, in place: its weights are lost (see the head of this file).

    Args:
        model (nn.Layer): NCHW.

    Raises:
        NotThin: a layer other than convolutions and batch norms has weights.
    """
    layers = list(model.sublayers(include_self=True))
    for layer in layers:
        own = [p for p in layer.parameters(include_sublayers=False) if p is not None]
        if own and not isinstance(layer, (*CONVS, *BATCH_NORMS)):
            raise NotThin(f"{type(layer).__name__} has weights of its own")
    for layer in layers:
        if isinstance(layer, CONVS):
            layer.weight = _constant([1, 1, *layer.weight.shape[2:]], 1.0)
            layer.bias = None
            layer._groups = layer._in_channels = layer._out_channels = 1
            layer._op_type = "conv2d_transpose" if isinstance(layer, CONVS[1]) else "conv2d"
        elif isinstance(layer, BATCH_NORMS):
            for name in ("weight", "bias", "_mean", "_variance"):
                value = 1.0 if name in ("weight", "_variance") else 0.0
                setattr(layer, name, _constant([1], value))
        else:
            continue
        layer.register_forward_pre_hook(_add_channels)
    if hasattr(model, "backbone"):
        model.backbone.feat_channels = None  # what it declared is no longer so


@contextlib.contextmanager
def hooks(
    pairs: Iterable[tuple[nn.Layer, Callable[[nn.Layer, tuple[paddle.Tensor, ...], Any], Any]]],
) -> Iterator[None]:
    """Forward hooks for as long as the context lasts."""
    handles = [layer.register_forward_post_hook(hook) for layer, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output):
    """The main tensor of a layer's output."""
    while isinstance(output, (list, tuple)):
        output = output[0]
    return output


def _mean_pool(x, kernel_size, stride=None, padding=0, return_mask=False, ceil_mode=False, **kw):
    """In place of max pooling: all of the window has a gradient, not only its maximum."""
    kw.pop("name", None)
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, exclusive=True, **kw)


def _extent(output, image):
    """(stride, receptive field or None) of an output of the long image [_PHASES, C, L, 1]."""
    length, outputs = image.shape[2], output.shape[2]
    stride = max(1, round(length / outputs))  # sizes that round up make it a little less
    if outputs < 2 * _PHASES:
        return stride, None
    middle = outputs // 2
    picked = sum(output[i, :, middle + i, :].sum() for i in range(_PHASES))
    if picked.stop_gradient:  # image pooling's own branch
        return stride, None
    (gradient,) = paddle.grad([picked], [image], retain_graph=True, allow_unused=True)
    if gradient is None:
        return stride, None
    touched = np.abs(gradient.numpy()).sum(axis=(1, 3)) > 0  # [_PHASES, L]
    if touched[:, 0].any() or touched[:, -1].any() or not touched.any():
        return stride, None
    widths = [int(row.size - row[::-1].argmax() - row.argmax()) for row in touched if row.any()]
    return stride, max(widths)


def receptive_fields(
    model: nn.Layer, layers: Mapping[str, nn.Layer], in_channels: int = 3
) -> dict[str, tuple[int, int | None]]:
    """Receptive field and stride at the output of some layers of a thin network.

    Measured on one axis, on an image of one column, as the gradient of outputs in its middle. Max
    pooling is replaced by the mean, and image pooling left out. A network of several scales is
    measured at its full scale: backbone, then head.

    Args:
        model (nn.Layer): Thin, see `make_thin`.
        layers (dict[str, nn.Layer]): Name to layer.
        in_channels (int): Of the image.

    Returns:
        dict[str, tuple[int, int | None]]: name to (input pixels per output pixel, receptive
            field in input pixels on each axis; None where it is the whole image).
    """
    outputs: dict[str, paddle.Tensor] = {}
    found: dict[str, tuple[int, int | None]] = {}

    def keep(name):
        def hook(_layer, _inputs, output):
            outputs[name] = _first(output)

        return hook

    def forget(_layer, _inputs, output):
        return output.detach()

    pools = [m for m in model.sublayers() if isinstance(m, _ADAPTIVE_POOLS)]
    pairs = [(pool, forget) for pool in pools]
    pairs += [(layer, keep(name)) for name, layer in layers.items()]
    parted = isinstance(getattr(model, "backbone", None), nn.Layer) and hasattr(model, "head")
    for length in _LENGTHS:
        outputs.clear()
        image = paddle.full([_PHASES, in_channels, length, 1], _SMALL, "float64")
        image.stop_gradient = False
        with evaluation_mode(model), hooks(pairs), paddle.enable_grad():
            with mock.patch.object(F, "max_pool2d", _mean_pool):
                if parted:
                    model.head(model.backbone(image))
                else:
                    model(image)
            for name, output in outputs.items():
                if found.get(name, (0, None))[1] is None:
                    found[name] = _extent(output, image)
        if all(field is not None for _, field in found.values()):
            break
    return found

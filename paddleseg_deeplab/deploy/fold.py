# SPDX-License-Identifier: Apache-2.0
"""Rewrites a copy of a trained network so that runtimes have less to do, by exact algebra.

Paddle Inference 3.3.1 joins a convolution with the batch norm and the ReLU behind it, but only
where the convolution has no bias; and oneDNN has no fast way for a depthwise convolution whose
padding is wider than its rows of work. Sums are taken in float64 and rounded once, so that the
result differs from the given network by rounding alone.
"""

import copy
import itertools

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.models.layers import BATCH_NORMS, Conv2D
from paddleseg_deeplab.utils.logger import logger

_CONVS = (nn.Conv2D, Conv2D)
# oneDNN 3.6 (Paddle 3.3.1) on AVX-512: jit_uni_dw takes six columns at a time and no more padding.
_WIDEST_PADDING = 6


def folded_copy(model: nn.Layer, widen: bool = False) -> nn.Layer:
    """A copy of a network in evaluation mode with fewer operations; `model` stays as it is.

    Args:
        model (nn.Layer): Any network. Layers that are not known, and those that share a
            convolution, a batch norm or a parameter with another, stay as they are.
        widen (bool): For oneDNN: wide padding of depthwise convolutions becomes a step of its own,
            see `WidenedDepthwise`. Networks of data_format "NHWC" have none of it.

    Returns:
        nn.Layer: Of `model`'s class and attributes. Where it cannot be copied: `model` itself.
    """
    try:
        result = copy.deepcopy(model)
    except Exception as error:  # whatever a foreign layer holds
        logger.warning("The network cannot be copied, so it is exported as it is: %s", error)
        return model
    result.eval()
    alone = _Alone(result)
    layers = result.sublayers(include_self=True)
    for layer in layers:
        for conv, norm in itertools.pairwise(_steps(layer)):
            if _known_pair(conv, norm) and alone.are(layer, conv, norm):
                _drop_bias(conv, norm)
    widen = widen and getattr(model, "data_format", "NCHW") == "NCHW"
    for layer in layers:
        _fold_depthwise(layer, alone, widen)
    return result


class WidenedDepthwise(nn.Layer):
    """A depthwise convolution whose columns of zeros are added by a 1x1 depthwise one before it.

    oneDNN computes a dilated depthwise convolution with wide padding as one small matrix product
    for each channel, between two changes of layout. With the columns padded beforehand (by a kernel
    of ones, which keeps every number as it is) it takes its fast way: on an Intel core 2048
    channels of 64x64 at rate 12 take 16 ms rather than 73. Padding of the rows is no hindrance.

    Args:
        conv (nn.Conv2D | layers.Conv2D): Depthwise, float32, NCHW, without bias, at stride 1.
    """

    def __init__(self, conv: nn.Conv2D) -> None:
        super().__init__()
        channels, (rows, columns) = conv.weight.shape[0], _pair(conv._updated_padding)
        # A constant first value: a random one would move Paddle's random state.
        one = paddle.ParamAttr(initializer=nn.initializer.Constant(1.0))
        kwargs = {"groups": channels, "bias_attr": False, "weight_attr": one}
        self.widen = nn.Conv2D(channels, channels, 1, padding=[0, columns], **kwargs)
        kernel, dilation = conv.weight.shape[2:], conv._dilation
        kwargs["dilation"] = dilation
        self.conv = nn.Conv2D(channels, channels, kernel, padding=[rows, 0], **kwargs)
        self.conv.weight.set_value(conv.weight)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float [N, C, H, W] to the convolution's output."""
        return self.conv(self.widen(x))


class _Alone:
    """Which sublayers have one place in a network, and parameters that no other layer has."""

    def __init__(self, network):
        places, holders = {}, {}
        for layer in network.sublayers(include_self=True):
            for child in layer._sub_layers.values():
                places.setdefault(id(child), []).append(layer)
            for part in layer._parameters.values():
                holders.setdefault(id(part), []).append(layer)
            for part in layer._buffers.values():
                holders.setdefault(id(part), []).append(layer)
        self._places, self._holders = places, holders

    def are(self, owner, *layers):
        """Whether each of the layers lies in `owner` alone, and its tensors in it alone."""
        for layer in layers:
            tensors = [*layer._parameters.values(), *layer._buffers.values()]
            held = (self._holders[id(t)] for t in tensors if t is not None)
            if self._places[id(layer)] != [owner] or any(h != [layer] for h in held):
                return False
        return True


def _steps(layer):
    """The sublayers that forward runs one after the other, where the layer's own class declares
    them (`layers.ConvBN` tells how); none for others, derived classes included: those may do
    something else in between."""
    return [getattr(layer, name) for name in vars(type(layer)).get("forward_steps", ())]


def _drop_bias(conv, norm):
    """Takes a convolution's bias off the batch norm's mean: (x + b) - mean = x - (mean - b)."""
    if conv.bias is None:
        return
    norm._mean.set_value(_rounded(_double(norm._mean) - _double(conv.bias), norm._mean))
    conv.bias = None


def _fold_depthwise(layer, alone, widen):
    """Puts a depthwise convolution's batch norm into its weights and into the next batch norm.

    Nothing stands between the two but a 1x1 convolution without padding, so that a constant for
    each channel comes out as a constant for each channel.
    """
    blocks = [_steps(block) for block in _steps(layer)]
    if len(blocks) != 2 or len(blocks[0]) != 2 or len(blocks[1]) < 2:
        return
    (depthwise, pointwise), (conv, norm), (mix, after) = _steps(layer), blocks[0], blocks[1][:2]
    known = _known_pair(conv, norm) and _known_pair(mix, after)
    one_place = alone.are(layer, depthwise, pointwise) and alone.are(depthwise, conv, norm)
    if not known or not one_place or not alone.are(pointwise, mix, after):
        return
    if _has_hooks(depthwise) or _has_hooks(pointwise) or not _is_pointwise(mix):
        return
    if conv.bias is not None or not conv._groups == conv._in_channels == conv._out_channels:
        return
    scale, shift = _affine(norm)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return  # the comparison with the trained network has to see it
    conv.weight.set_value(_rounded(_double(conv.weight) * scale[:, None, None, None], conv.weight))
    constant = _double(mix.weight)[:, :, 0, 0] @ shift
    after._mean.set_value(_rounded(_double(after._mean) - constant, after._mean))
    first = type(layer).forward_steps[0]
    setattr(layer, first, WidenedDepthwise(conv) if widen and _is_wide(conv) else conv)


def _known_pair(conv, norm):
    """Whether the two do what their names say: no hooks (weight norm is one), no class of somebody
    else's, and the batch norm uses its running statistics."""
    known = type(conv) in _CONVS and type(norm) in BATCH_NORMS
    return (
        known
        and not _has_hooks(conv)
        and not _has_hooks(norm)
        and norm._use_global_stats is not False
    )


def _has_hooks(layer):
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def _is_pointwise(conv):
    """Whether a constant for each channel comes out as a constant for each channel."""
    return (
        tuple(conv.weight.shape[2:]) == (1, 1)
        and conv._groups == 1
        and list(conv._stride) == [1, 1]
        and _pair(conv._updated_padding) == [0, 0]
    )


def _affine(norm):
    """(scale, shift), float64 [C] each, of a batch norm with running statistics."""
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(_double(norm._variance) + norm._epsilon)
    scale = (1.0 if norm.weight is None else _double(norm.weight)) / deviation
    return scale, (0.0 if norm.bias is None else _double(norm.bias)) - _double(norm._mean) * scale


def _is_wide(conv):
    padding = _pair(conv._updated_padding)
    plain = padding is not None and list(conv._stride) == [1, 1] and conv._padding_mode == "zeros"
    plain = plain and conv._data_format == "NCHW" and conv.weight.dtype == paddle.float32
    return plain and padding[1] > _WIDEST_PADDING and max(conv._dilation) > 1


def _pair(padding):
    """[rows, columns] of a Conv2D's padding, None where it is said in another way."""
    if isinstance(padding, int):
        return [padding, padding]
    good = isinstance(padding, (list, tuple)) and len(padding) == 2
    return list(padding) if good and all(isinstance(p, int) for p in padding) else None


def _double(tensor):
    return tensor.astype("float32").numpy().astype(np.float64)


def _rounded(values, like):
    # NumPy has no bfloat16, and set_value takes the tensor's own type.
    return paddle.to_tensor(values.astype(np.float32), place=like.place).astype(like.dtype)

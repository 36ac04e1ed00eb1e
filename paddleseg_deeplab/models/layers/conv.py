# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and ReLU, in the groupings that the networks repeat.

Attribute names are state_dict keys of PaddleSeg's checkpoints (``_conv``, ``_batch_norm``,
``depthwise_conv``, ``piontwise_conv``) and must not change. Convolution weights are
[out, in / groups, kh, kw] in both data formats, so that one state_dict serves both.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddleseg_deeplab.kernels import cpu_ops
from paddleseg_deeplab.models.layers.norm import SyncBatchNorm
from paddleseg_deeplab.models.layers.resize import like

_ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leakyrelu": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Activation(nn.Layer):
    """A stateless activation by its lower-case name; None leaves the tensor as it is.

    Raises:
        KeyError: an unknown name. (PaddleSeg evaluates any name of paddle.nn.layer.activation,
            also those that own parameters; here is a table of those that do not.)
    """

    def __init__(self, act=None):
        super().__init__()
        if act is not None and act not in _ACTIVATIONS:
            raise KeyError(f"act is {act!r}; give None or one of {sorted(_ACTIVATIONS)}.")
        self.act_func = None if act is None else _ACTIVATIONS[act]()

    def forward(self, x):
        return x if self.act_func is None else self.act_func(x)


class Add(nn.Layer):
    """Sum of two tensors as a layer, which PaddleSeg's backbones use."""

    def forward(self, x, y, name=None):
        return paddle.add(x, y, name)


class ReLU(nn.Layer):
    """ReLU that overwrites its input, the fresh output of a sum or a batch norm.

    Neither needs its output for its gradient. Saves the allocation of one map in three; touching
    fresh memory costs a CPU more than the comparison does. Traced programs use the plain one.
    """

    def forward(self, x):
        if not paddle.in_dynamic_mode():
            return F.relu(x)
        y = cpu_ops.relu_(x)
        return F.relu_(x) if y is None else y


def convolve(conv, x, with_bias=True, *, keep_bias=False):
    """What an ``nn.Conv2D`` gives for x; in dygraph on a CPU the faster way, see `cpu_ops`.

    A layer of a class derived from it, or with hooks, is called as it is.

    Args:
        conv (nn.Conv2D): The layer.
        x (Tensor): Its input.
        with_bias (bool): With its bias, where it has one. False asks for a layer that
            `_may_be_bypassed`.
        keep_bias (bool): Under autocast the bias stays float32, and so does the output. For
            logits; feature maps stay in half precision.
    """
    # A program that is traced for export stays what Paddle makes of the layer.
    if not _may_be_bypassed(conv, nn.Conv2D) or not (paddle.in_dynamic_mode() or _autocasts()):
        return conv(x)
    geometry = conv._stride, conv._updated_padding, conv._dilation, conv._groups
    y = None
    if paddle.in_dynamic_mode() and conv._data_format == "NCHW":
        y = cpu_ops.conv2d(x, conv.weight, *geometry)
    if y is None:
        y = F.conv2d(x, conv.weight, None, *geometry, conv._data_format)
    if conv.bias is None or not with_bias:
        return y
    shape = [1, -1, 1, 1] if conv._data_format == "NCHW" else [1, 1, 1, -1]
    return y + (conv.bias if keep_bias else like(conv.bias, y)).reshape(shape)


def _may_be_bypassed(layer, kind):
    """Whether a call of the layer does what is known of `kind`, and nobody looks on: hooks and a
    forward of its own belong to the call."""
    if type(layer) is not kind or getattr(layer, "_padding_mode", "zeros") != "zeros":
        return False
    if getattr(layer, "_padding_algorithm", "EXPLICIT") == "SAME":  # not said by numbers
        return False
    hooks = layer._forward_pre_hooks or layer._forward_post_hooks
    return not hooks and "forward" not in vars(layer)


def _autocasts():
    """Whether autocast is on; no where Paddle is too old to say so: there the programs of
    `core.training.compiled` add biases in float32."""
    enabled = getattr(paddle.amp, "is_autocast_enabled", None)
    return enabled is not None and enabled()


def _same_padding(kernel_size, dilation):
    """Padding on each side that keeps the size at stride 1.

    Paddle's own padding="same" sets the dilation to 1 without a word, so a dilated convolution
    would silently lose its rate. The number below is what "same" means at stride 1.
    """
    if not isinstance(kernel_size, int) or kernel_size % 2 == 0:
        raise ValueError(
            f'padding="same" needs one odd kernel_size, not {kernel_size!r}; give the padding.'
        )
    return dilation * (kernel_size - 1) // 2


class ConvBN(nn.Layer):
    """Convolution, then batch norm.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Height and width of the kernel.
        padding (int|str): Zeros on each side; "same" keeps the size at stride 1 for any dilation
            (at stride 2 it halves rounding up, with equal padding on both sides: PaddleSeg's
            "same" pads unequally there).
        **kwargs: What ``nn.Conv2D`` takes more (stride, dilation, groups, bias_attr, data_format).
            As in PaddleSeg the convolution has a bias unless bias_attr is False.
    """

    def __init__(self, in_channels, out_channels, kernel_size, padding="same", **kwargs):
        super().__init__()
        if padding == "same":
            padding = _same_padding(kernel_size, kwargs.get("dilation", 1))
        self._conv = nn.Conv2D(in_channels, out_channels, kernel_size, padding=padding, **kwargs)
        self._batch_norm = SyncBatchNorm(
            out_channels, data_format=kwargs.get("data_format", "NCHW")
        )

    def forward(self, x):
        return self.conv_bn(x)

    # A method of its own, since to_static loses its way in a chain of super().forward().
    def conv_bn(self, x):
        """Convolution and batch norm of x.

        A bias here only moves the mean that batch norm takes off again, yet adding it to the map
        costs a tenth of a training step on a CPU. So it is added to the mean instead.
        """
        conv, norm = self._conv, self._batch_norm
        if conv.bias is None or not paddle.in_dynamic_mode():
            return norm(convolve(conv, x))
        if not _may_be_bypassed(conv, nn.Conv2D) or not _may_be_bypassed(norm, nn.BatchNorm2D):
            return norm(convolve(conv, x))
        trains = norm.training and not norm._use_global_stats
        if not trains and paddle.is_grad_enabled():
            return norm(convolve(conv, x))  # frozen statistics: the bias has a gradient
        bias = conv.bias.detach().astype(norm._mean.dtype)
        mean, beta = norm._mean - bias, norm.bias
        if trains:
            # The bias has a gradient of 0, and it must be there: weight decay acts on it, and
            # training on several ranks waits for it.
            beta = beta + (0.0 * conv.bias).astype(beta.dtype)
        y = F.batch_norm(
            convolve(conv, x, with_bias=False),
            mean,
            norm._variance,
            norm.weight,
            beta,
            training=trains,
            momentum=norm._momentum,
            epsilon=norm._epsilon,
            data_format=norm._data_format,
        )
        if trains:  # batch norm has updated `mean` where it lies
            paddle.assign(mean + bias, output=norm._mean)
        return y


class ConvBNReLU(ConvBN):
    """Convolution, batch norm, ReLU; the arguments are `ConvBN`'s."""

    def __init__(self, in_channels, out_channels, kernel_size, padding="same", **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, padding, **kwargs)
        self._relu = ReLU()

    def forward(self, x):
        return self._relu(self.conv_bn(x))


class SeparableConvBNReLU(nn.Layer):
    """Depthwise convolution and batch norm, then pointwise convolution, batch norm and ReLU.

    Between the two there is no ReLU (V3+ paper, section 3.1, leaves it open; PaddleSeg's layout).

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Of the depthwise convolution.
        padding (int|str): Of the depthwise convolution, see `ConvBN`.
        pointwise_bias: ``bias_attr`` of the pointwise convolution; None gives it a bias.
        **kwargs: What the depthwise ``nn.Conv2D`` takes more; data_format goes to both.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        padding="same",
        pointwise_bias=None,
        **kwargs,
    ):
        super().__init__()
        self.depthwise_conv = ConvBN(
            in_channels, in_channels, kernel_size, padding, groups=in_channels, **kwargs
        )
        # "piontwise" is PaddleSeg's spelling of pointwise. Every published checkpoint holds it,
        # so the name is frozen.
        self.piontwise_conv = ConvBNReLU(
            in_channels,
            out_channels,
            1,
            bias_attr=pointwise_bias,
            data_format=kwargs.get("data_format", "NCHW"),
        )

    def forward(self, x):
        return self.piontwise_conv(self.depthwise_conv(x))

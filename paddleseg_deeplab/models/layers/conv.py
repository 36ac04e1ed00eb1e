# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and ReLU, in the groupings that the networks repeat.

Attribute names are state_dict keys of PaddleSeg's checkpoints (``_conv``, ``_batch_norm``,
``depthwise_conv``, ``piontwise_conv``) and must not change. Convolution weights are
[out, in / groups, kh, kw] in both data formats, so that one state_dict serves both.
"""

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_deeplab import kernels
from paddleseg_deeplab.models.layers.norm import BatchNorm2D, SyncBatchNorm, batch_norm
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

# Of one rank; what several ranks do together is no function of their own map.
_NORMS = (nn.BatchNorm2D, BatchNorm2D)


class Activation(nn.Layer):
    """A stateless activation by its lower-case name; None leaves the tensor as it is.

    Raises:
        KeyError: an unknown name. (PaddleSeg evaluates any name of paddle.nn.layer.activation,
            also those that own parameters; here is a table of those that do not.)
    """

    def __init__(self, act: str | None = None) -> None:
        super().__init__()
        if act is not None and act not in _ACTIVATIONS:
            raise KeyError(f"act is {act!r}; give None or one of {sorted(_ACTIVATIONS)}.")
        self.act_func = None if act is None else _ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act_func is None else self.act_func(x)


class Add(nn.Layer):
    """Sum of two tensors as a layer, which PaddleSeg's backbones use."""

    def forward(self, x: Tensor, y: Tensor, name: str | None = None) -> Tensor:
        return paddle.add(x, y, name)


class ReLU(nn.Layer):
    """ReLU that overwrites its input, the fresh output of a sum or a batch norm.

    Neither needs its output for its gradient. Saves the allocation of one map in three; touching
    fresh memory costs a CPU more than the comparison does. Traced programs use the plain one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not paddle.in_dynamic_mode():
            return F.relu(x)
        y = kernels.relu_(x)
        return F.relu_(x) if y is None else y


class Conv2D(nn.Conv2D):
    """``nn.Conv2D``; in dygraph on a CPU the faster way, where `kernels` has one.

    Under autocast a bias is added in the map's type, where Paddle's own takes the map to float32.

    Args:
        keep_bias (bool): Under autocast the bias stays float32, and so does the output. For logits;
            feature maps stay in half precision.
        (the others): Those of ``nn.Conv2D``.
    """

    def __init__(self, *args: Any, keep_bias: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_bias = keep_bias

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H', W'], or both channels last."""
        # A program that is traced for export stays what Paddle makes of the layer.
        if not self.says_padding() or not (paddle.in_dynamic_mode() or _autocasts()):
            return nn.Conv2D.forward(self, x)
        y = self.without_bias(x)
        if self.bias is None:
            return y
        shape = [1, -1, 1, 1] if self._data_format == "NCHW" else [1, 1, 1, -1]
        return y + (self.bias if self.keep_bias else like(self.bias, y)).reshape(shape)

    def says_padding(self) -> bool:
        """Whether the padding is zeros, and so many as numbers say: not "SAME", not "reflect"."""
        return self._padding_mode == "zeros" and self._padding_algorithm != "SAME"

    def without_bias(self, x: Tensor) -> Tensor:
        """The convolution of x alone, of a layer that `says_padding`."""
        stride, padding, dilation = self._stride, self._updated_padding, self._dilation
        y = None
        if self._data_format == "NCHW":
            y = kernels.conv2d(x, self.weight, stride, padding, dilation, self._groups)
        if y is None:
            layout = self._data_format
            y = F.conv2d(x, self.weight, None, stride, padding, dilation, self._groups, layout)
        return y


def conv_bn(conv: nn.Conv2D, norm: nn.Layer, x: Tensor) -> Tensor:
    """``norm(conv(x))``; by way of `kernels` where both layers are as they were made."""
    y = None
    if _is_plain(conv, Conv2D) and conv.says_padding() and _is_plain(norm, *_NORMS):
        y = kernels.conv_bn(conv, norm, x, batch_norm)
    return norm(conv(x)) if y is None else y


def _is_plain(layer, *kinds):
    """Whether a call of the layer does what is known of these classes, and nobody looks on: hooks
    and a forward of its own belong to the call."""
    hooks = layer._forward_pre_hooks or layer._forward_post_hooks
    return type(layer) in kinds and not hooks and "forward" not in vars(layer)


def _autocasts():
    """Whether autocast is on; no where Paddle is too old to say so: there the programs of
    `core.training.compiled` add biases in float32."""
    enabled = getattr(paddle.amp, "is_autocast_enabled", None)
    return enabled is not None and enabled()


def _same_padding(kernel_size, dilation):
    """Padding on each side that keeps the size at stride 1.

    The number is what "same" means at stride 1; Paddle's own drops the rate
    (paddle_quirks: same_padding_drops_dilation).
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
        **kwargs: What `Conv2D` takes more (stride, dilation, groups, bias_attr, data_format).
            As in PaddleSeg the convolution has a bias unless bias_attr is False.

    Attributes:
        forward_steps (tuple[str]): Names of the sublayers that `forward` runs one after the other,
            with nothing in between. `deploy.fold` reads it, of the layer's own class alone: a class
            that is derived from this one declares its own, or is taken as it is.
    """

    forward_steps: tuple[str, ...] = ("_conv", "_batch_norm")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int | str = "same",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if padding == "same":
            padding = _same_padding(kernel_size, kwargs.get("dilation", 1))
        self._conv = Conv2D(in_channels, out_channels, kernel_size, padding=padding, **kwargs)
        self._batch_norm = SyncBatchNorm(
            out_channels, data_format=kwargs.get("data_format", "NCHW")
        )

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn(self._conv, self._batch_norm, x)


class ConvBNReLU(ConvBN):
    """Convolution, batch norm, ReLU; the arguments are `ConvBN`'s."""

    forward_steps = ("_conv", "_batch_norm", "_relu")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int | str = "same",
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding, **kwargs)
        self._relu = ReLU()

    # Not super().forward(x): to_static loses its way in a chain of them.
    def forward(self, x: Tensor) -> Tensor:
        return self._relu(conv_bn(self._conv, self._batch_norm, x))


class SeparableConvBNReLU(nn.Layer):
    """Depthwise convolution and batch norm, then pointwise convolution, batch norm and ReLU.

    Between the two there is no ReLU (V3+ paper, section 3.1, leaves it open; PaddleSeg's layout).

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Of the depthwise convolution.
        padding (int|str): Of the depthwise convolution, see `ConvBN`.
        pointwise_bias: ``bias_attr`` of the pointwise convolution; None gives it a bias.
        **kwargs: What the depthwise `Conv2D` takes more; data_format goes to both.
    """

    forward_steps = ("depthwise_conv", "piontwise_conv")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int | str = "same",
        pointwise_bias: paddle.ParamAttr | bool | None = None,
        **kwargs: Any,
    ) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        return self.piontwise_conv(self.depthwise_conv(x))

# SPDX-License-Identifier: Apache-2.0
"""Atrous spatial pyramid pooling (V3 paper, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.models.layers.conv import ConvBNReLU, SeparableConvBNReLU, conv_bn
from paddleseg_deeplab.models.layers.norm import running_batch_norm
from paddleseg_deeplab.models.layers.resize import channel_axis, like, resize, spatial_size

# Rates by output stride: the paper's for 16, in proportion for the others (it doubles them at 8).
DEFAULT_ASPP_RATIOS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18), 32: (1, 3, 6, 9)}

# Which convolutions of a head have a bias, by what the implementations do. Those that are not
# named here and stand before batch norm have none; image pooling's never has one.
HEAD_BIASES = {
    "all": ("branches", "projection", "decoder", "classifier"),  # PaddleSeg
    "projection": ("projection",),  # an implementation of V3+ on Xception
    "classifier": ("classifier",),  # torchvision, kazuto1011, TensorFlow's DeepLab
}


class _PooledConvBNReLU(ConvBNReLU):
    """`ConvBNReLU` for a 1x1 map, which in a batch of one has a single value per channel.

    One value has no variance (paddle_quirks: batch_norm_of_one_value). Such a batch is normalised
    with the running statistics, which it leaves as they are, so that training and evaluation agree
    and the branch learns. Batches of two or more, and ``nn.SyncBatchNorm`` (which sees the other
    ranks' images too), are untouched.
    """

    forward_steps = ("_conv", "_batch_norm", "_relu")

    def forward(self, x):
        norm = self._batch_norm
        if self.training and x.shape[0] == 1 and isinstance(norm, nn.BatchNorm2D):
            return self._relu(running_batch_norm(norm, self._conv(x)))
        return self._relu(conv_bn(self._conv, norm, x))


class ASPPModule(nn.Layer):
    """Parallel convolutions at several rates, and the image's mean, joined and projected.

    Args:
        aspp_ratios (Sequence[int]): Rates; 1 is a 1x1 convolution, others are 3x3 dilated ones.
        in_channels (int): Channels of the input.
        out_channels (int): Channels of each branch and of the output.
        align_corners (bool): For spreading the image's mean over the map.
        use_sep_conv (bool): Separable 3x3 convolutions (V3+) instead of plain ones (V3).
        image_pooling (bool): With the branch of the image's mean.
        data_format (str): "NCHW" or "NHWC".
        dropout (float): Share of the output's values that training drops. The default is
            PaddleSeg's.
        bias (str): One of `HEAD_BIASES`.

    Raises:
        ValueError: aspp_ratios is empty or holds something other than positive integers, an
            unknown bias, or a dropout out of range.
    """

    def __init__(
        self,
        aspp_ratios: Sequence[int],
        in_channels: int,
        out_channels: int,
        align_corners: bool,
        use_sep_conv: bool = False,
        image_pooling: bool = False,
        data_format: str = "NCHW",
        *,
        dropout: float = 0.1,
        bias: str = "all",
    ) -> None:
        super().__init__()
        check_aspp_ratios(aspp_ratios)
        check_dropouts(dropout=dropout)
        with_bias = check_head_bias(bias)
        self._axis = channel_axis(data_format)
        self.align_corners = align_corners
        self.data_format = data_format
        self.image_pooling = image_pooling
        kwargs: dict[str, Any] = {"bias_attr": None if "branches" in with_bias else False}
        kwargs["data_format"] = data_format
        self.aspp_blocks = nn.LayerList(
            [_branch(r, in_channels, out_channels, use_sep_conv, kwargs) for r in aspp_ratios]
        )
        branches = len(self.aspp_blocks)
        if image_pooling:
            # Not paddle.mean: its backward pass takes ten times as long on a CPU.
            self.global_avg_pool = nn.Sequential(
                nn.AdaptiveAvgPool2D(output_size=(1, 1), data_format=data_format),
                _PooledConvBNReLU(
                    in_channels, out_channels, 1, bias_attr=False, data_format=data_format
                ),
            )
            branches += 1
        self.conv_bn_relu = ConvBNReLU(
            out_channels * branches,
            out_channels,
            1,
            bias_attr=None if "projection" in with_bias else False,
            data_format=data_format,
        )
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H, W], in the module's data format."""
        outputs = [block(x) for block in self.aspp_blocks]
        if self.image_pooling:
            mean = self.global_avg_pool(x)  # [N, out_channels, 1, 1]
            size = spatial_size(x, self.data_format)
            pooled = resize(mean, size, self.align_corners, self.data_format)
            outputs.append(like(pooled, mean))
        x = paddle.concat(outputs, axis=self._axis)  # [N, out_channels * branches, H, W]
        return self.dropout(self.conv_bn_relu(x))


def check_aspp_ratios(rates: Sequence[int], name: str = "aspp_ratios") -> None:
    """Raises ValueError unless rates is a non-empty sequence of positive integers."""
    is_list = isinstance(rates, (list, tuple)) and len(rates) > 0
    if not is_list or not all(type(r) is int and r >= 1 for r in rates):
        raise ValueError(f"{name} is {rates!r}; give positive integers, such as (1, 6, 12, 18).")


def check_counts(**counts: int) -> None:
    """Raises ValueError unless each is a positive integer; it names the setting."""
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} is {count!r}; give a positive integer.")


def check_dropouts(**shares: float) -> None:
    """Raises ValueError unless each is a number from 0 to below 1; it names the setting."""
    for name, share in shares.items():
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not is_number or not 0 <= share < 1:
            raise ValueError(
                f"{name} is {share!r}; give the share of values that training drops, a number "
                "from 0 to below 1, such as 0.1."
            )


def check_head_bias(bias: str) -> tuple[str, ...]:
    """The parts that have a bias, see `HEAD_BIASES`; ValueError for an unknown name."""
    if bias not in HEAD_BIASES:
        raise ValueError(f"head_bias is {bias!r}; give one of {list(HEAD_BIASES)}.")
    return HEAD_BIASES[bias]


def _branch(rate, in_channels, out_channels, use_sep_conv, kwargs):
    if rate == 1:
        return ConvBNReLU(in_channels, out_channels, 1, **kwargs)
    # Padding equals the rate, so that every branch keeps the map's size.
    kwargs = {"padding": rate, "dilation": rate, **kwargs}
    if use_sep_conv:
        bias = kwargs["bias_attr"]
        return SeparableConvBNReLU(in_channels, out_channels, 3, pointwise_bias=bias, **kwargs)
    return ConvBNReLU(in_channels, out_channels, 3, **kwargs)

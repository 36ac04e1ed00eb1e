# SPDX-License-Identifier: Apache-2.0
"""ResNet: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), made dense.

Two layouts of the bottleneck are in use: torchvision strides in the 3x3 convolution, Caffe's
original (and DeepLab's released V1 and V2) in the first 1x1. The V3 paper's cascade adds block5 to
block7, replicas of block4 (section 3.2, figure 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle import Tensor, nn

from paddleseg_deeplab.models.backbones.variants import variant
from paddleseg_deeplab.models.layers import ConvBN, ConvBNReLU, ReLU, channel_axis, check_counts
from paddleseg_deeplab.utils.weights.load import load_pretrained_model

# layers: blocks of the four stages.
_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4
_STRIDE_IN = ("3x3", "1x1")
_STEM_STRIDE = 4


class Bottleneck(nn.Layer):
    """1x1, 3x3 at a rate, 1x1 to four times the width, plus shortcut, then ReLU.

    Args:
        in_channels (int): Channels of the input.
        width (int): Channels of the first two convolutions.
        stride (int): Of the block, in the convolution that stride_in names and in the shortcut.
        rate (int): Dilation, and padding, of the 3x3 convolution.
        projection (bool): Whether the shortcut is a 1x1 convolution rather than the input.
        stride_in (str): "3x3" or "1x1".
        data_format (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        rate: int,
        projection: bool,
        stride_in: str,
        data_format: str,
    ) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        kwargs: dict[str, Any] = {"bias_attr": False, "data_format": data_format}
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = ConvBNReLU(in_channels, width, 1, stride=first, **kwargs)
        self.conv2 = ConvBNReLU(
            width, width, 3, padding=rate, stride=second, dilation=rate, **kwargs
        )
        self.conv3 = ConvBN(width, out_channels, 1, **kwargs)
        self.downsample = None
        if projection:
            self.downsample = ConvBN(in_channels, out_channels, 1, stride=stride, **kwargs)
        self.relu = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Layer):
    """ResNet without its classifier.

    Args:
        layers (int): 50, 101 or 152.
        output_stride (int): Input pixels per feature pixel in the last stage: 8, 16 or 32, and
            with extra stages also 64, 128, 256 (V3 paper, table 1). A stage whose stride is not
            taken doubles its rate instead: block4 to block7 have 2, 4, 8, 16 at stride 16. The
            same weights load at all strides.
        multi_grid (Sequence[int]): Unit rates of the three blocks of block4 and of each extra
            stage; a block's rate is its stage's times its unit rate (V3 paper, section 3.2). None
            means ones.
        in_channels (int): Channels of the image.
        pretrained (str): Path or URL of weights for the backbone alone; None starts from scratch.
        data_format (str): "NCHW" or "NHWC": layout of input and features.
        stride_in (str): Where a block strides. "3x3" as torchvision: the first block of a dilated
            stage keeps the rate of the stage before (times its unit rate), since its input is what
            a strided network would have given it. "1x1" as Caffe: it takes its own stage's rate.
        ceil_mode (bool): The max pool's size rounds up, which adds a row and a column at even
            sizes. None: True for "1x1" (Caffe), False for "3x3" (torchvision).
        extra_stages (int): 0 to 3: block5 to block7.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"layer5.*"``.

    Attributes:
        feat_channels (list[int]): Channels of the features: 256, 512, 1024, 2048 and 2048 for
            each extra stage.
        feat_strides (list[int]): Input pixels per feature pixel.

    Raises:
        ValueError: a setting outside of these; the text says which are allowed.
    """

    def __init__(
        self,
        layers: int = 50,
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        in_channels: int = 3,
        pretrained: str | Path | None = None,
        data_format: str = "NCHW",
        *,
        stride_in: str = "3x3",
        ceil_mode: bool | None = None,
        extra_stages: int = 0,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        _check(layers, output_stride, in_channels, stride_in, extra_stages)
        channel_axis(data_format)  # refuses an unknown format
        grid = _check_multi_grid(multi_grid, layers)
        self.layers = layers
        self.output_stride = output_stride
        self.stride_in = stride_in
        self.data_format = data_format
        self.pretrained = pretrained

        self.conv1 = ConvBNReLU(
            in_channels, 64, 7, padding=3, stride=2, bias_attr=False, data_format=data_format
        )
        self.maxpool = nn.MaxPool2D(
            kernel_size=3,
            stride=2,
            padding=1,
            ceil_mode=stride_in == "1x1" if ceil_mode is None else bool(ceil_mode),
            data_format=data_format,
        )
        self._add_stages(grid, extra_stages)
        load_pretrained_model(self, pretrained, skip=pretrained_skip)

    def _add_stages(self, grid, extra_stages):
        depths = _DEPTHS[self.layers] + _DEPTHS[self.layers][-1:] * extra_stages
        widths = _WIDTHS + _WIDTHS[-1:] * extra_stages
        self.feat_channels = [width * _EXPANSION for width in widths]
        self.feat_strides = []
        self.stage_names = []
        channels, total, rate = 64, _STEM_STRIDE, 1
        for s, (depth, width) in enumerate(zip(depths, widths)):
            before, stride = rate, 1
            if s > 0 and total < self.output_stride:
                stride = 2
            elif s > 0:
                rate *= 2
            total *= stride
            units = grid if s >= 3 else (1,) * depth
            rates = [rate * unit for unit in units]
            if self.stride_in == "3x3":
                rates[0] = before * units[0]
            blocks = []
            for b in range(depth):
                block = Bottleneck(
                    channels,
                    width,
                    stride if b == 0 else 1,
                    rates[b],
                    projection=b == 0,
                    stride_in=self.stride_in,
                    data_format=self.data_format,
                )
                blocks.append(block)
                channels = width * _EXPANSION
            self.feat_strides.append(total)
            self.stage_names.append(f"layer{s + 1}")
            self.add_sublayer(f"layer{s + 1}", nn.Sequential(*blocks))

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Image to features.

        Args:
            inputs (Tensor): float [N, in_channels, H, W], or [N, H, W, in_channels] for "NHWC".

        Returns:
            list[Tensor]: a feature of each stage, of feat_channels and feat_strides.
        """
        y = self.maxpool(self.conv1(inputs))
        features = []
        for name in self.stage_names:
            y = getattr(self, name)(y)
            features.append(y)
        return features


def _check(layers, output_stride, in_channels, stride_in, extra_stages):
    if layers not in _DEPTHS:
        raise ValueError(f"layers is {layers!r}; ResNet has {sorted(_DEPTHS)}.")
    check_counts(in_channels=in_channels)
    if stride_in not in _STRIDE_IN:
        raise ValueError(f"stride_in is {stride_in!r}; give one of {list(_STRIDE_IN)}.")
    if type(extra_stages) is not int or not 0 <= extra_stages <= 3:
        raise ValueError(f"extra_stages is {extra_stages!r}; give 0 to 3 (block5 to block7).")
    strides = [8 << i for i in range(3 + extra_stages)]
    if output_stride not in strides:
        raise ValueError(
            f"output_stride is {output_stride!r}; give one of {strides}"
            f"{'' if extra_stages == 3 else ' (more with extra_stages)'}."
        )


def _check_multi_grid(multi_grid, layers):
    blocks = _DEPTHS[layers][3]
    if multi_grid is None:
        return (1,) * blocks
    is_list = isinstance(multi_grid, (list, tuple)) and len(multi_grid) == blocks
    if not is_list or not all(type(r) is int and r >= 1 for r in multi_grid):
        raise ValueError(f"multi_grid is {multi_grid!r}; give {blocks} positive integers.")
    return tuple(multi_grid)


ResNet50 = variant("ResNet50", ResNet, 50, "50 layers")
ResNet101 = variant("ResNet101", ResNet, 101, "101 layers")
ResNet152 = variant("ResNet152", ResNet, 152, "152 layers")

# SPDX-License-Identifier: Apache-2.0
"""VGG16 with a large field of view, the first DeepLab's network (arXiv 1412.7062).

VGG16 ("Very Deep Convolutional Networks", arXiv 1409.1556) without batch norm. Its fully connected
layers are convolutions fc6 and fc7, its last two pools have lost their stride (V1 paper, section
3.1), and fc6 is a 3x3 convolution of 1024 channels at rate 12 (table 2). All pools are 3x3 with
padding 1, as in the authors' release, so that the grids of all features meet in pixels. Keys are
the layers' names in the paper: ``conv1_1.weight`` ... ``conv5_3.bias``, ``fc6.*``, ``fc7.*``,
``fusion.{0..4}.{0,1}.*``.
"""

from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.layers import Conv2D, ReLU, channel_axis, check_counts, check_dropouts
from paddleseg_deeplab.utils.weights.load import load_pretrained_model

# (3x3 convolutions, their channels) of the five blocks; a pool follows each.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# output_stride: strides of the five pools.
_POOLS = {8: (2, 2, 2, 1, 1), 16: (2, 2, 2, 2, 1), 32: (2, 2, 2, 2, 2)}
_FUSION_CHANNELS = 128
_RETURNED = (2, 3, 4)  # the pools that are features, from stride 4 on


@registry.BACKBONES.add_component
class VGG16_LargeFOV(nn.Layer):
    """VGG16 up to fc7.

    Args:
        output_stride (int): 8 (the paper's), 16 or 32: input pixels per pixel of fc7. Pools 4 and
            5 stride again at 16 and 32, and the rates follow; the same weights load at all three.
            Unlike in networks without pools, the features of a smaller stride do not contain
            those of a larger one, since the pools are not dilated.
        in_channels (int): Channels of the image.
        pretrained (str): Path or URL of weights for the backbone alone; None starts from scratch.
            A file without fc6, fc7 or the branches, such as one of VGG16's convolutions, needs
            their names in pretrained_skip.
        data_format (str): "NCHW" or "NHWC": layout of input and features.
        multi_scale_features (bool): The image and pools 1 to 4 each go through 3x3 and 1x1
            convolutions of 128 channels, ReLU after each, and join fc7: 640 more channels
            (section 4.3). The 3x3 ones stride to fc7's grid, as in the authors' release; that
            equals an unstrided one resized with align_corners=True at sizes 8k + 1. (The release
            has dropout in these branches too; the paper does not mention it.)
        fov_kernel (int): Kernel of fc6: 7, 4 or 3 in table 2.
        fov_rate (int): Rate of fc6 at output stride 8: 4, 4 or 8, and 12 in table 2. It follows
            the output stride: half of it at 16, a quarter at 32.
        fov_channels (int): Channels of fc6 and fc7: 4096, or 1024 with the kernel of 3.
        dropout (float): After fc6 and after fc7.
        average_pool (bool): A 3x3 average of stride 1 after pool 5, zeros at the border counted,
            as in the authors' release. The paper does not mention it.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``.

    Attributes:
        feat_channels (list[int]): Channels of the four features: pools 2, 3 and 4, and fc7.
        feat_strides (list[int]): Input pixels per feature pixel of the four features.

    Raises:
        ValueError: a setting outside of these; the text says which are allowed.

    Deviation from the authors' Caffe network: its pools round sizes up one pixel further at even
    sizes; at sizes 8k + 1, which it asks for, both are equal.
    """

    def __init__(
        self,
        output_stride: int = 8,
        in_channels: int = 3,
        pretrained: str | Path | None = None,
        data_format: str = "NCHW",
        *,
        multi_scale_features: bool = False,
        fov_kernel: int = 3,
        fov_rate: int = 12,
        fov_channels: int = 1024,
        dropout: float = 0.5,
        average_pool: bool = False,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if output_stride not in _POOLS:
            raise ValueError(f"output_stride is {output_stride!r}; give one of {sorted(_POOLS)}.")
        check_counts(in_channels=in_channels, fov_channels=fov_channels)
        check_dropouts(dropout=dropout)
        self._axis = channel_axis(data_format)  # refuses an unknown format
        self.output_stride = output_stride
        self.data_format = data_format
        self.pretrained = pretrained

        strides = self._add_blocks(in_channels)
        self.average_pool = None
        if average_pool:
            self.average_pool = nn.AvgPool2D(
                3, stride=1, padding=1, exclusive=False, data_format=data_format
            )
        rate, padding = _fov(fov_kernel, fov_rate, output_stride)
        self.fc6 = Conv2D(
            _BLOCKS[-1][1],
            fov_channels,
            fov_kernel,
            padding=padding,
            dilation=rate,
            data_format=data_format,
        )
        self.fc7 = Conv2D(fov_channels, fov_channels, 1, data_format=data_format)
        self.relu = ReLU()
        self.dropout = nn.Dropout(dropout)

        self.feat_channels = [_BLOCKS[i - 1][1] for i in _RETURNED] + [fov_channels]
        self.feat_strides = [strides[i] for i in _RETURNED] + [output_stride]
        self.fusion = None
        if multi_scale_features:
            inputs = [in_channels, *(channels for _, channels in _BLOCKS[:4])]
            branches = [self._branch(c, output_stride // s) for c, s in zip(inputs, strides)]
            self.fusion = nn.LayerList(branches)
            self.feat_channels[-1] += _FUSION_CHANNELS * len(branches)
        load_pretrained_model(self, pretrained, skip=pretrained_skip)

    def _add_blocks(self, channels):
        """Adds the five blocks; returns the strides of the image and of the pools."""
        self.block_list, self.pool_list = [], nn.LayerList()
        strides, rate = [1], 1
        for b, (count, width) in enumerate(_BLOCKS):
            block = []
            for i in range(count):
                conv = Conv2D(
                    channels,
                    width,
                    3,
                    padding=rate,
                    dilation=rate,
                    data_format=self.data_format,
                )
                block.append(self.add_sublayer(f"conv{b + 1}_{i + 1}", conv))
                channels = width
            self.block_list.append(block)
            stride = _POOLS[self.output_stride][b]
            pool = nn.MaxPool2D(3, stride=stride, padding=1, data_format=self.data_format)
            self.pool_list.append(pool)
            strides.append(strides[-1] * stride)
            rate *= 2 // stride  # a pool that lost its stride doubles the rate after it
        return strides

    def _branch(self, channels, stride):
        kwargs = {"data_format": self.data_format}
        return nn.LayerList(
            [
                Conv2D(channels, _FUSION_CHANNELS, 3, stride=stride, padding=1, **kwargs),
                Conv2D(_FUSION_CHANNELS, _FUSION_CHANNELS, 1, **kwargs),
            ]
        )

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Image to features.

        Args:
            inputs (Tensor): float [N, in_channels, H, W], or [N, H, W, in_channels] for "NHWC".

        Returns:
            list[Tensor]: four features of feat_channels, each of size ceil(H / stride) by
                ceil(W / stride).
        """
        y, pools = inputs, []
        for block, pool in zip(self.block_list, self.pool_list):
            for conv in block:
                y = self.relu(conv(y))
            y = pool(y)
            pools.append(y)
        if self.average_pool is not None:
            y = self.average_pool(y)
        y = self.dropout(self.relu(self.fc6(y)))
        y = self.dropout(self.relu(self.fc7(y)))
        if self.fusion is not None:
            joined = [y]
            for branch, x in zip(self.fusion, [inputs, *pools[:4]]):
                for conv in branch:
                    x = self.relu(conv(x))
                joined.append(x)
            y = paddle.concat(joined, axis=self._axis)
        return [*(pools[i - 1] for i in _RETURNED), y]


def _fov(kernel, rate, output_stride):
    """(rate, padding) of fc6 at an output stride; the padding keeps the map's size."""
    check_counts(fov_kernel=kernel, fov_rate=rate)
    here = rate * 8 / output_stride
    reach = here * (kernel - 1)
    if here % 1 or reach % 2:
        raise ValueError(
            f"fov_rate {rate} (at output stride 8) with fov_kernel {kernel} is a rate of {here:g} "
            f"at output stride {output_stride}; that has to be whole, and times fov_kernel - 1 an "
            "even number, to keep the map's size. Give another fov_rate, such as 12 for a kernel "
            "of 3 and 8 for one of 4."
        )
    return int(here), int(reach) // 2

# SPDX-License-Identifier: Apache-2.0
"""ResNet_vd: ResNet-D of "Bag of Tricks for Image Classification with CNNs" (arXiv 1812.01187).

A deep stem of three 3x3 convolutions, and average pooling before the 1x1 convolution of strided
shortcuts. For segmentation the last stages trade their stride for dilation. Keys are PaddleSeg's:
``conv1_1._conv.weight``, ``bb_{stage}_{block}.conv0._batch_norm._mean``, ``bb_0_0.short...``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle import Tensor, nn

from paddleseg_deeplab.models.backbones.variants import variant
from paddleseg_deeplab.models.layers import (
    ConvBN,
    ConvBNReLU,
    ReLU,
    channel_axis,
    check_counts,
    conv_bn,
)
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights.load import load_pretrained_model

# layers: blocks of the four stages. From 50 on the blocks are bottlenecks, four times as wide.
_DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# output_stride: (stride, dilation) of the four stages. A dilated stage has no pool, and its own
# rate from its first block on.
_STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}
_WIDTHS = (64, 128, 256, 512)


class _PooledConvBN(ConvBN):
    """Shortcut of a strided block: average of 2x2, then `ConvBN`.

    Sizes round up (ceil_mode), as a 3x3 convolution of stride 2 and padding 1 does.
    """

    forward_steps = ("_pool2d_avg", "_conv", "_batch_norm")

    def __init__(self, in_channels, out_channels, **kwargs):
        super().__init__(in_channels, out_channels, 1, **kwargs)
        self._pool2d_avg = nn.AvgPool2D(
            kernel_size=2, stride=2, ceil_mode=True, data_format=kwargs["data_format"]
        )

    def forward(self, x):
        return conv_bn(self._conv, self._batch_norm, self._pool2d_avg(x))


class _Block(nn.Layer):
    """Residual block: convolutions plus shortcut, then ReLU. Subclasses fill in the former."""

    expansion = 1

    def __init__(self, in_channels, width, stride, projection, data_format):
        super().__init__()
        self.short = None
        if projection:
            short = ConvBN if stride == 1 else _PooledConvBN
            kernel = {"kernel_size": 1} if stride == 1 else {}
            self.short = short(
                in_channels,
                width * self.expansion,
                bias_attr=False,
                data_format=data_format,
                **kernel,
            )
        self.relu = ReLU()

    def residual(self, x):
        raise NotImplementedError

    def forward(self, x):
        y = self.residual(x)
        return self.relu(y + (x if self.short is None else self.short(x)))


class BottleneckBlock(_Block):
    """1x1, 3x3 (stride and dilation), 1x1 to four times the width."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        projection: bool,
        data_format: str,
    ) -> None:
        super().__init__(in_channels, width, stride, projection, data_format)
        kwargs: dict[str, Any] = {"bias_attr": False, "data_format": data_format}
        self.conv0 = ConvBNReLU(in_channels, width, 1, **kwargs)
        self.conv1 = ConvBNReLU(
            width, width, 3, padding=dilation, stride=stride, dilation=dilation, **kwargs
        )
        self.conv2 = ConvBN(width, width * self.expansion, 1, **kwargs)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.conv0(x)))


class BasicBlock(_Block):
    """3x3 (stride and dilation), 3x3 (dilation)."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        projection: bool,
        data_format: str,
    ) -> None:
        super().__init__(in_channels, width, stride, projection, data_format)
        kwargs: dict[str, Any] = {
            "padding": dilation,
            "dilation": dilation,
            "bias_attr": False,
            "data_format": data_format,
        }
        self.conv0 = ConvBNReLU(in_channels, width, 3, stride=stride, **kwargs)
        self.conv1 = ConvBN(width, width, 3, **kwargs)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv1(self.conv0(x))


class ResNet_vd(nn.Layer):
    """ResNet_vd without its classifier.

    Args:
        layers (int): 18, 34, 50, 101 or 152.
        output_stride (int): 8, 16 or 32: input pixels per feature pixel in the last stage. The
            same weights load at all three.
        multi_grid (Sequence[int]): Unit rates of the last stage's blocks; a block's rate is its
            stage's rate times its unit rate (V3 paper, section 3.2). One per block: three, but
            two for ResNet18_vd, where PaddleSeg ignores a third, and so does this, with a
            warning. None means ones.
        in_channels (int): Channels of the image.
        pretrained (str): Path or URL of weights for the backbone alone; None starts from scratch.
        data_format (str): "NCHW" or "NHWC": layout of input and features.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``.

    Attributes:
        feat_channels (list[int]): Channels of the four features.
        feat_strides (list[int]): Input pixels per feature pixel of the four features.

    Raises:
        ValueError: a setting outside of these; the text says which are allowed.

    Deviations from PaddleSeg: it keeps a copy of the stem's output in every pass (for another
    model); at output_stride 32 it drops the last stage's stride when multi_grid[0] is not 1; any
    unknown output_stride gives 32.
    """

    def __init__(
        self,
        layers: int = 50,
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = (1, 1, 1),
        in_channels: int = 3,
        pretrained: str | Path | None = None,
        data_format: str = "NCHW",
        *,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if layers not in _DEPTHS:
            raise ValueError(f"layers is {layers!r}; ResNet_vd has {sorted(_DEPTHS)}.")
        if output_stride not in _STAGES:
            raise ValueError(f"output_stride is {output_stride!r}; give one of {sorted(_STAGES)}.")
        check_counts(in_channels=in_channels)
        channel_axis(data_format)  # refuses an unknown format
        grid = _check_multi_grid(multi_grid, layers)

        self.layers = layers
        self.output_stride = output_stride
        self.data_format = data_format
        self.pretrained = pretrained

        kwargs: dict[str, Any] = {"bias_attr": False, "data_format": data_format}
        self.conv1_1 = ConvBNReLU(in_channels, 32, 3, stride=2, **kwargs)
        self.conv1_2 = ConvBNReLU(32, 32, 3, **kwargs)
        self.conv1_3 = ConvBNReLU(32, 64, 3, **kwargs)
        self.pool2d_max = nn.MaxPool2D(kernel_size=3, stride=2, padding=1, data_format=data_format)
        self._add_stages(_STAGES[output_stride], grid)
        load_pretrained_model(self, pretrained, skip=pretrained_skip)

    def _add_stages(self, stages, grid):
        block_type = BottleneckBlock if self.layers >= 50 else BasicBlock
        self.feat_channels = [width * block_type.expansion for width in _WIDTHS]
        self.feat_strides = []
        self.stage_list = []
        channels, total_stride = 64, 4
        for s, (stride, dilation) in enumerate(stages):
            blocks = []
            for b in range(_DEPTHS[self.layers][s]):
                block = block_type(
                    channels,
                    _WIDTHS[s],
                    stride=stride if b == 0 else 1,
                    dilation=dilation * (grid[b] if s == 3 else 1),
                    projection=b == 0,  # also in stage 0 of 18 and 34: the checkpoints hold it
                    data_format=self.data_format,
                )
                blocks.append(self.add_sublayer(f"bb_{s}_{b}", block))
                channels = self.feat_channels[s]
            total_stride *= stride
            self.feat_strides.append(total_stride)
            self.stage_list.append(blocks)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Image to features.

        Args:
            inputs (Tensor): float [N, in_channels, H, W], or [N, H, W, in_channels] for "NHWC".

        Returns:
            list[Tensor]: four features of feat_channels, each of size ceil(H / stride) by
                ceil(W / stride).
        """
        y = self.conv1_3(self.conv1_2(self.conv1_1(inputs)))
        y = self.pool2d_max(y)
        feat_list = []
        for stage in self.stage_list:
            for block in stage:
                y = block(y)
            feat_list.append(y)
        return feat_list


def _check_multi_grid(multi_grid, layers):
    blocks = _DEPTHS[layers][3]
    if multi_grid is None:
        return (1,) * blocks
    is_list = isinstance(multi_grid, (list, tuple))
    if not is_list or not all(type(r) is int and r >= 1 for r in multi_grid):
        raise ValueError(f"multi_grid is {multi_grid!r}; give {blocks} positive integers.")
    if len(multi_grid) < blocks or len(multi_grid) > 3:
        raise ValueError(
            f"multi_grid is {multi_grid!r}, {len(multi_grid)} numbers; the last stage of "
            f"ResNet{layers}_vd has {blocks} blocks: give one number for each."
        )
    if len(multi_grid) > blocks and set(multi_grid) != {1}:
        logger.warning(
            "multi_grid %s: ResNet%d_vd has %d blocks in its last stage, so it uses the first %d.",
            tuple(multi_grid),
            layers,
            blocks,
            blocks,
        )
    return tuple(multi_grid[:blocks])


ResNet18_vd = variant("ResNet18_vd", ResNet_vd, 18, "18 layers")
ResNet34_vd = variant("ResNet34_vd", ResNet_vd, 34, "34 layers")
ResNet50_vd = variant("ResNet50_vd", ResNet_vd, 50, "50 layers")
ResNet101_vd = variant("ResNet101_vd", ResNet_vd, 101, "101 layers")
ResNet152_vd = variant("ResNet152_vd", ResNet_vd, 152, "152 layers")

# SPDX-License-Identifier: Apache-2.0
"""Aligned Xception: figure 4 of the V3+ paper (arXiv 1802.02611), 41, 65 and 71 layers.

Max pools are separable convolutions of stride 2, the last of their block. Inside residual blocks
a ReLU stands before each separable convolution and only batch norm between its depthwise and its
pointwise convolution; after the exit flow's residual block come three separable convolutions with
a ReLU after each of both. Batch norm's epsilon is 1e-3, as in the released weights.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_deeplab.models.backbones.dilation import strides_and_rates
from paddleseg_deeplab.models.backbones.variants import variant
from paddleseg_deeplab.models.layers import (
    ConvBN,
    ConvBNReLU,
    ReLU,
    channel_axis,
    check_counts,
    set_batch_norm,
)
from paddleseg_deeplab.utils.weights.load import load_pretrained_model

# name: (channels and strides of the entry flow's blocks, blocks of the middle flow, which entry
# block holds the low-level feature: its second separable convolution, 256 channels at stride 4).
_VARIANTS = {
    "xception_41": (((128, 2), (256, 2), (728, 2)), 8, 1),
    "xception_65": (((128, 2), (256, 2), (728, 2)), 16, 1),
    "xception_71": (((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), 16, 2),
}
_MIDDLE = 728
_EXIT_BLOCK = (728, 1024, 1024)  # of stride 2
_EXIT_CONVS = (1536, 1536, 2048)
_EPSILON = 1e-3


class _SeparableConv(nn.Layer):
    """Depthwise 3x3 (stride and rate) and pointwise 1x1, each with batch norm."""

    forward_steps = ("depthwise", "pointwise")

    def __init__(self, in_channels, out_channels, stride, rate, relu_between, relu_after, layout):
        super().__init__()
        kwargs = {"bias_attr": False, "data_format": layout}
        depthwise = ConvBNReLU if relu_between else ConvBN
        pointwise = ConvBNReLU if relu_after else ConvBN
        self.depthwise = depthwise(
            in_channels,
            in_channels,
            3,
            padding=rate,
            stride=stride,
            dilation=rate,
            groups=in_channels,
            **kwargs,
        )
        self.pointwise = pointwise(in_channels, out_channels, 1, **kwargs)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class XceptionBlock(nn.Layer):
    """Three times ReLU and separable convolution, plus shortcut. The last one strides.

    The shortcut takes the input as it is, before any ReLU, and so does the sum leave the block.

    Args:
        in_channels (int): Channels of the input.
        channels (Sequence[int]): Output channels of the three convolutions.
        stride, rate (int): Stride of the last convolution; rate of all three.
        projection (bool): Whether the shortcut is a 1x1 convolution rather than the input.
        relu_after_depthwise (bool): See `XceptionDeeplab`.
        tap (bool): Whether `forward` also returns the second convolution's output, before ReLU.
        layout (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        stride: int,
        rate: int,
        projection: bool,
        relu_after_depthwise: bool = False,
        tap: bool = False,
        layout: str = "NCHW",
    ) -> None:
        super().__init__()
        inputs = (in_channels, *channels[:2])
        for i in range(3):
            conv = _SeparableConv(
                inputs[i],
                channels[i],
                stride=stride if i == 2 else 1,
                rate=rate,
                relu_between=relu_after_depthwise,
                relu_after=False,
                layout=layout,
            )
            self.add_sublayer(f"conv{i + 1}", conv)
        self.short = None
        if projection:
            self.short = ConvBN(
                in_channels, channels[2], 1, stride=stride, bias_attr=False, data_format=layout
            )
        self.tap = tap
        self.relu = ReLU()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # The first ReLU must leave x to the shortcut; the second overwrites what nobody else
        # reads; the third may do so only where the tap is not handed out.
        y = self.conv2(self.relu(self.conv1(F.relu(x))))
        z = self.conv3(F.relu(y) if self.tap else self.relu(y))
        z = z + (x if self.short is None else self.short(x))
        return (z, y) if self.tap else z


class XceptionDeeplab(nn.Layer):
    """Aligned Xception without its classifier.

    Args:
        backbone (str): "xception_41", "xception_65" or "xception_71".
        in_channels (int): Channels of the image.
        pretrained (str): Path or URL of weights for the backbone alone; None starts from scratch.
        output_stride (int): 8, 16 or 32: input pixels per feature pixel of the last feature. The
            same weights load at all three. Middle flow and exit flow have rates 2 and (2, 4) at
            8, and 1 and (1, 2) at 16.
        data_format (str): "NCHW" or "NHWC": layout of input and features.
        relu_after_depthwise (bool): Whether a ReLU follows every depthwise convolution (V3+
            paper, section 3.3), not only in the last three separable convolutions as in the
            released network. The ReLUs before the separable convolutions stay.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``.

    Attributes:
        feat_channels (list[int]): Channels of the two features, 256 and 2048.
        feat_strides (list[int]): Input pixels per feature pixel of the two, 4 and output_stride.

    Raises:
        ValueError: a setting outside of these; the text says which are allowed.

    Deviations from PaddleSeg: its low-level feature is the first block's output, of 128 channels;
    its entry flow strides by 2 in every block whatever output_stride is (71 layers too, which so
    reach stride 64), and its last three convolutions always have rate 2; batch norm's momentum is
    0.99 there and 0.9 here, as everywhere in this project.
    """

    def __init__(
        self,
        backbone: str,
        in_channels: int = 3,
        pretrained: str | Path | None = None,
        output_stride: int = 16,
        *,
        data_format: str = "NCHW",
        relu_after_depthwise: bool = False,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if backbone not in _VARIANTS:
            raise ValueError(f"backbone is {backbone!r}; give one of {sorted(_VARIANTS)}.")
        check_counts(in_channels=in_channels)
        channel_axis(data_format)  # refuses an unknown format
        self.backbone = backbone
        self.output_stride = output_stride
        self.data_format = data_format
        self.pretrained = pretrained
        self.feat_channels = [256, _EXIT_CONVS[-1]]
        self.feat_strides = [4, output_stride]

        entry, middle_blocks, _ = _VARIANTS[backbone]
        strides = [2, *(stride for _, stride in entry), *[1] * middle_blocks, 2, 1]
        steps = strides_and_rates(strides, output_stride)[1:]  # the stem always strides
        kwargs: dict[str, Any] = {"bias_attr": False, "data_format": data_format}
        self.conv1 = ConvBNReLU(in_channels, 32, 3, stride=2, **kwargs)
        self.conv2 = ConvBNReLU(32, 64, 3, **kwargs)
        self._add_flows(steps, relu_after_depthwise)
        set_batch_norm(self, epsilon=_EPSILON)
        load_pretrained_model(self, pretrained, skip=pretrained_skip)

    def _add_flows(self, steps, relu_after_depthwise):
        entry, middle_blocks, tapped = _VARIANTS[self.backbone]
        common = {"relu_after_depthwise": relu_after_depthwise, "layout": self.data_format}
        steps = iter(steps)

        self.entry_flow = nn.LayerList()
        channels = 64
        for i, (width, _) in enumerate(entry):
            block = XceptionBlock(
                channels, (width,) * 3, *next(steps), projection=True, tap=i == tapped, **common
            )
            self.entry_flow.append(block)
            channels = width
        self.middle_flow = nn.LayerList(
            XceptionBlock(_MIDDLE, (_MIDDLE,) * 3, *next(steps), projection=False, **common)
            for _ in range(middle_blocks)
        )
        self.exit_block = XceptionBlock(
            _MIDDLE, _EXIT_BLOCK, *next(steps), projection=True, **common
        )
        stride, rate = next(steps)
        inputs = (_EXIT_BLOCK[-1], *_EXIT_CONVS[:2])
        self.exit_convs = nn.Sequential(
            *(
                _SeparableConv(i, o, stride, rate, True, True, self.data_format)
                for i, o in zip(inputs, _EXIT_CONVS)
            )
        )

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Image to features.

        Args:
            inputs (Tensor): float [N, in_channels, H, W], or [N, H, W, in_channels] for "NHWC".

        Returns:
            list[Tensor]: the low-level feature (after batch norm, before ReLU: any sign) and the
                last one (after ReLU), of feat_channels and sizes ceil(H / stride) by
                ceil(W / stride).
        """
        x = self.conv2(self.conv1(inputs))
        low_level = None
        for block in self.entry_flow:
            if block.tap:
                x, low_level = block(x)
            else:
                x = block(x)
        for block in self.middle_flow:
            x = block(x)
        return [low_level, self.exit_convs(self.exit_block(x))]

    def paddleseg_name(self, name: str) -> str:
        """What PaddleSeg calls a tensor of this network; the shapes are the same.

        Its weights mean the same here at output stride 16 for 41 and 65 layers, in the last
        feature; see the deviations above.

        Args:
            name (str): A name in this layer's state_dict.

        Returns:
            str: the name in the state_dict of PaddleSeg's XceptionDeeplab of as many layers.
        """
        for pattern, text in _PADDLESEG_NAMES:
            name = re.sub(pattern, partial(text, self.backbone), name)
        return name


# In this order: (pattern of our name, its replacement, given the variant's name and the match).
_PADDLESEG_NAMES: tuple[tuple[str, Callable[[str, re.Match[str]], str]], ...] = (
    (r"^(conv[12])\.", lambda _, m: f"_{m[1]}."),
    (
        r"^(entry|middle)_flow\.(\d+)\.",
        lambda backbone, m: f"{backbone}/{m[1]}_flow/block{int(m[2]) + 1}.",
    ),
    (r"^exit_block\.", lambda *_: "_exit_flow_1."),
    (r"^exit_convs\.(\d)\.", lambda _, m: f"_exit_flow_2._conv{int(m[1]) + 1}."),
    (r"\.(conv[123])\.", lambda _, m: f"._{m[1]}."),
    (r"\.depthwise\._conv\.", lambda *_: "._conv1."),
    (r"\.depthwise\._batch_norm\.", lambda *_: "._bn1."),
    (r"\.pointwise\._conv\.", lambda *_: "._conv2."),
    (r"\.pointwise\._batch_norm\.", lambda *_: "._bn2."),
    (r"\.short\.", lambda *_: "._short."),
    (r"\._batch_norm\.", lambda *_: "._bn."),
)


Xception41_deeplab = variant("Xception41_deeplab", XceptionDeeplab, "xception_41", "41 layers")
Xception65_deeplab = variant("Xception65_deeplab", XceptionDeeplab, "xception_65", "65 layers")
Xception71_deeplab = variant("Xception71_deeplab", XceptionDeeplab, "xception_71", "71 layers")

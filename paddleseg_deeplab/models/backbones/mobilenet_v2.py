# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2: inverted residuals with linear bottlenecks (arXiv 1801.04381, table 2).

For segmentation the last strides become rates (section 6.3). The 1x1 convolution to 1280 channels
belongs to the classifier and is left out: DeepLab's head takes the 320 channels before it. Keys:
``stem._conv.weight``, ``blocks.3.depthwise._batch_norm._mean``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.backbones.dilation import strides_and_rates
from paddleseg_deeplab.models.backbones.variants import variant
from paddleseg_deeplab.models.layers import ConvBN, channel_axis, check_counts
from paddleseg_deeplab.utils.weights.load import load_pretrained_model

_STEM = 32
# Expansion, output channels, blocks, stride of the first block (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FEATURES = (1, 2, 4, 6)  # stages whose outputs are returned: the last one of each resolution


class InvertedResidual(nn.Layer):
    """1x1 to more channels, depthwise 3x3 (stride and rate), 1x1 back without activation.

    The first two have ReLU6. The input is added where neither channels nor size change.

    Args:
        in_channels, out_channels (int): Channels of input and output.
        stride, rate (int): Of the depthwise convolution.
        expansion (int): Channels inside over in_channels; 1 leaves the first convolution out.
        residual (bool): Whether the input is added to the output.
        layout (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        rate: int,
        expansion: int,
        residual: bool,
        layout: str,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        kwargs: dict[str, Any] = {"bias_attr": False, "data_format": layout}
        self.expand = None
        if expansion != 1:
            self.expand = ConvBN(in_channels, width, 1, **kwargs)
        self.depthwise = ConvBN(
            width, width, 3, padding=rate, stride=stride, dilation=rate, groups=width, **kwargs
        )
        self.project = ConvBN(width, out_channels, 1, **kwargs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


@registry.BACKBONES.add_component
class MobileNetV2(nn.Layer):
    """MobileNetV2 without its classifier.

    Args:
        scale (float): Width multiplier, above 0: every number of channels times this, rounded to
            a multiple of 8 that is at least 0.9 of it.
        in_channels (int): Channels of the image.
        pretrained (str): Path or URL of weights for the backbone alone; None starts from scratch.
        output_stride (int): 8, 16 or 32: input pixels per feature pixel of the last feature. The
            same weights load at all three.
        data_format (str): "NCHW" or "NHWC": layout of input and features.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``.

    Attributes:
        feat_channels (list[int]): Channels of the four features: 24, 32, 96 and 320 at scale 1.
        feat_strides (list[int]): Input pixels per feature pixel of the four: 4, 8, 16 and 32, but
            none above output_stride.

    Raises:
        ValueError: a setting outside of these; the text says which are allowed.

    Deviations from PaddleSeg: its strides are not turned into rates (always 32; here 16 is the
    default); its first block has an expanding 1x1 convolution, though its expansion is 1; it cuts
    the scaled channels to integers. So its weights do not fit; those of torchvision do, see
    `torchvision_name`.
    """

    def __init__(
        self,
        scale: float = 1.0,
        in_channels: int = 3,
        pretrained: str | Path | None = None,
        *,
        output_stride: int = 16,
        data_format: str = "NCHW",
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not is_number or not 0 < scale < float("inf"):
            raise ValueError(f"scale is {scale!r}; give a number above 0, such as 0.5 or 1.0.")
        check_counts(in_channels=in_channels)
        channel_axis(data_format)  # refuses an unknown format
        self.scale = scale
        self.output_stride = output_stride
        self.data_format = data_format
        self.pretrained = pretrained

        stem = _scaled(_STEM, scale)
        self.stem = ConvBN(in_channels, stem, 3, stride=2, bias_attr=False, data_format=data_format)
        self._add_blocks(stem)
        load_pretrained_model(self, pretrained, skip=pretrained_skip)

    def _add_blocks(self, channels):
        strides = [2]
        for _, _, blocks, stride in _STAGES:
            strides += [stride] + [1] * (blocks - 1)
        steps = strides_and_rates(strides, self.output_stride)

        self.blocks = nn.LayerList()
        self.feat_channels, self.feat_strides, self._taps = [], [], []
        total_stride = steps[0][0]
        steps = iter(steps[1:])  # the stem always strides
        for s, (expansion, width, blocks, _) in enumerate(_STAGES):
            width = _scaled(width, self.scale)
            for b in range(blocks):
                stride, rate = next(steps)
                # A dilated stage's first block adds nothing either: the weights are the same.
                block = InvertedResidual(
                    channels, width, stride, rate, expansion, b > 0, self.data_format
                )
                self.blocks.append(block)
                channels = width
                total_stride *= stride
            if s in _FEATURES:
                self.feat_channels.append(width)
                self.feat_strides.append(total_stride)
                self._taps.append(len(self.blocks) - 1)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Image to features.

        Args:
            inputs (Tensor): float [N, in_channels, H, W], or [N, H, W, in_channels] for "NHWC".

        Returns:
            list[Tensor]: four features (bottlenecks, without ReLU: any sign) of feat_channels,
                each of size ceil(H / stride) by ceil(W / stride).
        """
        x = F.relu6(self.stem(inputs))
        feat_list = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self._taps:
                feat_list.append(x)
        return feat_list

    def torchvision_name(self, name: str) -> str:
        """What torchvision's ``mobilenet_v2`` calls a tensor of this network.

        There ``features.0`` is the stem, ``features.{i + 1}.conv`` our block i; ``features.18``
        (to 1280 channels) and ``classifier`` have no counterpart here.

        Args:
            name (str): A name in this layer's state_dict.

        Returns:
            str: the name in torchvision's state_dict, of the same shape.
        """
        part, _, rest = name.rpartition("._conv.")
        index = 0
        if not part:
            part, _, rest = name.rpartition("._batch_norm.")
            index = 1
            rest = {"_mean": "running_mean", "_variance": "running_var"}.get(rest, rest)
        if part == "stem":
            return f"features.0.{index}.{rest}"
        found = re.fullmatch(r"blocks\.(\d+)\.(expand|depthwise|project)", part)
        if found is None:
            raise ValueError(f"{name!r} is no tensor of MobileNetV2.")
        block, kind = found.groups()
        before = 0 if self.blocks[int(block)].expand is None else 1  # convolutions before depthwise
        place = {
            "expand": f"0.{index}",
            "depthwise": f"{before}.{index}",
            "project": f"{before + 1 + index}",
        }[kind]
        return f"features.{int(block) + 1}.conv.{place}.{rest}"


def _scaled(channels, scale):
    """channels * scale to the nearest multiple of 8, or the next one if that loses over 10 %."""
    exact = channels * scale
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


MobileNetV2_x0_25 = variant("MobileNetV2_x0_25", MobileNetV2, 0.25, "scale 0.25")
MobileNetV2_x0_5 = variant("MobileNetV2_x0_5", MobileNetV2, 0.5, "scale 0.5")
MobileNetV2_x0_75 = variant("MobileNetV2_x0_75", MobileNetV2, 0.75, "scale 0.75")
MobileNetV2_x1_0 = variant("MobileNetV2_x1_0", MobileNetV2, 1.0, "scale 1.0")
MobileNetV2_x1_5 = variant("MobileNetV2_x1_5", MobileNetV2, 1.5, "scale 1.5")
MobileNetV2_x2_0 = variant("MobileNetV2_x2_0", MobileNetV2, 2.0, "scale 2.0")

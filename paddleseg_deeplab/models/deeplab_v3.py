# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3: "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587).

Backbone, atrous spatial pyramid pooling (section 3.3, figure 5) or the cascade of further blocks
(section 3.2, figure 3), and a classifier; in training perhaps an auxiliary one.
"""

from collections.abc import Sequence
from pathlib import Path

from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.layers import (
    ASPPModule,
    Conv2D,
    ConvBNReLU,
    check_dropouts,
    check_head_bias,
)
from paddleseg_deeplab.models.segmenter import (
    ClassifierHead,
    Segmenter,
    check_parts,
    choose_aspp_ratios,
)
from paddleseg_deeplab.utils.logger import logger

_HEADS = ("plain", "conv3x3", "cascade")


@registry.MODELS.add_component
class DeepLabV3(Segmenter):
    """DeepLabV3.

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`.
        backbone_indices (Sequence[int]): One index: which of the backbone's features the head
            reads. Behind `ResNet` with extra stages it is -1.
        aspp_ratios (Sequence[int] | None): Rates of ASPP; None follows the backbone's output
            stride, see `choose_aspp_ratios`.
        aspp_out_channels (int): Channels of each ASPP branch and of ASPP's output.
        align_corners (bool): Of every bilinear resize: False for even sizes such as 1024x512, True
            for sizes 8k+1 such as 513 and 769.
        pretrained (str): Path or URL of weights for the whole model; loading is strict.
        data_format (str): "NCHW" or "NHWC", for input and logits. (PaddleSeg's has NCHW only.)
        logits_size (str): "input" or "stride", in training, see `Segmenter`.
        image_pooling (bool): ASPP has the branch of the image's mean.
        aspp_dropout (float): Dropout at ASPP's output.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"head.cls.*"`` for another number of classes.
        head (str): "plain": ASPP and a 1x1 classifier (PaddleSeg, kazuto1011); "conv3x3": one more
            3x3 convolution between them (torchvision); "cascade": the classifier alone, behind a
            backbone with extra stages (the paper's table 2); a warning names settings of ASPP
            that it ignores.
        head_bias (str): Which convolutions of the head have a bias: "all" but image pooling's, as
            PaddleSeg's checkpoints hold them; "classifier", that one only, as in torchvision;
            "projection", ASPP's last one only. The cascade's classifier always has one.
        aux (bool): In training a second output, from a 3x3 convolution and a classifier on an
            earlier feature, for a loss of its own (torchvision weights it with 0.5).
        aux_index (int): Which feature that is; not the one that the head reads.
        freeze_bn, bn_momentum, bn_epsilon: See `Segmenter.set_batch_norms`.

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        backbone_indices: Sequence[int] = (3,),
        aspp_ratios: Sequence[int] | None = None,
        aspp_out_channels: int = 256,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
        *,
        data_format: str = "NCHW",
        logits_size: str = "input",
        image_pooling: bool = True,
        aspp_dropout: float = 0.1,
        pretrained_skip: Sequence[str] = (),
        head: str = "plain",
        head_bias: str = "all",
        aux: bool = False,
        aux_index: int = 2,
        freeze_bn: bool = False,
        bn_momentum: float | None = None,
        bn_epsilon: float | None = None,
    ) -> None:
        channels = check_parts(
            num_classes, backbone, backbone_indices, ["head's input"], data_format
        )
        if head not in _HEADS:
            raise ValueError(f"head is {head!r}; give one of {list(_HEADS)}.")
        check_head_bias(head_bias)
        check_dropouts(aspp_dropout=aspp_dropout)
        if head == "cascade":
            _warn_of_unused(
                aspp_ratios=(aspp_ratios, None),
                aspp_out_channels=(aspp_out_channels, 256),
                image_pooling=(image_pooling, True),
                aspp_dropout=(aspp_dropout, 0.1),
            )
            layer = ClassifierHead(num_classes, backbone_indices[0], channels[0], data_format)
        else:
            layer = DeepLabV3Head(
                num_classes,
                backbone_indices,
                channels,
                choose_aspp_ratios(aspp_ratios, backbone, backbone_indices[0]),
                aspp_out_channels,
                align_corners,
                data_format=data_format,
                image_pooling=image_pooling,
                aspp_dropout=aspp_dropout,
                conv3x3=head == "conv3x3",
                head_bias=head_bias,
            )
        if aux:
            roles = ["auxiliary head's input"]
            [width] = check_parts(num_classes, backbone, (aux_index,), roles, data_format)
            _check_aux_index(aux_index, backbone_indices[0], len(backbone.feat_channels))
            # A part of the head, so that a parameter group named "head" holds it too.
            layer.aux = AuxiliaryHead(num_classes, aux_index, width, data_format, head_bias)
        super().__init__(num_classes, backbone, layer, align_corners, data_format, logits_size)
        self.set_batch_norms(freeze_bn, bn_momentum, bn_epsilon)
        self.has_aux = bool(aux)
        self.load(pretrained, pretrained_skip)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `Segmenter`; in training the auxiliary logits follow where there are any."""
        features = self.features(x)
        logits = self.head(features)
        if self.has_aux and self.training:
            logits = logits + self.head.aux(features)
        return self.finish(logits, x)


def _warn_of_unused(**settings):
    """Warns of settings, (value, default) each, that the cascade has no use for."""
    given = [name for name, (value, default) in settings.items() if value != default]
    if given:
        logger.warning(
            'head "cascade" has no ASPP: %s given without effect. Leave out what has none, or use '
            'head "plain".',
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'}",
        )


def _check_aux_index(aux_index, index, count):
    if aux_index % count == index % count:
        raise ValueError(
            f"aux_index is {aux_index}, the feature that the head itself reads (backbone_indices "
            f"[{index}]); give an earlier one."
        )


class DeepLabV3Head(nn.Layer):
    """ASPP of plain convolutions, perhaps a 3x3 convolution, then the classifier.

    Args:
        backbone_channels (Sequence[int]): Channels of the feature that backbone_indices names.
        conv3x3 (bool): Whether a 3x3 convolution stands before the classifier.
        (the others): See `DeepLabV3`; aspp_ratios may not be None here.
    """

    def __init__(
        self,
        num_classes: int,
        backbone_indices: Sequence[int],
        backbone_channels: Sequence[int],
        aspp_ratios: Sequence[int],
        aspp_out_channels: int,
        align_corners: bool,
        *,
        data_format: str = "NCHW",
        image_pooling: bool = True,
        aspp_dropout: float = 0.1,
        conv3x3: bool = False,
        head_bias: str = "all",
    ) -> None:
        super().__init__()
        with_bias = check_head_bias(head_bias)
        self.backbone_indices = tuple(backbone_indices)
        self.aspp = ASPPModule(
            aspp_ratios,
            backbone_channels[0],
            aspp_out_channels,
            align_corners,
            use_sep_conv=False,
            image_pooling=image_pooling,
            data_format=data_format,
            dropout=aspp_dropout,
            bias=head_bias,
        )
        self.conv = None
        if conv3x3:
            self.conv = ConvBNReLU(
                aspp_out_channels,
                aspp_out_channels,
                3,
                bias_attr=None if "decoder" in with_bias else False,
                data_format=data_format,
            )
        self.cls = Conv2D(
            aspp_out_channels,
            num_classes,
            1,
            bias_attr=None if "classifier" in with_bias else False,
            data_format=data_format,
            keep_bias=True,
        )

    def forward(self, feat_list: Sequence[Tensor]) -> list[Tensor]:
        """Features to [logits], at the size of the feature that ASPP reads."""
        x = self.aspp(feat_list[self.backbone_indices[0]])
        if self.conv is not None:
            x = self.conv(x)
        return [self.cls(x)]


class AuxiliaryHead(nn.Layer):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 classifier (torchvision's FCN).

    Args:
        num_classes (int): Channels of the logits.
        index (int): Which of the backbone's features is read.
        in_channels (int): Its channels.
        data_format (str): "NCHW" or "NHWC".
        head_bias (str): See `DeepLabV3`; the 3x3 convolution counts with the head's others.
    """

    def __init__(
        self,
        num_classes: int,
        index: int,
        in_channels: int,
        data_format: str = "NCHW",
        head_bias: str = "all",
    ) -> None:
        super().__init__()
        with_bias = check_head_bias(head_bias)
        self.index = index
        self.conv = ConvBNReLU(
            in_channels,
            in_channels // 4,
            3,
            bias_attr=None if "decoder" in with_bias else False,
            data_format=data_format,
        )
        self.dropout = nn.Dropout(0.1)
        self.cls = Conv2D(in_channels // 4, num_classes, 1, data_format=data_format, keep_bias=True)

    def forward(self, feat_list: Sequence[Tensor]) -> list[Tensor]:
        """Features to [logits], at the size of the feature that is read."""
        return [self.cls(self.dropout(self.conv(feat_list[self.index])))]

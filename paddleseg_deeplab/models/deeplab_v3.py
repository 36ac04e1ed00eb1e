# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3: "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587).

Backbone, atrous spatial pyramid pooling (section 3.3, figure 5), one 1x1 classifier.
"""

from paddle import nn

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models.layers import ASPPModule
from paddleseg_deeplab.models.segmenter import Segmenter, check_parts, choose_aspp_ratios


@manager.MODELS.add_component
class DeepLabV3(Segmenter):
    """DeepLabV3.

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`.
        backbone_indices (Sequence[int]): One index: which of the backbone's features ASPP reads.
        aspp_ratios (Sequence[int] | None): Rates of ASPP; None follows the backbone's output
            stride (PaddleSeg: (1, 6, 12, 18) at every stride), see `choose_aspp_ratios`.
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

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes,
        backbone,
        backbone_indices=(3,),
        aspp_ratios=None,
        aspp_out_channels=256,
        align_corners=False,
        pretrained=None,
        *,
        data_format="NCHW",
        logits_size="input",
        image_pooling=True,
        aspp_dropout=0.1,
        pretrained_skip=(),
    ):
        channels = check_parts(
            num_classes, backbone, backbone_indices, ["ASPP's input"], data_format
        )
        head = DeepLabV3Head(
            num_classes,
            backbone_indices,
            channels,
            choose_aspp_ratios(aspp_ratios, backbone, backbone_indices[0]),
            aspp_out_channels,
            align_corners,
            data_format=data_format,
            image_pooling=image_pooling,
            aspp_dropout=aspp_dropout,
        )
        super().__init__(num_classes, backbone, head, align_corners, data_format, logits_size)
        self.load(pretrained, pretrained_skip)


class DeepLabV3Head(nn.Layer):
    """ASPP of plain convolutions, then the classifier.

    Args:
        backbone_channels (Sequence[int]): Channels of the feature that backbone_indices names.
        (the others): See `DeepLabV3`; aspp_ratios may not be None here.
    """

    def __init__(
        self,
        num_classes,
        backbone_indices,
        backbone_channels,
        aspp_ratios,
        aspp_out_channels,
        align_corners,
        *,
        data_format="NCHW",
        image_pooling=True,
        aspp_dropout=0.1,
    ):
        super().__init__()
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
        )
        self.cls = nn.Conv2D(aspp_out_channels, num_classes, 1, data_format=data_format)

    def forward(self, feat_list):
        """Features to [logits], at the size of the feature that ASPP reads."""
        return [self.cls(self.aspp(feat_list[self.backbone_indices[0]]))]

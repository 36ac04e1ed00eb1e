# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3+: "Encoder-Decoder with Atrous Separable Convolution" (arXiv 1802.02611).

Backbone and ASPP are the encoder; the decoder joins ASPP's output with a feature of stride 4
(figure 2, section 3.1), so that edges follow the image.
"""

import paddle
from paddle import nn

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models.layers import (
    ASPPModule,
    ConvBNReLU,
    SeparableConvBNReLU,
    channel_axis,
    resize,
    spatial_size,
)
from paddleseg_deeplab.models.segmenter import Segmenter, check_parts, choose_aspp_ratios

_DECODER_CHANNELS = 256


@manager.MODELS.add_component
class DeepLabV3P(Segmenter):
    """DeepLabV3+.

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`.
        backbone_indices (Sequence[int]): Two indices into the backbone's features: the low-level
            one for the decoder, and ASPP's input.
        aspp_ratios (Sequence[int] | None): Rates of ASPP; None follows the backbone's output
            stride (PaddleSeg: (1, 6, 12, 18) at every stride), see `choose_aspp_ratios`.
        aspp_out_channels (int): Channels of each ASPP branch and of ASPP's output. (PaddleSeg's
            decoder works with 256 only.)
        align_corners (bool): Of every bilinear resize: False for even sizes such as 1024x512, True
            for sizes 8k+1 such as 513 and 769.
        pretrained (str): Path or URL of weights for the whole model; loading is strict.
        data_format (str): "NCHW" or "NHWC", for input and logits.
        logits_size (str): "input" or "stride" (4), in training, see `Segmenter`.
        use_sep_conv (bool): Separable 3x3 convolutions in ASPP and decoder (table 5 of the paper),
            or plain ones.
        image_pooling (bool): ASPP has the branch of the image's mean.
        low_level_channels (int): What the low-level feature is reduced to (table 1: 48).
        aspp_dropout (float): Dropout at ASPP's output.
        decoder_dropout (float): Dropout between the decoder's two 3x3 convolutions.
        classifier_dropout (float): Dropout before the classifier.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"head.decoder.conv.*"`` for another number of
            classes.

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes,
        backbone,
        backbone_indices=(0, 3),
        aspp_ratios=None,
        aspp_out_channels=256,
        align_corners=False,
        pretrained=None,
        data_format="NCHW",
        *,
        logits_size="input",
        use_sep_conv=True,
        image_pooling=True,
        low_level_channels=48,
        aspp_dropout=0.1,
        decoder_dropout=0.0,
        classifier_dropout=0.0,
        pretrained_skip=(),
    ):
        roles = ["low-level feature", "ASPP's input"]
        channels = check_parts(num_classes, backbone, backbone_indices, roles, data_format)
        head = DeepLabV3PHead(
            num_classes,
            backbone_indices,
            channels,
            choose_aspp_ratios(aspp_ratios, backbone, backbone_indices[1]),
            aspp_out_channels,
            align_corners,
            data_format,
            use_sep_conv=use_sep_conv,
            image_pooling=image_pooling,
            low_level_channels=low_level_channels,
            aspp_dropout=aspp_dropout,
            decoder_dropout=decoder_dropout,
            classifier_dropout=classifier_dropout,
        )
        super().__init__(num_classes, backbone, head, align_corners, data_format, logits_size)
        self.load(pretrained, pretrained_skip)


class DeepLabV3PHead(nn.Layer):
    """ASPP and decoder.

    Args:
        backbone_channels (Sequence[int]): Channels of the features that backbone_indices names.
        (the others): See `DeepLabV3P`; aspp_ratios may not be None here.
    """

    def __init__(
        self,
        num_classes,
        backbone_indices,
        backbone_channels,
        aspp_ratios,
        aspp_out_channels,
        align_corners,
        data_format="NCHW",
        *,
        use_sep_conv=True,
        image_pooling=True,
        low_level_channels=48,
        aspp_dropout=0.1,
        decoder_dropout=0.0,
        classifier_dropout=0.0,
    ):
        super().__init__()
        self.backbone_indices = tuple(backbone_indices)
        self.aspp = ASPPModule(
            aspp_ratios,
            backbone_channels[1],
            aspp_out_channels,
            align_corners,
            use_sep_conv=use_sep_conv,
            image_pooling=image_pooling,
            data_format=data_format,
            dropout=aspp_dropout,
        )
        self.decoder = Decoder(
            num_classes,
            backbone_channels[0],
            align_corners,
            data_format,
            aspp_out_channels=aspp_out_channels,
            low_level_channels=low_level_channels,
            use_sep_conv=use_sep_conv,
            dropout=decoder_dropout,
            classifier_dropout=classifier_dropout,
        )

    def forward(self, feat_list):
        """Features to [logits], at the size of the low-level feature."""
        low, high = (feat_list[i] for i in self.backbone_indices)
        return [self.decoder(self.aspp(high), low)]


class Decoder(nn.Layer):
    """Low-level 1x1, concatenation with the upsampled encoder output, two 3x3, classifier.

    Args:
        num_classes (int): Channels of the logits.
        in_channels (int): Channels of the low-level feature.
        align_corners (bool): Of the resize.
        data_format (str): "NCHW" or "NHWC".
        aspp_out_channels (int): Channels of the encoder's output.
        low_level_channels (int): What the low-level feature is reduced to.
        use_sep_conv (bool): Separable 3x3 convolutions, or plain ones.
        dropout (float): Between the two 3x3 convolutions.
        classifier_dropout (float): Before the classifier.
    """

    def __init__(
        self,
        num_classes,
        in_channels,
        align_corners,
        data_format="NCHW",
        *,
        aspp_out_channels=256,
        low_level_channels=48,
        use_sep_conv=True,
        dropout=0.0,
        classifier_dropout=0.0,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.data_format = data_format
        self._axis = channel_axis(data_format)
        conv = SeparableConvBNReLU if use_sep_conv else ConvBNReLU
        kwargs = {"padding": 1, "data_format": data_format}
        joined = aspp_out_channels + low_level_channels
        self.conv_bn_relu1 = ConvBNReLU(in_channels, low_level_channels, 1, data_format=data_format)
        self.conv_bn_relu2 = conv(joined, _DECODER_CHANNELS, 3, **kwargs)
        self.conv_bn_relu3 = conv(_DECODER_CHANNELS, _DECODER_CHANNELS, 3, **kwargs)
        self.conv = nn.Conv2D(_DECODER_CHANNELS, num_classes, 1, data_format=data_format)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.classifier_dropout = nn.Dropout(classifier_dropout) if classifier_dropout else None

    def forward(self, x, low_level_feat):
        """Encoder output and low-level feature to logits, at the latter's size."""
        low = self.conv_bn_relu1(low_level_feat)  # [N, low_level_channels, H/4, W/4]
        size = spatial_size(low, self.data_format)
        x = resize(x, size, self.align_corners, self.data_format)
        x = paddle.concat([x, low], axis=self._axis)  # [N, joined, H/4, W/4]
        x = self.conv_bn_relu2(x)
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.conv_bn_relu3(x)
        if self.classifier_dropout is not None:
            x = self.classifier_dropout(x)
        return self.conv(x)

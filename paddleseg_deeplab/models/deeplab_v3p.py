# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3+: "Encoder-Decoder with Atrous Separable Convolution" (arXiv 1802.02611).

Backbone and ASPP are the encoder; the decoder joins ASPP's output with a feature of stride 4
(figure 2, section 3.1), so that edges follow the image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.layers import (
    ASPPModule,
    BilinearDeconv,
    Conv2D,
    ConvBNReLU,
    SeparableConvBNReLU,
    Size,
    channel_axis,
    check_counts,
    check_dropouts,
    check_head_bias,
    like,
    resize,
    spatial_size,
)
from paddleseg_deeplab.models.segmenter import Segmenter, check_parts, choose_aspp_ratios

_UPSAMPLINGS = ("bilinear", "deconv")


@registry.MODELS.add_component
class DeepLabV3P(Segmenter):
    """DeepLabV3+.

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`.
        backbone_indices (Sequence[int]): Two indices into the backbone's features: the low-level
            one for the decoder, and ASPP's input.
        aspp_ratios (Sequence[int] | None): Rates of ASPP; None follows the backbone's output
            stride, see `choose_aspp_ratios`.
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
        head_bias (str): Which convolutions of the head have a bias: "all" but image pooling's, as
            PaddleSeg's checkpoints hold them; "projection", ASPP's last one only, not even the
            classifier; "classifier", that one only, as in TensorFlow's DeepLab.
        decoder_channels (int): Channels of the decoder's two 3x3 convolutions (table 2: 256).
        upsample (str): "bilinear", as published, or "deconv": transposed convolutions that start
            as bilinear interpolation and are learned, in place of both resizes (of the encoder's
            output and of the logits), see `layers.BilinearDeconv`. They know no align_corners,
            which then is image pooling's alone; their weights depend on the output stride, so
            that a trained model keeps its own.
        freeze_bn, bn_momentum, bn_epsilon: See `Segmenter.set_batch_norms`.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"head.decoder.conv.*"`` for another number of
            classes.

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        backbone_indices: Sequence[int] = (0, 3),
        aspp_ratios: Sequence[int] | None = None,
        aspp_out_channels: int = 256,
        align_corners: bool = False,
        pretrained: str | Path | None = None,
        data_format: str = "NCHW",
        *,
        logits_size: str = "input",
        use_sep_conv: bool = True,
        image_pooling: bool = True,
        low_level_channels: int = 48,
        aspp_dropout: float = 0.1,
        decoder_dropout: float = 0.0,
        classifier_dropout: float = 0.0,
        pretrained_skip: Sequence[str] = (),
        head_bias: str = "all",
        decoder_channels: int = 256,
        upsample: str = "bilinear",
        freeze_bn: bool = False,
        bn_momentum: float | None = None,
        bn_epsilon: float | None = None,
    ) -> None:
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
            head_bias=head_bias,
            decoder_channels=decoder_channels,
            upsample=upsample,
            backbone_strides=getattr(backbone, "feat_strides", None),
        )
        _check_logits_size(upsample, logits_size)
        super().__init__(num_classes, backbone, head, align_corners, data_format, logits_size)
        self.set_batch_norms(freeze_bn, bn_momentum, bn_epsilon)
        self.load(pretrained, pretrained_skip)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `Segmenter`; the head knows how its logits reach the input's size."""
        logits = self.head(self.features(x))
        if self.training and self.logits_size == "stride":
            return logits
        size = spatial_size(x, self.data_format)
        return [self.head.upsample_logits(y, size, self.align_corners) for y in logits]


class DeepLabV3PHead(nn.Layer):
    """ASPP and decoder.

    Args:
        backbone_channels (Sequence[int]): Channels of the features that backbone_indices names.
        backbone_strides (Sequence[int] | None): Strides of all features; "deconv" needs them.
        (the others): See `DeepLabV3P`; aspp_ratios may not be None here.

    Raises:
        ValueError: a setting outside of what `DeepLabV3P` allows.
    """

    def __init__(
        self,
        num_classes: int,
        backbone_indices: Sequence[int],
        backbone_channels: Sequence[int],
        aspp_ratios: Sequence[int],
        aspp_out_channels: int,
        align_corners: bool,
        data_format: str = "NCHW",
        *,
        use_sep_conv: bool = True,
        image_pooling: bool = True,
        low_level_channels: int = 48,
        aspp_dropout: float = 0.1,
        decoder_dropout: float = 0.0,
        classifier_dropout: float = 0.0,
        head_bias: str = "all",
        decoder_channels: int = 256,
        upsample: str = "bilinear",
        backbone_strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_counts(
            aspp_out_channels=aspp_out_channels,
            low_level_channels=low_level_channels,
            decoder_channels=decoder_channels,
        )
        check_dropouts(
            aspp_dropout=aspp_dropout,
            decoder_dropout=decoder_dropout,
            classifier_dropout=classifier_dropout,
        )
        factors = _upsampling_factors(upsample, backbone_strides, backbone_indices)
        self.backbone_indices = tuple(backbone_indices)
        self.data_format = data_format
        self.aspp = ASPPModule(
            aspp_ratios,
            backbone_channels[1],
            aspp_out_channels,
            align_corners,
            use_sep_conv=use_sep_conv,
            image_pooling=image_pooling,
            data_format=data_format,
            dropout=aspp_dropout,
            bias=head_bias,
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
            head_bias=head_bias,
            decoder_channels=decoder_channels,
            upsample_factor=factors[0],
        )
        self.logits_deconv = None
        if upsample == "deconv":
            self.logits_deconv = BilinearDeconv(num_classes, factors[1], data_format)

    def forward(self, feat_list: Sequence[Tensor]) -> list[Tensor]:
        """Features to [logits], at the size of the low-level feature."""
        low, high = (feat_list[i] for i in self.backbone_indices)
        return [self.decoder(self.aspp(high), low)]

    def upsample_logits(self, logits: Tensor, size: Size, align_corners: bool) -> Tensor:
        """Logits at the low-level feature's size to (height, width) of the image."""
        if self.logits_deconv is not None:
            return self.logits_deconv(logits, size)
        return resize(logits, size, align_corners, self.data_format)


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
        head_bias (str): See `DeepLabV3P`.
        decoder_channels (int): Of the two 3x3 convolutions.
        upsample_factor (int | None): Of the transposed convolution that enlarges the encoder's
            output; None is the bilinear resize.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        align_corners: bool,
        data_format: str = "NCHW",
        *,
        aspp_out_channels: int = 256,
        low_level_channels: int = 48,
        use_sep_conv: bool = True,
        dropout: float = 0.0,
        classifier_dropout: float = 0.0,
        head_bias: str = "all",
        decoder_channels: int = 256,
        upsample_factor: int | None = None,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.data_format = data_format
        self._axis = channel_axis(data_format)
        with_bias = check_head_bias(head_bias)
        bias = {"bias_attr": None if "decoder" in with_bias else False}
        kwargs: dict[str, Any] = {"data_format": data_format, **bias}
        self.conv_bn_relu1 = ConvBNReLU(in_channels, low_level_channels, 1, **kwargs)
        conv, kwargs["padding"] = ConvBNReLU, 1
        if use_sep_conv:
            conv, kwargs["pointwise_bias"] = SeparableConvBNReLU, bias["bias_attr"]
        joined = aspp_out_channels + low_level_channels
        self.conv_bn_relu2 = conv(joined, decoder_channels, 3, **kwargs)
        self.conv_bn_relu3 = conv(decoder_channels, decoder_channels, 3, **kwargs)
        self.conv = Conv2D(
            decoder_channels,
            num_classes,
            1,
            bias_attr=None if "classifier" in with_bias else False,
            data_format=data_format,
            keep_bias=True,
        )
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.classifier_dropout = nn.Dropout(classifier_dropout) if classifier_dropout else None
        self.deconv = None
        if upsample_factor is not None:
            self.deconv = BilinearDeconv(aspp_out_channels, upsample_factor, data_format)

    def forward(self, x: Tensor, low_level_feat: Tensor) -> Tensor:
        """Encoder output and low-level feature to logits, at the latter's size."""
        low = self.conv_bn_relu1(low_level_feat)  # [N, low_level_channels, H/4, W/4]
        size = spatial_size(low, self.data_format)
        if self.deconv is not None:
            x = self.deconv(x, size)
        else:
            x = resize(x, size, self.align_corners, self.data_format)
        x = paddle.concat([like(x, low), low], axis=self._axis)  # [N, joined, H/4, W/4]
        x = self.conv_bn_relu2(x)
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.conv_bn_relu3(x)
        if self.classifier_dropout is not None:
            x = self.classifier_dropout(x)
        return self.conv(x)


def _check_logits_size(upsample, logits_size):
    if upsample == "deconv" and logits_size == "stride":
        raise ValueError(
            'logits_size "stride" leaves out the last upsampling in training, so that with '
            'upsample "deconv" its transposed convolution would never learn; give '
            'logits_size "input", or upsample "bilinear".'
        )


def _upsampling_factors(upsample, strides, indices):
    """Factors of the encoder's output and of the logits; (None, None) for "bilinear"."""
    if upsample not in _UPSAMPLINGS:
        raise ValueError(f"upsample is {upsample!r}; give one of {list(_UPSAMPLINGS)}.")
    if upsample == "bilinear":
        return None, None
    if strides is None:
        raise ValueError(
            'upsample "deconv" needs the strides of the backbone\'s features, and the backbone '
            'declares none (feat_strides); declare them, or give upsample "bilinear".'
        )
    low, high = (strides[i] for i in indices)
    if high % low:
        raise ValueError(
            f'upsample "deconv" needs whole factors; the features that backbone_indices '
            f"{tuple(indices)} names have strides {low} and {high}."
        )
    return high // low, low

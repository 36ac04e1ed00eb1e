# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2: "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs" (arXiv 1606.00915).

Atrous spatial pyramid pooling as a sum of dilated classifiers (section 3.2, figure 4), at several
scales of the image that are joined by their maximum (section 4.1.2); the CRF is
`paddleseg_deeplab.postprocess.dense_crf.DenseCRF`.
"""

from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.layers import (
    Conv2D,
    check_aspp_ratios,
    resize,
    resize_by,
    scale_fraction,
    spatial_size,
)
from paddleseg_deeplab.models.segmenter import Segmenter, check_parts


@registry.MODELS.add_component
class DeepLabV2(Segmenter):
    """DeepLabV2.

    In training the outputs are the maximum over scales, then each scale's own logits, so that
    ``loss.types`` has ``1 + len(scales)`` entries (one where there is a single scale); the paper
    adds them up unweighted. In evaluation it is the maximum alone.

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`; of output stride 8 as
            published.
        backbone_indices (Sequence[int]): One index: which feature is classified; the last one.
        atrous_rates (Sequence[int]): Rates of the 3x3 classifiers: (6, 12, 18, 24) is ASPP-L,
            (2, 4, 8, 12) ASPP-S, (12,) LargeFOV (section 4.1.2). They do not follow the stride.
        align_corners (bool): Of every bilinear resize in the model.
        pretrained (str): Path or URL of weights for the whole model; loading is strict.
        data_format (str): "NCHW" or "NHWC", for input and logits.
        scales (Sequence[float]): Sizes of the image, 1 first, each once (see
            `layers.scale_fraction`); the weights are shared. (1.0,) runs the image alone.
        logits_size (str): "input", or "stride" as published (each scale on its own grid), in
            training, see `Segmenter`.
        freeze_bn (bool): True as published: the batch norms keep their pretrained statistics.
        bn_momentum, bn_epsilon: See `Segmenter.set_batch_norms`.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"head.aspp.*"`` for another number of classes.

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        backbone_indices: Sequence[int] = (-1,),
        atrous_rates: Sequence[int] = (6, 12, 18, 24),
        align_corners: bool = False,
        pretrained: str | Path | None = None,
        *,
        data_format: str = "NCHW",
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        logits_size: str = "input",
        freeze_bn: bool = True,
        bn_momentum: float | None = None,
        bn_epsilon: float | None = None,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        channels = check_parts(
            num_classes, backbone, backbone_indices, ["classifiers' input"], data_format
        )
        own_scales = _check_scales(scales)
        head = DeepLabV2Head(
            num_classes, backbone_indices[0], channels[0], atrous_rates, data_format
        )
        super().__init__(num_classes, backbone, head, align_corners, data_format, logits_size)
        self.set_batch_norms(freeze_bn, bn_momentum, bn_epsilon)
        self.scales = own_scales
        self.load(pretrained, pretrained_skip)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `Segmenter`; the list is [maximum, scale 1, the other scales] in training."""
        outputs = self.fuse([self.scale_logits(x, scale) for scale in self.scales])
        return self.finish(outputs if self.training else outputs[:1], x)

    def scale_logits(self, x: Tensor, scale: float) -> Tensor:
        """Logits of the image at one scale (see `layers.resize_by`), on that scale's grid."""
        if scale != 1.0:
            x = resize_by(x, scale, self.align_corners, self.data_format)
        return self.head(self.features(x))[0]

    def fuse(self, maps: list[Tensor]) -> list[Tensor]:
        """[the maximum on scale 1's grid, then the maps]; one map is all there is."""
        if len(maps) == 1:
            return maps
        grid = spatial_size(maps[0], self.data_format)
        fused = maps[0]
        for other in maps[1:]:
            other = resize(other, grid, self.align_corners, self.data_format)
            fused = _maximum(fused, other)
        return [fused, *maps]


class DeepLabV2Head(nn.Layer):
    """Sum of 3x3 classifiers at several rates, each with a bias.

    Args:
        num_classes (int): Number of classes.
        index (int): Which of the backbone's features is read.
        in_channels (int): Its channels.
        atrous_rates (Sequence[int]): One classifier each.
        data_format (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        num_classes: int,
        index: int,
        in_channels: int,
        atrous_rates: Sequence[int],
        data_format: str = "NCHW",
    ) -> None:
        super().__init__()
        check_aspp_ratios(atrous_rates, "atrous_rates")
        self.index = index
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, 0.01))
        zero = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))
        self.aspp = nn.LayerList(
            [
                Conv2D(
                    in_channels,
                    num_classes,
                    3,
                    padding=rate,
                    dilation=rate,
                    weight_attr=normal,
                    bias_attr=zero,
                    keep_bias=True,
                    data_format=data_format,
                )
                for rate in atrous_rates
            ]
        )

    def forward(self, feat_list: Sequence[Tensor]) -> list[Tensor]:
        """Features to [logits], at the size of the feature that is read."""
        x = feat_list[self.index]
        logits = self.aspp[0](x)
        for classifier in self.aspp[1:]:
            logits = logits + classifier(x)
        return [logits]


@paddle.jit.not_to_static
def _maximum(x, y):
    """Pixelwise maximum of two tensors of one shape.

    An operator added by hand for the legacy format (paddle_quirks: maximum_in_the_legacy_format).
    """
    try:
        return paddle.maximum(x, y)
    except TypeError:
        from paddle.base.layer_helper import LayerHelper

        helper = LayerHelper("elementwise_max")
        out = helper.create_variable_for_type_inference(x.dtype)
        helper.append_op(
            type="elementwise_max", inputs={"X": x, "Y": y}, outputs={"Out": out}, attrs={}
        )
        return out


def _check_scales(scales):
    values = list(scales) if isinstance(scales, (list, tuple)) else []
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if not values or len(numbers) < len(values) or values[0] != 1 or min(values) <= 0:
        raise ValueError(
            f"scales is {scales!r}; give positive numbers of which the first is 1.0, such as "
            "(1.0, 0.75, 0.5)."
        )
    if len(set(values)) < len(values):
        raise ValueError(f"scales is {scales!r}; give each scale once.")
    for value in values:
        scale_fraction(value)
    return tuple(float(v) for v in values)

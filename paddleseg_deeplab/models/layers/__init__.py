# SPDX-License-Identifier: Apache-2.0
"""Building blocks shared by backbones and heads. Nothing here knows a model, a config or a file."""

from paddleseg_deeplab.models.layers.aspp import (
    DEFAULT_ASPP_RATIOS,
    HEAD_BIASES,
    ASPPModule,
    check_aspp_ratios,
    check_counts,
    check_dropouts,
    check_head_bias,
)
from paddleseg_deeplab.models.layers.conv import (
    Activation,
    Add,
    Conv2D,
    ConvBN,
    ConvBNReLU,
    ReLU,
    SeparableConvBNReLU,
    conv_bn,
)
from paddleseg_deeplab.models.layers.norm import (
    BATCH_NORMS,
    SyncBatchNorm,
    batch_norms,
    freeze_batch_norm,
    set_batch_norm,
)
from paddleseg_deeplab.models.layers.resize import (
    Size,
    channel_axis,
    like,
    resize,
    resize_by,
    scale_fraction,
    spatial_size,
)
from paddleseg_deeplab.models.layers.upsample import BilinearDeconv

__all__ = [
    "BATCH_NORMS",
    "DEFAULT_ASPP_RATIOS",
    "HEAD_BIASES",
    "ASPPModule",
    "Activation",
    "Add",
    "BilinearDeconv",
    "Conv2D",
    "ConvBN",
    "ConvBNReLU",
    "ReLU",
    "SeparableConvBNReLU",
    "Size",
    "SyncBatchNorm",
    "batch_norms",
    "channel_axis",
    "check_aspp_ratios",
    "check_counts",
    "check_dropouts",
    "check_head_bias",
    "conv_bn",
    "freeze_batch_norm",
    "like",
    "resize",
    "resize_by",
    "scale_fraction",
    "set_batch_norm",
    "spatial_size",
]

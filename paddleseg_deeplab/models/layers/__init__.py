# SPDX-License-Identifier: Apache-2.0
"""Building blocks shared by backbones and heads. Nothing here knows a model, a config or a file."""

from paddleseg_deeplab.models.layers.aspp import DEFAULT_ASPP_RATIOS, ASPPModule
from paddleseg_deeplab.models.layers.conv import (
    Activation,
    Add,
    ConvBN,
    ConvBNReLU,
    ReLU,
    SeparableConvBNReLU,
    SyncBatchNorm,
)
from paddleseg_deeplab.models.layers.resize import channel_axis, resize, spatial_size

__all__ = [
    "DEFAULT_ASPP_RATIOS",
    "ASPPModule",
    "Activation",
    "Add",
    "ConvBN",
    "ConvBNReLU",
    "ReLU",
    "SeparableConvBNReLU",
    "SyncBatchNorm",
    "channel_axis",
    "resize",
    "spatial_size",
]

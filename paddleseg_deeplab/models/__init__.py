# SPDX-License-Identifier: Apache-2.0
"""Models, backbones and losses under PaddleSeg's names; importing this registers them all."""

import paddleseg_deeplab.utils.needs_paddle  # noqa: F401  isort: skip
from paddleseg_deeplab.models.backbones import (
    ResNet18_vd,
    ResNet34_vd,
    ResNet50_vd,
    ResNet101_vd,
    ResNet152_vd,
    ResNet_vd,
)
from paddleseg_deeplab.models.deeplab_v3 import DeepLabV3, DeepLabV3Head
from paddleseg_deeplab.models.deeplab_v3p import Decoder, DeepLabV3P, DeepLabV3PHead
from paddleseg_deeplab.models.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    MixedLoss,
    OhemCrossEntropyLoss,
    RMILoss,
)

__all__ = [
    "CrossEntropyLoss",
    "Decoder",
    "DeepLabV3",
    "DeepLabV3Head",
    "DeepLabV3P",
    "DeepLabV3PHead",
    "DiceLoss",
    "FocalLoss",
    "LovaszSoftmaxLoss",
    "MixedLoss",
    "OhemCrossEntropyLoss",
    "RMILoss",
    "ResNet18_vd",
    "ResNet34_vd",
    "ResNet50_vd",
    "ResNet101_vd",
    "ResNet152_vd",
    "ResNet_vd",
]

# SPDX-License-Identifier: Apache-2.0
from paddleseg_deeplab.models.losses.cross_entropy import CrossEntropyLoss
from paddleseg_deeplab.models.losses.dice import DiceLoss
from paddleseg_deeplab.models.losses.focal import FocalLoss, MultiClassFocalLoss
from paddleseg_deeplab.models.losses.lovasz import LovaszSoftmaxLoss
from paddleseg_deeplab.models.losses.mixed import MixedLoss
from paddleseg_deeplab.models.losses.ohem import OhemCrossEntropyLoss
from paddleseg_deeplab.models.losses.rmi import RMILoss
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts

__all__ = [
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "LovaszSoftmaxLoss",
    "MixedLoss",
    "MultiClassFocalLoss",
    "OhemCrossEntropyLoss",
    "RMILoss",
    "class_weights_from_counts",
]

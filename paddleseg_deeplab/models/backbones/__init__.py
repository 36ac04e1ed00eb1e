# SPDX-License-Identifier: Apache-2.0
"""Backbones. Each declares feat_channels and feat_strides and returns its stages' features."""

import paddle

from paddleseg_deeplab import kernels
from paddleseg_deeplab.models.backbones import (
    mobilenet_v2,
    resnet,
    resnet_vd,
    vgg,
    xception_deeplab,
)
from paddleseg_deeplab.models.backbones.mobilenet_v2 import (
    MobileNetV2,
    MobileNetV2_x0_5,
    MobileNetV2_x0_25,
    MobileNetV2_x0_75,
    MobileNetV2_x1_0,
    MobileNetV2_x1_5,
    MobileNetV2_x2_0,
)
from paddleseg_deeplab.models.backbones.resnet import ResNet, ResNet50, ResNet101, ResNet152
from paddleseg_deeplab.models.backbones.resnet_vd import (
    ResNet18_vd,
    ResNet34_vd,
    ResNet50_vd,
    ResNet101_vd,
    ResNet152_vd,
    ResNet_vd,
)
from paddleseg_deeplab.models.backbones.vgg import VGG16_LargeFOV
from paddleseg_deeplab.models.backbones.xception_deeplab import (
    Xception41_deeplab,
    Xception65_deeplab,
    Xception71_deeplab,
    XceptionDeeplab,
)
from paddleseg_deeplab.models.layers import conv

__all__ = [
    "MobileNetV2",
    "MobileNetV2_x0_5",
    "MobileNetV2_x0_25",
    "MobileNetV2_x0_75",
    "MobileNetV2_x1_0",
    "MobileNetV2_x1_5",
    "MobileNetV2_x2_0",
    "ResNet",
    "ResNet18_vd",
    "ResNet34_vd",
    "ResNet50",
    "ResNet50_vd",
    "ResNet101",
    "ResNet101_vd",
    "ResNet152",
    "ResNet152_vd",
    "ResNet_vd",
    "VGG16_LargeFOV",
    "Xception41_deeplab",
    "Xception65_deeplab",
    "Xception71_deeplab",
    "XceptionDeeplab",
]

# Nothing in these files asks for a tensor's size or values, so that tracing for export need not
# rewrite their Python. Paddle 3.3.1 rewrites each layer anew, which takes two thirds of the tracing
# of DeepLabV3+ on ResNet50_vd: 4.1 s with it, 1.3 s without.
_TRACED_AS_THEY_ARE = [mobilenet_v2, resnet, resnet_vd, vgg, xception_deeplab, conv]
# `kernels` steps aside while a program is traced.
paddle.jit.ignore_module([*_TRACED_AS_THEY_ARE, kernels])

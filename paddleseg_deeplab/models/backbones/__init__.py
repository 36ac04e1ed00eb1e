# SPDX-License-Identifier: Apache-2.0
"""Backbones. Each declares feat_channels and feat_strides and returns its stages' features."""

from paddleseg_deeplab.models.backbones.resnet_vd import (
    ResNet18_vd,
    ResNet34_vd,
    ResNet50_vd,
    ResNet101_vd,
    ResNet152_vd,
    ResNet_vd,
)

__all__ = [
    "ResNet18_vd",
    "ResNet34_vd",
    "ResNet50_vd",
    "ResNet101_vd",
    "ResNet152_vd",
    "ResNet_vd",
]

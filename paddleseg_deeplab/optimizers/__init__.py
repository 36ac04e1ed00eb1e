# SPDX-License-Identifier: Apache-2.0
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.optimizers.lr import (
    ConstantLR,
    CosineAnnealingDecay,
    PolynomialDecay,
    build_lr_scheduler,
)
from paddleseg_deeplab.optimizers.optimizer import SGD, Adam, AdamW, Momentum

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineAnnealingDecay",
    "ModelEMA",
    "Momentum",
    "PolynomialDecay",
    "build_lr_scheduler",
]

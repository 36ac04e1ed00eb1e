# SPDX-License-Identifier: Apache-2.0
"""Optimizers, learning rates and the moving average of weights; importing this registers them."""

import paddleseg_deeplab.utils.needs_paddle  # noqa: F401  isort: skip
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

# SPDX-License-Identifier: Apache-2.0
"""DeepLab for PaddlePaddle. Import this package before Paddle: see utils/cpu.py for the reason."""

from paddleseg_deeplab.utils.cpu import prepare_environment

__version__ = "0.1.0"

prepare_environment()

# SPDX-License-Identifier: Apache-2.0
"""PaddleSeg's place for what models and backbones load their weights with."""

from paddleseg_deeplab.utils.weights.load import load_entire_model, load_pretrained_model

__all__ = ["load_entire_model", "load_pretrained_model"]

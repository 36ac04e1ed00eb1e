# SPDX-License-Identifier: Apache-2.0
"""Scenes of coloured shapes, drawn from a seed: a set that needs no download."""

from paddleseg_deeplab.datasets.shapes.dataset import Shapes

__all__ = ["Shapes"]

# SPDX-License-Identifier: Apache-2.0
"""Datasets: one's own files, the public ones, and the embedded one. No Paddle in here."""

from paddleseg_deeplab.datasets.base import (
    BaseDataset,
    class_pixel_counts,
    label_table,
)
from paddleseg_deeplab.datasets.catalog import (
    ADE20K,
    CamVid,
    CatalogDataset,
    Cityscapes,
    CocoStuff,
    OpticDiscSeg,
    PascalContext,
    PascalContext59,
    PascalVOC,
)
from paddleseg_deeplab.datasets.dataset import Dataset, read_list_file
from paddleseg_deeplab.datasets.sampling import Sampling
from paddleseg_deeplab.datasets.shapes.dataset import Shapes
from paddleseg_deeplab.utils.visualize import voc_palette

__all__ = [
    "ADE20K",
    "BaseDataset",
    "CamVid",
    "CatalogDataset",
    "Cityscapes",
    "CocoStuff",
    "Dataset",
    "OpticDiscSeg",
    "PascalContext",
    "PascalContext59",
    "PascalVOC",
    "Sampling",
    "Shapes",
    "class_pixel_counts",
    "label_table",
    "read_list_file",
    "voc_palette",
]

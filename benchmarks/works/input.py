# SPDX-License-Identifier: Apache-2.0
"""The training input pipeline on one core: image and label file to what a batch needs."""

from functools import partial

import cv2
import numpy as np

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab.datasets import Dataset
from works.pictures import CLASSES, make_files

_COUNT = 10  # samples a lap, each with its own random numbers


def transforms(crop):
    """Those of configs/_base_/cityscapes.yml, for a crop of (height, width)."""
    return [
        T.ResizeStepScaling(0.5, 2.0, 0.25),
        T.RandomPaddingCrop(crop[::-1]),
        T.RandomHorizontalFlip(),
        T.RandomDistort(brightness_range=0.4, contrast_range=0.4, saturation_range=0.4),
        T.Normalize(),
    ]


def work(kind, lap, folder, small):
    cv2.setNumThreads(1)
    size, crop = ((64, 128), (32, 64)) if small else ((1024, 2048), (512, 1024))
    make_files(folder, size)
    (folder / "list.txt").write_text(f"image.{kind} label.png\n" * _COUNT, encoding="utf-8")
    dataset = Dataset("train", str(folder), transforms(crop), CLASSES, train_path="list.txt")

    def output():
        samples = [dataset[i] for i in range(_COUNT)]
        images = [np.square(sample["img"], dtype=np.float64).mean() for sample in samples]
        labels = [np.mean(sample["label"], dtype=np.float64) for sample in samples]
        return {"image": np.mean(images), "label": np.mean(labels)}

    while True:
        for i in range(_COUNT):
            dataset[i]
        lap(output)


ROWS = {
    f"{_COUNT} samples, {name} and label, 1024x2048 to 512x1024": partial(work, kind)
    for name, kind in (("PNG", "png"), ("JPEG", "jpg"), (".npy", "npy"))
}

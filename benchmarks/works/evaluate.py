# SPDX-License-Identifier: Apache-2.0
"""Evaluation of image files to mIoU, in dygraph and with an export for Paddle Inference."""

from functools import partial

import numpy as np

from paddleseg_deeplab.core import evaluate
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.transforms import Normalize
from works.networks import CLASSES, build, settle
from works.pictures import write_set

COUNT = 8
SETTINGS = {
    "dygraph, one at a time": {},
    "engine paddle, export included": {"engine": "paddle", "batch_size": None, "num_workers": 2},
}


def work(size, count, arguments, lap, folder, small):
    size, count = ((48, 64), 2) if small else (size, count)
    write_set(folder, count, size, CLASSES)
    dataset = Dataset("val", str(folder), [Normalize()], CLASSES, val_path="list.txt")
    model = build(small)
    settle(model, np.stack([dataset[i]["img"] for i in range(2)]))
    while True:
        miou, accuracy, *_ = evaluate(model, dataset, print_detail=False, **arguments)
        lap(lambda miou=miou, accuracy=accuracy: {"mIoU": miou, "accuracy": accuracy})


ROWS = {
    f"{COUNT} images of 480x360, {name}": partial(work, (360, 480), COUNT, arguments)
    for name, arguments in SETTINGS.items()
}

# SPDX-License-Identifier: Apache-2.0
"""Images into the confusion matrix."""

from functools import partial

import numpy as np

from paddleseg_deeplab.utils.metrics import ConfusionMatrix

VOID = 255
_TIMES = 20  # a lap; one takes 10 ms


def make_inputs(classes, size):
    """Prediction and label, int64 [H, W], in areas, 9 of 10 pixels right, some void."""
    rng = np.random.default_rng(0)
    areas = rng.integers(0, classes, (16, 16))
    areas[rng.random(areas.shape) < 1 / 16] = VOID
    rows, columns = (np.arange(side) * 16 // side for side in size)
    label = np.ascontiguousarray(areas[rows][:, columns])
    wrong = (rng.random(size) < 0.1) | (label == VOID)
    return np.where(wrong, rng.integers(0, classes, size), label), label


def work(classes, lap, folder, small):
    pred, label = make_inputs(classes, (32, 48) if small else (1024, 2048))
    while True:
        matrix = ConfusionMatrix(classes, VOID)
        for _ in range(_TIMES):
            matrix.update(pred, label)
        lap(lambda m=matrix: {"mIoU": m.mean_iou, "accuracy": m.accuracy})


ROWS = {
    f"{_TIMES} updates, {classes} classes, 1024x2048": partial(work, classes)
    for classes in (19, 150)
}

# SPDX-License-Identifier: Apache-2.0
"""The dense CRF, 21 classes, on an image as smooth as a photograph."""

import cv2
import numpy as np

from paddleseg_deeplab.postprocess.dense_crf import DenseCRF
from works.pictures import make_picture


def make_probabilities(classes, size):
    """Smooth blobs: float32 [K, H, W]."""
    rng = np.random.default_rng(0)
    coarse = 3 * rng.standard_normal((classes, 8, 8)).astype(np.float32)
    logits = [cv2.resize(c, size[::-1], interpolation=cv2.INTER_CUBIC) for c in coarse]
    exponentials = np.exp(np.stack(logits) - np.max(logits, 0))
    return exponentials / exponentials.sum(0)


def work(lap, folder, small):
    size, classes, iterations = ((32, 48), 3, 2) if small else ((512, 512), 21, 10)
    probabilities = make_probabilities(classes, size)
    image = cv2.GaussianBlur(make_picture(size), (0, 0), 1.0)
    while True:
        refined = DenseCRF(iterations)(probabilities, image)  # a new one, which has kept no lattice
        lap(lambda q=refined: {"mean of squares": np.square(q, dtype=np.float64).mean()})


ROWS = {"512x512, 21 classes, 10 iterations": work}

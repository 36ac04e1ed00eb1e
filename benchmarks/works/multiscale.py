# SPDX-License-Identifier: Apache-2.0
"""Evaluation at several scales with flips, and by a sliding window, in dygraph."""

from functools import partial

from works.evaluate import work

SCALES = {"aug_eval": True, "scales": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "flip_horizontal": True}
WINDOWS = {"is_slide": True, "crop_size": [129, 129], "stride": [85, 85]}

ROWS = {
    "2 images of 160x120, six scales, flips": partial(work, (120, 160), 2, SCALES),
    "2 images of 320x240, windows of 129": partial(work, (240, 320), 2, WINDOWS),
}

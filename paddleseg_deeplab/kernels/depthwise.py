# SPDX-License-Identifier: Apache-2.0
"""Weight gradient of a depthwise 3x3 convolution at a large rate, tap by tap, in NumPy on a CPU.

A tap that lies `rate` pixels away sees H - rate rows and W - rate columns of an H x W map; the rest
of what it sees is padding. At ASPP's rates 12, 24 and 36 on a 32 x 32 map 5.1, 2.25 and 1 of the
nine taps are left.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count

# Numbers of a block of channels, which stays in the processor's cache from tap to tap.
_BLOCK = 1 << 16
_MOST_THREADS = 16  # beyond that the memory is the limit


def weight_gradient(x: np.ndarray, dy: np.ndarray, rate: int) -> np.ndarray:
    """Gradient of the weight of a convolution with stride 1 and padding `rate`.

    Args:
        x (np.ndarray): float32 [N, C, H, W], what was convolved.
        dy (np.ndarray): float32 [N, C, H, W], gradient of the result.
        rate (int): At least 1.

    Returns:
        np.ndarray: float32 [C, 1, 3, 3].
    """
    n, c, h, w = x.shape
    sums = np.zeros((n, c, 1, 3, 3), np.float32)
    taps = _taps(h, w, rate)
    step = max(1, _BLOCK // (h * w))
    parts = [(i, slice(s, s + step)) for i in range(n) for s in range(0, c, step)]

    def work(at):
        for (i, j), writes, reads in taps:
            sums[(*at, 0, i, j)] = np.einsum("chw,chw->c", x[at][reads], dy[at][writes])

    with ThreadPoolExecutor(min(thread_count(), _MOST_THREADS)) as pool:
        list(pool.map(work, parts))  # NumPy releases the interpreter's lock
    return sums.sum(axis=0)


def _taps(height, width, rate):
    """((row, column) of the kernel, where it writes, what it reads) of the taps that see anything;
    slices of [C, H, W]."""
    taps = []
    for i, j in np.ndindex(3, 3):
        rows, columns = (i - 1) * rate, (j - 1) * rate
        if abs(rows) < height and abs(columns) < width:
            pairs = zip(_overlap(rows, height), _overlap(columns, width))
            taps.append(((i, j), *((slice(None), *pair) for pair in pairs)))
    return taps


def _overlap(offset, size):
    """Slices of the result and of the input that lies `offset` away."""
    low, high = max(0, -offset), size - max(0, offset)
    return slice(low, high), slice(low + offset, high + offset)

# SPDX-License-Identifier: Apache-2.0
"""Scores in host memory: adding up probabilities, the best class, whether they are finite.

The first two work a block at a time. Blocks stay in the processor's cache and go to several threads
(NumPy and OpenCV release the interpreter's lock): several times as fast as whole-image operations,
and nothing of an image's size is made in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2
import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import NonFiniteScores

if TYPE_CHECKING:
    import paddle

_BLOCK = 1 << 18  # numbers in a block, 1 MiB of float32
_PIXELS = 1 << 15  # pixels whose best class is taken at once


def add_probabilities(
    total: np.ndarray, logits: np.ndarray, axes: Sequence[int], passes: int
) -> None:
    """Adds one pass's class probabilities, over the number of passes, to their mean.

    The logits are resized bilinearly (half-pixel centres, no align_corners) and flipped back
    first. Needs a few MiB beside its arguments, for each thread.

    Args:
        total (np.ndarray): float32 [K, H, W]; added to in place.
        logits (np.ndarray): float32 [K, h, w], of the flipped image.
        axes (Sequence[int]): What was flipped, axes of [N, C, H, W]: 2 up-down, 3 left-right.
        passes (int): How many passes the mean is of.
    """
    classes, height, width = total.shape
    if 2 in axes:
        total = total[:, ::-1]
    if 3 in axes:
        total = total[:, :, ::-1]
    upper, lower, weight = _rows(logits.shape[1], height)

    def add(first):
        rows = slice(first, first + step)
        block = logits[:, upper[rows]]  # indices: a copy, [K, rows, w]
        if logits.shape[1] != height:
            below = logits[:, lower[rows]]
            below -= block
            below *= weight[rows, None]
            block += below
        if logits.shape[2] != width:
            # Rows stay rows, so those of all classes are one picture.
            flat = block.reshape(-1, block.shape[2])
            flat = cv2.resize(flat, (width, len(flat)), interpolation=cv2.INTER_LINEAR)
            block = flat.reshape(classes, -1, width)
        with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller finds
            block -= block.max(axis=0)
        np.exp(block, out=block)
        block *= 1 / (block.sum(axis=0) * np.float32(passes))
        total[:, rows] += block

    step = max(_BLOCK // (classes * max(width, logits.shape[2])), 1)
    _in_threads(add, range(0, height, step))


def _rows(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows above and below each of `target` rows among `source` ones, and the lower one's share."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = np.clip(place, 0, source - 1)
    upper = np.floor(place).astype(np.int64)
    return upper, np.minimum(upper + 1, source - 1), (place - upper).astype(np.float32)


def best_classes(scores: np.ndarray) -> np.ndarray:
    """The class of the highest score of each pixel; equal scores go to the lower class.

    Args:
        scores (np.ndarray): float [K, H, W], finite.

    Returns:
        np.ndarray: int32 [H, W].
    """
    classes, height, width = scores.shape
    flat = scores.reshape(classes, -1)
    labels = np.empty(height * width, np.int32)

    def take(first):
        part = flat[:, first : first + _PIXELS]
        best = part[0].copy()
        own = np.zeros(best.shape, np.uint8 if classes <= 256 else np.int32)
        for c in range(1, classes):
            np.copyto(own, own.dtype.type(c), where=part[c] > best)
            np.maximum(best, part[c], out=best)
        labels[first : first + _PIXELS] = own

    _in_threads(take, range(0, labels.size, _PIXELS))
    return labels.reshape(height, width)


def _in_threads(work, items):
    threads = min(thread_count(), len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))


def all_finite(array: np.ndarray) -> bool:
    """Whether an array, float of any shape, holds neither NaN nor infinity."""
    # The sum is quicker; where it overflows, each number is looked at.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def check_finite(scores: paddle.Tensor | np.ndarray, names: Sequence[str] | None = None) -> None:
    """Refuses scores that are NaN or infinite, whose best class would mean nothing.

    Args:
        scores (Tensor | np.ndarray): float32 [N, ...]; labels, integers, are always finite.
        names (Sequence[str], optional): Of the N images, for the message.

    Raises:
        NonFiniteScores: Naming the image.
    """
    # One sum for a batch, one number from a device; only where it fails each is looked at.
    with np.errstate(all="ignore"):
        if np.isfinite(float(scores.sum())):
            return
    for i in range(scores.shape[0]):
        if not all_finite(np.asarray(scores[i])):
            name = names[i] if names else f"image {i} of the batch"
            raise NonFiniteScores(
                f"{name}: the network gives NaN or infinite values, which have no best class. "
                "Either its weights do (a training that diverged: take an earlier checkpoint), or "
                "the image's own values are not finite, or --precision fp16 overflows."
            )

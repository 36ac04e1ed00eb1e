# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy of each pixel and its gradient in NumPy, for the CPU.

As fast there as Paddle's operators or faster, and right where those cap the loss. The forward pass
keeps the probabilities; the backward pass turns them into the gradient where they lie.
docs/performance.md has the times.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count

# Pixels handled at once: the block's C rows stay in the processor's cache between passes.
_BLOCK = 8192
_MOST_THREADS = 16  # beyond that the memory is the limit
_WORTH_A_THREAD = 2**18  # logits; a thread's start takes as long as some ten thousand of them
_LARGEST = np.finfo("float32").max


def cross_entropy_numpy(
    logits: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    smoothing: float,
    loss: np.ndarray,
    probs: np.ndarray | None,
) -> None:
    """Writes the loss of each pixel, and the probabilities, which the gradient is made of.

    Args:
        logits (np.ndarray): float32 [N, C, P], of any strides.
        label (np.ndarray): int64 [N, P].
        valid (np.ndarray): bool [N, P].
        smoothing (float): Probability spread evenly over all classes, in [0, 1).
        loss (np.ndarray): float32 [N, P], overwritten; 0 where not valid.
        probs (np.ndarray or None): float32 [N, C, P], overwritten.
    """

    def block(at, z, keep, own, memory):
        shifted, rows = (part[: z.size].reshape(z.shape) for part in memory)
        if z.strides[1] != z.itemsize:  # the passes want each class's pixels side by side
            np.copyto(rows, z)
            z = rows
        np.subtract(z, z.max(axis=0), out=shifted)
        target = shifted[own]
        if np.isneginf(target).any():
            # Two finite logits may differ by more than float32 holds.
            target = np.where(z[own] > -np.inf, np.maximum(target, -_LARGEST), target)
        if smoothing:
            if np.isneginf(shifted).any():
                np.copyto(shifted, -_LARGEST, where=np.isneginf(shifted) & (z > -np.inf))
            mean = shifted.mean(axis=0, dtype="float64")
            target = (1.0 - smoothing) * target + smoothing * mean
        np.exp(shifted, out=shifted)
        total = shifted.sum(axis=0)
        # 0 at void, whatever its logits are.
        loss[at] = np.where(keep, np.log(total) - target, 0.0)
        if probs is not None:
            np.divide(shifted, total, out=shifted)
            image, part = at
            probs[image, :, part] = shifted

    _over_blocks(block, logits, label, valid)


def cross_entropy_gradient_numpy(
    probs: np.ndarray, label: np.ndarray, valid: np.ndarray, smoothing: float, upstream: np.ndarray
) -> None:
    """Turns probabilities [N, C, P] into the gradient by the logits, in place:
    (probability - target) x upstream [N, P], 0 where not valid."""

    def block(at, slope, keep, own, memory):
        up = np.where(keep, upstream[at], np.float32(0.0))
        lost = ~keep & np.isnan(slope[0])  # a pixel has probabilities or none
        slope *= up
        if smoothing:
            slope -= up * np.float32(smoothing / len(slope))
        slope[own] -= up * np.float32(1.0 - smoothing)
        if lost.any():
            slope[:, lost] = 0.0

    _over_blocks(block, probs, label, valid)


def _over_blocks(work, logits, label, valid):
    """Calls work(at, z, keep, own, memory) for blocks of all pixels, in threads.

    at: index of the block in an array [N, P]; z [C, B]: its part of `logits`; keep [B]: which
    are valid; own: index in a block [C, B] of each pixel's class, of class 0 where not valid;
    memory: two float32 rows to work in, as long as a block's logits.
    """
    images, classes, pixels = logits.shape
    blocks = [
        (i, slice(start, min(start + _BLOCK, pixels)))
        for i in range(images)
        for start in range(0, pixels, _BLOCK)
    ]
    most = 1 + logits.size // _WORTH_A_THREAD
    workers = min(thread_count(), _MOST_THREADS, len(blocks), most)

    def share(first):
        memory = np.empty((2, classes * min(_BLOCK, pixels)), "float32")
        for at in blocks[first::workers]:
            keep = valid[at]
            own = np.where(keep, label[at], 0), np.arange(keep.size)
            # Infinite logits give NaN, which the training loop names.
            with np.errstate(invalid="ignore", over="ignore"):
                work(at, logits[at[0], :, at[1]], keep, own, memory)

    if workers == 1:
        share(0)
        return
    # NumPy releases the interpreter's lock.
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))

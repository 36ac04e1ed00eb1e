# SPDX-License-Identifier: Apache-2.0
"""Lovasz-Softmax and its gradient in NumPy, for the CPU."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count

# Pixels handled at once: the block's C rows stay in the processor's cache between passes.
_BLOCK = 8192
_MOST_THREADS = 16  # beyond that the memory is the limit


def lovasz_softmax_numpy(
    logits: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    classes: str | Sequence[int],
    grad: np.ndarray,
) -> float:
    """Computes the loss and writes its gradient by the logits.

    Args:
        logits (np.ndarray): float32 [N, C, P].
        label (np.ndarray): int64 [N, P].
        valid (np.ndarray): bool [N, P].
        classes (str or sequence of int): "present", "all" or class numbers.
        grad (np.ndarray): float32 [N, C, P], overwritten.

    Returns:
        float: the loss; 0.0 (and gradient 0) where no pixel is valid.
    """
    n, c, p = logits.shape
    probs = np.empty((c, n, p), dtype="float32")
    slope = np.zeros((c, n, p), dtype="float32")
    blocks = [(i, slice(s, s + _BLOCK)) for i in range(n) for s in range(0, p, _BLOCK)]
    pixels, starts = _pixels_by_class(label, valid, c)
    members = [pixels[starts[k] : starts[k + 1]] for k in range(c)]
    if classes == "present":
        classes = [k for k in range(c) if members[k].size]
    elif classes == "all":
        classes = range(c)
    if not valid.any() or not len(classes):
        grad[...] = 0.0
        return 0.0
    void = np.flatnonzero(~valid)
    rows, slopes = probs.reshape(c, n * p), slope.reshape(c, n * p)

    def of_class(k):
        return lovasz_class(rows[k], members[k], void, slopes[k])

    # NumPy releases the interpreter's lock.
    with ThreadPoolExecutor(min(thread_count(), _MOST_THREADS)) as pool:
        list(pool.map(lambda at: _softmax(logits, probs, *at), blocks))
        total = sum(pool.map(of_class, classes))
        scale = np.float32(1.0 / len(classes))
        list(pool.map(lambda at: _chain(probs, slope, scale, grad, *at), blocks))
    return total / len(classes)


def lovasz_class(
    row: np.ndarray, foreground: np.ndarray, void: np.ndarray, slope: np.ndarray
) -> float:
    """Loss of one class.

    A background pixel with an error below that of every foreground pixel has g = 0: the
    intersection is used up before it. Only the others are sorted, on integer keys (a non-negative
    float's bits keep its order) with the position in the low half, which is faster than argsort.

    Args:
        row (np.ndarray): float32 [M], the class's probabilities.
        foreground (np.ndarray): int [F], positions of the class's pixels.
        void (np.ndarray): int, positions that do not count.
        slope (np.ndarray): float32 [M], zeros; receives d loss / d probability.

    Returns:
        float: the loss, in [0, 1].
    """
    errors = row.copy()
    errors[void] = -1.0
    if foreground.size == 0:  # the Jaccard loss is 1 as soon as one pixel is wrong
        top = int(errors.argmax())
        slope[top] = 1.0
        return float(errors[top])
    own = np.float32(1.0) - row[foreground]
    errors[foreground] = -1.0
    rivals = np.flatnonzero(errors > own.min())
    errors = np.concatenate([errors[rivals], own])
    g = np.empty(errors.size, dtype="float32")
    order, hit = _falling_order(errors, rivals.size)
    g[order] = _jaccard_steps(hit, foreground.size)
    slope[rivals] = g[: rivals.size]
    slope[foreground] = -g[rivals.size :]
    return float(np.dot(g, errors))


def _falling_order(errors, first_hit):
    """Positions of non-negative float32 errors from the largest down, and which are hits
    (positions from first_hit on)."""
    keys = np.empty((errors.size, 2), dtype="<u4")
    np.invert(errors.view(np.uint32), out=keys[:, 1])
    keys[:, 0] = np.arange(errors.size, dtype="uint32")
    keys.reshape(-1).view("<u8").sort()
    order = keys[:, 0].astype(np.intp)
    return order, order >= first_hit


def _jaccard_steps(hit, size):
    """g along the order: steps of 1 - (F - hits) / union, F = size, union = F + misses, written
    without a difference of near-equal numbers. float32 [K]."""
    hits = np.cumsum(hit, dtype="int32")
    union = np.arange(size + 1, size + 1 + hit.size, dtype="int32")
    union -= hits
    union = union.astype("float32")
    g = np.subtract(size, hits, dtype="float32")  # a miss: (F - hits) / (union (union - 1))
    g /= union
    at = np.flatnonzero(hit)
    tail = union[at]
    union -= 1.0
    np.maximum(union, 1.0, out=union)  # 0 only at hits, which are replaced
    g /= union
    g[at] = 1.0 / tail
    return g


def _pixels_by_class(label, valid, num_classes):
    """Flat positions of the valid pixels, grouped by class, and where each group starts."""
    # 8 or 16 bits make NumPy's stable sort a radix sort.
    kind = "uint8" if num_classes < 256 else "uint16"
    flat = np.where(valid, label, num_classes).astype(kind).reshape(-1)
    starts = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=num_classes + 1))])
    return np.argsort(flat, kind="stable"), starts


def _softmax(logits, probs, image, part):
    z = logits[image, :, part]
    # Infinite logits give NaN, which the training loop names.
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.subtract(z, z.max(axis=0), dtype="float32")
        np.exp(e, out=e)
        np.divide(e, e.sum(axis=0), out=probs[:, image, part])


def _chain(probs, slope, scale, grad, image, part):
    """Gradient by the logits from the one by the probabilities: p (s - sum_c p s)."""
    p, s = probs[:, image, part], slope[:, image, part]
    mean = np.einsum("cp,cp->p", p, s)
    out = grad[image, :, part]
    np.subtract(s, mean, out=out)
    np.multiply(out, p, out=out)
    np.multiply(out, scale, out=out)

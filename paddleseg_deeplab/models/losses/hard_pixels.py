# SPDX-License-Identifier: Apache-2.0
"""The choice of the pixels with the largest losses, without a stop of the device."""

import numpy as np
import paddle
from paddle import Tensor

from paddleseg_deeplab.models.losses.base import as_numpy, in_numpy


def among_hardest(loss: Tensor, valid: Tensor, count: int) -> Tensor:
    """Which valid pixels have one of the `count` largest losses, equal ones included.

    Args:
        loss (Tensor): float32, any shape; valid (Tensor): bool, the same.
        count (int): At least 1; with no more valid pixels than that, all of them.

    Returns:
        Tensor: bool, of the same shape.
    """
    if in_numpy(loss):
        values = as_numpy(loss)[as_numpy(valid)]
        if values.size <= count:
            return valid
        return (loss >= float(np.partition(values, -count)[-count])) & valid
    keys = _keys(loss, valid)
    return (keys >= _kth_largest(keys, count)) & valid


def hardest_share(loss: Tensor, valid: Tensor, share: float) -> Tensor:
    """How much each pixel counts when the given share of the valid ones, the hardest, is chosen.

    Args:
        loss (Tensor): float32, any shape; valid (Tensor): bool, the same.
        share (float): In (0, 1]; at least one pixel is chosen.

    Returns:
        Tensor: float32 of the same shape: 1 for a chosen pixel, else 0; pixels with equal losses
        at the last place share what is left of the number.
    """
    if in_numpy(loss):
        return paddle.to_tensor(_hardest_share_numpy(as_numpy(loss), as_numpy(valid), share))
    # In float64, as Python computes it.
    count = (valid.sum().astype("float64") * share).floor().clip(min=1.0).astype("int64")
    keys = _keys(loss, valid)
    last = _kth_largest(keys, count)
    above, equal = keys > last, (keys == last) & valid
    left = (count - above.sum()).astype("float32") / equal.sum().clip(min=1).astype("float32")
    return above.astype("float32") + equal.astype("float32") * left


def _hardest_share_numpy(loss, valid, share):
    chosen = np.zeros(loss.shape, "float32")
    values = loss[valid]
    if values.size == 0:
        return chosen
    count = max(int(share * values.size), 1)
    last = np.partition(values, -count)[-count]
    above, equal = values > last, values == last
    left = np.float32(count - above.sum()) / np.float32(max(equal.sum(), 1))
    chosen[valid] = above + equal * left
    return chosen


def _keys(loss, valid):
    """int32, in the order of the losses; below them all where not valid."""
    bits = loss.view("int32")
    # A float's bits keep its order; those of a negative one reversed.
    bits = paddle.where(bits < 0, bits ^ paddle.full_like(bits, 0x7FFFFFFF), bits)
    return paddle.where(valid, bits, paddle.full_like(bits, -(2**31)))


def _kth_largest(keys, count):
    """int32 scalar Tensor: the count-th largest key, found bit by bit: Paddle's sort of one row
    waits for the device, and its top-k takes no number that is a tensor."""
    # The sign first: `found` is the largest number such that `count` keys are at least it.
    found = paddle.full([], -(2**31), dtype="int32")
    for bit in range(31, -1, -1):
        trial = paddle.zeros_like(found) if bit == 31 else found + 2**bit
        found = paddle.where((keys >= trial).sum() >= count, trial, found)
    return found

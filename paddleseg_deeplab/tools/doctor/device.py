# SPDX-License-Identifier: Apache-2.0
"""What the checks that run on a device share: where they run, and how far two results are apart."""

import contextlib
from collections.abc import Iterator

import numpy as np
import paddle
from numpy.typing import ArrayLike


@contextlib.contextmanager
def using(device: str) -> Iterator[None]:
    """The block computes on a device ("cpu", "gpu", "gpu:1"); afterwards the former one is back."""
    before = paddle.get_device()
    paddle.set_device(device)
    try:
        yield
    finally:
        paddle.set_device(before)


def is_cpu(device: str) -> bool:
    return device.partition(":")[0] == "cpu"


def difference(found: ArrayLike, expected: ArrayLike) -> float:
    """float: The largest difference of two arrays, as a share of the largest expected value; inf
    where one of them is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    largest = np.abs(expected).max()
    gap = np.abs(found - expected).max()
    if not np.isfinite(gap) or not np.isfinite(largest):
        return float("inf")
    return float(gap / largest) if largest else float(gap)

# SPDX-License-Identifier: Apache-2.0
"""What the checks that run on a device share: where they run, and how far two results are apart."""

import contextlib

import numpy as np
import paddle
from paddle.base import core as paddle_core


@contextlib.contextmanager
def using(device):
    """The block computes on a device ("cpu", "gpu", "gpu:1"); afterwards the former one is back."""
    before = paddle.get_device()
    paddle.set_device(device)
    try:
        yield
    finally:
        paddle.set_device(before)


@contextlib.contextmanager
def tf32(on):
    """Convolutions and products in TF32, or in whole float32, inside; a CPU knows no TF32.

    ``NVIDIA_TF32_OVERRIDE=0`` in the environment switches it off altogether.
    """
    before = paddle_core.get_cudnn_switch(), paddle_core.get_cublas_switch()
    paddle_core.set_cudnn_switch(on)
    paddle_core.set_cublas_switch(on)
    try:
        yield
    finally:
        paddle_core.set_cudnn_switch(before[0])
        paddle_core.set_cublas_switch(before[1])


def is_cpu(device):
    return device.partition(":")[0] == "cpu"


def difference(found, expected):
    """float: The largest difference of two arrays, as a share of the largest expected value; inf
    where one of them is not finite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    largest = np.abs(expected).max()
    gap = np.abs(found - expected).max()
    if not np.isfinite(gap) or not np.isfinite(largest):
        return float("inf")
    return float(gap / largest) if largest else float(gap)

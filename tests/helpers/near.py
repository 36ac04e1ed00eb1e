# SPDX-License-Identifier: Apache-2.0
"""What the tests of the faster ways on a CPU share."""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.kernels import cpu_ops, onednn

needs_library = pytest.mark.skipif(onednn.find() is None, reason="no oneDNN library with Paddle")


def random(*shape, seed=0):
    tensor = paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
    tensor.stop_gradient = False
    return tensor


def convolved(x):
    return cpu_ops.conv2d(x, random(4, 4, 3, 3, seed=1), 1, 1, 1, 1)


def rectified(x):
    return cpu_ops.relu_(x * 1)


def assert_near(ours, plain, tolerance):
    ours, plain = ours.numpy(), plain.numpy()
    assert ours.shape == plain.shape
    np.testing.assert_allclose(ours, plain, rtol=0, atol=tolerance * max(np.abs(plain).max(), 1e-3))

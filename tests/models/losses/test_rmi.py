# SPDX-License-Identifier: Apache-2.0
"""RMILoss (float32) against the paper's formula in float64.

The reference takes the difference of covariances directly. Where float32 is well conditioned the
two agree to 1e-4 of a value near 5; the hard cases (degenerate truth, exact prediction, large maps)
are the reason for the module's rewriting and get 2e-3.
"""

import contextlib

import numpy as np
import paddle
import pytest
from paddle.base import core

from paddleseg_deeplab.models.losses import RMILoss, base, rmi

VOID = 255


def pool(x, way, k):
    """3x3-like pooling with padding k // 2, stride k, on [N, C, H, W]."""
    if k == 1:
        return x
    n, c, h, w = x.shape
    pad = k // 2
    sides = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    x = np.pad(x, sides, constant_values=-np.inf if way == 0 else np.nan)
    oh, ow = (h + 2 * pad - k) // k + 1, (w + 2 * pad - k) // k + 1
    out = np.empty((n, c, oh, ow))
    for i, j in np.ndindex(oh, ow):
        patch = x[:, :, i * k : i * k + k, j * k : j * k + k]
        out[:, :, i, j] = patch.max((2, 3)) if way == 0 else np.nanmean(patch, axis=(2, 3))
    return out


def reference(z, y, way=0, k=3, radius=3):
    z = z.astype("float64")
    n, c = z.shape[:2]
    valid = (y != VOID)[:, None]
    truth = (np.arange(c)[None, :, None, None] == y[:, None]) * valid * 1.0
    pred = valid / (1 + np.exp(-z)) + 1e-6
    truth, pred = pool(truth, way, k), pool(pred, way, k)
    h, w = truth.shape[2] - radius + 1, truth.shape[3] - radius + 1
    images = []
    for i in range(n):
        if not valid[i].any():
            continue
        total = 0.0
        for j in range(c):
            shifts = list(np.ndindex(radius, radius))
            one = np.stack([truth[i, j, a : a + h, b : b + w].ravel() for a, b in shifts])
            two = np.stack([pred[i, j, a : a + h, b : b + w].ravel() for a, b in shifts])
            one, two = one - one.mean(1, keepdims=True), two - two.mean(1, keepdims=True)
            eye = 5e-4 * np.eye(radius**2)
            cross = one @ two.T
            rest = one @ one.T - cross @ np.linalg.inv(two @ two.T + eye) @ cross.T
            total += 0.5 * np.linalg.slogdet(rest + eye)[1] / radius**2
        images.append(total)
    return float(np.mean(images)) if images else 0.0


def ours(z, y, **settings):
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    loss = RMILoss(z.shape[1], **settings)(logits, paddle.to_tensor(y))
    loss.backward()
    return float(loss), logits.grad.numpy()


def blocks(seed, n, c, size, cell=6):
    """Labels in square cells, with a strip of void."""
    rng = np.random.default_rng(seed)
    y = np.kron(rng.integers(0, c, (n, -(-size // cell), -(-size // cell))), np.ones((cell, cell)))
    y = y[:, :size, :size].astype("int64")
    y[:, :2] = VOID
    return y


def one_hot(y, c):
    return np.eye(c)[np.where(y == VOID, 0, y)].transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("way", "k", "radius"), [(0, 3, 3), (1, 3, 3), (0, 1, 3), (0, 2, 2), (0, 3, 1), (0, 3, 4)]
)
def test_value(way, k, radius):
    y = blocks(0, 2, 3, 31)
    z = np.random.default_rng(1).normal(size=(2, 3, 31, 31)) + one_hot(y, 3) * 2
    settings = {"rmi_pool_way": way, "rmi_pool_size": k, "rmi_pool_stride": k, "rmi_radius": radius}
    assert ours(z, y, **settings)[0] == pytest.approx(reference(z, y, way, k, radius), abs=1e-4)


HARD = {
    # Truth that is constant along x: 6 of its 9 directions are empty.
    "stripes": (lambda y, rng: np.repeat(y[:, :, 3:4], y.shape[2], axis=2), 0.0, 1.0),
    "near exact prediction": (lambda y, rng: y, 12.0, 0.1),
    "exact prediction": (lambda y, rng: y, 60.0, 0.0),
    "constant prediction": (lambda y, rng: y, 0.0, 0.0),
    "one class everywhere": (lambda y, rng: np.zeros_like(y), 0.0, 1.0),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("size", [40, 250])
def test_hard_cases(case, size):
    change, gain, noise = HARD[case]
    rng = np.random.default_rng(2)
    y = change(blocks(3, 1, 3, size, cell=15), rng)
    z = rng.normal(size=(1, 3, size, size)) * noise + (one_hot(y, 3) * 2 - 1) * gain
    loss, grad = ours(z, y)
    assert loss == pytest.approx(reference(z, y), abs=2e-3)
    assert np.isfinite(grad).all()


def test_numeric_gradient():
    """Central differences of the float64 reference: the constants W and T of the module are
    allowed to be constants. Average pooling, since a maximum has kinks."""
    y = blocks(4, 1, 2, 15, cell=4)
    z = np.random.default_rng(5).normal(size=(1, 2, 15, 15)) + one_hot(y, 2)
    found = ours(z, y, rmi_pool_way=1)[1]
    rng = np.random.default_rng(6)
    for _ in range(12):
        direction = rng.normal(size=z.shape)
        up, down = (reference(z + s * 1e-5 * direction, y, way=1) for s in (1, -1))
        slope = (up - down) / 2e-5
        assert (found * direction).sum() == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_better_predictions_cost_less():
    y = blocks(7, 1, 3, 40)
    noise = np.random.default_rng(8).normal(size=(1, 3, 40, 40))
    losses = [ours(noise + (one_hot(y, 3) * 2 - 1) * gain, y)[0] for gain in (0, 1, 2, 4)]
    assert losses == sorted(losses, reverse=True)


def test_void():
    y = blocks(9, 2, 3, 30)
    z = np.random.default_rng(10).normal(size=(2, 3, 30, 30))
    loss, grad = ours(z, y)
    void = np.broadcast_to((y == VOID)[:, None], z.shape)
    assert (grad[void] == 0).all()
    assert ours(np.where(void, 30.0, z), y)[0] == loss
    # An image without labels is left out of the mean.
    alone = ours(z[:1], y[:1])[0]
    y[1] = VOID
    assert ours(z, y)[0] == pytest.approx(alone, rel=1e-5)
    loss, grad = ours(z, np.full_like(y, VOID))
    assert loss == 0
    assert (grad == 0).all()


def test_interpolation_way_runs():
    y = blocks(11, 1, 2, 24)
    loss, grad = ours(np.random.default_rng(12).normal(size=(1, 2, 24, 24)), y, rmi_pool_way=2)
    assert np.isfinite(loss)
    assert np.abs(grad).max() > 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rmi_radius": 0}, "rmi_radius"),
        ({"rmi_pool_way": 4}, "rmi_pool_way"),
        ({"rmi_pool_size": 2}, "same number"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        RMILoss(3, **settings)


def test_sizes_that_do_not_fit():
    y = blocks(13, 1, 3, 5)
    z = np.zeros((1, 3, 5, 5))
    with pytest.raises(ValueError, match="smaller than rmi_radius"):
        ours(z, y)
    with pytest.raises(ValueError, match="num_classes is 19"):
        RMILoss()(paddle.to_tensor(z.astype("float32")), paddle.to_tensor(y))


def tf32(x):
    """float32 Tensor rounded as TF32 does: 10 bits after the point, to nearest even."""
    bits = x.numpy().view(np.uint32)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return paddle.to_tensor((bits & 0xFFFFE000).view(np.float32))


@pytest.fixture
def ampere(monkeypatch):
    """Products of float32 are made as Paddle 3.0 to 3.2 makes them on such a GPU by default."""
    real = paddle.matmul

    def matmul(x, y, **more):
        if x.dtype == paddle.float32 and core.get_cublas_switch():
            x, y = tf32(x), tf32(y)
        return real(x, y, **more)

    monkeypatch.setattr(paddle, "matmul", matmul)
    before = core.get_cublas_switch()
    core.set_cublas_switch(True)
    yield
    assert core.get_cublas_switch()  # the loss puts it back
    core.set_cublas_switch(before)


@pytest.mark.skipif(not hasattr(core, "set_cublas_switch"), reason="this Paddle has no TF32 switch")
def test_products_keep_their_digits_on_a_gpu(ampere, monkeypatch):
    """With TF32's rounding in them a nearly exact prediction is off by 1e-2 and its gradient by
    more than all of it: both are what is left of sums that nearly cancel."""
    y = blocks(3, 1, 3, 40, cell=15)
    z = np.random.default_rng(2).normal(size=(1, 3, 40, 40)) * 0.1 + (one_hot(y, 3) * 2 - 1) * 12
    loss, grad = ours(z, y)
    assert loss == pytest.approx(reference(z, y), abs=2e-3)
    monkeypatch.setattr(base, "exact_products", contextlib.nullcontext)
    harmed, slope = ours(z, y)
    assert abs(harmed - reference(z, y)) > 5e-3
    assert np.abs(slope - grad).max() > 0.5 * np.abs(grad).max()


@pytest.mark.parametrize("d", [1, 2, 9, 100])
def test_inverse_factor(d):
    """Against LAPACK, for a condition number near 1e6."""
    rng = np.random.default_rng(d)
    root = rng.normal(size=(3, d, d)) * np.logspace(0, -3, d)
    matrix = root @ root.transpose(0, 2, 1) + 1e-6 * np.eye(d)
    found = rmi._inverse_factor(paddle.to_tensor(matrix)).numpy()
    expected = np.linalg.inv(np.linalg.cholesky(matrix))
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    assert (np.triu(found, 1) == 0).all()


def test_a_matrix_that_is_not_positive_shows():
    assert np.isnan(rmi._inverse_factor(-paddle.eye(4, dtype="float64").unsqueeze(0)).numpy()).any()

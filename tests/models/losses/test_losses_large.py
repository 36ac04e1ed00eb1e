# SPDX-License-Identifier: Apache-2.0
"""Losses of very wrong and very sure predictions: logits far beyond what float32's exp can take.

Values agree with float64 NumPy to 1e-5 relative, gradients to 1e-4 of their largest entry, as in
test_losses.py; all numbers are those of the float32 logits. Paddle's own CPU kernels end at 64 a
pixel.
"""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.models.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    MixedLoss,
    MultiClassFocalLoss,
    OhemCrossEntropyLoss,
    RMILoss,
    base,
)

VOID = 255
C = 4
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])
LARGEST = float(np.finfo("float32").max)


@pytest.fixture(params=["numpy", "paddle"], autouse=True)
def form(request, monkeypatch):
    """Each test runs in the CPU's form and in the one that a GPU takes."""
    monkeypatch.setattr(base, "NUMPY_ON_CPU", request.param == "numpy")
    return request.param


def batch(scale, seed=0):
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(2, C, 5, 6)) * scale).astype("float32").astype("float64")
    y = rng.integers(0, C, (2, 5, 6))
    y[rng.random(y.shape) < 0.2] = VOID
    return z, y


def run(loss, z, y):
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    value = loss(logits, paddle.to_tensor(y))
    value.backward()
    return float(value), logits.grad.numpy()


def softmax_parts(z, y):
    """nll [M], labels [M], log p [M, C] of the valid pixels."""
    z = z.transpose(0, 2, 3, 1)[y != VOID]
    label = y[y != VOID]
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(z)), label], label, log_p


def cross_entropy(z, y, weight=None, smooth=0.0, avg=True):
    """Value and gradient in closed form."""
    nll, label, log_p = softmax_parts(z, y)
    w = np.ones(len(label)) if weight is None else weight[label]
    divisor = w.sum() if avg else y.size
    value = (w * ((1 - smooth) * nll - smooth * log_p.mean(axis=1))).sum() / divisor
    target = (1 - smooth) * np.eye(C)[label] + smooth / C
    grad = np.zeros(z.transpose(0, 2, 3, 1).shape)
    grad[y != VOID] = (np.exp(log_p) - target) * (w / divisor)[:, None]
    return value, grad.transpose(0, 3, 1, 2)


CLOSED = {
    "plain": {},
    "weights": {"weight": WEIGHT},
    "smooth": {"smooth": 0.1},
    "smooth weights": {"smooth": 0.1, "weight": WEIGHT},
    "all pixels": {"avg": False},
}
NAMES = {"smooth": "label_smoothing", "avg": "avg_non_ignore", "weight": "weight"}


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 100.0, 1e4, 1e6, 1e20, 1e37])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", CLOSED)
def test_cross_entropy_in_closed_form(name, data_format, scale):
    z, y = batch(scale)
    value, grad = cross_entropy(z, y, **CLOSED[name])
    settings = {NAMES[key]: setting for key, setting in CLOSED[name].items()}
    given = z if data_format == "NCHW" else z.transpose(0, 2, 3, 1)
    found = run(CrossEntropyLoss(**settings, data_format=data_format), given, y)
    assert found[0] == pytest.approx(value, rel=1e-5)
    slope = found[1] if data_format == "NCHW" else found[1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(slope, grad, atol=1e-4 * np.abs(grad).max())


def ohem(z, y, min_kept, thresh=0.7):
    nll = softmax_parts(z, y)[0]
    limit = min(-np.log(thresh) if thresh else np.inf, np.sort(nll)[-min_kept])
    return nll[nll >= limit].mean()


def top(z, y, share):
    nll = np.sort(softmax_parts(z, y)[0])
    return nll[-max(int(share * len(nll)), 1) :].mean()


def multi_focal(z, y, gamma):
    nll = softmax_parts(z, y)[0]
    return ((1 - np.exp(-nll)) ** gamma * nll).mean()


def focal(z, y, alpha=0.25, gamma=2.0):
    x = z.transpose(0, 2, 3, 1)[y != VOID]
    yes = np.eye(C)[y[y != VOID]] == 1
    loss = np.logaddexp(0, np.where(yes, -x, x))
    return (np.where(yes, alpha, 1 - alpha) * (1 - np.exp(-loss)) ** gamma * loss).mean()


def dice(z, y):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p = p * (y != VOID)[:, None]
    g = (np.arange(C)[None, :, None, None] == y[:, None]) * 1.0
    p, g, both = p.sum((2, 3)), g.sum((2, 3)), (p * g).sum((2, 3))
    return (1 - (2 * both + 1) / (p + g + 1)).mean()


OTHERS = {
    "ohem": (lambda: OhemCrossEntropyLoss(min_kept=7), lambda z, y: ohem(z, y, 7)),
    "ohem thresh 0": (
        lambda: OhemCrossEntropyLoss(thresh=0, min_kept=7),
        lambda z, y: ohem(z, y, 7, 0),
    ),
    "top": (
        lambda: CrossEntropyLoss(top_k_percent_pixels=0.3),
        lambda z, y: top(z, y, 0.3),
    ),
    "multi focal": (MultiClassFocalLoss, lambda z, y: multi_focal(z, y, 2)),
    "multi focal 0.5": (
        lambda: MultiClassFocalLoss(gamma=0.5),
        lambda z, y: multi_focal(z, y, 0.5),
    ),
    "focal": (FocalLoss, focal),
    "focal 0": (lambda: FocalLoss(gamma=0), lambda z, y: focal(z, y, gamma=0)),
    "dice": (DiceLoss, dice),
}


@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("name", OTHERS)
def test_other_losses(name, scale):
    make, formula = OTHERS[name]
    z, y = batch(scale, seed=1)
    value, grad = run(make(), z, y)
    assert value == pytest.approx(formula(z, y), rel=1e-5, abs=1e-7)
    expected = np.zeros_like(z)
    width = 1e-6 * scale
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = width
        expected[at] = (formula(z + step, y) - formula(z - step, y)) / (2 * width)
    # The 1e-7 is for gradients that are 0 but for the rounding of the differences.
    np.testing.assert_allclose(grad, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)


LOSSES = {
    "ce": CrossEntropyLoss,
    "ce smooth": lambda: CrossEntropyLoss(label_smoothing=0.1),
    "ce top": lambda: CrossEntropyLoss(top_k_percent_pixels=0.3),
    "ohem": lambda: OhemCrossEntropyLoss(min_kept=5),
    "focal": FocalLoss,
    "multi focal": MultiClassFocalLoss,
    "dice": DiceLoss,
    "lovasz": LovaszSoftmaxLoss,
    "rmi": lambda: RMILoss(C, rmi_pool_size=1, rmi_pool_stride=1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("far", [1e4, 1e30, LARGEST])
def test_finite_logits_give_finite_losses(name, far):
    """Also where the difference of two logits, or the sum of losses, is beyond float32."""
    y = batch(1)[1]
    for sign in (1.0, -1.0):
        z = np.full((2, C, 5, 6), -sign * far)
        z[:, 1] = sign * far
        value, grad = run(LOSSES[name](), z, y)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_are_not_finite_show(name, value):
    if name == "rmi" and value == np.inf:
        pytest.skip("its sigmoid is 1 there")
    z, y = batch(1)
    y[0, 2, 3] = 1
    z[0, :, 2, 3] = value
    assert not np.isfinite(run(LOSSES[name](), z, y)[0])


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_a_void_pixel_that_is_not_finite_does_not_count(data_format):
    z, y = batch(1)
    y[0, 2, 3] = VOID
    good = run(CrossEntropyLoss(), z, y)
    z[0, :, 2, 3] = np.nan
    given = z if data_format == "NCHW" else z.transpose(0, 2, 3, 1)
    value, grad = run(CrossEntropyLoss(data_format=data_format), given, y)
    assert value == pytest.approx(good[0], rel=1e-6)
    grad = grad if data_format == "NCHW" else grad.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(grad, good[1], atol=1e-7)


def test_one_pixel_ten_thousand_wrong():
    z = np.zeros((1, 2, 1, 1))
    z[0, 1] = 1e4
    mixed = MixedLoss([CrossEntropyLoss(), OhemCrossEntropyLoss()], [1.0, 0.5])
    label = np.zeros((1, 1, 1), dtype="int64")
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    assert [float(v) for v in mixed(logits, paddle.to_tensor(label))] == [1e4, 5e3]


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_backward_ends_in_an_error_or_the_right_gradient(name):
    """It ended the process."""
    z, y = batch(3.0)
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    value = LOSSES[name]()(logits, paddle.to_tensor(y))
    value.backward(retain_graph=True)
    once = logits.grad.numpy()
    if name in ("focal", "dice"):
        value.backward()
        np.testing.assert_allclose(logits.grad.numpy(), 2 * once, rtol=1e-6)
    else:
        with pytest.raises((OSError, RuntimeError), match="compute the loss again"):
            value.backward()


def test_gradients_of_a_retained_graph():
    z, y = batch(3.0)
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    value = CrossEntropyLoss()(logits, paddle.to_tensor(y))
    grads = [paddle.grad(value, [logits], retain_graph=True)[0].numpy() for _ in range(2)]
    value.backward()
    for grad in grads:
        np.testing.assert_array_equal(grad, logits.grad.numpy())


@pytest.mark.parametrize("before", [False, True])
def test_logits_changed_after_the_loss(before, form):
    """The gradient is right, from what was kept, or an error: never wrong in silence."""
    z, y = batch(3.0)
    right = run(CrossEntropyLoss(), z, y)[1]
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    inner = logits * 1.0
    value = CrossEntropyLoss()(inner, paddle.to_tensor(y))
    if before:
        paddle.grad(value, [logits], retain_graph=True)
    with paddle.no_grad():
        inner.add_(paddle.ones_like(inner) * inner)
    if form == "paddle" or before:
        with pytest.raises((OSError, RuntimeError), match="changed in place"):
            value.backward()
    else:
        value.backward()
        np.testing.assert_allclose(logits.grad.numpy(), right, atol=1e-7)

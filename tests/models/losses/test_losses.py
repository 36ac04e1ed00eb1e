# SPDX-License-Identifier: Apache-2.0
"""Losses against independent float64 NumPy versions, closed forms and numeric gradients.

Means of some hundred float32 terms of order 1: values agree to 1e-5 relative, gradients to 1e-4 of
their largest entry (central differences of the float64 version, step 1e-5).
"""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.models.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    MultiClassFocalLoss,
    OhemCrossEntropyLoss,
    class_weights_from_counts,
)

VOID = 255
C = 4
WEIGHT = [0.5, 2.0, 1.0, 0.25]


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def parts(z, y):
    """-log p of the true class, [M], and the labels, [M], of the valid pixels."""
    keep = y != VOID
    log_p = log_softmax(z).transpose(0, 2, 3, 1)[keep]
    return -log_p[np.arange(len(log_p)), y[keep]], y[keep], log_p


def np_ce(z, y, weight=None, top=1.0, avg=True, smooth=0.0):
    nll, label, log_p = parts(z, y)
    loss = (1 - smooth) * nll - smooth * log_p.mean(axis=1)
    w = np.ones(len(label)) if weight is None else np.asarray(weight)[label]
    loss = loss * w
    share = w if avg else np.ones_like(w)
    if not avg:
        loss = np.concatenate([loss, np.zeros((y == VOID).sum())])
        share = np.ones_like(loss)
    if top < 1:
        order = np.argsort(-loss)[: max(int(top * len(loss)), 1)]
        loss, share = loss[order], share[order]
    return loss.sum() / share.sum()


def np_dice(z, y, weight=None, smooth=1.0):
    p = np.exp(log_softmax(z))
    terms = []
    for i in range(len(z)):
        keep = y[i] != VOID
        for c in range(z.shape[1]):
            g = (y[i] == c)[keep]
            q = p[i, c][keep]
            dice = (2 * (q * g).sum() + smooth) / (q.sum() + g.sum() + smooth)
            terms.append((1 - dice) * (1 if weight is None else weight[c]))
    return np.mean(terms)


def np_focal(z, y, alpha=0.25, gamma=2.0):
    keep = y != VOID
    x = z.transpose(0, 2, 3, 1)[keep]
    g = np.eye(z.shape[1])[y[keep]]
    p = 1 / (1 + np.exp(-x))
    pt = np.where(g == 1, p, 1 - p)
    at = np.where(g == 1, alpha, 1 - alpha)
    return (-at * (1 - pt) ** gamma * np.log(pt)).mean()


def np_multi_focal(z, y, alpha=1.0, gamma=2.0):
    nll, label, _ = parts(z, y)
    factor = np.asarray(alpha)[label] if isinstance(alpha, list) else alpha
    return (factor * (1 - np.exp(-nll)) ** gamma * nll).mean()


def np_ohem(z, y, thresh=0.7, min_kept=10000, weight=None):
    nll, label, _ = parts(z, y)
    prob = np.exp(-nll)
    if min_kept < len(prob):
        limit = max(thresh, np.sort(prob)[min_kept - 1]) if min_kept else thresh
        kept = prob <= limit
    else:
        kept = np.ones(len(prob), bool)
    w = 1.0 if weight is None else np.asarray(weight)[label]
    return (nll * w)[kept].sum() / max(kept.sum(), 1)


CASES = {
    "ce": (CrossEntropyLoss, {}, np_ce, {}),
    "ce weights": (CrossEntropyLoss, {"weight": WEIGHT}, np_ce, {"weight": WEIGHT}),
    "ce smooth": (CrossEntropyLoss, {"label_smoothing": 0.1}, np_ce, {"smooth": 0.1}),
    "ce smooth weights": (
        CrossEntropyLoss,
        {"label_smoothing": 0.1, "weight": WEIGHT},
        np_ce,
        {"smooth": 0.1, "weight": WEIGHT},
    ),
    "ce top": (CrossEntropyLoss, {"top_k_percent_pixels": 0.3}, np_ce, {"top": 0.3}),
    "ce top weights": (
        CrossEntropyLoss,
        {"top_k_percent_pixels": 0.3, "weight": WEIGHT},
        np_ce,
        {"top": 0.3, "weight": WEIGHT},
    ),
    "ce all pixels": (CrossEntropyLoss, {"avg_non_ignore": False}, np_ce, {"avg": False}),
    "ce all pixels weights": (
        CrossEntropyLoss,
        {"avg_non_ignore": False, "weight": WEIGHT},
        np_ce,
        {"avg": False, "weight": WEIGHT},
    ),
    "ce all pixels top": (
        CrossEntropyLoss,
        {"avg_non_ignore": False, "top_k_percent_pixels": 0.5},
        np_ce,
        {"avg": False, "top": 0.5},
    ),
    "dice": (DiceLoss, {}, np_dice, {}),
    "dice weights": (DiceLoss, {"weight": WEIGHT}, np_dice, {"weight": WEIGHT}),
    "dice not smooth": (DiceLoss, {"smooth": 0.0}, np_dice, {"smooth": 0.0}),
    "focal": (FocalLoss, {}, np_focal, {}),
    "focal 0.5": (FocalLoss, {"gamma": 0.5, "alpha": 0.7}, np_focal, {"gamma": 0.5, "alpha": 0.7}),
    "multi focal": (MultiClassFocalLoss, {}, np_multi_focal, {}),
    "multi focal list": (
        MultiClassFocalLoss,
        {"alpha": WEIGHT, "gamma": 1.5},
        np_multi_focal,
        {"alpha": WEIGHT, "gamma": 1.5},
    ),
    "ohem all": (OhemCrossEntropyLoss, {}, np_ohem, {}),
    "ohem": (OhemCrossEntropyLoss, {"min_kept": 5}, np_ohem, {"min_kept": 5}),
    "ohem none at least": (OhemCrossEntropyLoss, {"min_kept": 0}, np_ohem, {"min_kept": 0}),
    "ohem raised": (
        OhemCrossEntropyLoss,
        {"thresh": 0.05, "min_kept": 20, "weight": WEIGHT},
        np_ohem,
        {"thresh": 0.05, "min_kept": 20, "weight": WEIGHT},
    ),
}
ALL = pytest.mark.parametrize("name", CASES)


def batch(seed=0, present=C):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, C, 5, 6)) * 1.5
    y = rng.integers(0, present, (2, 5, 6))
    y[rng.random(y.shape) < 0.2] = VOID
    return z, y


def run(loss, z, y, dtype="float32"):
    logits = paddle.to_tensor(z.astype("float32")).astype(dtype)
    logits.stop_gradient = False
    value = loss(logits, paddle.to_tensor(y))
    value.backward()
    assert value.shape == []
    assert value.dtype == paddle.float32
    return float(value), logits.grad.astype("float32").numpy()


def make(name, **more):
    cls, settings, _, _ = CASES[name]
    return cls(**settings, **more)


@ALL
@pytest.mark.parametrize("present", [C, 2])  # with and without absent classes
def test_value(name, present):
    z, y = batch(present=present)
    _, _, formula, options = CASES[name]
    expected = formula(z, y, **options)
    assert run(make(name), z, y)[0] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@ALL
def test_numeric_gradient(name):
    z, y = batch(1)
    _, _, formula, options = CASES[name]
    found = run(make(name), z, y)[1]
    expected = np.zeros_like(z)
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = 1e-5
        expected[at] = (formula(z + step, y, **options) - formula(z - step, y, **options)) / 2e-5
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@ALL
def test_void_never_counts_and_label_is_unchanged(name):
    z, y = batch(2)
    kept = y.copy()
    label = paddle.to_tensor(y)
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    value = make(name)(logits, label)
    value.backward()
    np.testing.assert_array_equal(label.numpy(), kept)
    void = np.broadcast_to((y == VOID)[:, None], z.shape)
    assert (logits.grad.numpy()[void] == 0).all()
    assert run(make(name), np.where(void, -20.0 * z, z), y)[0] == float(value)


@ALL
def test_all_void_is_zero(name):
    z, y = batch(3)
    value, grad = run(make(name), z, np.full_like(y, VOID))
    assert value == 0
    assert (grad == 0).all()


@ALL
def test_a_class_can_be_the_ignored_one(name):
    z, y = batch(4)
    y[y == VOID] = 2
    other = np.where(y == 2, VOID, y)
    assert run(make(name, ignore_index=2), z, y)[0] == run(make(name), z, other)[0]


@ALL
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits(name, dtype):
    """The value is that of the rounded logits in float32, also where exp overflows in float16."""
    z, y = batch(5)
    z *= 20
    rounded = paddle.to_tensor(z.astype("float32")).astype(dtype).astype("float32").numpy()
    value, grad = run(make(name), z, y, dtype)
    assert value == run(make(name), rounded, y)[0]
    assert np.isfinite(grad).all()


@ALL
def test_channels_last(name):
    z, y = batch(6)
    value, grad = run(make(name), z, y)
    last = run(make(name, data_format="NHWC"), z.transpose(0, 2, 3, 1), y)
    assert last[0] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(last[1].transpose(0, 3, 1, 2), grad, rtol=1e-5, atol=1e-8)


@ALL
def test_extreme_logits_are_finite(name):
    z, y = batch(7)
    for scale in (0.0, 1e4, -1e4):
        value, grad = run(make(name), z * scale, y)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@ALL
def test_label_with_a_channel_and_other_integers(name):
    z, y = batch(8)
    value = run(make(name), z, y)[0]
    for label in (y[:, None], y.astype("int32"), y.astype("uint8")):
        assert run(make(name), z, label)[0] == value


def test_focal_with_gamma_0_is_cross_entropy():
    z, y = batch(9)
    value, grad = run(CrossEntropyLoss(), z, y)
    focal = run(MultiClassFocalLoss(gamma=0), z, y)
    assert focal[0] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(focal[1], grad, atol=1e-7)


def test_sigmoid_focal_with_gamma_0_is_half_binary_cross_entropy():
    z, y = batch(10)
    keep = y != VOID
    x, g = z.transpose(0, 2, 3, 1)[keep], np.eye(C)[y[keep]]
    expected = (np.maximum(x, 0) - x * g + np.log1p(np.exp(-np.abs(x)))).mean() / 2
    assert run(FocalLoss(alpha=0.5, gamma=0), z, y)[0] == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_equal_logits_is_log_c():
    y = batch(11)[1]
    for loss in (
        CrossEntropyLoss(),
        CrossEntropyLoss(WEIGHT),
        CrossEntropyLoss(label_smoothing=0.3),
    ):
        assert run(loss, np.zeros((2, C, 5, 6)), y)[0] == pytest.approx(np.log(C), rel=1e-6)


def test_ohem_keeps_equal_probabilities():
    """Every pixel has p = 0.25 > thresh: the threshold rises to it and all are kept."""
    y = batch(12)[1]
    loss = OhemCrossEntropyLoss(thresh=0.1, min_kept=3)
    assert run(loss, np.zeros((2, C, 5, 6)), y)[0] == pytest.approx(np.log(C), rel=1e-6)


def test_dice_leaves_out_images_without_labels():
    z, y = batch(13)
    y[1] = VOID
    assert run(DiceLoss(), z, y)[0] == pytest.approx(run(DiceLoss(), z[:1], y[:1])[0], rel=1e-6)


def test_semantic_weights():
    z, y = batch(14)
    factors = np.random.default_rng(15).random(y.shape)
    nll, _, _ = parts(z, y)
    value = CrossEntropyLoss()(
        paddle.to_tensor(z.astype("float32")),
        paddle.to_tensor(y),
        paddle.to_tensor(factors.astype("float32")),
    )
    assert float(value) == pytest.approx((nll * factors[y != VOID]).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([100, 200, 400], [2.0, 1.0, 0.5]),
        ([100, 0, 400, 200], [2.0, 1.0, 0.5, 1.0]),
        ([1, 100, 10**6], [10.0, 1.0, 0.1]),
        ([7], [1.0]),
    ],
)
def test_class_weights_from_counts(counts, expected):
    found = class_weights_from_counts(counts)
    assert all(isinstance(value, float) for value in found)
    assert found == pytest.approx(expected)

# SPDX-License-Identifier: Apache-2.0
"""Lovasz-Softmax against the paper's Algorithm 1 in float64, closed forms and numeric gradients.

Values are sums of at most M float32 terms that add up to less than 1: 2e-6 absolute. Gradients are
compared relative to their largest entry, 2e-5, on errors without ties (ties have no one gradient).
"""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.kernels.lovasz import lovasz_softmax_numpy
from paddleseg_deeplab.models.losses import LovaszSoftmaxLoss
from paddleseg_deeplab.models.losses.lovasz import value_and_grad_paddle

VOID = 255


def softmax(z, axis=1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def jaccard_loss(truth, wrong):
    """1 - IoU of a class when the pixels of the set `wrong` are predicted wrongly."""
    truth = truth.astype(bool)
    predicted = truth ^ wrong
    union = (truth | predicted).sum()
    return 0.0 if union == 0 else 1.0 - (truth & predicted).sum() / union


def reference(z, y, classes="present"):
    """The Lovasz extension of the Jaccard loss by its definition: set by set, float64."""
    z = z.astype("float64")
    probs = softmax(z).transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
    keep = y.reshape(-1) != VOID
    probs, y = probs[keep], y.reshape(-1)[keep]
    if classes == "present":
        classes = np.unique(y)
    elif classes == "all":
        classes = range(z.shape[1])
    losses = []
    for c in classes:
        truth = y == c
        errors = np.abs(truth - probs[:, c])
        wrong = np.zeros(len(y), bool)
        loss = before = 0.0
        for i in np.argsort(-errors):
            wrong[i] = True
            after = jaccard_loss(truth, wrong)
            loss += errors[i] * (after - before)
            before = after
        losses.append(loss)
    return float(np.mean(losses)) if len(losses) and len(y) else 0.0


def ours(z, y, **settings):
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    loss = LovaszSoftmaxLoss(**settings)(logits, paddle.to_tensor(y))
    loss.backward()
    return float(loss), logits.grad.numpy()


def batch(seed, shape=(2, 4, 5, 6), scale=2.0, classes=None):
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    z = rng.normal(size=shape) * scale
    y = rng.integers(0, classes or c, (n, h, w))
    y[rng.random((n, h, w)) < 0.15] = VOID
    return z, y


@pytest.mark.parametrize("classes", ["present", "all", [0, 3]])
@pytest.mark.parametrize("scale", [0.01, 2.0, 20.0])
@pytest.mark.parametrize("present", [4, 2])
def test_value(classes, scale, present):
    z, y = batch(0, scale=scale, classes=present)
    assert ours(z, y, classes=classes)[0] == pytest.approx(reference(z, y, classes), abs=2e-6)


@pytest.mark.parametrize("classes", ["present", "all"])
def test_numeric_gradient(classes):
    z, y = batch(1, shape=(2, 3, 3, 3), classes=2)
    found = ours(z, y, classes=classes)[1]
    expected = np.zeros_like(z)
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = 1e-6  # far smaller than the gaps between errors: the order stays
        up, down = reference(z + step, y, classes), reference(z - step, y, classes)
        expected[at] = (up - down) / 2e-6
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(3))
def test_hard_binary_prediction_is_one_minus_iou(seed):
    rng = np.random.default_rng(seed)
    y, predicted = rng.integers(0, 2, (2, 1, 6, 6))
    z = np.stack([1 - predicted, predicted], axis=1) * 200.0
    ious = [
        ((y == c) & (predicted == c)).sum() / ((y == c) | (predicted == c)).sum() for c in (0, 1)
    ]
    assert ours(z, y)[0] == pytest.approx(1 - np.mean(ious), abs=1e-6)


def test_perfect_prediction():
    y = batch(2)[1]
    z = np.eye(4)[np.where(y == VOID, 0, y)].transpose(0, 3, 1, 2) * 100
    loss, grad = ours(z, y)
    assert loss == pytest.approx(0, abs=1e-6)
    assert np.abs(grad).max() < 1e-6


def test_absent_class_costs_its_largest_probability():
    z, y = batch(3, classes=3)
    y[y == VOID] = 0
    probs = softmax(z)
    assert ours(z, y, classes=[3])[0] == pytest.approx(probs[:, 3].max(), abs=1e-6)


def test_void_pixels_never_count():
    z, y = batch(4)
    loss, grad = ours(z, y)
    void = np.broadcast_to((y == VOID)[:, None], z.shape)
    assert (grad[void] == 0).all()
    other = np.where(void, 50.0 - z, z)
    assert ours(other, y)[0] == loss


@pytest.mark.parametrize("settings", [{}, {"classes": "all"}, {"per_image": True}])
def test_all_void(settings):
    z, y = batch(5)
    loss, grad = ours(z, np.full_like(y, VOID), **settings)
    assert loss == 0
    assert (grad == 0).all()


def test_per_image_is_the_mean_of_images_with_labels():
    z, y = batch(6, shape=(3, 4, 5, 5))
    y[1] = VOID
    single = [ours(z[i : i + 1], y[i : i + 1]) for i in (0, 2)]
    loss, grad = ours(z, y, per_image=True)
    assert loss == pytest.approx((single[0][0] + single[1][0]) / 2, abs=1e-6)
    np.testing.assert_allclose(grad[0], single[0][1][0] / 2, atol=1e-7)
    np.testing.assert_allclose(grad[2], single[1][1][0] / 2, atol=1e-7)
    assert (grad[1] == 0).all()


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 5, 40, 30), (1, 3, 100, 170)])
@pytest.mark.parametrize("classes", ["present", "all", [1]])
def test_numpy_and_paddle_forms_agree(shape, classes):
    """The GPU's form, run on the CPU; the last shape spans several blocks of the NumPy form."""
    z, y = batch(7, shape=shape)
    n, c, h, w = shape
    z = z.reshape(n, c, h * w).astype("float32")
    y = y.reshape(n, h * w)
    grad = np.empty_like(z)
    loss = lovasz_softmax_numpy(z, y, y != VOID, classes, grad)
    other = value_and_grad_paddle(
        paddle.to_tensor(z), paddle.to_tensor(y), paddle.to_tensor(y != VOID), classes
    )
    assert loss == pytest.approx(float(other[0]), abs=5e-6)
    top = max(np.abs(grad).max(), 1e-12)
    np.testing.assert_allclose(grad, other[1].numpy(), atol=2e-4 * top)


def test_all_void_in_the_paddle_form():
    z = paddle.randn([1, 3, 8])
    y = paddle.full([1, 8], VOID, dtype="int64")
    for classes in ("present", "all", [0]):
        loss, grad = value_and_grad_paddle(z, y, y != VOID, classes)
        assert float(loss) == 0
        assert float(grad.abs().max()) == 0


def test_ties_and_equal_logits():
    """All probabilities equal: any order is right, the value is one."""
    y = np.array([[[0, 1, 1, VOID]]])
    z = np.zeros((1, 2, 1, 4))
    assert ours(z, y)[0] == pytest.approx(0.5, abs=1e-6)


def test_upstream_factor_reaches_the_gradient():
    z, y = batch(8)
    logits = paddle.to_tensor(z.astype("float32"), stop_gradient=False)
    (LovaszSoftmaxLoss()(logits, paddle.to_tensor(y)) * 0.2).backward()
    np.testing.assert_allclose(logits.grad.numpy(), ours(z, y)[1] * 0.2, rtol=1e-6)


def test_not_a_number_shows():
    z, y = batch(9)
    y[0, 0, 0] = 1
    z[0, 1, 0, 0] = np.nan
    assert np.isnan(ours(z, y)[0])


@pytest.mark.parametrize("classes", ["presnt", [], [1.5], [True]])
def test_bad_classes(classes):
    with pytest.raises(ValueError, match="classes must"):
        LovaszSoftmaxLoss(classes=classes)


def test_class_beyond_the_logits():
    z, y = batch(10)
    with pytest.raises(ValueError, match="0 to 3"):
        ours(z, y, classes=[4])

# SPDX-License-Identifier: Apache-2.0
"""Metrics against brute force, closed forms and properties."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleseg_deeplab.utils import metrics
from paddleseg_deeplab.utils.metrics import ConfusionMatrix


def brute_force(pred, label, k, void=255):
    """Pixel by pixel in plain Python, from the definitions."""
    pairs = [(t, p) for t, p in zip(label.ravel().tolist(), pred.ravel().tolist()) if t != void]
    out = {"iou": [], "dice": [], "precision": [], "recall": []}
    for c in range(k):
        both = sum(t == c and p == c for t, p in pairs)
        truth = sum(t == c for t, _ in pairs)
        found = sum(p == c for _, p in pairs)
        if truth + found == 0:
            for values in out.values():
                values.append(float("nan"))
            continue
        out["iou"].append(both / (truth + found - both))
        out["dice"].append(2 * both / (truth + found))
        out["precision"].append(both / found if found else 0.0)
        out["recall"].append(both / truth if truth else 0.0)
    n = len(pairs)
    out["accuracy"] = sum(t == p for t, p in pairs) / n if n else float("nan")
    return out


@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 6),
    dtypes=st.sampled_from([("uint8", "uint8"), ("int64", "uint8"), ("int32", "int64")]),
)
@settings(max_examples=40, deadline=None)
def test_equals_brute_force(seed, k, dtypes):
    rng = np.random.default_rng(seed)
    used = rng.integers(1, k + 1)  # so that some classes are absent
    label = rng.integers(0, used, (2, 7, 5))
    label[rng.random(label.shape) < 0.2] = 255
    pred = rng.integers(0, used, label.shape)
    c = ConfusionMatrix(k)
    c.update(pred.astype(dtypes[1]), label.astype(dtypes[0]))
    expected = brute_force(pred, label, k)
    for name in ("iou", "dice", "precision", "recall"):
        # Both are one division of equal integers.
        np.testing.assert_array_equal(getattr(c, name), expected[name], err_msg=name)
    np.testing.assert_array_equal(c.accuracy, expected["accuracy"])


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 3, (2, 40, 41))
    whole, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(pred, label)
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    parts.update(pred, label)
    np.testing.assert_array_equal(whole.matrix, parts.matrix)
    assert whole.total == pred.size


def test_absent_class_is_left_out_of_means():
    c = ConfusionMatrix(4)
    # Classes 0, 1 in the truth; 2 only predicted; 3 nowhere.
    c.update(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(c.iou, [1.0, 0.5, 0.0, np.nan])
    np.testing.assert_array_equal(c.precision, [1.0, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(c.recall, [1.0, 0.5, 0.0, np.nan])
    assert c.mean_iou == 0.5
    assert c.mean_dice == pytest.approx((1 + 2 / 3 + 0) / 3)
    np.testing.assert_array_equal(c.pixel_share, [0.5, 0.5, 0, 0])
    assert c.frequency_weighted_iou == 0.75


@pytest.mark.parametrize(
    ("matrix", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # po 0.7, pe 0.5
        ([[10, 0], [0, 30]], 1.0),
        ([[25, 25], [25, 25]], 0.0),
        ([[0, 10], [10, 0]], -1.0),
        ([[10, 0], [0, 0]], float("nan")),
        ([[0, 0], [0, 0]], float("nan")),
    ],
)
def test_kappa_closed_forms(matrix, kappa):
    got = ConfusionMatrix.from_matrix(np.array(matrix)).kappa
    np.testing.assert_allclose(got, kappa, atol=1e-12)


def test_nothing_counted():
    c = ConfusionMatrix(2)
    added = c.update(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))
    assert added.sum() == 0
    for name in ("mean_iou", "mean_dice", "accuracy", "kappa", "frequency_weighted_iou"):
        assert np.isnan(getattr(c, name)), name
    text = json.dumps(c.summary(["a", "b"]), allow_nan=False)
    assert json.loads(text)["mIoU"] is None


def test_merge_equals_one_update():
    rng = np.random.default_rng(1)
    pred, label = rng.integers(0, 5, (2, 30, 30))
    whole = ConfusionMatrix(5)
    whole.update(pred, label)
    top, bottom = ConfusionMatrix(5), ConfusionMatrix(5)
    added = top.update(pred[:11], label[:11])
    bottom.update(pred[11:], label[11:])
    np.testing.assert_array_equal(added, top.matrix)
    np.testing.assert_array_equal(top.merge(bottom).matrix, whole.matrix)
    with pytest.raises(ValueError, match="4 classes into 5"):
        top.merge(ConfusionMatrix(4))


@pytest.mark.parametrize("ignore_index", [255, -1, 0, 1000])
def test_any_ignore_index(ignore_index):
    label = np.array([0, 1, ignore_index, 1])
    c = ConfusionMatrix(2, ignore_index)
    c.update(np.array([0, 1, 0, 0]), label)
    assert c.total == (label != ignore_index).sum()


@pytest.mark.parametrize(
    ("pred", "label", "error", "match"),
    [
        ([0, 3], [0, 1], ValueError, "Predicted class 3 is outside 0..2"),
        ([0, -1], [0, 255], ValueError, "Predicted class -1"),
        ([0, 1], [0, 3], ValueError, "Label value 3 is outside 0..2"),
        ([0, 1], [0, -1], ValueError, "Label value -1"),
        ([0, 1], [0, 254], ValueError, "ignored value 255"),
        ([0, 1], [0], ValueError, "differ in shape"),
        ([0.0, 1.0], [0, 1], TypeError, "prediction must hold integers"),
    ],
)
def test_bad_input_changes_nothing(pred, label, error, match):
    c = ConfusionMatrix(3)
    with pytest.raises(error, match=match):
        c.update(np.array(pred), np.array(label))
    assert c.total == 0


def test_inputs_stay_as_they_were():
    pred, label = np.array([[0, 1]]), np.array([[255, 1]])
    before = pred.copy(), label.copy()
    ConfusionMatrix(2).update(pred, label)
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_class_names():
    c = ConfusionMatrix(2)
    assert [row["name"] for row in c.summary()["classes"]] == ["0", "1"]
    with pytest.raises(ValueError, match="3 class names for 2"):
        c.summary(["a", "b", "c"])
    with pytest.raises(ValueError, match="at least 1"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="square"):
        ConfusionMatrix.from_matrix(np.zeros((2, 3)))

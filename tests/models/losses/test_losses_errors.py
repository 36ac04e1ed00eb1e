# SPDX-License-Identifier: Apache-2.0
"""What losses refuse, MixedLoss, and weights that are filled in later."""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab import registry
from paddleseg_deeplab.models import losses
from paddleseg_deeplab.models.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    MixedLoss,
    MultiClassFocalLoss,
    OhemCrossEntropyLoss,
    RMILoss,
    class_weights_from_counts,
)
from paddleseg_deeplab.utils.errors import UserError

LOGITS = paddle.zeros([2, 3, 12, 12])
LABEL = paddle.zeros([2, 12, 12], dtype="int64")
MAKERS = {
    "ce": CrossEntropyLoss,
    "lovasz": LovaszSoftmaxLoss,
    "dice": DiceLoss,
    "focal": FocalLoss,
    "multi focal": MultiClassFocalLoss,
    "ohem": OhemCrossEntropyLoss,
    "rmi": lambda **k: RMILoss(3, **k),
}
ALL = pytest.mark.parametrize("name", MAKERS)


@ALL
@pytest.mark.parametrize(
    ("logits", "label", "text"),
    [
        (LOGITS, LABEL[:, :6], r"label has shape \[2, 6, 12\].*Resize"),
        (LOGITS, LABEL[:1], "label has shape"),
        (LOGITS, paddle.zeros([2, 3, 12, 12], dtype="int64"), "label has shape"),
        (LOGITS[0], LABEL[0], "4 dimensions"),
        (LOGITS, LABEL + 3, "holds 3; allowed are 0 to 2"),
        (LOGITS, LABEL - 1, "holds -1; allowed"),
    ],
)
def test_inputs_that_do_not_fit(name, logits, label, text):
    with pytest.raises(UserError, match=text):
        MAKERS[name]()(logits, label)


@ALL
def test_float_labels(name):
    with pytest.raises(TypeError, match="integers"):
        MAKERS[name]()(LOGITS, LABEL.astype("float32"))


@ALL
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"ignore_index": "255"}, TypeError),
        ({"ignore_index": 1.5}, TypeError),
        ({"data_format": "NCWH"}, ValueError),
    ],
)
def test_bad_common_settings(name, settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        MAKERS[name](**settings)


@pytest.mark.parametrize(
    ("cls", "settings", "text"),
    [
        (CrossEntropyLoss, {"weight": "atuo"}, "'auto'"),
        (CrossEntropyLoss, {"weight": [1.0, -1.0]}, ">= 0"),
        (CrossEntropyLoss, {"weight": [0.0, 0.0]}, "not all 0"),
        (CrossEntropyLoss, {"weight": [1.0, float("nan")]}, "finite"),
        (CrossEntropyLoss, {"weight": [[1.0]]}, "flat list"),
        (CrossEntropyLoss, {"weight": []}, "flat list"),
        (CrossEntropyLoss, {"weight": ["a"]}, "numbers"),
        (CrossEntropyLoss, {"top_k_percent_pixels": 0.0}, "top_k_percent_pixels"),
        (CrossEntropyLoss, {"top_k_percent_pixels": 20}, "top_k_percent_pixels"),
        (CrossEntropyLoss, {"label_smoothing": 1.0}, "label_smoothing"),
        (CrossEntropyLoss, {"label_smoothing": "0.1"}, "label_smoothing"),
        (DiceLoss, {"smooth": -1}, "smooth"),
        (DiceLoss, {"smooth": None}, "smooth"),
        (FocalLoss, {"alpha": 2.0}, "alpha"),
        (FocalLoss, {"alpha": [0.1, 0.9]}, "alpha"),
        (FocalLoss, {"gamma": -1}, "gamma"),
        (MultiClassFocalLoss, {"alpha": None}, "alpha"),
        (MultiClassFocalLoss, {"alpha": -1.0}, "alpha"),
        (MultiClassFocalLoss, {"gamma": "2"}, "gamma"),
        (OhemCrossEntropyLoss, {"thresh": 1.2}, "thresh"),
        (OhemCrossEntropyLoss, {"min_kept": 0.5}, "min_kept"),
        (OhemCrossEntropyLoss, {"min_kept": -1}, "min_kept"),
    ],
)
def test_bad_settings(cls, settings, text):
    with pytest.raises((TypeError, ValueError), match=text):
        cls(**settings)


@pytest.mark.parametrize("cls", [CrossEntropyLoss, DiceLoss, OhemCrossEntropyLoss])
def test_auto_weights(cls):
    loss = cls(weight="auto")
    assert loss.needs_class_weights
    with pytest.raises(UserError, match="'auto' has not been resolved"):
        loss(LOGITS, LABEL)
    weights = class_weights_from_counts([4, 2, 1])
    loss.set_class_weights(weights)
    assert not loss.needs_class_weights
    assert float(loss(LOGITS, LABEL)) == float(cls(weight=weights)(LOGITS, LABEL))
    assert loss.state_dict() == {}


@pytest.mark.parametrize("cls", [CrossEntropyLoss, DiceLoss, OhemCrossEntropyLoss])
def test_number_of_weights(cls):
    with pytest.raises(UserError, match="weight has 2 numbers, but the logits have 3"):
        cls(weight=[1.0, 1.0])(LOGITS, LABEL)


@pytest.mark.parametrize("kind", [list, tuple, np.array, paddle.to_tensor])
def test_kinds_of_weights(kind):
    assert CrossEntropyLoss(kind([1.0, 2.0, 3.0])).weight.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [[1]], [float("nan")]])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        class_weights_from_counts(counts)


def test_mixed_loss_gives_the_weighted_parts():
    parts = [CrossEntropyLoss(), LovaszSoftmaxLoss(), CrossEntropyLoss(label_smoothing=0.1)]
    mixed = MixedLoss(parts, [0.8, 0.2, 1])
    assert mixed.names == ["CrossEntropyLoss", "LovaszSoftmaxLoss", "CrossEntropyLoss_2"]
    logits = paddle.randn([2, 3, 12, 12])
    found = [float(value) for value in mixed(logits, LABEL)]
    expected = [float(p(logits, LABEL)) * k for p, k in zip(parts, [0.8, 0.2, 1])]
    assert found == pytest.approx(expected, rel=1e-6)


def test_void_stays_void_for_the_losses_after_dice():
    """PaddleSeg's Dice loss overwrites the label, so the next loss sees void as class 0."""
    label = LABEL.clone()
    label[:, :6] = 255
    logits = paddle.randn([2, 3, 12, 12])
    found = MixedLoss([DiceLoss(), CrossEntropyLoss()], [1, 1])(logits, label)[1]
    assert float(found) == float(CrossEntropyLoss()(logits, label))


@pytest.mark.parametrize(
    ("parts", "coef", "error"),
    [
        (CrossEntropyLoss(), [1], TypeError),
        ([CrossEntropyLoss()], 1, TypeError),
        ([CrossEntropyLoss()], [1, 2], ValueError),
        ([], [], ValueError),
        ([abs], [1], TypeError),
        ([CrossEntropyLoss()], ["1"], TypeError),
        ([CrossEntropyLoss()], [True], TypeError),
        ([CrossEntropyLoss()], [float("inf")], ValueError),
    ],
)
def test_bad_mixes(parts, coef, error):
    with pytest.raises(error, match="MixedLoss"):
        MixedLoss(parts, coef)


def test_all_are_registered():
    for name in losses.__all__:
        if name.endswith("Loss"):
            assert registry.LOSSES[name] is getattr(losses, name)


def test_positions_are_paddlesegs():
    ce = CrossEntropyLoss(None, 7, 0.5, False, "NHWC")
    assert (ce.ignore_index, ce.top_k_percent_pixels, ce.avg_non_ignore) == (7, 0.5, False)
    assert ce.data_format == "NHWC"
    assert LovaszSoftmaxLoss(7, "all").ignore_index == 7
    assert DiceLoss(None, 7, 0.5).smooth == 0.5
    assert FocalLoss(0.5, 1.0, 7).ignore_index == 7
    assert OhemCrossEntropyLoss(0.5, 10, 7, [1.0]).ignore_index == 7
    assert RMILoss(4, 2, 1, 2, 2, 0.5, 7).ignore_index == 7

# SPDX-License-Identifier: Apache-2.0
"""The form of each loss that a GPU takes, run on the CPU: equal to the CPU's own, never reading a
tensor on the host, in little memory. And labels of every integer type.

Both forms sum the same float32 terms in another order: values agree to 1e-5 relative, gradients to
1e-5 of their largest entry (Lovasz 2e-4, as in test_lovasz.py: its steps are quotients of sums).
"""

import numpy as np
import paddle
import pytest
from paddle.base import core

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
from paddleseg_deeplab.models.losses.lovasz import value_and_grad_paddle

VOID = 255
C = 6
WEIGHT = [0.5, 2.0, 1.0, 0.25, 1.5, 0.75]
LOSSES = {
    "ce": CrossEntropyLoss,
    "ce weights": lambda **k: CrossEntropyLoss(WEIGHT, **k),
    "ce smooth": lambda **k: CrossEntropyLoss(label_smoothing=0.1, **k),
    "ce top": lambda **k: CrossEntropyLoss(top_k_percent_pixels=0.3, **k),
    "ce top one pixel": lambda **k: CrossEntropyLoss(top_k_percent_pixels=1e-6, **k),
    "ce top weights": lambda **k: CrossEntropyLoss(WEIGHT, top_k_percent_pixels=0.3, **k),
    "ce top all pixels": lambda **k: CrossEntropyLoss(
        top_k_percent_pixels=0.9, avg_non_ignore=False, **k
    ),
    "ohem": lambda **k: OhemCrossEntropyLoss(min_kept=20, **k),
    "ohem raised": lambda **k: OhemCrossEntropyLoss(0.01, 20, weight=WEIGHT, **k),
    "ohem none at least": lambda **k: OhemCrossEntropyLoss(min_kept=0, **k),
    "ohem more than there are": lambda **k: OhemCrossEntropyLoss(0.01, 10**6, **k),
    "multi focal": lambda **k: MultiClassFocalLoss(WEIGHT, 0.5, **k),
    "focal": FocalLoss,
    "dice": lambda **k: DiceLoss(WEIGHT, **k),
    "lovasz": LovaszSoftmaxLoss,
    "lovasz all": lambda **k: LovaszSoftmaxLoss(classes="all", **k),
    "lovasz list": lambda **k: LovaszSoftmaxLoss(classes=[0, 4, 5], **k),
    "lovasz one": lambda **k: LovaszSoftmaxLoss(classes=[2], **k),
    "lovasz images": lambda **k: LovaszSoftmaxLoss(per_image=True, **k),
    "rmi": lambda **k: RMILoss(C, **k),
    "mixed": lambda **k: MixedLoss([CrossEntropyLoss(**k), LovaszSoftmaxLoss(**k)], [0.8, 0.2]),
}
ALL = pytest.mark.parametrize("name", LOSSES)
READS = ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__")
READS += ("__array__", "__dlpack__")


@pytest.fixture
def on_device(monkeypatch):
    """Call it to take the device's form."""
    return lambda: monkeypatch.setattr(base, "NUMPY_ON_CPU", False)


def batch(void="some", ties=False, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3, C, 16, 18)) * 3
    if ties:
        z = np.round(z / 3)
    y = rng.integers(0, C, (3, 16, 18))
    if void == "some":
        y[rng.random(y.shape) < 0.3] = VOID
    elif void == "an image":
        y[1] = VOID
    elif void == "all but one":
        y[...] = VOID
        y[2, 3, 4] = 1
    elif void == "all":
        y[...] = VOID
    return z.astype("float32"), y


def run(loss, z, y):
    logits = paddle.to_tensor(z, stop_gradient=False)
    label = paddle.to_tensor(y)
    value = loss(logits, label)
    value = sum(value) if isinstance(value, list) else value
    value.backward()
    return value, logits.grad


@ALL
@pytest.mark.parametrize("void", ["none", "some", "an image", "all but one", "all"])
@pytest.mark.parametrize(
    ("ties", "data_format"), [(False, "NCHW"), (True, "NCHW"), (False, "NHWC")]
)
def test_the_device_form_equals_the_cpu_form(name, void, ties, data_format, on_device):
    z, y = batch(void, ties)
    if data_format == "NHWC":
        z = np.ascontiguousarray(z.transpose(0, 2, 3, 1))
    loss = LOSSES[name](data_format=data_format)
    value, grad = (x.numpy() for x in run(loss, z, y))
    on_device()
    other, slope = (x.numpy() for x in run(loss, z, y))
    assert other == pytest.approx(value, rel=1e-5, abs=1e-6)
    sorts = "lovasz" in name or name == "mixed"
    if not (ties and sorts):  # of equal errors any order is right, and each has its own gradient
        atol = (2e-4 if sorts else 1e-5) * np.abs(grad).max()
        np.testing.assert_allclose(slope, grad, atol=atol + 1e-12)


@ALL
@pytest.mark.parametrize("void", ["some", "all"])
def test_nothing_is_read_on_the_host(name, void, on_device, monkeypatch):
    z, y = batch(void)
    loss = LOSSES[name]()
    run(loss, z, y)
    on_device()
    reads = []

    def counted(method, real):
        return lambda *args, **more: (reads.append(method), real(*args, **more))[1]

    for method in READS:
        monkeypatch.setattr(paddle.Tensor, method, counted(method, getattr(paddle.Tensor, method)))
    for function in ("nonzero", "masked_select", "unique"):  # their shapes depend on values
        monkeypatch.setattr(paddle, function, counted(function, getattr(paddle, function)))
    logits = paddle.to_tensor(z, stop_gradient=False)
    label = paddle.to_tensor(y)
    reads.clear()
    value = loss(logits, label)
    value = sum(value) if isinstance(value, list) else value
    value.backward()
    for part in getattr(loss, "losses", [loss]):
        part.batch_weight(label)
    assert reads == []
    monkeypatch.setattr(base, "NUMPY_ON_CPU", True)
    loss(logits, label)
    assert reads  # the CPU's own form looks at the label, and the counter counts


@ALL
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "int16", "int32"])
@pytest.mark.parametrize("ignore_index", [255, 300, 3])
def test_integer_types_of_the_label(name, on_cpu, kind, ignore_index, monkeypatch):
    monkeypatch.setattr(base, "NUMPY_ON_CPU", on_cpu)
    z, y = batch()
    y[y == VOID] = ignore_index if ignore_index < np.iinfo(kind).max else 0
    loss = LOSSES[name](ignore_index=ignore_index)
    value, grad = (x.numpy() for x in run(loss, z, y))
    other, slope = (x.numpy() for x in run(loss, z, y.astype(kind)))
    assert other == value
    np.testing.assert_array_equal(slope, grad)
    for part in getattr(loss, "losses", [loss]):
        weights = [float(part.batch_weight(paddle.to_tensor(x))) for x in (y, y.astype(kind))]
        assert weights[0] == weights[1]


@pytest.mark.parametrize("ignore_index", [300, -1, 256 + 44])
def test_a_narrow_label_is_not_compared_with_a_number_that_wraps(ignore_index):
    """300 is 44, and -1 is 255, in eight bits."""
    y = np.full((1, 4, 4), 44, dtype="uint8")
    y[0, 0] = 1
    z = np.random.default_rng(0).normal(size=(1, 45, 4, 4)).astype("float32")
    loss = CrossEntropyLoss(ignore_index=ignore_index)
    assert float(loss.batch_weight(paddle.to_tensor(y))) == 16
    plain = CrossEntropyLoss()
    assert float(run(loss, z, y)[0]) == float(run(plain, z, y.astype("int64"))[0])


def test_tied_pixels_at_the_end_of_the_share_count_alike(on_device):
    """Ten equal losses, three to be chosen, two class weights: the mean over all ten."""
    y = np.arange(10).reshape(1, 1, 10) % 2
    z = np.zeros((1, 2, 1, 10), "float32")
    loss = CrossEntropyLoss([1.0, 3.0], top_k_percent_pixels=0.3)
    for _ in range(2):
        value, grad = run(loss, z, y)
        assert float(value) == pytest.approx(np.log(2), rel=1e-6)
        assert np.unique(np.abs(grad.numpy()).round(7)).size == 2
        on_device()


def test_lovasz_needs_little_memory_besides_its_gradient():
    """Bytes a pixel at the peak: 4 a class for the gradient and 4 a class for a copy of it, and at
    most 300 for the four classes at work. All classes at once took 60 a class."""
    classes, pixels = 100, 20000
    rng = np.random.default_rng(0)
    logits = paddle.to_tensor(rng.normal(size=(1, classes, pixels)).astype("float32"))
    label = paddle.to_tensor(rng.integers(0, classes, (1, pixels)))
    valid = label != VOID
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    result = value_and_grad_paddle(logits, label, valid, "present")
    peak = core.host_memory_stat_peak_value("Allocated", 0) - before
    assert result[1].shape == logits.shape
    assert 4 * classes * pixels <= peak <= (8 * classes + 300) * pixels

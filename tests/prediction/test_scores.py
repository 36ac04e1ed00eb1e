# SPDX-License-Identifier: Apache-2.0
"""Probabilities and classes in blocks, windows in batches: equal to plain loops.

Tolerance 1e-5 on probabilities and logits of order one: the same float32 sums in another order.
"""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.prediction import scores as prediction_scores
from paddleseg_deeplab.prediction.batching import automatic_batch, equal_size_batches, peek
from paddleseg_deeplab.prediction.scores import add_probabilities, all_finite, best_classes

TOL = 1e-5


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain_resize(planes, height, width):
    """Bilinear with half-pixel centres, from its definition, in float64."""
    for axis, size in ((1, height), (2, width)):
        source = planes.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, source - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        planes = planes.take(low, axis) * (1 - share) + planes.take(high, axis) * share
    return planes


@pytest.mark.parametrize("size", [(9, 13), (5, 7), (18, 26), (9, 26), (4, 13), (1, 1), (40, 3)])
@pytest.mark.parametrize("axes", [[], [3], [2], [3, 2]])
@pytest.mark.parametrize("block", [1, 1 << 18])
def test_probabilities(monkeypatch, size, axes, block):
    monkeypatch.setattr(prediction_scores, "_BLOCK", block)
    monkeypatch.setattr(prediction_scores, "thread_count", lambda: 3)
    logits, total = numbers(4, *size), np.abs(numbers(4, 9, 13, seed=1))
    before = logits.copy()
    scores = plain_resize(logits.astype(np.float64), 9, 13)
    scores = np.flip(scores, [axis - 1 for axis in axes])
    power = np.exp(scores)
    expected = total + power / power.sum(0) / 5
    add_probabilities(total, logits, axes, 5)
    np.testing.assert_allclose(total, expected, atol=TOL)
    np.testing.assert_array_equal(logits, before)


def test_large_logits_do_not_overflow():
    total = np.zeros((2, 1, 2), np.float32)
    add_probabilities(total, np.array([[[500.0, -500]], [[-500, 500]]], np.float32), [], 1)
    np.testing.assert_array_equal(total, [[[1, 0]], [[0, 1]]])


@pytest.mark.parametrize("classes", [1, 2, 19, 300])
@pytest.mark.parametrize("pixels", [7, 1 << 15])
def test_best_classes(monkeypatch, classes, pixels):
    monkeypatch.setattr(prediction_scores, "_PIXELS", pixels)
    scores = np.round(numbers(classes, 11, 13), 1)  # many tie
    got = best_classes(scores)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, scores.argmax(0))
    np.testing.assert_array_equal(best_classes(scores[:, 2:9, 3:]), scores.argmax(0)[2:9, 3:])


@pytest.mark.parametrize(
    ("values", "good"),
    [([0, -1], True), ([3e38, 3e38], True), ([0, np.nan], False), ([np.inf, -np.inf], False)],
)
def test_all_finite(values, good):
    """A sum that overflows says nothing yet."""
    assert all_finite(np.array(values, np.float32)) is good


class Blur(nn.Layer):
    """Logits that depend on a pixel's surroundings and on the window's edge."""

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, 4, 5, padding=2)
        self.batches = []

    def forward(self, x):
        self.batches.append(x.shape[0])
        return [self.conv(x)]


@pytest.mark.parametrize("on_host", [True, False])
def test_windows_equal_a_plain_loop(on_host):
    model = Blur()
    model.eval()
    images, (height, width) = numbers(2, 3, 50, 70), (24, 32)
    total, count = np.zeros((2, 4, 50, 70)), np.zeros((50, 70))
    with paddle.no_grad():
        for y in [0, 16, 26]:
            for x in [0, 20, 38]:
                window = paddle.to_tensor(images[:, :, y : y + height, x : x + width])
                total[:, :, y : y + height, x : x + width] += model(window)[0].numpy()
                count[y : y + height, x : x + width] += 1
        model.batches.clear()
        given = images if on_host else paddle.to_tensor(images)
        got = infer.slide_logits(model, given, (32, 24), (20, 16))
    np.testing.assert_allclose(got, total / count, atol=TOL)
    # Nine windows of two images, at most eight pictures at once.
    assert model.batches == [8, 8, 2]


@pytest.mark.parametrize("scales", [1.0, [0.5, 1.0, 1.75], [2.0]])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_host_and_device_agree(monkeypatch, scales, flips):
    model = Blur()
    model.eval()
    images = numbers(2, 3, 20, 28)
    with paddle.no_grad():
        on_host = infer.aug_probabilities(model, images, scales, *flips)
        # What a GPU would do, in Paddle's operators.
        monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
        on_device = infer.aug_probabilities(model, paddle.to_tensor(images), scales, *flips)
    assert isinstance(on_host, np.ndarray)
    assert isinstance(on_device, paddle.Tensor)
    np.testing.assert_allclose(on_host, on_device.numpy(), atol=TOL)
    np.testing.assert_allclose(on_host.sum(1), 1, atol=TOL)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), 8),
        ((128, 128), 8),
        ((180, 240), 3),
        ((256, 256), 2),
        ((360, 480), 1),
        ((1024, 2048), 1),
    ],
)
def test_automatic_batch(size, expected):
    assert automatic_batch(size) == expected
    samples = [{"i": i, "img": np.zeros((3, *size), np.float32)} for i in range(9)]
    groups = [[s["i"] for s in group] for group, _ in equal_size_batches(samples, None)]
    assert [i for group in groups for i in group] == list(range(9))
    assert max(map(len, groups)) == expected


def test_automatic_batches_of_many_sizes_wait_for_few():
    samples = [{"img": np.zeros((1, 4, 4 + i), np.float32)} for i in range(40)]
    drawn = []
    feed = (drawn.append(1) or s for s in samples)
    assert next(equal_size_batches(feed, None))[1].shape == (1, 1, 4, 4)
    assert len(drawn) == 16


def test_peek():
    first, items = peek(iter("abc"))
    assert (first, "".join(items)) == ("a", "abc")
    first, items = peek([])
    assert first is None
    assert not list(items)

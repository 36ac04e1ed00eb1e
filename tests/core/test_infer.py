# SPDX-License-Identifier: Apache-2.0
"""Inference: windows, scales and flips against closed forms, on networks of a few weights.

Tolerance 1e-5 on logits and probabilities: the same float32 sums in another order.
"""

import time

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.prediction.batching import equal_size_batches, read_ahead
from paddleseg_deeplab.utils.errors import UserError

TOL = 1e-5


class Pointwise(nn.Layer):
    """Logits of a pixel from that pixel alone: any window gives the same."""

    def __init__(self, classes=3, data_format="NCHW"):
        super().__init__()
        paddle.seed(0)
        self.data_format = data_format
        self.conv = nn.Conv2D(3, classes, 1, data_format=data_format)
        self.sizes = []
        self.images = 0

    def forward(self, x):
        spatial = x.shape[2:] if self.data_format == "NCHW" else x.shape[1:3]
        self.sizes.append(tuple(spatial))
        self.images += x.shape[0]
        return [self.conv(x)]


class Position(nn.Layer):
    """Logits that depend on the pixel's place in the window: one class counts columns."""

    def forward(self, x):
        n, _, h, w = x.shape
        columns = paddle.arange(w, dtype="float32").expand([n, 1, h, w])
        return [paddle.concat([columns, paddle.zeros_like(columns)], axis=1)]


def image(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


@pytest.mark.parametrize(
    ("size", "crop", "stride", "expected"),
    [
        (10, 4, 3, [0, 3, 6]),
        (10, 4, 4, [0, 4, 6]),
        (10, 5, 5, [0, 5]),
        (4, 4, 2, [0]),
        (3, 4, 2, [0]),
        (5, 4, 4, [0, 1]),
        (9, 1, 1, list(range(9))),
    ],
)
def test_window_starts(size, crop, stride, expected):
    starts = infer.window_starts(size, crop, stride)
    assert starts == expected
    covered = {i for s in starts for i in range(s, min(s + crop, size))}
    assert covered == set(range(size))
    assert starts[-1] + min(crop, size) == size


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((13, 17), (8, 5), (3, 4)),
        ((13, 17), (8, 8), (8, 8)),
        ((6, 20), (8, 8), (5, 5)),  # lower than the window
        ((5, 5), (16, 16), (9, 9)),  # smaller than the window
        ((9, 12), (12, 9), (12, 9)),
    ],
)
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_sliding_window_of_a_pointwise_net_is_the_whole_image(size, crop, stride, data_format):
    model = Pointwise(data_format=data_format)
    model.eval()
    x = image(2, 3, *size)
    whole = infer.inference(model, x)
    model.sizes.clear()
    slid = infer.inference(model, x, is_slide=True, crop_size=crop, stride=stride)
    np.testing.assert_allclose(slid.numpy(), whole.numpy(), atol=TOL)
    # crop_size is (width, height), and no window is larger than it or the image.
    assert set(model.sizes) == {(min(crop[1], size[0]), min(crop[0], size[1]))}


def test_overlaps_weigh_equally():
    # Width 6, windows of 4 at 0 and 2: columns count 0..3 in each; both see columns 2 and 3.
    got = infer.inference(Position(), image(1, 3, 2, 6), None, True, (2, 2), (4, 2)).numpy()
    np.testing.assert_allclose(got[0, 0, 0], [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3])


@pytest.mark.parametrize(
    ("crop", "stride", "match"),
    [
        (None, (1, 1), "needs crop_size"),
        ((4, 4), None, "needs stride"),
        ((4, 4), (5, 4), "larger than the crop_size"),
        ((4, 0), (1, 1), "positive"),
        ((4,), (1, 1), "two positive"),
    ],
)
def test_bad_windows(crop, stride, match):
    with pytest.raises(UserError, match=match):
        infer.inference(Pointwise(), image(1, 3, 8, 8), [], True, stride, crop)


def test_labels_come_at_the_original_sizes():
    model = Pointwise()
    model.eval()
    x = image(2, 3, 8, 10)
    infos = [[("padding", (5, 7))], [("resize", (4, 20)), ("padding", (8, 9))]]
    labels, scores = infer.inference(model, x, infos)
    assert scores is None
    assert [m.shape for m in labels] == [(5, 7), (4, 20)]
    best = infer.inference(model, x).numpy().argmax(1)
    np.testing.assert_array_equal(labels[0], best[0, :5, :7])
    again, scores = infer.inference(model, x, infos, return_scores=True)
    for a, b, s in zip(labels, again, scores):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, s.argmax(0))


def test_fast_path_equals_the_path_over_scores():
    model = Pointwise()
    x, infos = image(3, 3, 9, 9), [("padding", (6, 9))]
    fast = infer.inference(model, x, infos)[0]
    slow = infer.inference(model, x, infos, return_scores=True)[0]
    slid = infer.inference(model, x, infos, True, (9, 9), (9, 9))[0]
    for a, b, c in zip(fast, slow, slid):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_trans_info_of_another_number_of_images():
    with pytest.raises(ValueError, match="3 images for 2"):
        infer.inference(Pointwise(), image(2, 3, 4, 4), [[], [], []])


def test_flips_of_an_equivariant_net_change_nothing():
    model = Pointwise()
    x = image(2, 3, 6, 7)
    expected = nn.functional.softmax(infer.inference(model, x), axis=1).numpy()
    with paddle.no_grad():
        got = infer.aug_probabilities(model, x, 1.0, True, True)
    np.testing.assert_allclose(got, expected, atol=TOL)
    assert model.images == 2 * (1 + 4)  # nothing, left-right, up-down, both


def test_flips_of_a_net_that_counts_columns():
    # Columns count from the left and, mirrored, from the right: probabilities are averaged.
    with paddle.no_grad():
        got = infer.aug_probabilities(Position(), image(1, 3, 2, 5), 1.0, True)
    sigmoid = 1 / (1 + np.exp(-np.arange(5.0)))
    np.testing.assert_allclose(got[0, 0, 0], (sigmoid + sigmoid[::-1]) / 2, atol=TOL)


def test_scales_average_probabilities_not_logits():
    class ByWidth(nn.Layer):
        """Constant logits, which depend on the width of the input."""

        logits = {4: (8.0, 0.0), 8: (0.0, 2.0), 6: (0.0, 2.5)}  # noqa: RUF012

        def forward(self, x):
            n, _, h, w = x.shape
            values = paddle.to_tensor(self.logits[w]).reshape([1, 2, 1, 1])
            return [values.expand([n, 2, h, w])]

    labels, scores = infer.aug_inference(
        ByWidth(), image(1, 3, 4, 4), [], scales=[1.0, 2.0, 1.5], return_scores=True
    )
    expected = np.mean([1 / (1 + np.exp(b - a)) for a, b in ByWidth.logits.values()])
    np.testing.assert_allclose(scores[0][0], np.full((4, 4), expected), atol=TOL)
    # Averaged logits (8 against 4.5) would choose class 0.
    assert expected < 0.5
    assert (labels[0] == 1).all()


def test_augmented_sliding_window():
    model = Pointwise()
    x = image(1, 3, 12, 12)
    with paddle.no_grad():
        whole = infer.aug_probabilities(model, x, [0.5, 1], True)
        window = {"is_slide": True, "stride": (4, 4), "crop_size": (8, 8)}
        slid = infer.aug_probabilities(model, x, [0.5, 1], True, window=window)
    np.testing.assert_allclose(slid, whole, atol=TOL)


@pytest.mark.parametrize("scales", [0, -1.0, [], [1.0, 0], "1", [True], None])
def test_bad_scales(scales):
    with pytest.raises(UserError, match="scales"):
        infer.aug_inference(Pointwise(), image(1, 3, 4, 4), [], scales=scales)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_equal_size_batches_lose_nothing(batch_size):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, (30, 2))
    samples = [{"i": i, "img": np.full((3, *hw), i, np.float64)} for i, hw in enumerate(sizes)]
    waiting, seen = 0, []

    def feed():
        nonlocal waiting
        for sample in samples:
            waiting += 1
            assert waiting <= 2 * batch_size
            yield sample

    for group, images in equal_size_batches(feed(), batch_size):
        waiting -= len(group)
        assert images.dtype == np.float32
        assert len(group) == len(images) <= batch_size
        np.testing.assert_array_equal(images[:, 0, 0, 0], [s["i"] for s in group])
        seen += [s["i"] for s in group]
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_read_ahead_keeps_order_and_errors(num_workers):
    assert list(read_ahead(lambda i: i * i, range(20), num_workers)) == [i * i for i in range(20)]

    def load(i):
        if i == 5:
            raise UserError("number 5")
        return i

    got = []
    with pytest.raises(UserError, match="number 5"):
        got.extend(read_ahead(load, range(20), num_workers))
    items = read_ahead(load, range(5), num_workers)
    assert next(items) == 0  # abandoned half way: nothing hangs
    items.close()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize(
    ("bad_write", "bad_source", "expected"),
    [
        (None, 7, "source"),
        (4, 7, "write"),
        (4, None, "write"),
        (6, 7, "write"),
        (None, 0, "source"),
    ],
)
def test_what_was_predicted_is_written(num_workers, bad_write, bad_source, expected):
    """Nothing that the source gave before it failed is lost, and the earliest error is raised."""
    written = []

    def write(i):
        time.sleep(0.002)  # slower than the source
        if i == bad_write:
            raise OSError("write")
        written.append(i)
        return i

    def source():
        for i in range(9):
            if i == bad_source:
                raise UserError("source")
            yield i

    got = []
    with pytest.raises((OSError, UserError), match=expected):
        got.extend(read_ahead(write, source(), num_workers))
    until = bad_source if bad_write is None else bad_write
    assert got == list(range(until))
    assert set(written) >= set(got)


def test_feed_refuses():
    with pytest.raises(ValueError, match="num_workers"):
        list(read_ahead(int, [1], -1))
    with pytest.raises(ValueError, match="batch_size"):
        list(equal_size_batches([], 0))

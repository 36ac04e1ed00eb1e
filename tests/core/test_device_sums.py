# SPDX-License-Identifier: Apache-2.0
"""What follows the network on a GPU, in Paddle's operators, run on a CPU.

The place is what Paddle says the device is; what the host reads of a Tensor is counted, since on a
GPU each read waits for all work before it.
"""

import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import infer, slide, stream
from paddleseg_deeplab.core.stream import NetworkSettings, predictions
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.utils.errors import UserError

READS = (
    *("numpy", "item", "tolist", "__array__", "__float__", "__int__", "__bool__", "__index__"),
    *("__str__", "__repr__", "cpu"),
)


@contextlib.contextmanager
def counted_reads():
    """A list that grows with each read of a Tensor by the host; one read counts once."""
    reads, before, inside = [], {}, []

    def watched(name, method):
        def read(self, *args, **kwargs):
            if not inside:
                reads.append(name)
            inside.append(name)
            try:
                return method(self, *args, **kwargs)
            finally:
                inside.pop()

        return read

    for name in READS:
        before[name] = getattr(paddle.Tensor, name)
        setattr(paddle.Tensor, name, watched(name, before[name]))
    try:
        yield reads
    finally:
        for name, method in before.items():
            setattr(paddle.Tensor, name, method)


@pytest.fixture
def on_a_device(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")


class Surroundings(nn.Layer):
    """Logits that depend on a pixel's surroundings and on the window's edge."""

    def __init__(self, fault=None):
        super().__init__()
        paddle.seed(0)
        self.fault = fault
        self.conv = nn.Conv2D(3, 4, 5, padding=2)
        self.eval()

    def forward(self, x):
        logits = self.conv(x) * 3
        if self.fault is not None:
            mark = nn.functional.pad(paddle.full([1, 1, 1, 1], self.fault), [3, x.shape[3] - 4, 2,
                                     x.shape[2] - 3])  # fmt: skip
            logits = paddle.concat([logits[:, :1] + mark, logits[:, 1:]], axis=1)
        return [logits]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_counter_counts():
    x = paddle.ones([2])
    with counted_reads() as reads:
        x.numpy(), float(x[0]), np.asarray(x), x.tolist(), bool(x[0] > 0), int(x[0]), x[1].item()
    assert len(reads) == 7


@pytest.mark.parametrize(
    ("count", "size", "crop", "stride"),
    [
        (1, (50, 70), (32, 24), (20, 16)),
        (2, (50, 70), (32, 24), (20, 16)),
        (3, (20, 20), (40, 40), (20, 20)),  # one window, smaller than the crop
        (1, (33, 64), (64, 9), (64, 1)),
        (9, (12, 30), (7, 12), (3, 12)),  # more images than go through at once
    ],
)
def test_windows_give_the_hosts_sums_bit_for_bit(monkeypatch, count, size, crop, stride):
    """The same float32 sums in the same order."""
    model, images = Surroundings(), paddle.to_tensor(numbers(count, 3, *size))
    with paddle.no_grad():
        expected = slide.slide_logits(model, images, crop, stride)
        assert isinstance(expected, np.ndarray)
        monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
        with counted_reads() as reads:
            got = slide.slide_logits(model, images, crop, stride)
    assert reads == []
    assert isinstance(got, paddle.Tensor)
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.usefixtures("on_a_device")
def test_large_sums_stay_in_host_memory(monkeypatch):
    model, images = Surroundings(), paddle.to_tensor(numbers(1, 3, 50, 70))
    arguments = (model, images, (32, 24), (20, 16))
    with paddle.no_grad():
        monkeypatch.setattr(slide, "_DEVICE_SUMS", 4 * 4 * 50 * 70)
        expected = slide.slide_logits(*arguments)
        assert isinstance(expected, paddle.Tensor)
        monkeypatch.setattr(slide, "_DEVICE_SUMS", 4 * 4 * 50 * 70 - 1)
        got = slide.slide_logits(*arguments)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, expected.numpy())
        # And scales go on with what windows give.
        infer.aug_inference(model, images, [], [1.0], True, False, True, (20, 16), (32, 24))


WINDOWS = {"is_slide": True, "crop_size": (32, 24), "stride": (20, 16)}
SCALES = {"scales": [0.5, 1.0, 1.5], "flip_horizontal": True, "flip_vertical": True}


@pytest.mark.parametrize(
    ("aug", "settings"),
    [
        (False, {}),
        (False, WINDOWS),
        (True, {"scales": [1.0]}),
        (True, SCALES),
        (True, {**SCALES, **WINDOWS}),
    ],
)
def test_two_reads_a_batch(monkeypatch, aug, settings):
    """Whether it is finite, and the labels; as the host's way has them, rounding apart."""
    model, images = Surroundings(), numbers(2, 3, 50, 70)
    samples = [{"img": image, "index": i, "trans_info": []} for i, image in enumerate(images)]

    how = NetworkSettings(aug=aug, **settings)

    def run():
        with paddle.no_grad():
            return [found[1] for found in predictions(model, [(samples, images)], how)]

    expected = run()
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    with counted_reads() as reads:
        got = run()
    assert reads == ["__float__", "numpy"]
    for one, other in zip(got, expected):
        # Resizing and softmax round differently: a class changes where two all but tie.
        assert (one != other).mean() < 1e-3


class Scenes:
    num_classes, ignore_index, mode = 4, 255, "val"

    def __len__(self):
        return 5

    def __getitem__(self, index):
        label = np.random.default_rng(index).integers(0, 4, (20, 28))
        return {"img": numbers(3, 20, 28, seed=index), "label": label, "trans_info": []}


def test_losses_are_read_once(monkeypatch):
    losses = {"types": [CrossEntropyLoss()], "coef": [0.7]}

    def quiet(**how):
        model = Surroundings()
        return evaluate(model, Scenes(), print_detail=False, progress=False, **how)

    expected = quiet(losses=losses).loss
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    with counted_reads() as reads:
        assert quiet(losses=losses, batch_size=2).loss == pytest.approx(expected, abs=1e-6)
    # The weights, which are looked at once; three batches, each two reads; all losses at the end.
    weights = ["numpy"] * len(Surroundings().state_dict())
    assert reads == weights + ["__float__", "numpy"] * 3 + ["tolist"]


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("settings", [{"scales": [1.0]}, SCALES, {**SCALES, **WINDOWS}])
def test_a_logit_that_is_not_finite_is_an_error(monkeypatch, device, value, settings):
    """A softmax makes 0 of -inf, which looks like any other probability."""
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    images = paddle.to_tensor(numbers(2, 3, 50, 70))
    with pytest.raises(UserError, match=r"first\.png.*NaN or infinite"):
        infer.aug_inference(
            Surroundings(value), images, [], **settings, names=["first.png", "second.png"]
        )
    infer.aug_inference(Surroundings(0.0), images, [], **settings)


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_the_image_with_the_fault_is_the_one_that_is_named(monkeypatch, device):
    monkeypatch.setattr(paddle, "get_device", lambda: device)

    class InOne(nn.Layer):
        def forward(self, x):
            return [paddle.concat([x[:, :1], x[:, 1:2].log()], axis=1)]

    images = np.full((3, 3, 8, 8), 0.5, np.float32)
    images[1, 1, 4, 4] = 0  # its logarithm is -inf
    how = {"flip_horizontal": True, "names": ["a", "b", "c"]}
    with pytest.raises(UserError, match=r"^b: "):
        infer.aug_inference(InOne(), paddle.to_tensor(images), [], [1.0, 2.0], **how)


@pytest.mark.parametrize("device", ["cpu", "gpu:0"])
def test_large_finite_logits_pass(monkeypatch, device):
    """Their sum overflows, which is no fault of theirs."""
    monkeypatch.setattr(paddle, "get_device", lambda: device)

    class Large(nn.Layer):
        def forward(self, x):
            return [paddle.concat([paddle.full_like(x[:, :2], 3e38), x[:, :1]], axis=1)]

    labels, _ = infer.aug_inference(Large(), paddle.ones([1, 3, 8, 8]), [], [1.0], True)
    assert (labels[0] == 0).all()


@pytest.mark.usefixtures("on_a_device")
def test_only_the_network_computes_in_half(monkeypatch):
    """Level O2 would cast sums and probabilities to half as well."""
    seen = {"network": [], "sums": []}
    now = []

    @contextlib.contextmanager
    def context(precision, level):
        now.append((precision, level))
        yield
        now.pop()

    class Watched(Surroundings):
        def forward(self, x):
            seen["network"].append(list(now))
            return super().forward(x)

    add = infer._add_on_device

    def watched_add(*args):
        seen["sums"].append(list(now))
        return add(*args)

    monkeypatch.setattr(stream, "precision_context", context)
    monkeypatch.setattr(infer, "_add_on_device", watched_add)
    image = numbers(1, 3, 20, 28)
    samples = [{"img": image[0], "index": 0}]
    half = {"precision": "fp16", "amp_level": "O2"}
    how = NetworkSettings(aug=True, scales=[1.0, 2.0], **WINDOWS, **half)
    with paddle.no_grad():
        list(predictions(Watched(), [(samples, image)], how))
    assert set(map(tuple, seen["network"])) == {(("fp16", "O2"),)}
    assert set(map(tuple, seen["sums"])) == {()}

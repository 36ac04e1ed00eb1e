# SPDX-License-Identifier: Apache-2.0
"""One process of several: shares of the stream, joined means, waiting, and the GPU's switches."""

import itertools
import threading

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.cli import train as train_command
from paddleseg_deeplab.core.barrier import Barrier
from paddleseg_deeplab.core.ranks import Ranks, join
from paddleseg_deeplab.core.training import determinism
from paddleseg_deeplab.core.training.data.batches import SampleStream, training_batches
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.core.training.watch.interrupt import Interrupted
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    MixedLoss,
)
from paddleseg_deeplab.models.losses import MultiClassFocalLoss
from paddleseg_deeplab.transforms import (
    Compose,
    Normalize,
    RandomDistort,
    RandomHorizontalFlip,
    RandomPaddingCrop,
)
from paddleseg_deeplab.utils.errors import NonFiniteLoss, RunStopped, UserError


class Net(nn.Layer):
    def __init__(self, stride=1):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1, stride=stride)

    def forward(self, x):
        return [self.conv(x)]


def half_void(count=4, height=6, width=8):
    """Images, and labels whose share of void grows from image to image up to all of it."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (count, height, width))
    for i, label in enumerate(labels):
        label[rng.random(label.shape) < i / (count - 1)] = 255
    return rng.standard_normal((count, 3, height, width)).astype("float32"), labels


def trained(losses, parts, stride=1, steps=3):
    """Losses of some steps, and the weights, with the batch in so many micro-batches."""
    paddle.seed(3)
    net = Net(stride)
    step = TrainStep(net, paddle.optimizer.SGD(0.5, parameters=net.parameters()), losses)
    images, labels = half_void()
    batches = [
        (paddle.to_tensor(x), paddle.to_tensor(y))
        for x, y in zip(np.split(images, parts), np.split(labels, parts))
    ]
    values = [step(batches)[0] for _ in range(steps)]
    return values, net.conv.weight.numpy()


@pytest.mark.parametrize("stride", [1, 2], ids=["full grid", "own grid"])
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(),
        CrossEntropyLoss(weight=[1.0, 3.0, 0.5, 2.0], label_smoothing=0.1),
        CrossEntropyLoss(avg_non_ignore=False),
        FocalLoss(),
        MultiClassFocalLoss(alpha=[1.0, 3.0, 0.5, 2.0]),
        DiceLoss(),
        MixedLoss([CrossEntropyLoss(), DiceLoss()], [0.7, 0.3]),
    ],
    ids=["ce", "weighted ce", "ce over all", "focal", "class focal", "dice", "mixed"],
)
def test_micro_batches_make_one_batch(loss, stride):
    losses = {"types": [loss], "coef": [1.0]}
    values, weight = trained(losses, 1, stride)
    for parts in (2, 4):
        other, other_weight = trained(losses, parts, stride)
        # float32 sums in another order, over 3 steps
        np.testing.assert_allclose(other, values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other_weight, weight, rtol=1e-5, atol=1e-6)


def test_other_losses_are_the_mean_of_the_batches():
    images, labels = half_void()
    net = Net()
    loss = LovaszSoftmaxLoss()
    step = TrainStep(
        net,
        paddle.optimizer.SGD(0.0, parameters=net.parameters()),
        {"types": [loss], "coef": [1.0]},
    )
    batches = [
        (paddle.to_tensor(images[i : i + 2]), paddle.to_tensor(labels[i : i + 2])) for i in (0, 2)
    ]
    expected = np.mean([float(loss(net(x)[0], y)) for x, y in batches])
    assert step(batches)[0] == pytest.approx(expected, rel=1e-6)


def test_all_void_everywhere_costs_nothing():
    images, labels = half_void()
    labels[:] = 255
    net = Net()
    before = net.conv.weight.numpy()
    step = TrainStep(
        net,
        paddle.optimizer.SGD(0.5, parameters=net.parameters()),
        {"types": [CrossEntropyLoss()], "coef": [1.0]},
    )
    batch = (paddle.to_tensor(images), paddle.to_tensor(labels))
    assert step([batch, batch])[0] == 0
    np.testing.assert_array_equal(net.conv.weight.numpy(), before)


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 2), (4, 1), (3, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_stream_of_one_process(ranks, batch_size, shuffle):
    def keys(batch_size, **place):
        return list(SampleStream(7, 5, shuffle).batches(batch_size, 0, 6, origin=3, **place))

    whole = keys(ranks * batch_size)
    shares = [keys(batch_size, rank=r, ranks=ranks) for r in range(ranks)]
    assert [[*itertools.chain(*parts)] for parts in zip(*shares)] == whole


def test_one_rank_exchanges_nothing():
    ranks = Ranks()
    assert ranks.is_main
    assert ranks.sum([1.5, 2.0]).tolist() == [1.5, 2.0]
    assert ranks.on_host
    assert ranks.sum_in_place(paddle.ones([2])) is None
    assert ranks.gather("a") == ["a"]
    assert ranks.agree(values=[4.0]).tolist() == [4.0]
    error = UserError("mine")
    with pytest.raises(UserError) as caught, ranks.guard():
        raise error
    assert caught.value is error
    assert not hasattr(error, "silent")
    assert join().size == 1


class WithGathered(Ranks):
    """A rank of three whose exchanges are made up."""

    def __init__(self, rank, gathered):
        super().__init__(rank, 3)
        self.gathered = gathered

    def sum(self, values):
        return np.asarray(values, np.float64) + 1

    def gather(self, value):
        return self.gathered


@pytest.mark.parametrize(
    ("description", "kind", "text"),
    [
        ((UserError, "x.png is broken"), UserError, "process 1 of 3: x.png is broken"),
        ((NonFiniteLoss, "nan"), NonFiniteLoss, "process 1 of 3: nan"),
        ((RunStopped, "KeyError: 3"), RunStopped, "process 1 of 3: KeyError: 3"),
        ((Interrupted, 15), Interrupted, "SIGTERM"),
    ],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_the_other_ranks_raise_what_one_did(description, kind, text, rank):
    with pytest.raises(kind, match=text) as caught:
        WithGathered(rank, [None, description, None]).agree()
    # One of them speaks.
    assert caught.value.silent == (rank != 0)


def test_the_first_of_several_errors_counts():
    own = UserError("mine")
    gathered = [None, (UserError, "one"), (UserError, "mine")]
    with pytest.raises(UserError, match="process 1 of 3: one"):
        WithGathered(2, gathered).agree(own)
    with pytest.raises(UserError, match=r"^mine$"):
        WithGathered(1, [None, (UserError, "mine"), None]).agree(own)


class Store(dict):
    """What Paddle's store does, in one process."""

    def __init__(self):
        super().__init__()
        self._set = threading.Event()

    def set(self, key, value):
        self[key] = value.encode()
        self._set.set()

    def get(self, key):
        self._set.wait()
        return self[key]


@pytest.fixture
def barriers():
    """Makes three connected barriers."""

    def make(patience):
        store, out = Store(), {}

        def connect(rank):
            out[rank] = Barrier(rank, 3, store, "127.0.0.1", patience)

        threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made.extend(out.values())
        return [out[rank] for rank in range(3)]

    made = []
    yield make
    for barrier in made:
        for peer in barrier._peers.values():
            peer.close()


def test_nobody_passes_the_barrier_alone(barriers):
    through = []

    def go(barrier):
        for number in range(20):
            barrier.wait()
            through.append(number)

    three = barriers(20.0)
    threads = [threading.Thread(target=go, args=(barrier,)) for barrier in three[1:]]
    for thread in threads:
        thread.start()
    assert not through  # the first one has not come
    go(three[0])
    for thread in threads:
        thread.join()
    assert sorted(through) == sorted(list(range(20)) * 3)


def test_a_rank_that_is_gone_or_late_is_named(barriers):
    first, second, third = barriers(0.2)
    for peer in second._peers.values():
        peer.close()
    with pytest.raises(RunStopped, match="process 1 of 3 is gone"):
        first.wait()
    with pytest.raises(RunStopped, match=r"waited 0 s for process 0\. .*PADDLE_PG_TIMEOUT"):
        third.wait()


def test_one_gpu_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="--device gpu:1 names one device for 2 processes"):
        join("gpu:1")


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_do_not_depend_on_workers(workers):
    transforms = [
        RandomPaddingCrop((16, 12)),
        RandomHorizontalFlip(),
        RandomDistort(brightness_range=0.4),
        Normalize(),
    ]
    data = Shapes(
        Compose(transforms).transforms,
        mode="train",
        num_classes=3,
        image_size=(24, 20),
        num_samples=5,
    )

    def read(count):
        return [
            (keys, x.numpy(), y.numpy())
            for keys, x, y in training_batches(data, 2, range(6), seed=4, num_workers=count)
        ]

    for one, other in zip(read(0), read(workers)):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_deterministic_reaches_paddle(monkeypatch, caplog):
    seen = {}
    monkeypatch.setattr(paddle, "set_flags", seen.update)
    for name in determinism.GPU_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_ALGO", "Tree")  # the user's
    done = determinism.make_deterministic(on_gpu=True)
    assert seen["FLAGS_cudnn_deterministic"] is True
    assert seen["FLAGS_embedding_deterministic"] == 1
    assert seen["FLAGS_cudnn_exhaustive_search"] is False
    assert done["CUBLAS_WORKSPACE_CONFIG"] == determinism.os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert done["NCCL_ALGO"] == "Tree"
    assert "bilinear resize" in caplog.text
    assert "NHWC" in caplog.text
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_deterministic_says_what_it_means_on_a_cpu(monkeypatch, caplog):
    monkeypatch.setattr(paddle, "set_flags", pytest.fail)
    with caplog.at_level("INFO"):
        assert determinism.make_deterministic(on_gpu=False) == {}
    assert "nothing to set on a CPU" in caplog.text


def test_the_flag_sets_it_before_the_device_is_used(monkeypatch, tmp_path):
    order = []

    def stop(name):
        order.append("device")
        raise UserError("enough")

    monkeypatch.setattr(determinism, "make_deterministic", lambda gpu: order.append("switches"))
    monkeypatch.setattr(train_command, "select_device", stop)
    monkeypatch.setattr(train_command.common, "read_config", lambda *a, **k: None)
    assert train_command.main(["--config", "x.yml", "--deterministic"]) == 2
    assert order == ["switches", "device"]

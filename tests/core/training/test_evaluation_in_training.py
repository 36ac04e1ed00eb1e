# SPDX-License-Identifier: Apache-2.0
"""Evaluation within a training: it reads ahead, stops when asked to, and leaves nothing behind."""

import os
import signal
import threading

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.training.watch.interrupt import (
    Interrupted,
    StoppableDataset,
    StopRequest,
)
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.prediction.batching import automatic_workers, workers_for
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.transforms.declared import declares
from paddleseg_deeplab.utils.errors import UserError


def shapes(kind=Shapes, count=6, mode="val"):
    return kind(Compose([]), mode=mode, num_classes=3, image_size=(32, 24), num_samples=count)


class Noting(Shapes):
    """Notes the thread that reads; ``act`` is called with each index first."""

    thread_safe = draws_from_rng = True
    act = staticmethod(lambda index: None)

    def __getitem__(self, key):
        self.__dict__.setdefault("threads", set()).add(threading.current_thread().name)
        self.act(key[0] if isinstance(key, tuple) else key)
        return super().__getitem__(key)


def reading_threads():
    """Those of `read_ahead`; the processes that read for training have helpers of their own."""
    return [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


class Foreign(Shapes):
    """Written by a user."""


class Net(nn.Layer):
    num_classes = 3

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, 3, 3, padding=1)

    def forward(self, x):
        return [self.conv(x)]


def quiet(data, **settings):
    return evaluate(Net(), data, print_detail=False, progress=False, **settings)


def test_the_wrapped_dataset_counts():
    stop = StopRequest()
    for name in ("thread_safe", "draws_from_rng"):
        assert declares(StoppableDataset(shapes(), stop), name)
        assert declares(StoppableDataset(StoppableDataset(shapes(), stop), stop), name)
    assert workers_for(StoppableDataset(shapes(), stop)) == automatic_workers() > 0
    foreign = StoppableDataset(shapes(Foreign), stop)
    for name in ("thread_safe", "draws_from_rng"):
        assert not declares(foreign, name)
        assert not declares(StoppableDataset(foreign, stop), name)
    assert workers_for(foreign) == 0


def test_reading_ahead_changes_no_figure():
    alone, threads = shapes(Noting), shapes(Noting)
    stop = StopRequest()
    one = quiet(StoppableDataset(alone, stop), num_workers=0)
    two = quiet(StoppableDataset(threads, stop), num_workers=None)
    assert one.records == two.records
    np.testing.assert_array_equal(one.confusion.matrix, two.confusion.matrix)
    assert alone.threads == {threading.current_thread().name}
    assert threading.current_thread().name not in threads.threads


def in_training(tmp_path, val, **settings):
    model = Net()
    return train(
        *(model, shapes(mode="train"), val),
        optimizer=paddle.optimizer.SGD(0.01, parameters=model.parameters()),
        losses={"types": [CrossEntropyLoss()], "coef": [1.0]},
        save_dir=str(tmp_path),
        test_config={"num_workers": None},
        **settings,
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_threads_beside_reading_processes(tmp_path, num_workers):
    """Processes are forked before the first evaluation's threads, and outlive them."""
    val = shapes(Noting)
    progress = in_training(tmp_path, val, iters=4, save_interval=1, num_workers=num_workers)
    assert progress.iteration == 4
    assert progress.best_miou >= 0
    assert all(name.startswith("ThreadPoolExecutor") for name in val.threads)
    assert not reading_threads()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_signal_while_reading_ahead(tmp_path, num_workers):
    val = shapes(Noting, 40)
    read = []

    def act(index):
        read.append(index)
        if len(read) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    val.act = act
    with pytest.raises(Interrupted):
        in_training(tmp_path, val, iters=4, save_interval=2, num_workers=num_workers)
    assert len(read) < 40
    assert not reading_threads()
    assert (tmp_path / "iter_2" / "manifest.json").is_file()
    # What was missed is made up for.
    val.act = lambda index: None
    resumed = in_training(
        *(tmp_path, val), iters=4, save_interval=2, num_workers=num_workers, resume_model="auto"
    )
    assert resumed.iteration == 4


def test_an_error_leaves_no_reading_thread():
    class Broken(Net):
        def forward(self, x):
            raise UserError("the network refuses")

    with pytest.raises(UserError, match="refuses") as caught:
        evaluate(Broken(), shapes(count=40), num_workers=2, progress=False)
    assert caught.value.__traceback__ is not None  # which holds the frames
    assert not reading_threads()


@pytest.mark.parametrize("fails", [False, True])
def test_the_devices_cache_is_emptied_once(monkeypatch, fails):
    emptied = []
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "empty_cache", lambda: emptied.append(1))
    if fails:
        data = shapes(Noting)
        data.act = lambda index: (_ for _ in ()).throw(UserError("broken"))
        with pytest.raises(UserError, match="broken"):
            quiet(data)
    else:
        quiet(shapes())
    assert emptied == [1]

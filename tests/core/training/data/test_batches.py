# SPDX-License-Identifier: Apache-2.0
"""The order of the training data, and samples on their way into batches."""

import os
import random
import signal
import sys
import threading
import types

import cv2
import numpy as np
import paddle
import pytest

from paddleseg_deeplab.core.training.data.batches import (
    SampleStream,
    _collate,
    _Upload,
    reader_failure,
    sample_names,
    training_batches,
)
from paddleseg_deeplab.datasets import Dataset, Shapes
from paddleseg_deeplab.transforms import (
    Compose,
    Normalize,
    RandomDistort,
    RandomHorizontalFlip,
    RandomPaddingCrop,
)
from paddleseg_deeplab.transforms.declared import declares
from paddleseg_deeplab.utils.errors import RunStopped, UserError
from paddleseg_deeplab.utils.visualize import save_image


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (5, 0), (17, 3)])
def test_each_epoch_is_a_permutation(size, seed):
    stream = SampleStream(size, seed)
    epochs = [[stream.key(e * size + i) for i in range(size)] for e in range(4)]
    for number, keys in enumerate(epochs):
        assert sorted(index for index, _ in keys) == list(range(size))
        assert {epoch for _, epoch in keys} == {number}
    if size > 2:  # the chance that four orders of 5 are equal is one in a million
        assert len({tuple(index for index, _ in keys) for keys in epochs}) > 1


def test_position_alone_decides():
    keys = list(SampleStream(7, 1).batches(3, 0, 20))
    for start in (0, 1, 7, 13, 20):
        assert list(SampleStream(7, 1).batches(3, start, 20)) == keys[start:]
    backwards = SampleStream(7, 1)
    assert [backwards.key(p) for p in range(59, -1, -1)] == [k for b in keys for k in b][::-1]
    assert list(SampleStream(7, 2).batches(3, 0, 20)) != keys


def test_small_set_fills_a_batch_and_shuffle_false_keeps_order():
    batch = next(SampleStream(2, 0).batches(5, 0, 1))
    assert [epoch for _, epoch in batch] == [0, 0, 1, 1, 2]
    ordered = list(SampleStream(3, 0, shuffle=False).batches(2, 0, 3))
    assert ordered == [[(0, 0), (1, 0)], [(2, 0), (0, 1)], [(1, 1), (2, 1)]]


def read(dataset, stop=4, start=0, batch_size=3, **settings):
    settings = {"seed": 0, **settings}
    return [
        (keys, images.numpy(), labels.numpy())
        for keys, images, labels in training_batches(
            dataset, batch_size, range(start, stop), **settings
        )
    ]


def assert_equal_batches(one, other):
    assert len(one) == len(other) > 0
    for (keys, images, labels), (keys2, images2, labels2) in zip(one, other):
        assert keys == keys2
        np.testing.assert_array_equal(images, images2)
        np.testing.assert_array_equal(labels, labels2)


def shapes(**settings):
    transforms = [
        RandomPaddingCrop((24, 20)),
        RandomHorizontalFlip(),
        RandomDistort(0.4, 0.4, 0.4),
        Normalize(),
    ]
    return Shapes(transforms, image_size=(32, 32), num_samples=5, **settings)


def test_batches_do_not_depend_on_workers_or_start():
    own = read(shapes())
    assert_equal_batches(own, read(shapes(), num_workers=2))
    assert_equal_batches(own[2:], read(shapes(), start=2))
    assert own[0][1].dtype == np.float32
    assert own[0][1].shape == (3, 3, 20, 24)
    assert own[0][2].dtype == np.int64
    assert own[0][2].shape == (3, 20, 24)


def test_augmentation_differs_by_epoch_and_by_the_run_s_seed():
    def images(epoch, seed):
        [batch] = read(shapes(), epoch + 1, epoch, batch_size=5, seed=seed, shuffle=False)
        return batch[1]

    first = images(0, 0)
    np.testing.assert_array_equal(first, images(0, 0))
    assert (first != images(1, 0)).any()
    assert (first != images(0, 1)).any()


class Foreign:
    """As PaddleSeg's datasets: a plain index, a label [1, H, W], global randomness."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = np.full((3, 4, 4), random.random() + np.random.rand(), np.float32)
        return {"img": image, "label": np.full((1, 4, 4), index, np.uint8)}


def test_datasets_with_global_randomness_are_repeatable_too():
    own = read(Foreign(), batch_size=2)
    assert_equal_batches(own, read(Foreign(), batch_size=2, num_workers=2))
    values = {float(image[0, 0, 0]) for _, images, _ in own for image in images}
    assert len(values) == 8  # no two samples share their random numbers
    assert own[0][2].shape == (2, 4, 4)


class Faulty(Foreign):
    def __init__(self, fault):
        self.fault = fault

    def __getitem__(self, index):
        sample = {"img": np.zeros((3, 4, 4), np.float32), "label": np.zeros((4, 4), np.int64)}
        if index == 2:
            if isinstance(self.fault, Exception):
                raise self.fault
            sample.update(self.fault, im_path="two.png")
        return sample


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (UserError("two.png is broken"), UserError, ["two.png is broken"]),
        (ZeroDivisionError("odd"), RuntimeError, ["sample 2", "ZeroDivisionError: odd"]),
        ({"label": None}, UserError, ["two.png", "no label"]),
        ({"label": np.zeros((3, 4), int)}, UserError, ["two.png", "(3, 4, 4)", "(3, 4)"]),
        (
            {"img": np.zeros((3, 4, 5)), "label": np.zeros((4, 5), int)},
            UserError,
            ["two.png (3, 4, 5)", "RandomPaddingCrop"],
        ),
    ],
)
def test_errors_come_out_as_they_are(fault, kind, words, num_workers):
    with pytest.raises(kind) as caught:
        read(Faulty(fault), batch_size=2, num_workers=num_workers, shuffle=False)
    for word in words:
        assert word in str(caught.value)


def with_a_broken_image(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
        save_image(tmp_path / f"{i}_label.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "2.png").write_bytes(b"not an image")
    lines = "".join(f"{i}.png {i}_label.png\n" for i in range(3))
    (tmp_path / "train.txt").write_text(lines, encoding="utf-8")
    return Dataset("train", str(tmp_path), [Normalize()], 2, train_path="train.txt")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_named(tmp_path, num_workers):
    dataset = with_a_broken_image(tmp_path)
    with pytest.raises(UserError, match=r"2\.png"):
        read(dataset, num_workers=num_workers)
    assert sample_names(dataset, [(2, 0)]) == [str(tmp_path / "2.png")]
    assert sample_names(Foreign(), [(2, 0)]) == ["sample 2"]


def on_a_gpu(monkeypatch):
    """Makes the reader think so, and returns the list of the workers that it asks Paddle for."""
    asked, loader = [], paddle.io.DataLoader

    def keep(*args, **settings):
        asked.append(settings["num_workers"])
        return loader(*args, **settings)

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.io, "DataLoader", keep)
    return asked


def test_a_gpu_s_batches_are_read_ahead_and_are_the_same(monkeypatch):
    plain, plain_foreign = read(shapes()), read(Foreign(), batch_size=2)
    asked = on_a_gpu(monkeypatch)
    states = random.getstate(), np.random.get_state()[1].copy()
    assert_equal_batches(plain, read(shapes()))
    assert_equal_batches(plain[2:], read(shapes(), start=2))
    assert asked == [0, 0]
    # The thread leaves the global states alone, since it shares them with the network.
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    # What may draw from them is read in turn.
    assert_equal_batches(plain_foreign, read(Foreign(), batch_size=2))
    mixed = shapes()
    mixed.transforms.transforms.append(lambda data: data)
    assert_equal_batches(plain, read(mixed))
    assert asked == [0, 0]


class OwnCompose(Compose):
    pass


class OwnShapes(Shapes):
    pass


@pytest.mark.parametrize("name", ["thread_safe", "draws_from_rng"])
def test_what_is_ours(name):
    assert declares(shapes(), name)
    assert declares(Shapes(Compose([Compose([Normalize()])])), name)
    for foreign in (OwnCompose([]), Compose([OwnCompose([])]), Compose([lambda data: data])):
        assert not declares(Shapes(Compose([Normalize(), foreign])), name)
    assert not declares(Shapes(OwnCompose([Normalize()])), name)
    assert not declares(OwnShapes([Normalize()]), name)
    assert not declares(Foreign(), name)
    other = shapes()
    for transforms in (None, [Normalize()], Normalize()):
        other.transforms = transforms
        assert not declares(other, name)


def test_reading_ahead_ends_with_the_run(monkeypatch):
    on_a_gpu(monkeypatch)
    before = set(threading.enumerate())
    batches = training_batches(shapes(), 3, range(1000), seed=0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    assert not any(thread.is_alive() for thread in started)


def test_errors_come_out_of_reading_ahead(monkeypatch, tmp_path):
    dataset = with_a_broken_image(tmp_path)
    asked = on_a_gpu(monkeypatch)
    with pytest.raises(UserError, match=r"2\.png"):
        read(dataset)
    assert asked == [0]


class Ending(Foreign):
    """Ends the process that reads sample 2, if it is not the one that asks."""

    def __init__(self, how):
        self.how, self.parent = how, os.getpid()

    def __getitem__(self, index):
        if index == 2 and os.getpid() != self.parent:
            self.how()
        return super().__getitem__(index)


@pytest.mark.skipif(sys.platform != "linux", reason="POSIX signals")
@pytest.mark.parametrize(
    ("how", "text"),
    [
        pytest.param(how, text, id=name, marks=[] if name == "killed" else pytest.mark.slow)
        for name, how, text in (
            ("killed", lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
            ("no shared memory", lambda: os.kill(os.getpid(), signal.SIGBUS), "--shm-size"),
            ("crashed", lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
            ("left", lambda: os._exit(3), "ended by itself"),
            ("left in silence", lambda: os._exit(0), "ended by itself"),
        )
    ],
)
def test_a_reading_process_that_is_gone_is_one_line(how, text):
    with pytest.raises(RunStopped) as caught:
        read(Ending(how), batch_size=2, num_workers=2, shuffle=False)
    message = str(caught.value)
    assert "a process that reads training data (--num_workers) is gone" in message
    for word in (text, "--num_workers 0", "--resume_model auto"):
        assert word in message
    assert "\n" not in message


def test_other_system_errors_are_not_the_reader_s():
    assert reader_failure(SystemError("something else")) is None
    assert reader_failure(RuntimeError("(Fatal) DataLoader process (pid 1)")) is None
    assert reader_failure(OSError("DataLoader process.png is missing")) is None


def test_one_that_paddle_wraps_in_a_backward_pass_is_known():
    """Its signal handler may raise inside a PyLayer, of which Paddle makes an OSError."""
    text = "(External) \n{\n  Error message in backward of GradNodePyLayer__ReLU\n  SystemError: "
    text += "(Fatal) DataLoader process (pid 27) exited is killed by signal: Killed. (at x.cc:185)"
    message = str(reader_failure(OSError(text)))
    assert "a process that reads training data (--num_workers) is gone" in message
    assert "(Killed)" in message
    assert "\n" not in message


class Hungry(Foreign):
    def __getitem__(self, index):
        raise cv2.error(
            "OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to "
            "allocate 120000000000 bytes in function 'OutOfMemoryError'"
        )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_that_runs_out_while_reading_names_the_sample(num_workers):
    with pytest.raises(UserError, match=r"^sample 0: memory ran out.*120000000000 bytes") as caught:
        read(Hungry(), batch_size=1, num_workers=num_workers, shuffle=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0, 255, "uint8"),
        (0, 256, "int16"),
        (-1, 3, "int16"),
        (0, 32767, "int16"),
        (0, 65535, "int32"),
        (-40000, 0, "int32"),
        (0, 2**40, "int64"),
    ],
)
def test_labels_travel_in_the_smallest_type_that_holds_them(low, high, kind):
    label = np.array([[low, high]], np.int64)
    batch = _collate([{"img": np.zeros((3, 1, 2), np.float32), "label": label}])
    assert batch["label"].dtype == kind
    np.testing.assert_array_equal(batch["label"], label[None])


class Pinned:
    """A tensor in pinned memory; `copies` notes how it was sent."""

    copies = ()
    place = types.SimpleNamespace(is_cuda_pinned_place=lambda: True)

    def cuda(self, device_id=None, blocking=True):
        Pinned.copies += ((self, blocking),)
        return "on the device"


class Event:
    """One of a stream that has come as far as `done` says."""

    done, made = 0, 0

    def record(self):
        Event.made += 1
        self.number = Event.made

    def query(self):
        return self.number <= Event.done


def test_pinned_batches_are_sent_without_waiting_and_held_until_they_are_there():
    upload = _Upload(Event)
    pairs = [[Pinned(), Pinned()] for _ in range(4)]
    for pair in pairs[:3]:  # three iterations ahead of the device
        assert upload(pair) == ["on the device"] * 2
    assert Pinned.copies == tuple((t, False) for pair in pairs[:3] for t in pair)
    assert [held for _, held in upload._held] == pairs[:3]
    Event.done = 2
    upload(pairs[3])
    assert [held for _, held in upload._held] == pairs[2:]
    plain = [paddle.ones([1]), paddle.ones([1])]
    assert upload(plain) is plain

# SPDX-License-Identifier: Apache-2.0
"""Out of memory: recognised by what Paddle and others raise, told in one line, survived."""

import errno
import gc
import re
import sys
import weakref
from concurrent.futures import Future

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import val as val_command
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.prediction import crf
from paddleseg_deeplab.tools.search_crf import search
from paddleseg_deeplab.tools.search_crf.probabilities import save_probabilities
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils import out_of_memory as oom
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError

# Paddle 3.3.1's, from cuda_allocator.cc, with its C++ traceback before it.
ON_GPU = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::pybind::eager_api_conv2d(_object*, _object*, _object*)

----------------------
Error Message Summary:
----------------------
ResourceExhaustedError: 

Out of memory error on GPU 1. Cannot allocate 128.000000MB memory on GPU 1, 23.431824GB memory \
has been allocated and available memory is only 97.625000MB.

Please check whether there is any other process using GPU 1.
1. If yes, please stop them, or start PaddlePaddle on another GPU.
2. If no, please decrease the batch size of your model. 
 (at /paddle/paddle/phi/core/memory/allocation/cuda_allocator.cc:71)
"""  # noqa: W291
CUDA = (
    "(External) CUDA error(2), out of memory. \n  [Hint: 'cudaErrorMemoryAllocation'. The API call "
    "failed because it was unable to allocate enough memory to perform the requested operation. ] "
    "(at /paddle/paddle/phi/backends/gpu/gpu_context.cc:359)"
)
TOO_MUCH = [1 << 28, 1 << 28]  # 2**58 bytes of float32: more than any address space has


def raised(action):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (MemoryError(ON_GPU), "GPU 1 while x (128.0 MiB more asked for, 97.6 MiB free)"),
        (RuntimeError(ON_GPU), "GPU 1 while x (128.0 MiB more asked for, 97.6 MiB free)"),
        (
            SystemError(
                "(Fatal) Operator conv2d raises an struct paddle::memory::allocation::BadAlloc "
                f"exception.\nThe exception content is\n:{ON_GPU}"
            ),
            "GPU 1 while x (128.0 MiB more asked for, 97.6 MiB free)",
        ),
        (
            RuntimeError(
                "Out of memory error on GPU 0. Cannot allocate 3.125000GB memory on GPU 0, "
                "available memory is only 0.000000B."
            ),
            "GPU 0 while x (3.1 GiB more asked for, 0 bytes free)",
        ),
        (
            MemoryError(
                "Out of memory error on XPU 2. total memory is 32.000000GB, used memory is "
                "31.5GB, available memory is only 512.000000kB."
            ),
            "XPU 2 while x (512.0 KiB free)",
        ),
        (
            MemoryError(
                "Out of memory error on npu:3. Cannot allocate 1.5GB memory on npu:3, available "
                "memory is only 2.000000MB."
            ),
            "npu 3 while x (1.5 GiB more asked for, 2.0 MiB free)",
        ),
        (OSError(CUDA), "the GPU while x"),
        (OSError("(External) CUDNN error(4), CUDNN_STATUS_ALLOC_FAILED."), "the GPU while x"),
        (OSError("(External) CUBLAS error(3). CUBLAS_STATUS_ALLOC_FAILED"), "the GPU while x"),
        (
            raised(lambda: paddle.empty(TOO_MUCH)),
            "the CPU's side (RAM) while x (256.0 PiB more asked for)",
        ),
        (
            raised(lambda: np.empty(TOO_MUCH, np.float32)),
            "the CPU's side (RAM) while x (256.0 PiB more asked for)",
        ),
        (
            cv2.error(
                "OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate "
                "6597069766656 bytes in function 'OutOfMemoryError'\n"
            ),
            "the CPU's side (RAM) while x (6.0 TiB more asked for)",
        ),
        (raised(lambda: bytearray(1 << 60)), "the CPU's side (RAM) while x"),
        (RuntimeError("std::bad_alloc"), "the CPU's side (RAM) while x"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the CPU's side (RAM) while x"),
        (
            caused(UserError("onnxruntime failed. Use --engine dygraph."), MemoryError()),
            "the CPU's side (RAM) while x",
        ),
    ],
)
def test_what_means_out_of_memory(error, place):
    assert oom.is_out_of_memory(error)
    error = oom.explain(error, what="x")
    assert isinstance(error, UserError)
    assert str(error) == f"Out of memory on {place}."


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes differ"),
        UserError("out of memory.png is broken"),
        FileNotFoundError(errno.ENOENT, "No such file", "out of memory.png"),
        OSError(errno.ENOSPC, "No space left on device"),
        NonFiniteLoss("the loss is NaN"),
        KeyboardInterrupt("out of memory"),
        OSError("(External) CUDA error(700), an illegal memory access was encountered."),
        OSError("(External) CUDNN error(8), CUDNN_STATUS_EXECUTION_FAILED."),
        caused(RuntimeError("worker"), UserError("bad_alloc.png")),
    ],
)
def test_what_does_not(error):
    assert not oom.is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, oom.explained(what="x"):
        raise error
    assert caught.value is error


def test_a_compiled_network_says_so_too():
    @paddle.jit.to_static(full_graph=True)
    def huge(x):
        return x.expand(TOO_MUCH) + 1

    assert oom.is_out_of_memory(raised(lambda: huge(paddle.zeros([1]))))


def test_the_line(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    line = oom.explain(
        MemoryError(ON_GPU),
        what="training",
        image_size=(769, 512),
        batch_size=4,
        precision="fp32",
        settings=oom.training_settings(4, "fp32"),
        note=oom.CHECKPOINT_KEPT,
    )
    assert str(line) == (
        "Out of memory on GPU 1 while training (128.0 MiB more asked for, 97.6 MiB free): 4 images "
        "of 769 x 512 pixels (width x height) in fp32. What helps: batch_size 2 with 2 times the "
        "accumulation_steps; --precision fp16 or bf16; smaller crops in train_dataset.transforms. "
        "The last checkpoint is kept: --resume_model auto goes on from it."
    )
    assert oom.explain(line, what="evaluating") is line
    assert oom.explain(caused(RuntimeError(), line), what="evaluating") is line


@pytest.mark.parametrize(
    ("device", "settings", "words"),
    [
        ("gpu:0", oom.training_settings, ["batch_size 3 with 3 times", "fp16", "crops"]),
        ("cpu", oom.training_settings, ["batch_size 3 with 3 times", "crops", "num_workers"]),
        ("gpu:0", oom.evaluation_settings, ["slide_above 1", "smaller batch_size", "fp16"]),
        ("cpu", oom.evaluation_settings, ["slide_above 1", "smaller batch_size", "num_workers 0"]),
    ],
)
def test_three_settings_that_apply(monkeypatch, device, settings, words):
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    advice = settings(7)
    assert len(advice) == 3
    for text, word in zip(advice, words):
        assert word in text
    # What cannot be changed is not advised.
    assert "batch_size" not in " ".join(settings(1))
    assert "fp16" not in " ".join(settings(1, "fp16"))
    if settings is oom.evaluation_settings:
        advice = settings(1, window=(512, 256), scale=1.5)
        assert advice[:2] == ["a crop_size smaller than 512 x 256", "scales below 1.5"]


class Maps:
    """Stands for a forward pass's activations."""


def test_what_the_failed_pass_held_is_freed_and_the_cache_emptied(monkeypatch):
    held, emptied = [], []

    def forward():
        maps = Maps()
        held.append(weakref.ref(maps))
        raise MemoryError(ON_GPU)

    def empty():
        emptied.append(held[0]() is None)  # freed before
        raise OSError(CUDA)  # which a device that has failed does

    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "empty_cache", empty)
    gc.disable()  # no cycle has to be found
    try:
        outer, inner = oom.explained(what="outer"), oom.explained(what="inner", settings=["less"])
        with pytest.raises(oom.OutOfMemory) as caught, outer, inner:
            forward()
    finally:
        gc.enable()
    assert emptied == [True]
    assert "while inner (128.0 MiB more asked for" in str(caught.value)
    assert isinstance(caught.value.__cause__, MemoryError)  # for --debug


def test_paddle_is_not_imported_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "paddle")
    oom.release()
    assert "num_workers" in oom.evaluation_settings(1)[-1]
    assert "paddle" not in sys.modules


# ------------------------------------------------------------------- evaluation, prediction, search


@registry.MODELS.add_component
class Hungry(nn.Layer):
    """Takes images of at most 300 pixels."""

    def __init__(self, num_classes=3, limit=300, text=ON_GPU):
        super().__init__()
        self.num_classes = num_classes
        self.limit = limit
        self.text = text
        self.conv = nn.Conv2D(3, num_classes, 1)

    def forward(self, x):
        if x.shape[2] * x.shape[3] > self.limit:
            raise MemoryError(self.text)
        return [self.conv(x)]


def shapes(size=(32, 24), count=3):
    return Shapes(Compose([]), mode="val", num_classes=3, image_size=size, num_samples=count)


def quiet(model, data, **settings):
    return evaluate(model, data, print_detail=False, progress=False, **settings)


WINDOW = {"crop_size": (16, 12), "stride": (16, 12)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["1 image of 32 x 24", "in fp32", "slide_above 1", "num_workers 0"]),
        ({"batch_size": 3}, ["and 2 more", "3 images of 32 x 24", "a smaller batch_size"]),
        ({"is_slide": True, **WINDOW, "crop_size": (32, 12)}, ["smaller than 32 x 12"]),
        ({"aug_eval": True, "scales": [1, 1.5]}, ["1 image of 48 x 36", "scales below 1.5"]),
        ({"losses": {"types": [nn.CrossEntropyLoss(axis=1)], "coef": [1]}}, ["32 x 24"]),
        ({"crf": True}, ["32 x 24"]),
        ({"num_workers": 2}, ["32 x 24"]),
    ],
)
def test_evaluation(settings, words):
    model, data = Hungry(), shapes()
    with pytest.raises(oom.OutOfMemory) as caught:
        quiet(model, data, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert "Out of memory on GPU 1 while the network ran on" in line
    assert "128.0 MiB more asked for, 97.6 MiB free" in line
    for word in words:
        assert word in line
    # The process goes on, and what the line advises helps.
    assert len(quiet(model, data, slide_above=1, **WINDOW, batch_size=1).records) == 3


def test_prediction_and_the_search_of_the_crf(tmp_path):
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), np.zeros((24, 32, 3), np.uint8))
    # Of prediction it costs the image alone, which is named.
    result = predict(Hungry(), None, Compose([]), [path], save_dir=str(tmp_path), progress=False)
    assert re.search(r"^Out of memory .*street\.png.*1 image of 32 x 24", result.failed[0][1])
    with pytest.raises(oom.OutOfMemory, match="1 image of 32 x 24"):
        save_probabilities(Hungry(), shapes(), str(tmp_path), progress=False)


def fail(*_args, **_kwargs):
    raise np.empty(TOO_MUCH)


def test_outside_of_the_network(monkeypatch, tmp_path):
    class Large(Shapes):
        def __getitem__(self, key):
            raise MemoryError

    model = Hungry(limit=1e9)
    reading = "images were read or results made.*num_workers 0"
    for num_workers in (0, 2):
        data = Large(Compose([]), mode="val", num_classes=3, image_size=(32, 24), num_samples=2)
        with pytest.raises(oom.OutOfMemory, match=reading):
            quiet(model, data, num_workers=num_workers)
    monkeypatch.setattr(crf, "refine", fail)
    with pytest.raises(oom.OutOfMemory, match=reading):
        quiet(model, shapes(), crf=True)
    monkeypatch.setattr(search, "score_image", fail)
    with pytest.raises(oom.OutOfMemory, match=r"CRFs ran.*fewer --processes"):
        search.search(str(tmp_path), 1, 3)


def test_a_process_that_the_system_ended(monkeypatch, tmp_path):
    class Pool:
        """One whose process was killed."""

        def __init__(self, *_args, **_kwargs):
            pass

        def submit(self, *_args, **_kwargs):
            future = Future()
            future.set_exception(search.BrokenProcessPool("terminated abruptly"))
            return future

        def shutdown(self, **_kwargs):
            pass

    monkeypatch.setattr(search, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="fewer --processes"):
        search.search(str(tmp_path), 1, 3, workers=1)


CONFIG = """
val_dataset: {type: Shapes, num_classes: 3, image_size: [32, 24], num_samples: 2, mode: val,
  transforms: []}
model: {type: Hungry}
"""


def test_the_command_says_one_line(tmp_path, capsys):
    (tmp_path / "c.yml").write_text(CONFIG)
    flags = ["--config", str(tmp_path / "c.yml"), "--device", "cpu"]
    assert val_command.main([*flags, "--save_dir", str(tmp_path)]) == 2
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Out of memory on GPU 1" in lines[0]
    assert "Traceback" not in captured
    more = ["--slide_above", "1", "--crop_size", "16", "12"]
    assert val_command.main([*flags, "--save_dir", str(tmp_path), *more]) == 0

# SPDX-License-Identifier: Apache-2.0
"""The device that a flag names is taken or refused, never changed."""

import paddle
import pytest

from paddleseg_deeplab.utils import device
from paddleseg_deeplab.utils.device import gpu_count, select_device
from paddleseg_deeplab.utils.errors import UserError


def test_the_best_present_is_the_default(monkeypatch):
    chosen = []
    monkeypatch.setattr(paddle.device, "set_device", chosen.append)
    monkeypatch.setattr(paddle, "get_device", lambda: chosen[-1])
    for gpus, expected in ((None, "cpu"), (0, "cpu"), (2, "gpu")):
        monkeypatch.setattr(device, "gpu_count", lambda gpus=gpus: gpus)
        assert select_device() == expected
    for name in ("gpu:0", "gpu:1", "gpu", "cpu"):  # with two GPUs
        assert select_device(name) == name


@pytest.mark.parametrize(
    ("name", "gpus", "text"),
    [
        ("gpu", None, "CPU build. Install paddlepaddle-gpu"),
        ("gpu:3", None, "CPU build. Install paddlepaddle-gpu"),
        ("gpu", 0, r"--device gpu: Paddle sees 0 GPU\(s\)"),
        ("gpu:1", 1, r"--device gpu:1: Paddle sees 1 GPU\(s\)"),
        ("gpu:x", 1, r"--device gpu:x: Paddle sees 1 GPU\(s\)"),
        ("gpu:²", 1, r"--device gpu:²: Paddle sees 1 GPU\(s\)"),
        ("abacus", 1, "--device abacus is not available"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(name, gpus, text, monkeypatch):
    monkeypatch.setattr(device, "gpu_count", lambda: gpus)
    before = paddle.get_device()
    with pytest.raises(UserError, match=text):
        select_device(name)
    assert paddle.get_device() == before


def test_gpus_are_counted_in_a_gpu_build_only(monkeypatch):
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: False)
    assert gpu_count() is None
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    assert gpu_count() == 3

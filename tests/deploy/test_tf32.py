# SPDX-License-Identifier: Apache-2.0
"""The export's comparison on a GPU that computes in TF32, simulated on a CPU.

There each convolution rounds its inputs and weights to 10 bits of mantissa while Paddle's switch is
on. The exported network has its batch norms in the convolutions, which are rounded after that.
"""

import contextlib
import copy
import itertools
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.base import core
from places import ROOT

from paddleseg_deeplab.deploy import compare as export_check
from paddleseg_deeplab.deploy.compare import MAX_LABEL_SHARE, ExportMismatch, compare_export
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.deploy.tf32 import without_tf32
from paddleseg_deeplab.models.layers import ConvBN, ConvBNReLU

FLAGS = ("FLAGS_cudnn_allow_tf32", "FLAGS_cublas_allow_tf32")


class Switches:
    """Paddle's TF32 settings as a GPU build has them, the cuBLAS ones off by default."""

    def __init__(self, monkeypatch, with_flags=True, with_switches=True):
        self.values = {"cudnn": True, "cublas": False}
        self.flags = dict(zip(FLAGS, (True, False))) if with_flags else {}
        for name in self.values:
            for verb, function in (("get", self.getter(name)), ("set", self.setter(name))):
                monkeypatch.setattr(core, f"{verb}_{name}_switch", function, raising=False)
                if not with_switches:
                    monkeypatch.delattr(core, f"{verb}_{name}_switch")
        monkeypatch.setattr(paddle, "get_flags", self.get_flags)
        monkeypatch.setattr(paddle, "set_flags", self.flags.update)

    def getter(self, name):
        return lambda: self.values[name]

    def setter(self, name):
        return lambda value: self.values.update({name: value})

    def get_flags(self, names):
        if not set(names) <= set(self.flags):
            raise ValueError(f"Flag {names[0]} cannot get its value through this function.")
        return {name: self.flags[name] for name in names}


@pytest.mark.parametrize("with_flags", [True, False])
@pytest.mark.parametrize("with_switches", [True, False])
def test_off_inside_and_as_before_afterwards(monkeypatch, with_flags, with_switches):
    paddles = Switches(monkeypatch, with_flags, with_switches)
    before = dict(paddles.values), dict(paddles.flags)
    inside = []

    def work():
        with without_tf32():
            inside.append((paddles.values["cudnn"], any(paddles.flags.values())))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert inside == [(not with_switches, False)]
    assert (paddles.values, paddles.flags) == before


def test_the_names_are_paddles():
    """A CPU build may lack them; where it has them they work, and nothing is left changed."""
    names = [
        f"{verb}_{library}_switch" for verb in ("get", "set") for library in ("cudnn", "cublas")
    ]
    if not all(hasattr(core, name) for name in names):
        pytest.skip("this Paddle was built without CUDA's switches")
    before = core.get_cudnn_switch(), core.get_cublas_switch()
    with without_tf32():
        assert not core.get_cudnn_switch()
        assert not core.get_cublas_switch()
    assert (core.get_cudnn_switch(), core.get_cublas_switch()) == before


def tf32(array):
    """float32 rounded to the nearest number of 10 bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    return ((bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)).view(np.float32)


def test_rounding():
    step = 2.0**-10
    x = np.array([1, 1 + step / 2, 1 + 1.5 * step, 1 + 0.49 * step, 1 + 0.51 * step, -3, 0], "f4")
    expected = [1, 1, 1 + 2 * step, 1, 1 + step, -3, 0]
    np.testing.assert_array_equal(tf32(x), np.array(expected, "f4"))
    x = np.random.default_rng(0).standard_normal(1000, np.float32)
    assert (np.abs(tf32(x) - x) <= np.abs(x) * 2.0**-11).all()


class Network(nn.Layer):
    """Six convolutions with batch norms, and a classifier of 11 classes."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        widths = [3, 8, 8, 16, 16, 16, 16]
        body = [ConvBNReLU(a, b, 3, bias_attr=False) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*body)
        self.classify = nn.Conv2D(16, 11, 1)
        for layer in self.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                count = layer._mean.shape[0]
                for tensor, values in (
                    (layer._mean, rng.normal(0, 0.3, count)),
                    (layer._variance, rng.uniform(0.3, 3, count)),
                    (layer.weight, rng.uniform(0.5, 1.5, count)),
                    (layer.bias, rng.normal(0, 0.5, count)),
                ):
                    tensor.set_value(values.astype("float32"))
            elif isinstance(layer, nn.Conv2D):
                scale = np.sqrt(2 / np.prod(layer.weight.shape[1:]))
                values = rng.normal(0, scale, layer.weight.shape)
                layer.weight.set_value(values.astype("float32"))
        self.eval()

    def forward(self, x):
        return [self.classify(self.body(x))]


class _Shift(nn.Layer):
    def __init__(self, shift):
        super().__init__()
        self.shift = paddle.to_tensor(shift.reshape(1, -1, 1, 1).astype("float32"))

    def forward(self, x):
        return x + self.shift


def folded(network):
    """A copy with each batch norm in its convolution's weights, as Paddle Inference has it."""
    network = copy.deepcopy(network)
    for layer in network.sublayers():
        if isinstance(layer, ConvBN):
            norm, conv = layer._batch_norm, layer._conv
            mean, variance, gamma, beta = (
                t.numpy().astype(np.float64)
                for t in (norm._mean, norm._variance, norm.weight, norm.bias)
            )
            scale = gamma / np.sqrt(variance + norm._epsilon)
            weight = conv.weight.numpy() * scale[:, None, None, None]
            conv.weight.set_value(weight.astype("float32"))
            layer._batch_norm = _Shift(beta - mean * scale)
    return network


def on_such_a_gpu(network, paddles):
    """The network, its convolutions rounding while the switch is on."""

    def forward_of(conv):
        def forward(x):
            x, weight = x.numpy(), conv.weight.numpy()
            if paddles.values["cudnn"]:
                x, weight = tf32(x), tf32(weight)
            x, weight = paddle.to_tensor(x), paddle.to_tensor(weight)
            return F.conv2d(x, weight, conv.bias, padding=conv._padding)

        return forward

    for conv in network.sublayers():
        if isinstance(conv, nn.Conv2D):
            conv.forward = forward_of(conv)
    return network


class Exported:
    """Stands for Paddle Inference on the GPU."""

    name, mkldnn = "Paddle Inference", False

    def __init__(self, network):
        self.network = network

    def run(self, batch):
        return self.network(paddle.to_tensor(batch))[0].numpy().argmax(1).astype(np.int32)


@pytest.fixture
def compare(monkeypatch):
    """A call of `compare_export` of a network and its export on that GPU, and the switches."""
    paddles = Switches(monkeypatch, with_flags=False)
    exported = Exported(on_such_a_gpu(folded(Network()), paddles))
    monkeypatch.setattr(export_check, "open_runtime", lambda info, settings: exported)
    network = on_such_a_gpu(Network(), paddles)
    sample = np.random.default_rng(1).standard_normal((3, 320, 320), np.float32)
    info = DeployInfo("pir", [1, 3, 320, 320])
    return lambda: compare_export(network, info, sample, "gpu"), paddles


def test_a_right_export_passes(compare):
    call, paddles = compare
    assert call()["argmax_pixels_differing"] <= MAX_LABEL_SHARE / 10
    assert paddles.values == {"cudnn": True, "cublas": False}


def test_with_tf32_it_would_be_refused(compare, monkeypatch):
    monkeypatch.setattr(export_check, "without_tf32", contextlib.nullcontext)
    with pytest.raises(ExportMismatch, match="argmax_pixels_differing"):
        compare[0]()


def test_an_onnx_file_is_compared_on_the_cpu(monkeypatch):
    """ONNX Runtime has a TF32 of its own on a GPU; the file is the same for both."""
    told = []

    def opened(info, settings):
        told.append(settings)
        raise ZeroDivisionError

    monkeypatch.setattr(export_check, "open_runtime", opened)
    for form in ("onnx", "pir"):
        with pytest.raises(ZeroDivisionError):
            compare_export(None, DeployInfo(form, [1, 3, 8, 8]), np.zeros((3, 8, 8), "f4"), "gpu")
    assert told == [
        RuntimeSettings(device="cpu", runtime="onnxruntime"),
        RuntimeSettings(device="gpu", runtime="paddle"),
    ]


_COMMAND = """
import os, sys
from paddleseg_deeplab.cli import export
from paddleseg_deeplab.utils.errors import UserError

def stop(device):
    raise UserError("far enough")

export.select_device = stop
for value in (None, "1", "0"):
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
    if value is not None:
        os.environ["NVIDIA_TF32_OVERRIDE"] = value
    assert export.main(["--config", "c.yml", "--save_dir", "o"]) == 2
    print(os.environ["NVIDIA_TF32_OVERRIDE"])
assert "paddle" not in sys.modules
"""


def test_the_command_says_so_before_paddle_is_imported(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", _COMMAND],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == ["0", "1", "0"]

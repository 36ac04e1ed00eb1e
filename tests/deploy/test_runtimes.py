# SPDX-License-Identifier: Apache-2.0
"""Which runtime runs an exported folder, and what it is told; OpenVINO is a stand-in that records.

A real OpenVINO is beside this package in benchmarks/run.py, which compares its masks with ours.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exported_folder import FREE, folder, infer  # noqa: F401
from fake_inference import FakeInference, calls_of

from paddleseg_deeplab.deploy import paddle_runtime
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
from paddleseg_deeplab.deploy.runtimes import OpenvinoRuntime, SmallInputError, open_runtime
from paddleseg_deeplab.deploy.settings import (
    RuntimeSettings,
    check_settings,
    choose_device,
    choose_runtime,
)
from paddleseg_deeplab.utils.errors import UserError

BATCH = np.random.default_rng(0).standard_normal((2, 3, 32, 40)).astype(np.float32)


def fake_openvino(calls, capabilities=("FP32", "BF16"), broken=None):
    """A module whose network gives the sum over channels, as int32."""

    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return list(capabilities)

        def read_model(self, *files):
            if broken:
                raise RuntimeError(broken)
            calls["read_model"] = files
            return "network"

        def compile_model(self, model, device, config):
            calls["compile_model"] = (model, device, config)
            return lambda inputs, share_outputs: [inputs[0].sum(1).astype(np.int32)]

    return SimpleNamespace(Core=Core)


@pytest.fixture
def openvino(monkeypatch):
    calls = {}
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(calls))
    return calls


def info_of(form):
    return DeployInfo(form, FREE, folder="f")


@pytest.mark.parametrize(
    ("form", "runtime", "expected"),
    [
        ("pir", "auto", "paddle"),
        ("legacy", "auto", "paddle"),
        ("onnx", "auto", "onnxruntime"),
        ("legacy", "openvino", "openvino"),
        ("onnx", "openvino", "openvino"),
        ("legacy", "paddle", "paddle"),
        ("onnx", "onnxruntime", "onnxruntime"),
    ],
)
def test_choice(form, runtime, expected):
    assert choose_runtime(info_of(form), RuntimeSettings(runtime=runtime)) == expected


@pytest.mark.parametrize(
    ("form", "settings", "words"),
    [
        ("pir", {"runtime": "openvino"}, ["openvino", "model.json", "pir", "legacy"]),
        ("legacy", {"runtime": "onnxruntime"}, ["onnxruntime", "model.pdmodel", "onnx"]),
        ("onnx", {"runtime": "paddle"}, ["paddle", "model.onnx", "onnxruntime and openvino"]),
        ("onnx", {"runtime": "tensorrt"}, ["tensorrt", "auto, paddle, onnxruntime, openvino"]),
        ("onnx", {"precision": "bf16"}, ["bf16", "model.onnx", "--runtime openvino"]),
        ("pir", {"precision": "bf16"}, ["bf16", "model.json", "legacy"]),
        ("legacy", {"precision": "bf16", "mkldnn": False}, ["bf16", "--enable_mkldnn"]),
        ("legacy", {"precision": "bf16", "device": "gpu"}, ["bf16", "gpu", "fp16"]),
        ("legacy", {"runtime": "openvino", "device": "gpu:0"}, ["gpu:0", "--device cpu"]),
        ("legacy", {"runtime": "openvino", "precision": "fp16"}, ["fp16", "fp32 or bf16"]),
        ("legacy", {"runtime": "openvino", "mkldnn": True}, ["--enable_mkldnn", "paddle"]),
        ("legacy", {"runtime": "openvino", "use_trt": True}, ["--use_trt", "GPU"]),
    ],
)
def test_what_does_not_go_together(form, settings, words):
    with pytest.raises(UserError) as caught:
        check_settings(RuntimeSettings(**settings), info_of(form))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("form", "precision", "files", "hint"),
    [
        ("legacy", "fp32", ["model.pdmodel", "model.pdiparams"], "f32"),
        ("onnx", "bf16", ["model.onnx"], "bf16"),
    ],
)
def test_what_openvino_is_told(form, precision, files, hint, openvino):
    settings = RuntimeSettings(runtime="openvino", precision=precision, cpu_threads=3)
    runtime = open_runtime(info_of(form), settings)
    assert isinstance(runtime, OpenvinoRuntime)
    assert runtime.name == "OpenVINO"
    assert [Path(file).name for file in openvino["read_model"]] == files
    model, device, config = openvino["compile_model"]
    assert (model, device) == ("network", "CPU")
    # The precision is said always: on processors with bfloat16 OpenVINO would take that.
    assert config["INFERENCE_PRECISION_HINT"] == hint
    assert config["INFERENCE_NUM_THREADS"] == 3
    np.testing.assert_array_equal(runtime.run(BATCH), BATCH.sum(1).astype(np.int32))


def test_all_threads_by_default(openvino, monkeypatch):
    monkeypatch.setenv("FLAGS_paddle_num_threads", "7")
    open_runtime(info_of("onnx"), RuntimeSettings(runtime="openvino"))
    assert openvino["compile_model"][2]["INFERENCE_NUM_THREADS"] == 7


def test_openvino_on_a_processor_without_bf16(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino({}, ["FP32", "INT8"]))
    settings = RuntimeSettings(runtime="openvino", precision="bf16")
    with pytest.raises(UserError, match=r"bf16.*FP32, INT8.*--precision fp32"):
        open_runtime(info_of("legacy"), settings)


def test_an_output_of_another_size_is_refused(monkeypatch):
    """As OpenVINO gives it where a map becomes empty; a newly compiled network works again."""
    calls = {"compiled": 0}
    module = fake_openvino(calls)

    def compile_model(self, *_):
        calls["compiled"] += 1
        outputs = []

        def run(inputs, share_outputs):
            if inputs[0].shape[3] > 40 or not outputs:  # else what it gave before, ever after
                outputs[:] = [inputs[0].sum(1)]
            return outputs

        return run

    monkeypatch.setattr(module.Core, "compile_model", compile_model)
    monkeypatch.setitem(sys.modules, "openvino", module)
    runtime = open_runtime(info_of("legacy"), RuntimeSettings(runtime="openvino"))
    large = np.ones((2, 3, 32, 50), np.float32)
    np.testing.assert_array_equal(runtime.run(large), large.sum(1))
    for bad in (BATCH, np.ones((1, 3, 32, 40), np.float32), np.ones((2, 3, 50, 31), np.float32)):
        runtime.run(large)
        before = calls["compiled"]
        with pytest.raises(SmallInputError, match=f"{bad.shape[2]} x {bad.shape[3]} pixels"):
            runtime.run(bad)
        assert calls["compiled"] == before + (bad.shape[3] > 31)
    np.testing.assert_array_equal(runtime.run(large), large.sum(1))


def test_openvino_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"--runtime openvino.*paddleseg-deeplab\[openvino\]"):
        open_runtime(info_of("legacy"), RuntimeSettings(runtime="openvino"))


def test_a_damaged_file_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino({}, broken="Bad\n\nmore"))
    with pytest.raises(UserError, match="cannot be opened: Bad more If"):
        open_runtime(info_of("onnx"), RuntimeSettings(runtime="openvino"))
    long = fake_openvino({}, broken="first " + "word " * 99 + "last")
    monkeypatch.setitem(sys.modules, "openvino", long)
    with pytest.raises(UserError, match=r"opened: \.\.\. (word ){59}last If"):
        open_runtime(info_of("onnx"), RuntimeSettings(runtime="openvino"))


def test_openvino_looks_for_no_gpu(monkeypatch):
    monkeypatch.setattr("paddleseg_deeplab.deploy.settings.gpu_count", lambda: 2)
    assert choose_device(None, "legacy", "openvino") == "cpu"
    assert choose_device(None, "legacy") == "gpu:0"


# -- bfloat16 in Paddle Inference --------------------------------------------------------------


def test_what_paddle_is_told_for_bf16():
    calls = calls_of(precision="bf16")
    assert {"enable_onednn", "enable_onednn_bfloat16"} <= set(calls)
    # Only convolutions: with all that Paddle 3.3.1 would take it stops at an addition.
    assert calls["set_bfloat16_op"] == (({"conv2d", "fused_conv2d"},), {})
    older = calls_of(precision="bf16", lacks=("enable_onednn_bfloat16",))
    assert "enable_mkldnn_bfloat16" in older
    assert "enable_onednn_bfloat16" not in calls_of()


@pytest.fixture
def processor(monkeypatch):
    """Sets whether Paddle says that this processor has bfloat16; no file is looked into."""
    from paddle.base import core

    monkeypatch.setattr(paddle_runtime, "_check_program", lambda path: None)

    def say(can):
        monkeypatch.setattr(core, "supports_bfloat16", lambda: can, raising=False)

    return say


def test_paddle_on_a_processor_without_bf16(processor):
    processor(False)
    with pytest.raises(UserError, match="this processor computes in fp32"):
        PaddleRuntime(info_of("legacy"), RuntimeSettings(precision="bf16"), FakeInference())


def test_bf16_is_not_dropped_in_silence(processor):
    """Without oneDNN Paddle would compute in fp32; a run that fails says so instead."""
    processor(True)
    settings = RuntimeSettings(precision="bf16")
    runtime = PaddleRuntime(info_of("legacy"), settings, FakeInference(breaks_at=1))
    with pytest.raises(UserError, match="with oneDNN in bf16"):
        runtime.run(BATCH)


# -- infer.py ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "hint"), [([], "f32"), (["--precision", "bf16"], "bf16")], ids=["fp32", "bf16"]
)
def test_infer_takes_the_flags(flags, hint, folder, openvino):
    assert infer(folder, "--runtime", "openvino", "--cpu_threads", "2", *flags) == 0
    config = openvino["compile_model"][2]
    assert (config["INFERENCE_PRECISION_HINT"], config["INFERENCE_NUM_THREADS"]) == (hint, 2)
    [mask] = (folder / "out").rglob("image.png")
    np.testing.assert_array_equal(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), np.full((32, 33), 3))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--runtime", "onnxruntime"], "does not read"),
        (["--runtime", "openvino", "--device", "gpu"], "OpenVINO runs on the CPU"),
        (["--runtime", "openvino", "--enable_mkldnn"], "--enable_mkldnn"),
    ],
)
def test_infer_refuses_in_one_line(flags, text, folder, openvino, capsys):
    assert infer(folder, *flags) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "INFO" not in line]
    assert text in line


def test_infer_counts_small_images_as_failed(folder, openvino, capsys):
    cv2.imwrite(str(folder / "image.png"), np.ones((64, 31, 3), np.uint8))
    assert infer(folder, "--runtime", "openvino") == 2
    assert "OpenVINO takes sides from 32 pixels on" in capsys.readouterr().err


def test_infer_without_openvino(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert infer(folder, "--runtime", "openvino") == 2
    assert "pip install 'paddleseg-deeplab[openvino]'" in capsys.readouterr().err

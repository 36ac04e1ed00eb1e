# SPDX-License-Identifier: Apache-2.0
"""What flags put into Paddle Inference's Config, recorded by a stand-in: no GPU is needed."""

import re

import numpy as np
import pytest
from fake_inference import FREE, FakeInference, calls_of

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
from paddleseg_deeplab.deploy.settings import RuntimeSettings, choose_device
from paddleseg_deeplab.utils.errors import UserError


def test_cpu_with_onednn():
    calls = calls_of(cpu_threads=3)
    assert calls["Config"][0][0].endswith("model.pdmodel")
    assert calls["Config"][0][1].endswith("model.pdiparams")
    assert calls["set_cpu_math_library_num_threads"] == ((3,), {})
    assert {"disable_gpu", "enable_onednn", "enable_memory_optim", "disable_glog_info"} <= set(
        calls
    )
    assert not {"disable_onednn", "enable_use_gpu", "enable_tensorrt_engine"} & set(calls)


def test_cpu_without_onednn_says_so():
    # Paddle 3.3 has it on by default.
    assert "disable_onednn" in calls_of(onednn=False)
    assert "enable_onednn" not in calls_of(onednn=False)


def test_names_of_older_paddles():
    new = ("enable_onednn", "disable_onednn", "set_onednn_cache_capacity")
    assert calls_of(lacks=new)["set_mkldnn_cache_capacity"] == ((10,), {})
    assert "enable_mkldnn" in calls_of(lacks=new)
    assert "disable_mkldnn" in calls_of(lacks=new, onednn=False)
    calls_of(lacks=(*new, "disable_mkldnn"), onednn=False)  # Paddle 2: off by default


def test_all_threads_by_default(monkeypatch):
    monkeypatch.setenv("FLAGS_paddle_num_threads", "7")
    assert calls_of()["set_cpu_math_library_num_threads"] == ((7,), {})


def test_pir_has_no_memory_optim():
    assert "enable_memory_optim" not in calls_of("pir")


def test_print_detail():
    assert "disable_glog_info" not in calls_of(print_detail=True)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("gpu", "fp32", (100, 0)),
        ("gpu:2", "fp32", (100, 2)),
        ("gpu:1", "fp16", (100, 1, "Half")),
    ],
)
def test_gpu(device, precision, expected):
    calls = calls_of("pir", device=device, precision=precision)
    assert calls["enable_use_gpu"] == (expected, {})
    assert not {"disable_gpu", "enable_onednn", "enable_tensorrt_engine"} & set(calls)


@pytest.mark.parametrize(
    ("form", "settings", "text"),
    [
        ("legacy", {"use_trt": True}, "needs a GPU"),
        ("legacy", {"precision": "fp16"}, "--device gpu"),
        ("legacy", {"precision": "int8"}, "--device gpu"),
        ("legacy", {"precision": "int4"}, "fp32, fp16, bf16, int8"),
        ("legacy", {"device": "gpu", "precision": "int8"}, "--use_trt"),
        ("legacy", {"device": "gpu", "mkldnn": True}, "--enable_mkldnn"),
        ("pir", {"device": "gpu", "use_trt": True}, "--format legacy .*--format onnx"),
        ("onnx", {"device": "gpu", "use_trt": True}, "--format legacy"),
        ("onnx", {"device": "gpu", "precision": "fp16"}, "--format legacy"),
        ("legacy", {"device": "gpu", "use_trt": True, "trt_max_shape": [1, 3, 8, 8]}, "grow"),
    ],
)
def test_what_cannot_work_is_refused(form, settings, text):
    with pytest.raises(UserError, match=text):
        calls_of(form, **settings)


def fake_runtime(mkldnn, breaks_at):
    inference = FakeInference(breaks_at=breaks_at)
    info = DeployInfo("pir", FREE, folder="f")
    return PaddleRuntime(info, RuntimeSettings(mkldnn=mkldnn), inference), inference


BATCH = np.ones((1, 3, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("mkldnn", "breaks_at", "in_use", "configs"),
    [
        (None, None, True, 1),
        (None, 1, False, 2),  # found out at the first run, and gone on without
        (None, 2, False, 2),  # or at a later one, of another size say
        (False, 1, False, 1),
        (True, None, True, 1),
    ],
)
def test_onednn_is_used_where_it_works(mkldnn, breaks_at, in_use, configs):
    runtime, inference = fake_runtime(mkldnn, breaks_at)
    for i in range(3):
        np.testing.assert_array_equal(runtime.run(BATCH + i), BATCH + i)
    assert runtime.mkldnn is in_use
    assert len(inference.made) == configs


@pytest.mark.parametrize("breaks_at", [1, 2])
def test_onednn_that_was_asked_for_is_not_dropped(breaks_at):
    runtime, _ = fake_runtime(True, breaks_at)
    with pytest.raises(UserError, match="cannot run it with oneDNN"):
        [runtime.run(BATCH) for _ in range(breaks_at)]


def test_other_failures_are_not_blamed_on_onednn(caplog):
    runtime, _ = fake_runtime(None, None)
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.run(BATCH * 10)
    assert runtime.mkldnn
    assert not caplog.records
    np.testing.assert_array_equal(runtime.run(BATCH), BATCH)


def test_every_call_exists_in_paddle_inference():
    """The stand-in takes any name; the real Config has these and their keyword parameters."""
    from paddle import inference

    real = inference.Config
    recorded = [
        calls_of(),
        calls_of(device="gpu", use_trt=True, precision="int8"),
        calls_of(device="gpu", use_trt=True, tuned_shape_file="t", collect_shapes=True),
        calls_of(device="gpu", use_trt=True, tuned_shape_file="t"),
        calls_of("pir", device="gpu", precision="fp16"),
        calls_of("pir", onednn=False, lacks=("enable_onednn", "disable_onednn")),
        calls_of(precision="bf16"),
    ]
    # From Paddle 3.3 on.
    new = {"enable_onednn", "disable_onednn", "set_onednn_cache_capacity", "enable_onednn_bfloat16"}
    for calls in recorded:
        for name, (_, named) in calls.items():
            if name == "Config" or (name in new and not hasattr(real, name)):
                continue
            assert hasattr(real, name), name
            for parameter in named:
                assert f"{parameter}:" in getattr(real, name).__doc__, (name, parameter)
    assert {"Float32", "Half", "Int8"} <= set(dir(inference.PrecisionType))
    # What is given by position: in this order.
    for name, order in {
        "set_trt_dynamic_shape_info": ("min_input_shape", "max_input_shape", "optim_input_shape"),
        "enable_tuned_tensorrt_dynamic_shape": ("shape_range_info_path", "allow_build_at_runtime"),
        "enable_use_gpu": ("memory_pool_init_size_mb", "device_id", "precision_mode"),
        "collect_shape_range_info": ("arg0",),
    }.items():
        parameters = re.findall(r"(\w+):", getattr(real, name).__doc__.partition(",")[2])
        assert parameters[: len(order)] == list(order), name
    for name in ("get_trt_compile_version", "get_trt_runtime_version"):
        assert len(getattr(inference, name)()) == 3


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        (None, 0, "cpu"),
        (None, 2, "gpu:0"),
        ("cpu", 2, "cpu"),
        ("gpu", 1, "gpu"),
        ("gpu:1", 2, "gpu:1"),
    ],
)
def test_choose_device(name, gpus, expected, monkeypatch):
    monkeypatch.setattr("paddleseg_deeplab.deploy.settings.gpu_count", lambda: gpus)
    assert choose_device(name) == expected


@pytest.mark.parametrize(
    ("name", "gpus"), [("gpu", 0), ("gpu:1", 1), ("gpu:x", 1), ("cpu:0", 1), ("tpu", 1)]
)
def test_a_device_that_is_not_there_is_an_error(name, gpus, monkeypatch):
    monkeypatch.setattr("paddleseg_deeplab.deploy.settings.gpu_count", lambda: gpus)
    with pytest.raises(UserError, match="--device"):
        choose_device(name)

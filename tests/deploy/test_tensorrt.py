# SPDX-License-Identifier: Apache-2.0
"""TensorRT inside Paddle Inference, by a stand-in that records: no GPU is needed."""

import logging
import os
import sys

import pytest
from exported_folder import folder, infer  # noqa: F401 (a fixture)
from fake_inference import FREE, FakeInference, calls_of

from paddleseg_deeplab.deploy import paddle_runtime, tensorrt
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.deploy.tensorrt import SHAPE_FILE, choose_shapes, learning, trt_shapes
from paddleseg_deeplab.utils.errors import UserError

GIVEN = {
    "trt_min_shape": [1, 3, 64, 64],
    "trt_opt_shape": [2, 3, 256, 512],
    "trt_max_shape": [2, 3, 512, 1024],
}


@pytest.mark.parametrize(
    ("precision", "kind", "calibrates"),
    [("fp32", "Float32", False), ("fp16", "Half", False), ("int8", "Int8", True)],
)
def test_tensorrt(precision, kind, calibrates):
    calls = calls_of(
        device="gpu", use_trt=True, precision=precision, batch_size=4, min_subgraph_size=9
    )
    assert calls["enable_use_gpu"] == ((100, 0), {})
    assert calls["enable_tensorrt_engine"] == (
        (),
        {
            "workspace_size": 1 << 30,
            "max_batch_size": 4,
            "min_subgraph_size": 9,
            "precision_mode": kind,
            "use_static": False,
            "use_calib_mode": calibrates,
        },
    )
    # min, max, opt: Paddle's order
    assert calls["set_trt_dynamic_shape_info"] == (
        ({"x": [1, 3, 100, 100]}, {"x": [4, 3, 2000, 3000]}, {"x": [4, 3, 512, 1024]}),
        {},
    )


def test_tensorrt_with_given_shapes():
    calls = calls_of(device="gpu", use_trt=True, **GIVEN)
    low, high, best = (shape["x"] for shape in calls["set_trt_dynamic_shape_info"][0])
    assert [low, best, high] == list(GIVEN.values())


def test_a_fixed_network_gives_its_size_three_times():
    calls = calls_of(shape=[1, 3, 64, 96], device="gpu", use_trt=True)
    shapes = calls["set_trt_dynamic_shape_info"][0]
    assert shapes == ({"x": [1, 3, 64, 96]},) * 3


def test_fixed_sides_win():
    info = DeployInfo("legacy", [None, 4, 96, None])
    low, best, high = trt_shapes(info, RuntimeSettings(batch_size=2))
    assert (low, best, high) == ([1, 4, 96, 100], [2, 4, 96, 1024], [2, 4, 96, 3000])


def test_tensorrt_learns_shapes():
    first = calls_of(device="gpu", use_trt=True, tuned_shape_file="t", collect_shapes=True)
    assert first["collect_shape_range_info"] == (("t",), {})
    assert "enable_tensorrt_engine" not in first
    then = calls_of(device="gpu", use_trt=True, tuned_shape_file="t")
    assert then["enable_tuned_tensorrt_dynamic_shape"] == (("t", True), {})
    assert "enable_tensorrt_engine" in then
    assert "set_trt_dynamic_shape_info" not in then


# -- what is installed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (((0, 0, 0), (0, 0, 0)), ["built without TensorRT", "--format onnx"]),
        (((8, 6, 1), (0, 0, 0)), ["TensorRT 8.6.1", "libnvinfer", "LD_LIBRARY_PATH"]),
        (((10, 3, 0), None), ["TensorRT 10.3.0", "libnvinfer", "LD_LIBRARY_PATH"]),
    ],
)
def test_without_tensorrt(versions, words, monkeypatch):
    monkeypatch.setattr(paddle_runtime, "_check_program", lambda path: None)
    inference = FakeInference(tensorrt=versions)
    settings = RuntimeSettings(device="gpu", use_trt=True)
    with pytest.raises(UserError, match="--use_trt") as caught:
        PaddleRuntime(DeployInfo("legacy", FREE, folder="f"), settings, inference)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not inference.made
    settings.use_trt = False  # nobody asks for it then
    PaddleRuntime(DeployInfo("legacy", FREE, folder="f"), settings, inference)


def test_this_wheel():
    """A build for a CPU has none; what the real functions give is understood."""
    import paddle.inference as inference

    if any(inference.get_trt_compile_version()):
        pytest.skip("this Paddle was built with TensorRT")
    with pytest.raises(UserError, match="built without TensorRT"):
        tensorrt.check_installed(inference)


# -- where shapes come from --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "learn", "kept", "expected"),
    [
        ({}, None, False, (True, SHAPE_FILE)),  # the default: learned, and kept beside the network
        ({}, None, True, (False, SHAPE_FILE)),
        ({}, True, True, (True, SHAPE_FILE)),  # anew
        ({}, False, False, (False, None)),  # PaddleSeg's bounds
        (GIVEN, None, False, (False, None)),
        (GIVEN, None, True, (False, None)),
        (GIVEN, True, False, (True, SHAPE_FILE)),
        ({"trt_max_shape": [1, 3, 8, 8]}, None, False, (False, None)),
        ({"tuned_shape_file": "own"}, None, True, (False, "own")),
        ({"tuned_shape_file": "own"}, True, True, (False, "own")),
        ({"tuned_shape_file": "new"}, True, True, (True, "new")),
        ({"tuned_shape_file": "new"}, None, True, UserError),
        ({"tuned_shape_file": "new"}, False, True, UserError),
        ({"use_trt": False}, None, False, (False, None)),
        ({"use_trt": False, "tuned_shape_file": "new"}, None, False, UserError),
    ],
)
@pytest.mark.parametrize("shape", [FREE, [1, 3, 64, 64]], ids=["free", "fixed"])
def test_choice(settings, learn, kept, expected, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").write_text("shapes")
    info = DeployInfo("legacy", shape, folder=str(tmp_path))
    settings = RuntimeSettings(**{"device": "gpu", "use_trt": True, **settings})
    if kept:
        (tmp_path / SHAPE_FILE).write_text("shapes")
    if expected is UserError:
        with pytest.raises(UserError, match="new: no such file"):
            choose_shapes(info, settings, learn)
        return
    learned = choose_shapes(info, settings, learn)
    name = settings.tuned_shape_file and os.path.basename(settings.tuned_shape_file)
    assert (learned, name) == expected
    if name == SHAPE_FILE:
        assert settings.tuned_shape_file == str(tmp_path / SHAPE_FILE)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    settings = RuntimeSettings(device="gpu", use_trt=True)
    assert choose_shapes(DeployInfo("legacy", FREE, folder=str(tmp_path)), settings)
    elsewhere = settings.tuned_shape_file
    assert os.path.basename(elsewhere) == SHAPE_FILE
    assert not elsewhere.startswith(os.path.join(str(tmp_path), ""))
    os.rmdir(os.path.dirname(elsewhere))


def test_learning_says_where_and_keeps_the_file_whole(tmp_path, caplog):
    target = str(tmp_path / SHAPE_FILE)
    settings = RuntimeSettings(device="gpu", use_trt=True, tuned_shape_file=target)
    with caplog.at_level(logging.INFO, logger="paddleseg_deeplab"), learning(settings):
        assert settings.collect_shapes
        with open(settings.tuned_shape_file, "w") as file:
            file.write("shapes")
        assert not os.path.exists(target)
    assert target in caplog.text
    assert (settings.tuned_shape_file, settings.collect_shapes) == (target, False)
    assert os.listdir(tmp_path) == [SHAPE_FILE]


@pytest.mark.parametrize("written", [None, ""])
def test_nothing_was_learned(tmp_path, written):
    target = str(tmp_path / SHAPE_FILE)
    settings = RuntimeSettings(device="gpu", use_trt=True, tuned_shape_file=target)

    def learn():
        with learning(settings):
            if written is not None:
                open(settings.tuned_shape_file, "w").close()

    with pytest.raises(UserError, match="no shapes for TensorRT were learned"):
        learn()
    assert not os.listdir(tmp_path)
    assert (settings.tuned_shape_file, settings.collect_shapes) == (target, False)


class Recording(FakeInference):
    """Paddle Inference on a GPU: predictors write shapes when they go."""

    def create_predictor(self, config):
        predictor = super().create_predictor(config)
        path = config.calls.get("collect_shape_range_info", ((None,), {}))[0][0]

        class Writing(type(predictor)):
            def __del__(self):
                if path and self.runs:
                    with open(path, "w") as file:
                        file.write(f"{self.runs} runs")

            def get_output_handle(self, name):
                handle = super().get_output_handle(name)
                handle.copy_to_cpu = lambda: self.batch.sum(1).astype("int32")
                return handle

        predictor.__class__ = Writing
        return predictor


@pytest.fixture
def on_a_gpu(monkeypatch):
    import paddle

    inference = Recording()
    monkeypatch.setattr(paddle, "inference", inference)
    monkeypatch.setitem(sys.modules, "paddle.inference", inference)
    monkeypatch.setattr(paddle_runtime, "_check_program", lambda path: None)
    monkeypatch.setattr("paddleseg_deeplab.deploy.settings.gpu_count", lambda: 1)
    return inference


def test_infer_learns_once(folder, on_a_gpu, capsys):
    assert infer(folder, "--use_trt") == 0
    learning_run, run = (config.calls for config in on_a_gpu.made)
    assert "enable_tensorrt_engine" not in learning_run
    assert run["enable_tuned_tensorrt_dynamic_shape"] == ((str(folder / SHAPE_FILE), True), {})
    assert (folder / SHAPE_FILE).read_text() == "1 runs"
    on_a_gpu.made.clear()
    assert infer(folder, "--use_trt") == 0
    [again] = on_a_gpu.made
    assert again.calls["enable_tuned_tensorrt_dynamic_shape"][0][0] == str(folder / SHAPE_FILE)
    told = capsys.readouterr().err
    assert told.count(f"kept in {folder / SHAPE_FILE}") == 1
    assert told.count(f"TensorRT's shapes: {folder / SHAPE_FILE}") == 1


def test_infer_with_bounds_or_without_learning(folder, on_a_gpu):
    for flags in (["--trt_max_shape", "1", "3", "512", "2048"], ["--enable_auto_tune", "False"]):
        on_a_gpu.made.clear()
        assert infer(folder, "--use_trt", *flags) == 0
        [config] = on_a_gpu.made
        assert "set_trt_dynamic_shape_info" in config.calls
    assert not (folder / SHAPE_FILE).exists()


def test_an_export_forgets_what_was_learned_of_the_one_before(tmp_path):
    from paddleseg_deeplab.deploy.export import _move_into_place

    new, old = tmp_path / "new", tmp_path / "old"
    for directory in (new, old, old / "_opt_cache"):
        directory.mkdir()
    (new / "model.json").write_text("network")
    for name in (SHAPE_FILE, "model.pdmodel", "notes.txt", "_opt_cache/trt_calib_1"):
        (old / name).write_text("old")
    _move_into_place(str(new), str(old))
    assert sorted(os.listdir(old)) == ["model.json", "notes.txt"]


# -- int8 --------------------------------------------------------------------------------------


def test_int8_without_a_table_is_said(folder, on_a_gpu, capsys):
    assert infer(folder, "--use_trt", "--precision", "int8") == 0
    assert capsys.readouterr().err.count("This run computes in fp32") == 1
    (folder / "_opt_cache").mkdir()
    (folder / "_opt_cache" / "trt_calib_123").write_text("table")
    assert infer(folder, "--use_trt", "--precision", "int8") == 0
    assert "computes in fp32" not in capsys.readouterr().err

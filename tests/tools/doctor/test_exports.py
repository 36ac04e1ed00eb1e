# SPDX-License-Identifier: Apache-2.0
"""The checks of exports: each passes here, and fails where its part is broken on purpose."""

import importlib
import os
from dataclasses import FrozenInstanceError

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.settings import FORMATS, RuntimeSettings
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.tools.doctor import exports
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed, skipped

WRONG = 1 + 5e-4  # a factor below the export's own limit, above the one here


def statuses(rows):
    return [row.status for row in rows]


def has(*packages):
    return "SKIP" if exports._missing(packages) else "PASS"


def test_rows():
    assert [passed("a", "b"), failed("a", "b"), skipped("a", "b")] == [
        Row("a", status, "b") for status in ("PASS", "FAIL", "SKIP")
    ]
    with pytest.raises(FrozenInstanceError):
        passed("a", "b").status = "FAIL"


@pytest.mark.slow
def test_exports_pass():
    rows = exports.check_exports("cpu")
    assert [row.name for row in rows] == [f"export, {form}" for form in FORMATS]
    assert statuses(rows) == ["PASS", "PASS", has(*exports._ONNX)], rows
    assert all("of the largest" in row.detail for row in rows if row.status == "PASS")


@pytest.mark.slow
def test_exports_fail_where_a_rearranged_network_is_another(monkeypatch):
    # `from paddleseg_deeplab.core import export` is the function.
    export_module = importlib.import_module("paddleseg_deeplab.deploy.export")

    def broken(model, widen=False):
        network = fold(model, widen)
        weight = network.head.decoder.conv.weight
        weight.set_value(weight * WRONG)
        network.head.decoder.conv.bias.set_value(network.head.decoder.conv.bias * WRONG)
        return network

    fold = export_module.folded_copy
    monkeypatch.setattr(export_module, "folded_copy", broken)
    rows = exports.check_exports("cpu", formats=("pir", "legacy"))
    assert statuses(rows) == ["FAIL", "FAIL"], rows
    assert all("5.0e-04 of the largest" in row.detail for row in rows)


@pytest.mark.parametrize("form", FORMATS)
def test_exports_fail_where_paddle_stops(form, monkeypatch):
    def stop(*args, **kwargs):
        raise OSError("no such\noperator " + 99 * "long ")

    monkeypatch.setattr(exports, "_missing", lambda packages: None)
    monkeypatch.setattr(exports, "export", stop)
    [row] = exports.check_exports("cpu", formats=[form])
    assert row.status == "FAIL"
    assert row.detail.startswith("no such operator long")
    assert len(row.detail) < 320


def test_a_format_that_is_not_installed_is_skipped(monkeypatch):
    monkeypatch.setattr(exports, "_missing", lambda packages: "paddle2onnx")
    assert exports.check_exports("cpu", formats=["onnx"]) == [
        skipped("export, onnx", "paddle2onnx is not installed")
    ]


@pytest.mark.slow
def test_runtimes_on_a_cpu():
    rows = exports.check_runtimes("cpu")
    names = [row.name for row in rows]
    assert names[:3] == ["Paddle Inference, fp32", "ONNX Runtime, fp32", "OpenVINO, fp32"]
    assert statuses(rows)[:3] == ["PASS", has(*exports._ONNX), has("openvino")], rows
    # What needs a GPU is there by name.
    assert names[3] == "Paddle Inference, fp16"
    assert [name.partition(",")[0] for name in names[4:]] == ["TensorRT"] * 4
    assert set(rows[3:]) == {skipped(name, "needs a GPU") for name in names[3:]}


class FakeGpu:
    """Runtimes of a GPU: dygraph's logits, with what TensorRT writes as it goes."""

    def __init__(self, monkeypatch):
        self.network = exports.small_network()
        self.opened = []
        self.writes_shapes = self.writes_table = True
        self.change = lambda logits: logits
        monkeypatch.setattr(exports, "export", self.export)
        monkeypatch.setattr(exports, "open_runtime", self.open)

    def export(self, network, folder, *, input_shape, **kwargs):
        os.makedirs(folder)
        return DeployInfo("legacy", input_shape, folder=folder)

    def open(self, info, settings):
        self.opened.append((settings.collect_shapes, settings.tuned_shape_file is not None))
        return _FakeRuntime(self, info, settings)


class _FakeRuntime:
    def __init__(self, gpu, info, settings):
        self.gpu, self.path = gpu, None
        if settings.collect_shapes and gpu.writes_shapes:
            self.path = settings.tuned_shape_file
        elif settings.precision == "int8" and not settings.collect_shapes and gpu.writes_table:
            os.makedirs(os.path.join(info.folder, "_opt_cache"), exist_ok=True)
            self.path = os.path.join(info.folder, "_opt_cache", "trt_calib_1")

    def run(self, batch):
        with paddle.no_grad():
            logits = infer_logits(self.gpu.network, paddle.to_tensor(batch)).numpy()
        return self.gpu.change(logits)

    def __del__(self):
        if self.path:
            with open(self.path, "w") as file:
                file.write("written")


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch)


def gpu_rows(gpu):
    return exports._gpu_rows(gpu.network, "gpu:0")


@pytest.mark.slow
def test_rows_of_a_gpu(gpu):
    rows = gpu_rows(gpu)
    assert statuses(rows) == ["PASS"] * 5, rows
    assert gpu.opened == [
        (False, False),  # fp16
        (False, False),  # a fixed size: bounds of the input alone
        *([(True, True), (False, True)] * 2),  # free sizes: shapes are learned first
        *[(True, True), (False, True), (False, True)],  # int8: calibrated, too
    ]


def shifted(share):
    """A change of logits that gives this share of the pixels another class."""

    def change(logits):
        flat = logits.transpose(0, 2, 3, 1).reshape(-1, logits.shape[1]).copy()
        some = slice(0, int(np.ceil(share * len(flat))))
        flat[some] = -flat[some]
        n, c, h, w = logits.shape
        return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    return change


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0005, "PASS PASS PASS PASS PASS"),
        (0.0015, "PASS FAIL FAIL PASS PASS"),
        (0.005, "FAIL FAIL FAIL FAIL PASS"),
        (0.03, "FAIL FAIL FAIL FAIL FAIL"),
    ],
)
def test_each_has_its_limit(gpu, share, expected):
    gpu.change = shifted(share)
    assert statuses(gpu_rows(gpu)) == expected.split()


@pytest.mark.slow
def test_numbers_that_are_not_finite_fail(gpu):
    gpu.change = lambda logits: np.where(logits == logits.min(), np.nan, logits)
    assert statuses(gpu_rows(gpu)) == ["FAIL"] * 5


@pytest.mark.slow
def test_shapes_or_a_table_that_are_not_written_fail(gpu):
    gpu.writes_shapes = False
    rows = gpu_rows(gpu)
    assert statuses(rows) == ["PASS", "PASS", "FAIL", "FAIL", "FAIL"]
    assert "no shapes" in rows[2].detail
    gpu.writes_shapes, gpu.writes_table = True, False
    rows = gpu_rows(gpu)
    assert statuses(rows) == ["PASS", "PASS", "PASS", "PASS", "FAIL"]
    assert "no calibration table" in rows[4].detail


def test_a_runtime_in_float32_that_differs_fails(gpu):
    settings = RuntimeSettings()
    assert exports.run_row("a", gpu.network, settings).status == "PASS"
    gpu.change = lambda logits: logits * np.float32(WRONG)
    row = exports.run_row("a", gpu.network, settings)
    assert row == failed("a", "a logit differs by 5.0e-04 of the largest, 1e-04 is allowed")

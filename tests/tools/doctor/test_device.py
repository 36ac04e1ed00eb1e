# SPDX-License-Identifier: Apache-2.0
"""The checks that an owner of a GPU runs: here on a CPU, and each with its part broken."""

import contextlib

import numpy as np
import paddle
import pytest
from paddle.base import core

from paddleseg_deeplab.deploy.tf32 import tf32
from paddleseg_deeplab.models.layers import Conv2D
from paddleseg_deeplab.tools.doctor import device, operators, ranks, training


def test_differences_are_shares_of_the_largest():
    assert device.difference([1.0, 4.0], [1.0, 5.0]) == pytest.approx(0.2)
    assert device.difference([0.5], [0.0]) == 0.5
    assert device.difference([np.nan], [1.0]) == float("inf")
    assert device.difference([1.0], [np.inf]) == float("inf")


def test_the_device_and_the_tf32_switches_are_as_before():
    before = core.get_cudnn_switch(), core.get_cublas_switch()

    def fail():
        with device.using("cpu"), tf32(not before[0]):
            assert core.get_cudnn_switch() is not before[0]
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert (core.get_cudnn_switch(), core.get_cublas_switch()) == before
    assert paddle.get_device() == "cpu"


def convolving(change):
    """A convolution that does `change` to its result."""

    class Changed(Conv2D):
        def forward(self, x):
            return change(super().forward(x))

    return Changed


@pytest.mark.parametrize("row", operators.ROWS)
def test_operators(row, monkeypatch):
    assert row("cpu").status == "PASS"
    wrong = {
        "Conv2D": convolving(lambda y: 1.0001 * y),
        "resize": lambda x, size, align, data_format: operators.F.interpolate(
            x, size, mode="bilinear", data_format=data_format
        ),
        "SyncBatchNorm": lambda n, data_format: paddle.nn.BatchNorm2D(
            n, epsilon=1e-3, data_format=data_format
        ),
    }
    for name, double in wrong.items():
        monkeypatch.setattr(operators, name, double)
    assert row("cpu").status == "FAIL"


def test_an_operator_with_a_wrong_gradient(monkeypatch):
    def change(y):
        y.register_hook(lambda g: 1.001 * g)
        return y

    monkeypatch.setattr(operators, "Conv2D", convolving(change))
    assert operators.plain_convolution("cpu").status == "FAIL"


def test_a_gpu_is_tried_with_tf32_off_and_on(monkeypatch):
    """The network's numbers are rounded as TF32 rounds them where it is on."""
    on = []

    @contextlib.contextmanager
    def tf32(rounded):
        on.append(rounded)
        yield
        on.pop()

    def change(y):
        return y * (1 + 1e-3) if on[-1] else y

    monkeypatch.setattr(operators, "using", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(operators, "tf32", tf32)
    monkeypatch.setattr(operators, "Conv2D", convolving(change))
    row = operators.plain_convolution("gpu")
    assert row.status == "PASS"
    assert "TF32 on" in row.detail
    monkeypatch.setattr(operators, "Conv2D", convolving(lambda y: y * (1 + 1e-3)))
    assert operators.plain_convolution("gpu").status == "FAIL"


# -- training ----------------------------------------------------------------------------------


def changed_from(call, factor):
    """`run_steps` whose losses are wrong from a call on."""
    plain, calls = training.run_steps, []

    def run_steps(*args, **kwargs):
        found, scale = plain(*args, **kwargs)
        calls.append(args)
        return [x * factor if len(calls) > call else x for x in found], scale

    return run_steps


@pytest.mark.parametrize(
    "row",
    [training.twenty_steps, training.twenty_steps_nhwc, training.repeated, training.compiled],
)
def test_steps(row, monkeypatch):
    assert row("cpu").status == "PASS"
    monkeypatch.setattr(training, "run_steps", changed_from(1, 1 + 2e-4))
    assert row("cpu").status == "FAIL"


def test_training_that_does_not_learn(monkeypatch):
    plain = training.optimizer_of

    def standing(network):
        optimizer = plain(network)
        optimizer.step = lambda: None
        return optimizer

    monkeypatch.setattr(training, "optimizer_of", standing)
    assert training.twenty_steps("cpu").status == "FAIL"


HALVES = [training.fp16_o1, training.fp16_o2, training.bf16_o1, training.bf16_o2]


@pytest.mark.parametrize("row", [*HALVES, training.resumed_fp16_o1, training.depthwise_type])
def test_half_precision_is_skipped_on_a_cpu(row):
    found = row("cpu")
    assert found.status == "SKIP"
    assert "CPU" in found.detail


GOOD = [*np.linspace(1.2, 0.6, 50)]


@pytest.mark.parametrize(
    ("found", "scale", "status"),
    [
        (GOOD, 1024.0, "PASS"),
        (GOOD, 0.5, "FAIL"),
        ([1.23, *GOOD[1:]], 1024.0, "FAIL"),  # 2.5 % from fp32's
        ([1.2, *GOOD[1:30], float("nan"), *GOOD[31:]], 1024.0, "FAIL"),
        ([1.2] * 50, 1024.0, "FAIL"),
    ],
)
@pytest.mark.parametrize("row", HALVES)
def test_half_precision(row, found, scale, status, monkeypatch):
    def run_steps(device, count, precision="fp32", amp_level="O1"):
        return (found, scale) if precision != "fp32" else ([1.2], 1.0)

    monkeypatch.setattr(training, "_cannot", lambda *args: None)
    monkeypatch.setattr(training, "run_steps", run_steps)
    assert row("gpu").status == status


def test_half_precision_runs_what_it_says(monkeypatch):
    """The row's whole way, with autocast left out: it is fp32 twice, and passes."""
    off = lambda *args: contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr(training, "_cannot", lambda *args: None)
    monkeypatch.setattr("paddleseg_deeplab.core.training.step.precision_context", off)
    assert training.bf16_o1("cpu").status == "PASS"


def test_type_of_a_depthwise_convolution(monkeypatch):
    monkeypatch.setattr(training, "_cannot", lambda *args: None)
    monkeypatch.setattr(training, "precision_context", lambda p: contextlib.nullcontext())
    assert training.depthwise_type("cpu").status == "FAIL"  # float32
    kinds = {"fp16": paddle.float32, "bf16": paddle.float32}
    monkeypatch.setattr(training, "_DTYPES", kinds)
    assert training.depthwise_type("cpu").status == "PASS"

    # One map that goes back to another type.
    class Wide(training.SmallNet):
        def __init__(self):
            super().__init__()
            conv = self.body.depthwise_conv._conv

            def widen_once(layer, inputs, y):
                handle.remove()
                return y.astype("float64")

            handle = conv.register_forward_post_hook(widen_once)

    monkeypatch.setattr(training, "SmallNet", Wide)
    assert training.depthwise_type("cpu").status == "FAIL"


def test_place_of_a_batch(monkeypatch):
    assert training.place_of_batch("cpu").status == "PASS"
    monkeypatch.setattr(training, "using", lambda name: contextlib.nullcontext())
    assert training.place_of_batch("gpu").status == "FAIL"  # they came on the CPU


def test_resume(monkeypatch):
    assert training.resumed("cpu").status == "PASS"
    # The velocity is lost.
    monkeypatch.setattr(paddle.optimizer.Momentum, "set_state_dict", lambda *args: None)
    assert training.resumed("cpu").status == "FAIL"


# -- two processes, without starting them (tests/tools/doctor/test_ranks.py does) ----------


def test_two_ranks_need_two_gpus(monkeypatch):
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    for row in ranks.ROWS:
        found = row("gpu")
        assert found.status == "SKIP"
        assert "here is 1" in found.detail


def test_sync_batch_norm_has_no_cpu_kernel():
    assert ranks.sync_batch_norm("cpu").status == "SKIP"


def parts_of(expected, **wrong):
    return [{**expected, **wrong}, dict(expected)]


def test_frozen_gradients_that_differ(monkeypatch):
    parts = [ranks._frozen_gradients(ranks._images(rank), True) for rank in range(2)]
    monkeypatch.setattr(ranks, "_done", lambda *args: parts)
    assert ranks.frozen_batch_norm("cpu").status == "PASS"
    parts[1]["classifier.weight"] = parts[1]["classifier.weight"] * 1.001
    assert ranks.frozen_batch_norm("cpu").status == "FAIL"


def test_two_ranks_that_do_not_sum_their_gradients(monkeypatch, tmp_path):
    whole = ranks._weights_after_training("cpu", tmp_path / "a", ranks.BATCH)
    monkeypatch.setattr(ranks, "_done", lambda *args: [whole, whole])
    assert ranks.two_against_one("cpu").status == "PASS"
    half = ranks._weights_after_training("cpu", tmp_path / "b", ranks.BATCH // 2)
    monkeypatch.setattr(ranks, "_done", lambda *args: [whole, half])
    assert ranks.two_against_one("cpu").status == "FAIL"


@pytest.mark.parametrize("row", [ranks.frozen_batch_norm, ranks.two_against_one])
@pytest.mark.parametrize(("status", "text"), [(1, "ended with status 1"), (None, "did not end")])
def test_processes_that_fail_or_hang(row, status, text, monkeypatch):
    logs = ["fine\n", "Traceback\nRuntimeError: what\n"]
    monkeypatch.setattr(ranks, "launch", lambda *args: (status, logs))
    found = row("cpu")
    assert found.status == "FAIL"
    assert text in found.detail
    assert "RuntimeError: what" in found.detail


OUT = '{"ended": "UserError: out of memory: 4 images of 32x32"}'


@pytest.mark.parametrize(
    ("status", "logs", "seconds_ago", "expected"),
    [
        (1, ["", OUT], 5, "PASS"),
        (0, ["", OUT], 5, "FAIL"),  # as if all were well
        (None, ["", OUT], 5, "FAIL"),  # hangs
        (1, ["", OUT], 90, "FAIL"),  # ends too late
        (1, [OUT, OUT], 5, "FAIL"),  # said twice
        (1, ['{"ended": "RunStopped: cannot reach the others"}', ""], 5, "FAIL"),
        (1, ["", ""], 5, "FAIL"),  # nothing said
        (1, ["", OUT], None, "FAIL"),  # stopped before
    ],
)
def test_out_of_memory(status, logs, seconds_ago, expected, monkeypatch):
    def launch(job, device, folder, seconds):
        if seconds_ago is not None:
            (ranks.Path(folder) / "failed").write_text(str(ranks.time.time() - seconds_ago))
        return status, logs

    monkeypatch.setattr(ranks, "launch", launch)
    assert ranks.out_of_memory("cpu").status == expected

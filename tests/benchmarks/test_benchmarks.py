# SPDX-License-Identifier: Apache-2.0
"""benchmarks/: every suite runs in small, outputs are compared before they are timed. No time is
asserted."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

FOLDER = ROOT / "benchmarks"
NAMES = (
    *("loss", "confusion", "crf", "export", "train_step", "input", "evaluate", "multiscale"),
    "start",
)


@pytest.fixture(scope="module")
def bench(load):
    """The harness and every suite."""
    names = ("harness", "children", "run", *(f"suites.{n}" for n in NAMES))
    return types.SimpleNamespace(**{name.split(".")[-1]: load(name) for name in names})


@pytest.fixture
def options(bench):
    rates = bench.harness.Rates(operations=1e9, bytes=1e9)
    return bench.harness.Options(runs=1, small=True, rates=rates)


@pytest.mark.slow
def test_every_suite_in_small(tmp_path):
    command = [sys.executable, "benchmarks/run.py", "--small", "--runs", "1"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert tuple(figures["suites"]) == NAMES
    assert figures["small"] is True
    assert figures["runs"] == 1
    assert figures["rates"]["operations"] > 0
    for name, suite in figures["suites"].items():
        assert f"\n{name}: " in done.stdout
        for row in suite["rows"]:
            assert f"| {row['work']}" in done.stdout
            assert len(row["our_seconds"]) == 1
            assert row["ours"] == row["our_seconds"][0] > 0
            is_explained = row["note"].startswith("not measured: ")
            assert (row["ratio"] is None) == (is_explained or not row["peer"])
    assert figures["suites"]["loss"]["rows"][0]["peer"] == "plain loop"
    assert figures["suites"]["loss"]["rows"][0]["floor"] > 0
    assert [r["peer"] for r in figures["suites"]["export"]["rows"]][-1].startswith("dygraph")
    assert figures["suites"]["export"]["rows"][-1]["ratio"] > 0
    started = [row["work"] for row in figures["suites"]["start"]["rows"]]
    assert "start to the end of the first step" in started
    assert "of it: Paddle" in started


def test_list_and_wrong_flags(bench, capsys):
    assert bench.run.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(NAMES)
    for argv in (["losses"], ["--runs", "0"]):
        with pytest.raises(SystemExit) as stop:
            bench.run.main(argv)
        assert stop.value.code == 2
    assert "--runs should be at least 1" in capsys.readouterr().err


# -- equal before timed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ([1.0, 2.0], [1.0, 2.5], True),
        ([1.0, 2.0], [1.0, 2.6], False),
        ([1.0], [1.0, 1.0], False),
        ([np.nan], [np.nan], False),
        (np.array([255], np.uint8), np.array([0], np.int64), False),
    ],
)
def test_assert_close(bench, ours, theirs, equal):
    if equal:
        bench.harness.assert_close("what", ours, theirs, 0.5)
    else:
        with pytest.raises(bench.harness.Unequal, match=r"^what: "):
            bench.harness.assert_close("what", ours, theirs, 0.5)


def test_unequal_outputs_are_not_timed(bench, options):
    calls = []

    def work(value):
        return lambda: calls.append(value) or value

    def check(ours, theirs, name):
        bench.harness.assert_close(name, ours, theirs, 0)

    peers = {"first": work(1), "second": work(2)}
    with pytest.raises(bench.harness.Unequal, match="second"):
        bench.harness.compare("work", work(1), peers, check, options)
    assert calls == [1, 1, 2]  # once each, for the comparison


def test_run_reports_unequal_outputs(bench, monkeypatch, capsys, tmp_path):
    def rows(options):
        raise bench.harness.Unequal("loss: differs by 1.")

    bad, good = types.ModuleType("suites.bad"), types.ModuleType("suites.good")
    bad.rows, good.rows = rows, lambda options: [bench.harness.Row("fine", ours=2.0)]
    for module in (bad, good):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        bench.run, "SUITES", {"bad": ("suites.bad", "a"), "good": ("suites.good", "b")}
    )
    path = tmp_path / "figures.json"
    assert bench.run.main(["--small", "--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert "outputs are not equal, so they are not timed. loss: differs by 1." in out
    assert "| fine | 2 s  |" in out  # the other suites still run
    suites = json.loads(path.read_text(encoding="utf-8"))["suites"]
    assert suites["bad"] == {"error": "loss: differs by 1.", "rows": []}
    assert suites["good"]["rows"][0]["work"] == "fine"


def test_each_suite_s_check_fires(bench, tmp_path):
    import cv2

    unequal = bench.harness.Unequal
    loss = bench.loss
    inputs = loss.make_inputs(loss.SMALL[0], "mid")
    value, grad = loss.runner(loss.our_loss(), *inputs)()
    plain = loss.runner(loss.plain_loss, *inputs)()
    loss.check((value, grad), plain, "plain loop")
    for other in ((value + 2e-5, grad), (value, grad + 2e-5), (value, grad * 1.02)):
        with pytest.raises(unequal):
            loss.check(other, plain, "plain loop")
    with pytest.raises(unequal):
        bench.confusion.check(np.eye(3), np.eye(3) + np.eye(3, k=1), "peer")
    with pytest.raises(unequal):
        bench.crf.check(np.zeros((2, 2)), np.full((2, 2), 2e-3), "peer")
    # A pixel whose best scores are near may differ, another one not.
    scores = np.array([[[1.0, 1.0]], [[1.0005, 0.0]]], np.float32)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, mask in zip(paths, ([1, 0], [0, 0], [1, 1])):
        cv2.imwrite(path, np.array([mask], np.uint8))
    check = bench.export.checker(scores, 1e-3)
    check(paths[0], paths[1], "peer")
    with pytest.raises(unequal, match="1 pixels"):
        check(paths[0], paths[2], "peer")


# -- missing peers ---------------------------------------------------------------------------------


def test_missing_peer_is_a_row_that_says_so(bench, options, monkeypatch):
    for name in ("sklearn.metrics", "torch", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)  # the import fails
    rows = [*bench.confusion.rows(options), *bench.crf.rows(options)]
    assert [row.peer for row in rows[:3]] == ["scikit-learn", "torchmetrics", "pydensecrf"]
    text = bench.harness.table(rows)
    for row in rows:
        assert row.ours > 0
        assert row.ratio is row.theirs is row.their_memory is None
        assert row.note.startswith("not measured: ModuleNotFoundError")
        assert row.note in text


def test_only_a_missing_module_makes_a_peer_missing(bench):
    from paddleseg_deeplab.utils.errors import UserError, import_extra

    missing = bench.harness.peer(lambda: import_extra("a_module_that_is_nowhere"))
    assert "a_module_that_is_nowhere" in missing.why

    def broken():
        raise UserError("The exported network differs.")

    with pytest.raises(UserError, match="differs"):
        bench.harness.peer(broken)


# -- the harness -----------------------------------------------------------------------------------


def test_turns_go_back_and_forth(bench):
    order = []
    functions = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = bench.harness.take_turns(functions, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_is_the_median_of_the_turns_ratios(bench):
    row = bench.harness.Row("work", our_seconds=[1.0, 10.0, 2.0])
    bench.harness.put_ratio(row, [4.0, 20.0, 6.0])  # ratios 4, 2, 3; of medians it would be 3 too
    assert (row.ratio, row.quartiles, row.theirs) == (3.0, (2.5, 3.5), 6.0)
    row = bench.harness.Row("work", our_seconds=[1.0, 10.0, 2.0])
    bench.harness.put_ratio(row, [8.0, 10.0, 10.0])  # ratios 8, 1, 5; of medians 10 / 2 = 5
    assert row.ratio == 5.0


def test_floor_is_the_larger_need(bench):
    rates = bench.harness.Rates(operations=100.0, bytes=10.0)
    assert rates.floor(operations=200, moved=10) == 2.0
    assert rates.floor(operations=200, moved=30) == 3.0


def test_a_function_may_measure_itself(bench):
    given = bench.harness.Seconds(5.0, "output")
    assert bench.harness.timed(lambda: given) == (5.0, "output")


def test_table(bench):
    row = bench.harness.Row("a", "b", 0.5, 1e-4, 2.0, (1.0, 3.0), our_memory=2**20)
    head, rule, line = bench.harness.table([row]).splitlines()
    names = [name.strip() for name in head.strip("|").split("|")]
    assert names == ["work", "ours", "peer", "peer's", "ratio (quartiles)", "memory"]
    assert set(rule) == {"|", "-"}
    assert len(head) == len(rule) == len(line)
    assert line.split("|")[2].strip() == "500 ms"
    assert line.split("|")[4].strip() == "100 us"
    assert line.split("|")[5].strip() == "2.00 (1.00 to 3.00)"
    assert line.split("|")[6].strip() == "1.0 MiB / -"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0123, "12.3 ms"), (1234.5, "1234 s"), (2e-6, "2 us")]
)
def test_seconds_text(bench, value, text):
    assert bench.harness.seconds_text(value) == text


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_peak_memory(bench):
    """In a fresh process: one that trains keeps the memory that it has freed."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import children, numpy as np\n"
        "def work():  # 64 MiB at its peak, 32 MiB at its end\n"
        "    kept = np.ones(1 << 22)\n"
        "    return kept, kept.copy()[:1].copy()\n"
        "print(children.peak_of(work))"
    )
    folder = str(Path(bench.children.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "None":
        pytest.skip("this system does not let the mark be set back")
    assert 62 << 20 < int(done.stdout) < 72 << 20  # pages of Python's own may come on top
    child = bench.children.peak_memory("suites.confusion", "memory_work", None, 19, [256, 512])
    assert 0 <= child < 32 << 20


def test_a_failing_child_says_why(bench):
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.children.peak_memory("suites.confusion", "memory_work", "nobody", 3, [4, 4])

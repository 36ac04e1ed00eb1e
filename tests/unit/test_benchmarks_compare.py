# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/run.py --compare`: its turns, statistics, copies and cleaning up, on a tiny
repository whose package says how many seconds a turn took. No clock is asserted."""

import argparse
import ast
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
MODULES = ("compare", "processes", "trees", "run", "printing", "side")
SUITES = (
    *("confusion", "crf", "evaluate", "export", "input", "loss", "multiscale", "start"),
    "train_step",
)
PACKAGE = 'SECONDS = {seconds}\nLOSS = {loss}\nSIDE = "{side}"\n{more}\n'
WORK = """
import os
import paddleseg_deeplab as p

def write(text):
    with open(os.environ["TURNS"], "a") as file:
        file.write(text)

def plain(lap, folder, small):
    n = 0
    while True:
        write(p.SIDE)
        lap(lambda: {"loss": p.LOSS}, seconds=p.SECONDS[n % len(p.SECONDS)])
        n += 1

def lacking(lap, folder, small):
    lap(lambda: {"value": p.only_one_side_has_it})
    while True:
        lap(None, seconds=1.0)

def long(lap, folder, small):
    import subprocess, time
    child = subprocess.Popen(["sleep", "1000"])
    write(f"{os.getpid()} {child.pid}\\n")
    time.sleep(1000)

ROWS = {ROWS}
"""


@pytest.fixture
def bench():
    """The modules of benchmarks/, which find each other as scripts do."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Repository:
    """A repository with the real measuring code, one suite and a package of three lines."""

    def __init__(self, root):
        self.root = root
        shutil.copytree(
            FOLDER,
            root / "benchmarks",
            ignore=shutil.ignore_patterns("__pycache__", "works", "suites"),
        )
        (root / "benchmarks" / "works").mkdir()
        (root / "paddleseg_deeplab").mkdir()
        (root / ".gitignore").write_text("__pycache__/\n")
        self.git("init", "--quiet")
        self.work({"plain": "plain"})

    def git(self, *arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(self.root), *names, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def work(self, rows):
        text = ", ".join(f'"{name}": {function}' for name, function in rows.items())
        code = WORK.replace("ROWS = {ROWS}", f"ROWS = {{{text}}}")
        (self.root / "benchmarks" / "works" / "fake.py").write_text(code)

    def package(self, seconds=(1.0,), loss=1.0, side="a", more=""):
        text = PACKAGE.format(seconds=list(seconds), loss=loss, side=side, more=more)
        (self.root / "paddleseg_deeplab" / "__init__.py").write_text(text)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def state(self):
        """All files, and what git thinks of them."""
        kept = [path for path in self.root.rglob("*") if path.is_file()]
        return self.git("status", "--porcelain"), {
            str(path): path.read_bytes() for path in kept if "index" not in path.name
        }


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The repository; temporary files go to tmp_path/temporary, turns to tmp_path/turns."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TURNS", str(tmp_path / "turns"))
    root = tmp_path / "repository"
    root.mkdir()
    made = Repository(root)
    made.package()
    made.commit()
    return made


def compare(bench, repository, revision="HEAD", **flags):
    """The exit status of a comparison, without rests."""
    default = {"suites": ["fake"], "json": None, "small": True, "most_turns": None, "quick": False}
    args = {**default, "compare": revision, "fail_slower": None, **flags}
    return bench.compare.run(argparse.Namespace(**args), repository.root)


def figures(bench, repository, tmp_path, **flags):
    compare(bench, repository, json=str(tmp_path / "figures.json"), **flags)
    return json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))


# -- statistics ------------------------------------------------------------------------------------


def test_quartiles_are_numpy_s_percentiles(bench):
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 12, 40):
        ratios = rng.lognormal(0, 0.1, count)
        expected = np.percentile(ratios, 25), np.median(ratios), np.percentile(ratios, 75)
        assert bench.compare.quartiles(ratios) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0] * 4, "within the noise"),
        ([1.04, 1.05, 1.06, 1.05], "faster"),
        ([0.96, 0.95, 0.94, 0.95], "slower"),
        ([0.80, 0.82, 0.84, 0.82], "slower"),
        ([1.02, 1.02, 1.02, 1.02], "within the noise"),  # all above 1, but by less than the noise
        ([0.98, 0.98, 0.98, 0.98], "within the noise"),
        ([0.99, 0.99, 1.05, 1.05, 1.05], "within the noise"),  # the quartiles hold 1
        ([0.84, 1.0, 1.0, 1.16], "within the noise"),  # quartiles 0.96 and 1.04 are near enough
        ([0.8, 0.9, 1.1, 1.2], "not steady"),
        ([0.5, 0.5, 0.7, 0.7], "not steady"),  # slower for sure, but by how much?
        ([0.5] + [1.0] * 9, "within the noise"),  # one bad turn
    ],
)
def test_verdict(bench, ratios, expected):
    assert bench.compare.verdict(ratios) == expected


def test_ratio_is_of_the_pairs(bench):
    result = bench.compare.result_of("row", [4.0, 20.0, 6.0], [1.0, 10.0, 2.0], "")
    assert (result.other, result.ours, result.ratio) == (6.0, 2.0, 3.0)
    assert result.quartiles == (2.5, 3.5)
    assert result.turns == 3


@pytest.mark.parametrize(
    ("other", "ours", "text"),
    [
        ({"a": 1.0}, {"a": 1.0005}, ""),
        ({"a": 0.0}, {"a": 0.0}, ""),
        ({"a": 1.0}, {"a": 1.01}, "a 1 there, 1.01 here"),
        ({"a": 1.0}, {"a": float("nan")}, "a 1 there, nan here"),
        ({"a": float("nan")}, {"a": float("nan")}, "a nan there, nan here"),
        ({"a": 1.0}, {"b": 1.0}, "a 1 there, missing here; b missing there, 1 here"),
    ],
)
def test_outputs_are_compared(bench, other, ours, text):
    assert bench.compare.differences(other, ours) == text


# -- turns -----------------------------------------------------------------------------------------


class FakeSide:
    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, iter(seconds), log

    def output(self):
        self.log.append(self.name.upper())
        return {}

    def turn(self):
        self.log.append(self.name)
        return next(self.seconds)

    def close(self):
        self.log.append("x")


def measured(bench, ratios_of_round, **limits):
    """What `measure` logs and returns where round n has the ratios that a function gives."""
    log = []

    def open_pair(number):
        ratios = ratios_of_round(number)
        return FakeSide("a", ratios, log), FakeSide("b", [1.0] * len(ratios), log)

    other, ours, _ = bench.compare.measure(open_pair, bench.compare.Limits(settle=0.0, **limits))
    assert ours == [1.0] * len(other)
    return "".join(log), other


def test_turns_go_in_turn_and_rounds_are_new_processes(bench):
    log, other = measured(bench, lambda number: [1.0, 1.0, 1.0], turns=3, rounds=2)
    assert log == "ABabbaabxx" + "ABbaabbaxx"
    assert other == [1.0] * 6


def test_an_unsteady_row_is_repeated_until_it_is_steady(bench):
    # Two rounds spoilt; with enough good ones the quartiles come near to each other.
    _, other = measured(bench, lambda n: [0.5, 2.0] if n < 2 else [1.0, 1.0], turns=2, rounds=2)
    assert bench.compare.is_steady(other)
    assert not bench.compare.is_steady(other[:-2])
    assert len(other) < 40


@pytest.mark.parametrize(
    "limits", [{"most_turns": 10}, {"most_turns": 1}, {"most_seconds": 0.0, "rounds": 2}]
)
def test_a_row_that_stays_unsteady_ends_at_a_limit(bench, limits):
    _, other = measured(bench, lambda n: [0.5, 2.0, 0.5, 2.0], turns=4, **limits)
    assert len(other) == limits.get("most_turns", 8)
    assert bench.compare.verdict([0.5, 2.0]) == "not steady"


def test_sides_are_closed_where_one_fails(bench):
    closed = []

    class Broken(FakeSide):
        def turn(self):
            raise bench.compare.SideError("it broke")

        def close(self):
            closed.append(self.name)

    def open_pair(number):
        return Broken("a", [], []), Broken("b", [], [])

    with pytest.raises(bench.compare.SideError) as caught:
        bench.compare.measure(open_pair, bench.compare.Limits(settle=0.0))
    assert caught.value.side == 0
    assert closed == ["a", "b"]


# -- two trees -------------------------------------------------------------------------------------


def test_a_commit_beside_itself(bench, repository, tmp_path, capsys):
    before = repository.state()
    found = figures(bench, repository, tmp_path)
    (row,) = found["suites"]["fake"]
    assert row["verdict"] == "within the noise"
    assert (row["ratio"], row["quartiles"], row["turns"]) == (1.0, [1.0, 1.0], 12)
    assert len(row["other_seconds"]) == len(row["our_seconds"]) == 12
    assert found["commit"].startswith(found["now"].rpartition(" ")[2])
    assert found["now"].startswith("the working tree, ")
    assert "changes" not in found["now"]
    assert "| plain | 1 s" in capsys.readouterr().out
    assert repository.state() == before
    assert list((tmp_path / "temporary").iterdir()) == []


def test_each_side_runs_its_own_package(bench, repository, tmp_path, capsys):
    repository.package(seconds=[1.25], side="b")
    before = repository.state()
    found = figures(bench, repository, tmp_path)
    (row,) = found["suites"]["fake"]
    assert (row["verdict"], row["ratio"]) == ("slower", 0.8)
    assert (row["other"], row["ours"]) == (1.0, 1.25)
    assert "with changes in 1 file (paddleseg_deeplab/__init__.py)" in found["now"]
    assert "1 slower" in capsys.readouterr().out
    # A lap more than turns: what warms up, and what begins before the process is ended.
    turns = (tmp_path / "turns").read_text()
    assert turns.count("a") >= 12
    assert turns.count("b") >= 12
    assert repository.state() == before


def test_untracked_code_counts_and_data_does_not(bench, repository):
    (repository.root / "paddleseg_deeplab" / "new.py").write_text("x = 1\n")
    (repository.root / "data.bin").write_bytes(b"0" * 10)
    (repository.root / ".gitignore").unlink()
    text = bench.trees.label(repository.root)
    assert "with changes in 2 files (.gitignore, paddleseg_deeplab/new.py)" in text
    copy = repository.root.parent / "copy"
    bench.trees.write_working_tree(repository.root, copy)
    assert (copy / "paddleseg_deeplab" / "new.py").exists()
    assert not (copy / "data.bin").exists()
    assert not (copy / ".gitignore").exists()


def test_other_outputs_are_told(bench, repository, tmp_path):
    repository.package(loss=1.5)
    (row,) = figures(bench, repository, tmp_path)["suites"]["fake"]
    assert row["note"] == "outputs differ: loss 1 there, 1.5 here"
    assert row["verdict"] == "within the noise"
    assert compare(bench, repository, fail_slower=1.05) == 1


@pytest.mark.parametrize("lacks", ["the other commit", "the working tree"])
def test_a_row_that_one_side_lacks(bench, repository, tmp_path, lacks):
    repository.work({"lacking": "lacking", "plain": "plain"})
    has, has_not = {"more": "only_one_side_has_it = 1"}, {}
    repository.package(**(has_not if lacks == "the other commit" else has))
    repository.commit()
    repository.package(**(has if lacks == "the other commit" else has_not))
    lacking, plain = figures(bench, repository, tmp_path)["suites"]["fake"]
    assert lacking["verdict"] == "not measured"
    assert lacking["note"].startswith(f"{lacks}: AttributeError: module 'paddleseg_deeplab' has no")
    assert plain["verdict"] == "within the noise"  # the others go on


def test_a_package_from_elsewhere_is_refused(bench, repository, tmp_path):
    (repository.root / "paddleseg_deeplab" / "__init__.py").unlink()
    (repository.root / "paddleseg_deeplab.py").write_text("__file__ = '/elsewhere/p.py'\n")
    (row,) = figures(bench, repository, tmp_path)["suites"]["fake"]
    assert row["verdict"] == "not measured"
    assert "the package came from /elsewhere/p.py" in row["note"]


@pytest.mark.parametrize(
    ("seconds", "status"), [(1.0, 0), (1.04, 0), (1.06, 1), (2.0, 1), (0.5, 0)]
)
def test_fail_slower(bench, repository, capsys, seconds, status):
    repository.package(seconds=[seconds])
    assert compare(bench, repository, fail_slower=1.05, quick=True) == status
    assert ("--fail_slower: plain: slower." in capsys.readouterr().out) == bool(status)
    assert compare(bench, repository, quick=True) == 0  # judged, but not asked to fail


def test_fail_slower_needs_a_verdict(bench, repository):
    repository.package(seconds=[1.0, 2.0])
    assert compare(bench, repository, fail_slower=1.05, quick=True, most_turns=4) == 1


# -- mistakes, and the end ---------------------------------------------------------------------


def test_unknown_revision_and_suite_are_one_line(bench, repository, tmp_path, capsys):
    for revision in ("no-such-branch", "--all", "HEAD:benchmarks", ""):
        assert compare(bench, repository, revision) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert line.startswith(f"error: --compare {revision}: {revision!r} is no commit")
    assert compare(bench, repository, suites=["nothing"]) == 2
    assert "no suite 'nothing'; there are: fake." in capsys.readouterr().err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_no_repository_and_no_git_are_one_line(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    nowhere = types.SimpleNamespace(root=tmp_path)
    assert compare(bench, nowhere) == 2
    assert "not a git repository" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare(bench, nowhere) == 2
    assert capsys.readouterr().err == (
        "error: --compare HEAD: git cannot be run: No such file or directory.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(repository, tmp_path, number):
    repository.work({"long": "long"})
    repository.commit()
    before = repository.state()
    run = subprocess.Popen(
        [sys.executable, "benchmarks/run.py", "--compare", "HEAD", "fake", "--small"],
        cwd=repository.root,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    turns = tmp_path / "turns"
    while not turns.exists() or turns.read_text().count("\n") < 2:
        assert run.poll() is None, run.stderr.read()
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert "Traceback" not in errors
    assert list((tmp_path / "temporary").iterdir()) == []
    for pid in turns.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
    assert repository.state() == before


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--most_turns", "3"], "--most_turns goes with --compare REF"),
        (["--quick"], "--quick goes with --compare REF"),
        (["--fail_slower", "1.05"], "--fail_slower goes with --compare REF"),
        (["--compare", "HEAD", "--runs", "3"], "--runs does not go with --compare"),
        (["--compare", "HEAD", "--most_turns", "0"], "--most_turns should be at least 1, not 0"),
        (["--compare", "HEAD", "--fail_slower", "0.9"], "should be at least 1, not 0.9"),
        (["--compare", "HEAD", "--fail_slower", "nan"], "should be at least 1, not nan"),
    ],
)
def test_wrong_flags(bench, capsys, argv, text):
    with pytest.raises(SystemExit) as stop:
        bench.run.main(argv)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


# -- the suites ------------------------------------------------------------------------------------


def test_the_suites(bench):
    assert tuple(bench.compare.suites_in(FOLDER)) == SUITES
    assert set(bench.compare.JUDGES) <= set(SUITES)


def test_works_call_what_users_call():
    """No module inside the package: those move, and the commit on the other side has them
    elsewhere."""
    allowed = {"core.evaluate", "cvlibs.manager", "datasets.Dataset", "transforms"}
    allowed |= {"transforms.Normalize", "models.DeepLabV3P", "postprocess.dense_crf.DenseCRF"}
    allowed |= {"utils.metrics.ConfusionMatrix"}
    allowed |= {f"models.losses.{n}Loss" for n in ("CrossEntropy", "LovaszSoftmax", "Mixed")}
    used = set()
    for path in (FOLDER / "works").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
    name = "paddleseg_deeplab."
    assert {n[len(name) :] for n in used if n.startswith(name)} == allowed


class Enough(BaseException):
    pass


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_in_small(bench, suite, tmp_path, monkeypatch):
    """Each row works until its first lap, whose output can be compared."""
    import cv2

    import paddleseg_deeplab.datasets
    import paddleseg_deeplab.models  # noqa: F401 (both fill the registries)
    from paddleseg_deeplab.cvlibs import manager

    for registry in (manager.DATASETS, manager.MODELS):  # what a work registers goes again
        monkeypatch.setattr(registry, "_components_dict", dict(registry.components_dict))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = []

    def lap(output):
        outputs.append(output())
        raise Enough

    rows = importlib.import_module(f"works.{suite}").ROWS
    threads = cv2.getNumThreads()
    for number, work in enumerate(rows.values()):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(Enough):
            work(lap, tmp_path / str(number), True)
    cv2.setNumThreads(threads)
    assert len(outputs) == len(rows) > 0
    for output in outputs:
        assert bool(output) == (suite != "start")
        assert np.isfinite([float(value) for value in output.values()]).all(), output

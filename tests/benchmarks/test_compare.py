# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/run.py --compare`: its sides, copies and cleaning up, on a tiny
repository whose package says how many seconds a turn took. No clock is asserted."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from places import ROOT

FOLDER = ROOT / "benchmarks"
MODULES = ("compare", "processes", "trees", "run", "printing", "side")
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
def bench(load):
    """The modules of benchmarks/ that compare two commits."""
    return types.SimpleNamespace(**{name: load(name) for name in MODULES})


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

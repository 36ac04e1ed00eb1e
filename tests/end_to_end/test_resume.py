# SPDX-License-Identifier: Apache-2.0
"""A run that is cut off anywhere and goes on ends as one that never was."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import paddle
import pytest
import yaml
from interrupted_runs import FLAGS, assert_equal_runs, once, scripted, terminate  # noqa: F401
from places import ROOT

# Helpers and fixtures of the neighbour; pytest puts this folder on the path.
from small_runs import CONFIG, assert_same, config, run  # noqa: F401

from paddleseg_deeplab.cli import train
from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state import folder as state_folder
from paddleseg_deeplab.core.training.state.folder import fault, remove, writing
from paddleseg_deeplab.core.training.state.progress import read_progress


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_at_any_iteration_costs_nothing(config, tmp_path, workers):
    flags = [*FLAGS, "--num_workers", workers, "--opts", "accumulation_steps=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(config, whole, *flags) == 0
    flags = ["--resume_model", "auto", *flags]
    # Two forward passes an iteration. The 1st is iteration 1; after it, at each start: at once,
    # in iteration 3 (not to be saved), in 4 (saved, then evaluated), in its evaluation.
    for kind, number, newest in (("train", 1, 1), ("train", 4, 3), ("train", 1, 4), ("eval", 1, 4)):
        once(kind, number, terminate)
        assert run(config, parts, *flags) == 143
        assert checkpoint.checkpoints(parts)[-1].name == f"iter_{newest}"
        due = read_progress(checkpoint.checkpoints(parts)[-1]).evaluation_due
        assert due == (newest == 4)
    assert run(config, parts, *flags) == 0
    assert_equal_runs(whole, parts)
    log = (parts / "train.log").read_text(encoding="utf-8")
    assert "stopped by SIGTERM at iteration 3" in log
    assert "Evaluating iteration 4, which was cut off" in log


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def die():
    raise Killed


@pytest.mark.parametrize(("kind", "number"), [("train", 4), ("eval", 1), ("eval", 3), ("eval", 5)])
def test_a_kill_costs_no_evaluation_either(config, tmp_path, kind, number):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*FLAGS, "--early_stop_intervals", 2, "--resume_model", "auto"]
    assert run(config, whole, *flags) == 0
    once(kind, number, die)
    with pytest.raises(Killed):
        run(config, parts, *flags)
    (parts / "iter_9.tmp").mkdir()  # a kill leaves such, an exception does not
    (parts / "best_model.tmp").mkdir()
    assert run(config, parts, *flags) == 0
    assert_equal_runs(whole, parts, last=int(checkpoint.checkpoints(whole)[-1].name[5:]))
    assert not list(parts.glob("*.tmp"))


def test_an_early_stop_is_not_overrun_by_a_restart(config, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--do_eval", "--save_interval", 1, "--early_stop_intervals", 2, "--iters", 50]
    flags += ["--resume_model", "auto", "--opts", "lr_scheduler.learning_rate=0"]
    assert run(config, out, *flags) == 0
    last = checkpoint.checkpoints(out)[-1].name
    assert last != "iter_50"
    assert run(config, out, *flags) == 0
    assert checkpoint.checkpoints(out)[-1].name == last
    assert capsys.readouterr().err.count("Early stop: ") == 2


def test_more_iterations_end_as_if_planned_so(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--save_interval", 3]
    assert run(config, whole, *flags, "--iters", 6, "--do_eval") == 0
    shutil.copytree(whole / "iter_3", parts / "iter_3")
    # The schedule of a run of 3 ended there, at rate 0; the plan of 6 is followed.
    for folder in (parts / "iter_3",):
        saved = paddle.load(str(folder / "model.pdopt"))
        saved["LR_Scheduler"]["last_lr"] = 0.0
        with writing(folder.with_name("iter_4")) as temporary:
            for file in folder.iterdir():
                if file.name != "manifest.json":
                    shutil.copy(file, temporary)
            paddle.save(saved, str(temporary / "model.pdopt"))
        remove(folder)
        folder.with_name("iter_4").rename(folder)
    assert run(config, parts, *flags, "--iters", 6, "--do_eval", "--resume_model", "auto") == 0
    assert_same(whole / "iter_6", parts / "iter_6", "model.pdparams")


def test_auto_takes_the_newest_whole_one(config, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--resume_model", "auto", "--save_interval", 2]
    assert run(config, out, *flags) == 0
    assert "starting anew" in capsys.readouterr().err
    shutil.copytree(out, tmp_path / "whole")
    with open(out / "iter_6" / "model.pdopt", "r+b") as file:
        file.seek(200)
        file.write(b"?!")
    (out / "iter_4" / "model.pdparams").write_bytes(b"")
    capsys.readouterr()
    # Named, a torn one is refused.
    assert run(config, out, "--resume_model", out / "iter_6") == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if "[INFO]" not in x]
    assert line.startswith("error: ")
    assert "model.pdopt is damaged" in line
    # The newest whole one is taken, and the torn ones are replaced on the way.
    assert run(config, out, *flags) == 0
    text = capsys.readouterr().err
    assert "passes iter_6 over" in text
    assert "passes iter_4 over" in text
    assert "Resumed from" in text
    assert_same(tmp_path / "whole" / "iter_6", out / "iter_6", "model.pdparams")
    # None whole: not quietly anew.
    for folder in checkpoint.checkpoints(out):
        (folder / "progress.json").write_text("{")
    capsys.readouterr()
    assert run(config, out, *flags) == 2
    assert "--overwrite" in capsys.readouterr().err.splitlines()[-1]
    assert run(config, out, *flags, "--overwrite", "--iters", 1) == 0
    assert [p.name for p in checkpoint.checkpoints(out)] == ["iter_1"]


@pytest.mark.parametrize("named", [True, False], ids=["named", "auto"])
def test_a_checkpoint_is_looked_at_once(config, tmp_path, monkeypatch, named):
    out = tmp_path / "out"
    assert run(config, out, "--iters", 2) == 0
    read, sha256 = [], state_folder._sha256
    monkeypatch.setattr(state_folder, "_sha256", lambda path: read.append(path) or sha256(path))
    flags = ["--iters", 3, "--resume_model", out / "iter_2" if named else "auto"]
    assert run(config, out, *flags) == 0
    names = [path.name for path in read if path.parent.name == "iter_2"]
    assert sorted(names) == ["config.yml", "model.pdopt", "model.pdparams", "progress.json"]


def test_another_config_is_refused_unless_told(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(config, out, "--iters", 2, "--seed", 3) == 0
    kept = (out / "config.yml").read_bytes()
    assert (out / "iter_2" / "config.yml").read_bytes() == kept
    capsys.readouterr()
    flags = ["--resume_model", "auto", "--iters", 4]
    other = [*flags, "--seed", 4, "--batch_size", 3, "--use_ema"]
    other += ["--opts", "optimizer.momentum=0.5", "val_dataset.num_samples=1"]
    assert run(config, out, *other) == 2
    lines = capsys.readouterr().err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert "--resume_ignore_config" in lines[start]
    assert lines[start + 1 :] == [
        "  optimizer.momentum: 0.9 -> 0.5",
        "  batch_size: 2 -> 3",
        "  use_ema: False -> True",
        "  seed: 3 -> 4",
    ]
    assert (out / "config.yml").read_bytes() == kept
    assert [p.name for p in checkpoint.checkpoints(out)] == ["iter_2"]
    assert run(config, out, *other, "--resume_ignore_config") == 0
    assert "optimizer.momentum: 0.9 -> 0.5" in capsys.readouterr().err
    progress = read_progress(out / "iter_4")
    assert (progress.seed, progress.settings["batch_size"]) == (4, 3)


def test_a_full_disk_is_one_line_and_keeps_the_last_good_one(
    config,
    tmp_path,
    capsys,
    monkeypatch,
):
    out = tmp_path / "out"
    save = paddle.save

    def full(value, path, **settings):
        if "iter_4" in str(path) and str(path).endswith("pdopt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, path, **settings)

    flags = ["--save_interval", 2, "--resume_model", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(paddle, "save", full)
        assert run(config, out, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in ("iter_4", "No space left", "MiB are free"):
        assert word in lines[0]
    assert [p.name for p in checkpoint.checkpoints(out)] == ["iter_2"]
    assert not list(out.glob("*.tmp"))
    assert fault(out / "iter_2") is None
    assert run(config, out, *flags) == 0
    assert (out / "iter_6").is_dir()


def start_with_readers(tmp_path, *flags):
    """A training process with two reading processes, in its second iteration."""
    content = yaml.safe_load(CONFIG)
    content["model"] = {"type": "DeepLabV3P", "aspp_ratios": [1, 2, 3, 4], "aspp_out_channels": 8}
    content["model"]["backbone"] = {"type": "ResNet18_vd", "output_stride": 16}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "tiny.yml")]
    command += ["--device", "cpu", "--iters", "100000", "--num_workers", "2", "--log_iters", "1"]
    command += ["--save_dir", str(tmp_path / "out"), *flags]
    with open(tmp_path / "stderr", "wb") as stderr:
        child = subprocess.Popen(command, stderr=stderr, start_new_session=True)
    until = time.monotonic() + 90
    log = tmp_path / "out" / "train.log"
    while time.monotonic() < until and child.poll() is None:
        if log.exists() and "iter: 2/" in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    return child


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and process groups")
def test_ctrl_c_at_a_terminal_reaches_all_processes_and_is_quiet(tmp_path):
    """SIGINT to the whole group, as a terminal sends it, with two reading processes."""
    child = start_with_readers(tmp_path)
    try:
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(60) == 130
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    text = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert text.count("SIGINT: stopping") == 1
    [folder] = checkpoint.checkpoints(tmp_path / "out")
    assert fault(folder) is None
    assert read_progress(folder).interrupted


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_killed_reading_process_is_one_line_and_leaves_the_checkpoints(tmp_path):
    child = start_with_readers(tmp_path, "--save_interval", "1")
    try:
        children = f"/proc/{child.pid}/task/{child.pid}/children"
        with open(children, encoding="ascii") as file:
            readers = [int(pid) for pid in file.read().split()]
        assert len(readers) == 2
        os.kill(readers[1], signal.SIGKILL)
        assert child.wait(60) == 1
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    text = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert text.count("a process that reads training data (--num_workers) is gone") == 1
    assert "Traceback" not in text
    folders = checkpoint.checkpoints(tmp_path / "out")
    assert folders
    assert [fault(folder) for folder in folders] == [None] * len(folders)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_for_real_and_resumed(tmp_path):
    """The long script beside, in short."""
    script = str(ROOT / "tests" / "helpers" / "kill_and_resume.py")
    flags = ["--kills", "2", "--iters", "12", "--seconds", "5", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "equal the undisturbed run's" in done.stdout


def test_a_refused_resume_leaves_no_folder(config, tmp_path, capsys):
    first, other = tmp_path / "first", tmp_path / "other"
    flags = ["--config", str(config), "--device", "cpu", "--iters", "1"]
    assert train.main([*flags, "--save_dir", str(first)]) == 0
    changed = ["--resume_model", str(first / "iter_1"), "--opts", "optimizer.weight_decay=0.5"]
    assert train.main([*flags, "--save_dir", str(other), *changed]) == 2
    assert "weight_decay" in capsys.readouterr().err
    assert not other.exists()
    other.mkdir()
    assert train.main([*flags, "--save_dir", str(other), *changed]) == 2
    assert not list(other.iterdir())

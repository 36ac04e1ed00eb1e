# SPDX-License-Identifier: Apache-2.0
"""Folders that appear whole, tell damage, and survive a full disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from paddleseg_deeplab.core.training.state.folder import (
    NotWritten,
    clean,
    fault,
    remove,
    write_text,
    writing,
)
from paddleseg_deeplab.core.training.state.run_folder import check_same_run, differences
from paddleseg_deeplab.core.training.watch.interrupt import (
    Interrupted,
    StoppableDataset,
    StopRequest,
)
from paddleseg_deeplab.utils.errors import UserError


def make(place, **files):
    with writing(place) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)
    return place


def names(folder):
    return {p.name for p in folder.iterdir()}


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    place = make(tmp_path / "run" / "iter_1", a="one", b="two")
    assert names(place) == {"a", "b", "manifest.json"}
    assert fault(place) is None
    make(place, a="three")
    assert names(place) == {"a", "manifest.json"}
    assert fault(place) is None
    assert names(tmp_path / "run") == {"iter_1"}
    (place / "evaluation.json").write_text("{}")  # later additions are nobody's damage
    assert fault(place) is None


def test_a_folder_is_read_anew_each_time(tmp_path):
    place = make(tmp_path / "iter_1", a="one", b="two")
    assert fault(place) is None
    (place / "b").write_text("owt")  # as long as before
    assert "b is damaged" in fault(place)
    (place / "b").write_text("two")
    assert fault(place) is None
    (place / "a").unlink()
    assert "a is missing" in fault(place)
    make(place, a="another")  # a new folder of the name
    assert fault(place) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "a").unlink(), ["a is missing"]),
        (lambda f: (f / "a").write_text("on"), ["a is damaged", "2 bytes", "3 were"]),
        (lambda f: (f / "a").write_text(""), ["a is damaged", "0 bytes"]),
        (lambda f: (f / "a").write_text("onf"), ["a is damaged", "checksum"]),
        (lambda f: (f / "manifest.json").unlink(), ["no manifest.json"]),
        (lambda f: (f / "manifest.json").write_text(""), ["manifest.json is damaged"]),
        (lambda f: (f / "manifest.json").write_text("{}"), ["names no files"]),
        (lambda f: (f / "manifest.json").write_text("[1]"), ["manifest.json is damaged"]),
        (lambda f: (f / "manifest.json").write_text('{"a": 3}'), ["manifest.json is damaged"]),
        (
            lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"),
            ["manifest.json is damaged"],
        ),
        (lambda f: (f / "manifest.json").write_text('{"../x": [1, "y"]}'), ["missing"]),
    ],
)
def test_damage_is_found_and_named(tmp_path, spoil, words):
    place = make(tmp_path / "iter_1", a="one", b="two")
    (tmp_path / "x").write_text("1")
    spoil(place)
    found = fault(place)
    for word in words:
        assert word in found


@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
@pytest.mark.parametrize("before", [True, False], ids=["replaces", "new"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, moment, before):
    place = tmp_path / "iter_1"
    if before:
        make(place, a="old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_):
        raise full

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if moment == "rename":
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda p, to: fail() if p.suffix == ".tmp" else rename(p, to)
        )

    def write():
        with writing(place) as temporary:
            (temporary / "a").write_text("new")
            if moment == "write":
                fail()

    with pytest.raises(NotWritten) as caught:
        write()
    for word in (str(place), "No space left", "MiB are free", "auto"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ({"iter_1"} if before else set())
    if before:
        assert (place / "a").read_text() == "old"
        assert fault(place) is None


def test_another_error_leaves_nothing_half_done_either(tmp_path):
    def write():
        with writing(tmp_path / "iter_1") as temporary:
            (temporary / "a").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path) == set()


def test_a_small_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(NotWritten, match="full"):
            write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "one"
    assert names(tmp_path) == {"a"}


def test_what_a_killed_run_left_is_cleared(tmp_path):
    make(tmp_path / "iter_2", a="whole")
    for name in ("iter_3.tmp", "best_model.tmp", "iter_2.old", "mine.tmp", "iter_x.tmp"):
        (tmp_path / name).mkdir()
    make(tmp_path / "best_model.old", a="set aside")  # cut off between the two renames
    (tmp_path / "iter_4").mkdir()
    clean(tmp_path)
    assert names(tmp_path) == {"iter_2", "iter_4", "best_model", "mine.tmp", "iter_x.tmp"}
    assert (tmp_path / "best_model" / "a").read_text() == "set aside"
    clean(tmp_path / "nowhere")


def test_removing_never_leaves_a_part_under_the_name(tmp_path, monkeypatch):
    place = make(tmp_path / "iter_1", a="one")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed right there
    remove(place)
    assert names(tmp_path) == {"iter_1.tmp"}
    remove(tmp_path / "nowhere")


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_real_limit_of_the_system_is_one_line_and_keeps_the_last_good_one(tmp_path):
    """No file of the process may grow past 4 KiB: the kernel itself refuses the write."""
    code = (
        "import resource, sys\n"
        "from paddleseg_deeplab.core.training.state.folder import NotWritten, writing\n"
        "def put(size):\n"
        "    with writing(sys.argv[1] + '/iter_1') as t:\n"
        "        (t / 'a').write_bytes(b'x' * size)\n"
        "put(100)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    put(10000)\n"
        "except NotWritten as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert "iter_1 could not be written (File too large" in line
    assert names(tmp_path) == {"iter_1"}
    assert (tmp_path / "iter_1" / "a").read_bytes() == b"x" * 100
    assert fault(tmp_path / "iter_1") is None


BASE = {
    "iters": 10,
    "batch_size": 2,
    "train_dataset": {"type": "A", "dataset_root": "x", "transforms": [{"type": "Normalize"}]},
    "val_dataset": {"type": "A"},
    "model": {"type": "M", "pretrained": "a.pdparams", "widths": [1, 2]},
    "lr_scheduler": {"type": "P", "learning_rate": 0.1},
}


def changed(**sections):
    out = json.loads(json.dumps(BASE))
    for name, value in sections.items():
        out[name] = {**out[name], **value} if isinstance(value, dict) else value
    return out


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        (BASE, []),
        (changed(iters=20), []),
        (changed(val_dataset={"type": "B", "mode": "val"}), []),
        (changed(train_dataset={"dataset_root": "y", "train_path": "z"}), []),
        (changed(model={"pretrained": None}), []),
        ({**BASE, "test_config": {"aug_eval": True}, "export": {}}, []),
        (changed(model={"type": "N"}), ["model.type: M -> N"]),
        (changed(model={"widths": [1, 3]}), ["model.widths.1: 2 -> 3"]),
        (changed(model={"widths": [1]}), ["model.widths.1: 2 -> (absent)"]),
        (
            changed(lr_scheduler={"learning_rate": 0.2, "power": 1}),
            ["lr_scheduler.learning_rate: 0.1 -> 0.2", "lr_scheduler.power: (absent) -> 1"],
        ),
        (
            changed(train_dataset={"transforms": []}),
            [
                "train_dataset.transforms.0.type: Normalize -> (absent)",
                "train_dataset.transforms: (absent) -> []",
            ],
        ),
    ],
)
def test_what_differs_between_configs_is_listed(new, lines):
    assert differences(BASE, new) == lines


def test_another_run_is_refused_line_by_line_or_warned_of(tmp_path, caplog):
    (tmp_path / "config.yml").write_text(json.dumps(BASE))
    new = json.dumps(changed(model={"type": "N"}))
    saved, now = {"precision": "fp32", "old": 1}, {"precision": "bf16", "new": 2}
    with pytest.raises(UserError) as caught:
        check_same_run(tmp_path, new, now, saved)
    head, *lines = str(caught.value).splitlines()
    assert "--resume_ignore_config" in head
    assert lines == ["  model.type: M -> N", "  precision: fp32 -> bf16"]
    check_same_run(tmp_path, new, now, saved, ignore=True)
    assert "model.type: M -> N" in caplog.text
    check_same_run(tmp_path, json.dumps(BASE), {"precision": "fp32"}, saved)
    check_same_run(tmp_path / "elsewhere", new)  # PaddleSeg's have no config
    (tmp_path / "config.yml").write_text("{")
    with pytest.raises(UserError, match=r"config\.yml is damaged"):
        check_same_run(tmp_path, new)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        dataset = StoppableDataset(["a", "b"], stop)
        assert (dataset[1], len(dataset), dataset.index("b")) == ("b", 2, 1)
        os.kill(os.getpid(), number)
        assert stop.signal == number
        with pytest.raises(Interrupted) as caught:
            dataset[0]
    assert caught.value.status == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_other_threads_leave_the_handlers_alone():
    import threading

    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.signal))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]

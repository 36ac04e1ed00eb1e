# SPDX-License-Identifier: Apache-2.0
"""Too little shared memory for the batches of reading processes is named before a run begins."""

import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from bad_input import good_config
from places import ROOT

from paddleseg_deeplab.cli import train as command
from paddleseg_deeplab.core.training.data import shared_memory
from paddleseg_deeplab.core.training.data.shared_memory import (
    check_shared_memory,
    needed_bytes,
    processes_here,
)
from paddleseg_deeplab.core.training.watch.preflight import check_start
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.utils.errors import UserError

BATCH = 2 * 1024 * 512 * (3 * 4 + 1)  # 2 images of 1024x512: float32, labels uint8

Usage = namedtuple("Usage", "total used free")


def with_free(monkeypatch, count):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(count, 0, count))


def test_the_need_in_closed_form():
    assert needed_bytes(BATCH, 0) == 0
    assert needed_bytes(BATCH, 1) == 3 * BATCH
    assert needed_bytes(BATCH, 4) == 9 * BATCH == 122683392
    assert needed_bytes(BATCH, 4, processes=4) == 36 * BATCH


def test_what_a_reader_holds():
    """Paddle's reader with two processes, watched: as many batches as are reckoned with. An upper
    bound on what was seen cannot depend on timing; the lower one says that it is not far above."""
    if not Path(shared_memory.FOLDER).is_dir():
        pytest.skip(f"there is no {shared_memory.FOLDER}")
    code = f"""
import os, time
import numpy as np, paddle
from paddleseg_deeplab.core.training.data.batches import training_batches

class Images(paddle.io.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return {{"img": np.zeros((3, 256, 256), "float32"), "label": np.zeros((256, 256), "int64")}}

paddle.set_device("cpu")
def held():
    # Paddle's files are named after the process that made them, a child of this one.
    total = 0
    for name in os.listdir("{shared_memory.FOLDER}"):
        parts = name.split("_")
        if name.startswith("paddle_") and parts[1].isdigit():
            try:
                with open(f"/proc/{{parts[1]}}/stat") as f:
                    parent = int(f.read().rsplit(")", 1)[1].split()[1])
                if parent == os.getpid():
                    total += os.stat(f"{shared_memory.FOLDER}/{{name}}").st_size
            except OSError:
                pass
    return total
most = 0
batches = training_batches(Images(), 2, range(16), seed=0, num_workers=2)
for _ in batches:
    for _ in range(20):
        most = max(most, held())
        time.sleep(0.01)
print("held", most)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    found = int(re.search(r"held (\d+)", done.stdout).group(1))
    batch = 2 * 256 * 256 * 13
    # Each of a batch's two tensors has a header of its own in its file.
    assert 4 * batch <= found <= needed_bytes(batch, 2) + 5 * 2 * 4096, found / batch


def test_too_little(monkeypatch):
    with_free(monkeypatch, 64 << 20)
    with pytest.raises(UserError) as caught:
        check_shared_memory(BATCH, 4, 1, "/")
    text = str(caught.value)
    assert "\n" not in text
    assert "/ has 67 MB free, and --num_workers 4 needs 123 MB there: 9 batches of 13.6 MB" in text
    assert "docker run --shm-size=256m" in text
    assert "--num_workers 1 or --num_workers 0" in text
    with pytest.raises(UserError, match=r"in each of 8 training processes.*shm-size=2g"):
        check_shared_memory(BATCH, 4, 8, "/")


def test_enough_or_unused(monkeypatch, tmp_path):
    with_free(monkeypatch, needed_bytes(BATCH, 4))
    check_shared_memory(BATCH, 4, 1, "/")
    with pytest.raises(UserError):
        check_shared_memory(BATCH, 4, 2, "/")
    with_free(monkeypatch, 0)
    check_shared_memory(BATCH, 0, 8, "/")
    check_shared_memory(BATCH, 4, 8, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"or use --num_workers 0\.$"):
        check_shared_memory(BATCH, 4, 1, "/")


def test_processes_on_this_machine(monkeypatch):
    monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    assert processes_here() == 1
    for value, count in (("4", 4), ("", 1), ("0", 1), ("many", 1), ("²", 1)):
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", value)
        assert processes_here() == count


def test_a_start_asks_with_the_bytes_of_a_whole_batch(tmp_path, monkeypatch):
    """More images than are read for the check, in the type that the reader gives."""
    asked = []
    monkeypatch.setattr(
        "paddleseg_deeplab.core.training.watch.preflight.check_shared_memory",
        lambda *args: asked.append(args),
    )
    builder = SegBuilder(Config(good_config(tmp_path)))  # crops of 32x32
    check_start(builder.model, builder.train_dataset, builder.loss, 20, num_workers=3)
    assert asked == [(20 * 32 * 32 * (3 * 4 + 1), 3)]


def test_train_is_refused_before_it_makes_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: Usage(8, 0, 8))
    if not Path(shared_memory.FOLDER).is_dir():
        monkeypatch.setattr(check_shared_memory, "__defaults__", (None, "/"))
    flags = ["--config", str(good_config(tmp_path)), "--save_dir", str(tmp_path / "out")]
    flags += ["--device", "cpu", "--iters", "1"]
    assert command.main([*flags, "--num_workers", "2"]) == 2
    error = capsys.readouterr().err
    assert "--shm-size" in error
    assert "--num_workers 0" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()

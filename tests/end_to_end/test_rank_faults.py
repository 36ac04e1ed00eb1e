# SPDX-License-Identifier: Apache-2.0
"""One of two ranks fails inside its step: all end within a minute, and the cause is named."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_distributed import CONFIG, finish, launcher, logs

WORKER = Path(__file__).parent / "fault_worker.py"
LIMIT = 60  # seconds in which all have ended, from the start of the run on

MEMORY = (
    "Out of memory on GPU 0 while training (2.0 GiB more asked for, 1.0 GiB free): 2 images of "
    "32 x 24 pixels"
)


@pytest.mark.parametrize(
    ("where", "kind", "cause"),
    [
        ("forward", "memory", MEMORY),
        ("forward", "bug", "KeyError"),
        ("backward", "memory", MEMORY),
        ("backward", "bug", "what the network forgot"),
        ("backward", "exit", "process 1 of 2 is gone"),
    ],
)
def test_all_end_and_the_cause_is_named(tmp_path, where, kind, cause):
    model = f"FaultyNet, where: {where}, kind: {kind}}}"
    losses = "{types: [{type: CrossEntropyLoss}, {type: CrossEntropyLoss}], coef: [1, 0.4]}"
    text = CONFIG.replace("SmallNet}", model)
    text = text[: text.index("loss:")] + f"loss: {losses}\n"
    (tmp_path / "set.yml").write_text(text)
    flags = ["--config", tmp_path / "set.yml", "--save_dir", tmp_path / "run", "--device", "cpu"]
    process = launcher(tmp_path, WORKER, *flags, "--save_interval", "2", "--log_iters", "1")
    log = tmp_path / "run" / "train.log"
    while process.poll() is None and not (log.exists() and "iter: 2/" in log.read_text()):
        time.sleep(0.1)
    output = finish(process, LIMIT)
    assert process.returncode != 0
    first, second = logs(tmp_path)
    # On the console: the first rank's line, or the failed one's log that the launcher shows.
    assert cause in output + first, (output[-3000:], second[-3000:])
    assert (tmp_path / "run" / "iter_2" / "manifest.json").is_file()
    if kind == "memory":
        assert "C++ Traceback" not in first + second
        assert "batch_size 1 with 2 times the accumulation_steps" in first + second
        assert "--resume_model auto" in first + second

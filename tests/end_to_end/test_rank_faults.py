# SPDX-License-Identifier: Apache-2.0
"""One of two ranks fails inside its step: all end within a minute, and the cause is named."""

import time

import pytest
from launching import CONFIG, finish, launcher, logs
from places import ROOT

WORKER = ROOT / "tests" / "helpers" / "fault_worker.py"
LIMIT = 60  # seconds in which all have ended, from the start of the run on

MEMORY = (
    "Out of memory on GPU 0 while training (2.0 GiB more asked for, 1.0 GiB free): 2 images of "
    "32 x 24 pixels"
)


@pytest.mark.parametrize(
    ("where", "kind", "rank", "cause"),
    [
        ("forward", "memory", 1, MEMORY),
        pytest.param("forward", "bug", 0, "what the network forgot", marks=pytest.mark.slow),
        pytest.param("backward", "memory", 0, MEMORY, marks=pytest.mark.slow),
        pytest.param("backward", "bug", 1, "what the network forgot", marks=pytest.mark.slow),
        pytest.param("backward", "exit", 1, "process 1 of 2 is gone", marks=pytest.mark.slow),
        pytest.param("backward", "nan", 1, "the gradient is not finite", marks=pytest.mark.slow),
        pytest.param(
            "private",
            "nan",
            1,
            "the gradient is not finite, or its norm is above 1e19 (unused.weight)",
            marks=pytest.mark.slow,
        ),
        pytest.param("update", "memory", 1, MEMORY, marks=pytest.mark.slow),
        ("forward", "reader", 1, "a process that reads training data (--num_workers) is gone"),
    ],
)
def test_all_end_and_the_cause_is_named(tmp_path, where, kind, rank, cause):
    model = f"FaultyNet, where: {where}, kind: {kind}, rank: {rank}}}"
    losses = "{types: [{type: CrossEntropyLoss}, {type: CrossEntropyLoss}], coef: [1, 0.4]}"
    text = CONFIG.replace("SmallNet}", model)
    text = text[: text.index("loss:")] + f"loss: {losses}\n"
    (tmp_path / "set.yml").write_text(text)
    flags = ["--config", tmp_path / "set.yml", "--save_dir", tmp_path / "run", "--device", "cpu"]
    flags += ["--num_workers", 2 if kind == "reader" else 0]
    process = launcher(tmp_path, WORKER, *flags, "--save_interval", "2", "--log_iters", "1")
    log = tmp_path / "run" / "train.log"
    while process.poll() is None and not (log.exists() and "iter: 2/" in log.read_text()):
        time.sleep(0.1)
    output = finish(process, LIMIT)
    assert process.returncode != 0
    first, second = logs(tmp_path)
    # On the console: the first rank's line, or the failed one's log that the launcher shows.
    assert cause in output + first, (output[-3000:], second[-3000:])
    assert [p.name for p in (tmp_path / "run").glob("iter_*")] == ["iter_2"]
    assert (tmp_path / "run" / "iter_2" / "manifest.json").is_file()
    if kind == "memory":
        assert "C++ Traceback" not in first + second
        assert "batch_size 1 with 2 times the accumulation_steps" in first + second
        assert "--resume_model auto" in first + second
    if kind == "nan":
        # Nobody knows whose batch it was: those of both ranks are named, by the first one alone.
        assert first.count("Training stopped at iteration 3") == 1
        batch = first.split("The batch was:")[1].split(". Lower")[0]
        assert batch.count("shapes_train_") == 4
        assert "Training stopped" not in second

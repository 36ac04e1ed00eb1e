# SPDX-License-Identifier: Apache-2.0
"""Starts several ranks of a test's worker, and collects what they say."""

import os
import signal
import subprocess
import sys

import pytest
from places import ROOT

CONFIG = """
batch_size: 2
iters: 400
train_dataset: &set
  type: Shapes
  num_classes: 3
  image_size: [32, 24]
  num_samples: 7
  mode: train
  transforms: [{type: Normalize}]
val_dataset:
  type: Shapes
  num_classes: 3
  image_size: [32, 24]
  num_samples: 7
  mode: val
  transforms: [{type: Normalize}]
model: {type: SmallNet}
optimizer: {type: SGD, momentum: 0.9}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.05}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
"""


def environment():
    out = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")}
    threads = {"MKL_NUM_THREADS": "1", "FLAGS_paddle_num_threads": "1"}
    return {**out, **threads, "PYTHONPATH": str(ROOT)}


def launcher(folder, *command):
    """Starts Paddle's launcher with two processes, in a group of its own."""
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [sys.executable, *launch, "--log_dir", str(folder / "log"), *map(str, command)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds):
    """Its output; a launch that hangs is ended, ranks included, and fails the test."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # which the launcher passes on, and then kills
        pytest.fail("the processes hang: " + process.communicate()[0][-3000:])


def logs(folder):
    return [(folder / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]

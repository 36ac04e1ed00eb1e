# SPDX-License-Identifier: Apache-2.0
"""How long commands take to start, and where the time goes until the first training step.

Every figure is of a new process. There is no peer; the floor of the first two is a Python process
that does nothing, measured in the same turns.
"""

import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Row, Seconds, Unequal, take_turns

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/deeplabv3p_resnet50_os8.yml"
# One image: the step is told, but it is the way to it that is measured here.
_BATCH = ["--batch_size", "1"]
_TINY = [
    *("model.backbone.type=ResNet18_vd", "model.backbone.output_stride=16"),
    *("model.aspp_out_channels=16", "train_dataset.image_size=[32,32]"),
]
# argv: a file for the marks, the clock before the process was started, train.py's arguments. Each
# mark is (what was done until then, clock). The modules are imported one after the other first, so
# that each one's time is its own; train.py itself comes to the same imports.
_CHILD = """
import json, sys, time
marks, losses = [("start", float(sys.argv[2]))], []
def mark(what):
    marks.append((what, time.time()))
mark("Python itself")
import paddleseg_deeplab
mark("the package, without Paddle")
import numpy, cv2
mark("NumPy and OpenCV")
import paddle
mark("Paddle")
from paddleseg_deeplab.cvlibs import SegBuilder
from paddleseg_deeplab.core import train
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.cli import train as command
mark("the package's models, data, training")
class Enough(BaseException):
    pass
def step(self, *args, plain=TrainStep.run, **settings):
    mark("between the steps" if losses else "config, checks, network, data, first batch")
    result = plain(self, *args, **settings)
    losses.append(result.read()[0])
    mark("the first step" if len(losses) == 1 else "a second step")
    if len(losses) == 2:
        raise Enough
    return result
TrainStep.run = step
try:
    command.main(sys.argv[3:])
except Enough:
    pass
with open(sys.argv[1], "w") as file:
    json.dump([marks, losses], file)
"""
FIRST = "the first step"


def _run(arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])} failed:\n{done.stderr}")
    return done.stdout


def to_first_step(options):
    """A new process that trains two steps: {phase: seconds} in order."""
    with tempfile.TemporaryDirectory() as folder:
        given = ["--config", CONFIG, *_BATCH, "--iters", "2", "--save_dir", f"{folder}/run"]
        if options.small:
            given += ["--opts", *_TINY]
        _run(["-c", _CHILD, f"{folder}/marks", str(time.time()), *given])
        with open(f"{folder}/marks", encoding="utf-8") as file:
            marks, losses = json.load(file)
    if len(losses) != 2 or not all(map(math.isfinite, losses)):
        raise Unequal(f"training did not come to two finite losses: {losses}.")
    return {what: now - before for (_, before), (what, now) in itertools.pairwise(marks)}


def _row(work, seconds, **more):
    return Row(work, ours=float(np.median(seconds)), our_seconds=list(seconds), **more)


def rows(options):
    commands = {
        "nothing": ["-c", "pass"],
        "train.py --help": ["train.py", "--help"],
        "import paddleseg_deeplab": ["-c", "import paddleseg_deeplab"],
        "import paddle": ["-c", "import paddle"],
    }
    if "usage" not in _run(commands["train.py --help"]):
        raise Unequal("train.py --help prints no usage.")
    calls = {name: (lambda given=given: _run(given)) for name, given in commands.items()}
    phases = []

    def start():
        phases.append(to_first_step(options))
        names = list(phases[-1])
        return Seconds(sum(phases[-1][name] for name in names[: names.index(FIRST) + 1]))

    calls["start to the end of the first step"] = start
    if not options.small:
        start(), phases.clear()  # fills the system's file cache
    seconds = take_turns(calls, options.runs, options.settle)
    floor = float(np.median(seconds.pop("nothing")))
    goals = {"train.py --help": "0.5 s"}
    for name, measured in seconds.items():
        note = f"{CONFIG}, 1x512x512" if calls[name] is start and not options.small else ""
        yield _row(name, measured, goal=goals.get(name, "stated"), floor=floor, note=note)
    where = "of it"
    for name in phases[0]:
        yield _row(f"{where}: {name}", [one[name] for one in phases])
        where = "after it" if name == FIRST else where

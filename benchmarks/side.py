# SPDX-License-Identifier: Apache-2.0
"""One side of `run.py --compare`: a process that does one row's work in one of the two trees.

  python benchmarks/side.py TREE SUITE ROW FOLDER SIZES

The package comes from TREE (by PYTHONPATH), the work from works/SUITE.py beside this file, which is
the same for both sides. Answers are lines of JSON. The first tells where the package came from;
without ROW it has the names of the rows, and that is all. The second comes after the warm-up, with
the work's output. From then on each line of standard input begins a lap, and the answer at its end
is {"seconds": ...}.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path

_SETTINGS = (
    *("MKL_NUM_THREADS", "FLAGS_paddle_num_threads", "MKL_DEBUG_CPU_TYPE", "OMP_NUM_THREADS"),
)


class Stop(BaseException):
    """Nobody waits for another lap; unwinds the work."""


class Lap:
    """Stops the clock, answers, and waits until the next lap may begin.

    The first call ends the warm-up; its answer has the output in place of the time.

    Args:
        answers: Where answers go, a text file.
        orders: Lines, each of which begins a lap.
    """

    def __init__(self, answers, orders):
        self._answers, self._orders = answers, orders
        self._start = None

    def __call__(self, output, seconds=None):
        """Ends a lap.

        Args:
            output (callable): Gives numbers by name that have to be the same on both sides; called
                once, without the clock.
            seconds (float, optional): In place of the clock's.
        """
        now = time.perf_counter()
        if self._start is None:
            self.answer(output={name: float(value) for name, value in output().items()})
        else:
            self.answer(seconds=now - self._start if seconds is None else seconds)
        if not self._orders.readline():
            raise Stop
        gc.collect()
        self._start = time.perf_counter()

    def answer(self, **facts):
        print(json.dumps(facts), file=self._answers, flush=True)


def facts(tree):
    """Where the package is from, and what it made of the environment.

    Raises:
        RuntimeError: It is not from this side's tree.
    """
    import paddleseg_deeplab

    place = Path(paddleseg_deeplab.__file__).resolve()
    if Path(tree).resolve() not in place.parents:
        raise RuntimeError(f"the package came from {place}, not from {tree}")
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def main(argv):
    # Bound to a file of its own: what the package prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tree, suite, row, folder, sizes = argv
    lap = Lap(answers, sys.stdin)
    settings = facts(tree)
    rows = importlib.import_module(f"works.{suite}").ROWS
    lap.answer(settings=settings, rows=list(rows))
    if row:
        with contextlib.suppress(Stop):
            rows[row](lap, Path(folder), sizes == "small")


if __name__ == "__main__":
    main(sys.argv[1:])

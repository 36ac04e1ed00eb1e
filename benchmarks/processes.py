# SPDX-License-Identifier: Apache-2.0
"""The processes of `run.py --compare`, from outside; side.py is what runs in them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile


class SideError(Exception):
    """A side's process failed: the last line that it printed."""


class Side:
    """A process that does a row's work in one tree; see side.py.

    Args:
        tree (Path): Whose package works.
        code (Path): benchmarks/ of the measuring code.
        suite, row (str): The work; without a row the process tells the rows and ends.
        folder (Path): Empty.
        small (bool): Tiny sizes.
    """

    def __init__(self, tree, code, suite, row, folder, small=False):
        paths = [str(tree), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        sizes = "small" if small else "full"
        self._folder = folder
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._child = subprocess.Popen(
            [sys.executable, str(code / "side.py"), str(tree), suite, row, str(folder), sizes],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends this one and its own
        )
        self.facts = None

    def answer(self):
        """The next answer, a dict."""
        line = self._child.stdout.readline()
        if not line:
            raise SideError(self._last_words())
        return json.loads(line)

    def _last_words(self):
        self._child.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"the process ended with status {self._child.returncode}"

    def output(self):
        """Waits until the warm-up is done; the work's output."""
        self.facts = self.answer()
        return self.answer()["output"]

    def turn(self):
        """Seconds of one lap."""
        with contextlib.suppress(OSError):  # it has ended: `answer` says why
            print(file=self._child.stdin, flush=True)
        return self.answer()["seconds"]

    def close(self):
        """Ends the process and those that it started; its folder is emptied."""
        with contextlib.suppress(OSError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._log):
            with contextlib.suppress(OSError):
                stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

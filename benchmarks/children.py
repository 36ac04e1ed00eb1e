# SPDX-License-Identifier: Apache-2.0
"""Work in child processes: for its peak of memory, or with Paddle's own settings."""

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Seconds, timed

FOLDER = Path(__file__).resolve().parent


def memory_of(options, module, function, *arguments):
    """`peak_memory`; with `--small` in this process, which saves the start of a child."""
    if options.small:
        return peak_of(getattr(importlib.import_module(module), function)(*arguments))
    return peak_memory(module, function, *arguments)


def peak_memory(module, function, *arguments):
    """Bytes that a call needs at its peak beyond what was there before it, in a child process.

    Args:
        module (str): Of this folder, such as "suites.loss".
        function (str): In it; called with `arguments` (which JSON can hold), it prepares the inputs
            and does something tiny to warm up, and returns what is to be called and measured.

    Returns:
        int | None: None where the system cannot tell (it takes Linux).
    """
    call = json.dumps([module, function, list(arguments)])
    done = subprocess.run(
        [sys.executable, __file__, call], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{function} of {module} failed in its child process:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Worker:
    """A child process that does a piece of work, again and again, with Paddle's own defaults.

    Paddle is imported and used in it before this package, whose settings come too late then.
    Calling the worker returns `Seconds` of one piece of work, measured there.

    Args:
        module, function, arguments: As for `peak_memory`.
    """

    # Bound to a file of its own: what Paddle prints must not come between the answers.
    _CODE = (
        "import os, sys; answers = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1);"
        "import paddle; paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]));"
        "sys.path.insert(0, sys.argv[1]); import children; children.serve(sys.argv[2], answers)"
    )
    _SETTINGS = (
        *("MKL_NUM_THREADS", "FLAGS_paddle_num_threads", "MKL_DEBUG_CPU_TYPE"),
        "OMP_NUM_THREADS",  # Paddle sets it in the parent
    )

    def __init__(self, module, function, *arguments):
        call = json.dumps([module, function, list(arguments)])
        clean = {k: v for k, v in os.environ.items() if k not in self._SETTINGS}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._child = subprocess.Popen(
            [sys.executable, "-c", self._CODE, str(FOLDER), call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=clean,
            text=True,
        )

    def __call__(self):
        try:
            print(file=self._child.stdin, flush=True)
            return Seconds(*json.loads(self._child.stdout.readline()))
        except (OSError, ValueError) as error:
            self._child.wait()
            self._log.seek(0)
            raise RuntimeError(f"A child process failed:\n{self._log.read()}") from error

    def close(self):
        self._child.communicate()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(call, answers):
    """The child's side of a `Worker`: does the work at every line, answers [seconds, output]."""
    module, function, arguments = json.loads(call)
    work = getattr(importlib.import_module(module), function)(*arguments)
    for _ in sys.stdin:
        print(json.dumps(timed(work)), file=answers, flush=True)


def _resident(name):
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {name}")


def peak_of(function):
    """Bytes that `function()` makes this process grow by at its peak, or None; see `peak_memory`.

    The high-water mark of the resident memory is set back first, so the peak of imports and of the
    inputs' making does not count.
    """
    gc.collect()
    try:
        if sys.platform == "linux":  # memory freed by the preparation is given back
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        output = function()
        peak = _resident("VmHWM")
    except OSError:
        return None
    del output
    return peak - before


def _child(call):
    module, function, arguments = json.loads(call)
    print(json.dumps(peak_of(getattr(importlib.import_module(module), function)(*arguments))))


if __name__ == "__main__":
    _child(sys.argv[1])

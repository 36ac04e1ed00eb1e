# SPDX-License-Identifier: Apache-2.0
"""What every benchmark suite needs: paired turns, medians, floors, memory, tables.

A suite measures a piece of work done here and by peers. `compare` first calls each once and asserts
that the outputs are equal, then lets all take turns, so that a busy moment of the machine hits all
of them. A ratio is the median over the turns of (peer's time / our time): above 1, we are faster.
"""

import gc
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

# First, so that the CPU environment is prepared before Paddle is imported.
from paddleseg_deeplab.utils.cpu import environment_report, thread_count  # isort: skip
import numpy as np

from paddleseg_deeplab.utils.errors import UserError

# Threads of an OpenMP pool wait in a loop for 200 ms after their work (KMP_BLOCKTIME's default),
# and would take the processors from the turn of another library.
_SETTLE = 0.25


class Unequal(AssertionError):
    """Outputs that should be equal are not; nothing is timed then."""


@dataclass
class Missing:
    """Stands for a peer that cannot run here.

    Attributes:
        why (str): For its row.
    """

    why: str


@dataclass
class Options:
    """How to run the suites.

    Attributes:
        runs (int): Turns.
        small (bool): Tiny sizes, which show that the code works and nothing else.
        rates (Rates): Of this machine, for floors.
    """

    runs: int
    small: bool
    rates: "Rates"

    @property
    def settle(self):
        """Seconds of rest before each turn."""
        return 0.0 if self.small else _SETTLE


@dataclass
class Row:
    """One line of a table; times in seconds, memory in bytes, None where not measured."""

    work: str
    peer: str = ""
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    quartiles: tuple | None = None
    goal: str = ""
    floor: float | None = None
    our_memory: int | None = None
    their_memory: int | None = None
    note: str = ""
    our_seconds: list = field(default_factory=list)
    their_seconds: list = field(default_factory=list)


# -- equal outputs -----------------------------------------------------------------------------


def assert_close(what, ours, theirs, tolerance):
    """Raises `Unequal` unless two arrays have one shape and differ by at most `tolerance`.

    NaN is never equal.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise Unequal(f"{what}: shapes {ours.shape} and {theirs.shape}.")
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    if not (gap <= tolerance).all():
        raise Unequal(f"{what}: differs by {gap.max():.3g}, {tolerance:g} is allowed.")


# -- time --------------------------------------------------------------------------------------


def timed(function):
    """(seconds, output) of one call. A function may return `Seconds` that it measured itself."""
    start = time.perf_counter()
    output = function()
    seconds = time.perf_counter() - start
    return (output.seconds, output.output) if isinstance(output, Seconds) else (seconds, output)


@dataclass
class Seconds:
    """An output with the time that it took, measured where it was made: in a child process."""

    seconds: float
    output: object = None


def take_turns(functions, runs, settle=0.0):
    """Seconds of each function, `runs` times in turn; every second turn goes backwards.

    Args:
        functions (dict[str, callable]): Without arguments.
        runs (int): How often.
        settle (float): Seconds of rest before each call, after Python's garbage is collected.

    Returns:
        dict[str, list[float]]
    """
    seconds = {name: [] for name in functions}
    for run in range(runs):
        names = list(functions)
        for name in names if run % 2 == 0 else names[::-1]:
            if settle:
                gc.collect()
                time.sleep(settle)
            seconds[name].append(timed(functions[name])[0])
    return seconds


def compare(work, ours, peers, check, options, *, goals=None, floor=None, note="", memory=None):
    """Checks, then times one piece of work.

    Args:
        work (str): What is done.
        ours (callable): Does it, without arguments, and returns what `check` takes.
        peers (dict[str, callable | Missing]): By name. May be empty.
        check (callable): Takes our output, a peer's, and the peer's name; raises `Unequal`.
        options (Options): How often.
        goals (dict[str, str], optional): By peer, as text.
        floor (float, optional): Seconds that the work takes at least.
        note (str): For every row.
        memory (callable, optional): Takes a peer's name, or None for ours; bytes or None.

    Returns:
        list[Row]: one for each peer, or one of ours alone where there is none.

    Raises:
        Unequal: before anything is timed.
    """
    goals = goals or {}
    present = {name: run for name, run in peers.items() if not isinstance(run, Missing)}
    expected = timed(ours)[1]  # the first calls also warm up
    for name, run in present.items():
        check(expected, timed(run)[1], name)
    del expected
    seconds = take_turns({"": ours, **present}, options.runs, options.settle)
    mine = seconds.pop("")
    base = Row(work, ours=float(np.median(mine)), floor=floor, note=note, our_seconds=mine)
    base.our_memory = memory(None) if memory else None
    if not peers:
        return [base]
    rows = []
    for name, run in peers.items():
        row = Row(**{**asdict(base), "peer": name, "goal": goals.get(name, "")})
        if isinstance(run, Missing):
            row.note = "; ".join(filter(None, [f"not measured: {run.why}", note]))
        else:
            put_ratio(row, seconds[name])
            row.their_memory = memory(name) if memory else None
        rows.append(row)
    return rows


def put_ratio(row, theirs):
    """Fills in the peer's side from its seconds, turn by turn beside ours."""
    ratios = np.array(theirs) / np.array(row.our_seconds)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    row.theirs, row.their_seconds = float(np.median(theirs)), list(theirs)
    row.ratio, row.quartiles = float(middle), (float(low), float(high))


def peer(make):
    """What `make()` returns, or `Missing` with the reason where a module is not installed."""
    try:
        return make()
    except (ImportError, UserError) as error:
        # The package turns the first into the second, which has other reasons too.
        if not isinstance(error, ImportError) and not isinstance(error.__cause__, ImportError):
            raise
        return Missing(f"{type(error).__name__}: {error}")


# -- floors ------------------------------------------------------------------------------------


@dataclass
class Rates:
    """The best this machine does: the fastest of several tries, on all threads.

    Attributes:
        operations (float): Per second, two for each multiply-add, of a large float32 product.
        bytes (float): Per second, read and written, of a large copy.
    """

    operations: float
    bytes: float

    def floor(self, operations=0, moved=0):
        """Seconds that so many operations, and bytes read or written, take at least."""
        return max(operations / self.operations, moved / self.bytes)


def measure_rates(small=False, tries=7):
    """The `Rates` of this machine, with Paddle's matrix product and NumPy's copy."""
    import paddle

    side, count = (64, 1 << 16) if small else (3072, 1 << 26)
    matrix = paddle.ones([side, side])
    threads = thread_count()
    source, target = np.ones(count, np.float32), np.empty(count, np.float32)
    parts = [slice(i * count // threads, (i + 1) * count // threads) for i in range(threads)]

    def product():
        paddle.matmul(matrix, matrix)

    with ThreadPoolExecutor(threads) as pool:

        def copy():  # NumPy releases the interpreter's lock
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))

        product(), copy()
        settle = 0.0 if small else _SETTLE
        seconds = take_turns({"product": product, "copy": copy}, tries, settle)
    return Rates(2 * side**3 / min(seconds["product"]), 8 * count / min(seconds["copy"]))


# -- what is printed ---------------------------------------------------------------------------


def seconds_text(value):
    """Three digits with a unit; "-" for None."""
    if value is None:
        return "-"
    scale, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    return f"{value * scale:.3g} {unit}" if value * scale < 1000 else f"{value * scale:.0f} {unit}"


def bytes_text(value):
    return "-" if value is None else f"{value / 2**20:.1f} MiB"


def cells(row):
    """The row's texts, in the order of `HEAD`."""
    ratio = "-"
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f} ({row.quartiles[0]:.2f} to {row.quartiles[1]:.2f})"
    memory = "-"
    if row.our_memory is not None:
        memory = bytes_text(row.our_memory)
        if row.peer:
            memory += f" / {bytes_text(row.their_memory)}"
    ours, theirs, floor = map(seconds_text, (row.ours, row.theirs, row.floor))
    texts = [row.work, ours, row.peer, theirs, ratio, row.goal, floor, memory, row.note]
    return [text or "-" for text in texts]


HEAD = ["work", "ours", "peer", "peer's", "ratio (quartiles)", "goal", "floor", "memory", "note"]


def table(rows):
    """The rows as a Markdown table, padded; columns in which no row has anything are left out."""
    lines = [HEAD, *map(cells, rows)]
    kept = [i for i in range(len(HEAD)) if i < 2 or any(line[i] != "-" for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in kept]
    texts = ["| " + " | ".join(line[i].ljust(w) for i, w in zip(kept, widths)) for line in lines]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([texts[0] + " |", rule, *(text + " |" for text in texts[1:])])


def machine():
    """Facts about this machine and its settings that JSON can hold."""
    import paddle

    names = []
    if os.path.exists("/proc/cpuinfo"):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1].strip() for line in text.split("\n") if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": thread_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "paddle": paddle.__version__,
        "environment": environment_report(),
    }

# SPDX-License-Identifier: Apache-2.0
"""Two states of this repository beside each other: is one slower? See docs/performance.md.

A row is one piece of work. In each round both sides start a process of their own and warm up; then
they take turns, one of them at a time. A new round has new processes, since one that was unlucky
with its memory stays so. The measuring code is the working tree's on both sides.
"""

import contextlib
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import trees
from printing import load, markdown, processor, seconds_text
from processes import Side, SideError

# Of the ratios: a row is steady where their quartiles are so near to each other, as a share of the
# median.
STEADY = 0.10
LEAST = 3  # turns below which quartiles mean nothing
# Set beforehand: a median that is off 1 by less says nothing, since a process is luckier with its
# memory than another. A commit beside itself has to stay within it.
NOISE = 0.03
# Outputs that differ by less than this share are the same: sums in another order, a tied pixel.
SAME = 1e-3
SETTLE = 0.25  # seconds of rest before a turn, as in harness.py
JUDGES = ("train_step", "input", "evaluate", "export", "loss")
FASTER, SLOWER, NOISY = "faster", "slower", "within the noise"
UNSTEADY, MISSING = "not steady", "not measured"


@dataclass
class Limits:
    """How long a row may take.

    Attributes:
        turns (int): Of each side in a round.
        rounds (int): At least.
        most_turns (int): In all rounds together; no new round once so many are done.
        most_seconds (float): No new round once so much time has gone by, starts included; the
            least number of rounds is made all the same.
        settle (float): Rest before a turn.
    """

    turns: int = 4
    rounds: int = 3
    most_turns: int = 40
    most_seconds: float = 90.0
    settle: float = SETTLE


@dataclass
class Result:
    """A row; seconds of both sides' turns, in pairs."""

    row: str
    verdict: str = MISSING
    other: float = None
    ours: float = None
    ratio: float = None
    quartiles: tuple = None
    turns: int = 0
    note: str = ""
    same_output: bool = True
    other_seconds: list = field(default_factory=list)
    our_seconds: list = field(default_factory=list)


# -- one row -------------------------------------------------------------------------------------


def quartiles(ratios):
    """Lower quartile, median, upper quartile, interpolated."""
    return tuple(float(x) for x in np.percentile(ratios, [25, 50, 75]))


def is_steady(ratios):
    if len(ratios) < LEAST:
        return False
    low, middle, high = quartiles(ratios)
    return high - low <= STEADY * middle


def verdict(ratios):
    """In a word.

    Args:
        ratios (Sequence[float]): The other side's time by ours, turn by turn: above 1, ours is
            faster.
    """
    low, middle, high = quartiles(ratios)
    if not is_steady(ratios):
        return UNSTEADY
    if low > 1 and middle > 1 + NOISE:
        return FASTER
    if high < 1 and 1 / middle > 1 + NOISE:
        return SLOWER
    return NOISY


def differences(other, ours):
    """Of two outputs (dicts of numbers), in words; "" where they are the same."""
    texts = []
    for name in sorted({*other, *ours}):
        a, b = other.get(name), ours.get(name)
        if a is None or b is None or not abs(a - b) <= SAME * max(abs(a), abs(b)):
            texts.append(f"{name} {_number(a)} there, {_number(b)} here")
    return "; ".join(texts)


def _number(value):
    return "missing" if value is None else f"{value:.6g}"


def measure(open_pair, limits):
    """Measures a row in rounds until its ratios are steady, or a limit is reached.

    Args:
        open_pair (callable): Takes the number of the round, returns two new sides, the other one
            first: with `output`, `turn` and `close`.
        limits (Limits): How long.

    Returns:
        tuple: The other side's seconds, ours, and in what outputs differ (text).

    Raises:
        SideError: a process failed; its ``side`` is 0 for the other one, 1 for ours.
    """
    seconds, different, number = ([], []), "", 0
    start = time.perf_counter()
    while True:
        pair = open_pair(number)
        try:
            outputs = [_of_side(i, side.output) for i, side in enumerate(pair)]
            different = different or differences(*outputs)
            for turn in range(min(limits.turns, limits.most_turns - len(seconds[0]))):
                for i in (0, 1) if (number + turn) % 2 == 0 else (1, 0):
                    time.sleep(limits.settle)
                    seconds[i].append(_of_side(i, pair[i].turn))
        finally:
            for side in pair:
                side.close()
        number += 1
        late = time.perf_counter() - start >= limits.most_seconds
        enough = number >= limits.rounds and (late or is_steady(np.divide(*seconds)))
        if enough or len(seconds[0]) >= limits.most_turns:
            return *seconds, different


def _of_side(i, call):
    try:
        return call()
    except SideError as error:
        error.side = i
        raise


def result_of(row, other, ours, different):
    """The `Result` of `measure`'s figures."""
    ratios = np.divide(other, ours)
    low, middle, high = quartiles(ratios)
    found = Result(row, verdict(ratios), float(np.median(other)), float(np.median(ours)), middle)
    found.quartiles, found.turns = (low, high), len(ratios)
    found.other_seconds, found.our_seconds = list(other), list(ours)
    found.same_output = not different
    found.note = f"outputs differ: {different}" if different else ""
    return found


# -- all rows ------------------------------------------------------------------------------------


class Comparison:
    """Both trees in a folder that is removed at the end.

    Args:
        root (Path): A folder in the repository; its working tree is one side.
        revision (str): The other side.

    Raises:
        trees.TreeError: There is no such commit.
    """

    def __init__(self, root, revision):
        root = Path(trees.git(root, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
        self.commit = trees.commit_of(root, revision)
        self.other, self.ours = f"{revision}, {trees.short(self.commit)}", trees.label(root)
        self._temporary = tempfile.TemporaryDirectory(prefix="compare-")
        self.folder = Path(self._temporary.name)
        try:
            trees.write_commit(root, self.commit, self.folder / "a")
            trees.write_working_tree(root, self.folder / "b")
        except BaseException:
            self._temporary.cleanup()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._temporary.cleanup()

    def suites(self):
        """Names of the suites that the working tree has."""
        return suites_in(self.folder / "b" / "benchmarks")

    def side(self, name, suite, row="", small=False):
        """A process in tree "a" (the other one) or "b" (ours)."""
        folder = tempfile.mkdtemp(dir=self.folder)
        code = self.folder / "b" / "benchmarks"
        return Side(self.folder / name, code, suite, row, Path(folder), small)

    def rows(self, suite):
        """(names of the suite's rows, both sides' settings), and fills Python's and the system's
        file caches.

        Raises:
            SideError: With `side`.
        """
        facts = []
        for i, name in enumerate("ab"):
            with contextlib.closing(self.side(name, suite)) as side:
                facts.append(_of_side(i, side.answer))
        return facts[1]["rows"], [one["settings"] for one in facts]

    def result(self, suite, row, limits, small):
        """A row's `Result`; a side that cannot do it is told in the note."""

        def open_pair(_):
            pair = []
            try:
                for name in "ab":  # both warm up at the same time
                    pair.append(self.side(name, suite, row, small))
            except BaseException:
                for side in pair:
                    side.close()
                raise
            return pair

        try:
            return result_of(row, *measure(open_pair, limits))
        except SideError as error:
            return failed(row, error)


def suites_in(code):
    """Names of the suites in a benchmarks/ folder."""
    files = sorted((code / "works").glob("*.py"))
    return [f.stem for f in files if "\nROWS = {" in f.read_text(encoding="utf-8")]


def failed(row, error):
    """The `Result` of a row that one side could not do."""
    return Result(row, note=f"{('the other commit', 'the working tree')[error.side]}: {error}")


HEAD = ["work", "before", "now", "ratio (quartiles)", "turns", "verdict", "note"]


def cells(result):
    """The result's texts, in the order of `HEAD`."""
    ratio = "-"
    if result.ratio is not None:
        ratio = f"{result.ratio:.3f} ({result.quartiles[0]:.3f} to {result.quartiles[1]:.3f})"
    times = [seconds_text(result.other), seconds_text(result.ours)]
    turns = str(result.turns) if result.turns else "-"
    return [result.row, *times, ratio, turns, result.verdict, result.note or "-"]


def compare_suite(comparison, suite, limits, small=False):
    """Measures and prints a suite.

    Returns:
        list[Result]
    """
    try:
        names, settings = comparison.rows(suite)
    except SideError as error:
        results = [failed("all", error)]
    else:
        if settings[0] != settings[1]:
            print(f"The environments differ: {settings[0]} before, {settings[1]} now.")
        results = []
        for name in names:
            results.append(comparison.result(suite, name, limits, small))
            print(f"measured: {name}, {results[-1].verdict}", file=sys.stderr, flush=True)
    print(f"\n{suite}\n\n{markdown(HEAD, [cells(result) for result in results])}", flush=True)
    return results


def passes(result, fail_slower):
    """Whether a row may be called not slower than that, by figures that can be trusted."""
    if result.verdict in (UNSTEADY, MISSING) or not result.same_output:
        return False
    return result.verdict != SLOWER or 1 / result.ratio < fail_slower


def _terminate(*_):
    raise SystemExit(128 + signal.SIGTERM)


def run(args, root):
    """`run.py --compare`; returns the exit status.

    Args:
        args (argparse.Namespace): Of run.py.
        root (Path): A folder in the repository.
    """
    before = signal.signal(signal.SIGTERM, _terminate)  # so that the folder goes then, too
    try:
        with Comparison(root, args.compare) as comparison:
            return _run(args, comparison)
    except trees.TreeError as error:
        print(f"error: --compare {args.compare}: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was measured is above.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args, comparison):
    known = comparison.suites()
    unknown = [name for name in args.suites if name not in known]
    if unknown:
        raise trees.TreeError(f"no suite {unknown[0]!r}; there are: {', '.join(known)}")
    limits = Limits(*((3, 2) if args.quick else (4, 3)), args.most_turns or 40)
    limits.settle = 0.0 if args.small else SETTLE
    print(f"before: {comparison.other}\nnow:    {comparison.ours}")
    print(f"{processor()}; load {load()}; ratio: time before by time now, above 1 is faster now")
    figures = {"processor": processor(), "load": load(), "before": comparison.other}
    figures.update(commit=comparison.commit, now=comparison.ours, small=args.small, suites={})
    results = []
    for suite in args.suites or [name for name in JUDGES if name in known]:
        found = compare_suite(comparison, suite, limits, args.small)
        figures["suites"][suite] = [asdict(result) for result in found]
        results.extend(found)
    if args.json:
        text = json.dumps(figures, indent=1) + "\n"
        Path(args.json).write_text(text, encoding="utf-8")
    if results and all(r.verdict == MISSING for r in results):
        raise trees.TreeError(f"no row could be measured. {results[0].note}".rstrip())
    counts = {v: sum(r.verdict == v for r in results) for v in (FASTER, SLOWER, NOISY)}
    rest = len(results) - sum(counts.values())
    texts = [f"{count} {name}" for name, count in counts.items()]
    print(f"\n{len(results)} rows: {', '.join(texts)}, {rest} without a verdict; load {load()}")
    bad = args.fail_slower and [r for r in results if not passes(r, args.fail_slower)]
    for result in bad or []:
        print(f"--fail_slower: {result.row}: {result.verdict}. {result.note}".rstrip())
    return 1 if bad else 0

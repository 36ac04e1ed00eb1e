# SPDX-License-Identifier: Apache-2.0
"""Measures this project beside what a user would pick instead, on the CPU.

  python benchmarks/run.py                             # every suite
  python benchmarks/run.py loss crf --runs 9 --json figures.json
  python benchmarks/run.py --list
  python benchmarks/run.py --compare main              # is the working tree slower than main?

Prints a table for each suite. Outputs are compared before anything is timed, and all take turns;
ratio is the median over the turns of the peer's time by ours (above 1: we are faster), with its
quartiles. The floor is what the machine needs at least: operations over the rate of a large matrix
product, or bytes over the rate of a large copy, both measured at the start. Memory is what a call
needs at its peak beyond its inputs, ours / the peer's, each in a process of its own.
The peers come with the extra: pip install -e .[cpu,bench]; one that is missing is a row that says
so. pydensecrf2 has to be compiled: pip install cython setuptools wheel pydensecrf2.

--compare needs no peers. It measures a commit and the working tree, uncommitted changes included,
in turn: copies in a temporary folder, each in processes of its own. Ratio is then the commit's time
by the working tree's. A row's verdict is "faster" or "slower" where both quartiles lie on that side
of 1 and the median is off 1 by more than 3 %; "not steady" where the quartiles are further apart
than 10 % of the median after --most_turns; else "within the noise". Its suites are train_step,
input, evaluate, export, loss by default, and confusion, crf, multiscale, start. Other programs that
work at the same time spoil the figures.
"""

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

# name: (module, what it measures)
SUITES = {
    "loss": ("suites.loss", "MixedLoss against cross-entropy plus a plain Lovasz loop"),
    "confusion": ("suites.confusion", "confusion matrix against scikit-learn and torchmetrics"),
    "crf": ("suites.crf", "dense CRF against pydensecrf"),
    "export": ("suites.export", "exported network against ONNX Runtime, OpenVINO, plain dygraph"),
    "train_step": ("suites.train_step", "training step against torch"),
    "input": ("suites.input", "training input pipeline against albumentations"),
    "evaluate": ("suites.evaluate", "evaluation of a whole set against batch 1 in plain dygraph"),
    "multiscale": ("suites.multiscale", "scales and flips, sliding window, against plain loops"),
    "start": ("suites.start", "train.py --help, import, start to first step"),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="suite", help="default: all")
    parser.add_argument("--runs", type=int, help="turns (default: 5; with --small 2)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures, every turn's too")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does the code work?")
    parser.add_argument("--list", action="store_true", help="name the suites and stop")
    with_commit = parser.add_argument_group("with another commit").add_argument
    with_commit("--compare", metavar="REF", help="a branch, tag or hash to compare with")
    with_commit(
        "--most_turns",
        type=int,
        help="of each side for a row; fewer where it is steady before, or after 90 s (default: 40)",
    )
    with_commit("--quick", action="store_true", help="6 turns at least in place of 12")
    with_commit(
        "--fail_slower",
        type=float,
        metavar="RATIO",
        help="exit status 1 where a row takes that many times as long as before (such as 1.05), "
        "has no verdict or other outputs",
    )
    args = parser.parse_args(argv)
    problem = _problem(args)
    if problem:
        parser.error(problem)
    return args


def _problem(args):
    """What is wrong with the flags, or None."""
    if args.compare is None:
        for name in ("most_turns", "quick", "fail_slower"):
            if getattr(args, name):
                return f"--{name} goes with --compare REF."
        unknown = [name for name in args.suites if name not in SUITES]
        if unknown:
            return f"unknown suite {unknown[0]!r}; there are: {', '.join(SUITES)}."
    elif args.runs is not None:
        return "--runs does not go with --compare, which takes turns until a row is steady."
    for name in ("runs", "most_turns", "fail_slower"):
        value = getattr(args, name)
        if value is not None and not value >= 1:
            return f"--{name} should be at least 1, not {value}."
    if args.json and (Path(args.json).is_dir() or not Path(args.json).absolute().parent.is_dir()):
        return f"--json {args.json}: give a file in a folder that is there."
    return None


def rates_text(rates):
    return f"{rates.operations / 1e9:.1f} GFLOP/s, {rates.bytes / 1e9:.2f} GB/s read and written"


def main(argv=None):
    """Runs the suites; exit status 1 where outputs were not equal."""
    args = parse_args(argv)
    if args.list:
        for name, (_, about) in SUITES.items():
            print(f"{name:<12}{about}")
        return 0
    if args.compare is not None:
        import compare

        return compare.run(args, Path(__file__).resolve().parents[1])
    import harness  # imports the package first, which prepares the CPU environment
    import paddle

    paddle.set_device("cpu")
    facts, rates = harness.machine(), harness.measure_rates(args.small)
    options = harness.Options(args.runs or (2 if args.small else 5), args.small, rates)
    print(f"{facts['processor']}, {facts['threads']} thread(s); load {facts['load']}")
    print(f"Paddle {facts['paddle']}. {facts['environment']}")
    print(f"Rates for the floors: {rates_text(rates)}; {options.runs} turns")
    result = {"machine": facts, "rates": asdict(rates), "runs": options.runs, "small": args.small}
    result["suites"], status = {}, 0
    for name in args.suites or SUITES:
        module, about = SUITES[name]
        print(f"\n{name}: {about}\n", flush=True)
        rows, suite = [], {}
        try:
            for row in importlib.import_module(module).rows(options):
                rows.append(row)
                print(f"measured: {row.work}, {row.peer or 'ours'}", file=sys.stderr)
        except harness.Unequal as error:
            print(f"error: outputs are not equal, so they are not timed. {error}")
            suite, status = {"error": str(error)}, 1
        if rows:
            print(harness.table(rows), flush=True)
        result["suites"][name] = {**suite, "rows": [asdict(row) for row in rows]}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())

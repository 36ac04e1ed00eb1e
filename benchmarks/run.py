# SPDX-License-Identifier: Apache-2.0
"""Measures this project beside what a user would pick instead, on the CPU.

  python benchmarks/run.py                             # every suite
  python benchmarks/run.py loss crf --runs 9 --json figures.json
  python benchmarks/run.py --list

Prints a table for each suite. Outputs are compared before anything is timed, and all take turns;
ratio is the median over the turns of the peer's time by ours (above 1: we are faster), with its
quartiles. The floor is what the machine needs at least: operations over the rate of a large matrix
product, or bytes over the rate of a large copy, both measured at the start. Memory is what a call
needs at its peak beyond its inputs, ours / the peer's, each in a process of its own.
The peers come with the extra: pip install -e .[cpu,bench]; one that is missing is a row that says
so. pydensecrf2 has to be compiled: pip install cython setuptools wheel pydensecrf2.
"""

import argparse
import importlib
import json
import sys
from dataclasses import asdict

import harness  # imports the package first, which prepares the CPU environment

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
    args = parser.parse_args(argv)
    for name in args.suites:
        if name not in SUITES:
            parser.error(f"unknown suite {name!r}; there are: {', '.join(SUITES)}.")
    if args.runs is not None and args.runs < 1:
        parser.error(f"--runs should be at least 1, not {args.runs}.")
    return args


def rates_text(rates):
    return f"{rates.operations / 1e9:.1f} GFLOP/s, {rates.bytes / 1e9:.2f} GB/s read and written"


def main(argv=None):
    """Runs the suites; exit status 1 where outputs were not equal."""
    args = parse_args(argv)
    if args.list:
        for name, (_, about) in SUITES.items():
            print(f"{name:<12}{about}")
        return 0
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

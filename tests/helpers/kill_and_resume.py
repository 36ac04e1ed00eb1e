# SPDX-License-Identifier: Apache-2.0
"""Kills a training run with SIGKILL at random moments, and shows that nothing is lost.

  python tests/helpers/kill_and_resume.py --kills 50

A child process trains a tiny network with --resume_model auto. It is killed after a random time,
started again, and so on; at the end it runs through. The weights, the optimizer, the average and
the best score must equal, bit for bit, those of a run that was never disturbed, and no kill may
have cost more than the iterations since the last checkpoint. Two kinds of moments: any time from
the start of the process on, and within a checkpoint's or best model's writing (the parent waits
until a half-written folder is seen). The exit status is 0 if all held.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from places import ROOT

CONFIG = """
batch_size: 2
iters: {iters}
train_dataset: &data
  type: Shapes
  num_classes: 3
  image_size: [32, 24]
  num_samples: 7
  mode: train
  transforms: [{{type: RandomHorizontalFlip}}, {{type: RandomDistort}}, {{type: Normalize}}]
val_dataset: {{type: Shapes, num_classes: 3, image_size: [32, 24], num_samples: 2, mode: val,
  transforms: [{{type: Normalize}}]}}
model: {{type: DeepLabV3P, backbone: {{type: ResNet18_vd, output_stride: 16}},
  aspp_ratios: [1, 2, 3, 4], aspp_out_channels: 8}}
optimizer: {{type: SGD, momentum: 0.9, weight_decay: 4.0e-5}}
lr_scheduler: {{type: PolynomialDecay, learning_rate: 0.02}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1]}}
"""
_SAVED = re.compile(r"Saved .*iter_(\d+)\.")
_STARTED = re.compile(r"iter: (\d+)/")


def start(folder, out, iters, interval, workers):
    """A child that trains in ``out``; returns the process."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(folder / "tiny.yml")]
    command += ["--save_dir", str(out), "--resume_model", "auto", "--device", "cpu", "--do_eval"]
    command += ["--use_ema", "--log_iters", "1", "--keep_checkpoint_max", "2"]
    command += ["--save_interval", str(interval), "--num_workers", str(workers)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=open(folder / "stderr.log", "ab")
    )


def whole(out):
    """Number of the newest checkpoint, 0 if there is none; a folder under its name is whole."""
    numbers = [int(p.name[5:]) for p in out.glob("iter_*") if p.name[5:].isdigit()]
    return max(numbers, default=0)


def half_written(out):
    return [p.name for p in out.glob("*.tmp") if p.is_dir()] if out.is_dir() else []


def wait_to_kill(child, out, rng, seconds, aimed):
    """Waits for the moment; returns whether the child still runs."""
    until = time.monotonic() + 60 if aimed else time.monotonic() + rng.uniform(0, seconds)
    seen = rng.randrange(1, 6)  # which of the folders that come up
    names = set()
    while child.poll() is None and time.monotonic() < until:
        if aimed:
            names.update((name, whole(out)) for name in half_written(out))
            if len(names) >= seen:
                time.sleep(rng.uniform(0, 0.06))  # a save takes about this long
                break
            time.sleep(0.0005)
        else:
            time.sleep(0.01)
    return child.poll() is None


def logged(out):
    """Iterations trained according to the log, and those it says were saved."""
    text = (out / "train.log").read_text(encoding="utf-8") if (out / "train.log").exists() else ""
    done = [int(n) for n in _STARTED.findall(text)]
    return max(done, default=0), max((int(n) for n in _SAVED.findall(text)), default=0)


def kill_once(folder, out, rng, options, aimed, counts):
    child = start(folder, out, options.iters, options.interval, options.workers)
    if not wait_to_kill(child, out, rng, options.seconds, aimed):
        if child.returncode:
            raise SystemExit(f"The child failed: status {child.returncode}, {folder}/stderr.log")
        counts["finished before the kill"] += 1
        return False
    child.send_signal(signal.SIGKILL)
    child.wait()
    halves = half_written(out)
    counts["kills"] += 1
    counts["with a half-written folder"] += bool(halves)
    counts["  of a best model"] += any(name.startswith("best_model") for name in halves)
    reached, saved = logged(out)
    kept = whole(out)
    if kept < saved:
        raise SystemExit(f"iter_{saved} was reported as saved; the newest left is iter_{kept}.")
    counts["most iterations lost"] = max(counts["most iterations lost"], reached - kept)
    # An iteration is logged before its checkpoint is written.
    if reached - kept > options.interval:
        raise SystemExit(f"Iteration {reached} was reached, iter_{kept} is left: too much is lost.")
    if out.is_dir():
        for log in out.glob("train.log"):
            log.unlink()  # the next count is of the next child
    return True


def arrays(path):
    import numpy as np
    import paddle

    flat = {}

    def put(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                put(f"{name}/{key}", inner)
        else:
            flat[name] = np.asarray(value)

    put("", paddle.load(str(path)))
    return flat


def differences(one, other, iters):
    """Names of the files of two finished runs that differ."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    import paddleseg_deeplab  # noqa: F401  (prepares the CPU environment)
    from paddleseg_deeplab.core.training.state import checkpoint
    from paddleseg_deeplab.core.training.state.folder import fault

    different = []
    files = [f"iter_{iters}/{n}" for n in ("model.pdparams", "model.pdopt", "ema.pdparams")]
    for name in [*files, "best_model/model.pdparams"]:
        a, b = arrays(one / name), arrays(other / name)
        if a.keys() != b.keys() or any(not np.array_equal(a[key], b[key]) for key in a):
            different.append(name)
    last = [vars(checkpoint.read_progress(run / f"iter_{iters}")) for run in (one, other)]
    if last[0] != last[1]:
        different.append(f"progress: {last}")
    if [p.name for p in checkpoint.checkpoints(one)] != [
        p.name for p in checkpoint.checkpoints(other)
    ]:
        different.append("the checkpoints that are kept")
    for folder in (*checkpoint.checkpoints(other), other / "best_model"):
        if fault(folder):
            different.append(fault(folder))
    return different + half_written(other)


def run(options):
    """The whole test; returns the counts."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="kill_and_resume_"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yml").write_text(CONFIG.format(iters=options.iters), encoding="utf-8")
    straight, out = folder / "straight", folder / "killed"
    if start(folder, straight, options.iters, options.interval, options.workers).wait():
        raise SystemExit(f"The undisturbed run failed, see {folder}/stderr.log")
    rng = random.Random(options.seed)
    names = ("kills", "with a half-written folder", "  of a best model")
    counts = dict.fromkeys((*names, "most iterations lost", "finished before the kill"), 0)
    for number in range(options.kills):
        aimed = rng.random() < options.aimed
        if not kill_once(folder, out, rng, options, aimed, counts):
            break
        print(f"{number + 1}/{options.kills}: iter_{whole(out)}", file=sys.stderr, flush=True)
    if start(folder, out, options.iters, options.interval, options.workers).wait():
        raise SystemExit(f"The last start failed, see {folder}/stderr.log")
    different = differences(straight, out, options.iters)
    if different:
        raise SystemExit(f"Not the same as an undisturbed run: {different} ({folder})")
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    parser.add_argument("--iters", type=int, default=400, help="of the run; default: 400")
    parser.add_argument("--interval", type=int, default=2, help="save_interval; default: 2")
    parser.add_argument("--workers", type=int, default=0, help="reading processes; default: 0")
    parser.add_argument("--seconds", type=float, default=8.0, help="latest kill; default: 8")
    parser.add_argument("--aimed", type=float, default=0.6, help="share aimed at saving")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: the time")
    parser.add_argument("--folder", help="where to work; default: a new temporary folder")
    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "little")
    counts = run(options)
    print(json.dumps({"seed": options.seed, **counts}, indent=2))
    print("Weights, optimizer, average, best model and progress equal the undisturbed run's.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Two processes that train together, started by Paddle's launcher as a user starts them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.deploy.tf32 import tf32
from paddleseg_deeplab.models.layers import SyncBatchNorm, freeze_batch_norm
from paddleseg_deeplab.tools.doctor.device import difference, is_cpu, using
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed, skipped
from paddleseg_deeplab.tools.doctor.training import BATCH, Samples, SmallNet, losses, optimizer_of

RANKS = 2
SAME = 1e-5  # one backward pass, sums in another order
TRAINED = 1e-3  # 20 updates later
PATIENCE = 60  # seconds that a run may take to end after one process fails
STARTING = 240  # seconds that two processes may take to start and do a job
_ITERATIONS = 20
# A file, since the launcher takes no module; what it imports is this package, wherever it lies.
SCRIPT = """from paddleseg_deeplab.tools.doctor import ranks
ranks.work({job!r}, {device!r}, {out!r})
"""


class NotDone(Exception):
    """The processes did not do their job; the text is one line."""


def _cannot(device):
    """Why two processes cannot be tried on a device; None where they can."""
    if is_cpu(device):
        return None
    count = paddle.device.cuda.device_count()
    return None if count >= RANKS else f"needs {RANKS} GPUs; here is {count}"


def launch(
    job: str, device: str, folder: str | Path, seconds: float = STARTING
) -> tuple[int | None, list[str]]:
    """Runs a job of `work` in two processes.

    Returns:
        tuple: The launcher's exit status (None: it did not end in time), and what each process
            printed.
    """
    script = Path(folder) / "job.py"
    kind = device.partition(":")[0]
    script.write_text(SCRIPT.format(job=job, device=kind, out=str(folder)), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")}
    root = str(Path(__file__).parents[3])
    paths = [root, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    how = ["--nproc_per_node", str(RANKS), "--log_dir", str(Path(folder) / "log")]
    if not is_cpu(device):
        how += ["--devices", ",".join(map(str, range(RANKS)))]
    process = subprocess.Popen(
        [sys.executable, "-m", "paddle.distributed.launch", *how, str(script)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
        process.terminate()  # the launcher passes it on to its processes
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    logs = sorted((Path(folder) / "log").glob("workerlog.*"))
    return status, [log.read_text(encoding="utf-8", errors="replace") for log in logs]


def _done(job, device, folder):
    """Starts a job; the arrays of each rank."""
    status, logs = launch(job, device, folder)
    files = [Path(folder) / f"{rank}.npz" for rank in range(RANKS)]
    if status != 0 or not all(file.is_file() for file in files):
        lines = [line for log in logs for line in log.strip().splitlines()[-1:]]
        state = "did not end" if status is None else f"ended with status {status}"
        raise NotDone(f"the processes {state}: {' | '.join(lines)}")
    return [dict(np.load(file)) for file in files]


def _images(rank):
    """Of different spread and mean on each rank, so that their statistics differ, too."""
    values = np.random.default_rng(rank).standard_normal((BATCH, 3, 32, 32), np.float32)
    return (1 + rank) * values + rank


def _norm_results(layer, images):
    """Output, gradients and statistics of one training pass of a batch norm."""
    x = paddle.to_tensor(images, stop_gradient=False)
    y = layer(x)
    y.square().multiply(paddle.to_tensor(1 + np.cos(images))).sum().backward()
    return {
        "output": y.numpy(),
        "gradient": x.grad.numpy(),
        "weight": layer.weight.grad.numpy(),
        "bias": layer.bias.grad.numpy(),
        "mean": layer._mean.numpy(),
        "variance": layer._variance.numpy(),
    }


def _frozen_gradients(images, over_ranks=False):
    network = SmallNet()
    if over_ranks:  # on a CPU, too, where it would be built with batch norms of each rank's own
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for norm in network.sublayers():
        if isinstance(norm, (nn.BatchNorm2D, nn.SyncBatchNorm)):
            norm._mean.set_value(np.linspace(-0.5, 0.5, 16, dtype="float32"))
    network.train()
    freeze_batch_norm(network)
    network(paddle.to_tensor(images))[0].square().mean().backward()
    return {name: p.grad.numpy() for name, p in network.named_parameters() if not p.stop_gradient}


class _Frozen(SmallNet):
    """For a CPU, where each process has batch norms of its own: they do not train."""

    def train(self):
        super().train()
        freeze_batch_norm(self)


def _weights_after_training(device, folder, batch_size, network=None):
    network = network or (_Frozen() if is_cpu(device) else SmallNet())
    train(
        network,
        Samples(),
        optimizer=optimizer_of(network),
        losses=losses(),
        save_dir=str(folder),
        iters=_ITERATIONS,
        batch_size=batch_size,
        save_interval=_ITERATIONS,
    )
    return {name: value.astype("float32").numpy() for name, value in network.state_dict().items()}


class _TooLarge(SmallNet):
    """Asks for more memory than there is, on one rank, at the third forward pass."""

    def __init__(self, rank, note):
        super().__init__()
        self.rank, self.note, self.passes = rank, note, 0

    def forward(self, x):
        self.passes += 1
        if self.rank == 1 and self.passes == 3:
            self.note.write_text(str(time.time()), encoding="utf-8")
            if x.place.is_cpu_place():  # where Linux would end the process, or another one
                raise RuntimeError("(ResourceExhausted) Out of memory on purpose")
            paddle.zeros([2**42], "float32")  # 16 TiB
        return super().forward(x)


def work(job: str, device: str, out: str | Path) -> None:
    """What each process does; its arrays go to ``<out>/<rank>.npz``."""
    paddle.set_device(device)
    ranks = join()
    out = Path(out)
    if job == "memory":
        _run_out_of_memory(ranks, device, out)
        return
    with tf32(False):
        if job == "norm":
            found = _norm_results(SyncBatchNorm(3), _images(ranks.rank))
        elif job == "frozen":
            found = _frozen_gradients(_images(ranks.rank), is_cpu(device))
        else:
            found = _weights_after_training(device, out / "run", BATCH // RANKS)
    np.savez(out / f"{ranks.rank}.npz", **found)


def _run_out_of_memory(ranks, device, out):
    try:
        network = _TooLarge(ranks.rank, out / "failed")
        _weights_after_training(device, out / "run", BATCH // RANKS, network)
    except Exception as error:
        if not getattr(error, "silent", False):
            line = (str(error).strip().splitlines() or [""])[-1]
            print(json.dumps({"ended": f"{type(error).__name__}: {line}"}), flush=True)
        os._exit(1)  # as a process does whose interpreter no longer matters


def _worst(found, expected):
    """(difference, name) of the two that are furthest apart."""
    return max((difference(found[name], value), name) for name, value in expected.items())


def sync_batch_norm(device: str) -> Row:
    """Different images on two ranks: each has its part of what one has that sees them all."""
    name = "SyncBatchNorm on 2 ranks"
    if is_cpu(device):
        return skipped(name, "Paddle has no SyncBatchNorm for a CPU")
    if _cannot(device):
        return skipped(name, _cannot(device))
    return _sync_batch_norm(name, device)


def _sync_batch_norm(name, device):
    with using(device), tf32(False):
        both = np.concatenate([_images(rank) for rank in range(RANKS)])
        expected = _norm_results(nn.BatchNorm2D(3), both)
    with tempfile.TemporaryDirectory() as folder:
        try:
            parts = _done("norm", device, folder)
        except NotDone as error:
            return failed(name, str(error))
    found = {key: np.concatenate([p[key] for p in parts]) for key in ("output", "gradient")}
    found.update({key: sum(p[key] for p in parts) for key in ("weight", "bias")})
    for part in parts:
        found.update({key: part[key] for key in ("mean", "variance")})
        gap, what = _worst(found, expected)
        if gap > SAME:
            break
    detail = f"{what} differs by {gap:.1e} from that of all images together (limit {SAME:.0e})"
    return (passed if gap <= SAME else failed)(name, detail)


def frozen_batch_norm(device: str) -> Row:
    """One backward pass with frozen batch norms on two ranks: each has one process's gradient."""
    name = "freeze_bn on 2 ranks"
    if _cannot(device):
        return skipped(name, _cannot(device))
    with tempfile.TemporaryDirectory() as folder:
        try:
            parts = _done("frozen", device, folder)
        except NotDone as error:
            return failed(name, str(error))
    with using(device), tf32(False):
        expected = [_frozen_gradients(_images(rank)) for rank in range(RANKS)]
    gap, what = max(map(_worst, parts, expected))
    detail = f"the gradient of {what} differs by {gap:.1e} from one process's (limit {SAME:.0e})"
    return (passed if gap <= SAME else failed)(name, detail)


def two_against_one(device: str) -> Row:
    """20 iterations of two ranks against one process with twice the batch, TF32 off."""
    name = "2 ranks against 1, 20 steps"
    if _cannot(device):
        return skipped(name, _cannot(device))
    with tempfile.TemporaryDirectory() as folder:
        try:
            parts = _done("train", device, folder)
        except NotDone as error:
            return failed(name, str(error))
        with using(device), tf32(False):
            expected = _weights_after_training(device, Path(folder) / "alone", BATCH)
    gap, what = max(_worst(part, expected) for part in parts)
    detail = f"{what} differs by {gap:.1e} (limit {TRAINED:.0e})"
    return (passed if gap <= TRAINED else failed)(name, detail)


def out_of_memory(device: str) -> Row:
    """One rank runs out of memory: all end soon, and one line says why."""
    name = "out of memory on rank 1"
    if _cannot(device):
        return skipped(name, _cannot(device))
    with tempfile.TemporaryDirectory() as folder:
        status, logs = launch("memory", device, folder, STARTING + PATIENCE)
        ended, note = time.time(), Path(folder) / "failed"
        took = ended - float(note.read_text(encoding="utf-8")) if note.is_file() else None
    ends = [line for log in logs for line in log.splitlines() if line.startswith('{"ended": ')]
    lines = [json.loads(line)["ended"] for line in ends]
    if took is None:
        return failed(name, f"it never came to that: status {status}, {' | '.join(lines)}")
    named = [line for line in lines if "out of memory" in line.lower() or "Exhausted" in line]
    how = "had not ended" if status is None else f"ended with status {status}"
    detail = f"{how} {took:.0f} s later (limit {PATIENCE}), having said: {' | '.join(lines)}"
    good = status not in (None, 0) and took <= PATIENCE and len(named) == len(lines) == 1
    return (passed if good else failed)(name, detail)


ROWS = (sync_batch_norm, frozen_batch_norm, two_against_one, out_of_memory)

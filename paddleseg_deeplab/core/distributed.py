# SPDX-License-Identifier: Apache-2.0
"""Several processes ("ranks") as one run: what they exchange, and how they stop together.

``python -m paddle.distributed.launch --nproc_per_node N ...`` starts the processes; `join` makes
them a group, over gloo on a CPU and NCCL on a GPU. Not `paddle.DataParallel`: it sets the modes of
sublayers itself, which would undo the freezing of batch norm in `Segmenter.train`, and it needs
care with gradient accumulation and with parameters that get no gradient. Here gradients are summed
once per update, after the last backward pass.
"""

import contextlib
import os

import numpy as np
import paddle

from paddleseg_deeplab.core.gate import Gate
from paddleseg_deeplab.core.interrupt import Interrupted
from paddleseg_deeplab.utils.errors import NonFiniteLoss, RunStopped, UserError

_PATIENCE = 1800.0  # seconds that ranks wait for each other
_BUCKET = 2**23  # elements of one all-reduce: 32 MiB of float32


class Ranks:
    """The processes of a run; one alone (the default) exchanges nothing.

    Every method but the properties is collective: all ranks call the same ones in the same order.

    Args:
        rank (int): This process's number.
        size (int): How many there are.
        gate (Gate, optional): Through which ranks go together before each exchange; None leaves
            the waiting to the exchange.

    Raises:
        RunStopped: From any of them: another rank stopped the run, or is gone.
    """

    def __init__(self, rank=0, size=1, gate=None):
        self.rank = rank
        self.size = size
        self._gate = gate

    @property
    def is_main(self):
        """bool: True on the one rank that writes files and tells what is done."""
        return self.rank == 0

    def sum(self, values):
        """Sums numbers over the ranks; float64 [n] in and out."""
        values = np.asarray(values, np.float64).reshape(-1)
        if self.size == 1 or not values.size:
            return values
        with self._exchange():
            tensor = paddle.to_tensor(values)
            paddle.distributed.all_reduce(tensor)
            return tensor.numpy()

    def max(self, value):
        """int: The largest of the ranks' integers."""
        if self.size == 1:
            return int(value)
        with self._exchange():
            tensor = paddle.to_tensor(np.asarray([value], np.int64))
            paddle.distributed.all_reduce(tensor, op=paddle.distributed.ReduceOp.MAX)
            return int(tensor.numpy()[0])

    def gather(self, value):
        """What each rank gave, a list in their order; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values = []
        with self._exchange():
            paddle.distributed.all_gather_object(values, value)
        return values

    def agree(self, error=None, values=()):
        """Goes on only where all ranks can, and sums numbers over them on the way.

        Args:
            error (Exception, optional): What went wrong on this rank.
            values (Sequence[float]): As many on every rank, one with an error included.

        Returns:
            np.ndarray: float64, the sums of `values`.

        Raises:
            Exception: `error` itself on its rank. On the others the `UserError` or
                `NonFiniteLoss` of the first rank that had one, naming the rank, its `Interrupted`,
                and `RunStopped` for any other kind. On all ranks but the first it has ``silent``
                set, so that one process prints it.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return np.asarray(values, np.float64)
        if isinstance(error, RunStopped):
            raise error  # the ranks have lost or told each other already
        total = self.sum([error is not None, *values])
        if not total[0]:
            return total[1:]
        raise self._of_all(error)

    @contextlib.contextmanager
    def guard(self):
        """Work that any rank may fail in; at its end all ranks go on, or all raise (`agree`)."""
        error = None
        try:
            yield
        except (Exception, Interrupted) as caught:
            error = caught
        self.agree(error)

    def _of_all(self, error):
        """The exception that this rank raises for the first one that any rank had."""
        told = self.gather(error and _description(error))
        first = next(rank for rank, item in enumerate(told) if item is not None)
        if first != self.rank:
            kind, text = told[first]
            who = f"process {first} of {self.size}: "
            error = kind(text) if kind is Interrupted else kind(who + text)
        error.silent = not self.is_main
        return error

    def sum_gradients(self, parameters, count=None):
        """Replaces the gradients by their sums over the ranks.

        Args:
            parameters (Sequence[Tensor]): The same on every rank.
            count (Sequence[float], optional): On how many ranks each of them has a gradient; one
                that has none anywhere is left alone, so that no optimizer moves it.
        """
        if self.size == 1:
            return
        if count is None:
            count = self.sum([p.grad is not None for p in parameters])
        bucket, elements = [], 0
        for parameter, ranks in zip(parameters, count):
            if not ranks:
                continue
            size = int(np.prod(parameter.shape))
            if bucket and elements + size > _BUCKET:
                self._sum_bucket(bucket)
                bucket, elements = [], 0
            bucket.append(parameter)
            elements += size
        if bucket:
            self._sum_bucket(bucket)

    @paddle.no_grad()
    def _sum_bucket(self, parameters):
        # In float32 also where gradients are float16: a sum over many ranks could overflow.
        flat = paddle.concat(
            [
                paddle.zeros([int(np.prod(p.shape))], "float32")
                if p.grad is None
                else p.grad.astype("float32").flatten()
                for p in parameters
            ]
        )
        with self._exchange():
            paddle.distributed.all_reduce(flat)
        start = 0
        for p in parameters:
            stop = start + int(np.prod(p.shape))
            part = flat[start:stop].reshape(p.shape)
            if p.grad is None:
                p.grad = part.astype(p.dtype)
            else:
                paddle.assign(part.astype(p.grad.dtype), output=p.grad)
            start = stop

    @paddle.no_grad()
    def copy_first(self, tensors):
        """Overwrites tensors by the first rank's: running statistics differ between ranks."""
        if self.size == 1:
            return
        self.agree()
        with self._lost():
            for tensor in tensors:
                paddle.distributed.broadcast(tensor, 0)

    @contextlib.contextmanager
    def _exchange(self):
        with self._lost():
            if self._gate is not None:
                self._gate.wait()
            yield
            # One that went on to its end here would break the connection under the slower ones.
            if self._gate is not None:
                self._gate.wait()

    @contextlib.contextmanager
    def _lost(self):
        try:
            yield
        except RunStopped:
            raise
        # What gloo, NCCL and Paddle around them raise.
        except (RuntimeError, OSError, SystemError, ValueError) as error:
            raise RunStopped(
                f"process {self.rank} of {self.size} cannot reach the others any more: one of "
                f"them is gone, or the network failed ({str(error).strip().splitlines()[-1]}); "
                "--resume_model auto goes on from the last checkpoint."
            ) from error


def share_statistics(ranks, model, ema=None):
    """Gives all ranks the first one's running statistics, which is what a checkpoint holds.

    On a CPU each rank's batch norms see its own images only (see `layers.norm.SyncBatchNorm`); in
    their average, too.
    """
    # Running statistics are parameters too in Paddle, without gradients.
    trained = {name for name, p in model.named_parameters() if not p.stop_gradient}
    states = [model.state_dict(), ema.state_dict()["average"] if ema is not None else {}]
    ranks.copy_first([t for s in states for name, t in s.items() if name not in trained])


def _description(error):
    """Class and argument of the exception that the other ranks raise for this one."""
    if isinstance(error, Interrupted):
        return Interrupted, error.signal
    for kind in (UserError, NonFiniteLoss):
        if isinstance(error, kind):
            return kind, str(error)
    return RunStopped, f"{type(error).__name__}: {error}"


_joined = None


def join(device=None):
    """The ranks of this run; the first call makes the group where a launcher started several.

    Paddle's device has to be selected before.

    Args:
        device (str, optional): The name that it was selected by.

    Returns:
        Ranks: The same object each time.

    Raises:
        UserError: One GPU was named for all ranks.
    """
    global _joined
    size = paddle.distributed.get_world_size()
    if size == 1:
        return Ranks()
    if _joined is not None:
        return _joined
    if device is not None and ":" in device:
        raise UserError(
            f"--device {device} names one device for {size} processes. Use --device gpu: the "
            "launcher gives each process one of its own (its option --devices says which)."
        )
    on_cpu = paddle.get_device() == "cpu"
    if on_cpu:
        # A GPU build of Paddle would take NCCL.
        os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    if not paddle.distributed.is_initialized():
        paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    _joined = Ranks(rank, size, _gate(rank, size) if on_cpu else None)
    return _joined


def _gate(rank, size):
    """The `Gate` of a CPU run; None where this Paddle hides its store."""
    try:
        from paddle.base import core

        store = core.create_or_get_global_tcp_store()
    except (ImportError, AttributeError):
        return None
    told = os.environ.get("PADDLE_PG_TIMEOUT", "")  # Paddle's setting for NCCL
    patience = int(told) / 1000 if told.isdigit() and int(told) > 0 else _PATIENCE
    host = paddle.distributed.ParallelEnv().trainer_endpoints[0].rpartition(":")[0]
    try:
        return Gate(rank, size, store, host, patience)
    except OSError as error:
        raise RunStopped(
            f"process {rank} of {size} cannot connect to the first one, {host} ({error})."
        ) from error

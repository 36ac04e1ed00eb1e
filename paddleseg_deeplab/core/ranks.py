# SPDX-License-Identifier: Apache-2.0
"""Several processes ("ranks") as one run: what they exchange, and how they stop together.

``python -m paddle.distributed.launch --nproc_per_node N ...`` starts the processes; `join` makes
them a group, over gloo on a CPU and NCCL on a GPU. `core.training.gradients` sums gradients.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.core.barrier import Barrier, Store
from paddleseg_deeplab.core.training.watch.interrupt import Interrupted
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.cpu import positive_number
from paddleseg_deeplab.utils.errors import (
    NonFiniteLoss,
    NonFiniteScores,
    RunStopped,
    UserError,
)
from paddleseg_deeplab.utils.out_of_memory import OutOfMemory

_PATIENCE = 1800.0  # seconds that ranks wait for each other
# In Paddle's messages about this process's device or readers, not about the way to the others.
_OF_THIS_RANK = (
    "CUDA error",
    "ResourceExhausted",
    "Out of memory",
    "CUBLAS",
    "CUDNN",
    "DataLoader process",
)
_CAUSE, _CAUSES = "paddleseg_deeplab/cause", "paddleseg_deeplab/causes"

_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)


class Exchange(Protocol):
    """One that still runs."""

    def wait(self) -> bool: ...


class Ranks:
    """The processes of a run; one alone (the default) exchanges nothing.

    Every method but the properties is collective: all ranks call the same ones in the same order.

    Args:
        rank (int): This process's number.
        size (int): How many there are.
        barrier (Barrier, optional): Where ranks wait for each other before each exchange; None
            leaves the waiting to the exchange.
        on_host (bool): Whether exchanges go through the host's memory (gloo), so that to read
            their result costs nothing. Through a device's (NCCL) reading it is waiting for it.
        notes (Store, optional): In which a rank that leaves says why.

    Raises:
        RunStopped: From any of them: another rank stopped the run, or is gone.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        barrier: Barrier | None = None,
        *,
        on_host: bool = True,
        notes: Store | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.on_host = on_host
        self._barrier = barrier
        self._notes = notes

    @property
    def is_main(self) -> bool:
        """bool: True on the one rank that writes files and tells what is done."""
        return self.rank == 0

    def sum(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Sums numbers over the ranks; float64 [n] in and out."""
        values = np.asarray(values, np.float64).reshape(-1)
        if self.size == 1 or not values.size:
            return values
        tensor = paddle.to_tensor(values)
        self.sum_in_place(tensor)
        return tensor.numpy()

    def sum_in_place(self, tensor: Tensor, wait: bool = True) -> Exchange | None:
        """Makes a tensor its sum over the ranks; the host does not wait for a device.

        Args:
            tensor (Tensor): On the ranks' device.
            wait (bool): False lets other work run beside it, and gives what has to be waited for.

        Returns:
            Exchange | None: After whose ``wait()`` the sum is there; None if it is already.
        """
        if self.size == 1:
            return None
        with self._exchange():
            task = paddle.distributed.all_reduce(tensor, sync_op=wait)
        return None if wait else task

    def gather(self, value: _T) -> list[_T]:
        """What each rank gave, a list in their order; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[_T] = []
        with self._exchange():
            paddle.distributed.all_gather_object(values, value)
        return values

    def agree(
        self, error: BaseException | None = None, values: Sequence[float] | Tensor = ()
    ) -> np.ndarray:
        """Goes on only where all ranks can, and sums numbers over them on the way.

        Args:
            error (Exception, optional): What went wrong on this rank.
            values (Sequence[float] | Tensor): As many on every rank, one with an error included; a
                Tensor [n] stays on its device until the sums are read.

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
        if error is not None and getattr(error, "agreed", False):
            raise error  # the ranks have lost or told each other already
        try:
            total = self._flag_and_sums(error is not None, values)
        except Exception:
            if error is not None:
                raise error from None  # the cause, not that the others cannot be reached
            raise
        if not total[0]:
            return total[1:]
        raise self._of_all(error)

    def _flag_and_sums(self, flag, values):
        """float64 [1 + n] after one exchange and one read."""
        if not isinstance(values, paddle.Tensor):
            return self.sum([flag, *values])
        joined = paddle.concat([paddle.full([1], float(flag), values.dtype), values])
        self.sum_in_place(joined)
        return joined.numpy().astype(np.float64)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Work that any rank may fail in; at its end all ranks go on, or all raise (`agree`)."""
        error: BaseException | None = None
        try:
            yield
        except (Exception, Interrupted) as caught:
            error = caught
        self.agree(error)

    def _of_all(self, error):
        """The exception that this rank raises for the first one that any rank had."""
        descriptions = self.gather(error and _description(error))
        first = next(rank for rank, item in enumerate(descriptions) if item is not None)
        if first != self.rank:
            kind, text = descriptions[first]
            who = f"process {first} of {self.size}: "
            error = kind(text) if kind is Interrupted else kind(who + text)
        return self.alike(error)

    def alike(self, error: _E) -> _E:
        """An error that every rank raises, marked so: the first one prints it."""
        # Marks, which any exception can bear.
        error.agreed = True  # type: ignore[attr-defined]
        error.silent = not self.is_main  # type: ignore[attr-defined]
        return error

    @paddle.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
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
            if self._barrier is not None:
                self._barrier.wait()
            yield
            # One that went on to its end here would break the connection under the slower ones.
            if self._barrier is not None:
                self._barrier.wait()

    @contextlib.contextmanager
    def _lost(self):
        try:
            yield
        except RunStopped as error:
            raise self._with_cause(error) from error.__cause__
        # What gloo, NCCL and Paddle around them raise.
        except (RuntimeError, OSError, SystemError, ValueError) as error:
            text = str(error).strip()
            if any(sign in text for sign in _OF_THIS_RANK):
                raise  # its own trouble, which only shows here
            raise self._with_cause(
                RunStopped(
                    f"process {self.rank} of {self.size} cannot reach the others any more: one of "
                    f"them is gone, or the network failed ({text.splitlines()[-1]}); "
                    "--resume_model auto goes on from the last checkpoint."
                )
            ) from error

    def leave(self, error: BaseException) -> None:
        """Says why this rank stops where the others cannot be asked, and may be waiting for it.

        Args:
            error (BaseException): What is raised next. It is marked (``unagreed``), so that the
                command ends this process at once and does not wait for the others. One that all
                raise alike is left alone.
        """
        if self.size == 1 or getattr(error, "agreed", False) or getattr(error, "unagreed", False):
            return
        error.unagreed = True  # type: ignore[attr-defined]  # a mark, as in `alike`
        notes = self._notes
        with contextlib.suppress(Exception):  # the others then see that this one is gone
            if notes is not None and not notes.add(_CAUSES, 0):
                text = " ".join(str(error).split()) or type(error).__name__
                notes.set(_CAUSE, f"process {self.rank} of {self.size}: {text}"[:2000])
                notes.add(_CAUSES, 1)  # the others do not wait for what was not set

    def _with_cause(self, stopped):
        """A `RunStopped`, with what the first rank that left has said."""
        with contextlib.suppress(Exception):
            if self._notes.add(_CAUSES, 0):
                stopped = RunStopped(f"{self._notes.get(_CAUSE).decode()} ({stopped})")
        stopped.unagreed = not self.on_host
        return self.alike(stopped)


def share_statistics(ranks: Ranks, model: nn.Layer, ema: ModelEMA | None = None) -> None:
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
    for kind in (OutOfMemory, NonFiniteScores, UserError, NonFiniteLoss):
        if isinstance(error, kind):
            return kind, str(error)
    return RunStopped, f"{type(error).__name__}: {error}"


_joined: Ranks | None = None


def join(device: str | None = None) -> Ranks:
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
    store = _store()
    barrier = _make_barrier(rank, size, store) if on_cpu and store is not None else None
    _joined = Ranks(rank, size, barrier, on_host=on_cpu, notes=store)
    return _joined


def _store():
    """Paddle's key-value store of the run; None where this Paddle hides it."""
    try:
        from paddle.base import core

        return core.create_or_get_global_tcp_store()
    except (ImportError, AttributeError):
        return None


def _make_barrier(rank, size, store):
    """The `Barrier` of a CPU run."""
    # Paddle's setting for NCCL, in milliseconds.
    timeout = positive_number(os.environ.get("PADDLE_PG_TIMEOUT", ""))
    patience = timeout / 1000 if timeout else _PATIENCE
    host = paddle.distributed.ParallelEnv().trainer_endpoints[0].rpartition(":")[0]
    try:
        return Barrier(rank, size, store, host, patience)
    except OSError as error:
        raise RunStopped(
            f"process {rank} of {size} cannot connect to the first one, {host} ({error})."
        ) from error

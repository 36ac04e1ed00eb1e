# SPDX-License-Identifier: Apache-2.0
"""Losses that stay on the device until somebody reads them.

To read a number from a GPU is to wait until the GPU has done all it was given before, and the GPU
then idles until it is given more. So losses are read together, when a line is logged or before
something is saved. On a CPU reading waits for nothing, and each loss is read at once.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import paddle
from paddle import Tensor

from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.watch.watcher import IterationReport, Watcher
from paddleseg_deeplab.utils.errors import NonFiniteLoss


def as_vector(loss: Tensor, parts: Iterable[Tensor | float]) -> Tensor:
    """Loss and parts as one array on their device, so that one is read in place of many.

    Args:
        loss (Tensor): A scalar.
        parts (Iterable[Tensor | float]): Its parts, scalars.

    Returns:
        Tensor: float64 [1 + parts], in which batches are added up without losing digits.
    """
    values = [
        v.detach() if isinstance(v, paddle.Tensor) else paddle.full([], v, "float32")
        for v in (loss, *parts)
    ]
    if any(v.dtype != paddle.float32 for v in values):  # a loss written for PaddleSeg may give them
        values = [v.astype("float64") for v in values]
    return paddle.stack([v.reshape([]) if v.ndim else v for v in values]).astype("float64")


def check_loss(names: Sequence[str], values: Sequence[float] | np.ndarray) -> None:
    """Raises `NonFiniteLoss` that tells loss and parts, unless the loss, the first, is finite."""
    if not math.isfinite(values[0]):
        listed = ", ".join(f"{name} {value:g}" for name, value in zip(names, values[1:]))
        raise NonFiniteLoss(f"the loss is {values[0]} ({listed})")


def check_gradient(square: float, where: str = "") -> None:
    """Raises `NonFiniteLoss` unless a gradient's `gradients.square_sum` is finite.

    Args:
        square (float): What `square_sum` gave.
        where (str): Which parameters it is, for the message.
    """
    if not math.isfinite(square):
        raise NonFiniteLoss(
            f"the gradient is not finite, or its norm is above 1e19{where and f' ({where})'}, "
            "though the loss is finite (on a CPU Paddle's ReLU turns NaN into 0)"
        )


class StepResult:
    """Loss and parts of one iteration, and whether its gradient was finite.

    Args:
        names (list[str]): Of the parts.
        vector (Tensor | array): [2 + parts]: loss and parts over all batches, as `as_vector` gives
            them, and the gradient's `gradients.square_sum` (0 where nobody looks).
        explain (callable, optional): Takes a `NonFiniteLoss`, returns the one to raise.
        signal (int): Of a stop that was asked for, here or on another rank; 0 for none.
    """

    def __init__(
        self,
        names: Sequence[str],
        vector: Tensor | np.ndarray,
        explain: Callable[[NonFiniteLoss], NonFiniteLoss] | None = None,
        signal: int = 0,
    ) -> None:
        self.names = names
        self.vector = vector
        self.signal = signal
        self._explain = explain

    def read(self, where: Callable[[], str] = lambda: "") -> tuple[float, dict[str, float]]:
        """Waits for the device.

        Args:
            where (callable): Gives the parameters whose gradients are not finite, for the message.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, over all batches.

        Raises:
            NonFiniteLoss: The loss or the gradient is not finite.
        """
        return self.checked(np.asarray(self.vector, np.float64), where)

    def checked(
        self, values: np.ndarray, where: Callable[[], str] = lambda: ""
    ) -> tuple[float, dict[str, float]]:
        """What `read` gives and raises, of values that are read already, float64 [2 + parts]."""
        *losses, square = values.tolist()
        try:
            check_loss(self.names, losses)
            check_gradient(square, "" if math.isfinite(square) else where())
        except NonFiniteLoss as error:
            raise (self._explain(error) if self._explain else error) from None
        return losses[0], dict(zip(self.names, losses[1:]))


def read_all(results: Sequence[StepResult]) -> list[np.ndarray]:
    """The values of several iterations, after one wait for the device: a float64 array of each."""
    on_device = [result for result in results if isinstance(result.vector, paddle.Tensor)]
    if len({tuple(result.vector.shape) for result in on_device}) == 1:
        stacked = paddle.stack([result.vector for result in on_device]).numpy()
        for one, values in zip(on_device, stacked):
            one.vector = values
    return [np.asarray(result.vector, np.float64) for result in results]


@dataclasses.dataclass
class Iteration:
    """One update of the weights that ran, its losses perhaps still on the device.

    Attributes:
        number (int): Counted from 1.
        result (StepResult): Its losses and gradient.
        learning_rate, reader_seconds, step_seconds (float): As of `IterationReport`.
    """

    number: int
    result: StepResult
    learning_rate: float
    reader_seconds: float
    step_seconds: float


class Journal:
    """The iterations that ran and were not read yet; tells the watchers when they are.

    Args:
        watchers (Sequence[Watcher]): Get each iteration, in order.
        schedule (Schedule): Says when a line is due.
        watch (Stopwatch): Of the run; waiting for the device counts as computing.
    """

    def __init__(self, watchers: Sequence[Watcher], schedule: Schedule, watch: "Stopwatch") -> None:
        self._watchers = watchers
        self._schedule = schedule
        self._watch = watch
        self._waiting: list[Iteration] = []

    def add(self, iteration: Iteration) -> None:
        """Takes an `Iteration`; reads all that wait where a line is due.

        Raises:
            NonFiniteLoss: See `read`.
        """
        self._waiting.append(iteration)
        if self._schedule.logs_at(iteration.number):
            self.read()

    def read(self) -> None:
        """Reads what waits and tells the watchers.

        Raises:
            NonFiniteLoss: Of the first iteration whose loss or gradient is not finite. Iterations
                after it have moved the weights.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        last = waiting[-1]
        late = isinstance(last.result.vector, paddle.Tensor)
        values = read_all([one.result for one in waiting])
        if late:
            last.step_seconds += self._watch.lap()
        for one, value in zip(waiting, values):
            try:
                loss, parts = one.result.checked(value)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"{error} This was read after iteration {last.number}: the weights have "
                    f"moved since iteration {one.number} and are not saved; --resume_model auto "
                    "goes on from the last checkpoint."
                ) from None
            report = IterationReport(
                one.number, loss, parts, one.learning_rate, one.reader_seconds, one.step_seconds
            )
            for watcher in self._watchers:
                watcher.after_iteration(report)


class Stopwatch:
    """Seconds since the last reading."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

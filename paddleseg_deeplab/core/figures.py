# SPDX-License-Identifier: Apache-2.0
"""Losses that stay on the device until somebody reads them.

To read a number from a GPU is to wait until the GPU has done all it was given before, and the GPU
then idles until it is given more. A run that reads every N-th time only keeps it busy.
"""

import math

import numpy as np
import paddle

from paddleseg_deeplab.utils.errors import NonFiniteLoss


def as_vector(loss, parts):
    """Loss and parts as one array on their device, so that one is read in place of many.

    Args:
        loss (Tensor): A scalar.
        parts (Iterable[Tensor | float]): Its parts, scalars.

    Returns:
        Tensor: [1 + parts]; float32, or float64 where something else is among them.
    """
    values = [
        v.detach() if isinstance(v, paddle.Tensor) else paddle.full([], v, "float64")
        for v in (loss, *parts)
    ]
    if any(v.dtype != paddle.float32 for v in values):  # a loss written for PaddleSeg may give them
        values = [v.astype("float64") for v in values]
    return paddle.stack([v.reshape([]) if v.ndim else v for v in values])


def check_finite(names, values):
    """Raises `NonFiniteLoss` that tells loss and parts, unless the loss, the first, is finite."""
    if not math.isfinite(values[0]):
        told = ", ".join(f"{name} {value:g}" for name, value in zip(names, values[1:]))
        raise NonFiniteLoss(f"the loss is {values[0]} ({told})")


class Figures:
    """Loss and parts of one iteration.

    Args:
        names (list[str]): Of the parts.
        vectors (list): [1 + parts] of each batch, as `as_vector` gives them, or read.
        explain (callable, optional): Takes a `NonFiniteLoss`, returns the one to raise.
    """

    def __init__(self, names, vectors, explain=None):
        self._names = names
        self._vectors = vectors
        self._explain = explain

    def read(self):
        """Waits for the device.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, over all batches.

        Raises:
            NonFiniteLoss: Of the first batch whose loss is not finite.
        """
        sums = [0.0] * (1 + len(self._names))
        for vector in self._vectors:
            values = np.asarray(vector, np.float64).tolist()
            try:
                check_finite(self._names, values)
            except NonFiniteLoss as error:
                raise (self._explain(error) if self._explain else error) from None
            sums = [a + b for a, b in zip(sums, values)]
        return sums[0], dict(zip(self._names, sums[1:]))


class Journal:
    """The iterations that ran and were not read yet; hands them to the monitor when they are.

    Args:
        monitor (TrainMonitor): Gets each iteration's figures, in order.
        watch (Stopwatch): Of the run; waiting for the device counts as computing.
        interval (int): Iterations after which they are read at the latest; 1 reads each.
    """

    def __init__(self, monitor, watch, interval=1):
        self._monitor = monitor
        self._watch = watch
        self._interval = interval
        self._waiting = []

    def add(self, iteration, figures, rate, reader_seconds, step_seconds):
        """Takes an iteration; reads all that wait where it is time.

        Args:
            iteration (int): Counted from 1.
            figures (Figures): Of it.
            rate, reader_seconds, step_seconds (float): As `TrainMonitor.record` takes them.

        Raises:
            NonFiniteLoss: See `read`.
        """
        self._waiting.append([iteration, figures, rate, reader_seconds, step_seconds])
        if len(self._waiting) >= self._interval or self._monitor.tells(iteration):
            self.read()

    def read(self):
        """Reads what waits and tells the monitor.

        Raises:
            NonFiniteLoss: Of the first iteration whose loss is not finite. Iterations after it
                have moved the weights.
        """
        waiting, self._waiting = self._waiting, []
        values, fault = [], None
        for iteration, figures, *_ in waiting:
            try:
                values.append(figures.read())
            except NonFiniteLoss as error:
                last = waiting[-1][0]
                fault = NonFiniteLoss(
                    f"{error} This was read after iteration {last} (--loss_interval "
                    f"{self._interval}): the weights have moved since iteration {iteration} and "
                    "are not saved; --resume_model auto goes on from the last checkpoint."
                )
                break
        if waiting and self._interval > 1:
            waiting[-1][-1] += self._watch.lap()
        for (iteration, _, *rest), (loss, parts) in zip(waiting, values):
            self._monitor.record(iteration, loss, parts, *rest)
        if fault is not None:
            raise fault

# SPDX-License-Identifier: Apache-2.0
"""Losses that stay on the device until somebody reads them.

To read a number from a GPU is to wait until the GPU has done all it was given before, and the GPU
then idles until it is given more. So losses are read together, when a line is logged or before
something is saved. On a CPU reading waits for nothing, and each loss is read at once.
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
        Tensor: float64 [1 + parts], in which batches are added up without losing digits.
    """
    values = [
        v.detach() if isinstance(v, paddle.Tensor) else paddle.full([], v, "float32")
        for v in (loss, *parts)
    ]
    if any(v.dtype != paddle.float32 for v in values):  # a loss written for PaddleSeg may give them
        values = [v.astype("float64") for v in values]
    return paddle.stack([v.reshape([]) if v.ndim else v for v in values]).astype("float64")


def check_loss(names, values):
    """Raises `NonFiniteLoss` that tells loss and parts, unless the loss, the first, is finite."""
    if not math.isfinite(values[0]):
        told = ", ".join(f"{name} {value:g}" for name, value in zip(names, values[1:]))
        raise NonFiniteLoss(f"the loss is {values[0]} ({told})")


def check_gradient(square, where=""):
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


class Figures:
    """Loss and parts of one iteration, and whether its gradient was finite.

    Args:
        names (list[str]): Of the parts.
        vector (Tensor | array): [2 + parts]: loss and parts over all batches, as `as_vector` gives
            them, and the gradient's `gradients.square_sum` (0 where nobody looks).
        explain (callable, optional): Takes a `NonFiniteLoss`, returns the one to raise.
        signal (int): Of a stop that was asked for, here or on another rank; 0 for none.
    """

    def __init__(self, names, vector, explain=None, signal=0):
        self.names = names
        self.vector = vector
        self.signal = signal
        self._explain = explain

    def read(self, where=lambda: ""):
        """Waits for the device.

        Args:
            where (callable): Gives the parameters whose gradients are not finite, for the message.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, over all batches.

        Raises:
            NonFiniteLoss: The loss or the gradient is not finite.
        """
        return self.checked(np.asarray(self.vector, np.float64), where)

    def checked(self, values, where=lambda: ""):
        """What `read` gives and raises, of values that are read already, float64 [2 + parts]."""
        *losses, square = values.tolist()
        try:
            check_loss(self.names, losses)
            check_gradient(square, "" if math.isfinite(square) else where())
        except NonFiniteLoss as error:
            raise (self._explain(error) if self._explain else error) from None
        return losses[0], dict(zip(self.names, losses[1:]))


def read_all(figures):
    """The values of several iterations, after one wait for the device: a float64 array of each."""
    on_device = [f for f in figures if isinstance(f.vector, paddle.Tensor)]
    if len({tuple(f.vector.shape) for f in on_device}) == 1:
        stacked = paddle.stack([f.vector for f in on_device]).numpy()
        for one, values in zip(on_device, stacked):
            one.vector = values
    return [np.asarray(f.vector, np.float64) for f in figures]


class Journal:
    """The iterations that ran and were not read yet; hands them to the monitor when they are.

    Args:
        monitor (TrainMonitor): Gets each iteration's figures, in order.
        watch (Stopwatch): Of the run; waiting for the device counts as computing.
    """

    def __init__(self, monitor, watch):
        self._monitor = monitor
        self._watch = watch
        self._waiting = []

    def add(self, iteration, figures, rate, reader_seconds, step_seconds):
        """Takes an iteration; reads all that wait where a line is due.

        Args:
            iteration (int): Counted from 1.
            figures (Figures): Of it.
            rate, reader_seconds, step_seconds (float): As `TrainMonitor.record` takes them.

        Raises:
            NonFiniteLoss: See `read`.
        """
        self._waiting.append([iteration, figures, rate, reader_seconds, step_seconds])
        if self._monitor.tells(iteration):
            self.read()

    def read(self):
        """Reads what waits and tells the monitor.

        Raises:
            NonFiniteLoss: Of the first iteration whose loss or gradient is not finite. Iterations
                after it have moved the weights.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        late = isinstance(waiting[-1][1].vector, paddle.Tensor)
        values = read_all([figures for _, figures, *_ in waiting])
        if late:
            waiting[-1][-1] += self._watch.lap()
        for (iteration, figures, *rest), value in zip(waiting, values):
            try:
                loss, parts = figures.checked(value)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(
                    f"{error} This was read after iteration {waiting[-1][0]}: the weights have "
                    f"moved since iteration {iteration} and are not saved; --resume_model auto "
                    "goes on from the last checkpoint."
                ) from None
            self._monitor.record(iteration, loss, parts, *rest)

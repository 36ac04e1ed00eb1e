# SPDX-License-Identifier: Apache-2.0
"""Gradients of all processes added up, while the backward pass still runs where that pays.

Not `paddle.DataParallel` (paddle_quirks: unused_parameters), whose sums are wrong, or cost a read
from the device in each iteration; here the one read of `step` does.
"""

import collections
import contextlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import paddle
from paddle import Tensor

from paddleseg_deeplab.core.ranks import Exchange, Ranks

_BUCKET = 2**22  # elements of one all-reduce: 16 MiB of float32


class GradientSum:
    """Replaces gradients by their sums over the ranks.

    Gradients are joined into buckets, the last layers' first, since the backward pass makes those
    first. With `overlap` a bucket is sent as soon as all its gradients are there, and the device
    computes on meanwhile. Every rank sends every bucket, in the same order, zeros for gradients
    that it does not have.

    Args:
        ranks (Ranks): Who takes part; one alone changes nothing.
        parameters (Sequence[Tensor]): Those that are trained, the same on every rank.
        overlap (bool, optional): Send during the backward pass. Default: only where exchanges do
            not go through the host, whose processors the backward pass needs.
    """

    def __init__(
        self, ranks: Ranks, parameters: Sequence[Tensor], overlap: bool | None = None
    ) -> None:
        self._ranks = ranks
        self._parameters = list(parameters)
        self._overlap = not ranks.on_host if overlap is None else overlap
        self._buckets = _buckets(self._parameters)
        self._sent = 0  # of this iteration, as is the next
        self._waiting: list[int] = []
        # Sent and not taken over yet.
        self._flats: collections.deque[tuple[Tensor, Exchange | None]] = collections.deque()
        self._missing: dict[int, Tensor] = {}
        self._armed = False
        if ranks.size > 1 and self._overlap:
            for number, bucket in enumerate(self._buckets):
                for index in bucket:
                    # Called when the gradient is complete, also of a parameter used many times.
                    self._parameters[index]._register_backward_hook(partial(self._ready, number))

    def backward(self, loss: Tensor) -> None:
        """The iteration's last backward pass, after which gradients are sums over the ranks.

        Args:
            loss (Tensor): Of the last micro-batch; those before have left their gradients.
        """
        if self._ranks.size == 1:
            loss.backward()
            return
        self._sent, self._missing = 0, {}
        self._flats.clear()
        self._waiting = [len(bucket) for bucket in self._buckets]
        with self._during_backward():
            loss.backward()
        for bucket in self._buckets:
            if not self._flats:
                self._send()
            self._take_over(bucket, *self._flats.popleft())

    def present(self) -> list[bool]:
        """list[bool]: Which parameters have a gradient of this rank (or, alone, at all)."""
        return [i not in self._missing and p.grad is not None for i, p in self._all()]

    def complete(self, counts: Sequence[float] | np.ndarray) -> None:
        """Gives a gradient to the parameters that only other ranks had one of.

        A parameter that has none anywhere is left alone, so that no optimizer moves it.

        Args:
            counts (Sequence[float]): On how many ranks each parameter had a gradient.
        """
        for index, total in self._missing.items():
            if counts[index]:
                parameter = self._parameters[index]
                parameter.grad = total.astype(parameter.dtype)
        self._missing = {}

    def _all(self):
        return enumerate(self._parameters)

    @contextlib.contextmanager
    def _during_backward(self):
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _ready(self, number):
        """A gradient of a bucket is complete; sends what can be sent, in order."""
        if not self._armed:
            return
        self._waiting[number] -= 1
        while self._sent < len(self._buckets) and self._waiting[self._sent] <= 0:
            self._send()

    @paddle.no_grad()
    def _send(self):
        bucket = self._buckets[self._sent]
        # In float32 also where gradients are float16: a sum over many ranks could overflow.
        parts = []
        for parameter in (self._parameters[i] for i in bucket):
            grad = parameter.grad
            if grad is None:
                parts.append(paddle.zeros([_size(parameter)], "float32"))
            else:
                grad = grad.reshape([-1])
                parts.append(grad if grad.dtype == paddle.float32 else grad.astype("float32"))
        flat = paddle.concat(parts)
        self._sent += 1
        self._flats.append((flat, self._ranks.sum_in_place(flat, wait=not self._overlap)))

    @paddle.no_grad()
    def _take_over(self, bucket, flat, task):
        if task is not None:
            task.wait()  # the device's stream waits, not this program
        sizes = [_size(self._parameters[i]) for i in bucket]
        parts = paddle.split(flat, sizes) if len(sizes) > 1 else [flat]
        for index, part in zip(bucket, parts):
            parameter = self._parameters[index]
            part = part.reshape(parameter.shape)
            if parameter.grad is None:
                self._missing[index] = part
                continue
            if part.dtype != parameter.grad.dtype:
                part = part.astype(parameter.grad.dtype)
            # Not `parameter.grad = part`, which waits for the device.
            paddle.assign(part, output=parameter.grad)


def _size(parameter):
    return int(np.prod(parameter.shape))


def _buckets(parameters):
    """Indices of the parameters in groups of at most `_BUCKET` elements, the last first."""
    buckets, elements = [[]], 0
    for index in reversed(range(len(parameters))):
        size = _size(parameters[index])
        if buckets[-1] and elements + size > _BUCKET:
            buckets.append([])
            elements = 0
        buckets[-1].append(index)
        elements += size
    return buckets


def square_sum(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all values: finite where all of them are, and below 1e19.

    One pass over memory, and no wait for the device (ClipGradByGlobalNorm makes the same sums).

    Args:
        gradients (Sequence[Tensor]): At least one.

    Returns:
        Tensor: float32, a scalar.
    """
    squares = [paddle._C_ops.squared_l2_norm(g) for g in gradients]
    squares = [s if s.dtype == paddle.float32 else s.astype("float32") for s in squares]
    return paddle.add_n(squares).reshape([])

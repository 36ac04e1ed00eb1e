# SPDX-License-Identifier: Apache-2.0
"""train.py for `test_rank_faults.py`, with a network that fails on one rank at its third step."""

import os
import signal
import sys

import paddleseg_deeplab  # noqa: F401  (before Paddle)

# isort: split
import paddle
from rank_worker import SmallNet

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import train
from paddleseg_deeplab.core import ranks

RAN_OUT = (
    "\n\n--------------------------------------\nC++ Traceback (most recent call last):\n"
    "--------------------------------------\n0   paddle::memory::allocation\n\n"
    "----------------------\nError Message Summary:\n----------------------\n"
    "ResourceExhaustedError: \n\nOut of memory error on GPU 0. Cannot allocate 2.000000GB memory "
    "on GPU 0, 78.1GB memory has been allocated and available memory is only 1.000000GB.\n"
)


def _fail(kind):
    if kind == "memory":
        raise RuntimeError(RAN_OUT)
    if kind == "bug":
        raise KeyError("what the network forgot")
    if kind == "reader":  # one of this process's reading processes
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            os.kill(int(file.read().split()[0]), signal.SIGKILL)
        for _ in range(10**9):  # until Paddle notices
            pass
    os._exit(9)


class _Backward(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, kind):
        ctx.kind = kind
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        if ctx.kind == "nan":
            return grad * float("nan")
        _fail(ctx.kind)


@registry.MODELS.add_component
class FaultyNet(SmallNet):
    """Fails at its third training step.

    Args:
        where (str): "forward", "backward", "private" (backward, to a layer that the rank alone
            uses) or "update".
        kind (str): What happens there.
        rank (int): To which process.
    """

    def __init__(self, num_classes=3, data_format="NCHW", where="forward", kind="bug", rank=1):
        super().__init__(num_classes, data_format)
        self.where, self.kind, self.rank, self.steps = where, kind, rank, 0

    def forward(self, x):
        if self.training and paddle.is_grad_enabled():
            self.steps += 1
        outputs = super().forward(x)
        if self.steps != 3 or ranks.join().rank != self.rank or not self.training:
            return outputs
        if self.where == "update":
            paddle.optimizer.Momentum.step = lambda *_: _fail(self.kind)
            return outputs
        if self.where == "private":
            used = self.unused.weight[0, 0, 0, 0]
            return [outputs[0] + 0 * _Backward.apply(used, self.kind), *outputs[1:]]
        if self.where == "backward":
            return [_Backward.apply(outputs[0], self.kind), *outputs[1:]]
        _fail(self.kind)


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:]))

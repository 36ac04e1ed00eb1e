# SPDX-License-Identifier: Apache-2.0
"""train.py for `test_rank_faults.py`, with a network that fails on rank 1 at its third step."""

import os
import sys

import paddleseg_deeplab  # noqa: F401  (before Paddle)

# isort: split
import paddle
from rank_worker import SmallNet

from paddleseg_deeplab.cli import train
from paddleseg_deeplab.core import distributed
from paddleseg_deeplab.cvlibs import manager

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
    os._exit(9)


class _Backward(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, kind):
        ctx.kind = kind
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        _fail(ctx.kind)


@manager.MODELS.add_component
class FaultyNet(SmallNet):
    """Args: ``where``: "forward" or "backward"; ``kind``: what happens there."""

    def __init__(self, num_classes=3, data_format="NCHW", where="forward", kind="bug"):
        super().__init__(num_classes, data_format)
        self.where, self.kind, self.steps = where, kind, 0

    def forward(self, x):
        if self.training and paddle.is_grad_enabled():
            self.steps += 1
        outputs = super().forward(x)
        if self.steps == 3 and distributed.join().rank == 1:
            if self.where == "backward":
                return [_Backward.apply(outputs[0], self.kind), *outputs[1:]]
            _fail(self.kind)
        return outputs


if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:]))

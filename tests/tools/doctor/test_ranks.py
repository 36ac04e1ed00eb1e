# SPDX-License-Identifier: Apache-2.0
"""The checks of two processes, really started, on the CPU over gloo.

A CPU has no SyncBatchNorm. A double of Paddle's operator, with the formulas of the paper and sums
over the ranks, stands in for it, so that the class around it and the check are run whole.
"""

import pytest

from paddleseg_deeplab.tools.doctor import ranks

DOUBLE = """
import paddleseg_deeplab
import paddle
from paddle import nn
from paddleseg_deeplab.models.layers import norm

AXES = [0, 2, 3]


def over_ranks(*parts):
    joined = paddle.concat([p.reshape([-1]) for p in parts])
    if {synchronised}:
        paddle.distributed.all_reduce(joined)
    return joined.split([p.size for p in parts])


class Normalise(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, layer):
        count = paddle.full([1], float(x.size // x.shape[1]))
        total, squares, count = over_ranks(x.sum(AXES), x.square().sum(AXES), count)
        mean = total / count
        variance = squares / count - mean.square()
        for old, new in ((layer._mean, mean), (layer._variance, variance)):
            old.set_value(layer._momentum * old + (1 - layer._momentum) * new)
        scale = (variance + layer._epsilon).rsqrt().reshape([1, -1, 1, 1])
        normal = (x - mean.reshape([1, -1, 1, 1])) * scale
        ctx.save_for_backward(normal, weight, scale, count)
        return normal * weight.reshape([1, -1, 1, 1]) + bias.reshape([1, -1, 1, 1])

    @staticmethod
    def backward(ctx, g):
        normal, weight, scale, count = ctx.saved_tensor()
        of_bias, of_weight = g.sum(AXES), (g * normal).sum(AXES)
        first, second = (p.reshape([1, -1, 1, 1]) / count for p in over_ranks(of_bias, of_weight))
        gradient = weight.reshape([1, -1, 1, 1]) * scale * (g - first - normal * second)
        return gradient, of_weight, of_bias


nn.SyncBatchNorm.forward = lambda self, x: Normalise.apply(x, self.weight, self.bias, self)
from paddleseg_deeplab.tools.doctor import ranks as checks
checks.SyncBatchNorm = norm._SyncBatchNorm
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [ranks.frozen_batch_norm, ranks.two_against_one, ranks.out_of_memory]
)
def test_two_processes(row):
    found = row("cpu")
    assert found.status == "PASS", found.detail


@pytest.mark.slow
@pytest.mark.parametrize(("synchronised", "status"), [(True, "PASS"), (False, "FAIL")])
def test_batch_norm_over_two_ranks(synchronised, status, monkeypatch):
    """In training each rank has its part of what one process has that sees both batches."""
    script = DOUBLE.replace("{synchronised}", str(synchronised)) + ranks.SCRIPT
    monkeypatch.setattr(ranks, "SCRIPT", script)
    found = ranks._sync_batch_norm("batch norm", "cpu")
    assert found.status == status, found.detail

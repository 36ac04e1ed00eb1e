# SPDX-License-Identifier: Apache-2.0
"""What `test_gradients.py` runs on each of two ranks; results go to ``<out>/<rank>.json``."""

import json
import sys
from pathlib import Path

import numpy as np

import paddleseg_deeplab  # noqa: F401  (before Paddle)

# isort: split
import paddle
from paddle import nn

from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.training import gradients
from paddleseg_deeplab.core.training.gradients import GradientSum

MICRO_BATCHES = 2
# Whether the layer `sometimes` takes part, by rank and micro-batch.
CASES = {
    "always": lambda rank, i: True,
    "never": lambda rank, i: False,
    "on one rank": lambda rank, i: rank == 0,
    "in the first micro-batch": lambda rank, i: i == 0,
    "on one rank in the first micro-batch": lambda rank, i: rank == 1 and i == 0,
    "on one rank in the last micro-batch": lambda rank, i: rank == 1 and i == 1,
}


class Net(nn.Layer):
    """With a frozen layer, one that no output depends on, and one that is used now and then."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2D(8, use_global_stats=True)
        self.fixed = nn.Conv2D(8, 8, 1)
        for parameter in self.fixed.parameters():
            parameter.stop_gradient = True
        self.unused = nn.Conv2D(8, 8, 1)
        self.sometimes = nn.Conv2D(8, 8, 1)
        self.last = nn.Conv2D(8, 3, 1)

    def forward(self, x, with_sometimes=True):
        y = self.fixed(nn.functional.relu(self.norm(self.first(x))))
        y = y + self.sometimes(y) if with_sometimes else y
        return self.last(self.fixed(self.last.weight[0, 0, 0, 0] * y))  # a parameter used twice


def images(rank, i):
    rng = np.random.default_rng([rank, i])
    return paddle.to_tensor(rng.standard_normal((1, 3, 8, 8)).astype("float32"))


def build():
    paddle.seed(3)
    return Net()


def loss_of(net, rank, i, uses):
    return (net(images(rank, i), uses(rank, i)) ** 2).sum()


def found(net):
    """Gradients by name as lists, None where there is none; they are cleared."""
    out = {}
    for name, p in net.named_parameters():
        out[name] = None if p.grad is None else p.grad.numpy().astype("float64").tolist()
    for p in net.parameters():
        p.clear_gradient(set_to_zero=False)
    return out


def own(ranks, overlap, bucket):
    """Each case's gradients by `GradientSum`, and how many buckets left before the end."""
    gradients._BUCKET = bucket
    net, out = build(), {}
    trained = [p for p in net.parameters() if not p.stop_gradient]
    sums = GradientSum(ranks, trained, overlap)
    early = []

    class Watched:
        def __init__(self, loss):
            self.loss = loss

        def backward(self):
            self.loss.backward()
            early.append(sums._sent)

    for name, uses in CASES.items():
        for i in range(MICRO_BATCHES):
            loss = loss_of(net, ranks.rank, i, uses)
            sums.backward(Watched(loss)) if i == MICRO_BATCHES - 1 else loss.backward()
        sums.complete(ranks.sum(sums.present()))
        out[name] = found(net)
    return {"gradients": out, "early": early, "buckets": len(sums._buckets)}


def parallel(ranks, find_unused):
    """Each case's gradients by paddle.DataParallel, which divides by the number of ranks."""
    net, out = build(), {}
    wrapped = paddle.DataParallel(net, find_unused_parameters=find_unused)
    for name, uses in CASES.items():
        try:
            with wrapped.no_sync():
                y = wrapped(images(ranks.rank, 0), uses(ranks.rank, 0))
                ((y**2).sum() * ranks.size).backward()
            y = wrapped(images(ranks.rank, 1), uses(ranks.rank, 1))
            ((y**2).sum() * ranks.size).backward()
        except RuntimeError as error:
            out[name] = str(error).strip().splitlines()[-1]
            break
        out[name] = found(net)
    return {"gradients": out}


def main(out):
    paddle.set_device("cpu")
    ranks = join()
    report = {
        "in turn": own(ranks, False, 2**22),
        "in turn, small": own(ranks, False, 100),
        "overlapped": own(ranks, True, 2**22),
        "overlapped, small": own(ranks, True, 100),
        "parallel, finding": parallel(ranks, True),
        "parallel": parallel(ranks, False),
    }
    (Path(out) / f"{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])

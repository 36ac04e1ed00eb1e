# SPDX-License-Identifier: Apache-2.0
"""Losses of several batches as one batch's, and what a rank that cannot go on still owes."""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.core.ranks import Ranks
from paddleseg_deeplab.core.training.loss_sum import LossSum
from paddleseg_deeplab.models import CrossEntropyLoss

LOSSES = {"types": [CrossEntropyLoss()], "coef": [0.5]}


class Watched(Ranks):
    """Two ranks, of which the other counts as much as told; keeps what is exchanged."""

    def __init__(self, size=2, others=0.0):
        super().__init__(0, size)
        self.others = others
        self.sent = []

    def sum_in_place(self, tensor, wait=True):
        if self.size > 1:
            self.sent.append(tensor.numpy().tolist())
            paddle.assign(tensor + self.others, output=tensor)


def batches(*voids):
    """Logits and batches of two images whose first rows are void."""
    rng = np.random.default_rng(0)
    logits, out = [], []
    for rows in voids:
        label = rng.integers(0, 3, (2, 6, 4))
        label[:, :rows] = 255
        logits.append([paddle.to_tensor(rng.standard_normal((2, 3, 6, 4)).astype("float32"))])
        out.append((paddle.zeros([2, 3, 6, 4]), paddle.to_tensor(label)))
    return logits, out


def summed(ranks, *voids):
    logits, given = batches(*voids)
    total = LossSum(given, LOSSES, ranks, "NCHW", {})
    parts = [total.add(one, labels) for one, (_, labels) in zip(logits, given)]
    return total, [float(part) for part in parts]


def test_two_batches_weigh_as_their_pixels():
    total, parts = summed(Ranks(), 0, 3)
    logits, given = batches(0, 3)
    joined = paddle.concat([one[0] for one in logits])
    expected = 0.5 * CrossEntropyLoss()(joined, paddle.concat([labels for _, labels in given]))
    assert sum(parts) == pytest.approx(float(expected), rel=1e-6)  # float32 sums in another order
    assert total.names == ["CrossEntropyLoss"]
    np.testing.assert_allclose(total.vector.numpy(), [sum(parts)] * 2, rtol=1e-6)


def test_other_ranks_pixels_count():
    alone = summed(Ranks(), 0, 3)[1]
    ranks = Watched(others=72.0)  # as many as these batches have: 48 and 24
    shared = summed(ranks, 0, 3)[1]
    assert ranks.sent == [[72.0]]  # once an iteration, at the first batch
    assert shared == pytest.approx([part / 2 for part in alone], rel=1e-6)


def test_one_batch_of_one_rank_exchanges_nothing():
    ranks = Watched(size=1)
    total, [part] = summed(ranks, 1)
    logits, given = batches(1)
    assert part == float(0.5 * CrossEntropyLoss()(logits[0][0], given[0][1]))  # bit for bit
    total.give_up()
    assert ranks.sent == []


def test_who_gives_up_counts_nothing_and_says_so_once():
    ranks = Watched()
    total = LossSum([], LOSSES, ranks, "NCHW", {})
    total.give_up()
    total.give_up()
    assert ranks.sent == [[0.0]]
    # After the first batch the others have what they wait for.
    ranks = Watched()
    summed(ranks, 0)[0].give_up()
    assert ranks.sent == [[48.0]]

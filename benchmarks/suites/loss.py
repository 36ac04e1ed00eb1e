# SPDX-License-Identifier: Apache-2.0
"""MixedLoss (cross-entropy and Lovasz-Softmax), forward and backward, beside plain Paddle.

The peer is Paddle's cross-entropy plus the loop of Berman, Rannen Triki and Blaschko 2018: for
each class that occurs, sort the errors of all pixels and weigh them with Algorithm 1's steps.
"""

from dataclasses import replace

import numpy as np
import paddle
import paddle.nn.functional as F
from children import memory_of
from harness import Unequal, assert_close, compare
from works.loss import VOID, WEIGHTS, make_inputs, our_loss, runner

PEER = "plain loop"
SHAPES = ((2, 19, 512, 512), (2, 150, 512, 512))
SMALL = ((2, 5, 32, 32),)
STAGES = ("start", "mid")
_MANY_CLASSES = 50  # above, one stage and one turn
# Set beforehand: the loss and each number of the gradient to 1e-5. The gradient's numbers are
# themselves of that order, so its root mean square must agree too: to 1 %, because the plain loop's
# steps are float32 differences of near-equal numbers (6e-8 off, where a step is about 2e-6).
TOLERANCE = 1e-5
GRADIENT_SHARE = 1e-2


def plain_lovasz(logits, label):
    """Lovasz-Softmax of the classes that occur, from the paper's formulas, in Paddle.

    Args:
        logits (Tensor): float32 [N, C, H, W].
        label (Tensor): int64 [N, H, W].

    Returns:
        Tensor: float32 scalar.
    """
    classes = logits.shape[1]
    probabilities = F.softmax(logits, axis=1).transpose([0, 2, 3, 1]).reshape([-1, classes])
    label = label.reshape([-1])
    valid = paddle.nonzero(label != VOID).reshape([-1])
    probabilities, label = paddle.gather(probabilities, valid), paddle.gather(label, valid)
    losses = []
    for k in range(classes):
        truth = (label == k).astype("float32")
        if float(truth.sum()) == 0:
            continue
        errors = (truth - probabilities[:, k]).abs()  # eq. 8
        order = paddle.argsort(errors.detach(), descending=True)
        truth = paddle.gather(truth, order)
        union = truth.sum() + (1.0 - truth).cumsum()  # Algorithm 1
        jaccard = 1.0 - (truth.sum() - truth.cumsum()) / union
        steps = paddle.concat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append((paddle.gather(errors, order) * steps).sum())
    return sum(losses) / len(losses)


def plain_loss(logits, label):
    entropy = F.cross_entropy(logits, label.unsqueeze(1), ignore_index=VOID, axis=1)
    return WEIGHTS[0] * entropy + WEIGHTS[1] * plain_lovasz(logits, label)


def loss_of(name):
    return our_loss() if name is None else plain_loss


def check(ours, theirs, name):
    """Raises `Unequal` unless losses and gradients agree."""
    assert_close(f"loss, {name}", ours[0], theirs[0], TOLERANCE)
    mine, other = ours[1].numpy(), theirs[1].numpy()
    assert_close(f"gradient, {name}", mine, other, TOLERANCE)
    share = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
    if not share <= GRADIENT_SHARE:
        raise Unequal(
            f"gradient, {name}: differs by {share:.3g} of its size, {GRADIENT_SHARE:g} is allowed."
        )


def memory_work(name, shape, stage):
    """For `children.peak_memory`: the pass of ours (name None) or the peer's."""
    paddle.set_device("cpu")
    runner(loss_of(name), *make_inputs(SMALL[0], stage))()
    return runner(loss_of(name), *make_inputs(shape, stage))


def rows(options):
    for shape in SMALL if options.small else SHAPES:
        n, c, h, w = shape
        stages, turns = STAGES[-1:] if options.small else STAGES, options
        if c > _MANY_CLASSES:  # the plain loop takes most of a minute there
            stages, turns = STAGES[:1], replace(options, runs=1)
        for stage in stages:
            inputs = make_inputs(shape, stage)
            yield from compare(
                f"forward + backward, {n}x{c}x{h}x{w}, {stage} of training",
                runner(our_loss(), *inputs),
                {PEER: runner(plain_loss, *inputs)},
                check,
                turns,
                goals={PEER: "4, half the memory"},
                # Logits and labels read once, the gradient written once.
                floor=options.rates.floor(moved=n * h * w * (8 * c + 8)),
                memory=lambda name, shape=shape, stage=stage: memory_of(
                    options, "suites.loss", "memory_work", name, shape, stage
                ),
            )

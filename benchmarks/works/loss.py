# SPDX-License-Identifier: Apache-2.0
"""MixedLoss (cross-entropy and Lovasz-Softmax), forward and backward."""

from functools import partial

import numpy as np
import paddle

from paddleseg_deeplab.models.losses import CrossEntropyLoss, LovaszSoftmaxLoss, MixedLoss

WEIGHTS = (0.8, 0.2)
VOID = 255


def make_inputs(shape, stage):
    """Logits float32 [N, C, H, W] and labels int64 [N, H, W] in areas, 1/16 of them void.

    Args:
        stage (str): "start": noise, as an untrained network's; "mid": most areas right.
    """
    n, c, h, w = shape
    rng = np.random.default_rng(0)
    areas = rng.integers(0, c, (n, 16, 16))
    thought = np.where(rng.random(areas.shape) < 0.85, areas, rng.integers(0, c, areas.shape))
    areas[rng.random(areas.shape) < 1 / 16] = VOID
    rows, columns = np.arange(h) * 16 // h, np.arange(w) * 16 // w
    label = areas[:, rows][:, :, columns]
    logits = rng.standard_normal(shape, dtype=np.float32)
    if stage == "mid":
        for k in range(c):
            logits[:, k] += 6.0 * (thought == k)[:, rows][:, :, columns]
    else:
        logits *= 0.1
    return logits, label.astype(np.int64)


def our_loss():
    mixed = MixedLoss([CrossEntropyLoss(), LovaszSoftmaxLoss()], list(WEIGHTS))
    return lambda logits, label: sum(mixed(logits, label))


def runner(loss, logits, label):
    """A function that returns (loss, gradient Tensor) of a forward and a backward pass."""
    logits, label = paddle.to_tensor(logits), paddle.to_tensor(label)

    def run():
        leaf = logits.detach()  # shares the numbers
        leaf.stop_gradient = False
        value = loss(leaf, label)
        value.backward()
        return float(value), leaf.grad

    return run


def work(stage, lap, folder, small):
    run = runner(our_loss(), *make_inputs((2, 5, 32, 32) if small else (2, 19, 512, 512), stage))
    while True:
        value, gradient = run()
        lap(lambda value=value, g=gradient: {"loss": value, "gradient": np.linalg.norm(g.numpy())})
        del gradient


ROWS = {
    "forward + backward, 2x19x512x512, start of training": partial(work, "start"),
    "forward + backward, 2x19x512x512, middle of training": partial(work, "mid"),
}

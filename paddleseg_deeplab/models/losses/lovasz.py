# SPDX-License-Identifier: Apache-2.0
"""Lovasz-Softmax (Berman, Rannen Triki, Blaschko 2018), a convex surrogate of 1 - mean IoU.

For class c with errors e = |truth - p_c|, the loss is sum(e * g), where g, the discrete derivative
of the Jaccard loss along the errors in falling order (Algorithm 1), depends on the order alone.
So the gradient is known once the order is: the loss and its gradient by the logits are computed
together in the forward pass, and the backward pass only scales. On the CPU this runs in NumPy,
whose sort is many times faster than Paddle's, and sorts no pixel whose g must be 0; elsewhere in
Paddle operators. docs/performance.md has the times.
"""

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from paddleseg_deeplab import kernels, registry
from paddleseg_deeplab.models.losses.base import (
    SegmentationLoss,
    apply_once,
    as_numpy,
    in_numpy,
    is_integer,
    writable,
    written,
)

# Classes that the Paddle form sorts at once: 2 to 4 rows are what Paddle's sort does fastest and
# without waiting, and their temporaries are all that it needs besides the gradient.
_GROUP = 4


class _LovaszSoftmax(PyLayer):
    """Loss of float32 logits [N, C, H, W]; the gradient is made with it and kept."""

    @staticmethod
    def forward(ctx, logits, label, valid, classes, per_image, seen):
        seen(ctx)
        n, c, h, w = logits.shape
        logits = logits.detach().reshape([n, c, h * w])
        label, valid = label.reshape([n, h * w]), valid.reshape([n, h * w])
        if per_image:
            loss, grad = _mean_of_images(logits, label, valid, classes)
        else:
            loss, grad = _value_and_grad(logits, label, valid, classes)
        ctx.save_for_backward(grad.reshape([n, c, h, w]))
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensor()
        return grad * upstream


def _mean_of_images(logits, label, valid, classes):
    """Mean of each image's loss over the images that have a valid pixel."""
    counts = valid.any(axis=1).astype("float32")
    share = counts / paddle.clip(counts.sum(), min=1.0)
    pairs = [
        _value_and_grad(logits[i : i + 1], label[i : i + 1], valid[i : i + 1], classes)
        for i in range(logits.shape[0])
    ]
    loss = sum(value * share[i] for i, (value, _) in enumerate(pairs))
    return loss, paddle.concat([grad.multiply_(share[i]) for i, (_, grad) in enumerate(pairs)])


def _value_and_grad(logits, label, valid, classes):
    """What `value_and_grad_paddle` returns, in NumPy where the tensors lie in a CPU's memory."""
    if in_numpy(logits):
        tensor, grad = writable(logits.shape)
        arrays = as_numpy(logits), as_numpy(label), as_numpy(valid)
        loss = kernels.lovasz_softmax(*arrays, classes, grad)
        if loss is not None:
            return paddle.to_tensor(loss, dtype="float32"), written(tensor, grad)
    return value_and_grad_paddle(logits, label, valid, classes)


def value_and_grad_paddle(
    logits: Tensor, label: Tensor, valid: Tensor, classes: str | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Loss and gradient in Paddle operators, without a stop of the device, a few classes at a time.

    Which classes are present is known on the device alone, so all of them are computed and the
    absent ones count 0.

    Args:
        logits (Tensor): float32 [N, C, P].
        label (Tensor): int64 [N, P]; valid (Tensor): bool [N, P].
        classes: as in :class:`LovaszSoftmaxLoss`.

    Returns:
        tuple[Tensor, Tensor]: the loss, float32 scalar, and its gradient [N, C, P].
    """
    n, c, p = logits.shape
    wanted = list(range(c)) if isinstance(classes, str) else list(classes)
    if len(wanted) == 1:
        wanted *= 2  # the mean stays; Paddle's sort and cumsum of a single row wait for the device
    top = logits.max(axis=1, keepdim=True)
    parts = [slice(k, k + _GROUP) for k in range(0, c, _GROUP)]
    total = sum((logits[:, part] - top).exp_().sum(axis=1, keepdim=True) for part in parts)
    label, valid = label.reshape([1, n * p]), valid.reshape([1, n * p])
    slope = paddle.zeros_like(logits)  # d loss / d probability, before the division by `count`
    loss, count, mean = paddle.zeros([]), paddle.zeros([]), paddle.zeros([n, p])
    for group in np.array_split(wanted, -(-len(wanted) // _GROUP)):
        group = group.tolist()
        rows = [((logits[:, k] - top[:, 0]).exp_() / total[:, 0]).flatten() for k in group]
        probs = paddle.stack(rows)
        truth = paddle.concat([label == k for k in group]).logical_and(valid).astype("float32")
        value, steps, chosen = _of_classes(probs, truth, valid, classes == "present")
        loss, count = loss + value, count + chosen
        mean += (probs * steps).sum(axis=0).reshape([n, p])
        for k, step in zip(group, steps):  # one row a class
            slope[:, k] += step.reshape([n, p])
    scale = 1.0 / paddle.clip(count, min=1.0)
    for part in parts:
        factor = (logits[:, part] - top).exp_().multiply_(scale / total)
        slope[:, part] = factor.multiply_(slope[:, part] - mean.unsqueeze(1))
    return loss * scale, slope


def _of_classes(probs, truth, valid, present):
    """Summed loss, its slope [K, M] and the number of classes that count, of float32 probabilities
    and truth [K, M] and bool valid [1, M]; `present`: only classes with truth count."""
    # Error -1 puts void pixels after all others, where g is 0.
    errors = paddle.where(valid, (truth - probs).abs_(), paddle.full([], -1.0))
    order = paddle.argsort(errors, axis=1, descending=True)
    hit = paddle.take_along_axis(truth, order, axis=1)
    hits = paddle.cumsum(hit, axis=1)
    total = hits[:, -1:]
    rank = paddle.arange(1, errors.shape[1] + 1).astype("float32")
    union = total + rank - hits
    # The steps of 1 - (total - hits) / union, without a difference of near-equal numbers.
    miss = (total - hits).divide_(paddle.clip(union - 1.0, min=1.0))
    del hits
    # A class without truth: the first step is 1, the others 0.
    miss = paddle.where((total == 0) & (rank == 1), paddle.ones_like(miss), miss)
    g = miss.multiply_(1.0 - hit).add_(hit).divide_(union)
    del miss, union, hit
    # Void pixels come first only where there is nothing else.
    g.multiply_((paddle.take_along_axis(errors, order, axis=1) >= 0).astype("float32"))
    g = paddle.put_along_axis(paddle.zeros_like(g), order, g, axis=1)
    del order
    chosen = (total > 0).astype("float32") if present else paddle.ones_like(total)
    g.multiply_(chosen)
    loss = (g * errors).sum()
    # d error / d probability: -1 on the class, 1 elsewhere.
    return loss, g.multiply_(1.0 - 2.0 * truth), chosen.sum()


@registry.LOSSES.add_component
class LovaszSoftmaxLoss(SegmentationLoss):
    """Lovasz-Softmax loss: the mean of its classes' losses, in [0, 1].

    Exact (no sampling or binning): equal to PaddleSeg's values up to rounding.

    Args:
        ignore_index (int): Label of the pixels that do not count.
        classes (str or sequence of int): "present": the classes that occur in the labels; "all":
            all of them, an absent one costs its largest probability; or a list of classes.
        per_image (bool): Take each image by itself and average, instead of the batch as one.
        data_format (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        ignore_index: int = 255,
        classes: str | Sequence[int] = "present",
        *,
        per_image: bool = False,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__(ignore_index, None, data_format)
        if isinstance(classes, str):
            if classes not in ("present", "all"):
                raise ValueError(
                    f"classes must be 'present', 'all' or a list of classes, not {classes!r}."
                )
        else:
            classes = list(classes)
            if not classes or not all(is_integer(c) for c in classes):
                raise ValueError(f"classes must hold at least one class number, not {classes!r}.")
            classes = sorted({int(c) for c in classes})
        self.classes = classes
        self.per_image = bool(per_image)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        if not isinstance(self.classes, str) and not (
            self.classes[0] >= 0 and self.classes[-1] < logits.shape[1]
        ):
            raise ValueError(
                f"LovaszSoftmaxLoss: classes {self.classes} must lie in 0 to {logits.shape[1] - 1}."
            )
        return apply_once(_LovaszSoftmax, logits, label, valid, self.classes, self.per_image)

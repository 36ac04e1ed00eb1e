# SPDX-License-Identifier: Apache-2.0
"""Region mutual information loss (Zhao et al. 2019, arXiv 1910.12037), without cross-entropy.

Each pixel of the pooled maps stands with its neighbours as a vector of d = radius^2 numbers, in
the truth (L) and in the prediction (P), both centred. The loss is half the log-determinant of what
of L no ridge regression on P explains:

    A = L L' - L P' (P P' + a I)^-1 P L' + a I,    loss = log det A / (2 d), summed over classes.

PaddleSeg evaluates this formula in float64, since its difference of near-equal matrices loses
float32's digits. Here the same value is computed in float32 with an identity that holds for the
optimal W = L P' (P P' + a I)^-1:

    A = R R' + a (W W' + I),    R = L - W P,

a sum of positive terms. W minimises it, so A does not change with W to first order: W is a
constant for the gradient. Before the last product R is multiplied by a constant T with T A T' near
I, which keeps the digits of A's small directions; log det A = log det(T A T') - 2 log |det T|.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.losses.base import SegmentationLoss, apply_once, mean_over, one_hot

_FLOOR = 1e-6  # added to the probabilities, as in PaddleSeg
_ALPHA = 5e-4  # the ridge a
_SHIFT = 1e-6  # of the mean variance: above float32's rounding of a sum of squares


def _gram(x, y=None):
    """x y' for [B, d, M], returned in float64 [B, d, d]."""
    return paddle.matmul(x, x if y is None else y, transpose_y=True).astype("float64")


def _inverse_factor(matrix):
    """Lower triangular T with T matrix T' = I, float64 [B, d, d]; block by block.

    Paddle's `cholesky` and `solve` read on the host whether they succeeded, which stops a GPU. A
    matrix that is not positive definite gives NaN here.
    """
    d = matrix.shape[-1]
    if d == 1:
        return paddle.rsqrt(matrix)
    half = d // 2
    first = _inverse_factor(matrix[:, :half, :half])
    below = paddle.matmul(matrix[:, half:, :half], first, transpose_y=True)
    second = _inverse_factor(matrix[:, half:, half:] - _gram(below))
    corner = -paddle.matmul(second, paddle.matmul(below, first))
    above = paddle.zeros([len(matrix), half, d - half], dtype=matrix.dtype)
    rows = paddle.concat([first, above], axis=2), paddle.concat([corner, second], axis=2)
    return paddle.concat(rows, axis=1)


def _whitener(matrix):
    """T with T matrix T' near I: the inverse Cholesky factor of the slightly shifted matrix."""
    eye = paddle.eye(matrix.shape[-1], dtype="float64")
    shift = _SHIFT * paddle.diagonal(matrix, axis1=-2, axis2=-1).mean(axis=-1)
    return _inverse_factor(matrix + shift.reshape([-1, 1, 1]) * eye)


def _constants(truth, pred):
    """W and T of the module's text, float64 [B, d, d], for centred float32 [B, d, M]."""
    eye = paddle.eye(truth.shape[1], dtype="float64")
    # The regression too is solved in whitened coordinates, for the same reason.
    first = _whitener(_gram(pred) + _ALPHA * eye)
    white = paddle.matmul(first.astype("float32"), pred)
    inverse = _inverse_factor(_gram(white) + _ALPHA * _gram(first))
    w_white = paddle.matmul(inverse, _gram(white, truth))
    w_white = paddle.matmul(w_white, inverse, transpose_x=True)
    w = paddle.matmul(w_white, first)
    rest = truth - paddle.matmul(w_white.astype("float32"), white)
    return w, _whitener(_gram(rest) + _ALPHA * (_gram(w) + eye))


def value_and_grad(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """log det A / 2, float32 [B], and its gradient by pred, for centred float32 [B, d, M]."""
    w, t = _constants(truth, pred)
    rest = truth - paddle.matmul(w.astype("float32"), pred)
    rest = paddle.matmul(t.astype("float32"), rest)
    tw = paddle.matmul(t, w)
    inverse = _inverse_factor(_gram(rest) + _ALPHA * (_gram(tw) + _gram(t)))
    diagonals = paddle.diagonal(inverse, axis1=-2, axis2=-1), paddle.diagonal(t, axis1=-2, axis2=-1)
    value = -sum(paddle.log(diagonal).sum(axis=-1) for diagonal in diagonals)
    # d log det M / 2 = <M^-1 R, dR> with M = R R' + constants, R = T (L - W P).
    factor = paddle.matmul(paddle.matmul(inverse, tw), inverse, transpose_x=True)
    return value.astype("float32"), paddle.matmul(-factor.astype("float32"), rest)


class _HalfLogDet(PyLayer):
    """`value_and_grad` as an operator; the gradient is made with the value and kept, so that all
    products are made where the loss watches over their digits."""

    @staticmethod
    def forward(ctx, pred, truth, seen):
        seen(ctx)
        value, grad = value_and_grad(pred, truth)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensor()
        return grad * upstream.reshape([-1, 1, 1])


@registry.LOSSES.add_component
class RMILoss(SegmentationLoss):
    """Region mutual information loss on sigmoid probabilities; it may be negative.

    Void pixels are 0 in truth and prediction. The sum runs over classes and the mean over images.
    Differences from PaddleSeg: float32 (see above); images without a valid pixel are left out of
    the mean instead of adding a constant; the settings are checked with messages.

    Args:
        num_classes (int): Channels of the logits.
        rmi_radius (int): Side of the neighbourhood, 1 to 10.
        rmi_pool_way (int): How the maps shrink first: 0 max pool, 1 average pool, 2 interpolation
            (nearest for the truth, bilinear for the prediction).
        rmi_pool_size (int): Pool window, at least 1.
        rmi_pool_stride (int): The same number; 1 leaves the maps as they are.
        loss_weight_lambda (float): Accepted for PaddleSeg's sake; without the cross-entropy part
            it has no effect there or here (MixedLoss sets the balance).
        ignore_index (int): Label of the pixels that do not count.
        data_format (str): "NCHW" or "NHWC".
    """

    def __init__(
        self,
        num_classes: int = 19,
        rmi_radius: int = 3,
        rmi_pool_way: int = 0,
        rmi_pool_size: int = 3,
        rmi_pool_stride: int = 3,
        loss_weight_lambda: float = 0.5,
        ignore_index: int = 255,
        *,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__(ignore_index, None, data_format)
        if rmi_radius not in range(1, 11):
            raise ValueError(f"rmi_radius must be an integer from 1 to 10, not {rmi_radius!r}.")
        if rmi_pool_way not in (0, 1, 2):
            raise ValueError(f"rmi_pool_way must be 0, 1 or 2, not {rmi_pool_way!r}.")
        if rmi_pool_size != rmi_pool_stride or rmi_pool_size < 1:
            raise ValueError(
                "rmi_pool_size and rmi_pool_stride must be the same number, at least 1, not "
                f"{rmi_pool_size!r} and {rmi_pool_stride!r}."
            )
        self.num_classes = num_classes
        self.rmi_radius = rmi_radius
        self.rmi_pool_way = rmi_pool_way
        self.rmi_pool_size = rmi_pool_size

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        n, c = logits.shape[:2]
        if c != self.num_classes:
            raise ValueError(f"RMILoss: num_classes is {self.num_classes}, the logits have {c}.")
        truth = one_hot(label, valid, c).transpose([0, 3, 1, 2])
        pred = F.sigmoid(logits) * valid.unsqueeze(1).astype("float32") + _FLOOR
        truth, pred = self._shrink(truth, pred)
        smallest = min(truth.shape[2:])
        if smallest < self.rmi_radius:
            raise ValueError(
                f"RMILoss: a map of {truth.shape[2]}x{truth.shape[3]} after pooling is smaller "
                f"than rmi_radius {self.rmi_radius}; use larger images or less pooling."
            )
        loss = apply_once(_HalfLogDet, self._vectors(pred), self._vectors(truth))
        loss = loss / self.rmi_radius**2
        labelled = valid.any(axis=[1, 2]).astype("float32")
        return mean_over(loss.reshape([n, c]) * labelled.unsqueeze(1), labelled.sum())

    def _shrink(self, truth, pred):
        k = self.rmi_pool_size
        if k == 1:
            return truth, pred
        if self.rmi_pool_way == 2:
            size = [truth.shape[2] // k, truth.shape[3] // k]
            return (
                F.interpolate(truth, size=size, mode="nearest"),
                F.interpolate(pred, size=size, mode="bilinear", align_corners=True),
            )
        pool = F.max_pool2d if self.rmi_pool_way == 0 else F.avg_pool2d
        return tuple(pool(x, kernel_size=k, stride=k, padding=k // 2) for x in (truth, pred))

    def _vectors(self, x):
        """Centred neighbourhood vectors [N * C, radius^2, positions] of a map [N, C, H, W]."""
        n, c, h, w = x.shape
        r = self.rmi_radius
        h, w = h - r + 1, w - r + 1
        shifted = [x[:, :, i : i + h, j : j + w] for i, j in np.ndindex(r, r)]
        vectors = paddle.stack(shifted, axis=2).reshape([n * c, r * r, h * w])
        return vectors - vectors.mean(axis=2, keepdim=True)

# SPDX-License-Identifier: Apache-2.0
"""Batch norm: which kind, its numbers, and how it is frozen."""

from collections.abc import Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

_KINDS = (nn.BatchNorm2D, nn.SyncBatchNorm)


def SyncBatchNorm(*args: Any, **kwargs: Any) -> nn.Layer:
    """Batch norm over all ranks where that is possible and needed, else over this rank's images.

    Takes the arguments of ``nn.BatchNorm2D``. Momentum is Paddle's, the share of the old value
    that is kept; its defaults, 0.9 and epsilon 1e-5, are PaddleSeg's.

    Returns:
        nn.Layer: ``nn.SyncBatchNorm`` on a GPU when several ranks train; otherwise
            ``nn.BatchNorm2D`` (Paddle has no CPU kernel for the other), with channels last
            `BatchNorm2D`. The state_dict is the same.
    """
    if paddle.get_device().startswith("gpu") and paddle.distributed.get_world_size() > 1:
        return _SyncBatchNorm(*args, **kwargs)
    norm = nn.BatchNorm2D(*args, **kwargs)
    if norm._data_format == "NHWC":
        norm.__class__ = BatchNorm2D
    return norm


class BatchNorm2D(nn.BatchNorm2D):
    """``nn.BatchNorm2D`` that keeps float32's digits with channels last on a CPU, too."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[N, H, W, C] to the same."""
        if not _loses_digits(self):
            return nn.BatchNorm2D.forward(self, x)
        self._check_input_dim(x)
        return batch_norm(self, x)


def _loses_digits(norm):
    """Whether Paddle would add up a map with channels last on a CPU, for the statistics or for a
    gradient (paddle_quirks: nhwc_batch_norm)."""
    if norm._data_format != "NHWC" or paddle.get_device() != "cpu":
        return False
    return norm.training or (paddle.in_dynamic_mode() and paddle.is_grad_enabled())


def batch_norm(
    norm: nn.Layer,
    x: paddle.Tensor,
    mean: paddle.Tensor | None = None,
    bias: paddle.Tensor | None = None,
    use_global_stats: bool | None = None,
) -> paddle.Tensor:
    """``F.batch_norm`` of x by a layer's numbers, its sums taken with channels first where they
    would lose digits.

    Args:
        norm: A batch norm; it is not called.
        x: Its input.
        mean: In place of the layer's running mean; in training it is updated where it lies.
        bias: In place of the layer's bias.
        use_global_stats: In place of the layer's own.
    """
    turned = _loses_digits(norm)
    y = F.batch_norm(
        x.transpose([0, 3, 1, 2]) if turned else x,
        norm._mean if mean is None else mean,
        norm._variance,
        norm.weight,
        norm.bias if bias is None else bias,
        training=norm.training,
        momentum=norm._momentum,
        epsilon=norm._epsilon,
        data_format="NCHW" if turned else norm._data_format,
        use_global_stats=norm._use_global_stats if use_global_stats is None else use_global_stats,
    )
    if not turned:
        return y
    y = y.transpose([0, 2, 3, 1])  # in dygraph a view, which each reader would copy
    return y.contiguous() if paddle.in_dynamic_mode() else y


class _SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` that has a gradient where it is frozen, too.

    With running statistics there is nothing to synchronise (paddle_quirks: frozen_sync_batch_norm).
    """

    def forward(self, x):
        if self.training:
            return nn.SyncBatchNorm.forward(self, x)
        self._check_data_format()
        return running_batch_norm(self, x)


# The classes that do what a batch norm does; one that is derived from them may do something else.
BATCH_NORMS = (*_KINDS, BatchNorm2D, _SyncBatchNorm)


def running_batch_norm(norm: nn.BatchNorm2D | nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """A batch norm of x with its running statistics, in training, too; they stay as they are.

    Args:
        norm (nn.BatchNorm2D | nn.SyncBatchNorm): The layer; it is not called.
        x (Tensor): Its input.
    """
    return batch_norm(norm, x, use_global_stats=True)


def batch_norms(layer: nn.Layer) -> Iterator[nn.BatchNorm2D | nn.SyncBatchNorm]:
    """Iterates over the batch norms in a layer, the layer itself included."""
    return (part for part in layer.sublayers(include_self=True) if isinstance(part, _KINDS))


def set_batch_norm(
    layer: nn.Layer, momentum: float | None = None, epsilon: float | None = None
) -> None:
    """Sets the numbers of every batch norm in a layer; None leaves what each of them has.

    Args:
        layer (nn.Layer): Network or part of one.
        momentum (float): Share of the old running value that is kept, in [0, 1). Paddle's default
            is 0.9; the papers' 0.9997 is for pretrained weights, since it needs thousands of
            iterations to forget the initial statistics.
        epsilon (float): Added to the variance, above 0. Paddle's default is 1e-5.

    Raises:
        ValueError: a number out of range.
    """
    if momentum is not None and not (_is_number(momentum) and 0 <= momentum < 1):
        raise ValueError(
            f"bn_momentum is {momentum!r}; give the share of the old value that is kept, from 0 "
            "to below 1, such as 0.9 (torch counts the other way round: its 0.1)."
        )
    if epsilon is not None and not (_is_number(epsilon) and epsilon > 0):
        raise ValueError(f"bn_epsilon is {epsilon!r}; give a number above 0, such as 1.0e-5.")
    for norm in batch_norms(layer):
        if momentum is not None:
            norm._momentum = float(momentum)
        if epsilon is not None:
            norm._epsilon = float(epsilon)


def freeze_batch_norm(layer: nn.Layer) -> None:
    """Puts every batch norm in a layer into evaluation mode and stops its weight and bias.

    ``layer.train()`` undoes the mode, not the stop; `Segmenter` repeats the call there.
    """
    for norm in batch_norms(layer):
        if type(norm) is nn.SyncBatchNorm:  # what its convert_sync_batchnorm puts into a network
            norm.__class__ = _SyncBatchNorm
        norm.eval()
        for parameter in (norm.weight, norm.bias):
            if parameter is not None:
                parameter.stop_gradient = True


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)

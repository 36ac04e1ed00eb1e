# SPDX-License-Identifier: Apache-2.0
"""A convolution's bias in front of batch norm, added to the mean instead of the map.

Such a bias only moves the mean that batch norm takes off again, yet adding it to the map costs a
tenth of a training step on a CPU.
"""

from collections.abc import Callable

import paddle
from paddle import nn


def conv_bn(
    conv: nn.Conv2D,
    norm: nn.BatchNorm2D,
    x: paddle.Tensor,
    batch_norm: Callable[..., paddle.Tensor],
) -> paddle.Tensor | None:
    """``norm(conv(x))``, or None.

    Args:
        conv (layers.Conv2D): Without hooks: it is not called, but `conv.without_bias`.
        norm (nn.BatchNorm2D): Without hooks: it is not called.
        x (Tensor): conv's input.
        batch_norm (callable): `layers.norm.batch_norm`: batch norm with another mean and bias.
    """
    if conv.bias is None or not paddle.in_dynamic_mode():
        return None
    trains = norm.training and not norm._use_global_stats
    if not trains and paddle.is_grad_enabled():
        return None  # frozen statistics: the bias has a gradient
    bias = conv.bias.detach().astype(norm._mean.dtype)
    mean, beta = norm._mean - bias, norm.bias
    if trains:
        # The bias has a gradient of 0, and it must be there: weight decay acts on it, and
        # training on several ranks waits for it.
        beta = beta + (0.0 * conv.bias).astype(beta.dtype)
    y = batch_norm(norm, conv.without_bias(x), mean, beta)
    if trains:  # batch norm has updated `mean` where it lies
        paddle.assign(mean + bias, output=norm._mean)
    return y

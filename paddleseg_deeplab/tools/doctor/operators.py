# SPDX-License-Identifier: Apache-2.0
"""The network's operators on a device against Paddle's plain ones on the CPU, with gradients."""

import numpy as np
import paddle
import paddle.nn.functional as F

from paddleseg_deeplab.deploy.tf32 import tf32
from paddleseg_deeplab.models.layers import Conv2D, SyncBatchNorm, resize
from paddleseg_deeplab.tools.doctor.device import difference, is_cpu, using
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed

EXACT = 1e-5  # float32 sums of up to 2,178 products in another order
ROUNDED = 2e-3  # TF32 keeps 10 bits of each factor
_FORMATS = ("NCHW", "NHWC")


def _arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def _with_gradients(device, run, arrays):
    """Output, and gradients of a weighted sum of it, as arrays."""
    with using(device):
        tensors = [paddle.to_tensor(a, stop_gradient=False) for a in arrays]
        y = run(*tensors)
        # Above 0 on average: sums that cancel would be all rounding.
        weights = 1 + np.cos(np.arange(np.prod(y.shape), dtype=np.float32)).reshape(y.shape)
        (y * paddle.to_tensor(weights)).sum().backward()
        return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def _channels_last(run):
    """`run` for maps [N, C, H, W] outside and [N, H, W, C] inside."""

    def around(x, *rest):
        return run(x.transpose((0, 2, 3, 1)), *rest).transpose((0, 3, 1, 2))

    return around


def _compare(name, device, plain, ours, arrays):
    """A row: `ours(data_format)` on the device against `plain` on the CPU."""
    expected = _with_gradients("cpu", plain, arrays)
    lines, good = [], True
    # A CPU has no TF32.
    for rounded in (False,) if is_cpu(device) else (False, True):
        worst = 0.0
        for data_format in _FORMATS:
            run = ours(data_format)
            run = run if data_format == "NCHW" else _channels_last(run)
            with tf32(rounded):
                found = _with_gradients(device, run, arrays)
            worst = max([worst, *map(difference, found, expected)])
        limit = ROUNDED if rounded else EXACT
        good = good and worst <= limit
        lines.append(f"{worst:.1e} with TF32 {'on' if rounded else 'off'} (limit {limit:.0e})")
    row = passed if good else failed
    return row(name, f"differs from the CPU's plain operator by {', '.join(lines)}")


def _convolution(name, device, channels, out, kernel, **how):
    groups = how.get("groups", 1)
    arrays = _arrays((2, channels, 33, 33), (out, channels // groups, kernel, kernel), (out,))

    def plain(x, weight, bias):
        return F.conv2d(x, weight, bias, **how)

    def ours(data_format):
        layer = Conv2D(channels, out, kernel, data_format=data_format, **how)

        def run(x, weight, bias):
            layer._parameters.update(weight=weight, bias=bias)
            return layer(x)

        return run

    return _compare(name, device, plain, ours, arrays)


def plain_convolution(device: str) -> Row:
    """3x3, stride 2."""
    return _convolution("convolution", device, 16, 24, 3, stride=2, padding=1)


def dilated_convolution(device: str) -> Row:
    """3x3 at rate 6, as in ASPP."""
    return _convolution("dilated convolution", device, 16, 24, 3, dilation=6, padding=6)


def depthwise_convolution(device: str) -> Row:
    """3x3 for each channel, at rate 2."""
    how = {"groups": 32, "dilation": 2, "padding": 2}
    return _convolution("depthwise convolution", device, 32, 32, 3, **how)


def bilinear_resize(device: str) -> Row:
    """9x9 to 33x33, corners aligned, as logits are resized."""

    def plain(x):
        return F.interpolate(x, [33, 33], mode="bilinear", align_corners=True)

    def ours(data_format):
        return lambda x: resize(x, [33, 33], True, data_format)

    return _compare("bilinear resize", device, plain, ours, _arrays((2, 19, 9, 9)))


def batch_norm(device: str) -> Row:
    """In training, with the gradients of weight and bias."""

    def plain(x, weight, bias):
        mean, variance = paddle.zeros([16]), paddle.ones([16])
        return F.batch_norm(x, mean, variance, weight, bias, training=True)

    def ours(data_format):
        with using(device):
            layer = SyncBatchNorm(16, data_format=data_format)

        def run(x, weight, bias):
            layer._parameters.update(weight=weight, bias=bias)
            return layer(x)

        return run

    return _compare("batch norm", device, plain, ours, _arrays((4, 16, 17, 17), (16,), (16,)))


ROWS = (
    plain_convolution,
    dilated_convolution,
    depthwise_convolution,
    bilinear_resize,
    batch_norm,
)

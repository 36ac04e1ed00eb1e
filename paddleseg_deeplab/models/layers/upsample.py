# SPDX-License-Identifier: Apache-2.0
"""Upsampling that is learned: a transposed convolution that starts as bilinear interpolation."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_deeplab.models.layers.resize import Size, channel_axis, spatial_size


class BilinearDeconv(nn.Layer):
    """Upsampling by a whole factor with one transposed convolution kernel per channel.

    Kernel 2 f - f % 2, stride f, no bias, and per channel (groups = channels), so that channels
    stay apart as in interpolation. The map is first extended by its own edge, one pixel on each
    side: where a plain transposed convolution fades to zero at the border, this one repeats the
    edge, as interpolation does. So at initialisation the result equals bilinear interpolation
    with align_corners=False by the same factor, in all pixels.

    Of f times the input's size the middle is kept, as large as the target. The rest is at most
    f - 1 pixels, where sizes were rounded up by strides; cut from both sides it shifts the map by
    half of it, which for sizes of kind f k + 1 is half a pixel off align_corners=True.

    Args:
        channels (int): Of input and output.
        factor (int): At least 1; 1 has no parameters and only checks the size.
        data_format (str): "NCHW" or "NHWC"; the weight is [channels, 1, kernel, kernel] in both.

    Raises:
        ValueError: a factor that is not a positive integer, an unknown data format; in `forward`
            a target larger than factor times the map.
    """

    def __init__(self, channels: int, factor: int, data_format: str = "NCHW") -> None:
        super().__init__()
        if type(factor) is not int or factor < 1:
            raise ValueError(f"The upsampling factor is {factor!r}; give a positive integer.")
        channel_axis(data_format)  # refuses an unknown format
        self.factor = factor
        self.data_format = data_format
        self.deconv = None
        if factor > 1:
            kernel = np.tile(bilinear_kernel(factor), (channels, 1, 1, 1)).astype("float32")
            self.deconv = nn.Conv2DTranspose(
                channels,
                channels,
                kernel_size=kernel.shape[-1],
                stride=factor,
                # factor // 2 keeps exactly factor times the size; the extended edge goes on top.
                padding=factor // 2 + factor,
                groups=channels,
                weight_attr=paddle.ParamAttr(initializer=nn.initializer.Assign(kernel)),
                bias_attr=False,
                data_format=data_format,
            )

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Upsamples.

        Args:
            x (Tensor): float [N, C, H, W], or [N, H, W, C] for "NHWC".
            size: (height, width) of the result, as `spatial_size` returns it.

        Returns:
            Tensor: x's middle, factor times as fine, of the given size.
        """
        if self.deconv is not None:
            edge = [1, 1, 1, 1]
            x = self.deconv(F.pad(x, edge, mode="replicate", data_format=self.data_format))
        height, width = spatial_size(x, self.data_format)
        if paddle.in_dynamic_mode() and (height < size[0] or width < size[1]):
            raise ValueError(
                f"Upsampling by {self.factor} gives {height}x{width}, less than the "
                f"{size[0]}x{size[1]} that is asked for: the network's features are smaller than "
                "their declared strides say. Use bilinear upsampling."
            )
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        if self.data_format == "NCHW":
            return x[:, :, top : top + size[0], left : left + size[1]]
        return x[:, top : top + size[0], left : left + size[1], :]


def bilinear_kernel(factor: int) -> np.ndarray:
    """The transposed convolution kernel that interpolates bilinearly.

    Not ``nn.initializer.Bilinear`` (paddle_quirks: bilinear_initializer).

    Args:
        factor (int): Of the upsampling.

    Returns:
        np.ndarray: float64 [k, k], k = 2 factor - factor % 2: outer product of a triangle, whose
        weights per phase add up to 1.
    """
    size = 2 * factor - factor % 2
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    triangle = 1 - distance / factor
    return np.outer(triangle, triangle)

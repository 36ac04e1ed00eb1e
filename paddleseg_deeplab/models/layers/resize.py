# SPDX-License-Identifier: Apache-2.0
"""Bilinear resize and the two questions about a tensor that depend on its data format."""

import paddle.nn.functional as F

DATA_FORMATS = ("NCHW", "NHWC")


def channel_axis(data_format):
    """Axis of the channels in a 4-D tensor: 1 for "NCHW", 3 for "NHWC".

    Raises:
        ValueError: another data format.
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format is {data_format!r}; give one of {list(DATA_FORMATS)}.")
    return 1 if data_format == "NCHW" else 3


def spatial_size(x, data_format="NCHW"):
    """(height, width) of a 4-D tensor: integers, or scalar tensors while a program is traced
    for export with dynamic shapes."""
    return x.shape[2:4] if data_format == "NCHW" else x.shape[1:3]


def resize(x, size, align_corners=False, data_format="NCHW"):
    """Bilinear resize.

    Args:
        x (Tensor): float [N, C, H, W], or [N, H, W, C] for "NHWC".
        size (list): (height, width) in pixels, as `spatial_size` returns it.
        align_corners (bool): True where the corner pixels' centres of both grids coincide
            (sizes 8k+1, such as 513), False where their outer edges do (even sizes).
        data_format (str): "NCHW" or "NHWC".

    Returns:
        Tensor: of x's dtype, format and channels, and of the given size.
    """
    return F.interpolate(
        x, size, mode="bilinear", align_corners=align_corners, data_format=data_format
    )

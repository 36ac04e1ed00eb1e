# SPDX-License-Identifier: Apache-2.0
"""Bilinear resize and the two questions about a tensor that depend on its data format."""

from collections.abc import Sequence
from fractions import Fraction

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddleseg_deeplab import kernels

# (height, width): integers, or scalar tensors while a program is traced.
Size = Sequence[int | Tensor]

DATA_FORMATS = ("NCHW", "NHWC")
_LARGEST_DENOMINATOR = 100


def channel_axis(data_format: str) -> int:
    """Axis of the channels in a 4-D tensor: 1 for "NCHW", 3 for "NHWC".

    Raises:
        ValueError: another data format.
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format is {data_format!r}; give one of {list(DATA_FORMATS)}.")
    return 1 if data_format == "NCHW" else 3


def spatial_size(x: Tensor, data_format: str = "NCHW") -> Size:
    """(height, width) of a 4-D tensor: integers, or scalar tensors while a program is traced
    for export with dynamic shapes."""
    return x.shape[2:4] if data_format == "NCHW" else x.shape[1:3]


def like(x: Tensor, other: Tensor) -> Tensor:
    """x in the dtype of another tensor; x itself, and no operator in a program, where it has it.

    Under autocast one float32 input takes a sum or a concatenation of half-precision maps back to
    float32, for which the next convolution makes a copy in half precision all the same.
    """
    return x if x.dtype == other.dtype else x.astype(other.dtype)


def resize(x: Tensor, size: Size, align_corners: bool = False, data_format: str = "NCHW") -> Tensor:
    """Bilinear resize.

    Args:
        x (Tensor): float [N, C, H, W], or [N, H, W, C] for "NHWC".
        size: (height, width) in pixels, as `spatial_size` returns it.
        align_corners (bool): True where the corner pixels' centres of both grids coincide
            (sizes 8k+1, such as 513), False where their outer edges do (even sizes).
        data_format (str): "NCHW" or "NHWC".

    Returns:
        Tensor: of x's dtype, format and channels, and of the given size; float32 under autocast.
            What goes on as a feature map is brought back by `like`.
    """
    y = kernels.resize(x, size, align_corners, data_format)
    if y is None:
        y = F.interpolate(
            x, size, mode="bilinear", align_corners=align_corners, data_format=data_format
        )
    return y


def resize_by(
    x: Tensor, scale: float, align_corners: bool = False, data_format: str = "NCHW"
) -> Tensor:
    """Bilinear resize by a factor, with torch's meaning of ``scale_factor``.

    The result has floor(size * scale) pixels. Its pixel i lies at (i + 0.5) / scale - 0.5 of the
    input, also where the size was rounded down; with align_corners the corners' centres coincide,
    whatever was rounded.

    Paddle's ``interpolate(scale_factor=...)`` means the same, but has no way to ONNX
    (paddle_quirks: scale_factor_in_onnx). Here the edge is repeated up to a size that the scale
    divides, and the surplus cut off again, for which a resize to a size is enough.

    Args:
        x (Tensor): float [N, C, H, W], or [N, H, W, C] for "NHWC".
        scale (float): See `scale_fraction`.
        align_corners (bool): See `resize`.
        data_format (str): "NCHW" or "NHWC".

    Returns:
        Tensor: of x's dtype, format and channels.

    Raises:
        ValueError: a scale that `scale_fraction` refuses.
    """
    ratio = scale_fraction(scale)
    up, down = ratio.numerator, ratio.denominator
    height, width = spatial_size(x, data_format)
    size = [height * up // down, width * up // down]
    if align_corners:
        return resize(x, size, True, data_format)
    edge = down - 1
    parts = [(height + edge) // down, (width + edge) // down]
    if edge:
        x = F.pad(x, [0, edge, 0, edge], mode="replicate", data_format=data_format)
        x = _corner(x, [n * down for n in parts], data_format)
    x = resize(x, [n * up for n in parts], False, data_format)
    return _corner(x, size, data_format)


@paddle.jit.not_to_static  # plain numbers, which tracing need not look into
def scale_fraction(scale: float) -> Fraction:
    """A scale as a ``fractions.Fraction``.

    Raises:
        ValueError: not a number above 0, or no fraction of a denominator up to 100.
    """
    if isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0 < scale < 1e6:
        ratio = Fraction(scale).limit_denominator(_LARGEST_DENOMINATOR)
        if ratio and abs(ratio - Fraction(scale)) < 1e-9:
            return ratio
    raise ValueError(
        f"The scale is {scale!r}; give a number above 0 that is a fraction of a denominator up to "
        f"{_LARGEST_DENOMINATOR}, such as 0.75 or 1 / 3."
    )


def _corner(x, size, data_format):
    """x's upper left part of (height, width)."""
    if data_format == "NCHW":
        return x[:, :, : size[0], : size[1]]
    return x[:, : size[0], : size[1], :]

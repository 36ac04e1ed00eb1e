# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: logits of an image from overlapping crops of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.deploy.engine import Engine, run_network
from paddleseg_deeplab.prediction.batching import automatic_batch
from paddleseg_deeplab.utils.errors import UserError

# Sums larger than this, in bytes, stay in host memory on a GPU too: windows are there to save its.
_DEVICE_SUMS = 2**31
# ((width, height), (stride across, stride down)) in pixels.
Window = tuple[tuple[int, int], tuple[int, int]]
WINDOW_SETTINGS = ("is_slide", "crop_size", "stride", "slide_above")


def _size_pair(name, value):
    """(w, h) of a setting as two positive int."""
    if value is None:
        raise UserError(f"A sliding window needs {name}: two numbers, width and height.")
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or any(type(v) is not int or v < 1 for v in pair):
        raise UserError(f"{name} takes two positive whole numbers (width, height), got {value!r}.")
    return int(pair[0]), int(pair[1])


def check_window(
    crop_size: Sequence[int] | int | None, stride: Sequence[int] | int | None
) -> Window:
    """Checks a sliding window's settings.

    Args:
        crop_size, stride (Sequence[int]): (width, height) in pixels.

    Returns:
        tuple: ``(crop_w, crop_h), (stride_w, stride_h)``.

    Raises:
        UserError: One is missing or not positive, or the stride would leave pixels out.
    """
    crop, step = _size_pair("crop_size", crop_size), _size_pair("stride", stride)
    if step[0] > crop[0] or step[1] > crop[1]:
        raise UserError(
            f"The stride {step} is larger than the crop_size {crop}: pixels between the windows "
            "would be left out. Use a stride of at most the crop size."
        )
    return crop, step


def window_for(
    size: Sequence[int],
    is_slide: bool = False,
    crop_size: Sequence[int] | int | None = None,
    stride: Sequence[int] | int | None = None,
    slide_above: float | None = None,
) -> Window | None:
    """The window that images of a size go through the network in, if any.

    Args:
        size (Sequence[int]): (height, width) of the network's input.
        is_slide (bool): All images go in windows.
        crop_size, stride (Sequence[int], optional): (width, height) in pixels. With `slide_above`
            the stride is two thirds of the crop where none is given.
        slide_above (float, optional): Images of more than so many times the window's pixels go in
            windows, the others whole. Pixels, not sides, since memory goes with pixels.

    Returns:
        tuple | None: ``(crop_w, crop_h), (stride_w, stride_h)``; None for whole images.

    Raises:
        UserError: A setting is missing, wrong, or contradicts another.
    """
    if slide_above is None:
        return check_window(crop_size, stride) if is_slide else None
    number = isinstance(slide_above, (int, float)) and not isinstance(slide_above, bool)
    if not number or not 1 <= slide_above < math.inf:
        raise UserError(f"slide_above takes a finite number of at least 1, got {slide_above!r}.")
    if is_slide:
        raise UserError(
            "is_slide and slide_above exclude each other: is_slide puts every image into windows, "
            "slide_above the large ones only. Give one of them."
        )
    if crop_size is None:
        raise UserError(
            "slide_above needs a crop_size: there is no crop among the transforms of train_dataset "
            "to take it from. Give crop_size: width and height of the window."
        )
    crop = _size_pair("crop_size", crop_size)
    if stride is None:
        stride = [max((2 * side + 1) // 3, 1) for side in crop]
    window = check_window(crop, stride)
    return window if size[0] * size[1] > slide_above * crop[0] * crop[1] else None


def window_starts(size: int, crop: int, stride: int) -> list[int]:
    """First pixels of the windows along one side: a regular grid whose last window ends exactly
    at the edge; one window where the image is not larger than the crop."""
    if size <= crop:
        return [0]
    return [*range(0, size - crop, stride), size - crop]


def _coverage(size, crop, starts):
    count = np.zeros(size, dtype=np.float32)
    for start in starts:
        count[start : start + crop] += 1
    return count


def sums_on_host(model: nn.Layer | Engine) -> bool:
    """Whether what follows the network is done in NumPy: on a CPU, and behind an `Engine`."""
    return isinstance(model, Engine) or paddle.get_device() == "cpu"


def slide_logits(
    model: nn.Layer | Engine,
    im: Tensor | np.ndarray,
    crop_size: Sequence[int] | int | None,
    stride: Sequence[int] | int | None,
) -> Tensor | np.ndarray:
    """Mean logits of overlapping windows.

    The windows' logits are added up in one buffer of the images' size and divided by the number of
    windows over each pixel. Small windows go through the network several at a time, as many as
    `batching.automatic_batch` puts into a batch. Beside the network's own memory it needs
    ``4 * N * K * (H * W + n * h * w)`` bytes for K classes and n windows of h x w at a time. On a
    GPU that is the device's memory, and nothing is read back; buffers of more than 2 GiB are in
    host memory there too.

    Args:
        model (nn.Layer | Engine): In eval mode.
        im (Tensor | np.ndarray): float32 [N, C, H, W]; where a side is smaller than the crop, the
            window is as long as the side.
        crop_size, stride (Sequence[int]): (width, height).

    Returns:
        np.ndarray | Tensor: float32 [N, num_classes, H, W]; a Tensor from sums on a device.
    """
    (crop_w, crop_h), (stride_w, stride_h) = check_window(crop_size, stride)
    count, _, height, width = im.shape
    crop_h, crop_w = min(crop_h, height), min(crop_w, width)
    rows = window_starts(height, crop_h, stride_h)
    columns = window_starts(width, crop_w, stride_w)
    corners = [(y, x) for y in rows for x in columns]
    join = np.concatenate if isinstance(im, np.ndarray) else paddle.concat
    at_once = max(automatic_batch((crop_h, crop_w)) // count, 1)
    sums: Any = None  # made by the first windows, which tell the number of classes
    on_host = sums_on_host(model)
    for first in range(0, len(corners), at_once):
        group = corners[first : first + at_once]
        windows = [im[:, :, y : y + crop_h, x : x + crop_w] for y, x in group]
        batch = join(windows, axis=0) if len(windows) > 1 else windows[0]
        logits = run_network(model, batch)  # [len(group) * N, K, crop_h, crop_w]
        if sums is None:
            shape = (count, logits.shape[1], height, width)
            on_host = on_host or 4 * math.prod(shape) > _DEVICE_SUMS
            sums = (np if on_host else paddle).zeros(shape, dtype="float32")
        logits = np.asarray(logits) if on_host else logits
        for i, (y, x) in enumerate(group):
            place = (slice(None), slice(None), slice(y, y + crop_h), slice(x, x + crop_w))
            part = logits[i * count : (i + 1) * count]
            if on_host:
                sums[place] += part
            else:  # not in place: a slice of a Tensor is a view or a copy
                sums[place] = sums[place] + part
    # One pass over the buffer; products of two small whole numbers are exact.
    counts = np.outer(_coverage(height, crop_h, rows), _coverage(width, crop_w, columns))
    if on_host:
        sums /= counts
        return sums
    return sums.divide_(paddle.to_tensor(counts))

# SPDX-License-Identifier: Apache-2.0
"""Image operations in NumPy and OpenCV: no randomness, no dictionaries, no change of the input.

An image is [H, W] or [H, W, C] with any number of channels; the result has as many axes as the
input. Sizes and offsets are (height, width) or (top, left). A result may be a view of the input
(crops, flips, a resize to the same size), so it must not be written to either.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

INTERPOLATIONS = {
    "NEAREST": cv2.INTER_NEAREST,
    "LINEAR": cv2.INTER_LINEAR,
    "CUBIC": cv2.INTER_CUBIC,
    "AREA": cv2.INTER_AREA,
    "LANCZOS4": cv2.INTER_LANCZOS4,
}

# OpenCV refuses arrays of more channels (128 in version 5, 512 before), its border values are
# 4-vectors, and INTER_AREA enlarges 4 channels at most: more are worked on in groups.
_MANY_CHANNELS = 64
_BORDER_CHANNELS = 4
_AREA_CHANNELS = 4

# Rec. 601 luma of RGB, the weights that Pillow's enhancement operations use as well.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# One number, or one for each channel.
Color = float | list[float] | tuple[float, ...]


class Misfit(ValueError):
    """A setting does not fit the image, such as three means for four channels."""


def _in_groups(operation, img, limit):
    """Runs an OpenCV operation on at most `limit` channels at a time and keeps the channel axis."""
    if img.ndim == 2:
        return operation(img)
    if img.shape[2] > limit:
        starts = range(0, img.shape[2], limit)
        groups = [_in_groups(operation, img[:, :, i : i + limit], limit) for i in starts]
        return np.concatenate(groups, axis=2)
    out = operation(img)
    return out[:, :, None] if out.ndim == 2 else out  # OpenCV drops a single channel's axis


def _colour(img, value):
    """`value` as one number for an [H, W] image, else as one for each channel."""
    channels = 1 if img.ndim == 2 else img.shape[2]
    values = np.atleast_1d(np.asarray(value))
    if values.shape not in ((1,), (channels,)):
        raise Misfit(
            f"a padding value has {values.size} numbers and the image {channels} channels; "
            f"give 1 or {channels} numbers."
        )
    return values[0] if img.ndim == 2 else np.broadcast_to(values, channels)


# ---------------------------------------------------------------------------------------- geometry


def nearest_index(old: int, new: int) -> np.ndarray:
    """Source index for each of `new` positions along an axis of `old` elements.

    The same half-pixel centres as OpenCV's bilinear resize: position i looks at
    ``(i + 0.5) * old / new - 0.5``. A tie goes to the lower index. ``cv2.INTER_NEAREST``, which
    PaddleSeg uses for masks, looks at ``floor(i * old / new)`` instead and so shifts the mask
    against its image by up to half a pixel (at scale 0.75 the two disagree on 2.4 times as many
    pixels along edges); the results are the same where the ratio is 2 or 1/n.

    Returns:
        np.ndarray: int64 [new], in 0..old-1.
    """
    return ((2 * np.arange(new, dtype=np.int64) + 1) * old - 1) // (2 * new)


def resize_window(old: int, new: int, start: int, length: int) -> tuple[int, int, int, int]:
    """Which part of an axis has to be resized for a part of the resized axis.

    With half-pixel centres the weights of a resize repeat: after ``new / g`` outputs the source has
    moved on by ``old / g`` whole pixels, g being the greatest common divisor. A part of the source
    that begins and ends at multiples of that period, resized by itself, gives the same pixels as
    the whole axis, except for a source pixel beyond its ends, which `resize` repeats there. So the
    part returned holds every source pixel that the outputs asked for look at. Without a common
    divisor it is the whole axis.

    Args:
        old (int): Elements of the axis.
        new (int): Elements of the resized axis.
        start (int): First output that is wanted.
        length (int): Number of outputs, at least 1.

    Returns:
        tuple[int, int, int, int]: (first source element, their number, number of outputs when
        these are resized, place of output `start` among those).
    """
    divisor = math.gcd(old, new)
    period, outputs = old // divisor, new // divisor
    # Output i lies at (i + 0.5) * old / new - 0.5, between that rounded down and the next.
    first = ((2 * start + 1) * old - new) // (2 * new)
    last = ((2 * (start + length) - 1) * old - new) // (2 * new) + 1
    low, high = max(first, 0) // period, min(last, old - 1) // period + 1
    return low * period, (high - low) * period, (high - low) * outputs, start - low * outputs


def nearest_window(
    img: np.ndarray, size: Sequence[int], top: int, left: int, part: Sequence[int]
) -> np.ndarray:
    """``crop(resize(img, size, INTER_NEAREST), top, left, part)``, made without the rest.

    Args:
        img (np.ndarray): [H, W] or [H, W, C], any dtype.
        size (tuple[int, int]): (height, width) of the whole resized image.
        top, left (int): Upper left corner in it.
        part (tuple[int, int]): (height, width) of the result.

    Returns:
        np.ndarray: Of the same dtype; a view where `size` is the image's.
    """
    if img.shape[:2] == tuple(size):
        return crop(img, top, left, part)
    rows = nearest_index(img.shape[0], size[0])[top : top + part[0]]
    cols = nearest_index(img.shape[1], size[1])[left : left + part[1]]
    return img.take(rows, axis=0).take(cols, axis=1)


def resize(img: np.ndarray, size: Sequence[int], interp: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Resizes to `size`.

    Args:
        img (np.ndarray): [H, W] or [H, W, C]. NEAREST takes any dtype and keeps it, the others
            what OpenCV takes (uint8, uint16, int16, float32, float64).
        size (tuple[int, int]): (height, width).
        interp (int): One of `INTERPOLATIONS`'s values. CUBIC and LANCZOS4 overshoot at edges, so
            their results can leave the input's range.

    Returns:
        np.ndarray: The resized image, of the same dtype.
    """
    height, width = (int(s) for s in size)
    if img.shape[:2] == (height, width):
        return img
    if interp == cv2.INTER_NEAREST:
        return nearest_window(img, (height, width), 0, 0, (height, width))
    limit = _AREA_CHANNELS if interp == cv2.INTER_AREA else _MANY_CHANNELS
    return _in_groups(
        lambda part: cv2.resize(part, (width, height), interpolation=interp), img, limit
    )


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Both sides of `size` times `scale`, rounded, at least 1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def size_by_long(size: Sequence[int], long_size: int) -> tuple[int, int]:
    """`size` in proportion, with its longer side equal to `long_size`."""
    return scaled_size(size, long_size / max(size))


def size_by_short(size: Sequence[int], short_size: int) -> tuple[int, int]:
    """`size` in proportion, with its shorter side equal to `short_size`."""
    return scaled_size(size, short_size / min(size))


def size_within(size: Sequence[int], target: Sequence[int]) -> tuple[int, int]:
    """The largest `size` in proportion whose long (short) side fits `target`'s long (short) one.

    As in PaddleSeg the target is not bound to an orientation: a portrait image may use a landscape
    target on its side.
    """
    scale = min(max(target) / max(size), min(target) / min(size))
    return scaled_size(size, scale)


def crop(img: np.ndarray, top: int, left: int, size: Sequence[int]) -> np.ndarray:
    """The part of (height, width) `size` whose upper left corner is (top, left); a view."""
    return img[top : top + size[0], left : left + size[1]]


def pad(
    img: np.ndarray, size: Sequence[int], value: Color, offset: Sequence[int] = (0, 0)
) -> np.ndarray:
    """Puts the image into a larger canvas.

    Args:
        img (np.ndarray): [H, W] or [H, W, C], any dtype.
        size (tuple[int, int]): (height, width) of the canvas, at least the image and its offset.
        value (float | sequence): Canvas colour, one number or one for each channel.
        offset (tuple[int, int]): (top, left) of the image on the canvas.

    Returns:
        np.ndarray: [height, width] or [height, width, C] of the same dtype.
    """
    top, left = offset
    if img.shape[:2] == tuple(size):
        return img
    out = np.empty((*size, *img.shape[2:]), img.dtype)
    out[...] = _colour(img, value)
    out[top : top + img.shape[0], left : left + img.shape[1]] = img
    return out


def repeat_edges(
    array: np.ndarray, size: Sequence[int], axes: Sequence[int] = (0, 1)
) -> np.ndarray:
    """Repeats the last row and the last column up to a size.

    Args:
        array (np.ndarray): Any dtype.
        size (tuple[int, int]): (height, width), at least the array's.
        axes (tuple[int, int]): Its rows and columns.

    Returns:
        np.ndarray: of the same dtype; the array itself where it has the size.
    """
    margins = [(0, 0)] * array.ndim
    for axis, side in zip(axes, size):
        margins[axis] = (0, side - array.shape[axis])
    return np.pad(array, margins, mode="edge") if any(map(any, margins)) else array


def rounded_up(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """(height, width), each side rounded up to a multiple of a number."""
    height, width = (-(-int(side) // divisor) * divisor for side in size)
    return height, width


def horizontal_flip(img: np.ndarray) -> np.ndarray:
    """Mirrors left and right; a view, except for float32 images, whose next reader would pay for
    the backward rows several times over."""
    if img.dtype == np.float32 and img.ndim == 3:
        return _in_groups(lambda part: cv2.flip(part, 1), img, _MANY_CHANNELS)
    return img[:, ::-1]


def vertical_flip(img: np.ndarray) -> np.ndarray:
    """Mirrors top and bottom; a view."""
    return img[::-1]


def rotation(size: Sequence[int], angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Matrix and canvas for a rotation about the centre that cuts nothing off.

    Args:
        size (tuple[int, int]): (height, width) of the image.
        angle (float): Degrees, counter-clockwise.

    Returns:
        tuple: float64 [2, 3] for `warp_affine`, and the (height, width) of the canvas.
    """
    height, width = size
    matrix: np.ndarray = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    # The small addend keeps 90 and 180 degrees from losing a row to rounding.
    new_width = max(1, int(height * sin + width * cos + 1e-6))
    new_height = max(1, int(height * cos + width * sin + 1e-6))
    matrix[:, 2] += ((new_width - width) / 2, (new_height - height) / 2)
    return matrix, (new_height, new_width)


def warp_affine(
    img: np.ndarray,
    matrix: np.ndarray,
    size: Sequence[int],
    interp: int = cv2.INTER_LINEAR,
    value: Color | np.ndarray = 0,
) -> np.ndarray:
    """Affine map of an image onto a canvas.

    Args:
        img (np.ndarray): [H, W] or [H, W, C]; with INTER_NEAREST any dtype of whole numbers up to
            2**53, with INTER_LINEAR what OpenCV takes (uint8, uint16, int16, float32, float64).
        matrix (np.ndarray): [2, 3], from input (x, y) to output (x, y).
        size (tuple[int, int]): (height, width) of the canvas.
        interp (int): cv2.INTER_LINEAR or cv2.INTER_NEAREST.
        value (float | sequence): Colour outside the image, one number or one for each channel.

    Returns:
        np.ndarray: [height, width] or [height, width, C] of the same dtype.
    """
    if img.ndim == 3 and img.shape[2] > _BORDER_CHANNELS:
        values = _colour(img, value)
        parts = []
        for i in range(0, img.shape[2], _BORDER_CHANNELS):
            group = slice(i, i + _BORDER_CHANNELS)
            parts.append(warp_affine(img[:, :, group], matrix, size, interp, values[group]))
        return np.concatenate(parts, axis=2)
    border = tuple(float(v) for v in np.atleast_1d(_colour(img, value)))
    source = img
    if interp == cv2.INTER_NEAREST and img.dtype not in _WARPABLE:
        source = img.astype(np.float64)
    out = cv2.warpAffine(
        source,
        np.asarray(matrix, dtype=np.float64),
        (int(size[1]), int(size[0])),
        flags=interp,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )
    out = out.astype(img.dtype, copy=False)
    return out[:, :, None] if img.ndim == 3 and out.ndim == 2 else out


_WARPABLE = tuple(np.dtype(t) for t in ("uint8", "uint16", "int16", "float32", "float64"))

# ---------------------------------------------------------------------------------- colour, values
# These take float32 images in 0..255 and return float32 in 0..255. PaddleSeg's work on Pillow's
# 8-bit images and round after each step; here nothing is rounded.


def normalize(
    img: np.ndarray, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray
) -> np.ndarray:
    """``(img / 255 - mean) / std`` in one multiplication and one addition per value.

    Args:
        img (np.ndarray): [H, W] or [H, W, C], 0..255.
        mean (sequence): One number, or one for each channel, in units of 255.
        std (sequence): Likewise; no zeros.

    Returns:
        np.ndarray: float32, the input's shape. An [H, W, C] result is a view of [C, H, W] memory,
        so the transposition that every batch needs costs nothing.

    Raises:
        Misfit: Neither one number nor one for each channel.
    """
    planes = img[:, :, None] if img.ndim == 2 else img
    channels = planes.shape[2]
    scale, shift = normalization(channels, mean, std)
    out = np.empty((channels, *planes.shape[:2]), np.float32)
    for c in range(channels):
        np.multiply(planes[:, :, c], scale[c], out=out[c])
        out[c] += shift[c]
    return out[0] if img.ndim == 2 else out.transpose(1, 2, 0)


def to_planes(img: np.ndarray) -> np.ndarray:
    """The image as networks take it.

    Args:
        img (np.ndarray): [H, W] or [H, W, C], any dtype.

    Returns:
        np.ndarray: float32 [1, H, W] or [C, H, W], in memory too; a view where it lies there
        like that already, as after `normalize`.
    """
    planes = img[None] if img.ndim == 2 else img.transpose(2, 0, 1)
    return np.ascontiguousarray(planes, dtype=np.float32)


def normalization(
    channels: int, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `normalize` multiplies by and what it adds: two float32 [channels]; errors as there."""
    values = []
    for name, value in (("mean", mean), ("std", std)):
        value = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if value.shape not in ((1,), (channels,)):
            raise Misfit(
                f"{name} has {value.size} values and the image {channels} channels; "
                f"give 1 or {channels} values."
            )
        values.append(np.broadcast_to(value, channels))
    scale = (1 / (255 * values[1])).astype(np.float32)
    return scale, (-values[0] / values[1]).astype(np.float32)


def _clip(img):
    return np.clip(img, 0, 255, out=img)


def brightness(img: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black: 0 is black, 1 the image, 2 twice as bright."""
    return _clip(img * np.float32(factor))


def contrast(img: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the image's mean grey: 0 is grey, 1 the image."""
    out = img * np.float32(factor)
    out += np.float32((1 - factor) * mean_grey(img))
    return _clip(out)


def mean_grey(img: np.ndarray) -> float:
    """The mean of the luma for three channels (RGB), of all values for other numbers of channels;
    summed in float64."""
    if img.ndim == 3 and img.shape[2] == 3:
        if img.dtype not in _WARPABLE:  # OpenCV takes no others
            img = img.astype(np.float64)
        return float(np.array(cv2.mean(img)[:3]) @ _LUMA)
    return float(img.mean(dtype=np.float64))


def saturation(img: np.ndarray, factor: float) -> np.ndarray:
    """Blends each RGB pixel with its grey: 0 is a grey image, 1 the image."""
    matrix = factor * np.eye(3) + (1 - factor) * np.broadcast_to(_LUMA, (3, 3))
    return _clip(cv2.transform(img, matrix.astype(np.float32)))


def hue(img: np.ndarray, delta: float) -> np.ndarray:
    """Turns the hue of an RGB image by `delta` 256ths of the colour circle (PaddleSeg's unit)."""
    hsv: np.ndarray = cv2.cvtColor(np.ascontiguousarray(img, dtype=np.float32), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] += np.float32(delta * 360 / 256 % 360)  # 360 and more count as an angle again
    return _clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def sharpness(img: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed image: 0 is smooth, 1 the image, 2 sharpened.

    The smoothing kernel is Pillow's (a 3x3 mean whose centre weighs five times); unlike there the
    outermost pixels are smoothed too.
    """
    kernel = np.full((3, 3), 1 / 13, np.float32)
    kernel[1, 1] = 5 / 13
    smooth = _in_groups(lambda part: cv2.filter2D(part, -1, kernel), img, _MANY_CHANNELS)
    return _clip(smooth + np.float32(factor) * (img - smooth))


def gaussian_blur(img: np.ndarray, size: int) -> np.ndarray:
    """Gaussian of `size` x `size` pixels (odd), sigma from the size as OpenCV derives it."""
    return _in_groups(lambda part: cv2.GaussianBlur(part, (size, size), 0), img, _MANY_CHANNELS)


def box_blur(img: np.ndarray, size: int) -> np.ndarray:
    """Mean over `size` x `size` pixels."""
    return _in_groups(lambda part: cv2.blur(part, (size, size)), img, _MANY_CHANNELS)


def median_blur(img: np.ndarray, size: int) -> np.ndarray:
    """Median over `size` x `size` pixels (odd); float images are rounded to 8 bits first, since
    OpenCV has no larger float median than 5 x 5."""
    if img.dtype == np.uint8:
        return _in_groups(lambda part: cv2.medianBlur(part, size), img, 1)
    rounded = np.clip(np.rint(img), 0, 255).astype(np.uint8)
    return median_blur(rounded, size).astype(img.dtype)


def add_noise(img: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """``img + noise`` (same shape), kept in 0..255."""
    return _clip(img + noise)

# SPDX-License-Identifier: Apache-2.0
"""Pictures as a Python program gives them: files, bytes, arrays, pictures of Pillow. No Paddle."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps

from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image

_DEEP = 257  # of 16 bits; 65535 becomes 255, as in files
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_OTHER_MODES = ("I", "F")  # numbers of any range
_told: set[str] = set()


def is_picture(value: object) -> bool:
    """Whether a value is one picture; else it may be many."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image.Image)
    return isinstance(value, kinds)


def name_of(value: object, index: int | None = None) -> str:
    """A path as it is; for all else "image", with its number where it is one of many."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    return "image" if index is None else f"image_{index}"


def to_read(
    value: Picture, name: str, compose: Compose, bgr: bool = False
) -> str | bytes | np.ndarray:
    """A picture as `Compose` reads it.

    Args:
        value: A path; the bytes of an image file; an array, uint8 or floats [H, W, C], or [H, W]
            where the network takes one channel; a picture of Pillow, which is turned as its EXIF
            field says.
        name (str): For messages.
        compose (Compose): Says how many channels there are.
        bgr (bool): Three channels of an array are blue, green, red (four: and alpha), as OpenCV
            reads them, else red, green, blue.

    Returns:
        str | bytes | np.ndarray: Arrays in the order of channels that `Compose` expects.

    Raises:
        UserError: It is none of these, is empty, or has another type or shape.
    """
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if not path:
            raise UserError('The path of an image is "". Give the path of a file.')
        return path
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
        if not content:
            raise UserError(f"{name}: no bytes were given. Give all bytes of an image file.")
        return content
    if isinstance(value, Image.Image):
        value, bgr = _of_pillow(value, name, compose.img_channels), False
    if not isinstance(value, np.ndarray):
        raise UserError(
            f"{name}: a {type(value).__name__} is no picture. Give a path, the bytes of an image "
            "file, a NumPy array, a picture of Pillow, or a list or generator of these."
        )
    return _in_order(_checked(value, name, compose.img_channels), compose, bgr)


def _of_pillow(image, name, channels):
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in _OTHER_MODES:
            raise UserError(
                f"{name}: a picture of Pillow's mode {image.mode} has numbers of any range. Give "
                "an array of the range that the training's images had, or convert it to RGB."
            )
        if image.mode in _DEEP_MODES:
            array = np.asarray(image).astype(np.float32)[:, :, None] / np.float32(_DEEP)
            return np.repeat(array, 3, axis=2) if channels == 3 else array
        if channels in (1, 3):
            image = image.convert("RGB" if channels == 3 else "L")
        return np.asarray(image)
    except (OSError, SyntaxError) as error:  # decoded only now
        raise UserError(f"{name}: Pillow cannot read it: {error}") from error


def _checked(array, name, channels):
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(
            f"{name}: an array of {array.dtype}; uint8 and floats are taken. Convert it to the "
            "range that the training's images had, 0 to 255 for pictures: "
            "(array / 257).astype('float32') for 16 bits."
        )
    planes = array[:, :, None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[2] != channels or not planes.size:
        raise UserError(
            f"{name}: an array of the shape {list(array.shape)}; the network takes "
            f"[height, width, {channels}]{_hint(array.shape, channels)}."
        )
    # Black pictures apart, no photograph lies within 0 and 1.
    if array.dtype.kind == "f" and channels == 3 and "0 to 1" not in _told:
        low, high = float(array.min()), float(array.max())
        if low >= 0 and 0 < high <= 1:
            _told.add("0 to 1")
            logger.warning(
                "%s: the array's values lie between 0 and 1. Arrays are taken as they are: if the "
                "training's images had 0 to 255, multiply by 255.",
                name,
            )
    return planes


def _hint(shape, channels):
    if len(shape) == 3 and shape[0] == channels:
        return ": put the channels last, array.transpose(1, 2, 0)"
    if len(shape) == 4 and shape[0] == 1:
        return ": one image each, array[0]"
    if len(shape) == 4:
        return ": give the images one by one, as list(array)"
    if len(shape) == 3 and shape[2] == 4 and channels == 3:
        return ": leave the alpha channel out, array[..., :3]"
    if len(shape) == 2 and channels == 3:
        return ": repeat a grey image, np.stack([array] * 3, axis=-1)"
    return ""


def _in_order(array, compose, bgr):
    """`Compose` takes three channels as BGR, and four in the order that the transforms get."""
    channels = array.shape[2]
    if channels == 3:
        swap = not bgr
    else:
        swap = channels == 4 and bgr == compose.to_rgb
    if not swap:
        return array
    order = [2, 1, 0, 3][:channels]
    return np.ascontiguousarray(array[:, :, order])

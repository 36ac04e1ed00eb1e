# SPDX-License-Identifier: Apache-2.0
"""Image and label files as arrays. No Paddle."""

import math
import os

import cv2
import numpy as np

from paddleseg_deeplab import kernels
from paddleseg_deeplab.transforms.reading import limit
from paddleseg_deeplab.transforms.reading.labels import decode_label
from paddleseg_deeplab.transforms.reading.source import load_npy, open_image, read_content
from paddleseg_deeplab.utils.errors import UserError


def read_image(
    path: str | os.PathLike[str],
    img_channels: int = 3,
    to_rgb: bool = True,
    nodata: float | None = None,
) -> np.ndarray:
    """Reads an image file.

    One or three channels: any format OpenCV reads, converted between grey and colour where needed;
    transparency is dropped. Other numbers of channels: the file has to hold that many. An EXIF
    orientation is obeyed, see `exif`.

    Numbers: those of 8 bits stay; those of 16 bits are divided by 257 and keep their fractions, so
    that white, 65535, becomes 255; AVIF's 10 and 12 bits become 8. In a TIFF, floats and numbers
    with a sign or of 32 bits are taken as they are. So is all of a ``.npy`` file, [H, W] or
    [H, W, C], order of channels included. The floats of HDR, PFM and EXR files are multiplied by
    255.

    Args:
        path (str | os.PathLike): The file; any characters.
        img_channels (int): Channels wanted.
        to_rgb (bool): Three channels in the order RGB (four: RGBA), else BGR (BGRA).
        nodata (float, optional): Pixels of which a channel has this value in the file become 0.

    Returns:
        np.ndarray: float32 [H, W, img_channels], 0..255 but for what is taken as it is.

    Raises:
        UserError: The file is missing, not an image, has another number of channels, or values
            that are NaN, infinite or beyond 1e6 in magnitude.
    """
    return open_image(path, img_channels, to_rgb, whole=True, nodata=nodata).whole()


def nodata_of(
    path: str | os.PathLike[str], img_channels: int, nodata: float | None
) -> np.ndarray | None:
    """Where an image file has no data: bool [H, W], or None where it has data everywhere."""
    return open_image(path, img_channels, whole=True, nodata=nodata).void


def read_label(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a label file: palette indices (not their colours), grey values, or an array.

    The numbers are those that stand in the file, whatever a picture viewer makes of them (see
    `labels`); of one bit, white is 1. An EXIF orientation is obeyed, as of an image: see `exif`.

    Args:
        path (str | os.PathLike): An image file of one channel with 1 to 16 bits, an image file
            whose colour channels are all equal, or a ``.npy`` file of whole numbers.

    Returns:
        np.ndarray: [H, W], uint8, or wider where the file is.

    Raises:
        UserError: The file is missing, broken, or holds colours.
    """
    path = os.fspath(path)
    if path.lower().endswith(".npy"):
        label = load_npy(path, "label")
        if label.ndim != 2 or label.dtype.kind not in "bui":
            raise UserError(
                f"Label {path} holds {label.dtype} of the shape {label.shape}, expected whole "
                "numbers [height, width]."
            )
    else:
        label = _decode_label(path)
    dtype = np.uint8 if label.dtype == np.bool_ else label.dtype.newbyteorder("=")
    return label.astype(dtype, copy=False)


def _decode_label(path):
    content = read_content(path, "Label")
    file = kernels.parse_png(content)
    if file is not None and file.is_plain_grey and math.prod(file.size) <= limit.max_pixels():
        label = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if label is not None and label.shape == file.size and label.dtype == np.uint8:
            return label  # Pillow gives the same and takes a fifth longer
    try:
        pixels = decode_label(content)
    except UserError as e:
        raise UserError(f"Label {path} {e}.") from e
    except Exception as e:  # decoders raise anything over damaged files
        raise UserError(f"Label {path} cannot be read: {e}") from e
    label = pixels.numbers
    if label.ndim == 3:
        raise UserError(
            f"Label {path} holds colours (mode {pixels.mode}); a label has one channel of class "
            "numbers. Convert it to a palette or grey PNG."
        )
    if label.dtype.kind not in "bui":
        raise UserError(f"Label {path} holds {label.dtype}, expected whole numbers.")
    return label

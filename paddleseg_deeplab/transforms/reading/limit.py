# SPDX-License-Identifier: Apache-2.0
"""The largest image that is decoded, judged by its header: a file of a few kB can declare many GB.

The limit is the environment variable PADDLESEG_DEEPLAB_MAX_PIXELS, else 178,956,970 pixels, which
is where Pillow stops. OpenCV gets the same limit (see `utils.cpu`) for what Pillow does not know.
"""

import io
import os

from PIL import Image

from paddleseg_deeplab.transforms.reading import exif
from paddleseg_deeplab.utils.errors import UserError

VARIABLE = "PADDLESEG_DEEPLAB_MAX_PIXELS"
DEFAULT = 178_956_970
# Pictures of pixels. Pillow knows others too, some of which (EPS) start a program to be decoded.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "TGA", "JPEG2000"),
    *("PCX", "SGI", "SUN", "AVIF"),
)


def max_pixels() -> int:
    """The limit, width times height.

    Raises:
        UserError: the variable holds no whole number above 0.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT
    if not text.isdecimal() or int(text) == 0:
        raise UserError(
            f"{VARIABLE} is {text!r}; give a whole number of pixels, such as {DEFAULT}."
        )
    return int(text)


def open_image(content: bytes) -> Image.Image:
    """Opens an image file's content with Pillow, which reads only its header.

    Args:
        content (bytes): The file.

    Returns:
        PIL.Image.Image: not decoded yet.

    Raises:
        UserError: more pixels than the limit; the text is the rest of a sentence about the file.
        OSError, ValueError, SyntaxError: Pillow does not know or cannot read it.
    """
    limit = max_pixels()
    if limit > DEFAULT and (Image.MAX_IMAGE_PIXELS or limit) < limit:
        Image.MAX_IMAGE_PIXELS = limit  # else Pillow's own would stay in force
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise UserError(_fault("an image far", limit)) from error
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Refuses an image of more pixels than the limit.

    Raises:
        UserError: as `open_image`.
    """
    limit = max_pixels()
    if width * height > limit:
        raise UserError(_fault(f"{width} x {height} pixels,", limit))


def check(content: bytes) -> int:
    """Refuses an image file of more pixels than the limit; other faults are left to the decoder.

    Returns:
        int: Its orientation, see `exif.orientation`; 1 too where Pillow does not know the file.

    Raises:
        UserError: as `open_image`.
    """
    try:
        with open_image(content) as image:
            return exif.orientation(content, image)
    except UserError:
        raise
    except Exception:  # not for Pillow: OpenCV's own limit holds
        return 1


def _fault(what, limit):
    return f"declares {what} above the limit of {limit}; if it is right, set {VARIABLE} higher"

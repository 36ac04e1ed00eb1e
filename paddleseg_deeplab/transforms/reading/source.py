# SPDX-License-Identifier: Apache-2.0
"""Images of which a part can be had without making the rest.

`open_image` gives an object with `shape`, the image's (H, W, C), and `window`, which makes any part
of it: float32, 0..255, as `files.read_image` makes the whole. What a part costs less:

- A PNG of one or three channels is decoded down to the window's last row (see `kernels.png`).
  The rest is still checked against the file's checksums, so a file that was damaged or cut off
  after it was written is found. One that was written too short, its checksums made to fit, is
  found by the windows that reach the missing rows, and gives the others.
- ``.npy``: the file is mapped into memory, and the window's bytes alone are read.
- Other formats are decoded whole; the window alone is converted.

Values that are not finite or beyond 1e6 are refused when the image is opened, whatever window will
be taken: whether a training stops must not hang on its random crops. Decoded images are looked at
each time. A mapped file is looked at as a whole when a process opens it for the first time, and
then no more, so that later windows read their own bytes alone.

Pixels without data (`nodata`) are looked for in the whole image: the label is void there, and a
crop may be chosen by the label.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from paddleseg_deeplab import kernels
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.reading import limit, tiff
from paddleseg_deeplab.transforms.reading.values import check_values, nodata_mask
from paddleseg_deeplab.utils.errors import UserError

_SWAPS = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
# Above this share of its rows, a PNG takes as long as the whole, which has no way around then.
_MOST_ROWS = 0.9
# Radiance HDR, PFM, OpenEXR: OpenCV gives 8 bits of them, in which NaN is 0 and infinity is 255.
_FLOAT_FORMATS = (b"#?RGBE", b"#?RADIANCE", b"PF", b"Pf", b"\x76\x2f\x31\x01")
_looked_at: set[int] = set()  # mapped files whose values are known to be good


class ArraySource:
    """A decoded image.

    Args:
        array (np.ndarray): [H, W, C] of numbers; it is not changed.
        swap (bool): Three or four channels are BGR or BGRA and wanted as RGB or RGBA.
        scale (float): What values are multiplied by.
        void (np.ndarray, optional): bool [H, W], pixels without data, which become 0; None where
            there are none.
    """

    def __init__(
        self,
        array: np.ndarray,
        swap: bool = False,
        scale: float = 1,
        void: np.ndarray | None = None,
    ) -> None:
        self.void = void
        self._array = np.asarray(array)  # not a memmap, which would hand its class on
        self._swap = _SWAPS.get(array.shape[2]) if swap else None
        self._scale = scale
        self.shape = array.shape

    def window(self, top: int, left: int, size: Sequence[int]) -> np.ndarray:
        """The part of (height, width) `size` whose upper left corner is (top, left).

        Returns:
            np.ndarray: float32 [height, width, C] that belongs to the caller.
        """
        part = functional.crop(self._array, top, left, size)
        if self._swap is not None:
            if part.dtype != np.uint8:  # fewer bytes to move, but OpenCV does not take every dtype
                part = part.astype(np.float32)
            part = cv2.cvtColor(part, self._swap)
        part = part.astype(np.float32, order="C")
        if self._scale != 1:
            part = part * np.float32(self._scale)
        if self.void is not None:
            part[functional.crop(self.void, top, left, size)] = 0
        return part

    def whole(self) -> np.ndarray:
        """float32 [H, W, C] that belongs to the caller."""
        return self.window(0, 0, self.shape[:2])


class PngSource:
    """A PNG file.

    Args:
        file (kernels.png.Png): The file.
        content (bytes): The same.
        decode (callable): Decodes a file's bytes: uint8 [H, W], or BGR uint8 [H, W, 3].
        channels (int): 1 or 3, what `decode` gives.
        to_rgb (bool): Give three channels as RGB, else as BGR.
    """

    void = None  # what is decoded in parts has no `nodata`

    def __init__(
        self,
        file: "kernels.Png",
        content: bytes,
        decode: Callable[[bytes], np.ndarray],
        channels: int,
        to_rgb: bool,
    ) -> None:
        self._file, self._content, self._decode, self._to_rgb = file, content, decode, to_rgb
        self.shape = (*file.size, channels)

    def window(self, top: int, left: int, size: Sequence[int]) -> np.ndarray:
        """As `ArraySource.window`.

        Raises:
            UserError: The file cannot be decoded down to the window's last row.
        """
        return ArraySource(self._rows(top + size[0]), self._to_rgb).window(top, left, size)

    def whole(self) -> np.ndarray:
        """float32 [H, W, C] that belongs to the caller."""
        return self.window(0, 0, self.shape[:2])

    def _rows(self, count):
        """uint8 [at least `count`, W, C], in OpenCV's order of channels."""
        if kernels.reads_png_fast() or count <= _MOST_ROWS * self.shape[0]:
            first = self._file.first_rows(count)
            if first is not None:
                with contextlib.suppress(UserError):  # the file itself decides
                    return self._decode(first).reshape(count, *self.shape[1:])
        return self._decode(self._content).reshape(self.shape)


# ----------------------------------------------------------------------------------------- opening


def open_image(
    path: str | os.PathLike[str],
    img_channels: int = 3,
    to_rgb: bool = True,
    whole: bool = False,
    nodata: float | None = None,
) -> ArraySource | PngSource:
    """Opens an image file; see `files.read_image` for what files may hold.

    Args:
        path (str | os.PathLike): The file.
        img_channels (int): Channels wanted.
        to_rgb (bool): Three channels in the order RGB (four: RGBA), else BGR (BGRA).
        whole (bool): Nothing is prepared for parts, since the whole image will be taken.
        nodata (float, optional): Pixels of which a channel has this value, as the file holds it,
            are 0 in the image and True in the source's `void`.

    Returns:
        ArraySource | PngSource

    Raises:
        UserError: The file is missing, not an image, empty, has another number of channels, or
            values that are NaN, infinite or beyond 1e6. A PNG whose checksums are right but whose
            data are not is found when a window is made that takes in the damaged rows.
    """
    path = os.fspath(path)
    if path.lower().endswith(".npy"):
        return _mapped_source(path, img_channels, nodata)
    content = read_content(path, "Image")
    try:
        limit.check(content)
    except UserError as e:
        raise UserError(f"Image {path} {e}.") from e

    file = None
    if nodata is None and img_channels in (1, 3) and (kernels.reads_png_fast() or not whole):
        file = kernels.parse_png(content)
    if file is not None:

        def decode(part):
            return _decode(part, path, img_channels)[0]

        return PngSource(file, content, decode, img_channels, to_rgb)
    img, values = _decode(content, path, img_channels, nodata is not None)
    img = _with_channels(path, img, img_channels)
    scale = 1 / 257 if img.dtype == np.uint16 else 1
    return array_source(img, f"Image {path}", to_rgb, scale, values=values, nodata=nodata)


def array_source(
    img: np.ndarray,
    name: str,
    swap: bool = False,
    scale: float = 1,
    *,
    values: np.ndarray | None = None,
    nodata: float | None = None,
) -> ArraySource:
    """An `ArraySource` whose values have been looked at.

    Args:
        img (np.ndarray): [H, W, C].
        name (str): For the message.
        swap, scale: As for `ArraySource`.
        values (np.ndarray, optional): The file's own values, [H, W] or [H, W, C], where they are
            not those of `img`.
        nodata (float, optional): As for `open_image`.

    Raises:
        UserError: Values are NaN, infinite or beyond 1e6.
    """
    values = img if values is None else values
    void = nodata_mask(values, nodata)
    check_values(values, name, void)
    return ArraySource(img, swap, scale, void)


def _mapped_source(path, img_channels, nodata):
    img = np.asarray(load_npy(path, "image", mapped=True))
    img = _with_channels(path, img, img_channels)
    if nodata is not None:
        return array_source(img, f"Image {path}", nodata=nodata)
    status = os.stat(path)
    key = hash((path, status.st_size, status.st_mtime_ns))
    if key not in _looked_at:
        check_values(img, f"Image {path}")
        _looked_at.add(key)
    return ArraySource(img)


def _with_channels(path, img, img_channels):
    if img.ndim == 2:
        img = img[:, :, None]
    if img.ndim != 3 or img.shape[2] != img_channels:
        raise UserError(
            f"Image {path} has the shape {img.shape}, expected [height, width, {img_channels}]: "
            "set img_channels to what the files hold."
        )
    if not img.size:
        raise UserError(f"Image {path} is empty: its shape is {img.shape}.")
    return img


def decode_image(
    content: bytes, img_channels: int, own_values: bool = False
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Decodes an image file.

    Args:
        content (bytes): The file.
        img_channels (int): Channels wanted.
        own_values (bool): The values in the file matter, before they are brought to 8 bits.

    Returns:
        tuple: The image, and its values in the file where they are others and matter (see
        `own_values`; they always do in formats of float numbers), else None. The image is uint8
        [H, W] for one channel, uint8 BGR for three, anything for other numbers of channels; a TIFF
        of floats or of 32-bit numbers is what the file holds. None where OpenCV cannot read it.

    Raises:
        cv2.error: OpenCV cannot read it.
    """
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(img_channels, cv2.IMREAD_UNCHANGED)
    if tiff.is_wide(content):
        flags = cv2.IMREAD_UNCHANGED
    data = np.frombuffer(content, np.uint8)
    img, values = (cv2.imdecode(data, flags) if content else None), None
    has_more = own_values or content.startswith(_FLOAT_FORMATS)
    if img is not None and has_more and flags != cv2.IMREAD_UNCHANGED:
        values = cv2.imdecode(data, flags | cv2.IMREAD_ANYDEPTH)
    return img, values


def _decode(content, path, img_channels, own_values=False):
    """`decode_image`, with a `UserError` that names the file."""
    try:
        img, values = decode_image(content, img_channels, own_values)
    except cv2.error as e:
        raise UserError(f"Image {path} cannot be decoded: {e}") from e
    if img is None:
        raise UserError(f"Image {path} is broken or of a format that OpenCV does not read.")
    return img, values


def read_content(path: str | os.PathLike[str], what: str) -> bytes:
    """A file's bytes; UserError where it cannot be read. what: "Image" or "Label"."""
    try:
        # cv2.imread cannot open every path on every system; Python can.
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as e:
        raise UserError(f"{what} {path} does not exist.") from e
    except OSError as e:
        raise UserError(f"{what} {path} cannot be opened: {e.strerror or e}.") from e


def load_npy(path: str | os.PathLike[str], what: str, mapped: bool = False) -> np.ndarray:
    """The array of a ``.npy`` file.

    Args:
        path (str): The file.
        what (str): "image" or "label", for errors.
        mapped (bool): Leave it in the file; it is read where it is looked at.

    Raises:
        UserError: The file is missing, damaged, or holds no numbers.
    """
    try:
        # Mapped first: that compares the size in the header with the file's.
        array = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        array = array if mapped else np.array(array)
    except FileNotFoundError as e:
        raise UserError(f"{what.capitalize()} {path} does not exist.") from e
    except Exception as e:  # a damaged header ends in errors of Python's own parser
        raise UserError(f"{what.capitalize()} {path} cannot be read: {e}") from e
    if array.dtype.kind not in "buif":
        raise UserError(f"{what.capitalize()} {path} holds {array.dtype}, expected numbers.")
    return array

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
from paddleseg_deeplab.transforms.reading import exif, limit, tiff
from paddleseg_deeplab.transforms.reading.values import check_values, nodata_mask
from paddleseg_deeplab.utils.errors import UserError

_SWAPS = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
# Above this share of its rows, a PNG takes as long as the whole, which has no way around then.
_MOST_ROWS = 0.9
_DEEP = 257  # the number of a 16-bit file that becomes 1, so that 65535 becomes 255
# Radiance HDR, PFM, OpenEXR: their white is 1.
_FLOAT_FORMATS = (b"#?RGBE", b"#?RADIANCE", b"PF", b"Pf", b"\x76\x2f\x31\x01")
_AVIF = b"ftypavi"  # OpenCV gives its 10 and 12 bits as they are, far from the range of 16
_looked_at: set[int] = set()  # mapped files whose values are known to be good


class ArraySource:
    """A decoded image.

    Args:
        array (np.ndarray): [H, W, C] of numbers; it is not changed.
        swap (bool): Three or four channels are BGR or BGRA and wanted as RGB or RGBA.
        unit (float): The value that becomes 1.
        void (np.ndarray, optional): bool [H, W], pixels without data, which become 0; None where
            there are none.
    """

    def __init__(
        self,
        array: np.ndarray,
        swap: bool = False,
        unit: float = 1,
        void: np.ndarray | None = None,
    ) -> None:
        self.void = void
        self._array = np.asarray(array)  # not a memmap, which would hand its class on
        self._swap = _SWAPS.get(array.shape[2]) if swap else None
        self._unit = unit
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
        if self._unit != 1:
            part /= np.float32(self._unit)  # what is a whole number of 8 bits stays one
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
        decode (callable): Decodes a file's bytes: uint8 or uint16, [H, W] or BGR [H, W, 3].
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
        rows = self._rows(top + size[0])
        unit = _DEEP if rows.dtype == np.uint16 else 1
        return ArraySource(rows, self._to_rgb, unit).window(top, left, size)

    def whole(self) -> np.ndarray:
        """float32 [H, W, C] that belongs to the caller."""
        return self.window(0, 0, self.shape[:2])

    def _rows(self, count):
        """[at least `count`, W, C], in OpenCV's order of channels."""
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
    return open_content(content, path, img_channels, to_rgb, whole, nodata)


def open_content(
    content: bytes,
    name: str,
    img_channels: int = 3,
    to_rgb: bool = True,
    whole: bool = False,
    nodata: float | None = None,
) -> ArraySource | PngSource:
    """As `open_image`, of the bytes of a file of that `name`, which is not ``.npy``."""
    try:
        orientation = limit.check(content)
    except UserError as e:
        raise UserError(f"Image {name} {e}.") from e

    file = None
    if nodata is None and img_channels in (1, 3) and (kernels.reads_png_fast() or not whole):
        file = kernels.parse_png(content)
    if file is not None:

        def decode(part):
            return _decode(part, name, img_channels)

        return PngSource(file, content, decode, img_channels, to_rgb)
    img = _with_channels(name, _decode(content, name, img_channels, orientation), img_channels)
    return array_source(img, f"Image {name}", to_rgb, unit_of(img, content), nodata=nodata)


def unit_of(img: np.ndarray, content: bytes) -> float:
    """The number in an image file that becomes 1.

    Args:
        img: As `decode_image` gives it.
        content: The file.

    Returns:
        257 for 16 bits; 1/255 in formats of floats whose white is 1; else 1.
    """
    if img.dtype == np.uint16:
        return _DEEP
    return 1 / 255 if content.startswith(_FLOAT_FORMATS) else 1


def array_source(
    img: np.ndarray,
    name: str,
    swap: bool = False,
    unit: float = 1,
    *,
    nodata: float | None = None,
) -> ArraySource:
    """An `ArraySource` whose values have been looked at.

    Args:
        img (np.ndarray): [H, W, C].
        name (str): For the message.
        swap, unit: As for `ArraySource`.
        nodata (float, optional): As for `open_image`.

    Raises:
        UserError: Values are NaN, infinite or beyond 1e6.
    """
    void = nodata_mask(img, nodata)
    check_values(img, name, void)
    return ArraySource(img, swap, unit, void)


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


def decode_image(content: bytes, img_channels: int, orientation: int = 1) -> np.ndarray | None:
    """Decodes an image file.

    Args:
        content (bytes): The file.
        img_channels (int): Channels wanted.
        orientation (int): Of its EXIF field, see `limit.check`; of a TIFF it is known here.

    Returns:
        np.ndarray: The file's own numbers, [H, W] or [H, W, C], three and four channels in
        OpenCV's order; see `unit_of`. Pictures of 8 and 16 bits have the channels wanted if these
        are 1 or 3, others what the file holds. None where OpenCV cannot read it.

    Raises:
        cv2.error: OpenCV cannot read it.
        UserError: Nor can what reads TIFF files; the text is the rest of a sentence.
    """
    header = tiff.look(content)
    if header is not None and not header.opencv_reads(img_channels):
        return tiff.read(content, header, img_channels)
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(img_channels, cv2.IMREAD_UNCHANGED)
    if header is not None and header.is_wide:
        flags = cv2.IMREAD_UNCHANGED
    elif flags != cv2.IMREAD_UNCHANGED:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # OpenCV obeys it in some formats and not in others
        flags |= 0 if content[4:11] == _AVIF else cv2.IMREAD_ANYDEPTH
    img = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    # OpenCV turns every TIFF itself.
    return img if img is None or header is not None else exif.turn(img, orientation)


def _decode(content, path, img_channels, orientation=1):
    """`decode_image`, with a `UserError` that names the file."""
    try:
        img = decode_image(content, img_channels, orientation)
    except UserError as e:
        raise UserError(f"Image {path} {e}{'' if str(e).endswith('.') else '.'}") from e
    except cv2.error as e:
        raise UserError(f"Image {path} cannot be decoded: {e}") from e
    if img is None:
        raise UserError(f"Image {path} is broken or of a format that OpenCV does not read.")
    return img


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

# SPDX-License-Identifier: Apache-2.0
"""What one image and its label hold, and what is wrong with the files themselves.

OpenCV before version 5 decodes the rest of a truncated JPEG as grey without a word, so the files'
own structure is walked too: a JPEG must reach its end marker, a PNG its last chunk with every
checksum right.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re

import cv2
import numpy as np
from PIL import UnidentifiedImageError

from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.transforms.reading import limit, source
from paddleseg_deeplab.transforms.reading.files import label_pixels
from paddleseg_deeplab.transforms.reading.values import describe_faults, nodata_mask
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.pictures import png_chunks

_MOST_VALUES = 4096  # distinct values of a label that are counted one by one
# In the coded data of a JPEG, FF is followed by 00 or a restart; anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Truncated(Exception):
    """The file ends before its picture does."""


class Unreadable(Exception):
    """The file is no picture, or a damaged one."""


class NoClassIds(Exception):
    """The label holds something else than one whole number a pixel; args: (kind, text)."""


@dataclasses.dataclass
class PairFacts:
    """What a pair of files holds.

    Attributes:
        problems (list): (kind, path, detail) of each fault of the files themselves.
        size (tuple): (width, height) of the image as training sees it, or None.
        mode (str): Channels in the file, such as "RGB", "L", "RGBA"; "" where not known.
        image_hash, label_hash (bytes): Of the decoded pixels, or None.
        values (dict): Pixels of each value in the label file, or None without a readable label.
        other_values (int): Pixels of values beyond those counted one by one.
        label_size (tuple): (width, height) of the label, or None.
        nodata (int): Pixels of the image without data.
        nodata_values (dict): Pixels of each value in the label file where the image has no data.
        example (str): A value of the image that is not finite or too large, as YAML has it; "".
    """

    problems: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    size: tuple[int, int] | None = None
    mode: str = ""
    image_hash: bytes | None = None
    label_hash: bytes | None = None
    values: dict[int, int] | None = None
    other_values: int = 0
    label_size: tuple[int, int] | None = None
    nodata: int = 0
    nodata_values: dict[int, int] = dataclasses.field(default_factory=dict)
    example: str = ""


def check_jpeg(content: bytes) -> None:
    """Walks a JPEG's markers.

    Raises:
        Truncated: It does not reach its end marker.
    """
    place, end = 2, len(content)
    while place + 1 < end:
        if content[place] != 0xFF:  # after a segment there is a marker, and before it padding
            place = content.find(b"\xff", place)
            if place < 0:
                break
        marker = content[place + 1]
        if marker == 0xD9:
            return
        if marker == 0xFF:
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
            if marker == 0xDA:  # coded data follows
                found = _MARKER.search(content, place)
                if found is None:
                    break
                place = found.start()
    raise Truncated(f"a JPEG of {end} bytes without an end marker")


def check_png(content: bytes) -> None:
    """Walks a PNG's chunks and their checksums.

    Raises:
        Truncated: It ends before its last chunk.
        Unreadable: A checksum is wrong.
    """
    try:
        for _ in png_chunks.walk(content):
            pass
    except EOFError as error:
        raise Truncated(str(error)) from error
    except ValueError as error:
        raise Unreadable(f"damaged: {error}") from error


def _check_structure(content):
    if not content:
        raise Unreadable("an empty file")
    try:
        limit.check(content)
    except UserError as error:
        raise Unreadable(str(error)) from error
    if content.startswith(b"\xff\xd8"):
        check_jpeg(content)
    elif content.startswith(png_chunks.SIGNATURE):
        check_png(content)
    else:
        return False
    return True


def _strict_load(content):
    """Pillow's own full decoding, for formats whose structure is not walked here."""
    try:
        with limit.open_image(content) as file:
            file.load()
    except OSError as error:
        if "truncated" in str(error):
            raise Truncated(str(error)) from error
        # Others, such as a format that Pillow does not know, are for OpenCV to judge.
    except Exception:  # as above; decoders raise anything on damaged files
        pass


def _header(content):
    """(mode, whether EXIF turns it) of an image; ("", False) where Pillow does not know it."""
    try:
        with limit.open_image(content) as file:
            return file.mode, limit.is_turned(file)
    except Exception:  # decoders raise anything on damaged files
        return "", False


def _load_npy(content):
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except EOFError as error:
        raise Truncated("an array file that ends early") from error
    except Exception as error:  # a damaged header ends in errors of Python's own parser
        text = " ".join(str(error).split())
        # NumPy's words for too few bytes after the header.
        kind = Truncated if "cannot reshape" in text or "EOF" in text else Unreadable
        raise kind(text) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise Unreadable("no array of numbers")
    return array


def decode_image(
    content: bytes, img_channels: int, is_array: bool = False, own_values: bool = False
) -> tuple[np.ndarray, np.ndarray, str, bool]:
    """Decodes an image as training does.

    Args:
        content (bytes): The file.
        img_channels (int): Channels that training asks for.
        is_array (bool): It is a .npy file.
        own_values (bool): See `source.decode_image`.

    Returns:
        tuple: the array [H, W] or [H, W, C]; its values in the file, likewise; the mode in the
        file; whether EXIF swaps its sides.

    Raises:
        Truncated, Unreadable: See there.
    """
    if is_array:
        array = _load_npy(content)
        if array.ndim not in (2, 3) or not array.size:
            raise Unreadable(f"an array of the shape {array.shape}")
        return array, array, str(1 if array.ndim == 2 else array.shape[2]), False
    if not _check_structure(content):
        _strict_load(content)
    mode, turned = _header(content)
    try:
        array, values = source.decode_image(content, img_channels, own_values)
    except (cv2.error, MemoryError) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    if array is None:
        raise Unreadable("broken, or of a format that OpenCV does not read")
    return array, array if values is None else values, mode, turned


def decode_label(content: bytes, is_array: bool = False) -> np.ndarray:
    """Decodes a label as training does.

    Returns:
        numpy.ndarray: integers [H, W].

    Raises:
        Truncated, Unreadable: See there.
        NoClassIds: Colours, fractions or several channels.
    """
    if is_array:
        label, mode = _load_npy(content), "array"
        if label.ndim != 2:
            raise NoClassIds("label_not_ids", f"an array of the shape {label.shape}")
    else:
        _check_structure(content)
        try:
            label, mode = label_pixels(content)
        except UnidentifiedImageError as error:
            raise Unreadable("of a format that Pillow does not read") from error
        except Exception as error:  # decoders raise anything on damaged files
            kind = Truncated if "truncated" in str(error) else Unreadable
            raise kind(" ".join(str(error).split())) from error
    if label.ndim == 3:
        distinct = len(np.unique(label.reshape(-1, label.shape[2]), axis=0))
        raise NoClassIds("label_colours", f"mode {mode}, {distinct} colours")
    if label.dtype.kind not in "bui":
        raise NoClassIds("label_not_ids", f"{label.dtype} values")
    return label.astype(np.uint8) if label.dtype == np.bool_ else label


def pixel_hash(array: np.ndarray) -> bytes:
    """16 bytes that are equal for equal shape, type and pixels."""
    # SHA-256, since processors have instructions for it: 2.5 times as fast as BLAKE2 here.
    digest = hashlib.sha256(f"{array.shape}{array.dtype.str}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()[:16]


def count_values(label: np.ndarray) -> tuple[dict[int, int], int]:
    """({value: pixels}, pixels of the values beyond the first few thousand) of a label."""
    if label.dtype == np.uint8:
        counts = np.bincount(label.reshape(-1), minlength=256)
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist())), 0
    values, counts = np.unique(label, return_counts=True)
    kept = dict(zip(values[:_MOST_VALUES].tolist(), counts[:_MOST_VALUES].tolist()))
    return kept, int(counts[_MOST_VALUES:].sum())


def _content(path, what, facts):
    """The bytes of a file, or None with the fault noted."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        facts.problems.append((f"{what}_missing", path, ""))
    except OSError as error:
        facts.problems.append((f"{what}_unreadable", path, error.strerror or str(error)))
    return None


def _read_image(facts, path, img_channels, nodata):
    """Notes what an image holds; returns where it has no data, bool [H, W] or None.

    Raises:
        Truncated, Unreadable: See there; `_noting` notes them.
    """
    content = _content(path, "image", facts)
    if content is None:
        return None
    array, values, facts.mode, turned = decode_image(
        content, img_channels, path.lower().endswith(".npy"), nodata is not None
    )
    facts.size = (array.shape[1], array.shape[0])
    facts.image_hash = pixel_hash(array)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels != img_channels:
        facts.problems.append(
            ("image_channels", path, f"{channels} channels, img_channels is {img_channels}")
        )
    if turned:
        facts.mode += ", turned by EXIF"
    return _look_at_values(facts, path, values, nodata)


def _look_at_values(facts, path, values, nodata):
    mask = nodata_mask(values, nodata)
    facts.nodata = 0 if mask is None else int(mask.sum())
    text, facts.example = describe_faults(values, mask)
    if text:
        facts.problems.append(("image_values", path, text))
    return mask


def _read_label(facts, path, nodata):
    """Notes what a label holds, as a whole and where `nodata`, bool [H, W] or None, is True.

    Raises:
        Truncated, Unreadable, NoClassIds: See there; `_noting` notes them.
    """
    content = _content(path, "label", facts)
    if content is None:
        return
    label = decode_label(content, path.lower().endswith(".npy"))
    facts.label_size = (label.shape[1], label.shape[0])
    facts.label_hash = pixel_hash(label)
    facts.values, facts.other_values = count_values(label)
    if nodata is not None and nodata.shape == label.shape:
        facts.nodata_values = count_values(label[nodata])[0]


def read_pair(
    image: str | os.PathLike[str] | None,
    label: str | os.PathLike[str] | None,
    img_channels: int,
    nodata: float | None = None,
) -> PairFacts:
    """Reads an image and its label, each once.

    Args:
        image, label (str): Paths; None is left out.
        img_channels (int): Channels that training asks for.
        nodata (float): Of the dataset.

    Returns:
        PairFacts: What they hold; no exception says what is wrong with a file.
    """
    facts, mask = PairFacts(), None
    if image is not None:
        with _noting(facts, "image", image):
            mask = _read_image(facts, os.fspath(image), img_channels, nodata)
    if label is not None:
        with _noting(facts, "label", label):
            _read_label(facts, os.fspath(label), mask)
    _compare_sizes(facts, image, label)
    return facts


def _compare_sizes(facts, image, label):
    if facts.size is None or facts.label_size is None or facts.size == facts.label_size:
        return
    text = "image {}x{}, label {}x{}".format(*facts.size, *facts.label_size)
    if facts.mode.endswith("EXIF") and facts.size == facts.label_size[::-1]:
        text += " (the image is turned by its EXIF orientation, the label is not)"
    facts.problems.append(("size_mismatch", str(label or image), text))


@contextlib.contextmanager
def _noting(facts, what, path):
    """Whatever a file or a dataset's own code raises is a fault of that file: the rest goes on."""
    try:
        yield
    except NoClassIds as error:
        kind, text = error.args
        facts.problems.append((kind, str(path), text))
    except Truncated as error:
        facts.problems.append((f"{what}_truncated", str(path), str(error)))
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        facts.problems.append((f"{what}_unreadable", str(path), text))


def read_sample(dataset: BaseDataset, index: int) -> PairFacts:
    """As `read_pair`, for a dataset that makes or loads its samples by itself."""
    facts, name = PairFacts(), str(dataset.file_list[index][0])
    with _noting(facts, "image", name):
        array = dataset.load_image(index)
        if array is not None:
            facts.size, facts.image_hash = (array.shape[1], array.shape[0]), pixel_hash(array)
            _look_at_values(facts, name, array, None)
    with _noting(facts, "label", name):
        label = dataset.load_label(index)
        if label is not None:
            facts.label_size, facts.label_hash = (label.shape[1], label.shape[0]), pixel_hash(label)
            facts.values, facts.other_values = count_values(label)
    _compare_sizes(facts, name, name)
    return facts

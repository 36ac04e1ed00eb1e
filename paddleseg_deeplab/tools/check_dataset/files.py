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
from paddleseg_deeplab.tools.check_dataset import turned
from paddleseg_deeplab.transforms.reading import exif, labels, limit, source, tiff
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
        peak (float): The greatest value of an image of other numbers than 8 bits, as training sees
            it, or None.
        orientation (int): Of the image's EXIF field.
        fit (turned.Fit): How the two fit where one is turned and the other not likewise, or None.
        palette (dict): {value: (red, green, blue)} of the values in a palette label, or None.
        others (int): See `labels.LabelPixels`.
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
    peak: float | None = None
    orientation: int = 1
    fit: turned.Fit | None = None
    palette: dict[int, tuple[int, ...]] | None = None
    others: int | None = None


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
    """(mode, orientation) of an image, as Pillow names it; a TIFF that it does not know tells."""
    try:
        with limit.open_image(content) as file:
            return file.mode, exif.orientation(content, file)
    except Exception:  # decoders raise anything on damaged files
        header = tiff.look(content)
        return ("", 1) if header is None else (str(header), header.orientation)


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
    content: bytes, img_channels: int, is_array: bool = False
) -> tuple[np.ndarray, float, str, int]:
    """Decodes an image as training does.

    Args:
        content (bytes): The file.
        img_channels (int): Channels that training asks for.
        is_array (bool): It is a .npy file.

    Returns:
        tuple: the file's own numbers [H, W] or [H, W, C]; which of them becomes 1; the mode in the
        file; its orientation.

    Raises:
        Truncated, Unreadable: See there.
    """
    if is_array:
        array = _load_npy(content)
        if array.ndim not in (2, 3) or not array.size:
            raise Unreadable(f"an array of the shape {array.shape}")
        return array, 1, str(1 if array.ndim == 2 else array.shape[2]), 1
    if not _check_structure(content):
        _strict_load(content)
    mode, orientation = _header(content)
    try:
        array = source.decode_image(content, img_channels, orientation)
    except (cv2.error, MemoryError) as error:
        raise Unreadable(" ".join(str(error).split())) from error
    if array is None:
        raise Unreadable("broken, or of a format that OpenCV does not read")
    return array, source.unit_of(array, content), mode, orientation


def decode_label(content: bytes, is_array: bool = False) -> labels.LabelPixels:
    """Decodes a label as training does.

    Returns:
        labels.LabelPixels: Its numbers are integers [H, W].

    Raises:
        Truncated, Unreadable: See there.
        NoClassIds: Colours, fractions or several channels.
    """
    if is_array:
        label = labels.LabelPixels(_load_npy(content), "array")
        if label.numbers.ndim != 2:
            raise NoClassIds("label_not_ids", f"an array of the shape {label.numbers.shape}")
    else:
        _check_structure(content)
        try:
            label = labels.decode_label(content)
        except UnidentifiedImageError as error:
            raise Unreadable("of a format that Pillow does not read") from error
        except Exception as error:  # decoders raise anything on damaged files
            kind = Truncated if "truncated" in str(error) else Unreadable
            raise kind(" ".join(str(error).split())) from error
    numbers = label.numbers
    if numbers.ndim == 3:
        distinct = len(np.unique(numbers.reshape(-1, numbers.shape[2]), axis=0))
        raise NoClassIds("label_colours", f"mode {label.mode}, {distinct} colours")
    if numbers.dtype.kind not in "bui":
        raise NoClassIds("label_not_ids", f"{numbers.dtype} values")
    if numbers.dtype == np.bool_:
        label = dataclasses.replace(label, numbers=numbers.astype(np.uint8))
    return label


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
    """Notes what an image holds.

    Returns:
        tuple: its array, and where it has no data, bool [H, W]; or None for either.

    Raises:
        Truncated, Unreadable: See there; `_noting` notes them.
    """
    content = _content(path, "image", facts)
    if content is None:
        return None, None
    array, unit, facts.mode, facts.orientation = decode_image(
        content, img_channels, path.lower().endswith(".npy")
    )
    facts.size = (array.shape[1], array.shape[0])
    facts.image_hash = pixel_hash(array)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels != img_channels:
        facts.problems.append(
            ("image_channels", path, f"{channels} channels, img_channels is {img_channels}")
        )
    mask = _look_at_values(facts, path, array, nodata)
    if array.dtype != np.uint8 and not facts.example:
        data = array if mask is None else array[~mask]
        facts.peak = float(data.max(initial=0)) / unit
    return array, mask


def _look_at_values(facts, path, values, nodata):
    mask = nodata_mask(values, nodata)
    facts.nodata = 0 if mask is None else int(mask.sum())
    text, facts.example = describe_faults(values, mask)
    if text:
        facts.problems.append(("image_values", path, text))
    return mask


def _read_label(facts, path, image, nodata):
    """Notes what a label holds, as a whole and where `nodata`, bool [H, W] or None, is True.

    Raises:
        Truncated, Unreadable, NoClassIds: See there; `_noting` notes them.
    """
    content = _content(path, "label", facts)
    if content is None:
        return
    label = decode_label(content, path.lower().endswith(".npy"))
    numbers = label.numbers
    facts.label_size = (numbers.shape[1], numbers.shape[0])
    facts.label_hash = pixel_hash(numbers)
    facts.values, facts.other_values = count_values(numbers)
    facts.others = label.others
    if label.palette is not None:
        facts.palette = {value: tuple(label.palette[value].tolist()) for value in facts.values}
    if nodata is not None and nodata.shape == numbers.shape:
        facts.nodata_values = count_values(numbers[nodata])[0]
    if image is not None:
        facts.fit = turned.compare(image, numbers, (facts.orientation, label.orientation))


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
    facts, array, mask = PairFacts(), None, None
    if image is not None:
        with _noting(facts, "image", image):
            array, mask = _read_image(facts, os.fspath(image), img_channels, nodata)
    if label is not None:
        with _noting(facts, "label", label):
            _read_label(facts, os.fspath(label), array, mask)
    _compare_sizes(facts, image, label)
    return facts


def _compare_sizes(facts, image, label):
    if facts.size is None or facts.label_size is None or facts.size == facts.label_size:
        return
    text = "image {}x{}, label {}x{}".format(*facts.size, *facts.label_size)
    if facts.fit is not None and facts.size == facts.label_size[::-1]:
        which = ("image", "label") if exif.swaps_sides(facts.fit.image) else ("label", "image")
        text += " (the {} is turned by its EXIF orientation, the {} is not)".format(*which)
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

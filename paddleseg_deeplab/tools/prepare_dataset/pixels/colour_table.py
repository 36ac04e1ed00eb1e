# SPDX-License-Identifier: Apache-2.0
"""Which colour of a mask is which class: tables of colours, and masks turned by them."""

import collections
import re
from collections.abc import Iterable, Mapping

import numpy as np

from paddleseg_deeplab.datasets import CamVid, Cityscapes, PascalVOC
from paddleseg_deeplab.transforms.reading import exif, limit
from paddleseg_deeplab.transforms.reading.source import read_content
from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.files.written import read_text
from paddleseg_deeplab.utils.visualize import VOID_COLOR

# Data sets whose masks come in colours: the data set, and its colour for void.
KNOWN = {
    "voc": (PascalVOC, VOID_COLOR),
    "cityscapes": (Cityscapes, (0, 0, 0)),
    "camvid": (CamVid, (0, 0, 0)),
}
VOID_NAME = "__ignore__"  # labelme's
_SPLIT = r"\s*[\s,;]\s*"
_NUMBERS = _SPLIT.join([r"(\d{1,3})"] * 3)
_LAST = re.compile(rf"^(.+?){_SPLIT}{_NUMBERS}[\s,;]*$")
_FIRST = re.compile(rf"^{_NUMBERS}{_SPLIT}(.+)$")
_CVAT = re.compile(rf"^(.*?):{_NUMBERS}:.*$")
_HEX = re.compile(r"#([0-9a-fA-F]{6})\b")


def code_of(colour: Iterable[int | str]) -> int:
    """One number for a colour: 0xRRGGBB."""
    red, green, blue = map(int, colour)
    return red << 16 | green << 8 | blue


def told(code: int) -> str:
    """A colour as people write it."""
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


def _parse(line: str) -> tuple[str, tuple[int, ...]] | None:
    line = _HEX.sub(lambda m: " ".join(str(byte) for byte in bytes.fromhex(m[1])), line)
    for pattern, place in ((_CVAT, 0), (_LAST, 0), (_FIRST, 3)):
        match = pattern.match(line)
        if match:
            parts = list(match.groups())
            name = parts.pop(place)
            return name.strip(" \"'"), tuple(map(int, parts))
    return None


def read_table(source: str) -> dict[int, str]:
    """{colour: name} in the order of a file, or of a data set that is known.

    Args:
        source (str): A name of `KNOWN`, or a text file with a name and three numbers a line: CVAT's
            labelmap.txt (``road:128,64,128::``), ``name,r,g,b``, ``r g b name``, ``name #rrggbb``.

    Raises:
        UserError: The file cannot be read, a line is of another form, or a colour comes twice.
    """
    if source.lower() in KNOWN:
        dataset, void = KNOWN[source.lower()]
        classes = dict(zip(map(code_of, dataset.PALETTE), dataset.CLASS_NAMES))
        return {**classes, code_of(void): VOID_NAME}
    table: dict[int, str] = {}
    rows = enumerate(read_text(source).splitlines(), 1)
    lines = [(k, line.strip()) for k, line in rows if line.strip()]
    lines = [(k, line) for k, line in lines if not line.startswith("#") or _HEX.match(line)]
    for place, (number, line) in enumerate(lines):
        parsed = _parse(line)
        if parsed is None and place == 0 and not any(map(str.isdigit, line)):
            continue  # the head of a table
        if parsed is None or not parsed[0] or max(parsed[1]) > 255:
            raise UserError(
                f"{source}:{number}: a line must hold a name and three numbers 0 to 255, such as "
                f"'road:128,64,128::' or 'road,128,64,128', not {line!r}."
            )
        name, code = parsed[0], code_of(parsed[1])
        if table.setdefault(code, name) != name:
            raise UserError(
                f"{source}:{number}: the colour {told(code)} is both {table[code]!r} and {name!r}."
            )
    if not table:
        raise UserError(f"{source} names no colours.")
    return table


def read_codes(path: str) -> np.ndarray:
    """The colours of a mask, as `code_of` numbers them: int32 [H, W]; transparency is dropped.

    Raises:
        UserError: The file is missing, broken, or of more than 8 bits.
    """
    content = read_content(path, "Label")
    try:
        with limit.open_image(content) as file:
            if file.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
                raise UserError(f"is of the kind {file.mode}, which holds no colours of 8 bits")
            number = exif.left_by_pillow(content, file)
            colours = exif.turn(np.asarray(file.convert("RGB"), np.int32), number)
    except UserError as error:
        raise UserError(f"Label {path} {error}.") from error
    except Exception as error:  # decoders raise anything over damaged files
        raise UserError(f"Label {path} cannot be read: {error}") from error
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def count_codes(codes: np.ndarray) -> collections.Counter[int]:
    """{colour: pixels}."""
    values, counts = np.unique(codes, return_counts=True)
    return collections.Counter(dict(zip(values.tolist(), counts.tolist())))


def to_classes(codes: np.ndarray, numbers: Mapping[int, int], other: int | None) -> np.ndarray:
    """Classes of a mask's colours, exactly: uint8 [H, W].

    Args:
        codes (np.ndarray): As `read_codes` gives them.
        numbers (Mapping): {colour: class}.
        other (int): Of colours that it lacks; None refuses them.

    Raises:
        ValueError: Colours that it lacks; they are listed with their pixels.
    """
    known = np.array(sorted(numbers), np.int32)
    classes = np.array([numbers[code] for code in sorted(numbers)], np.uint8)
    place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    labels, strange = classes[place], known[place] != codes
    if strange.any():
        if other is None:
            counts = count_codes(codes[strange]).most_common()
            listed = first_few([f"{told(c)} ({n} pixels)" for c, n in counts], 8)
            raise ValueError(f"holds colours that are no class: {listed}")
        labels[strange] = other
    return labels

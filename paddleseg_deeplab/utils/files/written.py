# SPDX-License-Identifier: Apache-2.0
"""Text files and paths that people and other programs wrote: what they can only mean."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator

from paddleseg_deeplab.utils.errors import UserError

_WINDOWS = re.compile(r"^[A-Za-z]:[\\/]|^\\\\")


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file: UTF-8 with or without a byte-order mark, or UTF-16 with one (Windows).

    Raises:
        UserError: It cannot be read, or is of another encoding; the text names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error}). Save it as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"{path} holds zero bytes, as UTF-16 text does. Save it as UTF-8.")
    return text


def same(name: str) -> str:
    """A name as names are compared: accents composed, which macOS takes apart."""
    return unicodedata.normalize("NFC", name)


def expand_home(path: str) -> str:
    """The path with `~` as the home folder, which a shell does not replace everywhere."""
    return os.path.expanduser(path) if path.startswith("~") and not os.path.exists(path) else path


def readings(written: str, root: str) -> Iterator[tuple[str, str]]:
    """What a path may mean that is not there as it was written, the likeliest first.

    Args:
        written: As it stands in the list.
        root: What relative paths start from.

    Yields:
        (path, how it was read).
    """
    slashes, seen = written.replace("\\", "/"), set()
    ways = [(written, "as it is"), (slashes, "with / for \\")]
    if root:  # else nothing says where a path without its slash would start
        ways.append((slashes.lstrip("/"), "without the / at its beginning"))
    for name, how in (*ways, (os.path.expanduser(slashes), "with ~ as the home folder")):
        # macOS takes accents apart, others do not.
        for form in (None,) if name.isascii() else (None, "NFC", "NFD"):
            other = unicodedata.normalize(form, name) if form else name
            if other not in seen:
                seen.add(other)
                told = f"with accents as {form}" if form else how
                yield os.path.normpath(os.path.join(root, other)), told


def find(written: str, root: str) -> tuple[str, str] | None:
    """The file that a path can only mean, and how it was read; None where there is none."""
    return next((pair for pair in readings(written, root) if os.path.isfile(pair[0])), None)


def meant(path: str) -> str:
    """The file or folder that a path can only mean; the path itself where there is none."""
    if os.path.lexists(path):
        return path
    return next((p for p, _ in readings(path, "") if os.path.exists(p)), path)


def hint(path: str) -> str:
    """Why a file may be missing: a sentence after a blank, or "" where nothing is known."""
    folder, name = os.path.split(path)
    folder = folder or os.curdir
    if _WINDOWS.match(name) or _WINDOWS.match(path):
        return " It is a path of a Windows machine: write paths from dataset_root on."
    if not os.path.isdir(folder):
        while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
            folder, name = os.path.split(folder)
        return f" {folder} has no folder {name}."
    names = sorted(os.listdir(folder))
    stem = os.path.splitext(name)[0].casefold()
    for test, why in (
        (lambda other: other.casefold() == name.casefold(), "letter case counts"),
        (lambda other: os.path.splitext(other)[0].casefold() == stem, "the ending differs"),
    ):
        other = next(filter(test, names), None)
        if other is not None:
            return f" There is {os.path.join(folder, other)}: {why}."
    return ""

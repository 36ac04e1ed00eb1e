# SPDX-License-Identifier: Apache-2.0
"""Which files a folder holds: the one search for images, masks and annotations."""

import collections
import dataclasses
import os
from collections.abc import Iterable, Sequence

from paddleseg_deeplab.utils.logger import logger

# What OpenCV reads. GIF and AVIF need a newer one; an older one names the file when it is read.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".apng", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
ARRAY_EXTENSION = ".npy"
# Pictures that nothing here reads; they are named, since somebody may wait for their results.
UNREAD_EXTENSIONS = (
    *(".tga", ".heic", ".heif", ".jxl", ".psd", ".pcx", ".svg", ".ico", ".exr", ".hdr", ".dds"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm", ".eps"),
)


@dataclasses.dataclass
class LeftOut:
    """What a search passed over.

    Attributes:
        unread (collections.Counter): Ending of pictures that nothing here reads: how many.
        hidden (int): Pictures and folders whose names begin with a point, and `__MACOSX`.
        closed (list[str]): Folders that may not be looked into.
    """

    unread: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    hidden: int = 0
    closed: list[str] = dataclasses.field(default_factory=list)

    def tell(self, folder: str) -> None:
        """Logs a line where anything was left out."""
        parts = []
        if self.unread:
            counts = ", ".join(f"{count} {end}" for end, count in sorted(self.unread.items()))
            parts.append(f"{counts} (not read here: convert them to PNG)")
        if self.hidden:
            parts.append(f"{self.hidden} hidden (names that begin with a point, __MACOSX)")
        if self.closed:
            parts.append(f"{len(self.closed)} folders without permission, such as {self.closed[0]}")
        if parts:
            logger.info("%s: left out: %s.", folder, "; ".join(parts))


def is_hidden(name: str) -> bool:
    """Whether a name is a system's or a program's own: `.ipynb_checkpoints`, `._x.jpg` of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def walk(
    folder: str | os.PathLike[str],
    suffixes: Sequence[str] = (),
    but: Iterable[str] = (),
    left_out: LeftOut | None = None,
) -> list[str]:
    """Files below a folder: paths inside it, with forward slashes, sorted.

    Hidden ones are left out. Links to folders are followed, each folder once, so that a link in a
    circle ends and no file comes twice.

    Args:
        folder: Searched with its sub folders.
        suffixes: Endings wanted, lower case; letter case does not matter. None given: all files.
        but: Folders that are left out.
        left_out: Gets what was passed over.
    """
    left_out = LeftOut() if left_out is None else left_out
    seen = {os.path.realpath(each) for each in but}
    # Links wait until all real folders are done, so that files keep their own path.
    found, ahead = [], [""]
    links: list[str] = []
    while ahead or links:
        inside = ahead.pop() if ahead else links.pop(0)
        place = os.path.join(folder, inside)
        real = os.path.realpath(place)
        if inside and real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            left_out.closed.append(place)
            continue
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            is_folder, name = entry.is_dir(), entry.name.lower()
            if is_hidden(entry.name):
                left_out.hidden += is_folder or name.endswith(IMAGE_EXTENSIONS)
            elif is_folder:
                (links if entry.is_symlink() else ahead).append(path)
            elif not suffixes or name.endswith(tuple(suffixes)):
                found.append(path)
            elif name.endswith(UNREAD_EXTENSIONS):
                left_out.unread[os.path.splitext(name)[1]] += 1
    return sorted(found)

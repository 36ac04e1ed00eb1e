# SPDX-License-Identifier: Apache-2.0
"""Folders that are there whole or not at all, and that can tell when they are damaged.

A folder is written beside its place under another name, every file is brought to the disk, a
manifest of sizes and checksums is added, and the folder is renamed. Whatever ends the process, and
whenever, the place holds the old folder or the new one.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

MANIFEST = "manifest.json"
# On the way in (or out), and set aside while a folder of the same name takes the place.
_NEW, _OLD = ".tmp", ".old"
_LEFT = re.compile(r"^(iter_\d+|best_model)\.(tmp|old)$")


class NotWritten(UserError):
    """The disk did not take it, most often because it is full; what was there before still is."""


@contextlib.contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder to write into, which takes the place of ``folder`` at the end.

    Args:
        folder (str): The place; a folder that is there is replaced whole.

    Yields:
        Path: Where to write. Only files, no folders.

    Raises:
        NotWritten: An `OSError` came up; nothing of the new folder is left.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + _NEW)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _seal(temporary)
        _take_place(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotWritten(_not_written(folder, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a small file, which holds the old text or the new one at any moment.

    Raises:
        NotWritten: An `OSError` came up; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(path.name + _NEW)
    try:
        temporary.write_text(text, encoding="utf-8")
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise NotWritten(_not_written(path, error)) from error


def has_manifest(folder: str | Path) -> bool:
    """Whether a folder can be checked; those of PaddleSeg cannot."""
    return (Path(folder) / MANIFEST).is_file()


def fault(folder: str | Path) -> str | None:
    """What is wrong with a folder that `writing` made, or None if its files are as written.

    Files that the manifest does not name are not looked at.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        files = [(str(name), int(size), str(digest)) for name, (size, digest) in manifest.items()]
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}, so it cannot be checked"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{path} is damaged ({error})"
    if not files:
        return f"{path} is damaged (it names no files)"
    for name, size, _ in files:  # sizes of all first: that is quick
        file = folder / name
        if file.parent != folder or not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} is damaged ({file.stat().st_size} bytes, {size} were written)"
    for name, _, digest in files:
        try:
            found = _sha256(folder / name)
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror or error})"
        if found != digest:
            return f"{folder / name} is damaged (its checksum is not the one written)"
    return None


def remove(folder: str | Path) -> None:
    """Removes a folder so that no part of it ever stands under its name."""
    folder = Path(folder)
    leaving = folder.with_name(folder.name + _NEW)
    shutil.rmtree(leaving, ignore_errors=True)
    try:
        folder.rename(leaving)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s could not be removed: %s.", folder, error.strerror or error)
        return
    shutil.rmtree(leaving, ignore_errors=True)


def clean(parent: str | Path) -> None:
    """Clears away what a killed run left half done in its folder."""
    parent = Path(parent)
    if not parent.is_dir():
        return
    for left in sorted(p for p in parent.iterdir() if _LEFT.match(p.name)):
        place = left.with_suffix("")
        if left.suffix == _OLD and not place.exists():
            logger.info("Put %s back: a run ended while it was being replaced.", place)
            left.rename(place)
            continue
        logger.info("Removed %s, which an ended run left half written.", left)
        shutil.rmtree(left, ignore_errors=True)


def _seal(folder):
    """Brings the files to the disk and adds the manifest."""
    manifest = {}
    for file in sorted(folder.iterdir()):
        _to_disk(file)
        manifest[file.name] = [file.stat().st_size, _sha256(file)]
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _to_disk(path)
    _to_disk(folder)


def _take_place(temporary, folder):
    # No rename replaces a folder that is not empty. `clean` ends what is cut off between the two.
    aside = folder.with_name(folder.name + _OLD)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    _to_disk(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path):
    if path.is_dir():
        if os.name == "nt":  # Windows opens no folders
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _not_written(path, error):
    try:
        free = f", {shutil.disk_usage(path.parent).free // 2**20} MiB are free there"
    except OSError:
        free = ""
    return (
        f"{path} could not be written ({error.strerror or error}{free}). Nothing of it is left, "
        "and what was saved before is as it was. Make room, and go on with --resume_model auto."
    )

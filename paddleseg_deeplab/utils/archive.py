# SPDX-License-Identifier: Apache-2.0
"""Unpacks archives that were downloaded: only plain files and folders, only inside one folder."""

import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from typing import NoReturn

from paddleseg_deeplab.utils.errors import UserError

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CHUNK = 1 << 20
_MAX_TAR_HEADER = 1 << 20  # bytes of a name or of extra attributes; tarfile has no limit
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
# What Python's readers raise over damaged archives. RuntimeError: encrypted, unknown compression.
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError),
    *(ValueError, OverflowError, struct.error),
)
# No number: bzip2 and gzip. EINVAL: an offset before the beginning. The others: impossible names.
_BROKEN_NUMBERS = (
    *(None, errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
)
# The largest set named in the catalog (COCO-Stuff) unpacks to about 20 GB and 250,000 files.
MAX_BYTES = 64 << 30
MAX_MEMBERS = 2_000_000


def archive_stem(path: str) -> str | None:
    """The path without its archive suffix; None if it is no archive by its name."""
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if path.lower().endswith(suffix) and len(os.path.basename(path)) > len(suffix):
            return path[: -len(suffix)]
    return None


def extract_archive(
    path: str, folder: str, *, max_bytes: int | None = None, max_members: int | None = None
) -> None:
    """Unpacks `path` into the new folder `folder`, which appears complete or not at all.

    Links, devices, absolute names and names with ".." are refused, whatever they point to:
    no archive of images or weights needs them.

    Args:
        path (str): A .zip or (compressed) .tar file.
        folder (str): The folder to make.
        max_bytes, max_members (int): Limits on what comes out; MAX_BYTES and MAX_MEMBERS.

    Raises:
        UserError: a broken archive, a refused member, or a limit exceeded.
        OSError: the disk does not take it.
    """
    max_bytes = MAX_BYTES if max_bytes is None else max_bytes
    max_members = MAX_MEMBERS if max_members is None else max_members
    temporary = tempfile.mkdtemp(prefix=os.path.basename(folder) + ".", dir=os.path.dirname(folder))
    try:
        try:
            members = _zip_members if path.lower().endswith(".zip") else _tar_members
            left = max_bytes
            for count, (name, is_folder, source) in enumerate(members(path)):
                if count >= max_members:
                    raise UserError(f"{path} holds more than {max_members} members.")
                target = os.path.join(temporary, *_safe_parts(path, name))
                if is_folder:
                    os.makedirs(target, exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with source, open(target, "wb") as out:
                    left -= _copy(source, out, left, path, max_bytes)
        except UserError:
            raise
        except (*_BROKEN, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _BROKEN_NUMBERS:
                raise  # the disk, not the archive
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} is not a whole archive ({reason}); delete it and try again."
            ) from error
        os.chmod(temporary, 0o755)  # mkdtemp makes it private
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(source, out, left, path, max_bytes):
    """Copies at most `left` bytes: what an archive declares about its sizes may be false."""
    copied = 0
    for chunk in iter(lambda: source.read(_CHUNK), b""):
        copied += len(chunk)
        if copied > left:
            raise UserError(f"{path} unpacks to more than {max_bytes} bytes.")
        out.write(chunk)
    return copied


def _safe_parts(path, name):
    """The components of a member's name; UserError if it could leave the folder."""
    clean = name.replace("\\", "/")
    parts = [part for part in clean.split("/") if part not in ("", ".")]
    drive = len(clean) > 1 and clean[1] == ":"
    if clean.startswith("/") or drive or ".." in parts or "\0" in clean:
        raise UserError(f"{path} is refused: its member {name!r} would land outside its folder.")
    return parts


def _refuse(path: str, name: str) -> NoReturn:
    raise UserError(f"{path} is refused: its member {name!r} is a link, a device or a sparse file.")


def _zip_members(path):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                _refuse(path, member.filename)
            source = None if member.is_dir() else archive.open(member)
            yield member.filename, member.is_dir(), source


class _LongHeader(EOFError):
    """No ReadError: tarfile takes that for a sign to try the next compression."""


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses headers that tarfile would read into memory whatever their size."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _MAX_TAR_HEADER:
            raise _LongHeader(f"a header of {member.size} bytes")
        return member


def _tar_members(path):
    with tarfile.open(path, "r:*", tarinfo=_BoundedTarInfo) as archive:
        for member in archive:
            # A sparse file declares any size and has no bytes for it.
            if not (member.isreg() or member.isdir()) or member.issparse():
                _refuse(path, member.name)
            source = None if member.isdir() else archive.extractfile(member)
            yield member.name, member.isdir(), source

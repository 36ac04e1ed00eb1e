# SPDX-License-Identifier: Apache-2.0
"""Downloads to a cache: resumed, checked, unpacked safely, shared between processes.

Only the standard library's urllib: it speaks HTTPS, proxies and ranges, which is all that is
needed here, and saves every user one more dependency.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from tqdm import tqdm

from paddleseg_deeplab.utils.archive import archive_stem, extract_archive
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_RETRIES = 4
_WAIT = 1.0  # seconds before the first retry; doubled for each next one
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_HOPELESS = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
_DISK = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, getattr(errno, "EDQUOT", -1))


def cache_home() -> str:
    """The cache folder: $PADDLESEG_DEEPLAB_HOME, else ~/.cache/paddleseg_deeplab."""
    return os.path.expanduser(
        os.environ.get("PADDLESEG_DEEPLAB_HOME") or "~/.cache/paddleseg_deeplab"
    )


def cache_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> str:
    """Where `fetch` keeps the file of a URL: the cache folder, then host and path of the URL.

    Hosts and folders are kept because many weights share one file name (model.pdparams).

    Raises:
        UserError: the URL is not http(s) or names no file.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} is not an http or https address.")
    names = [
        name for name in urllib.parse.unquote(parts.path).replace("\\", "/").split("/") if name
    ]
    names = [re.sub(r"[^\w.+=@-]", "_", name) for name in names]
    if not names or any(set(name) == {"."} for name in names):
        raise UserError(f"{url!r} does not name a file.")
    if parts.query:  # two queries are two files
        names.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:8])
    host = parts.hostname + (f"_{parts.port}" if parts.port else "")
    return os.path.join(cache_dir or cache_home(), host, *names)


def fetch(
    url: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    extract: bool = True,
) -> str:
    """Returns the local copy of a URL, downloading it the first time.

    An interrupted download goes on where it stopped. Nothing is visible under its final name
    before it is complete and checked, and two processes that ask at once do not clash.

    Args:
        url (str): An http or https address.
        cache_dir (str): Cache folder; see `cache_home` for the default.
        sha256, md5 (str): Expected checksum in hexadecimal, where known.
        size (int): Expected number of bytes, where known.
        extract (bool): Unpack .zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz.

    Returns:
        str: The file; for an archive the folder with its content.

    Raises:
        UserError: offline, not found, wrong size or checksum, an archive that is broken or
            reaches outside its folder. The text says where to put the file by hand.
    """
    path = cache_path(url, cache_dir)
    folder = archive_stem(path) if extract else None
    done = folder or path
    if folder and os.path.isdir(folder):
        return folder
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with _locked(path + ".lock"):
            if folder and os.path.isdir(folder):  # another process was faster
                return folder
            own = _fetch_file(url, path, sha256, md5, size)
            if folder:
                extract_archive(path, folder)
                if own:  # what the user put there by hand stays
                    os.remove(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"Cannot store {url} as {path}: {error}.") from error
    return done


def _fetch_file(url, path, sha256, md5, size):
    """Makes sure that `path` is there and right; True if this call downloaded it."""
    if os.path.isfile(path):
        fault = _fault(path, sha256, md5, size)
        if fault is None:
            return False
        logger.warning("%s %s; downloading it again.", path, fault)
    part = path + ".part"
    fault = None
    for _ in range(2):
        resumed = _download(url, path, part, size)
        fault = _fault(part, sha256, md5, size)
        if fault is None:
            os.replace(part, path)
            return True
        # A part left from another version of the file spoils the sum: once more from byte 0.
        os.remove(part)
        if not resumed:
            break
    raise UserError(
        f"What {url} sends {fault}; the file was not kept. If you have the right one, "
        f"put it at {path}."
    )


def _fault(path, sha256, md5, size):
    """What is wrong with a file, as the rest of a sentence, or None."""
    found = os.path.getsize(path)
    if size is not None and found != size:
        return f"has {found} bytes instead of {size}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        digest = hashlib.new(name)
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
        if digest.hexdigest() != expected.lower():
            return f"has the {name} {digest.hexdigest()} instead of {expected}"
    return None


def _download(url, path, part, size):
    """Fills `part` to its end, over several connections if need be; True if it was resumed."""
    logger.info("Downloading %s to %s", url, path)
    resumed = False
    for attempt in range(_RETRIES + 1):
        try:
            resumed |= _receive(url, part, size)
            return resumed
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code == 416 and os.path.exists(part):
                os.remove(part)  # the part is longer than the file: begin again
            elif error.code not in _TRANSIENT:
                break
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if getattr(error, "errno", None) in _DISK:
                raise
            cause = getattr(error, "reason", None) or error
            reason = str(cause) or type(cause).__name__
            if isinstance(cause, _HOPELESS):
                break
        if attempt < _RETRIES:
            time.sleep(_WAIT * 2**attempt)
    raise UserError(
        f"Cannot download {url} ({reason}). To go on without a connection, download it "
        f"elsewhere and put it at {path}."
    )


def _receive(url, part, size):
    """One connection: appends to `part`. True if it went on from an earlier one.

    Raises:
        OSError, http.client.HTTPException: no connection, or it ended early.
    """
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if size is not None and have == size:
        return True
    tag_file = part + ".tag"
    headers = {"User-Agent": "paddleseg_deeplab"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if os.path.exists(tag_file):  # go on only if it is still the same file
            with open(tag_file, encoding="latin-1") as file:
                headers["If-Range"] = file.read()
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        starts_at = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if not (answer.status == 206 and starts_at and int(starts_at.group(1)) == have):
            if answer.status == 206:
                raise OSError("the server sent another range than the one asked for")
            have = 0  # 200: the whole file from its beginning
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):  # a weak tag must not be sent as If-Range
            with open(tag_file, "w", encoding="latin-1") as file:
                file.write(tag)
        elif os.path.exists(tag_file):
            os.remove(tag_file)
        _copy(answer, part, have, total)
    if os.path.exists(tag_file):
        os.remove(tag_file)
    return have > 0


def _copy(answer, part, have, total):
    name = os.path.basename(part)[: -len(".part")]
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=name,
            leave=False,
            disable=None,
        ) as bar,
    ):
        while True:
            chunk = answer.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise OSError(f"the connection ended after {file.tell()} of {total} bytes")


@contextlib.contextmanager
def _locked(path):
    """Holds an exclusive lock on the file `path`; the system frees it if the process dies."""
    with open(path, "a+b") as file:
        if os.name == "nt":
            import msvcrt

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:  # LK_LOCK gives up after ten seconds
                    continue
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file frees it
            yield

# SPDX-License-Identifier: Apache-2.0
"""What all kinds of `prepare_dataset` share: many files by several processes, whole or not at all.

Each file is written beside its place and renamed, so that a stopped run leaves no half of one, and
the next run goes on where it ended. A file that cannot be made is named at the end; the others are
done all the same.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import errno
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import UnidentifiedImageError

from paddleseg_deeplab.transforms.reading import exif, limit, tiff
from paddleseg_deeplab.transforms.reading.source import load_npy
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.folders import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    LeftOut,
    walk,
)

if TYPE_CHECKING:
    from tqdm import tqdm

_R = TypeVar("_R")

_AHEAD = 4  # jobs a process may be ahead: bounds the memory
_WORTH_A_PROCESS = 32  # jobs; starting a process takes as long as some dozens of small files
_NO_ROOM = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclasses.dataclass(frozen=True)
class Options:
    """How to work.

    Attributes:
        num_workers (int): Processes; 0 and 1 work in the caller's. None: one a processor, at most
            8, and no more than the files are worth.
        overwrite (bool): Make what is there already again.
        dry_run (bool): Write nothing.
        separator (str): Between image and mask in the lists; None chooses one that works.
        progress (callable): Given a total and a word, returns an object with ``update(n)`` and
            ``close()``, such as a `tqdm`.
    """

    num_workers: int | None = None
    overwrite: bool = False
    dry_run: bool = False
    separator: str | None = None
    progress: Callable[[int, str], tqdm] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to be made.

    Attributes:
        source (str): What it is made from; named where it fails.
        target (str): The file that `work(target, *data)` writes.
        work (callable): A function of a module, so that another process finds it.
        data (tuple): Whatever it needs.
    """

    source: str
    target: str
    work: Callable[..., Any]
    data: tuple[Any, ...] = ()


@dataclasses.dataclass
class Outcome:
    """What became of a preparation.

    Attributes:
        done (list[str]): Files written, or with `dry_run` those that would be.
        kept (list[str]): Files that were there already.
        failures (list[tuple]): (source, reason) of what could not be done.
        notes (list[str]): Sentences for the person: what was found, settings to paste.
        results (dict): File written: what its job's `work` returned.
    """

    done: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)


def _start_worker():
    """In a worker: Ctrl-C is the main process's business, and it does not outlive that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def attempt(function: Callable[..., _R], *data: Any) -> tuple[_R | None, str | None]:
    """Calls a function; (result, None), or (None, reason) with whatever went wrong.

    Raises:
        UserError: The disk is full or may not be written: the next file will not do better.
    """
    try:
        return function(*data), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(
                f"{error.filename or data[0]}: {error.strerror}. What was written so far is "
                "whole; the same command goes on from there."
            ) from error
        return None, str(error)
    except MemoryError:
        return None, "not enough memory for it"
    except Exception as error:  # whatever other people's files hold must not stop the rest
        # The messages of this package are plain ValueErrors.
        return None, str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def in_order(
    function: Callable[..., _R], calls: Iterable[tuple[Any, ...]], options: Options, word: str
) -> Iterator[tuple[_R | None, str | None]]:
    """Yields attempt(function, *call) of each call, in order, made by several processes."""
    calls = list(calls)
    workers = options.num_workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1, math.ceil(len(calls) / _WORTH_A_PROCESS))
    bar = options.progress(len(calls), word) if options.progress and calls else None
    try:
        # A process for one file would only cost.
        many = workers > 1 and len(calls) > 1
        for result in _by_processes(function, calls, workers) if many else _here(function, calls):
            yield result
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def _here(function, calls):
    for call in calls:
        yield attempt(function, *call)


def _by_processes(function, calls, workers):
    waiting, rest = collections.deque(), iter(calls)
    # Started afresh: a fork of a process with OpenCV's threads in it can hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(calls)), mp_context=context, initializer=_start_worker
    )
    try:
        for call in itertools.islice(rest, _AHEAD * workers):
            waiting.append(pool.submit(attempt, function, *call))
        while waiting:
            result = waiting.popleft().result()
            for call in itertools.islice(rest, 1):
                waiting.append(pool.submit(attempt, function, *call))
            yield result
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "A worker process was ended from outside, most often for lack of memory. Use fewer "
            "--num_workers; the same command goes on where this one stopped."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def check_targets(jobs: Iterable[Job]) -> None:
    """No two jobs may write the same file; letter case counts as equal, as on some systems.

    Raises:
        UserError: Two do; both sources are named.
    """
    sources: dict[str, str] = {}
    for job in jobs:
        key = os.path.normpath(job.target).casefold()
        other = sources.setdefault(key, job.source)
        if other is not job.source:
            raise UserError(
                f"{other} and {job.source} would both be written to {job.target}. Rename one."
            )


def run_jobs(
    jobs: Sequence[Job], options: Options, outcome: Outcome, word: str = "files"
) -> list[bool]:
    """Makes the files of all jobs; those that exist are kept unless `options.overwrite`.

    Args:
        jobs (list[Job]): What to make.
        options (Options): How.
        outcome (Outcome): Gets what was done.
        word (str): For the progress bar.

    Returns:
        list[bool]: For each job, whether its file is there, or with `dry_run` would be.

    Raises:
        UserError: Two jobs write the same file, or nothing more can be written.
    """
    check_targets(jobs)
    there = [os.path.lexists(job.target) and not options.overwrite for job in jobs]
    outcome.kept += [job.target for job, is_there in zip(jobs, there) if is_there]
    missing = [job for job, is_there in zip(jobs, there) if not is_there]
    if options.dry_run:
        outcome.done += [job.target for job in missing]
        return [True] * len(jobs)
    calls = [(job,) for job in missing]
    failed = set()
    results = in_order(_run, calls, options, word)
    for (result, reason), job in zip(results, missing):
        if reason is None:
            outcome.results[job.target] = result
            outcome.done.append(job.target)
        else:
            outcome.failures.append((job.source, reason))
            failed.add(id(job))
    return [id(job) not in failed for job in jobs]


def _run(job):
    os.makedirs(os.path.dirname(job.target) or ".", exist_ok=True)
    with atomic(job.target) as place:
        return job.work(place, *job.data)


@contextlib.contextmanager
def atomic(path: str) -> Iterator[str]:
    """Yields a place beside `path` to write to; renamed to `path` after, or removed on an error."""
    folder, name = os.path.split(path)
    place = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        yield place
        os.replace(place, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(place)
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file whole or not at all; its folder is made."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic(path) as place, open(place, "wb") as file:
        file.write(data)


def write_mask(path: str, labels: np.ndarray, num_classes: int) -> None:
    """Writes uint8 [H, W] as a PNG whose pixels are class numbers, with VOC's colours to look at.

    Args:
        path (str): Where to.
        labels (numpy.ndarray): Classes, 255 void.
        num_classes (int): Colours that the file gets; void gets its own.
    """
    visualize.palette_png(path, labels, visualize.voc_palette(num_classes))


def read_header(content: bytes) -> tuple[tuple[int, int], str | None]:
    """(height, width) of an image file's content, turned by its EXIF orientation; and its format.

    Raises:
        ValueError: No image, or one above the limit of pixels; the rest of a sentence.
    """
    kind: str | None = "TIFF"
    try:
        header = tiff.look(content)
        if header is not None and header.width and header.height:  # Pillow knows some of them only
            limit.check_size(header.width, header.height)
            sides, number = (header.width, header.height), header.orientation
        else:
            with limit.open_image(content) as file:
                sides, number, kind = file.size, exif.orientation(content, file), file.format
        return sides if exif.swaps_sides(number) else sides[::-1], kind
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("is no image, or of an unknown format") from error
    except Exception as error:  # decoders raise anything over damaged files
        raise ValueError(f"cannot be read: {error}") from error


def image_size(path: str) -> tuple[int, int]:
    """(height, width) of an image as training sees it: turned by its EXIF orientation.

    Raises:
        ValueError: Missing, or no image. Its head is looked at; `check_dataset` looks at all.
    """
    if path.lower().endswith(ARRAY_EXTENSION):
        return load_npy(path, "image", mapped=True).shape[:2]
    try:
        with open(path, "rb") as file:
            return read_header(file.read())[0]
    except FileNotFoundError as error:
        raise ValueError(f"the image {path} does not exist") from error
    except ValueError as error:
        raise ValueError(f"the image {path} {error}") from error


def find_files(
    folder: str, flag: str, suffixes: Sequence[str] = IMAGE_EXTENSIONS, but: Sequence[str] = ()
) -> list[str]:
    """Relative paths, with forward slashes and sorted, of the files below a folder.

    Args:
        folder (str): Searched with its sub folders, as `folders.walk` does; what is left out is
            logged.
        flag (str): What gave it, for the message.
        suffixes (tuple): Endings wanted, lower case; letter case does not matter.
        but (Sequence[str]): Folders that are left out.

    Raises:
        UserError: There is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: there is no such folder.")
    left_out = LeftOut()
    found = walk(folder, suffixes, but, left_out)
    left_out.tell(folder)
    return found


def inner(folder: str, other: str) -> list[str]:
    """The folder in a list, where it lies inside another: it is then left out of a search there."""
    real, outer = os.path.realpath(folder), os.path.realpath(other)
    return [folder] if real != outer and real.startswith(os.path.join(outer, "")) else []

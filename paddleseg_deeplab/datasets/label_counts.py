# SPDX-License-Identifier: Apache-2.0
"""Pixels of each class in each label of a set, counted once and remembered."""

import contextlib
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paddleseg_deeplab import __version__
from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.datasets.shapes.dataset import Shapes
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.download import cache_home
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_FORMAT = 2  # of the remembered files, and of what is read of a label
_THREADS = 8  # at most; decoding leaves Python's lock


def label_counts(
    dataset: BaseDataset, *, num_workers: int | None = None, cache: bool = True
) -> np.ndarray:
    """Counts the pixels of each class in each label of a dataset.

    The counts are kept in ``label_counts`` in the cache folder (`utils.download.cache_home`),
    under a name that follows from the list, the sizes and times of the label files (with `nodata`
    of the images too, which are read then) and the dataset's settings. Datasets with code of their
    own for labels are counted anew each time: a change of that code could not be seen.

    Args:
        dataset: Has ``load_label(index)``, which gives classes as uint8 [H, W], 255 void, and may
            be called from several threads; ``num_classes``; ``file_list``.
        num_workers (int, optional): Threads; as many as there are cores, at most 8, by default.
        cache (bool): False neither reads nor writes the cache folder.

    Returns:
        numpy.ndarray: int64 [samples, num_classes]; void pixels are not counted.

    Raises:
        UserError: A label is missing or broken, or the dataset has no ``load_label``.
    """
    if not hasattr(dataset, "load_label"):
        raise UserError(
            f"{type(dataset).__name__} has no load_label(index), which counting classes needs."
        )
    path = _cache_file(dataset) if cache else None
    counts = _read(path, len(dataset), dataset.num_classes) if path else None
    if counts is None:
        counts = _count(dataset, num_workers)
        if path:
            _write(path, counts)
    return counts


def _count_one(dataset, index):
    label = dataset.load_label(index)
    if label is None:
        raise UserError(f"The sample {dataset.file_list[index][0]} has no label to count.")
    return np.bincount(np.asarray(label).ravel(), minlength=VOID + 1)[: dataset.num_classes]


def _count(dataset, num_workers):
    from tqdm import tqdm

    total = len(dataset)
    logger.info("Counting the classes in %d labels of the training set.", total)
    counts = np.zeros((total, dataset.num_classes), np.int64)
    # Shown on a terminal, by the process that tells what is done.
    hidden = None if logger.isEnabledFor(20) else True
    bar = tqdm(total=total, desc="Counting classes", unit="label", disable=hidden)
    pool = ThreadPoolExecutor(num_workers or min(_THREADS, os.cpu_count() or 1))
    try:
        for index, found in enumerate(pool.map(lambda i: _count_one(dataset, i), range(total))):
            counts[index] = found
            bar.update(1)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return counts


def _cache_file(dataset):
    """Where the counts of a dataset are kept, or None for one that cannot be told by its data."""
    own = type(dataset)
    # These change with the package's version alone, which is part of the name.
    if getattr(own, "load_label", None) not in (BaseDataset.load_label, Shapes.load_label):
        return None
    if own._to_classes is not BaseDataset._to_classes:
        return None
    nodata = getattr(dataset, "nodata", None)
    facts = [_FORMAT, __version__, own.__qualname__, repr(nodata)]
    for key, value in sorted(vars(dataset).items()):
        with contextlib.suppress(TypeError):  # transforms, arrays: what is no plain value
            facts.append([key, json.loads(json.dumps(value))] if key != "file_list" else None)
    for entry in dataset.file_list:
        label = entry[1]
        facts.append(entry[0] if label is None else label)
        read = [] if label is None else [label]
        if nodata is not None:
            read.append(entry[0])
        for path in read:
            try:
                status = os.stat(path)
            except OSError:
                return None  # told when it is read
            facts.append([path, status.st_size, status.st_mtime_ns])
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]
    return os.path.join(cache_home(), "label_counts", f"{name}.json")


def _read(path, samples, num_classes):
    """Remembered counts, or None where there are none or they do not fit."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["counts"]
        counts = np.zeros((samples, num_classes), np.int64)
        for row, pairs in zip(counts, rows):
            row[pairs[0::2]] = pairs[1::2]
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return counts if len(rows) == samples and counts.min(initial=0) >= 0 else None


def _write(path, counts):
    """Keeps counts: class, pixels, class, pixels, ... of each label; whole or not at all."""
    rows = [np.stack([np.flatnonzero(row), row[row > 0]], 1).ravel().tolist() for row in counts]
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"counts": rows}, file, separators=(",", ":"))
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        logger.warning("The counts of classes are not kept for the next run: %s.", error)

# SPDX-License-Identifier: Apache-2.0
"""Checks the files of train and val sets: all of them, or a handful before training.

Every file is read once, by several threads: decoding, hashing and checksums leave Python's lock,
so threads do what processes would, without the seconds that starting processes takes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from paddleseg_deeplab.datasets.base import BaseDataset, evenly
from paddleseg_deeplab.datasets.dataset import missing_files
from paddleseg_deeplab.tools.check_dataset.files import read_pair, read_sample
from paddleseg_deeplab.tools.check_dataset.findings import KINDS, Finding, in_order, level_counts
from paddleseg_deeplab.tools.check_dataset.one_set import SetCheck, loads_files
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    from tqdm import tqdm

_AHEAD = 4  # pairs a thread may be ahead of the evaluation: bounds the memory
_QUICK = 16  # pairs that are read before training
_TOLD = ("turned_images", "palettes_differ", "dim_images")  # warnings of which training tells
_CONFIRMED = 200  # labels that are read before a set without classes is refused


@dataclasses.dataclass
class Check:
    """All that a check found.

    Attributes:
        sets (dict): "train", "val": `SetCheck`.
        findings (list[Finding]): Errors first.
        max_samples (int or None): Pairs that were read of each set, where not all.
        seconds (float): How long it took.
    """

    sets: dict[str, SetCheck]
    findings: list[Finding]
    max_samples: int | None
    seconds: float

    @property
    def errors(self) -> int:
        return level_counts(self.findings)["error"]


def _tasks(checks, max_samples):
    """{(channels, nodata, image, label) or (set, index): [(set, times), ...]}: what is to be read.

    `nodata` stands there as text, since NaN equals nothing.
    """
    tasks = {}
    for check in checks:
        if not check.file_based:
            for index in evenly(range(check.samples), max_samples):
                tasks[check.name, index] = [(check, 1)]
            continue
        entries = Counter(check.entries_listed())
        for entry, times in entries.items():
            for _ in range(times - 1):
                check.find("repeated_entries", entry[0], f"{times} times")
        missing = set(missing_files(entries))
        named = set()
        for kind, place in (("image_missing", 0), ("label_missing", 1)):
            for entry in entries:
                if entry[place] in missing and entry[place] not in named:
                    named.add(entry[place])
                    check.find(kind, entry[place])
        for image, label in evenly(list(entries), max_samples):
            there = [None if path in missing else path for path in (image, label)]
            if any(there):
                key = (check.img_channels, repr(check.nodata), *there)
                tasks.setdefault(key, []).append((check, entries[image, label]))
    return tasks


def _read(key, uses):
    """The facts of one task."""
    if len(key) == 2:
        return read_sample(uses[0][0].dataset, key[1])
    return read_pair(key[2], key[3], key[0], uses[0][0].nodata)


def _read_all(tasks, num_workers):
    """(key, uses, facts) of each task in order, read ahead by threads."""
    if num_workers < 2:
        for key, uses in tasks.items():
            yield key, uses, _read(key, uses)
        return
    waiting = deque()
    pool = concurrent.futures.ThreadPoolExecutor(num_workers)
    try:
        for key, uses in tasks.items():
            # A dataset's own code may not be made for several threads.
            threaded = len(key) == 4
            waiting.append((key, uses, pool.submit(_read, key, uses) if threaded else None))
            if len(waiting) > _AHEAD * num_workers:
                yield _done(waiting.popleft())
        while waiting:
            yield _done(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _done(item):
    key, uses, future = item
    return key, uses, _read(key, uses) if future is None else future.result()


def _find_duplicates(checks):
    """Equal images inside each set, by content."""
    for check in checks:
        first = {}
        for image, _label, image_hash, label_hash in check.entries:
            if image_hash is None:
                continue
            if image_hash not in first:
                first[image_hash] = (image, label_hash)
                continue
            other, other_label = first[image_hash]
            same = label_hash == other_label or None in (label_hash, other_label)
            check.find("duplicate_images" if same else "labels_differ", image, f"as {other}")


def _find_leaks(train, val):
    """Images of val that are in train: by path in the whole lists, by content in what was read."""
    leak = Finding("leak", "train and val", advice=KINDS["leak"].advice)
    hashes = {digest: image for image, _, digest, _ in reversed(train.entries) if digest}
    twins = {image: hashes[digest] for image, _, digest, _ in val.entries if digest in hashes}
    listed = set()
    if train.file_based and val.file_based:
        listed = {image for image, _ in train.entries_listed()}
    for image in dict.fromkeys(image for image, _ in val.entries_listed()):
        if image in listed:
            leak.add(image, "the same file")
        elif image in twins:
            leak.add(image, f"as {twins[image]}")
    return [leak] if leak.count else []


def largest_std(transforms: Iterable[object] | None) -> float | None:
    """The largest std of a list's `Normalize`, objects or as a config has them; None without."""
    for step in transforms or ():
        kind = step.get("type") if isinstance(step, dict) else type(step).__name__
        if kind == "Normalize":
            std = step.get("std", [0.5]) if isinstance(step, dict) else getattr(step, "std", 0.5)
            return float(np.abs(std).max())
    return None


def _find_palettes(checks):
    """Numbers that have a colour in some palettes and another one in others, over all sets."""
    files, votes = {}, {}
    for check in checks:
        for colours, labels in check.palettes.items():
            files.setdefault(colours, []).extend(labels)
    for colours, labels in files.items():
        for value, colour in colours:
            votes.setdefault(value, Counter())[colour] += len(labels)
    where = " and ".join(check.name for check in checks if check.palettes)
    found = Finding("palettes_differ", where, advice=KINDS["palettes_differ"].advice)
    for colours, labels in files.items():
        told = []
        for value, colour in colours:
            usual, count = votes[value].most_common(1)[0]
            if colour != usual:
                told.append(f"{value} is {colour}, and {usual} in {count} others")
        for label in labels if told else ():
            found.add(label, first_few(told, 3, ", ..."))
    return [found] if found.count else []


def default_workers() -> int:
    """Threads that a check uses unless told: one for each processor, at most 8."""
    return min(8, os.cpu_count() or 1)


def check_datasets(
    datasets: Mapping[str, BaseDataset],
    *,
    faults: Mapping[str, Iterable[tuple[str, str, str]]] | None = None,
    num_workers: int | None = None,
    max_samples: int | None = None,
    crop_size: tuple[int, int] | None = None,
    stds: Mapping[str, float | None] | None = None,
    progress: Callable[[int], tqdm] | None = None,
) -> Check:
    """Reads all files of datasets and finds what is wrong with them.

    Args:
        datasets (dict): "train", "val" or both: the dataset.
        faults (dict): Set: faults of its lists, see `BaseDataset.with_faults`.
        num_workers (int): Threads; 0 and 1 read in the caller's. Default `default_workers()`.
            The result does not depend on it.
        max_samples (int): Read no more than this many pairs of each set, evenly spread (that all
            files exist is asked all the same).
        crop_size (tuple): (width, height) of training's crop, for hints.
        stds (dict): Set: `largest_std` of its transforms.
        progress (callable): Given the number of pairs, returns an object with ``update(n)`` and
            ``close()``, such as a `tqdm`.

    Returns:
        Check: The findings and the statistics.
    """
    start = time.perf_counter()
    num_workers = default_workers() if num_workers is None else num_workers
    checks = [
        SetCheck(name, dataset, crop_size if name == "train" else None, (stds or {}).get(name))
        for name, dataset in datasets.items()
    ]
    for check in checks:
        for kind, place, detail in (faults or {}).get(check.name, ()):
            check.find(kind, place, detail)
    tasks = _tasks(checks, max_samples)
    bar = progress(len(tasks)) if progress else None
    try:
        for key, uses, facts in _read_all(tasks, num_workers):
            image, label = _paths(key, uses)
            for check, times in uses:
                check.take(facts, image, label, times)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    _find_duplicates(checks)
    sets = {check.name: check for check in checks}
    findings = _find_leaks(sets["train"], sets["val"]) if {"train", "val"} <= sets.keys() else []
    findings += _find_palettes(checks)
    for check in checks:
        check.finish()
        findings.extend(check.findings.values())
    return Check(sets, in_order(findings), max_samples, time.perf_counter() - start)


def _paths(key, uses):
    if len(key) == 4:
        return key[2], key[3]
    return uses[0][0].dataset.file_list[key[1]][0], None


def _labels_say_so(check, kind):
    """Whether more labels agree that a set has 0/255 masks, or nothing but void.

    A handful of labels without the rare class of a sound set look alike; some hundreds do not.
    """
    but = (0, 255) if kind == "mask_0_255" else ()
    labels = [label for _, label in check.entries_listed() if label is not None]
    for label in evenly(labels, _CONFIRMED):
        values = read_pair(None, label, check.img_channels).values or {}
        if any(v not in but and check.known(v) and check.table[v] != VOID for v in values):
            return False
    return True


def quick_check(datasets: Mapping[str, BaseDataset], config_path: str) -> None:
    """The cheap half, for the start of training: seconds at most.

    All files must exist, and a few pairs, evenly spread, must be whole, of equal sizes, and hold
    classes. Sets that make their samples themselves are left alone.

    Args:
        datasets (dict): Section of the config, "train_dataset" or "val_dataset": the dataset.
        config_path (str): Named in the message.

    Raises:
        UserError: The first error, with the command that finds them all.
    """
    for name, dataset in datasets.items():
        if not hasattr(dataset, "file_list") or not loads_files(dataset):
            continue
        stds = {name: largest_std(getattr(getattr(dataset, "transforms", None), "transforms", ()))}
        result = check_datasets({name: dataset}, num_workers=0, max_samples=_QUICK, stds=stds)
        check = result.sets[name]
        for found in (finding for finding in result.findings if finding.kind in _TOLD):
            path, detail = found.files[0]
            logger.warning(
                "%s: %s, such as %s (%s). %s", name, found.title, path, detail, found.advice
            )
        for first in (finding for finding in result.findings if finding.level == "error"):
            doubtful = first.kind in ("mask_0_255", "nothing_labelled")
            if doubtful and not _labels_say_so(check, first.kind):
                continue
            path, detail = first.files[0]
            advice = " or ".join([first.advice, *first.paste[:2]]).replace(": or ", ": ", 1)
            raise UserError(
                f"{name}: {KINDS[first.kind].title}: {path}"
                + (f" ({detail})" if detail else "")
                + f". {advice.rstrip(' .:')}. All faults of the data: paddleseg-deeplab "
                f"check_dataset --config {config_path} (with the same --opts)"
            )

# SPDX-License-Identifier: Apache-2.0
"""Feeds images to evaluation and prediction: reading ahead in threads, batches of equal sizes."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from paddleseg_deeplab.transforms.checks import Sample
from paddleseg_deeplab.transforms.declared import declares
from paddleseg_deeplab.transforms.reading.values import check_input
from paddleseg_deeplab.utils.cpu import thread_count

_K = TypeVar("_K")
_R = TypeVar("_R")
# A picture's sample, labels int32 [H, W], probabilities float32 [K, H, W] where they are wanted.
Result = tuple[Sample, np.ndarray, np.ndarray | None]

_PIXELS_TOGETHER = 1 << 17
_MOST_TOGETHER = 8
_MOST_WORKERS = 2


def automatic_workers() -> int:
    """Threads for `read_ahead` where nobody says how many: 1 or 2."""
    return min(thread_count(), _MOST_WORKERS)


def workers_for(dataset: object, num_workers: int | None = None) -> int:
    """Threads for `read_ahead`: `num_workers`, or where that is None `automatic_workers`.

    A dataset or transform that does not declare that it bears several threads (one open file, one
    random state) is read in turn, unless somebody says another number.

    Args:
        dataset: With ``transforms``, a `Compose`; see `transforms.declared`.
        num_workers (int | None): What the user says.
    """
    if num_workers is not None:
        return num_workers
    return automatic_workers() if declares(dataset, "thread_safe") else 0


def read_ahead(load: Callable[[_K], _R], keys: Iterable[_K], num_workers: int = 0) -> Iterator[_R]:
    """Yields ``load(key)`` for each key, in order.

    Threads, not processes: OpenCV and NumPy release the interpreter's lock while they decode and
    resize, and nothing has to be copied between processes. At most two results a thread wait. It
    also serves to write behind: `load` then writes, and what `keys` gave before it failed is
    written all the same.

    Args:
        load (callable): Takes a key; must be safe to call from several threads.
        keys (Iterable): What to load.
        num_workers (int): Threads; 0 loads each item when it is asked for.

    Raises:
        Exception: What `load` raised, at that key's turn, and then the later keys may be left out;
            or what `keys` raised, after the results of all keys before.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 or more, got {num_workers}.")
    if num_workers == 0:
        yield from map(load, keys)
        return
    keys = iter(keys)
    waiting: collections.deque[Future[_R]] = collections.deque()
    failure = None
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            while True:
                try:
                    key = next(keys)
                except StopIteration:
                    break
                except Exception as error:  # of whatever makes the keys; it has its turn below
                    failure = error
                    break
                waiting.append(pool.submit(load, key))
                del key  # it may be large, and the next one takes its time
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in waiting:
                future.cancel()


def write_behind(
    write: Callable[[Result], _R],
    results: Iterable[Result],
    outputs: Sequence[str],
    num_workers: int = 0,
) -> Iterator[_R]:
    """Yields ``write(result)`` for each result, in order, beside the making of the next ones.

    A result without probabilities is small beside the image's input; with them it may take
    gigabytes, and each is written before the next is made.

    Args:
        write (callable): Takes (sample, labels, probabilities or None).
        results (Iterable[tuple]): Of these.
        outputs (Sequence[str]): What is written; probabilities are kept for "prob" alone.
        num_workers (int): Threads.
    """
    if "prob" in outputs:
        return read_ahead(write, results)
    results = ((sample, labels, None) for sample, labels, _ in results)
    return read_ahead(write, results, num_workers)


def automatic_batch(size: Sequence[int]) -> int:
    """How many images of a size go through the network together where nobody says.

    On two CPU cores an image in a batch was not faster than one alone from 480x360 on, a fifth to
    a third faster at 128x128; larger batches only take memory (docs/performance.md).

    Args:
        size (Sequence[int]): (height, width).

    Returns:
        int: 1 to 8, with at most 131072 pixels together.
    """
    return min(max(_PIXELS_TOGETHER // (size[0] * size[1]), 1), _MOST_TOGETHER)


def peek(items: Iterable[_R]) -> tuple[_R | None, Iterator[_R]]:
    """The first of `items`, None where there is none, and an iterator over all of them.

    The iterator holds the first one no longer than till its turn.
    """
    items = iter(items)
    for first in items:
        return first, _resumed([first], items)
    return None, iter(())


def _resumed(head: list[_R], items: Iterator[_R]) -> Iterator[_R]:
    yield head.pop()
    yield from items


def equal_size_batches(
    samples: Iterable[Sample], batch_size: int | None
) -> Iterator[tuple[list[Sample], np.ndarray]]:
    """Groups samples whose images have the same size, so that any batch size works.

    A group is given out when it is full. So that a set in which every image has its own size does
    not pile up in memory, at most ``2 * batch_size`` samples wait: beyond that the oldest group
    goes out as it is.

    Args:
        samples (Iterable[dict]): With ``img``, float32 [C, H, W].
        batch_size (int | None): Most samples a batch; None: `automatic_batch`.

    Yields:
        tuple[list[dict], np.ndarray]: The samples and their images, float32 [N, C, H, W]. The
        order is not that of the input.

    Raises:
        UserError: An image is not finite.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    most = 2 * (batch_size or _MOST_TOGETHER)
    # Insertion order: the first one is the oldest.
    groups: dict[tuple[int, ...], list[Sample]] = {}
    waiting = 0
    for sample in samples:
        shape = sample["img"].shape
        group = groups.setdefault(shape, [])
        group.append(sample)
        waiting += 1
        if len(group) == (batch_size or automatic_batch(shape[1:])):
            out = shape
        elif waiting >= most:
            out = next(iter(groups))
        else:
            continue
        group = groups.pop(out)
        waiting -= len(group)
        yield group, _stack(group)
    for group in groups.values():
        yield group, _stack(group)


def _stack(group: list[Sample]) -> np.ndarray:
    for sample in group:
        check_input(sample["img"], str(sample.get("im_path", f"sample {sample.get('index')}")))
    return np.stack([sample["img"] for sample in group]).astype(np.float32, copy=False)

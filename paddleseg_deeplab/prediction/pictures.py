# SPDX-License-Identifier: Apache-2.0
"""Pictures on their way through prediction, one of which may fail without costing the others.

``predict.py`` and ``deploy/python/infer.py`` share it: reading, running batches, writing. Whatever
one picture makes a decoder, a transform, the network, the CRF or a writer raise is noted with its
path, and the rest is done. What stops all is what would stop every one: a full or lost disk.
No Paddle here.
"""

import errno
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from paddleseg_deeplab.prediction import batching, crf, restore
from paddleseg_deeplab.prediction import outputs as prediction_files
from paddleseg_deeplab.prediction.annotations import Annotations
from paddleseg_deeplab.prediction.batching import Result
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.transforms.checks import Sample
from paddleseg_deeplab.transforms.reading.values import check_input, mark_void
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

Failures = list[tuple[str, str]]  # path and reason of each picture that is left out
_R = TypeVar("_R")
_B = TypeVar("_B", np.ndarray, list[np.ndarray])

_LONGEST = 400  # characters of a reason; those of C++ code run over pages
# No file can be written any more, whatever its name is.
_LOST_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


def note_failure(failures: Failures, path: str, error: BaseException) -> None:
    """Adds (path, reason in one line) to `failures`; the traceback goes to the debug log."""
    reason = " ".join(line.strip() for line in str(error).splitlines())
    if not isinstance(error, (UserError, OSError)):
        reason = f"{type(error).__name__}: {textwrap.shorten(reason, _LONGEST, placeholder=' ...')}"
    logger.debug("%s:", path, exc_info=error)
    failures.append((str(path), reason or type(error).__name__))


def load_picture(
    image: str | bytes | np.ndarray,
    compose: Compose,
    for_crf: bool = False,
    name: str | None = None,
) -> Sample:
    """Reads a picture.

    Args:
        image (str | bytes | np.ndarray): The file, or what `restore.prepare` takes else.
        compose (Compose): The transforms.
        for_crf (bool): A dense CRF will need the image too.
        name (str, optional): For messages; a file has its own.

    Returns:
        dict: ``img`` float32 [C, h, w], ``trans_info``, ``nodata`` (see `restore.prepare`);
        ``original`` uint8 RGB [H, W, 3], as overlays take it, a quarter of the memory;
        ``crf_image`` uint8 [H, W, C] or None.

    Raises:
        Exception: Whatever the file makes a decoder or a transform raise.
    """
    sample = restore.prepare(image, compose, name)
    check_input(sample["img"], str(image) if name is None else name)
    to_rgb = getattr(compose, "to_rgb", True)
    original = sample["original"]
    sample["crf_image"] = crf.crf_image(original, to_rgb) if for_crf else None
    shown = visualize.to_rgb(original)
    sample["original"] = shown if to_rgb or original.shape[-1] != 3 else shown[..., ::-1]
    return sample


def read_pictures(
    items: Iterable[tuple[int, str]],
    load: Callable[[str], Sample],
    failures: Failures,
    num_workers: int = 0,
) -> Iterator[Sample]:
    """Yields the samples of pictures, read ahead by threads.

    Args:
        items (Iterable): Of (index, path).
        load (callable): Path to sample (dict).
        failures (list): Gets (path, reason) of each picture that cannot be read.
        num_workers (int): Threads.

    Yields:
        dict: The sample, with ``index`` and ``im_path``.
    """

    def read(item):
        index, path = item
        try:
            return {**load(path), "index": index, "im_path": path}
        except Exception as error:  # see `load_picture`
            note_failure(failures, path, error)
            return None

    samples = batching.read_ahead(read, items, num_workers)
    return (sample for sample in samples if sample is not None)


def run_batches(
    run: Callable[[list[Sample], _B], Iterable[_R]],
    batches: Iterable[tuple[list[Sample], _B]],
    failures: Failures,
) -> Iterator[_R]:
    """Yields what ``run(samples, images)`` gives for each batch.

    Where that raises, the batch's images are run one at a time, and those that fail alone go to
    `failures`.

    Args:
        run (callable): Gives an iterable.
        batches (Iterable): Of (samples, images float32 [N, C, h, w]).
        failures (list): Of (path, reason).
    """
    for samples, images in batches:
        try:
            results: Iterable[_R] = list(run(samples, images))
        except Exception as error:  # a network, a runtime or its device may raise anything
            if len(samples) == 1:
                note_failure(failures, samples[0]["im_path"], error)
                continue
            singles = (([each], images[i : i + 1]) for i, each in enumerate(samples))
            results = run_batches(run, singles, failures)
        yield from results


def write_pictures(
    results: Iterable[Result],
    failures: Failures,
    num_workers: int = 0,
    *,
    save_dir: str,
    names: Sequence[str],
    palette: np.ndarray,
    outputs: Sequence[str],
    annotations: Annotations | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Writes results beside the making of the next ones; see `batching.write_behind`.

    Args:
        results (Iterable): Of (sample, labels, probabilities or None).
        failures (list): Gets (path, reason) of each picture that cannot be written.
        num_workers (int): Threads.
        save_dir (str): Folder of all results.
        names (Sequence[str]): Of the results, by the samples' index.
        palette (np.ndarray): uint8 [num_classes, 3] RGB.
        outputs (Sequence[str]): Kinds to write, see `write_outputs`.
        annotations (Annotations, optional): Writes the kinds that are its own.

    Yields:
        tuple: Path and files (dict: kind to file) of each picture that is written.

    Raises:
        DiskError: No file can be written any more.
    """

    pictures = [kind for kind in outputs if kind in prediction_files.PICTURES]

    def write(result):
        sample, labels, probabilities = result
        path, index = sample["im_path"], sample["index"]
        try:
            files = prediction_files.write_outputs(
                save_dir,
                names[index],
                image=sample["original"],
                labels=labels,
                palette=palette,
                probabilities=probabilities,
                outputs=pictures,
                nodata=sample["nodata"],
            )
            if annotations is not None:
                void = mark_void(labels, sample["nodata"])
                files.update(annotations.add(index, path, names[index], void))
            return path, files
        except Exception as error:
            # NumPy's own writer does not say why it wrote too few bytes.
            if isinstance(error, OSError) and error.errno in (None, *_LOST_DISK):
                raise prediction_files.disk_error(save_dir, error) from error
            note_failure(failures, path, error)
            return None

    written = batching.write_behind(write, results, outputs, num_workers)
    return (each for each in written if each is not None)

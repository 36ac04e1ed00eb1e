# SPDX-License-Identifier: Apache-2.0
"""The dense CRF behind a network: at the image's own size, on the mean class probabilities.

Evaluation, prediction and the deployed model share it, so their masks are the same. No Paddle here.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from typing import Any

import numpy as np

from paddleseg_deeplab.postprocess.settings import Crf
from paddleseg_deeplab.prediction.batching import Result, read_ahead
from paddleseg_deeplab.transforms.checks import Sample
from paddleseg_deeplab.transforms.reading import files
from paddleseg_deeplab.utils.errors import UserError


def crf_image(image: np.ndarray, to_rgb: bool = True) -> np.ndarray:
    """The image as the CRF takes it.

    Args:
        image (np.ndarray): [H, W] or [H, W, C], values in 0..255 (others are cut off).
        to_rgb (bool): Whether three channels are in the order RGB already (else BGR).

    Returns:
        np.ndarray: uint8 [H, W, C], rounded; three channels as RGB, others as they are.
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[-1] == 3 and not to_rgb:
        image = image[..., ::-1]
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.nan_to_num(image), 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(image)


def image_of_sample(dataset: object, sample: Mapping[str, Any]) -> np.ndarray:
    """The untransformed image of a validation sample.

    Args:
        dataset: With ``load_image(index)`` (float [H, W, C] in 0..255, RGB), or with samples that
            have ``im_path``.
        sample (dict): With ``index``.

    Returns:
        np.ndarray: uint8 [H, W, C].

    Raises:
        UserError: There is no way to the image, or its file cannot be read.
    """
    if hasattr(dataset, "load_image"):
        return crf_image(dataset.load_image(sample["index"]))
    path = sample.get("im_path")
    if path is None:
        raise UserError(
            f"The dense CRF needs the images themselves: give {type(dataset).__name__} a "
            "load_image(index), or its samples an im_path; or leave the CRF out."
        )
    channels = getattr(dataset, "img_channels", 3)
    nodata = getattr(getattr(dataset, "transforms", None), "nodata", None)
    return crf_image(files.read_image(path, channels, to_rgb=True, nodata=nodata))


def refine(
    crf: Crf, probabilities: np.ndarray, image: np.ndarray, name: str = "the image"
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the CRF on one image.

    Args:
        crf (DenseCRF): Takes probabilities and image.
        probabilities (np.ndarray): float32 [K, H, W], sums to 1 over K.
        image (np.ndarray): uint8 [H, W, C] of the same size.
        name (str): Of the image, for messages.

    Returns:
        tuple: Labels, int32 [H, W]; Q, float32 [K, H, W].

    Raises:
        UserError: The sizes differ, or the CRF refuses what it gets (NaN, for one).
    """
    if probabilities.shape[1:] != image.shape[:2]:
        raise UserError(
            f"{name}: the prediction has size {probabilities.shape[1:]}, the image that the dense "
            f"CRF should follow {image.shape[:2]} (height, width)."
        )
    try:
        q = crf(probabilities, image)
    except ValueError as error:
        raise UserError(f"{name}: the dense CRF: {error}") from error
    return q.argmax(axis=0).astype(np.int32), q


def refined(
    crf: Crf,
    predictions: Iterable[Result],
    image_of: Callable[[Sample], np.ndarray],
    num_workers: int = 0,
    seconds: MutableSequence[float] | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
    """Runs the CRF over a stream of predictions, several images at once where that is asked for.

    Threads, not processes: NumPy and SciPy release the interpreter's lock in the work that counts,
    and nothing has to be copied. Two images on two threads are faster than two threads on one image
    at a time, so the CRF's own threads are shared out. At most two results a thread wait, each the
    size of Q.

    Args:
        crf (DenseCRF): Takes probabilities and image.
        predictions (Iterable): Of (sample, labels, probabilities); drawn in the caller's thread.
        image_of (callable): sample -> uint8 [H, W, C]; called in the threads.
        num_workers (int): Threads; 0 works in the caller's.
        seconds (MutableSequence, optional): Gets the time of each CRF.
        on_error (callable, optional): Takes (name, error) of an image that fails, which is then
            left out; by default the error is raised.

    Yields:
        tuple: sample, labels (int32 [H, W]), Q (float32 [K, H, W]), in the order of `predictions`.
    """
    if num_workers > 1 and hasattr(crf, "threads"):
        crf = copy.copy(crf)
        crf.threads = max(crf.threads // num_workers, 1)

    def one(item):
        sample, _, probabilities = item
        name = str(sample.get("im_path") or f"sample {sample['index']}")
        start = time.perf_counter()
        try:
            result = refine(crf, probabilities, image_of(sample), name)
        except Exception as error:
            if on_error is None:
                raise
            on_error(name, error)
            return None
        if seconds is not None:
            seconds.append(time.perf_counter() - start)
        return (sample, *result)

    results = read_ahead(one, predictions, num_workers)
    return (result for result in results if result is not None)

# SPDX-License-Identifier: Apache-2.0
"""The one way from an image file to a network's input, and from its output back to the image.

Training, evaluation, prediction and the deployed model share it, so their masks are the same. It
stands on NumPy, OpenCV and Pillow alone and never imports Paddle.

Order of work: `preprocess` -> the network -> `labels_and_scores` (or `labels_to_original`, when the
network was exported with its argmax). The two give the same mask whenever the transforms only pad.
"""

import os
from collections.abc import Sequence

import cv2
import numpy as np

from paddleseg_deeplab.prediction.scores import best_classes
from paddleseg_deeplab.transforms import Compose, functional
from paddleseg_deeplab.transforms.checks import Sample

# ("resize" | "padding", (height, width) before the step[, (top, left) of the image]) of each step.
_Step = tuple[str, tuple[int, int]] | tuple[str, tuple[int, int], tuple[int, int]]
TransInfo = Sequence[_Step]


def prepare(
    image: str | os.PathLike[str] | bytes | np.ndarray, compose: Compose, name: str | None = None
) -> Sample:
    """Reads an image and runs the transforms of evaluation on it.

    Args:
        image (str | os.PathLike | bytes | np.ndarray): A path, the bytes of an image file, or an
            array [H, W] or [H, W, C] in 0..255, BGR when it has three channels (what cv2.imread
            returns).
        compose (Compose): The transforms.
        name (str, optional): For messages; a path has its own.

    Returns:
        dict: ``img``, the network's input, float32 [C, h, w]; ``trans_info`` for the functions
        below; ``original``, the image as read, float32 [H, W, C] in 0..255, RGB unless the Compose
        says otherwise; ``nodata``, bool [H, W], where it has no data, or None.

    Raises:
        UserError: The file is missing or broken, or its values are not finite.
    """
    sample = compose.read({"img": image} if name is None else {"img": image, "im_path": name})
    out = compose.apply(sample)
    found = {"img": out["img"], "trans_info": out["trans_info"], "original": sample["img"]}
    return {**found, "nodata": sample.get("nodata")}


def preprocess(
    image: str | os.PathLike[str] | np.ndarray, compose: Compose
) -> tuple[np.ndarray, TransInfo, np.ndarray]:
    """`prepare`, as the tuple of img, trans_info and original."""
    out = prepare(image, compose)
    return out["img"], out["trans_info"], out["original"]


def padded(
    images: np.ndarray, trans_info: TransInfo, divisor: int | None
) -> tuple[np.ndarray, TransInfo]:
    """A network's input with sides that a number divides, and the steps to undo.

    Args:
        images (np.ndarray): float32 [..., h, w], preprocessed.
        trans_info (list): Of the preprocessing.
        divisor (int | None): The last row and column are repeated until it divides both sides;
            None leaves the input as it is.
    """
    size = images.shape[-2:]
    if divisor is None or size == functional.rounded_up(size, divisor):
        return images, trans_info
    images = functional.repeat_edges(images, functional.rounded_up(size, divisor), (-2, -1))
    return images, [*trans_info, ("padding", size)]


def _undo(plane: np.ndarray, trans_info: TransInfo, interp: int) -> np.ndarray:
    """Undoes resizes and paddings on [h, w], last first."""
    for kind, size, *offset in reversed(trans_info):
        size = (int(size[0]), int(size[1]))
        if kind == "resize":
            plane = functional.resize(plane, size, interp)
        elif kind == "padding":
            top, left = (int(o) for o in offset[0]) if offset else (0, 0)
            if top + size[0] > plane.shape[0] or left + size[1] > plane.shape[1]:
                raise ValueError(
                    f"trans_info {trans_info} says that {size} was padded, but there are only "
                    f"{plane.shape}: it belongs to another image or another order of transforms."
                )
            plane = functional.crop(plane, top, left, size)
        else:
            raise ValueError(
                f"trans_info has the step {kind!r}; 'resize' and 'padding' can be undone."
            )
    return plane


def restore(array: np.ndarray, trans_info: TransInfo, interp: str = "linear") -> np.ndarray:
    """Brings a network's output back to the size of the image that was read.

    Args:
        array (np.ndarray): Scores, float [C, h, w] or [h, w], or labels, integers [h, w].
        trans_info (list): ("resize" | "padding", (height, width) before the step) in the order of
            the steps; an optional third element is the (top, left) of the image in its padding.
        interp (str): "linear" (half-pixel centres, no align_corners) for scores, "nearest" for
            labels.

    Returns:
        np.ndarray: [C, H, W] or [H, W]; float32 for scores, the given dtype for "nearest".

    Raises:
        ValueError: An unknown step or interp, labels with "linear", or a trans_info that does not
            fit the array.
    """
    flags = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
    if interp not in flags:
        raise ValueError(f"interp must be 'linear' or 'nearest', but it is {interp!r}.")
    if array.ndim not in (2, 3):
        raise ValueError(f"expected [C, h, w] or [h, w], but the shape is {array.shape}.")
    if interp == "linear":
        if array.dtype.kind != "f":
            raise ValueError(f"{array.dtype} holds labels: they are restored with 'nearest'.")
        array = array.astype(np.float32, copy=False)
    if array.ndim == 2:
        return _undo(array, trans_info, flags[interp])
    return np.stack([_undo(plane, trans_info, flags[interp]) for plane in array])


def scores_to_labels(scores: np.ndarray, trans_info: TransInfo) -> np.ndarray:
    """Restores scores bilinearly and takes the best class of each pixel.

    One class is restored at a time, so the memory needed does not grow with the number of classes.

    Args:
        scores (np.ndarray): Logits or probabilities, float [C, h, w].
        trans_info (list): As for `restore`.

    Returns:
        np.ndarray: int32 [H, W], 0..C-1; equal scores go to the lower class, as np.argmax does.
    """
    if scores.ndim != 3 or len(scores) == 0:
        raise ValueError(f"expected scores [C, h, w], but the shape is {scores.shape}.")
    best = restore(scores[0], trans_info).copy()
    labels = np.zeros(best.shape, np.int32)
    for c in range(1, len(scores)):
        plane = restore(scores[c], trans_info)
        np.copyto(labels, np.int32(c), where=plane > best)
        np.maximum(best, plane, out=best)
    return labels


def labels_and_scores(
    scores: np.ndarray, trans_info: TransInfo, want_scores: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """A network's result for one image at the size of the image that was read.

    Args:
        scores (np.ndarray): Logits or probabilities, float [C, h, w], finite.
        trans_info (list): As for `restore`.
        want_scores (bool): Give the scores too, which takes their memory at the original size.

    Returns:
        tuple: Labels, int32 [H, W], equal scores to the lower class; scores, float32 [C, H, W], or
        None.
    """
    if want_scores:
        restored = restore(scores, trans_info)
        return best_classes(restored), restored
    if any(step[0] == "resize" for step in trans_info):
        return scores_to_labels(scores, trans_info), None
    # Cropping padding off commutes with taking the best class.
    return labels_to_original(best_classes(scores), trans_info), None


def labels_to_original(labels: np.ndarray, trans_info: TransInfo) -> np.ndarray:
    """Restores a network's labels by nearest.

    Args:
        labels (np.ndarray): Integers [h, w].
        trans_info (list): As for `restore`.

    Returns:
        np.ndarray: [H, W] of the same dtype.
    """
    return restore(labels, trans_info, "nearest")


def softmax(logits: np.ndarray, axis: int = 0) -> np.ndarray:
    """Probabilities from logits, computed in float32 and safe for large values.

    Args:
        logits (np.ndarray): Any shape.
        axis (int): The axis of the classes.

    Returns:
        np.ndarray: float32, the same shape, summing to 1 along `axis`.
    """
    logits = logits.astype(np.float32)
    out = np.exp(logits - logits.max(axis=axis, keepdims=True))
    out /= out.sum(axis=axis, keepdims=True)
    return out

# SPDX-License-Identifier: Apache-2.0
"""Inference of a batch: whole images, sliding windows, several scales and flips.

Three deviations from PaddleSeg, each where it happens: scales and flips average probabilities, not
logits; results come back as one NumPy label map an image, at its original size; and where scores
are not asked for, only labels leave the device.

A model is an nn.Layer, or an `engine.Engine` in its place. On a CPU what follows the network is
done in NumPy and OpenCV (`prediction.scores`). On a GPU it stays there: a batch is read back twice,
one number that tells whether the scores are finite and the labels, however many windows, scales and
flips there are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddleseg_deeplab.core.slide import (
    WINDOW_SETTINGS,
    check_window,
    slide_logits,
    sums_on_host,
    window_for,
    window_starts,
)
from paddleseg_deeplab.deploy.engine import Engine, run_network
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.prediction.batching import automatic_batch
from paddleseg_deeplab.prediction.restore import TransInfo
from paddleseg_deeplab.prediction.scores import add_probabilities, all_finite, check_finite
from paddleseg_deeplab.utils.errors import UserError

__all__ = [
    "WINDOW_SETTINGS",
    "aug_inference",
    "aug_probabilities",
    "check_scales",
    "check_window",
    "flip_combinations",
    "inference",
    "labels_and_scores",
    "per_image_trans_info",
    "slide_logits",
    "window_for",
    "window_starts",
]

# An image each: labels, int32 [H, W]; scores, float32 [K, H, W], where they are asked for.
LabelsAndScores = tuple[list[np.ndarray], list[np.ndarray] | None]


def _logits(model, im, window):
    """Tensor, or array from an `Engine` and from windows that are summed in host memory; `window`
    has the keyword arguments of `window_for`."""
    found = window_for(im.shape[2:], **window)
    if found is None:
        return run_network(model, im)
    crop_size, stride = found
    return slide_logits(model, im, crop_size, stride)


def _window(is_slide, crop_size, stride, slide_above):
    """The parameters of `inference` that say how large images go through the network, in one."""
    return {
        "is_slide": is_slide,
        "crop_size": crop_size,
        "stride": stride,
        "slide_above": slide_above,
    }


def per_image_trans_info(
    trans_info: TransInfo | Sequence[TransInfo], count: int
) -> list[TransInfo]:
    """One list of steps an image: a batch's list of lists as it is, one image's list repeated."""
    steps: Sequence[Any] = trans_info
    # A step is (name, size); an entry of a batch is a list of steps, perhaps an empty one.
    first = steps[0] if steps else ("",)
    if len(first) and isinstance(first[0], str):
        return [list(steps)] * count
    if len(steps) != count:
        raise ValueError(f"trans_info of {len(steps)} images for {count} images.")
    return list(steps)


def labels_and_scores(
    scores: Tensor | np.ndarray,
    trans_info: TransInfo | Sequence[TransInfo],
    return_scores: bool = False,
    *,
    names: Sequence[str] | None = None,
) -> LabelsAndScores:
    """Brings scores back to the original sizes and takes the best class.

    Args:
        scores (Tensor | np.ndarray): float32 [N, K, h, w] at the network's input size.
        trans_info (list): Steps to undo, of one image or a list of them an image.
        return_scores (bool): Give the scores back too.
        names (Sequence[str], optional): Of the images, for messages.

    Returns:
        tuple[list[np.ndarray], list[np.ndarray] | None]: An image's labels, int32 [H, W] at its
        original size; its scores, float32 [K, H, W], or None.

    Raises:
        UserError: A score is NaN or infinite.
    """
    check_finite(scores, names)
    infos = per_image_trans_info(trans_info, scores.shape[0])
    resized = any(step[0] == "resize" for info in infos for step in info)
    if not (resized or return_scores or isinstance(scores, np.ndarray)):
        # Cropping padding off commutes with argmax: K times less to copy from the device.
        labels = paddle.argmax(scores, axis=1, dtype="int32").numpy()
        return [restore.labels_to_original(m, info) for m, info in zip(labels, infos)], None
    pairs = zip(np.asarray(scores), infos)
    found = [restore.labels_and_scores(s, info, return_scores) for s, info in pairs]
    own = [one for _, one in found if one is not None]
    return [labels for labels, _ in found], own if return_scores else None


def inference(
    model: nn.Layer | Engine,
    im: Tensor | np.ndarray,
    trans_info: TransInfo | Sequence[TransInfo] | None = None,
    is_slide: bool = False,
    stride: Sequence[int] | int | None = None,
    crop_size: Sequence[int] | int | None = None,
    *,
    slide_above: float | None = None,
    return_scores: bool = False,
    names: Sequence[str] | None = None,
) -> Tensor | LabelsAndScores:
    """Inference of a batch of images of one size; the caller sets eval mode.

    Args:
        model (nn.Layer | Engine): A layer gives a list of logits.
        im (Tensor | np.ndarray): float32 [N, C, H, W], preprocessed.
        trans_info (list, optional): Resize and padding steps to undo: one image's list, which
            holds for all, or a list of such lists. None: see Returns.
        is_slide (bool): Use a sliding window. Default False.
        stride (Sequence[int], optional): Of the window, (width, height).
        crop_size (Sequence[int], optional): Of the window, (width, height).
        slide_above (float, optional): Use it on large images only, see `slide.window_for`.
        return_scores (bool): Give the logits at the original size back too.
        names (Sequence[str], optional): Of the images, for messages.

    Returns:
        Tensor | tuple: Without `trans_info` the logits, float32 [N, K, H, W]. With it
        ``(labels, scores)``: a list of int32 [H, W] at the original sizes, and a list of float32
        [K, H, W] logits or None. (PaddleSeg: a tensor of labels, all of one size, and the logits.)

    Raises:
        UserError: `crop_size` or `stride` is missing or does not fit; or, with `trans_info`, a
            logit is NaN or infinite.
    """
    window = _window(is_slide, crop_size, stride, slide_above)
    with paddle.no_grad():
        logits = _logits(model, im, window)
        if trans_info is None:
            return paddle.to_tensor(logits) if isinstance(logits, np.ndarray) else logits
        return labels_and_scores(logits, trans_info, return_scores, names=names)


def check_scales(scales: float | Sequence[float]) -> list[float]:
    """Scales of one number or several as a list of positive float; UserError otherwise."""
    if isinstance(scales, (int, float)) and not isinstance(scales, bool):
        scales = [scales]
    if not isinstance(scales, (list, tuple)) or not scales:
        raise UserError(f"scales takes a number or a list of numbers, got {scales!r}.")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < np.inf:
            raise UserError(f"scales takes positive, finite numbers, got {scale!r}.")
    return [float(scale) for scale in scales]


def flip_combinations(
    flip_horizontal: bool = False, flip_vertical: bool = False
) -> list[list[int]]:
    """Axes of [N, C, H, W] to flip, one list a pass; the first pass flips nothing."""
    passes: list[list[int]] = [[]]
    if flip_horizontal:
        passes += [[3]]
    if flip_vertical:
        passes += [[*axes, 2] for axes in passes]
    return passes


def _resize(x, size):
    # Half-pixel centres, as the transforms resize; the model's align_corners concerns its inside.
    if list(x.shape[2:]) == list(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def aug_probabilities(
    model: nn.Layer | Engine,
    im: Tensor | np.ndarray,
    scales: float | Sequence[float] = 1.0,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    window: Mapping[str, Any] | None = None,
    size_divisor: int | None = None,
) -> Tensor | np.ndarray:
    """Mean class probabilities over scales and flips.

    PaddleSeg averages logits, which lets one confident pass outvote the others. Each pass' logits
    are flipped back and resized to the input's size before the softmax.

    Small images go through the network with their flips in one batch (`batching.automatic_batch`).
    Beside the network's own memory the CPU needs ``4 * N * K * (H * W + n * h * w)`` bytes for K
    classes and n passes of the largest size h x w at a time (n is 1 from 65536 pixels on).

    Args:
        model, im, scales, flip_horizontal, flip_vertical: As of `aug_inference`.
        window (dict, optional): Keyword arguments of `slide.window_for`; whole images by default.
        size_divisor (int, optional): As of `aug_inference`.

    Returns:
        np.ndarray | Tensor: float32 [N, K, H, W], sums to 1 over K; a Tensor on a GPU. All NaN
        for an image with a logit that is NaN or infinite: a softmax makes 0 of -inf.
    """
    scales = check_scales(scales)
    height, width = im.shape[-2:]
    passes = flip_combinations(flip_horizontal, flip_vertical)
    on_host = sums_on_host(model)
    add = _add_on_host if on_host else _add_on_device
    im = paddle.to_tensor(im) if isinstance(im, np.ndarray) else im
    total = None
    for scale in scales:
        size = [_scaled(side, scale, size_divisor or 1) for side in (height, width)]
        scaled = _resize(im, size)
        scaled = scaled.numpy() if on_host else scaled
        at_once = max(automatic_batch(size) // im.shape[0], 1)
        for first in range(0, len(passes), at_once):
            group = passes[first : first + at_once]
            batch = _flipped(scaled, group)
            logits = _logits(model, batch, window or {})
            total = add(total, logits, group, (height, width), len(scales) * len(passes))
    return total


def _scaled(side, scale, divisor):
    """The multiple of the divisor that is nearest to side * scale, and at least the divisor."""
    return max(int(side * scale / divisor + 0.5), 1) * divisor


def _flipped(images, passes):
    """The images once for each pass's flips: [len(passes) * N, C, H, W]."""
    on_host = isinstance(images, np.ndarray)
    flip, join = (np.flip, np.concatenate) if on_host else (paddle.flip, paddle.concat)
    flipped = [flip(images, axes) if axes else images for axes in passes]
    return join(flipped) if len(flipped) > 1 else flipped[0]


def _add_on_host(total, logits, passes, size, count):
    logits = np.asarray(logits)
    images = len(logits) // len(passes)
    if total is None:
        total = np.zeros((images, logits.shape[1], *size), np.float32)
    for i, one in enumerate(logits):
        if all_finite(one):
            add_probabilities(total[i % images], one, passes[i // images], count)
        else:
            total[i % images] = np.nan
    return total


def _add_on_device(total, logits, passes, size, count):
    logits = paddle.to_tensor(logits) if isinstance(logits, np.ndarray) else logits
    parts = paddle.split(logits, len(passes))
    for axes, part in zip(passes, parts):
        fault = (part * 0).sum(axis=[1, 2, 3], keepdim=True)  # 0, or NaN, without a host read
        part = paddle.flip(part, axes) if axes else part
        probabilities = F.softmax(_resize(part, list(size)), axis=1) / count
        total = probabilities if total is None else total.add_(probabilities)
        total = total.add_(fault)
    return total


def aug_inference(
    model: nn.Layer | Engine,
    im: Tensor | np.ndarray,
    trans_info: TransInfo | Sequence[TransInfo],
    scales: float | Sequence[float] = 1.0,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    is_slide: bool = False,
    stride: Sequence[int] | int | None = None,
    crop_size: Sequence[int] | int | None = None,
    *,
    slide_above: float | None = None,
    size_divisor: int | None = None,
    return_scores: bool = False,
    names: Sequence[str] | None = None,
) -> LabelsAndScores:
    """Inference over several scales and flips, probabilities averaged.

    Args:
        model (nn.Layer | Engine): A layer gives a list of logits.
        im (Tensor | np.ndarray): float32 [N, C, H, W], preprocessed.
        trans_info (list): Steps to undo, as for `inference`.
        scales (float | Sequence[float]): Sizes relative to the input. Default 1.0.
        flip_horizontal (bool): Add a pass over the mirrored image. Default False.
        flip_vertical (bool): Add passes over the image upside down. Default False.
        is_slide, stride, crop_size, slide_above: As for `inference`; the window keeps its size at
            each scale, and each scale's size says whether it is used.
        size_divisor (int, optional): Sides of scaled images are rounded to multiples of it.
        return_scores (bool): Give the probabilities at the original size back too.
        names (Sequence[str], optional): Of the images, for messages.

    Returns:
        tuple: ``(labels, scores)`` as of `inference`; the scores are probabilities.

    Raises:
        UserError: As of `inference`.
    """
    window = _window(is_slide, crop_size, stride, slide_above)
    with paddle.no_grad():
        probabilities = aug_probabilities(
            model, im, scales, flip_horizontal, flip_vertical, window, size_divisor
        )
        return labels_and_scores(probabilities, trans_info, return_scores, names=names)

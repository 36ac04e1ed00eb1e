# SPDX-License-Identifier: Apache-2.0
"""Inference of a batch: whole images, sliding windows, several scales and flips.

Three deviations from PaddleSeg, each where it happens: scales and flips average probabilities, not
logits; results come back as one NumPy label map an image, at its original size; and where scores
are not asked for, only labels leave the device.
"""

import numpy as np
import paddle
import paddle.nn.functional as F

from paddleseg_deeplab.core.forward import infer_logits
from paddleseg_deeplab.transforms import pipeline
from paddleseg_deeplab.utils.errors import UserError


def _size_pair(name, value):
    """(w, h) of a setting as two positive int."""
    if value is None:
        raise UserError(f"A sliding window needs {name}: two numbers, width and height.")
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or any(type(v) is not int or v < 1 for v in pair):
        raise UserError(f"{name} takes two positive whole numbers (width, height), got {value!r}.")
    return int(pair[0]), int(pair[1])


def check_window(crop_size, stride):
    """Checks a sliding window's settings.

    Args:
        crop_size, stride (Sequence[int]): (width, height) in pixels.

    Returns:
        tuple: ``(crop_w, crop_h), (stride_w, stride_h)``.

    Raises:
        UserError: One is missing or not positive, or the stride would leave pixels out.
    """
    crop, step = _size_pair("crop_size", crop_size), _size_pair("stride", stride)
    if step[0] > crop[0] or step[1] > crop[1]:
        raise UserError(
            f"The stride {step} is larger than the crop_size {crop}: pixels between the windows "
            "would be left out. Use a stride of at most the crop size."
        )
    return crop, step


def window_starts(size, crop, stride):
    """First pixels of the windows along one side: a regular grid whose last window ends exactly
    at the edge; one window where the image is not larger than the crop."""
    if size <= crop:
        return [0]
    return [*range(0, size - crop, stride), size - crop]


def _coverage(size, crop, starts):
    count = np.zeros(size, dtype=np.float32)
    for start in starts:
        count[start : start + crop] += 1
    return count


def slide_logits(model, im, crop_size, stride):
    """Mean logits of overlapping windows.

    The windows' logits are added up in one buffer of the images' size in host memory, so the
    device holds one window at a time, and divided by the number of windows over each pixel.

    Args:
        model (nn.Layer): In eval mode.
        im (Tensor): float32 [N, C, H, W]; where a side is smaller than the crop, the window is as
            long as the side.
        crop_size, stride (Sequence[int]): (width, height).

    Returns:
        np.ndarray: float32 [N, num_classes, H, W].
    """
    (crop_w, crop_h), (stride_w, stride_h) = check_window(crop_size, stride)
    height, width = im.shape[-2:]
    rows = window_starts(height, crop_h, stride_h)
    columns = window_starts(width, crop_w, stride_w)
    total = None
    for y in rows:
        for x in columns:
            window = im[:, :, y : y + crop_h, x : x + crop_w]
            logits = infer_logits(model, window).numpy()  # [N, K, <= crop_h, <= crop_w]
            if total is None:
                total = np.zeros((*logits.shape[:2], height, width), dtype=np.float32)
            total[:, :, y : y + crop_h, x : x + crop_w] += logits
    total /= _coverage(height, crop_h, rows)[:, None]
    total /= _coverage(width, crop_w, columns)
    return total


def _logits(model, im, is_slide, stride, crop_size):
    if is_slide:
        return paddle.to_tensor(slide_logits(model, im, crop_size, stride))
    return infer_logits(model, im)


def per_image_trans_info(trans_info, count):
    """One list of steps an image: a batch's list of lists as it is, one image's list repeated."""
    # A step is (name, size); an entry of a batch is a list of steps, perhaps an empty one.
    first = trans_info[0] if trans_info else ("",)
    if len(first) and isinstance(first[0], str):
        return [list(trans_info)] * count
    if len(trans_info) != count:
        raise ValueError(f"trans_info of {len(trans_info)} images for {count} images.")
    return list(trans_info)


def check_finite(scores, names=None):
    """Raises UserError where scores are NaN or infinite, whose best class would mean nothing.

    Args:
        scores (Tensor | np.ndarray): float32 [N, ...].
        names (Sequence[str], optional): Of the N images, for the message.
    """
    # One sum for a batch; only where it fails, which may be its own overflow, each is looked at.
    with np.errstate(all="ignore"):
        if np.isfinite(float(scores.sum())):
            return
    for i in range(scores.shape[0]):
        one = scores[i] if isinstance(scores, np.ndarray) else scores[i].numpy()
        if not np.isfinite(one).all():
            name = names[i] if names else f"image {i} of the batch"
            raise UserError(
                f"{name}: the network gives NaN or infinite values, which have no best class. "
                "Either its weights do (a training that diverged: take an earlier checkpoint), or "
                "the image's own values are not finite, or --precision fp16 overflows."
            )


def labels_and_scores(scores, trans_info, return_scores=False, *, names=None):
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
    on_host = isinstance(scores, np.ndarray)
    if not (resized or return_scores or on_host):
        # Cropping padding off commutes with argmax: K times less to copy from the device.
        labels = paddle.argmax(scores, axis=1, dtype="int32").numpy()
        return [pipeline.labels_to_original(m, info) for m, info in zip(labels, infos)], None
    host = scores if on_host else scores.numpy()
    if not return_scores:
        return [pipeline.scores_to_labels(s, info) for s, info in zip(host, infos)], None
    restored = [pipeline.restore(s, info, "linear") for s, info in zip(host, infos)]
    return [pipeline.scores_to_labels(s, []) for s in restored], restored


def inference(
    model,
    im,
    trans_info=None,
    is_slide=False,
    stride=None,
    crop_size=None,
    *,
    return_scores=False,
    names=None,
):
    """Inference of a batch of images of one size; the caller sets eval mode.

    Args:
        model (nn.Layer): Gives a list of logits.
        im (Tensor): float32 [N, C, H, W], preprocessed.
        trans_info (list, optional): Resize and padding steps to undo: one image's list, which
            holds for all, or a list of such lists. None: see Returns.
        is_slide (bool): Use a sliding window. Default False.
        stride (Sequence[int], optional): Of the window, (width, height).
        crop_size (Sequence[int], optional): Of the window, (width, height).
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
    with paddle.no_grad():
        if trans_info is None:
            return _logits(model, im, is_slide, stride, crop_size)
        if is_slide:
            logits = slide_logits(model, im, crop_size, stride)
        else:
            logits = infer_logits(model, im)
        return labels_and_scores(logits, trans_info, return_scores, names=names)


def check_scales(scales):
    """Scales of one number or several as a list of positive float; UserError otherwise."""
    if isinstance(scales, (int, float)) and not isinstance(scales, bool):
        scales = [scales]
    if not isinstance(scales, (list, tuple)) or not scales:
        raise UserError(f"scales takes a number or a list of numbers, got {scales!r}.")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < np.inf:
            raise UserError(f"scales takes positive, finite numbers, got {scale!r}.")
    return [float(scale) for scale in scales]


def flip_combinations(flip_horizontal=False, flip_vertical=False):
    """Axes of [N, C, H, W] to flip, one list a pass; the first pass flips nothing."""
    passes = [[]]
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
    model,
    im,
    scales=1.0,
    flip_horizontal=False,
    flip_vertical=False,
    is_slide=False,
    stride=None,
    crop_size=None,
):
    """Mean class probabilities over scales and flips.

    PaddleSeg averages logits, which lets one confident pass outvote the others. Each pass' logits
    are flipped back and resized to the input's size before the softmax.

    Args:
        As of `inference` and `aug_inference`.

    Returns:
        Tensor: float32 [N, K, H, W], sums to 1 over K.
    """
    scales = check_scales(scales)
    height, width = im.shape[-2:]
    passes = flip_combinations(flip_horizontal, flip_vertical)
    total = None
    for scale in scales:
        size = [max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)]
        scaled = _resize(im, size)
        for axes in passes:
            flipped = paddle.flip(scaled, axes) if axes else scaled
            logits = _logits(model, flipped, is_slide, stride, crop_size)
            logits = paddle.flip(logits, axes) if axes else logits
            probabilities = F.softmax(_resize(logits, [height, width]), axis=1)
            total = probabilities if total is None else total.add_(probabilities)
    return total / (len(scales) * len(passes))


def aug_inference(
    model,
    im,
    trans_info,
    scales=1.0,
    flip_horizontal=False,
    flip_vertical=False,
    is_slide=False,
    stride=None,
    crop_size=None,
    *,
    return_scores=False,
    names=None,
):
    """Inference over several scales and flips, probabilities averaged.

    Args:
        model (nn.Layer): Gives a list of logits.
        im (Tensor): float32 [N, C, H, W], preprocessed.
        trans_info (list): Steps to undo, as for `inference`.
        scales (float | Sequence[float]): Sizes relative to the input. Default 1.0.
        flip_horizontal (bool): Add a pass over the mirrored image. Default False.
        flip_vertical (bool): Add passes over the image upside down. Default False.
        is_slide, stride, crop_size: As for `inference`; the window keeps its size at each scale.
        return_scores (bool): Give the probabilities at the original size back too.
        names (Sequence[str], optional): Of the images, for messages.

    Returns:
        tuple: ``(labels, scores)`` as of `inference`; the scores are probabilities.

    Raises:
        UserError: As of `inference`.
    """
    with paddle.no_grad():
        probabilities = aug_probabilities(
            model, im, scales, flip_horizontal, flip_vertical, is_slide, stride, crop_size
        )
        return labels_and_scores(probabilities, trans_info, return_scores, names=names)

# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on a dataset."""

import time

import cv2
import numpy as np
import paddle
from tqdm import tqdm

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.feed import equal_size_batches, read_ahead
from paddleseg_deeplab.core.forward import (
    compute_losses,
    evaluation_mode,
    infer_logits,
    precision_context,
)
from paddleseg_deeplab.core.report import EvaluationResult, log_result, write_report
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.metrics import ConfusionMatrix, check_class_names

__all__ = ["EvaluationResult", "evaluate", "write_report"]


def label_like_input(label, trans_info, size, void=255):
    """Puts an original-size label through the image's resize and padding steps.

    Args:
        label (np.ndarray): Integers [H, W].
        trans_info (list): Steps, each with the (h, w) before it.
        size (tuple): (h, w) of the network's input, after the last step.
        void (int): Value of padding. Default 255.

    Returns:
        np.ndarray: [h, w], resized by nearest.
    """
    after = [step[1] for step in trans_info[1:]] + [size]
    for step, target in zip(trans_info, after):
        target = (int(target[0]), int(target[1]))
        if step[0] == "resize":
            label = functional.resize(label, target, cv2.INTER_NEAREST)
        else:  # ("padding", size, offset where it is not at the top left)
            offset = step[2] if len(step) > 2 else (0, 0)
            label = functional.pad(label, target, void, offset)
    return label


class _ValidationLoss:
    """Mean over the images of the main output's loss, on the network's input grid.

    The label takes the way of the image (resize, padding as void), so that the loss is the
    training's, whatever the transforms are. An image at a time: the mean does not depend on the
    batch size. Images without a counted pixel are left out.
    """

    def __init__(self, losses, ignore_index):
        # In eval mode a network gives its main output only; auxiliary ones have no part here.
        self.losses = losses and {"types": losses["types"][:1], "coef": losses["coef"][:1]}
        self.ignore_index = ignore_index
        self.sum, self.count = 0.0, 0

    @property
    def mean(self):
        return self.sum / self.count if self.count else None

    def add(self, logits, samples):
        for i, sample in enumerate(samples):
            label = _label_of(sample)
            size, steps = tuple(logits.shape[2:]), sample.get("trans_info", [])
            original = tuple(steps[0][1]) if steps else size
            if label.shape != original or (label == self.ignore_index).all():
                continue  # a label of another size is an error, which `_count` raises
            label = label_like_input(label, steps, size, self.ignore_index)
            label = paddle.to_tensor(label[None].astype(np.int64))
            self.sum += float(compute_losses([logits[i : i + 1]], label, self.losses)[0])
            self.count += 1


def _label_of(sample):
    label = np.asarray(sample["label"])
    return label.reshape(label.shape[-2:])  # [H, W], from [1, H, W] too


def _name_of(sample):
    path = sample.get("im_path")
    return str(path) if path is not None else f"sample {sample['index']}"


def _check_setting(losses, aug_eval, is_slide, scales, stride, crop_size):
    if aug_eval:
        infer.check_scales(scales)
    if is_slide:
        infer.check_window(crop_size, stride)
    if losses is not None and (aug_eval or is_slide):
        logger.warning("The validation loss is computed on whole images only: it is left out.")
        return None
    return losses


def evaluate(
    model,
    eval_dataset,
    aug_eval=False,
    scales=1.0,
    flip_horizontal=False,
    flip_vertical=False,
    is_slide=False,
    stride=None,
    crop_size=None,
    precision="fp32",
    amp_level="O1",
    num_workers=0,
    print_detail=True,
    *,
    batch_size=1,
    losses=None,
    worst=10,
    progress=True,
):
    """Evaluates a model at the labels' original size.

    Where Paddle runs on several ranks, every rank must call it: each takes its share of the images
    (none twice) and all get the result of the whole set.

    Args:
        model (nn.Layer): Its layers have their modes back afterwards.
        eval_dataset: A dataset in mode "val": samples with ``img`` float32 [C, h, w], ``label``
            integers [H, W] at the original size, ``trans_info``; attributes ``num_classes``,
            ``ignore_index`` and, where there are, ``class_names``.
        aug_eval (bool): Average over scales and flips. Default False.
        scales, flip_horizontal, flip_vertical: See `core.infer.aug_inference`; for `aug_eval`.
        is_slide (bool): Use a sliding window. Default False.
        stride, crop_size (Sequence[int], optional): Of the window, (width, height).
        precision (str): "fp32", "fp16" or "bf16"; the last two on a GPU only.
        amp_level (str): "O1" or "O2".
        num_workers (int): Threads that read and transform images ahead (PaddleSeg: processes).
        print_detail (bool): Log the figures and the table of classes.
        batch_size (int): Images of equal size that go through the network together; the figures
            do not depend on it, beyond the last digits of float32.
        losses (dict, optional): ``types`` and ``coef`` as `SegBuilder.loss`, for the validation
            loss: the first (main) one, on the network's input grid, mean over images.
        worst (int): How many of the worst images to list.
        progress (bool): Show a progress bar on a terminal.

    Returns:
        EvaluationResult: Unpacks into mIoU, accuracy, class IoU, class precision, kappa.

    Raises:
        UserError: A setting is wrong, an image cannot be read, sizes of label and image differ,
            or a label's value is out of range; the file is named.
    """
    losses = _check_setting(losses, aug_eval, is_slide, scales, stride, crop_size)
    start = time.perf_counter()
    settings = {"is_slide": is_slide, "stride": stride, "crop_size": crop_size}
    if aug_eval:
        settings.update(scales=scales)
        settings.update(flip_horizontal=flip_horizontal, flip_vertical=flip_vertical)
    ignore_index = getattr(eval_dataset, "ignore_index", 255)
    names = getattr(eval_dataset, "class_names", None) or None
    names = check_class_names(names, eval_dataset.num_classes)
    confusion = ConfusionMatrix(eval_dataset.num_classes, ignore_index)
    loss = _ValidationLoss(losses, ignore_index)
    records = []
    rank, ranks = _rank()
    indices = range(rank, len(eval_dataset), ranks)
    samples = read_ahead(lambda i: dict(eval_dataset[i], index=i), indices, num_workers)
    hide = None if progress and rank == 0 else True  # None: shown on a terminal only
    bar = tqdm(total=len(indices), desc="evaluate", unit="image", disable=hide, leave=False)
    with bar, evaluation_mode(model), paddle.no_grad():
        for group, images in equal_size_batches(samples, batch_size):
            with precision_context(precision, amp_level):
                labels = _predict(model, group, images, aug_eval, settings, loss)
            for sample, predicted in zip(group, labels):
                records.append(_count(confusion, sample, predicted))
            bar.update(len(group))
    if ranks > 1:
        records = _gather(confusion, records, loss)
    records.sort(key=lambda record: record["index"])
    known = sorted((r for r in records if r["miou"] == r["miou"]), key=lambda r: r["miou"])
    seconds = time.perf_counter() - start
    result = EvaluationResult(confusion, names, records, known[:worst], loss.mean, seconds)
    if rank == 0:
        _warn_of_one_class(confusion, names)
        if print_detail:
            log_result(result)
    return result


def _warn_of_one_class(confusion, names):
    """Masks of 0 and 255 are the usual reason: 255 is void, and mIoU then looks perfect."""
    present = np.flatnonzero(confusion.label_area)
    if len(present) == 1 and confusion.num_classes > 1:
        logger.warning(
            "The labels hold no class but %s (and void, %d). Where masks hold 0 and 255, set "
            "label_map: {0: 0, 255: 1} on both datasets.",
            *(names[present[0]], confusion.ignore_index),
        )


def _predict(model, samples, images, aug_eval, settings, loss):
    """Labels of a batch at the original sizes; adds its validation loss where it is wanted."""
    images = paddle.to_tensor(images)
    infos = [sample.get("trans_info", []) for sample in samples]
    if aug_eval:
        return infer.aug_inference(model, images, infos, **settings)[0]
    if loss.losses is None:
        return infer.inference(model, images, infos, **settings)[0]
    logits = infer_logits(model, images)
    loss.add(logits, samples)
    return infer.labels_and_scores(logits, infos)[0]


def _count(confusion, sample, predicted):
    """Adds one image to the matrix; returns its record."""
    name = _name_of(sample)
    label = _label_of(sample)
    if label.shape != predicted.shape:
        raise UserError(
            f"{name}: the prediction has size {predicted.shape}, its label "
            f"{sample.get('label_path', '')} {label.shape} (height, width). Image and label must "
            "have the same size."
        )
    try:
        added = confusion.update(predicted, label)
    except ValueError as error:
        raise UserError(f"{sample.get('label_path') or name}: {error}") from error
    own = ConfusionMatrix.from_matrix(added)
    return {
        "index": int(sample["index"]),
        "path": name,
        "miou": own.mean_iou,
        "accuracy": own.accuracy,
    }


def _rank():
    """(rank, number of ranks); joins the ranks of a launcher where nobody has done so yet."""
    ranks = paddle.distributed.get_world_size()
    if ranks > 1 and not paddle.distributed.is_initialized():
        paddle.distributed.init_parallel_env()
    return paddle.distributed.get_rank(), ranks


def _gather(confusion, records, loss):
    """Sums all ranks' counts into `confusion` and `loss`; returns all ranks' records."""
    parts = []
    own = (confusion.matrix.tolist(), records, loss.sum, loss.count)
    paddle.distributed.all_gather_object(parts, own)
    confusion.matrix[:] = np.sum([np.asarray(p[0], dtype=np.int64) for p in parts], axis=0)
    loss.sum, loss.count = sum(p[2] for p in parts), sum(p[3] for p in parts)
    return [record for p in parts for record in p[1]]

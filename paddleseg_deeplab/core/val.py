# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on a dataset."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from paddleseg_deeplab.core.dataset import LabelledDataset
from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.report import (
    EvaluationResult,
    count_image,
    log_result,
    write_report,
)
from paddleseg_deeplab.core.stream import (
    NetworkSettings,
    engine_for,
    label_of,
    predictions,
    refuse_multilabel,
)
from paddleseg_deeplab.datasets.base import require_labels
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.models.losses.total import compute_losses
from paddleseg_deeplab.postprocess.settings import CrfSetting, make_crf
from paddleseg_deeplab.prediction import crf as dense_crf
from paddleseg_deeplab.prediction.batching import equal_size_batches, read_ahead, workers_for
from paddleseg_deeplab.prediction.restore import TransInfo
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.preprocessing import refuse_misplaced
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.metrics import ConfusionMatrix, check_class_names

__all__ = ["EvaluationResult", "evaluate", "write_report"]


def label_like_input(
    label: np.ndarray, trans_info: TransInfo, size: tuple[int, int], void: int = 255
) -> np.ndarray:
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
        self._scalars = []

    def values(self):
        """list[float]: One an image. They stay on the device until then: one read for all."""
        return paddle.stack(self._scalars).tolist() if self._scalars else []

    @staticmethod
    def mean(values):
        # Exactly rounded, so that the order of the images and their shares among ranks change
        # nothing.
        return math.fsum(values) / len(values) if values else None

    def add(self, logits, samples):
        for i, sample in enumerate(samples):
            label = label_of(sample)
            size, steps = tuple(logits.shape[2:]), sample.get("trans_info", [])
            original = tuple(steps[0][1]) if steps else size
            if label.shape != original or (label == self.ignore_index).all():
                continue  # a label of another size is an error, which `count_image` raises
            label = label_like_input(label, steps, size, self.ignore_index)
            label = paddle.to_tensor(label[None].astype(np.int64))
            one = logits[i : i + 1]
            one = paddle.to_tensor(one) if isinstance(one, np.ndarray) else one
            value = compute_losses([one], label, self.losses)[0]
            self._scalars.append(value.reshape([]))


def _whole_image_losses(losses, how):
    """The losses where they can be computed, else None with a warning."""
    if losses is not None and (how.aug or how.is_slide or how.slide_above is not None):
        logger.warning("The validation loss is computed on whole images only: it is left out.")
        return None
    return losses


def check_dataset(dataset: LabelledDataset) -> None:
    """Refuses a dataset without labels, or whose transforms move pixels for good while its labels
    stay in place; in mode "train" they move along."""
    require_labels(dataset, "val_dataset")
    if not str(getattr(dataset, "mode", "train")).startswith("train"):
        refuse_misplaced(getattr(dataset, "transforms", None), "evaluate: transforms")


def check_evaluation(dataset: LabelledDataset, settings: Mapping[str, Any]) -> None:
    """What `evaluate` refuses, for whoever evaluates later.

    Args:
        dataset: It will get.
        settings (Mapping): Keyword arguments that it will get.

    Raises:
        UserError: A setting is wrong, the dataset has no labels, or a transform of it moves pixels
            for good.
    """
    fields = {field.name for field in dataclasses.fields(NetworkSettings)}
    given = {name: value for name, value in settings.items() if name in fields}
    NetworkSettings(aug=bool(settings.get("aug_eval")), **given).check()
    check_dataset(dataset)


def evaluate(
    model: nn.Layer,
    eval_dataset: LabelledDataset,
    aug_eval: bool = False,
    scales: float | Sequence[float] = 1.0,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    is_slide: bool = False,
    stride: Sequence[int] | int | None = None,
    crop_size: Sequence[int] | int | None = None,
    precision: str = "fp32",
    amp_level: str = "O1",
    num_workers: int | None = 0,
    print_detail: bool = True,
    auc_roc: bool = False,
    use_multilabel: bool = False,
    *,
    slide_above: float | None = None,
    size_divisor: int | None = None,
    batch_size: int | None = 1,
    losses: Mapping[str, Any] | None = None,
    worst: int = 10,
    progress: bool = True,
    crf: CrfSetting = None,
    engine: str = "dygraph",
) -> EvaluationResult:
    """Evaluates a model at the labels' original size.

    Where Paddle runs on several ranks, every rank must call it: each takes its share of the images
    (none twice) and all get the result of the whole set. With a batch size of 1 it is exactly that
    of one process; larger batches are other groups of images there.

    Args:
        model (nn.Layer): Its layers have their modes back afterwards.
        eval_dataset: A dataset in mode "val": samples with ``img`` float32 [C, h, w], ``label``
            integers [H, W] at the original size, ``trans_info``; attributes ``num_classes``,
            ``ignore_index`` and, where there are, ``class_names``.
        aug_eval (bool): Average over scales and flips. Default False.
        scales, flip_horizontal, flip_vertical: See `core.infer.aug_inference`; for `aug_eval`.
        is_slide (bool): Use a sliding window. Default False.
        stride, crop_size (Sequence[int], optional): Of the window, (width, height).
        slide_above (float, optional): Use the window where the network's input has more than so
            many times its pixels, and whole images elsewhere; see `slide.window_for`.
        size_divisor (int, optional): The last row and column of the network's input are repeated
            until this number divides both sides, and cut off again; sides at other scales are
            rounded to multiples of it.
        precision (str): "fp32", "fp16" or "bf16"; the last two on a GPU, or "bf16" with the engine
            "openvino".
        amp_level (str): "O1" or "O2".
        num_workers (int | None): Threads that read and transform images ahead (PaddleSeg:
            processes); with a CRF as many again run it. None: `batching.workers_for`.
        print_detail (bool): Log the figures and the table of classes.
        auc_roc (bool): PaddleSeg's; that figure is not computed here, which a warning says.
        use_multilabel (bool): PaddleSeg's; only False, since a pixel has one class here.
        batch_size (int | None): Images of equal size that go through the network together; None:
            `batching.automatic_batch`. The figures do not depend on it, beyond the last digits of
            float32.
        losses (dict, optional): ``types`` and ``coef`` as `SegBuilder.loss`, for the validation
            loss: the first (main) one, on the network's input grid, mean over images.
        worst (int): How many of the worst images to list.
        progress (bool): Show a progress bar on a terminal.
        crf (optional): A `DenseCRF`, or its settings as `postprocess.settings.make_crf` takes
            them. It refines the mean class probabilities at the image's own size, for which the
            dataset needs ``load_image(index)`` or samples with ``im_path``.
        engine (str): What runs the network, see `deploy.engine.open_engine`. Default "dygraph", as
            an evaluation within a training would export anew each time.

    Returns:
        EvaluationResult: Unpacks into mIoU, accuracy, class IoU, class precision, kappa.

    Raises:
        UserError: A setting is wrong, a transform moves pixels for good, an image cannot be read,
            the network gives NaN or infinite values for it, sizes of label and image differ, or a
            label's value is out of range; the file is named.
            `out_of_memory.OutOfMemory` says which settings help.
    """
    refuse_multilabel(use_multilabel)
    if auc_roc:
        logger.warning("auc_roc has no effect: the area under the ROC curve is not computed here.")
    how = NetworkSettings(
        aug=aug_eval,
        scales=scales,
        flip_horizontal=flip_horizontal,
        flip_vertical=flip_vertical,
        is_slide=is_slide,
        stride=stride,
        crop_size=crop_size,
        slide_above=slide_above,
        size_divisor=size_divisor,
        precision=precision,
        amp_level=amp_level,
        engine=engine,
        batch_size=batch_size,
    )
    how.check()
    check_dataset(eval_dataset)
    loss = _ValidationLoss(
        _whole_image_losses(losses, how), getattr(eval_dataset, "ignore_index", 255)
    )
    refiner = make_crf(crf)
    start = time.perf_counter()
    names = getattr(eval_dataset, "class_names", None) or None
    names = check_class_names(names, eval_dataset.num_classes)
    confusion = ConfusionMatrix(eval_dataset.num_classes, loss.ignore_index)
    records = []
    ranks = join()
    indices = range(ranks.rank, len(eval_dataset), ranks.size)
    workers = workers_for(eval_dataset, num_workers)
    samples = read_ahead(lambda i: dict(eval_dataset[i], index=i), indices, workers)
    # Images that were read ahead are not worth waiting for once a stop was asked for.
    check_stop = getattr(eval_dataset, "check_stop", lambda: None)
    hide = None if progress and ranks.is_main else True  # None: shown on a terminal only
    bar = tqdm(total=len(indices), desc="evaluate", unit="image", disable=hide, leave=False)
    opened = engine_for(model, samples, len(eval_dataset), how)
    with ranks.guard(), bar, evaluation_mode(model), paddle.no_grad(), opened as (network, samples):
        batches = equal_size_batches(samples, batch_size)
        results = predictions(network, batches, how, loss=loss, probabilities=refiner is not None)
        if refiner is not None:
            results = dense_crf.refined(
                refiner, results, lambda s: dense_crf.image_of_sample(eval_dataset, s), workers
            )
        for sample, predicted, _ in results:
            check_stop()
            records.append(count_image(confusion, sample, predicted))
            bar.update(1)
    records, losses = _gather(ranks, confusion, records, loss.values())
    records.sort(key=lambda record: record["index"])
    known = sorted((r for r in records if r["miou"] == r["miou"]), key=lambda r: r["miou"])
    mean, seconds = loss.mean(losses), time.perf_counter() - start
    result = EvaluationResult(confusion, names, records, known[:worst], mean, seconds)
    if ranks.is_main:
        _warn_of_one_class(confusion, names)
        if print_detail:
            log_result(result)
    return result


def _warn_of_one_class(confusion, names):
    """Masks of 0 and 255 are the usual reason: 255 is void, and mIoU then looks perfect."""
    present = np.flatnonzero(confusion.label_area)
    if not len(present):
        logger.warning(
            "No pixel was counted: all labels are void (%d) everywhere, so there is no mIoU. Look "
            "at ignore_index, label_map and nodata of val_dataset.",
            confusion.ignore_index,
        )
    if len(present) == 1 and confusion.num_classes > 1:
        more = "" if confusion.num_classes == 2 else "num_classes: 2 and "
        logger.warning(
            "The labels hold no class but %s (and void, %d). Where masks hold 0 and 255, of one "
            "class beside the background, set %slabel_map: {0: 0, 255: 1} on both datasets.",
            names[present[0]],
            confusion.ignore_index,
            more,
        )


def _gather(ranks, confusion, records, losses):
    """Brings all ranks' counts into `confusion`; returns all ranks' records and losses."""
    if ranks.size == 1:
        return records, losses
    parts = ranks.gather((confusion.matrix, records, losses))
    confusion.matrix[:] = np.sum([part[0] for part in parts], axis=0)
    records, losses = ([item for part in parts for item in part[i]] for i in (1, 2))
    return records, losses

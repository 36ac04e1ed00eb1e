# SPDX-License-Identifier: Apache-2.0
"""Prediction of image files into files: overlays, palette PNGs, raw ids, probabilities."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.stream import (
    NetworkSettings,
    engine_for,
    predictions,
    refuse_multilabel,
)
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.postprocess.settings import CrfSetting, make_crf
from paddleseg_deeplab.prediction import crf as dense_crf
from paddleseg_deeplab.prediction import outputs as prediction_files
from paddleseg_deeplab.prediction import pictures
from paddleseg_deeplab.prediction.annotations import Annotations
from paddleseg_deeplab.prediction.batching import equal_size_batches, workers_for
from paddleseg_deeplab.prediction.cleanup import Cleanup, cleaned
from paddleseg_deeplab.prediction.pictures import Failures
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.transforms.preprocessing import refuse_misplaced
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.weights.load import load_entire_model


@dataclasses.dataclass
class PredictionResult:
    """What `predict` did.

    Attributes:
        written (dict[str, dict]): Image path -> {kind of output: file}.
        failed (list[tuple[str, str]]): Path and reason of each image that is not done.
    """

    written: dict[str, dict[str, str]]
    failed: Failures


class _Images:
    """Stands for a dataset where there are a `Compose` and files."""

    thread_safe = True  # its transforms speak for themselves

    def __init__(self, transforms):
        self.transforms = transforms


def _palette(
    palette: np.ndarray | None,
    custom_color: Sequence[int] | None,
    class_names: Sequence[str] | None,
) -> np.ndarray:
    """The colours to use: the dataset's, else the default ones; custom ones on top."""
    count = 256 if class_names is None else len(class_names)
    first = () if custom_color is None else custom_color
    if palette is None or len(first):
        default = visualize.default_palette(count, custom_color)
        if palette is None:
            return default
        given = min(len(first) // 3, len(palette))
        return np.concatenate([default[:given], np.asarray(palette, np.uint8)[given:]])
    return np.asarray(palette, np.uint8)


def predict(
    model: nn.Layer,
    model_path: str | Path | None,
    transforms: Compose,
    image_list: Sequence[str | Path],
    image_dir: str | None = None,
    save_dir: str = "output",
    aug_pred: bool = False,
    scales: float | Sequence[float] = 1.0,
    flip_horizontal: bool = True,
    flip_vertical: bool = False,
    is_slide: bool = False,
    stride: Sequence[int] | int | None = None,
    crop_size: Sequence[int] | int | None = None,
    custom_color: Sequence[int] | None = None,
    use_multilabel: bool = False,
    *,
    class_names: Sequence[str] | None = None,
    palette: np.ndarray | None = None,
    slide_above: float | None = None,
    size_divisor: int | None = None,
    outputs: Sequence[str] = ("overlay", "palette"),
    batch_size: int | None = 1,
    num_workers: int | None = 0,
    precision: str = "fp32",
    amp_level: str = "O1",
    progress: bool = True,
    crf: CrfSetting = None,
    engine: str = "dygraph",
    cleanup: Cleanup | None = None,
) -> PredictionResult:
    """Predicts images and writes the results at the images' original sizes.

    Results go to sub folders of `save_dir`: ``added_prediction`` (overlay) and
    ``pseudo_color_prediction`` (palette PNG) as in PaddleSeg, ``raw_prediction`` (class numbers),
    ``probability`` (.npy); names follow `prediction.outputs.output_names`. Overlays are PNGs
    (PaddleSeg keeps the image's format). A legend of the classes is written beside them.

    An image that cannot be read, predicted or written does not stop the others: it is reported at
    the end. Pixels without data (`nodata` of the Compose) are void, 255, in the results, but for
    probabilities, which stay what the network gives.

    Where Paddle runs on several ranks, every rank must call it: each predicts its share of the
    images, and all get the result of the whole list.

    Args:
        model (nn.Layer): Its layers have their modes back afterwards.
        model_path (str | None): Weights to load; None uses the model as it is.
        transforms (Compose): Preprocessing, that of the validation set.
        image_list (list[str]): Image paths.
        image_dir (str, optional): Folder that result names are relative to. Default: the images'
            common folder.
        save_dir (str): Where results go. Default "output".
        aug_pred (bool): Average over scales and flips. Default False.
        scales, flip_horizontal, flip_vertical: See `core.infer.aug_inference`; for `aug_pred`.
        is_slide (bool): Use a sliding window. Default False.
        stride, crop_size (Sequence[int], optional): Of the window, (width, height).
        custom_color (list[int], optional): R, G, B, R, G, B, ... in place of the first colours.
        use_multilabel (bool): PaddleSeg's; only False, since a pixel has one class here.
        class_names (list[str], optional): For the legend.
        palette (np.ndarray, optional): RGB [K, 3]; default `visualize.default_palette`.
        slide_above, size_divisor: As for `core.val.evaluate`.
        outputs (Sequence[str]): Of "overlay", "palette", "raw", "prob", "labelme",
            "labelme_polygons", "coco", "areas"; see `prediction.annotations`.
        batch_size (int | None): As for `core.val.evaluate`.
        num_workers (int | None): Threads that read ahead; as many again write the results (not
            with "prob"), and where there is a CRF as many run it. None: `batching.workers_for`.
        precision, amp_level (str): As for `core.val.evaluate`.
        progress (bool): Show a progress bar on a terminal.
        crf (optional): As for `core.val.evaluate`; "prob" then is what the CRF gives.
        engine (str): What runs the network, see `deploy.engine.open_engine`. Default "dygraph".
        cleanup (Cleanup, optional): What is done to the labels before anything is written.

    Returns:
        PredictionResult: Files written, and the images that are not done with the reason, such as
        a broken file, or a network that gives NaN or infinite values for it.

    Raises:
        UserError: A setting is wrong, a transform moves pixels for good, or the weights do not fit.
            DiskError: The disk is full or gone.
    """
    refuse_multilabel(use_multilabel)
    how = NetworkSettings(
        aug=aug_pred,
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
    refuse_misplaced(transforms, "predict: transforms")
    outputs = prediction_files.parse_outputs(outputs)
    palette = _palette(palette, custom_color, class_names)
    paths = [str(path) for path in image_list]
    root = image_dir if image_dir is not None else prediction_files.common_root(paths)
    names = prediction_files.output_names(paths, root)
    load_entire_model(model, model_path)
    refiner, ranks = make_crf(crf), join()
    written: dict[str, dict[str, str]] = {}
    failed: Failures = []
    known = class_names if class_names is not None else getattr(model, "num_classes", len(palette))
    annotations = Annotations(outputs, save_dir, known, root)
    write = partial(pictures.write_pictures, save_dir=save_dir, names=names, palette=palette)
    write = partial(write, outputs=outputs, annotations=annotations)
    keep = "prob" in outputs
    scores = keep or refiner is not None or (cleanup is not None and cleanup.needs_probabilities)

    def load(path):
        return pictures.load_picture(path, transforms, for_crf=refiner is not None)

    def run(samples, images):
        return predictions(network, [(samples, images)], how, probabilities=scores)

    own = list(enumerate(paths))[ranks.rank :: ranks.size]
    workers = workers_for(_Images(transforms), num_workers)
    opened = engine_for(model, pictures.read_pictures(own, load, failed, workers), len(paths), how)
    hide = None if progress and ranks.is_main else True  # None: shown on a terminal only
    bar = tqdm(total=len(own), desc="predict", unit="image", disable=hide)
    with ranks.guard(), bar, evaluation_mode(model), paddle.no_grad(), opened as (network, samples):
        results = pictures.run_batches(run, equal_size_batches(samples, batch_size), failed)
        results = _refined(results, refiner, cleanup, failed, workers, keep)
        for path, files in write(results, failed, workers):
            written[path] = files
            bar.update(len(written) + len(failed) - bar.n)
    result = _of_all_ranks(ranks, written, failed, paths)
    annotations.add_records(ranks.gather(annotations.records))
    with ranks.guard():
        if ranks.is_main and result.written:
            annotations.finish()
            if class_names is not None:
                picture = visualize.legend(palette, class_names)
                visualize.save_image(f"{save_dir}/legend.png", picture)
    return result


def _refined(results, refiner, cleanup, failed, workers, keep):
    """The results after the CRF and the cleaning, where there are such."""
    note = partial(pictures.note_failure, failed)
    if refiner is not None:
        results = dense_crf.refined(
            refiner, results, lambda s: s["crf_image"], workers, on_error=note
        )
    if cleanup is not None:
        results = cleaned(cleanup, results, note, workers, keep)
    return results


def _of_all_ranks(ranks, written, failed, image_list):
    """What all ranks did, in the order of the list."""
    parts = ranks.gather((written, failed))
    written = {path: files for part in parts for path, files in part[0].items()}
    failed = [item for part in parts for item in part[1]]
    order = {path: i for i, path in enumerate(image_list)}
    written = dict(sorted(written.items(), key=lambda item: order[item[0]]))
    failed.sort(key=lambda item: order[item[0]])
    return PredictionResult(written, failed)


def report(result: PredictionResult, total: int, save_dir: str) -> None:
    """Logs what was done; raises a `UserError` that counts the images that were not.

    On several ranks all call it, and the first one speaks.
    """
    with join().guard():
        _report(result, total, save_dir)


def _report(result, total, save_dir):
    if join().is_main:
        prediction_files.report_failures(result.failed, total, save_dir, left_out=1)
    if result.failed:
        path, reason = result.failed[0]
        reason = reason if path in reason else f"{path}: {reason}"
        raise UserError(
            f"{len(result.failed)} of {total} images could not be done"
            f"{', the others are' if len(result.failed) < total else ''}. "
            f"The first: {reason}"
        )

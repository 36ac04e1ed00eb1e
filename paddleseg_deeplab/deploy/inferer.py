# SPDX-License-Identifier: Apache-2.0
"""An exported network at work on image files: preprocessing, batches, masks at original sizes."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from paddleseg_deeplab import registry, transforms
from paddleseg_deeplab.deploy import deploy_yaml, tensorrt
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.postprocess.settings import Crf
from paddleseg_deeplab.prediction import batching, pictures, restore
from paddleseg_deeplab.prediction.batching import Result
from paddleseg_deeplab.prediction.crf import refined
from paddleseg_deeplab.prediction.pictures import Failures
from paddleseg_deeplab.prediction.restore import TransInfo
from paddleseg_deeplab.prediction.scores import check_finite
from paddleseg_deeplab.transforms import preprocessing
from paddleseg_deeplab.transforms.checks import Sample
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_WARM_UP_RUNS = 3
_TUNING_IMAGES = 10


def build_compose(info: DeployInfo) -> transforms.Compose:
    """The preprocessing that deploy.yaml describes.

    Raises:
        UserError: A step is unknown, has a wrong parameter, or moves pixels for good.
    """
    steps = []
    for item in info.transforms:
        item = dict(item)
        try:
            steps.append(registry.TRANSFORMS[item.pop("type", None)](**item))
        except (KeyError, TypeError, ValueError) as e:
            text = e.args[0] if e.args else e
            raise UserError(f"{info.folder}/{deploy_yaml.FILE_NAME}: transforms: {text}") from e
    _check_preprocessing(info)
    return transforms.Compose(steps, info.to_rgb, info.img_channels, nodata=info.nodata)


def _check_preprocessing(info):
    """A file may be older than export's own look at these, or another program's."""
    path = f"{info.folder}/{deploy_yaml.FILE_NAME}"
    found = preprocessing.steps_of(info.transforms, "Deploy.transforms")
    for place, message in preprocessing.misplaced(found):
        raise UserError(f"{path}: {place}: {message} Export again without it.")
    for place, message in [*preprocessing.disorder(found), *preprocessing.random_steps(found)]:
        logger.warning("%s: %s: %s", path, place, message)
    if not found:
        logger.warning(
            "%s: Deploy.transforms is empty: images go into the network as they are, 0 to 255. If "
            "the training had a Normalize, export again with it.",
            path,
        )


def postprocess(
    output: np.ndarray, trans_info: TransInfo, output_op: str, want_probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """One image's result at its original size, as predict.py makes it.

    Args:
        output (np.ndarray): What the network gives for one image: labels [h, w] for "argmax",
            else scores [num_classes, h, w].
        trans_info (list): Of the preprocessing.
        output_op (str): "argmax", "softmax" or "none".
        want_probabilities (bool): Not with "argmax".

    Returns:
        tuple: labels, integers [H, W]; probabilities, float32 [num_classes, H, W], or None.
    """
    if output_op == "argmax":
        return restore.labels_to_original(output, trans_info), None
    labels, scores = restore.labels_and_scores(output, trans_info, want_probabilities)
    if scores is not None and output_op == "none":
        scores = restore.softmax(scores)
    return labels, scores


class Inferer:
    """An exported folder with its preprocessing; counts the seconds of each part.

    Args:
        info (DeployInfo): The folder.
        settings (RuntimeSettings): How to run it.
        for_crf (bool): A dense CRF will need the images.
    """

    def __init__(self, info: DeployInfo, settings: RuntimeSettings, for_crf: bool = False) -> None:
        self.info = info
        self._compose, self._for_crf = build_compose(info), for_crf
        self.runtime = open_runtime(info, settings)
        fixed = info.input_shape[0]
        self.batch_size = min(settings.batch_size, fixed) if fixed else settings.batch_size
        self.seconds: dict[str, list[float]] = {
            "preprocess": [],
            "inference": [],
            "postprocess": [],
            "CRF": [],
        }

    def _timed(self, part, count, function, *args):
        start = time.perf_counter()
        result = function(*args)
        self.seconds[part].append((time.perf_counter() - start) / count)
        return result

    def prepare(self, path: str) -> Sample:
        """Reads an image into a sample, see `pictures.load_picture`.

        Raises:
            UserError: it cannot be read, or its size is not the one that the network takes.
        """
        load = pictures.load_picture
        sample = self._timed("preprocess", 1, load, path, self._compose, self._for_crf)
        chw, steps = restore.padded(sample["img"], sample["trans_info"], self.info.size_divisor)
        sample.update(img=chw, trans_info=steps)
        least = self.runtime.smallest_side
        if min(chw.shape[1:]) < least:
            raise UserError(
                f"{path}: gives an input {list(chw.shape)}, {self.runtime.name} takes sides from "
                f"{least} pixels on. Use another --runtime."
            )
        for want, have in zip(self.info.input_shape[1:], chw.shape):
            if want and want != have:
                raise UserError(
                    f"{path}: gives an input {list(chw.shape)}, the exported network takes "
                    f"{self.info.input_shape[1:]} only. Export again with a free --input_shape, or "
                    "with a Resize or Padding in export.transforms."
                )
        return sample

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Outputs for inputs [N, C, h, w]."""
        count = len(batch)
        missing = (self.info.input_shape[0] or count) - count
        if missing > 0:  # a fixed batch is filled up with its last image
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        return self._timed("inference", count, self.runtime.run, batch)[:count]

    def finish(
        self, output: np.ndarray, trans_info: TransInfo, want_probabilities: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `postprocess`."""
        output_op = self.info.output_op
        return self._timed(
            "postprocess", 1, postprocess, output, trans_info, output_op, want_probabilities
        )


def batches(
    inferer: Inferer, paths: Sequence[str], failures: Failures, num_workers: int = 0
) -> Iterator[tuple[list[Sample], np.ndarray]]:
    """Yields (samples, float32 [N, C, h, w]) of one size each."""
    items = enumerate(paths)
    samples = pictures.read_pictures(items, inferer.prepare, failures, num_workers)
    return batching.equal_size_batches(samples, inferer.batch_size)


def results(
    inferer: Inferer,
    paths: Sequence[str],
    failures: Failures,
    want_probabilities: bool = False,
    *,
    crf: Crf | None = None,
    num_workers: int = 0,
) -> Iterator[Result]:
    """Predicts images, several at once.

    Args:
        inferer (Inferer): Made ``for_crf`` where there is one.
        paths (Sequence[str]): The images.
        failures (list): Gets (path, reason) of each image that cannot be used.
        want_probabilities (bool): A CRF gives them in any case.
        crf (DenseCRF, optional): Refines the results.
        num_workers (int): Threads that read ahead; as many run the CRF.

    Yields:
        tuple: Sample, labels (integers [H, W]), probabilities (float32 [num_classes, H, W]) or
        None.
    """
    want_probabilities = want_probabilities or crf is not None

    def run(samples, batch):
        outputs = inferer.infer(batch)
        check_finite(outputs, [sample["im_path"] for sample in samples])
        return zip(samples, outputs)

    def finish(samples, outputs):
        yield samples[0], *inferer.finish(outputs[0], samples[0]["trans_info"], want_probabilities)

    found = pictures.run_batches(run, batches(inferer, paths, failures, num_workers), failures)
    singles = (([sample], [output]) for sample, output in found)
    finished = pictures.run_batches(finish, singles, failures)
    if crf is None:
        return finished
    return refined(
        crf,
        finished,
        lambda sample: sample["crf_image"],
        num_workers,
        seconds=inferer.seconds["CRF"],
        on_error=partial(pictures.note_failure, failures),
    )


def _runs(inferer: Inferer, paths: Sequence[str], times: int = 1) -> Iterator[np.ndarray]:
    """Yields outputs of the batches that can be run, each `times` over."""

    def run(_, batch):
        return [inferer.infer(batch) for _ in range(times)]

    return pictures.run_batches(run, batches(inferer, paths, []), [])


def tune_shapes(info: DeployInfo, settings: RuntimeSettings, paths: Sequence[str]) -> None:
    """Runs some images without TensorRT, to learn the shapes inside the network."""
    with tensorrt.learning(settings):
        # The file is written when the runtime goes, and that is with this loop.
        for _ in _runs(Inferer(info, settings), paths[:_TUNING_IMAGES]):
            pass


def warm_up(inferer: Inferer, paths: Sequence[str]) -> None:
    """First runs, which build kernels, so that they are not measured."""
    next(_runs(inferer, paths, _WARM_UP_RUNS), None)  # the first batch that works
    for values in inferer.seconds.values():
        values.clear()

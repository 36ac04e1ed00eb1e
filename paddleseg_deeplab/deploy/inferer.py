# SPDX-License-Identifier: Apache-2.0
"""An exported network at work on image files: preprocessing, batches, masks at original sizes."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from paddleseg_deeplab import registry, transforms
from paddleseg_deeplab.deploy import deploy_yaml, graph_input, tensorrt
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
_LAST_TIMES = 10_000  # of each part; who runs for months keeps no more
# A batch's labels, integers [N, h, w], and scores, float32 [N, K, h, w]; what nobody needs is None.
Outputs = tuple[np.ndarray | None, np.ndarray | None]


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
    if info.normalize is not None:
        steps = graph_input.outside(steps)
    return transforms.Compose(steps, info.to_rgb, info.img_channels, nodata=info.nodata)


def _check_preprocessing(info):
    """A file may be older than export's own look at these, or another program's."""
    path = f"{info.folder}/{deploy_yaml.FILE_NAME}"
    found = preprocessing.steps_of(info.transforms, "Deploy.transforms")
    for place, message in preprocessing.misplaced(found):
        raise UserError(f"{path}: {place}: {message} Export again without it.")
    for place, message in [*preprocessing.disorder(found), *preprocessing.random_steps(found)]:
        logger.warning("%s: %s: %s", path, place, message)
    if not found and info.normalize is None:
        logger.warning(
            "%s: Deploy.transforms is empty: images go into the network as they are, 0 to 255. If "
            "the training had a Normalize, export again with it.",
            path,
        )


def check_probabilities(info: DeployInfo, what: str) -> None:
    """Refuses what needs probabilities where an export has none.

    Args:
        info (DeployInfo): The folder.
        what (str): What needs them, for the message.

    Raises:
        UserError: It names the flag that the export needs.
    """
    if not info.has_scores:
        raise UserError(
            f"{what}: {info.folder} was exported with argmax, which keeps no probabilities. Export "
            "again without --output_op (it then gives labels and logits), or with --output_op none "
            "or softmax."
        )


def postprocess(
    outputs: Outputs, trans_info: TransInfo, logits: bool, want_probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """One image's result at its original size, as predict.py makes it.

    Args:
        outputs (tuple): What the network gives for one image: labels [h, w] or None, where they
            are to be taken from the scores; scores [num_classes, h, w], or None.
        trans_info (list): Of the preprocessing.
        logits (bool): Whether the scores are logits, else probabilities.
        want_probabilities (bool): Needs scores.

    Returns:
        tuple: labels, integers [H, W]; probabilities, float32 [num_classes, H, W], or None.
    """
    labels, scores = outputs
    restored = None
    if labels is not None:
        labels = restore.labels_to_original(labels, trans_info)
        if want_probabilities and scores is not None:
            restored = restore.restore(scores, trans_info)
    elif scores is not None:
        labels, restored = restore.labels_and_scores(scores, trans_info, want_probabilities)
    else:
        raise ValueError("postprocess: neither labels nor scores.")
    return labels, restore.softmax(restored) if logits and restored is not None else restored


class Inferer:
    """An exported folder with its preprocessing; counts the seconds of each part.

    Args:
        info (DeployInfo): The folder.
        settings (RuntimeSettings): How to run it.
        for_crf (bool): A dense CRF will need the images.
    """

    def __init__(self, info: DeployInfo, settings: RuntimeSettings, for_crf: bool = False) -> None:
        self.info = info
        self.compose, self._for_crf = build_compose(info), for_crf
        self.runtime = open_runtime(info, settings)
        fixed = info.input_shape[0]
        self.batch_size = min(settings.batch_size, fixed) if fixed else settings.batch_size
        self.seconds: dict[str, deque[float]] = {
            part: deque(maxlen=_LAST_TIMES)
            for part in ("preprocess", "inference", "postprocess", "CRF")
        }
        # Paddle and OpenVINO run one batch at a time.
        self._one_at_a_time = threading.Lock()

    def _timed(self, part, count, function, *args):
        start = time.perf_counter()
        result = function(*args)
        self.seconds[part].append((time.perf_counter() - start) / count)
        return result

    def prepare(self, image: str | bytes | np.ndarray, name: str | None = None) -> Sample:
        """Reads an image into a sample, see `pictures.load_picture`.

        Args:
            image: A path, or what `restore.prepare` takes else.
            name (str, optional): For messages; a path has its own.

        Raises:
            UserError: it cannot be read, or its size is not the one that the network takes.
        """
        load, path = pictures.load_picture, str(image) if name is None else name
        sample = self._timed("preprocess", 1, load, image, self.compose, self._for_crf, name)
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

    def infer(
        self,
        batch: np.ndarray,
        trans_infos: Sequence[TransInfo] = (),
        want_probabilities: bool = False,
    ) -> Outputs:
        """What `finish` needs for inputs [N, C, h, w]; may be called by several threads.

        Labels where the network gives them, except where an image was resized: scores that are
        resized and then compared give smoother borders than resized labels. An output that is not
        needed is not copied from the device.
        """
        count, info = len(batch), self.info
        missing = (info.input_shape[0] or count) - count
        if missing > 0:  # a fixed batch is filled up with its last image
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        resized = any(step[0] == "resize" for steps in trans_infos for step in steps)
        labels = info.outputs[0] == "labels" and not (resized and info.has_scores)
        scores = info.has_scores and (want_probabilities or not labels)
        which = [0] * labels + [len(info.outputs) - 1] * scores
        with self._one_at_a_time:
            found = self._timed("inference", count, self.runtime.outputs, batch, which)
        return (found[0][:count] if labels else None), (found[-1][:count] if scores else None)

    def outputs(
        self, samples: Sequence[Sample], batch: np.ndarray, want_probabilities: bool = False
    ) -> list[Outputs]:
        """What `infer` gives for a batch, an image each.

        Raises:
            NonFiniteScores: Naming the image.
        """
        infos = [sample["trans_info"] for sample in samples]
        labels, scores = self.infer(batch, infos, want_probabilities)
        if scores is not None:
            check_finite(scores, [sample["im_path"] for sample in samples])
        nothing = [None] * len(samples)
        return list(
            zip(nothing if labels is None else labels, nothing if scores is None else scores)
        )

    def finish(
        self, outputs: Outputs, trans_info: TransInfo, want_probabilities: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `postprocess`."""
        logits = self.info.outputs[-1] == "logits"
        return self._timed(
            "postprocess", 1, postprocess, outputs, trans_info, logits, want_probabilities
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
        return zip(samples, inferer.outputs(samples, batch, want_probabilities))

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


def _runs(inferer: Inferer, paths: Sequence[str], times: int = 1) -> Iterator[Outputs]:
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

# SPDX-License-Identifier: Apache-2.0
"""Samples through a network, one batch after another: what evaluation, prediction and the search
of a CRF's parameters share."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.infer import LabelsAndScores
from paddleseg_deeplab.deploy.engine import (
    Engine,
    check_engine,
    open_engine,
    pixels_to_run,
    run_network,
)
from paddleseg_deeplab.models.forward import precision_context
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.prediction.batching import Result, peek
from paddleseg_deeplab.prediction.restore import TransInfo
from paddleseg_deeplab.utils import out_of_memory
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger


class BatchLoss(Protocol):
    """Adds up the losses of batches where it holds any."""

    losses: Mapping[str, Any] | None

    def add(self, logits: Tensor | np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None: ...


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """How a network runs over a set of images.

    Attributes:
        aug (bool): Average over scales and flips (``aug_eval`` and ``aug_pred``).
        batch_size (int | None): Images of equal size in a batch; None: `batching.automatic_batch`.

    The others are parameters of `core.val.evaluate`.
    """

    aug: bool = False
    scales: float | Sequence[float] = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    is_slide: bool = False
    stride: Sequence[int] | int | None = None
    crop_size: Sequence[int] | int | None = None
    slide_above: float | None = None
    size_divisor: int | None = None
    precision: str = "fp32"
    amp_level: str = "O1"
    engine: str = "dygraph"
    batch_size: int | None = 1

    @property
    def window(self) -> dict[str, Any]:
        """dict: Keyword arguments of `infer.window_for`."""
        return {name: getattr(self, name) for name in infer.WINDOW_SETTINGS}

    def check(self) -> None:
        """Refuses settings that cannot work, before anything is read.

        Raises:
            UserError: Saying which.
        """
        if self.aug:
            infer.check_scales(self.scales)
        infer.window_for((0, 0), **self.window)
        _check_divisor(self.size_divisor)
        check_engine(self.engine, self.precision)

    def pixels(self, images: int, size: Sequence[int]) -> float:
        """How many pixels go through the network for so many images of a (height, width)."""
        return pixels_to_run(images, size, self.aug, dataclasses.asdict(self))

    def labels_and_scores(
        self,
        network: nn.Layer | Engine,
        images: Tensor | np.ndarray,
        trans_info: Sequence[TransInfo],
        names: Sequence[str],
        return_scores: bool,
    ) -> LabelsAndScores:
        """What `infer.inference`, or with `aug` `infer.aug_inference`, gives for a batch."""
        how = {**self.window, "return_scores": return_scores, "names": names}
        if not self.aug:
            return infer.inference(network, images, trans_info, **how)
        return infer.aug_inference(
            network,
            images,
            trans_info,
            self.scales,
            self.flip_horizontal,
            self.flip_vertical,
            size_divisor=self.size_divisor,
            **how,
        )


@contextlib.contextmanager
def engine_for(
    model: nn.Layer, samples: Iterable[dict[str, Any]], count: int, how: NetworkSettings
) -> Iterator[tuple[nn.Layer | Engine, Iterator[dict[str, Any]]]]:
    """`open_engine` for a stream of samples, and what the whole run over them needs.

    That memory runs out is one line, from wherever inside. At the end a GPU's cache is emptied
    once: the maps of whole images are of no use to a training that goes on with crops, and here
    evaluation, prediction and a user's own loop all come by.

    Args:
        model (nn.Layer): In eval mode.
        samples (Iterable[dict]): With ``img``, float32 [C, h, w]; the first one is drawn.
        count (int): How many images there are, on all ranks.
        how (NetworkSettings): Names the engine.

    Yields:
        tuple: The network, for `predictions`, and the samples, all of them.
    """
    facts = {"what": "images were read or results made", "settings": out_of_memory.HOST_SETTINGS}
    with out_of_memory.explained(**facts), contextlib.ExitStack() as stack:
        stack.callback(out_of_memory.release)
        stack.callback(getattr(samples, "close", int))  # ends threads that read ahead
        first, samples = peek(samples)
        image = None if first is None else np.asarray(first["img"], np.float32)
        pixels = how.pixels(count, (0, 0) if image is None else image.shape[1:])
        engine = open_engine(model, image, how.engine, precision=how.precision, pixels=pixels)
        network = stack.enter_context(engine)
        del first, image, engine  # not to be held for the whole run
        yield network, samples


def predictions(
    model: nn.Layer | Engine,
    batches: Iterable[tuple[Sequence[dict[str, Any]], np.ndarray]],
    how: NetworkSettings,
    *,
    loss: BatchLoss | None = None,
    probabilities: bool = False,
) -> Iterator[Result]:
    """Runs the network over batches; the caller sets eval mode and turns gradients off.

    Args:
        model (nn.Layer | Engine): A layer in eval mode; an `Engine` has a precision of its own.
        batches (Iterable): Of (samples, images float32 [N, C, h, w]).
        how (NetworkSettings): Scales, flips, windows, precision.
        loss (BatchLoss, optional): Gets logits and samples of each batch.
        probabilities (bool): Give them too.

    Yields:
        tuple: sample; labels, int32 [H, W] at the original size; mean class probabilities,
        float32 [K, H, W], or None.

    Raises:
        OutOfMemory: Naming image, size, batch and precision, and the settings that help.
    """
    network = model if isinstance(model, Engine) else _InPrecision(model, how)
    for samples, images in batches:
        _advise_divisor(model, images.shape[2:], how)
        with out_of_memory.explained(**_facts(samples, images, how)):
            labels, found = _predict(network, samples, images, how, loss, probabilities)
        yield from zip(samples, labels, found)


class _InPrecision:
    """A network in mixed precision; sums, probabilities and losses behind it stay in float32."""

    def __init__(self, model, how):
        self._model = model
        self._how = how
        self.data_format = getattr(model, "data_format", "NCHW")

    def __call__(self, images):
        with precision_context(self._how.precision, self._how.amp_level):
            return self._model(images)


def _facts(samples, images, how):
    """What `out_of_memory.explained` tells of a batch."""
    scale = max(infer.check_scales(how.scales)) if how.aug else 1.0
    size = [round(side * scale) for side in images.shape[2:]]
    window = infer.window_for(size, **how.window)
    count = len(samples)
    more = f" and {count - 1} more" if count > 1 else ""
    return {
        "what": f"the network ran on {name_of(samples[0])}{more}",
        "image_size": size[::-1],
        "batch_size": count,
        "precision": how.precision,
        "settings": out_of_memory.evaluation_settings(
            count, how.precision, window and window[0], scale
        ),
    }


def _predict(network, samples, images, how, loss, probabilities):
    """Labels and probabilities (or None) of a batch; adds its loss where that is wanted."""
    names = [name_of(sample) for sample in samples]
    infos = [sample.get("trans_info", []) for sample in samples]
    # Images of one size: the step is the same for all.
    images, added = restore.padded(images, [], how.size_divisor)
    infos = [[*info, *added] for info in infos]
    if not isinstance(network, Engine):
        images = paddle.to_tensor(images)
    if loss is not None and loss.losses is not None:
        logits = run_network(network, images)
        labels, scores = infer.labels_and_scores(logits, infos, probabilities, names=names)
        loss.add(logits, [{**s, "trans_info": info} for s, info in zip(samples, infos)])
    else:
        labels, scores = how.labels_and_scores(network, images, infos, names, probabilities)
    if scores is None:
        return labels, [None] * len(labels)
    # Averaged scores are probabilities already; those of one pass are logits.
    return labels, scores if how.aug else [restore.softmax(s, axis=0) for s in scores]


_advised: list[Sequence[int]] = []
# The finest grid that a decoder here works on has a quarter of the image's sides.
_FINEST = 4


def _advise_divisor(model, size, how):
    """Tells once in a program that sides of such a size may cost accuracy."""
    whole = infer.window_for(size, **how.window) is None
    # Without align_corners networks are trained on even crops; with it on 8k + 1.
    even = getattr(model, "align_corners", None) is False
    if _advised or how.size_divisor is not None or not (whole and even):
        return
    if any(side % _FINEST for side in size):
        _advised.append(size)
        logger.info(
            f"An input of {size[1]}x{size[0]} (width x height) has a side that {_FINEST} does not "
            "divide. A network trained on even crops can lose accuracy there: compare with "
            "--size_divisor 16 (test_config.size_divisor)."
        )


def _check_divisor(size_divisor: int | None) -> None:
    """Refuses a size_divisor that is no positive whole number.

    Raises:
        UserError: Saying what came.
    """
    good = isinstance(size_divisor, int) and not isinstance(size_divisor, bool) and size_divisor > 0
    if size_divisor is not None and not good:
        raise UserError(
            f"size_divisor takes a positive whole number, such as 16, got {size_divisor!r}."
        )


def refuse_multilabel(use_multilabel: bool) -> None:
    """Networks here give a pixel one class: PaddleSeg's switch for several would be ignored, and
    its results wrong.

    Raises:
        UserError: It is on.
    """
    if use_multilabel:
        raise UserError(
            "use_multilabel=True: networks with several classes a pixel are not supported; use "
            "PaddleSeg for them, or leave it out."
        )


def name_of(sample: Mapping[str, Any]) -> str:
    """What to call a sample in a message: its file where it has one."""
    path = sample.get("im_path")
    return str(path) if path is not None else f"sample {sample['index']}"


def label_of(sample: Mapping[str, Any]) -> np.ndarray:
    """A sample's label, integers [H, W], from [1, H, W] too.

    Raises:
        UserError: It has none.
    """
    if sample.get("label") is None:
        raise UserError(f"{name_of(sample)} has no label: what is evaluated needs one each.")
    label = np.asarray(sample["label"])
    return label.reshape(label.shape[-2:])

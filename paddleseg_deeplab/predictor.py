# SPDX-License-Identifier: Apache-2.0
"""Networks for Python programs: `Predictor`. With ONNX Runtime and OpenVINO it needs no Paddle."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import numpy as np

from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.inferer import Inferer, check_probabilities
from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings, choose_device
from paddleseg_deeplab.postprocess.settings import Crf, make_crf
from paddleseg_deeplab.prediction import batching, given, pictures
from paddleseg_deeplab.prediction.crf import refine
from paddleseg_deeplab.prediction.given import Picture
from paddleseg_deeplab.prediction.result import Result
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.transforms.checks import Sample
from paddleseg_deeplab.transforms.reading.values import mark_void
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.device import select_device
from paddleseg_deeplab.utils.errors import UserError

if TYPE_CHECKING:
    from paddleseg_deeplab.core.stream import NetworkSettings

_P = TypeVar("_P", bound=Picture)
_CrfSetting = bool | Mapping[str, Any] | None
# Labels, integers [H, W], and what makes probabilities, float32 [K, H, W], or None.
_Answer = tuple[np.ndarray, Callable[[], np.ndarray] | None]
_NOT_ASKED = (
    "the call kept the mask alone, as it does with many pictures. Give it probabilities=True."
)


class _Network(Protocol):
    """What a predictor asks; all may be called by several threads."""

    def load(self, image: str | bytes | np.ndarray, name: str) -> Sample: ...

    def answer(self, sample: Sample, probabilities: bool) -> _Answer: ...


class Predictor:
    """A trained network: pictures in, results out.

    It may be shared by threads: pictures are read and results made side by side, the network itself
    runs one picture at a time, on all the processor's cores.

    Args:
        model_dir (str): The folder that ``export`` wrote, or the deploy.yaml in it.
        runtime (str): "auto", "paddle", "onnxruntime" or "openvino".
        device (str, optional): "cpu", "gpu" or "gpu:1"; by default the GPU if there is one.
        precision (str): "fp32"; on some processors "bf16", on a GPU "fp16".
        cpu_threads (int, optional): By default all that this process may use.
        crf (bool | Mapping, optional): The dense CRF: None as deploy.yaml says, False without,
            True or its parameters with.
        num_workers (int, optional): Threads that read pictures ahead, where there are many.

    Attributes:
        class_names (tuple[str, ...]): Empty where they are not known.
        palette (np.ndarray): uint8 RGB [K, 3].

    Raises:
        UserError: The folder is no export, or a setting cannot work with it or on this machine.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray
    _network: _Network
    _compose: Compose
    _crf: Crf | None
    _no_probabilities: str | None  # the reason
    _workers: int

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        runtime: str = "auto",
        device: str | None = None,
        precision: str = "fp32",
        cpu_threads: int | None = None,
        crf: _CrfSetting = None,
        num_workers: int | None = None,
    ) -> None:
        info = deploy_yaml.read(model_dir)
        device = device or ("cpu" if precision == "bf16" else None)
        settings = RuntimeSettings(
            device=choose_device(device, info.format, runtime),
            cpu_threads=_at_least(cpu_threads, "cpu_threads", 1),
            precision=precision,
            runtime=runtime,
        )
        check_settings(settings, info)
        self._set_facts(info.palette, info.class_names, info.num_classes, num_workers)
        self._set_crf(info.crf, crf, f"{info.folder}/{deploy_yaml.FILE_NAME}: crf")
        if self._crf is not None:
            check_probabilities(info, "The dense CRF")
        try:
            check_probabilities(info, "probabilities")
            self._no_probabilities = None
        except UserError as error:
            self._no_probabilities = str(error)
        inferer = Inferer(info, settings, self._crf is not None)
        self._network, self._compose = _Export(inferer), inferer.compose

    @classmethod
    def from_checkpoint(
        cls,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str],
        *,
        device: str | None = None,
        precision: str = "fp32",
        crf: _CrfSetting = None,
        num_workers: int | None = None,
    ) -> Predictor:
        """A predictor of trained weights without an export, which needs Paddle.

        It gives the masks of the command ``predict`` with ``--engine dygraph``, windows and the CRF
        of the config's ``test_config`` included. On a CPU an export is up to twice as fast.

        Args:
            config (str): The YAML file of the training.
            weights (str): ``model.pdparams`` or its folder.
            device (str, optional): "cpu", "gpu" or "gpu:1"; it becomes the device of Paddle.
            precision (str): "fp32"; on a GPU "fp16" and "bf16".
            crf, num_workers: As of the class; None: as the config's ``test_config`` says.

        Raises:
            UserError: Config and weights do not fit, or a setting cannot work.
        """
        from paddleseg_deeplab.core.stream import NetworkSettings
        from paddleseg_deeplab.cvlibs import Config, SegBuilder
        from paddleseg_deeplab.cvlibs.data_facts import compose_of, dataset_facts
        from paddleseg_deeplab.cvlibs.inference import inference_settings
        from paddleseg_deeplab.cvlibs.trained_config import warn_of_other_config
        from paddleseg_deeplab.utils.weights.load import load_entire_model

        device = select_device(device)
        opened = Config(os.fspath(config), pretrained=False)
        opened.preprocessing("val_dataset", "export")  # refuses one that has none
        settings = inference_settings(opened, _no_flags(precision), "aug_pred")
        configured = opened.test_config.get("crf")
        how = NetworkSettings(aug=settings.pop("aug_pred"), **_without(settings, "num_workers"))
        how.check()
        builder = SegBuilder(opened)
        dataset, names, palette = dataset_facts(builder)
        warn_of_other_config(opened, os.fspath(weights))
        model = builder.model
        load_entire_model(model, os.fspath(weights))
        model.eval()
        self = cls.__new__(cls)
        self._set_facts(palette, names, len(names), num_workers)
        self._set_crf(configured, crf, f"{opened.path}: test_config.crf")
        self._no_probabilities = None
        self._compose = compose_of(builder, dataset)
        for_crf = self._crf is not None
        self._network = _Checkpoint(model, self._compose, how, for_crf, device)
        return self

    def _set_facts(self, palette, class_names, num_classes, num_workers):
        if palette is None:
            palette = visualize.default_palette(num_classes or 256)
        self.class_names, self.palette = tuple(map(str, class_names)), palette
        workers = _at_least(num_workers, "num_workers", 0)
        self._workers = batching.automatic_workers() if workers is None else workers

    def _set_crf(self, configured, asked, place):
        if asked is None or (asked is True and configured):
            asked = configured
        else:
            place = "crf"
        self._crf = make_crf(asked, place)

    @overload
    def __call__(
        self, image: Picture, *, probabilities: bool | None = None, bgr: bool = False
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[_P] | tuple[_P, ...] | Iterator[_P],
        *,
        probabilities: bool | None = None,
        bgr: bool = False,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> Iterator[Result]: ...

    def __call__(
        self,
        image: Picture | Iterable[Any],
        *,
        probabilities: bool | None = None,
        bgr: bool = False,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> Result | Iterator[Result]:
        """The classes of one picture's pixels; or of many pictures, one after the other.

        Args:
            image: A path; the bytes of an image file; an array, uint8 or floats [H, W, C] in the
                range that the training's images had (0 to 255 for pictures), or [H, W] where the
                network takes one channel; a picture of Pillow. Or a list, tuple or generator of
                these: it is read ahead by a few pictures, and the results come in its order.
            probabilities (bool, optional): Whether `Result.probabilities` can be had. None: of one
                picture where the export has them, of many not, since they are large. True: an error
                where the export keeps none. False saves their copy from the device.
            bgr (bool): Arrays have the channels blue, green, red, as OpenCV reads them.
            on_error (Callable, optional): With many pictures: takes name and error of a picture
                that fails, which is then left out. By default the error is raised in its turn.

        Returns:
            Result | Iterator[Result]

        Raises:
            UserError: A picture cannot be read or does not fit the network.
        """
        if probabilities and self._no_probabilities:
            raise UserError(self._no_probabilities)
        if given.is_picture(image):
            if on_error is not None:
                raise UserError("on_error is for many pictures; one picture raises its error.")
            wanted = self._no_probabilities is None if probabilities is None else probabilities
            return self._finished(self._loaded(image, given.name_of(image), bgr), wanted)
        try:
            images = iter(image)  # type: ignore[arg-type]  # told apart here
        except TypeError:
            images = iter([image])  # whose error tells what is taken
        return self._many(images, bool(probabilities), bgr, on_error)

    def _many(self, images, probabilities, bgr, on_error):
        def load(item):
            index, image = item
            name = given.name_of(image, index)
            try:
                return name, self._loaded(image, name, bgr)
            except Exception as error:  # it has its turn below
                return name, error

        for name, sample in batching.read_ahead(load, enumerate(images), self._workers):
            try:
                if isinstance(sample, Exception):
                    raise sample
                result = self._finished(sample, probabilities)
            except Exception as error:  # a decoder, a runtime or a device may raise anything
                if on_error is None:
                    raise
                on_error(name, error)
                continue
            finally:
                del sample  # not to be held while the caller works
            yield result
            del result

    def _loaded(self, image, name, bgr):
        image = given.to_read(image, name, self._compose, bgr)
        return {**self._network.load(image, name), "im_path": name}

    def _finished(self, sample, probabilities):
        name = sample["im_path"]
        labels, make = self._network.answer(sample, probabilities or self._crf is not None)
        if self._crf is not None:
            labels, refined = refine(self._crf, make(), sample["crf_image"], name)
            make = _Made(refined) if probabilities else None
        reason = self._no_probabilities or _NOT_ASKED
        mask = mark_void(labels, sample["nodata"])
        return Result(
            name, sample["original"], mask, self.palette, self.class_names, make or reason
        )


class _Made:
    """Probabilities that are there already."""

    def __init__(self, probabilities):
        self._probabilities = probabilities

    def __call__(self):
        return self._probabilities


class _Export:
    """An exported folder at work."""

    def __init__(self, inferer: Inferer) -> None:
        self._inferer = inferer

    def load(self, image: str | bytes | np.ndarray, name: str) -> Sample:
        return self._inferer.prepare(image, name)

    def answer(self, sample: Sample, probabilities: bool) -> _Answer:
        inferer, steps = self._inferer, sample["trans_info"]
        [outputs] = inferer.outputs([sample], sample["img"][None], probabilities)
        labels, _ = inferer.finish(outputs, steps, False)

        def make() -> np.ndarray:
            _, found = inferer.finish(outputs, steps, True)
            assert found is not None  # the scores are among the outputs
            return found

        return labels, make if probabilities else None


class _Checkpoint:
    """A network of Paddle's at work, as the command ``predict`` runs it."""

    def __init__(
        self, model: Any, compose: Compose, how: NetworkSettings, for_crf: bool, device: str
    ) -> None:
        self._model, self._compose, self._how, self._for_crf = model, compose, how, for_crf
        # One thread for all callers: what the convolutions prepare is kept for each thread anew.
        self._thread = ThreadPoolExecutor(1, "network", select_device, (device,))

    def load(self, image: str | bytes | np.ndarray, name: str) -> Sample:
        return pictures.load_picture(image, self._compose, self._for_crf, name)

    def answer(self, sample: Sample, probabilities: bool) -> _Answer:
        labels, scores = self._thread.submit(self._run, sample, probabilities).result()
        return labels, None if scores is None else _Made(scores)

    def _run(self, sample, probabilities):
        import paddle

        from paddleseg_deeplab.core.stream import predictions

        batches = [([sample], sample["img"][None])]
        with paddle.no_grad():
            found = predictions(self._model, batches, self._how, probabilities=probabilities)
            [(_, labels, scores)] = found
        return labels, scores


def _at_least(value, name, least):
    if value is not None and (isinstance(value, bool) or value < least):
        raise UserError(f"{name} should be at least {least}, not {value!r}.")
    return value


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def _no_flags(precision: str) -> argparse.Namespace:
    """As if predict.py were called without flags, in dygraph."""
    unset = ("num_workers", "scales", "slide_above", "crop_size", "stride", "size_divisor")
    off: Sequence[str] = ("aug_pred", "flip_horizontal", "flip_vertical", "is_slide")
    return argparse.Namespace(
        batch_size=1,
        engine="dygraph",
        precision=precision,
        amp_level="O1",
        **dict.fromkeys(unset),
        **dict.fromkeys(off, False),
    )

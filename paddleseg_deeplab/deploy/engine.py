# SPDX-License-Identifier: Apache-2.0
"""What runs a network in evaluation and prediction: dygraph, or on a CPU an export of it.

On a CPU an exported network is up to twice as fast as dygraph (docs/performance.md), since its
runtime fuses layers and keeps their maps in the order that its kernels like. Its logits are the
same up to the order of float32 sums, which is checked before it is used.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.deploy.compare import ExportMismatch, differences, judge
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.export import write_network
from paddleseg_deeplab.deploy.runtimes import Runtime, SmallInputError, open_runtime, openvino_core
from paddleseg_deeplab.deploy.settings import ENGINES, RuntimeSettings
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights.load import check_finite_weights

# "auto" exports from so many input pixels on. On two cores an export takes 2 s (ResNet18_vd at
# stride 16) to 7 s (ResNet50_vd at stride 8) and saves 0.25 to 3.3 s a million pixels: it is paid
# for by 8 million pixels there, by 2 million here.
EXPORT_PIXELS = 6_000_000
_LITTLE_SPACE = 1 << 20  # bytes
_FORMATS = {"paddle": "legacy", "openvino": "legacy", "onnxruntime": "onnx"}


class Engine:
    """An exported network in place of its model, for `core.infer` and `core.stream.predictions`.

    Args:
        model (nn.Layer): The network itself, in eval mode.
        runtime: Of `deploy.runtimes`; gives logits.
        precision (str): What it computes in.
        falls_back (bool): Go on with `model` where the runtime fails, rather than raise. A batch
            that is too small for the runtime goes through `model` in any case.

    Attributes:
        name (str): For the log.
        align_corners (bool | None): The model's; None where it has none.
    """

    def __init__(
        self, model: nn.Layer, runtime: Runtime, precision: str = "fp32", falls_back: bool = False
    ) -> None:
        self.name = f"{runtime.name}, {precision}"
        self.align_corners = getattr(model, "align_corners", None)
        self._model = model
        self._runtime: Runtime | None = runtime
        self._falls_back = falls_back
        self._told = False

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, num_classes, H, W] from float32 [N, C, H, W], both arrays in host memory.

        Raises:
            UserError: The runtime fails, and the engine does not fall back.
        """
        if self._runtime is not None:
            try:
                return self._runtime.run(images)
            except SmallInputError:
                if not self._told:
                    size = " x ".join(str(side) for side in images.shape[2:])
                    logger.warning("%s: %s pixels are too few: in dygraph.", self.name, size)
                self._told = True
            # Each runtime has its own exceptions; kernels are made anew for each size.
            except Exception as error:
                reason = _reason(error)
                if not self._falls_back:
                    raise UserError(
                        f"{self.name} failed: {reason} Use --engine dygraph."
                    ) from error
                logger.warning("%s failed (%s): going on in dygraph.", self.name, reason)
                self._runtime = None
        with paddle.no_grad():
            return infer_logits(self._model, paddle.to_tensor(images)).numpy()


def run_network(
    model: nn.Layer | Engine, images: paddle.Tensor | np.ndarray
) -> paddle.Tensor | np.ndarray:
    """Logits of a batch.

    Args:
        model (nn.Layer | Engine): In eval mode.
        images (Tensor | np.ndarray): float32 [N, C, H, W].

    Returns:
        Tensor | np.ndarray: float32 [N, num_classes, H, W]; an array from an `Engine`.
    """
    if isinstance(model, Engine):
        return model.logits(np.ascontiguousarray(images, dtype=np.float32))
    if isinstance(images, np.ndarray):
        images = paddle.to_tensor(np.ascontiguousarray(images))
    return infer_logits(model, images)


def pixels_to_run(
    images: int, size: Sequence[int], aug: bool = False, settings: Mapping[str, Any] | None = None
) -> float:
    """How many input pixels go through the network; overlaps of windows are not counted.

    Args:
        images (int): How many.
        size (Sequence[int]): (height, width) of one.
        aug (bool): Whether the scales and flips in `settings` count.
        settings (dict, optional): Keyword arguments of `core.infer.aug_inference`.
    """
    pixels = float(images * size[0] * size[1])
    if not aug:
        return pixels
    settings = settings or {}
    scales = np.atleast_1d(np.asarray(settings.get("scales", 1.0), np.float64))
    flips = sum(bool(settings.get(f"flip_{way}")) for way in ("horizontal", "vertical"))
    return pixels * float((scales**2).sum()) * 2**flips


@contextlib.contextmanager
def open_engine(
    model: nn.Layer,
    sample: np.ndarray | None,
    kind: str = "auto",
    *,
    precision: str = "fp32",
    pixels: float = 0,
) -> Iterator[nn.Layer | Engine]:
    """Something that runs `model` fast, for as long as the context lasts.

    Args:
        model (nn.Layer): The trained network.
        sample (np.ndarray | None): A real input, preprocessed, float32 [C, H, W], which the export
            is tried with; None, where there is none, means dygraph.
        kind (str): "dygraph": the model itself; "paddle": an export to a temporary folder, run by
            Paddle Inference with oneDNN; "onnxruntime", "openvino": these, if installed; "auto":
            on a CPU, for an NCHW network with `EXPORT_PIXELS` to run, OpenVINO if it is installed,
            else Paddle Inference, and dygraph where those fail; else dygraph.
        precision (str): "bf16" for OpenVINO, on processors with instructions for it: several times
            as fast, with rounding that changes the class of some pixels. Else "fp32".
        pixels (float): How much work there is, see `pixels_to_run`; read for "auto" only.

    Yields:
        nn.Layer | Engine: `model` itself for dygraph.

    Raises:
        UserError: The network's weights are not finite, which its outputs would not show; the kind
            is unknown or not for this device, network or precision, is not installed, or does not
            give what the network gives (the last two never for "auto").
    """
    check_engine(kind, precision)
    check_finite_weights(model, f"The weights of this {type(model).__name__}")
    # fp16 on a CPU is an error that the forward pass raises.
    automatic = kind == "auto" and precision == "fp32" and _pays(model, pixels)
    if sample is None or not (automatic or kind in _FORMATS):
        del sample  # not to be held for the whole run
        yield model
        return
    folder = tempfile.mkdtemp(prefix="paddleseg_deeplab-")
    try:
        engine = _exported(model, sample, kind, precision, folder)
        del sample
        if os.name == "posix":  # has been read whole; a signal that ends the process leaves nothing
            shutil.rmtree(folder, ignore_errors=True)
        yield model if engine is None else engine
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a runtime may hold it open on Windows


def check_engine(kind: str, precision: str = "fp32") -> None:
    """Refuses an engine that cannot run here.

    Raises:
        UserError: Saying what can.
    """
    if kind not in ENGINES:
        raise UserError(f"--engine {kind}: use one of {', '.join(ENGINES)}.")
    on_cpu = paddle.get_device() == "cpu"
    if kind == "auto" and precision == "bf16" and on_cpu:
        raise UserError(
            "--precision bf16 has no effect on a CPU in dygraph; --engine openvino computes in it, "
            "on processors that can."
        )
    if kind in ("auto", "dygraph"):
        return
    if not on_cpu:
        raise UserError(f"--engine {kind} is for a CPU: use --device cpu, or --engine dygraph.")
    if precision != "fp32" and (kind, precision) != ("openvino", "bf16"):
        raise UserError(
            f"--engine {kind} computes in fp32, not {precision}; --engine openvino has bf16 too."
        )


def _pays(model, pixels):
    if paddle.get_device() != "cpu" or getattr(model, "data_format", "NCHW") != "NCHW":
        return False
    return pixels >= EXPORT_PIXELS


def _exported(model, sample, kind, precision, folder):
    """The first engine that works; None where none does and dygraph is allowed."""
    kinds = [kind]
    if kind == "auto":
        has_openvino = importlib.util.find_spec("openvino") is not None
        kinds = ["openvino", "paddle"] if has_openvino else ["paddle"]
    start = time.perf_counter()
    infos = {}  # one export serves Paddle and OpenVINO
    for name in kinds:
        try:
            _check_runtime(name, precision, model)
            form = _FORMATS[name]
            if form not in infos:
                infos[form] = _written(model, f"{folder}/{form}", form, len(sample))
            runtime, note = _opened(model, infos[form], name, precision, sample)
        # A network of one's own may do what no export can hold.
        except Exception as error:
            reason = _reason(error) + _about_disk(error, folder)
            if kind != "auto":
                raise UserError(f"--engine {name}: {reason} Or use --engine dygraph.") from error
            # What was not to be expected is a warning.
            level = logging.WARNING if isinstance(error, ExportMismatch) else logging.INFO
            logger.log(level, "No export to %s: %s", name, reason)
            logger.debug("The reason in full:", exc_info=True)
            continue
        engine = Engine(model, runtime, precision, falls_back=kind == "auto")
        seconds = time.perf_counter() - start
        logger.info("Engine: %s; exported in %.1f s%s.", engine.name, seconds, note)
        return engine
    logger.info("Engine: dygraph.")
    return None


def _check_runtime(kind, precision, model):
    """Refuses, before the time of an export, what cannot work after it."""
    if getattr(model, "data_format", "NCHW") != "NCHW":
        raise UserError("it needs a network of data_format NCHW, whose weights are the same.")
    if kind == "openvino":
        openvino_core(precision)
    elif kind == "onnxruntime":
        import_extra("onnxruntime", need="--engine onnxruntime")


def _written(model, folder, form, channels):
    """The network in a folder of its own, which gives logits; a `DeployInfo` of it."""
    os.makedirs(folder, exist_ok=True)  # a first try may have failed
    shape = [None, channels, None, None]
    info = DeployInfo(form, shape, "none", img_channels=channels, folder=folder)
    write_network(model, info)
    return info


def _settings(kind, precision):
    # oneDNN or an error, and then dygraph: Paddle's own way without would read the files again.
    mkldnn = True if kind == "paddle" else None
    return RuntimeSettings(
        cpu_threads=thread_count(), runtime=kind, precision=precision, mkldnn=mkldnn
    )


def _opened(model, info, kind, precision, sample):
    """The runtime that is to run an export, compared with the model; and what to tell of it.

    Raises:
        ExportMismatch: Logits of float32 differ by more than rounding.
    """
    runtime = open_runtime(info, _settings(kind, "fp32"))
    judge(differences(model, runtime, info, sample), info)
    if precision == "fp32":
        return runtime, ""
    # Its rounding would hide a wrong export, so that it is told and not judged.
    runtime = open_runtime(info, _settings(kind, precision))
    share = differences(model, runtime, info, sample)["argmax_pixels_differing"]
    return runtime, f"; rounding changes the class of {share:.2%} of the first image's pixels"


def _reason(error):
    """What went wrong, in one line, without advice about files and flags that nobody has given."""
    cause = error.__cause__
    if isinstance(error, ExportMismatch):
        text = error.reason
    elif isinstance(error, UserError) and cause and not isinstance(cause, ImportError):
        text = str(cause)  # the runtime's own words
    else:
        text = str(error)
    text = textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _about_disk(error, folder):
    """Where the export went, if that may be why it failed."""
    if isinstance(error, OSError) or shutil.disk_usage(folder).free < _LITTLE_SPACE:
        return f" It was exported to {os.path.dirname(folder)}; TMPDIR names another folder."
    return ""

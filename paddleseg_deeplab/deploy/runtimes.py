# SPDX-License-Identifier: Apache-2.0
"""Runs an exported network: Paddle Inference, ONNX Runtime or OpenVINO behind one call.

Each is imported where it is needed: with the other two a folder runs without Paddle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.graph_input import fed
from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings, choose_runtime
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra
from paddleseg_deeplab.utils.weights.finite import check_exported

if TYPE_CHECKING:
    import openvino

_LONGEST_REASON = 300  # characters


class SmallInputError(UserError):
    """An input of which OpenVINO would give something else than the network does."""


class OnnxRuntime:
    """An exported network in ONNX Runtime.

    Args:
        info (DeployInfo): Of format "onnx".
        settings (RuntimeSettings): Device, threads and log count; the rest is for Paddle.

    Raises:
        UserError: ONNX Runtime is missing, or has no GPU provider and a GPU is asked for.
    """

    name = "ONNX Runtime"
    mkldnn = False
    smallest_side = 1

    def __init__(self, info: DeployInfo, settings: RuntimeSettings) -> None:
        onnxruntime = import_extra("onnxruntime")
        self._info = info
        provider = "CPUExecutionProvider"
        options: dict[str, int] = {}
        if settings.device != "cpu":
            provider = "CUDAExecutionProvider"
            options = {"device_id": int(settings.device.partition(":")[2] or 0)}
            if provider not in onnxruntime.get_available_providers():
                raise UserError(
                    f"--device {settings.device}: this ONNX Runtime has no CUDA provider. Install "
                    "onnxruntime-gpu, or use --device cpu."
                )
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = settings.cpu_threads or thread_count()
        session.log_severity_level = 2 if settings.print_detail else 3
        self._session = onnxruntime.InferenceSession(
            info.model_path, session, providers=[(provider, options)]
        )
        if provider not in self._session.get_providers():
            raise UserError(f"--device {settings.device}: ONNX Runtime could not start it.")
        self._name = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Feeds a batch, float32 [N, C, H, W]; returns the exported network's first output."""
        return self.outputs(batch, (0,))[0]

    def outputs(self, batch: np.ndarray, which: Sequence[int]) -> list[np.ndarray]:
        """As `run`, the outputs of these numbers."""
        names = [self._outputs[number] for number in which]
        return self._session.run(names, {self._name: fed(self._info, batch)})


def openvino_core(precision: str = "fp32") -> openvino.Core:
    """OpenVINO's ``Core``.

    Raises:
        UserError: OpenVINO is missing, or bf16 is asked of a processor without it.
    """
    openvino = import_extra("openvino", need="--runtime openvino", extra="openvino")
    core = openvino.Core()
    if precision == "bf16":
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in known:
            raise UserError(
                "--precision bf16: this processor computes in fp32 (OpenVINO names "
                f"{', '.join(known)}). Use --precision fp32."
            )
    return core


class OpenvinoRuntime:
    """An exported network in OpenVINO, on the CPU.

    It reads ``.pdmodel`` and ``.onnx`` alike. The precision is always said: left to itself OpenVINO
    computes in bfloat16 where the processor has instructions for it.

    Where a map inside the network becomes empty (ResNet_vd's average pools of a side of 1),
    OpenVINO 2026.4 gives its previous output without a word, and wrong ones ever after, or the
    process crashes. Inputs below `smallest_side` never reach it therefore. Should a network need
    more, the output's size tells: an earlier output of the same size came from an input of that
    size, which then worked.

    Args:
        info (DeployInfo): Of format "legacy" or "onnx".
        settings (RuntimeSettings): Threads and precision ("fp32", "bf16") count.

    Raises:
        UserError: OpenVINO is missing, or bf16 is asked of a processor without it.
    """

    name = "OpenVINO"
    mkldnn = False
    smallest_side = 32  # pixels; stride 16, and half of it again for scales inside a network

    def __init__(self, info: DeployInfo, settings: RuntimeSettings) -> None:
        core = openvino_core(settings.precision)
        self._info = info
        config = {
            "INFERENCE_NUM_THREADS": settings.cpu_threads or thread_count(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.read_model(info.model_path, *([info.params_path] if info.params else []))
        self._compile = lambda: core.compile_model(model, "CPU", config)
        self._model = self._compile()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Feeds a batch, float32 [N, C, H, W]; returns the exported network's first output.

        Raises:
            SmallInputError: The size is one that OpenVINO fails at; others work afterwards.
        """
        return self.outputs(batch, (0,))[0]

    def outputs(self, batch: np.ndarray, which: Sequence[int]) -> list[np.ndarray]:
        """As `run`, the outputs of these numbers. The others stay where OpenVINO made them."""
        count, _, height, width = batch.shape
        if min(height, width) >= self.smallest_side:
            found = self._model([fed(self._info, batch)], share_outputs=True)
            outputs = [np.array(found[number]) for number in which]
            if all((o.shape[0], *o.shape[-2:]) == (count, height, width) for o in outputs):
                return outputs
            self._model = self._compile()
        raise SmallInputError(
            f"OpenVINO cannot run an input of {height} x {width} pixels (height x width): use "
            "--runtime paddle."
        )


Runtime = PaddleRuntime | OnnxRuntime | OpenvinoRuntime


def open_runtime(info: DeployInfo, settings: RuntimeSettings) -> Runtime:
    """The runtime for an exported folder, see `choose_runtime`.

    Args:
        info (DeployInfo): The folder.
        settings (RuntimeSettings): How to run it.

    Returns:
        An object whose ``run(batch)`` takes float32 [N, C, H, W], of sides of `smallest_side`
        pixels or more, and returns the exported network's first output; ``outputs(batch, which)``
        returns those of the numbers `which`; ``name`` is for a log.

    Raises:
        UserError: the network's files are damaged, its parameters are not finite, a setting cannot
            work, or the runtime is not installed.
    """
    check_settings(settings, info)
    if info.params_path is not None:
        check_exported(info.params_path)
    kinds: dict[str, type[Runtime]] = {
        "paddle": PaddleRuntime,
        "onnxruntime": OnnxRuntime,
        "openvino": OpenvinoRuntime,
    }
    try:
        return kinds[choose_runtime(info, settings)](info, settings)
    except UserError:
        raise
    except Exception as e:  # each runtime has its own exceptions
        reason = " ".join(str(e).split()) or type(e).__name__
        if len(reason) > _LONGEST_REASON:  # what went wrong stands at the end
            reason = "... " + reason[-_LONGEST_REASON:].partition(" ")[2]
        raise UserError(
            f"{info.model_path} cannot be opened: {reason} If the file is damaged, copy it or "
            "export again."
        ) from e

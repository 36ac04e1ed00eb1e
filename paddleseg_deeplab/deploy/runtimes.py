# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime and OpenVINO as `predictors.open_predictor` uses them. Neither needs Paddle."""

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra


class SmallInputError(UserError):
    """An input of which OpenVINO would give something else than the network does."""


class OnnxPredictor:
    """An exported network in ONNX Runtime.

    Args:
        info (DeployInfo): Of format "onnx".
        settings (InferenceSettings): Device, threads and log count; the rest is for Paddle.

    Raises:
        UserError: ONNX Runtime is missing, or has no GPU provider and a GPU is asked for.
    """

    runtime = "ONNX Runtime"
    mkldnn = False
    smallest_side = 1

    def __init__(self, info, settings):
        onnxruntime = import_extra("onnxruntime")
        provider, options = "CPUExecutionProvider", {}
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

    def run(self, batch):
        """Feeds a batch, float32 [N, C, H, W]; returns what the exported network gives."""
        return self._session.run(None, {self._name: np.ascontiguousarray(batch, np.float32)})[0]


def openvino_core(precision="fp32"):
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


class OpenvinoPredictor:
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
        settings (InferenceSettings): Threads and precision ("fp32", "bf16") count.

    Raises:
        UserError: OpenVINO is missing, or bf16 is asked of a processor without it.
    """

    runtime = "OpenVINO"
    mkldnn = False
    smallest_side = 32  # pixels; stride 16, and half of it again for scales inside a network

    def __init__(self, info, settings):
        core = openvino_core(settings.precision)
        config = {
            "INFERENCE_NUM_THREADS": settings.cpu_threads or thread_count(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.read_model(info.model_path, *([info.params_path] if info.params else []))
        self._compile = lambda: core.compile_model(model, "CPU", config)
        self._model = self._compile()

    def run(self, batch):
        """Feeds a batch, float32 [N, C, H, W]; returns what the exported network gives.

        Raises:
            SmallInputError: The size is one that OpenVINO fails at; others work afterwards.
        """
        batch = np.ascontiguousarray(batch, np.float32)
        count, _, height, width = batch.shape
        if min(height, width) >= self.smallest_side:
            output = self._model([batch])[0]
            if (output.shape[0], *output.shape[-2:]) == (count, height, width):
                return output
            self._model = self._compile()
        raise SmallInputError(
            f"OpenVINO cannot run an input of {height} x {width} pixels (height x width): use "
            "--runtime paddle."
        )

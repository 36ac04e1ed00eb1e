# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime and OpenVINO as `predictors.open_predictor` uses them. Neither needs Paddle."""

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra


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


class OpenvinoPredictor:
    """An exported network in OpenVINO, on the CPU.

    It reads ``.pdmodel`` and ``.onnx`` alike. The precision is always said: left to itself OpenVINO
    computes in bfloat16 where the processor has instructions for it.

    Args:
        info (DeployInfo): Of format "legacy" or "onnx".
        settings (InferenceSettings): Threads and precision ("fp32", "bf16") count.

    Raises:
        UserError: OpenVINO is missing, or bf16 is asked of a processor without it.
    """

    runtime = "OpenVINO"
    mkldnn = False

    def __init__(self, info, settings):
        openvino = import_extra("openvino", need="--runtime openvino", extra="openvino")
        core = openvino.Core()
        if settings.precision == "bf16":
            known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in known:
                raise UserError(
                    "--precision bf16: this processor computes in fp32 (OpenVINO names "
                    f"{', '.join(known)}). Use --precision fp32."
                )
        config = {
            "INFERENCE_NUM_THREADS": settings.cpu_threads or thread_count(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[settings.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.read_model(info.model_path, *([info.params_path] if info.params else []))
        self._model = core.compile_model(model, "CPU", config)

    def run(self, batch):
        """Feeds a batch, float32 [N, C, H, W]; returns what the exported network gives."""
        return self._model([np.ascontiguousarray(batch, np.float32)])[0]

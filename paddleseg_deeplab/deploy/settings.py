# SPDX-License-Identifier: Apache-2.0
"""How to run an exported network, and what of that cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddleseg_deeplab.utils.device import gpu_count
from paddleseg_deeplab.utils.errors import UserError, import_extra

if TYPE_CHECKING:
    from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo

INPUTS = ("float32", "uint8")
PROGRAMS = ("paddlex",)  # that read a folder of their own form
OUTPUT_OPS = ("argmax", "softmax", "none")
FORMATS = ("pir", "legacy", "onnx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
RUNTIMES = ("auto", "paddle", "onnxruntime", "openvino")
ENGINES = ("auto", "dygraph", "paddle", "onnxruntime", "openvino")  # see `deploy.engine`
# Format: the runtimes that read it, the one that "auto" takes first.
_RUNTIMES_OF = {
    "pir": ("paddle",),
    "legacy": ("paddle", "openvino"),
    "onnx": ("onnxruntime", "openvino"),
}


@dataclass
class RuntimeSettings:
    """How to run an exported network.

    Attributes:
        device (str): "cpu", "gpu" or "gpu:N".
        cpu_threads (int | None): None takes all that this process may use.
        mkldnn (bool | None): oneDNN on the CPU. None means: on, and off where Paddle cannot run
            this network with it.
        precision (str): "fp32"; on a GPU "fp16", with TensorRT "int8"; on a CPU "bf16", in
            OpenVINO, or in Paddle Inference for the format "legacy".
        use_trt (bool): TensorRT for the sub graphs that it can run (legacy format only).
        batch_size (int): Largest batch, for TensorRT.
        min_subgraph_size (int): Fewest operators that TensorRT is given at a time.
        trt_min_shape, trt_opt_shape, trt_max_shape (list[int] | None): N C H W bounds of a free
            input size; PaddleSeg's 100x100, 512x1024, 2000x3000 where None. For networks that
            TensorRT runs as one piece; see `deploy.tensorrt.choose_shapes`.
        tuned_shape_file (str | None): Shape ranges that a run with ``collect_shapes`` wrote, used
            in place of the bounds above.
        collect_shapes (bool): Write ``tuned_shape_file`` in this run, without TensorRT.
        print_detail (bool): Show Paddle Inference's own log.
        runtime (str): "paddle" (formats "pir" and "legacy"), "onnxruntime" ("onnx"), "openvino"
            ("legacy" and "onnx", on a CPU), or "auto", see `choose_runtime`.
    """

    device: str = "cpu"
    cpu_threads: int | None = None
    mkldnn: bool | None = None
    precision: str = "fp32"
    use_trt: bool = False
    batch_size: int = 1
    min_subgraph_size: int = 3
    trt_min_shape: list[int] | None = None
    trt_opt_shape: list[int] | None = None
    trt_max_shape: list[int] | None = None
    tuned_shape_file: str | None = None
    collect_shapes: bool = False
    print_detail: bool = False
    runtime: str = "auto"


def choose_runtime(info: DeployInfo, settings: RuntimeSettings) -> str:
    """What runs the exported ``info``: "paddle", "onnxruntime" or "openvino".

    "auto" is the format's own: Paddle Inference, or ONNX Runtime for "onnx".

    Raises:
        UserError: an unknown name, or one that does not read the format.
    """
    if settings.runtime not in RUNTIMES:
        raise UserError(f"--runtime {settings.runtime}: one of {', '.join(RUNTIMES)}.")
    readers = _RUNTIMES_OF[info.format]
    if settings.runtime == "auto":
        return readers[0]
    if settings.runtime not in readers:
        raise UserError(
            f"--runtime {settings.runtime} does not read {info.model_path}, which is of the format "
            f"{info.format}: {' and '.join(readers)} can. OpenVINO reads legacy and onnx, ONNX "
            "Runtime onnx; export again with that --format."
        )
    return settings.runtime


def choose_device(name: str | None = None, form: str = "legacy", runtime: str = "auto") -> str:
    """The device to run on: ``name`` if it is there, else the best present.

    Args:
        name (str | None): "cpu", "gpu" or "gpu:N".
        form (str): The exported format; ONNX Runtime's devices are not Paddle's.
        runtime (str): See `choose_runtime`; "openvino" is for the CPU (`check_settings` refuses
            others).

    Raises:
        UserError: unknown, or not there. It is never changed silently.
    """
    kind, _, number = (name or "").partition(":")
    if name is not None and (kind not in ("cpu", "gpu") or (kind == "cpu" and number)):
        raise UserError(f"--device {name}: use cpu, gpu or gpu:N.")
    if kind == "cpu":
        return "cpu"
    if runtime == "openvino":
        return name or "cpu"
    if form == "onnx":
        present = "CUDAExecutionProvider" in import_extra("onnxruntime").get_available_providers()
        return name if name else ("gpu:0" if present else "cpu")
    count = gpu_count() or 0
    if not name:
        return "gpu:0" if count else "cpu"
    if number and not number.isdecimal():
        raise UserError(f"--device {name}: the number after gpu: is not one.")
    if int(number or 0) >= count:
        raise UserError(
            f"--device {name}: Paddle sees {count} GPU(s) here. Use one of them, or --device cpu; "
            "the CPU build of Paddle sees none."
        )
    return name


def check_settings(settings: RuntimeSettings, info: DeployInfo) -> None:
    """Refuses settings that would be ignored or cannot work for the exported ``info``.

    Raises:
        UserError: naming the flag and what to do instead.
    """
    on_cpu = settings.device == "cpu"
    runtime = choose_runtime(info, settings)
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: one of {', '.join(PRECISIONS)}.")
    if on_cpu and settings.use_trt:
        raise UserError("--use_trt needs a GPU; TensorRT does not run on a CPU. Drop it.")
    if settings.use_trt and info.normalize is not None:
        raise UserError(
            f"--use_trt: {info.model_path} takes uint8 pictures, and TensorRT's shapes are set for "
            "float32 [N, C, H, W]. Export again without --input uint8."
        )
    if runtime == "openvino":
        _check_openvino(settings)
        return
    if settings.precision == "bf16":
        _check_bf16(settings, info)
    elif on_cpu and settings.precision != "fp32":
        raise UserError(
            f"--precision {settings.precision} needs --device gpu; a CPU computes in fp32 or bf16."
        )
    if not on_cpu and settings.mkldnn:
        raise UserError("--enable_mkldnn True is for --device cpu; oneDNN does not run on a GPU.")
    if settings.precision == "int8" and not settings.use_trt:
        raise UserError("--precision int8 needs --use_trt True.")
    if info.format == "onnx" and (settings.use_trt or settings.precision != "fp32"):
        raise UserError(
            f"{info.model_path}: TensorRT and precisions other than fp32 are for Paddle models; "
            "export again with --format legacy."
        )
    if info.format == "pir" and settings.use_trt:
        # Paddle 3.0's guide: Config.enable_tensorrt_engine is for .pdmodel alone. Its way for PIR,
        # paddle.tensorrt.export, converts with TensorRT's Python package and is in GPU builds only.
        raise UserError(
            f"{info.model_path}: TensorRT needs another format. Export again with --format legacy "
            "for Paddle Inference, or with --format onnx for TensorRT's own tools."
        )


def _check_bf16(settings, info):
    """bf16 in Paddle Inference; OpenVINO has been let through."""
    if settings.device != "cpu":
        raise UserError(f"--precision bf16 is for --device cpu; on {settings.device} use fp16.")
    if info.format != "legacy":
        raise UserError(
            f"--precision bf16: {info.model_path} is of the format {info.format}. Paddle Inference "
            "needs the format legacy for it; --runtime openvino takes legacy and onnx."
        )
    if settings.mkldnn is False:
        raise UserError("--precision bf16 needs oneDNN: drop --enable_mkldnn False.")


def _check_openvino(settings):
    if settings.device != "cpu":
        raise UserError(
            f"--device {settings.device}: OpenVINO runs on the CPU here. Use --device cpu, or "
            "another --runtime."
        )
    if settings.precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {settings.precision}: OpenVINO computes in fp32 or bf16.")
    if settings.mkldnn is not None:
        raise UserError("--enable_mkldnn is for --runtime paddle; OpenVINO brings its own oneDNN.")

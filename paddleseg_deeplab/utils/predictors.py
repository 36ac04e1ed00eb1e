# SPDX-License-Identifier: Apache-2.0
"""Runs an exported network: Paddle Inference or ONNX Runtime behind one call. No training code.

Paddle and ONNX Runtime are imported where they are needed: an ONNX folder runs without Paddle.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra
from paddleseg_deeplab.utils.logger import logger

PRECISIONS = ("fp32", "fp16", "int8")
_GPU_MEMORY_MB = 100  # the pool's first size; it grows as needed
_TRT_WORKSPACE = 1 << 30
# PaddleSeg's defaults for a network of free size: [channels] is put in between.
_TRT_SIZES = {"min": (100, 100), "opt": (512, 1024), "max": (2000, 3000)}


@dataclass
class InferenceSettings:
    """How to run an exported network.

    Attributes:
        device (str): "cpu", "gpu" or "gpu:N".
        cpu_threads (int | None): None takes all that this process may use.
        mkldnn (bool | None): oneDNN on the CPU. None means: on, and off where Paddle cannot run
            this network with it.
        precision (str): "fp32", or on a GPU "fp16", or with TensorRT "int8".
        use_trt (bool): TensorRT for the sub graphs that it can run (legacy format only).
        batch_size (int): Largest batch, for TensorRT.
        min_subgraph_size (int): Fewest operators that TensorRT is given at a time.
        trt_min_shape, trt_opt_shape, trt_max_shape (list[int] | None): N C H W bounds of a free
            input size; PaddleSeg's 100x100, 512x1024, 2000x3000 where None.
        tuned_shape_file (str | None): Shape ranges that a run with ``collect_shapes`` wrote, used
            in place of the bounds above.
        collect_shapes (bool): Write ``tuned_shape_file`` in this run, without TensorRT.
        print_detail (bool): Show Paddle Inference's own log.
    """

    device: str = "cpu"
    cpu_threads: Optional[int] = None
    mkldnn: Optional[bool] = None
    precision: str = "fp32"
    use_trt: bool = False
    batch_size: int = 1
    min_subgraph_size: int = 3
    trt_min_shape: Optional[list] = None
    trt_opt_shape: Optional[list] = None
    trt_max_shape: Optional[list] = None
    tuned_shape_file: Optional[str] = None
    collect_shapes: bool = False
    print_detail: bool = False


def check_settings(settings, info):
    """Refuses settings that would be ignored or cannot work for the exported ``info``.

    Raises:
        UserError: naming the flag and what to do instead.
    """
    on_cpu = settings.device == "cpu"
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: one of {', '.join(PRECISIONS)}.")
    if on_cpu and settings.use_trt:
        raise UserError("--use_trt needs a GPU; TensorRT does not run on a CPU. Drop it.")
    if on_cpu and settings.precision != "fp32":
        raise UserError(
            f"--precision {settings.precision} needs --device gpu; the CPU computes in fp32."
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
        # Paddle 3.0's guide: Config.enable_tensorrt_engine is for .pdmodel alone.
        raise UserError(
            f"{info.model_path}: Paddle Inference runs TensorRT on the legacy format only; "
            "export again with --format legacy."
        )


def make_config(info, settings, inference, *, mkldnn=True):
    """Puts the settings into a Paddle Inference ``Config``.

    Args:
        info (DeployInfo): The exported folder.
        settings (InferenceSettings): Checked by `check_settings`.
        inference (module): ``paddle.inference``, or in tests something that records the calls.
        mkldnn (bool): Whether oneDNN is on, on a CPU: the decision, not the wish.

    Returns:
        inference.Config
    """
    config = inference.Config(info.model_path, info.params_path)
    if not settings.print_detail:
        config.disable_glog_info()
    config.switch_ir_optim(True)
    # With a PIR model this fails ("Not find predictor_id 0 and pass_name memory_optimize_pass") on
    # Paddle 3.2.2 and 3.3.1; test_export.py tells when that is mended.
    if info.format == "legacy":
        config.enable_memory_optim()
    if settings.device == "cpu":
        _set_cpu(config, settings, mkldnn)
    else:
        _set_gpu(config, info, settings, inference)
    return config


def _call(config, names, *args):
    """Calls the first of ``names`` that this Paddle has; False where it has none.

    Paddle 3.3 renamed mkldnn to onednn and keeps the old names for now.
    """
    for name in names:
        if hasattr(config, name):
            getattr(config, name)(*args)
            return True
    return False


def _set_cpu(config, settings, mkldnn):
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(settings.cpu_threads or thread_count())
    if mkldnn:
        # Kernels are built for each input size and kept for the last ten.
        _call(config, ("set_onednn_cache_capacity", "set_mkldnn_cache_capacity"), 10)
        _call(config, ("enable_onednn", "enable_mkldnn"))
    else:
        # On by default since Paddle 3.3; older versions may lack the call, and have it off.
        _call(config, ("disable_onednn", "disable_mkldnn"))


def _set_gpu(config, info, settings, inference):
    device_id = int(settings.device.partition(":")[2] or 0)
    kinds = inference.PrecisionType
    precision = {"fp32": kinds.Float32, "fp16": kinds.Half, "int8": kinds.Int8}[settings.precision]
    if settings.precision == "fp16" and not settings.use_trt:
        config.enable_use_gpu(_GPU_MEMORY_MB, device_id, precision)
    else:
        config.enable_use_gpu(_GPU_MEMORY_MB, device_id)
    if settings.collect_shapes:
        config.collect_shape_range_info(settings.tuned_shape_file)
    elif settings.use_trt:
        config.enable_tensorrt_engine(
            workspace_size=_TRT_WORKSPACE,
            max_batch_size=settings.batch_size,
            min_subgraph_size=settings.min_subgraph_size,
            precision_mode=precision,
            use_static=False,
            # The weights are not quantised: TensorRT calibrates on the first images it sees.
            use_calib_mode=settings.precision == "int8",
        )
        if settings.tuned_shape_file:
            config.enable_tuned_tensorrt_dynamic_shape(settings.tuned_shape_file, True)
        elif None in info.input_shape:
            low, best, high = trt_shapes(info, settings)
            config.set_trt_dynamic_shape_info({"x": low}, {"x": high}, {"x": best})


def trt_shapes(info, settings):
    """Smallest, best and largest input [N, C, H, W] for TensorRT, where a size is left free."""
    shapes = []
    for kind, batch in (("min", 1), ("opt", settings.batch_size), ("max", settings.batch_size)):
        given = getattr(settings, f"trt_{kind}_shape")
        shape = given or [batch, info.img_channels, *_TRT_SIZES[kind]]
        if len(shape) != 4:
            raise UserError(f"--trt_{kind}_shape takes N C H W, got {shape}.")
        shapes.append([fixed or value for fixed, value in zip(info.input_shape, shape)])
    low, best, high = shapes
    if any(not a <= b <= c for a, b, c in zip(low, best, high)):
        raise UserError(
            f"TensorRT's shapes must grow: min {low}, opt {best}, max {high}; mend "
            "--trt_min_shape, --trt_opt_shape or --trt_max_shape."
        )
    return low, best, high


class PaddlePredictor:
    """An exported network in Paddle Inference.

    Args:
        info (DeployInfo): Of format "pir" or "legacy".
        settings (InferenceSettings): How to run it.
        inference (module, optional): ``paddle.inference`` by default.

    Attributes:
        mkldnn (bool): Whether oneDNN is in use; may change at a `run` where the wish is automatic.
    """

    def __init__(self, info, settings, inference=None):
        check_settings(settings, info)
        if inference is None:
            import paddle.inference as inference
        self._info, self._settings, self._inference = info, settings, inference
        self.mkldnn = settings.device == "cpu" and settings.mkldnn is not False
        if info.format == "legacy":
            _check_program(info.model_path)
        self._predictor = self._create(self.mkldnn)

    def _create(self, mkldnn):
        config = make_config(self._info, self._settings, self._inference, mkldnn=mkldnn)
        return self._inference.create_predictor(config)

    def run(self, batch):
        """Feeds a batch, float32 [N, C, H, W]; returns what the exported network gives.

        Raises:
            UserError: oneDNN was asked for and Paddle cannot run this network with it.
        """
        try:
            return self._run(batch)
        except Exception as e:
            # At any run, not only the first: kernels are built anew for each input size.
            if not self.mkldnn:
                raise
            return self._run_without_mkldnn(batch, e)

    def _run(self, batch):
        handle = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        batch = np.ascontiguousarray(batch, np.float32)
        handle.reshape(batch.shape)
        handle.copy_from_cpu(batch)
        self._predictor.run()
        name = self._predictor.get_output_names()[0]
        return self._predictor.get_output_handle(name).copy_to_cpu()

    def _run_without_mkldnn(self, batch, error):
        """Paddle 3.3.0 and 3.3.1 cannot run a PIR model's bilinear resize in oneDNN: do without.

        From then on, and only if that helps: else it was not oneDNN, and ``error`` is raised.
        """
        reason = " ".join(str(error).split())[:200]
        if self._settings.mkldnn:
            raise UserError(
                f"{self._info.model_path}: the installed Paddle cannot run it with oneDNN "
                f"({reason}). Drop --enable_mkldnn True, or export with --format legacy."
            ) from error
        with_mkldnn, self._predictor = self._predictor, self._create(False)
        try:
            output = self._run(batch)
        except Exception:
            self._predictor = with_mkldnn
            raise error from None
        logger.warning(
            "oneDNN cannot run %s here, so it runs without and slower; --format legacy may be "
            "faster on a CPU.",
            self._info.model,
        )
        logger.debug("oneDNN said: %s", reason)
        self.mkldnn = False
        return output


def _check_program(path):
    """Refuses a damaged ``.pdmodel``, which Paddle 3.3.1 ends the whole process over."""
    try:
        from paddle.base.proto.framework_pb2 import ProgramDesc
    except ImportError:  # not a public module
        return
    from google.protobuf.message import DecodeError

    with open(path, "rb") as file:
        content = file.read()
    try:
        good = len(ProgramDesc.FromString(content).blocks) > 0
    except DecodeError:
        good = False
    if not good:
        raise UserError(f"{path} is damaged, or no network; copy it or export again.")


class OnnxPredictor:
    """An exported network in ONNX Runtime.

    Args:
        info (DeployInfo): Of format "onnx".
        settings (InferenceSettings): Device and threads count; the rest is for Paddle.

    Raises:
        UserError: ONNX Runtime is missing, or has no GPU provider and a GPU is asked for.
    """

    mkldnn = False

    def __init__(self, info, settings):
        check_settings(settings, info)
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


def open_predictor(info, settings):
    """The predictor for an exported folder's format.

    Raises:
        UserError: the network's files are damaged, or a setting cannot work.
    """
    kind = OnnxPredictor if info.format == "onnx" else PaddlePredictor
    try:
        return kind(info, settings)
    except UserError:
        raise
    except Exception as e:  # each runtime has its own exceptions
        reason = " ".join(str(e).split())[-300:] or type(e).__name__
        raise UserError(
            f"{info.model_path} cannot be opened: {reason} If the file is damaged, copy it or "
            "export again."
        ) from e


def choose_device(name=None, form="legacy"):
    """The device to run on: ``name`` if it is there, else the best present.

    Args:
        name (str | None): "cpu", "gpu" or "gpu:N".
        form (str): The exported format; ONNX Runtime's devices are not Paddle's.

    Raises:
        UserError: unknown, or not there. It is never changed silently.
    """
    kind, _, number = ("" if name is None else name).partition(":")
    if (name is not None and kind not in ("cpu", "gpu")) or (kind == "cpu" and number):
        raise UserError(f"--device {name}: use cpu, gpu or gpu:N.")
    if kind == "cpu":
        return "cpu"
    if form == "onnx":
        present = "CUDAExecutionProvider" in import_extra("onnxruntime").get_available_providers()
        return name if name else ("gpu:0" if present else "cpu")
    count = _paddle_gpus()
    if not name:
        return "gpu:0" if count else "cpu"
    if not number.isdigit() and number:
        raise UserError(f"--device {name}: the number after gpu: is not one.")
    if int(number or 0) >= count:
        raise UserError(
            f"--device {name}: Paddle sees {count} GPU(s) here. Use one of them, or --device cpu; "
            "the CPU build of Paddle sees none."
        )
    return name


def _paddle_gpus():
    try:
        import paddle
    except ImportError as e:
        raise UserError(
            "PaddlePaddle is not installed: pip install 'paddleseg-deeplab[cpu]', or for a GPU "
            "paddlepaddle-gpu as Paddle's installation guide says."
        ) from e
    return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0

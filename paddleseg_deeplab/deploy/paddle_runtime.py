# SPDX-License-Identifier: Apache-2.0
"""Paddle Inference as `runtimes.open_runtime` uses it. Paddle is imported when one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from paddleseg_deeplab.deploy import tensorrt
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.graph_input import fed
from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    import paddle

_GPU_MEMORY_MB = 100  # the pool's first size; it grows as needed


def make_config(
    info: DeployInfo, settings: RuntimeSettings, inference: ModuleType, *, mkldnn: bool = True
) -> paddle.inference.Config:
    """Puts the settings into a Paddle Inference ``Config``.

    Args:
        info (DeployInfo): The exported folder.
        settings (RuntimeSettings): Checked by `check_settings`.
        inference (module): ``paddle.inference``, or in tests something that records the calls.
        mkldnn (bool): Whether oneDNN is on, on a CPU: the decision, not the wish.

    Returns:
        inference.Config
    """
    config = inference.Config(info.model_path, info.params_path)
    if not settings.print_detail:
        config.disable_glog_info()
    config.switch_ir_optim(True)
    # It fails with a PIR model (paddle_quirks: pir_with_memory_optim).
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
        if settings.precision == "bf16":
            _call(config, ("enable_onednn_bfloat16", "enable_mkldnn_bfloat16"))
            # Only where the work is; all would be too much (paddle_quirks: bf16_addition).
            config.set_bfloat16_op({"conv2d", "fused_conv2d"})
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
        tensorrt.set_engine(config, info, settings, precision)


class PaddleRuntime:
    """An exported network in Paddle Inference.

    Args:
        info (DeployInfo): Of format "pir" or "legacy".
        settings (RuntimeSettings): How to run it.
        inference (module, optional): ``paddle.inference`` by default.

    Attributes:
        mkldnn (bool): Whether oneDNN is in use; may change at a `run` where the wish is automatic.

    Raises:
        UserError: a setting cannot work, TensorRT's libraries are missing, or a file is damaged.
    """

    name = "Paddle Inference"
    smallest_side = 1  # pixels

    def __init__(
        self, info: DeployInfo, settings: RuntimeSettings, inference: ModuleType | None = None
    ) -> None:
        check_settings(settings, info)
        if inference is None:
            import paddle.inference

            inference = paddle.inference
        if settings.use_trt:
            tensorrt.check_installed(inference)
            if settings.precision == "int8" and not settings.collect_shapes:
                tensorrt.tell_of_calibration(info)
        self._info, self._settings, self._inference = info, settings, inference
        self.mkldnn = settings.device == "cpu" and settings.mkldnn is not False
        if info.format == "legacy":
            _check_program(info.model_path)
        if settings.precision == "bf16":
            _check_bf16_processor()
        self._predictor = self._create(self.mkldnn)

    def _create(self, mkldnn):
        config = make_config(self._info, self._settings, self._inference, mkldnn=mkldnn)
        return self._inference.create_predictor(config)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Feeds a batch, float32 [N, C, H, W]; returns the exported network's first output.

        Raises:
            UserError: oneDNN was asked for and Paddle cannot run this network with it.
        """
        return self.outputs(batch, (0,))[0]

    def outputs(self, batch: np.ndarray, which: Sequence[int]) -> list[np.ndarray]:
        """As `run`, the outputs of these numbers; the others are not copied from the device."""
        try:
            return self._run(batch, which)
        except Exception as e:
            # At any run, not only the first: kernels are built anew for each input size.
            if not self.mkldnn:
                raise
            return self._run_without_mkldnn(batch, which, e)

    def _run(self, batch, which):
        handle = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        batch = fed(self._info, batch)
        handle.reshape(batch.shape)
        handle.copy_from_cpu(batch)
        self._predictor.run()
        names = self._predictor.get_output_names()
        handles = [self._predictor.get_output_handle(names[number]) for number in which]
        return [handle.copy_to_cpu() for handle in handles]

    def _run_without_mkldnn(self, batch, which, error):
        """Does without oneDNN where it stops at a PIR model (paddle_quirks: pir_with_onednn).

        From then on, and only if that helps: else it was not oneDNN, and ``error`` is raised.
        """
        reason = " ".join(str(error).split())[:200]
        if self._settings.mkldnn or self._settings.precision == "bf16":
            raise UserError(
                f"{self._info.model_path}: the installed Paddle cannot run it with oneDNN in "
                f"{self._settings.precision} ({reason}). Drop --enable_mkldnn True and --precision "
                "bf16, or export with --format legacy."
            ) from error
        with_mkldnn, self._predictor = self._predictor, self._create(False)
        try:
            outputs = self._run(batch, which)
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
        return outputs


def _check_bf16_processor():
    """Refuses bf16 where Paddle would compute in fp32 without a word."""
    from paddle.base import core

    can = getattr(core, "supports_bfloat16", None)  # not a public function
    if can is not None and not can():
        raise UserError(
            "--precision bf16: this processor computes in fp32 (oneDNN's bf16 needs AVX-512). Use "
            "--precision fp32."
        )


def _check_program(path):
    """Refuses a damaged ``.pdmodel``; it could end the process (paddle_quirks: damaged_program)."""
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

# SPDX-License-Identifier: Apache-2.0
"""TensorRT inside Paddle Inference: what it is told of shapes and of int8. No Paddle is imported.

Written by reading Paddle's sources; docs/deploy.md has what was never run. The network's sub graphs
go to TensorRT one by one, and each wants the range of its own inputs: given that of ``x`` alone,
Paddle stops where the network is split ("some trt inputs dynamic shape info not set"). So the
ranges of all tensors are learned from images first, unless somebody gives bounds.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    import paddle

SHAPE_FILE = "trt_shapes.pbtxt"  # beside the network
CACHE_FOLDER = "_opt_cache"  # Paddle's, beside the network; holds tables of the int8 calibration
_WORKSPACE = 1 << 30
_NONE = (0, 0, 0)
# PaddleSeg's defaults for a network of free size: [channels] is put in between.
_SIZES = {"min": (100, 100), "opt": (512, 1024), "max": (2000, 3000)}


def check_installed(inference: ModuleType) -> None:
    """Refuses TensorRT where the installed Paddle cannot use it.

    Args:
        inference (module): ``paddle.inference``.

    Raises:
        UserError: Paddle was built without TensorRT, or its libraries are not found.
    """
    compiled = tuple(inference.get_trt_compile_version())
    if compiled == _NONE:
        raise UserError(
            "--use_trt True: the installed Paddle was built without TensorRT. Install a GPU build "
            "that has it (see Paddle's installation guide), or drop --use_trt; export.py --format "
            "onnx makes a file for TensorRT's own tools."
        )
    try:
        present = tuple(inference.get_trt_runtime_version())
    except Exception:  # Paddle's NotFound, in words about the library path
        present = _NONE
    if present == _NONE:
        version = ".".join(map(str, compiled))
        raise UserError(
            f"--use_trt True: Paddle was built with TensorRT {version}, whose library libnvinfer "
            "is not found. Install that version and put its folder into LD_LIBRARY_PATH, or drop "
            "--use_trt."
        )


def choose_shapes(info: DeployInfo, settings: RuntimeSettings, learn: bool | None = None) -> bool:
    """Sets where the shape ranges come from, ``settings.tuned_shape_file``.

    Where nobody names a file or gives bounds, it is `SHAPE_FILE` beside the network, or a temporary
    one where that folder cannot be written.

    Args:
        info (DeployInfo): The exported folder.
        settings (RuntimeSettings): How to run it; changed.
        learn (bool | None): True: learn them, over bounds that are given and over a kept file that
            nobody names; False: do not; None: where there are neither.

    Returns:
        bool: whether they have to be learned, see `learning`.

    Raises:
        UserError: a file that is named is not there, and nobody asks to make it.
    """
    named = settings.tuned_shape_file
    if named and not os.path.isfile(named) and not learn:
        raise UserError(f"--auto_tuned_shape_file {named}: no such file. Add --enable_auto_tune.")
    bounds = (settings.trt_min_shape, settings.trt_opt_shape, settings.trt_max_shape)
    if not settings.use_trt or learn is False:
        return False
    if named:
        return not os.path.isfile(named)
    if any(bounds) and not learn:
        return False
    kept = os.path.join(info.folder, SHAPE_FILE)
    settings.tuned_shape_file = kept
    if os.path.isfile(kept) and not learn:
        logger.info("TensorRT's shapes: %s (--enable_auto_tune learns them anew).", kept)
        return False
    if not os.access(info.folder or os.curdir, os.W_OK):
        folder = tempfile.mkdtemp(prefix="paddleseg_deeplab-")
        settings.tuned_shape_file = os.path.join(folder, SHAPE_FILE)
    return True


@contextlib.contextmanager
def learning(settings: RuntimeSettings) -> Iterator[None]:
    """Inside, a runtime that is opened runs without TensorRT and notes all shapes.

    It writes them as it goes, so that it has to be gone at the end. The file appears whole.

    Args:
        settings (RuntimeSettings): With ``tuned_shape_file``; changed, and as before afterwards.

    Raises:
        UserError: no shapes were written, as no image could be run.
    """
    target = settings.tuned_shape_file
    assert target is not None  # `choose_shapes` asks for this
    settings.tuned_shape_file = f"{target}.{os.getpid()}.tmp"
    settings.collect_shapes = True
    logger.info("Learning TensorRT's shapes from the first images; they are kept in %s.", target)
    try:
        yield
        gc.collect()  # a runtime in a circle of references writes late
        if not _has_content(settings.tuned_shape_file):
            raise UserError(
                f"{target}: no shapes for TensorRT were learned, as none of the first images could "
                "be run. Give images that can, or bounds (--trt_min_shape, --trt_opt_shape, "
                "--trt_max_shape)."
            )
        os.replace(settings.tuned_shape_file, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(settings.tuned_shape_file)
        settings.tuned_shape_file, settings.collect_shapes = target, False


def _has_content(path):
    return os.path.isfile(path) and os.path.getsize(path) > 0


def set_engine(
    config: paddle.inference.Config,
    info: DeployInfo,
    settings: RuntimeSettings,
    precision: paddle.inference.PrecisionType,
) -> None:
    """Puts TensorRT into a Paddle Inference ``Config``.

    Args:
        config (inference.Config): Takes it.
        info (DeployInfo), settings (RuntimeSettings): As of `paddle_runtime.make_config`.
        precision (inference.PrecisionType): As ``settings.precision`` says.
    """
    config.enable_tensorrt_engine(
        workspace_size=_WORKSPACE,
        max_batch_size=settings.batch_size,
        min_subgraph_size=settings.min_subgraph_size,
        precision_mode=precision,
        use_static=False,
        # The weights are not quantised: TensorRT calibrates on the first images it sees.
        use_calib_mode=settings.precision == "int8",
    )
    if settings.tuned_shape_file:
        # True: an input outside of the ranges widens them, and the engine is built anew.
        config.enable_tuned_tensorrt_dynamic_shape(settings.tuned_shape_file, True)
        return
    # Of a fixed size all three are the same. Without them Paddle would take the batch for a
    # hidden dimension, which TensorRT 10 no longer has.
    low, best, high = trt_shapes(info, settings)
    config.set_trt_dynamic_shape_info({"x": low}, {"x": high}, {"x": best})


def trt_shapes(
    info: DeployInfo, settings: RuntimeSettings
) -> tuple[list[int], list[int], list[int]]:
    """Smallest, best and largest input [N, C, H, W] for TensorRT; fixed numbers are in all three.

    Raises:
        UserError: bounds that are given do not grow.
    """
    shapes = []
    for kind, batch in (("min", 1), ("opt", settings.batch_size), ("max", settings.batch_size)):
        given = getattr(settings, f"trt_{kind}_shape")
        shape = given or [batch, info.img_channels, *_SIZES[kind]]
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


def tell_of_calibration(info: DeployInfo) -> bool:
    """Warns where int8 has no table yet: Paddle then computes in float32 for the whole run.

    Returns:
        bool: whether there is a table.
    """
    folder = os.path.join(info.folder, CACHE_FOLDER)
    if glob.glob(os.path.join(glob.escape(folder), "trt_calib_*")):
        return True
    logger.warning(
        "int8: there is no calibration table in %s. This run computes in fp32 and collects the "
        "numbers' ranges; the table is written at its end. Run again for int8.",
        folder,
    )
    return False

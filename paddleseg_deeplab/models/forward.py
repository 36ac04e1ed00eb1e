# SPDX-License-Identifier: Apache-2.0
"""The one path from a batch of images to logits, for training and inference alike."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.utils.errors import UserError

PRECISIONS = ("fp32", "fp16", "bf16")
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_NEEDS = {
    "fp16": "compute capability 7.0 (Volta, Turing)",
    "bf16": "compute capability 8.0 (Ampere) and CUDA 11",
}


def precision_context(
    precision: str = "fp32", amp_level: str = "O1", data_format: str = "NCHW"
) -> AbstractContextManager[None]:
    """The context that a forward pass runs in.

    Args:
        precision (str): "fp32", "fp16" or "bf16".
        amp_level (str): "O1" (per operator) or "O2" (almost everything).
        data_format (str): The network's, where a backward pass follows.

    Raises:
        UserError: Mixed precision on a device where Paddle's autocast has no effect: it only warns
            on a CPU and on a GPU that is too old, and computes in float32. Or an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    if precision == "fp32":
        return contextlib.nullcontext()
    _check_device(paddle.get_device(), precision)
    # Paddle's white list has conv2d alone, so that float32 weights would take a depthwise
    # convolution, and the maps around it, back to float32.
    lists = {"custom_white_list": {"depthwise_conv2d"}}
    if (precision, data_format) == ("bf16", "NHWC"):
        # Its weight gradient is one that a GPU refuses (paddle_quirks: bf16_nhwc_depthwise).
        lists = {"custom_black_list": {"depthwise_conv2d"}}
    return paddle.amp.auto_cast(level=amp_level, dtype=_DTYPES[precision], **lists)


@functools.cache
def _check_device(device, precision):
    """Raises UserError where autocast has no effect; asks the device once a process."""
    if device == "cpu":
        raise UserError(
            f"--precision {precision} has no effect on a CPU: Paddle's automatic mixed precision "
            "works on GPUs only. Use --precision fp32, or --device gpu."
        )
    if _takes_effect(precision):
        return
    others = ["fp16"] if precision == "bf16" and _takes_effect("fp16") else []
    raise UserError(
        f"--precision {precision} has no effect on {_description(device)}: Paddle's automatic "
        f"mixed precision needs {_NEEDS[precision]} for it, and would compute in float32. Use "
        f"--precision {' or '.join([*others, 'fp32'])}."
    )


def _takes_effect(precision):
    """Whether a product under autocast comes out in half precision on the present device.

    Not `paddle.amp.is_float16_supported`, which says whether the device has the type at all
    (compute capability 5.3), while autocast needs 7.0.
    """
    one = paddle.ones([1, 1], "float32")
    with warnings.catch_warnings(), paddle.no_grad():
        warnings.simplefilter("ignore")
        with paddle.amp.auto_cast(level="O1", dtype=_DTYPES[precision]):
            return paddle.matmul(one, one).dtype == getattr(paddle, _DTYPES[precision])


def _description(device):
    try:
        major, minor = paddle.device.cuda.get_device_capability()
        name = paddle.device.cuda.get_device_name()
    except (ValueError, RuntimeError):  # no device of CUDA's
        return device
    return f"{device} ({name}, compute capability {major}.{minor})"


@contextlib.contextmanager
def evaluation_mode(model: nn.Layer) -> Iterator[None]:
    """Eval mode inside; afterwards each layer has the mode it had, frozen ones included."""
    layers = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in layers:
            layer.training = training


def run_model(model: nn.Layer, images: Tensor) -> list[Tensor]:
    """Runs the model on a batch that comes in the outside layout.

    Args:
        model (nn.Layer): With an attribute ``data_format``, "NCHW" where it has none.
        images (Tensor): float32 [N, C, H, W].

    Returns:
        list[Tensor]: Logits in the model's own layout, the main output first.
    """
    if getattr(model, "data_format", "NCHW") == "NHWC":
        images = images.transpose((0, 2, 3, 1))  # [N, H, W, C]
    return model(images)


def infer_logits(model: nn.Layer, images: Tensor) -> Tensor:
    """The main logits as float32 [N, num_classes, H, W]; the caller sets eval mode and no_grad."""
    logits = run_model(model, images)[0]
    if getattr(model, "data_format", "NCHW") == "NHWC":
        logits = logits.transpose((0, 3, 1, 2))
    return logits.astype("float32")

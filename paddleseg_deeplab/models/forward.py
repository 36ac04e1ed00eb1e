# SPDX-License-Identifier: Apache-2.0
"""The one path from a batch of images to logits and losses, for training and inference alike."""

import contextlib
import functools
import warnings

import paddle

from paddleseg_deeplab.utils.errors import UserError

PRECISIONS = ("fp32", "fp16", "bf16")
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_NEEDS = {
    "fp16": "compute capability 7.0 (Volta, Turing)",
    "bf16": "compute capability 8.0 (Ampere) and CUDA 11",
}


def precision_context(precision="fp32", amp_level="O1", data_format="NCHW"):
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
        # Its weight gradient adds pairs of bfloat16 at addresses that are not aligned to pairs
        # (3.3.1, phi/kernels/gpu/depthwise_conv.h, NoReturnAtomicAdd), which a GPU refuses.
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
def evaluation_mode(model):
    """Eval mode inside; afterwards each layer has the mode it had, frozen ones included."""
    layers = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in layers:
            layer.training = training


def run_model(model, images):
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


def infer_logits(model, images):
    """The main logits as float32 [N, num_classes, H, W]; the caller sets eval mode and no_grad."""
    logits = run_model(model, images)[0]
    if getattr(model, "data_format", "NCHW") == "NHWC":
        logits = logits.transpose((0, 3, 1, 2))
    return logits.astype("float32")


def _label_on_grid(label, height, width):
    """Label resized by nearest to the logits' grid (V1 and V2 train so); [N, H, W] int64."""
    if list(label.shape[1:]) == [height, width]:
        return label
    # Pixel centres: the label at floor((i + 0.5) * H / h), so that both grids share their middle.
    rows = ((paddle.arange(height, dtype="float32") + 0.5) * label.shape[1] / height).astype(
        "int64"
    )
    cols = ((paddle.arange(width, dtype="float32") + 0.5) * label.shape[2] / width).astype("int64")
    return label.index_select(rows, axis=1).index_select(cols, axis=2)


def _layout_of(loss):
    """The layout that a loss wants, NCHW where it says nothing; of a `MixedLoss`, its parts'."""
    if hasattr(loss, "data_format"):
        return loss.data_format
    parts = getattr(loss, "losses", None)
    return _layout_of(parts[0]) if parts else "NCHW"


def compute_losses(logits_list, label, losses, data_format="NCHW", *, shares=None):
    """All loss parts of one batch.

    Args:
        logits_list (list[Tensor]): The model's outputs in ``data_format``.
        label (Tensor): int64 [N, H, W].
        losses (dict): ``types`` and ``coef``, one entry an output, as `SegBuilder.loss`.
        data_format (str): Layout of the logits.
        shares (Sequence[float] | Tensor, optional): A factor for each part, in their order.

    Returns:
        tuple[Tensor, dict[str, Tensor]]: The sum (scalar, float32) and the weighted parts by name.

    Raises:
        UserError: The model's number of outputs is not the number of losses.
    """
    types, coefs = losses["types"], losses["coef"]
    _check_outputs(logits_list, types)
    parts = {}
    for i, (logits, loss, coef) in enumerate(zip(logits_list, types, coefs)):
        native = _layout_of(loss)
        if native != data_format:
            order = (0, 3, 1, 2) if native == "NCHW" else (0, 2, 3, 1)
            logits = logits.transpose(order)
        height, width = logits.shape[2:] if native == "NCHW" else logits.shape[1:3]
        value = loss(logits, _label_on_grid(label, height, width))
        suffix = f"_output{i}" if i else ""
        if isinstance(value, (list, tuple)):
            for name, part in zip(loss.names, value):
                parts[name + suffix] = coef * part
        else:
            parts[type(loss).__name__ + suffix] = coef * value
    if shares is not None:
        if isinstance(shares, paddle.Tensor):
            shares = shares.astype("float32").unbind()
        else:
            shares = map(float, shares)
        parts = {name: part * share for (name, part), share in zip(parts.items(), shares)}
    return sum(parts.values()), parts


def _check_outputs(logits_list, types):
    if len(logits_list) != len(types):
        raise UserError(
            f"The model gives {len(logits_list)} output(s) in training, but the config's loss has "
            f"{len(types)} types. Give loss.types and loss.coef one entry an output."
        )


def part_count(losses):
    """How many parts `compute_losses` gives."""
    return sum(len(getattr(loss, "names", None) or [loss]) for loss in losses["types"])


def output_sizes(logits_list, data_format="NCHW"):
    """(height, width) of each output."""
    return [tuple(x.shape[2:] if data_format == "NCHW" else x.shape[1:3]) for x in logits_list]


def batch_weights(label, sizes, losses):
    """How much a batch counts in each loss part where several batches are joined.

    Args:
        label (Tensor): int64 [N, H, W].
        sizes (list[tuple]): As `output_sizes` gives them for the batch's logits.
        losses (dict): As `compute_losses` takes them.

    Returns:
        list[float | Tensor]: Scalars in the parts' order; 1.0 for a loss that has no method
            ``batch_weight``, such as one written for PaddleSeg.
    """
    _check_outputs(sizes, losses["types"])
    out = []
    for (height, width), loss in zip(sizes, losses["types"]):
        on_grid = _label_on_grid(label, height, width)
        for part in getattr(loss, "losses", None) or [loss]:
            weight = getattr(part, "batch_weight", None)
            out.append(1.0 if weight is None else weight(on_grid))
    return out

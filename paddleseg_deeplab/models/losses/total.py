# SPDX-License-Identifier: Apache-2.0
"""All losses of a batch, over all outputs of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from paddle import Tensor

from paddleseg_deeplab.utils.errors import UserError


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


def compute_losses(
    logits_list: Sequence[Tensor],
    label: Tensor,
    losses: Mapping[str, Any],
    data_format: str = "NCHW",
    *,
    shares: Sequence[float] | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
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


def part_count(losses: Mapping[str, Any]) -> int:
    """How many parts `compute_losses` gives."""
    return sum(len(getattr(loss, "names", None) or [loss]) for loss in losses["types"])


def output_sizes(logits_list: Sequence[Tensor], data_format: str = "NCHW") -> list[tuple[int, int]]:
    """(height, width) of each output."""
    return [tuple(x.shape[2:] if data_format == "NCHW" else x.shape[1:3]) for x in logits_list]


def batch_weights(
    label: Tensor, sizes: Sequence[tuple[int, int]], losses: Mapping[str, Any]
) -> list[float | Tensor]:
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

# SPDX-License-Identifier: Apache-2.0
"""What `inspect_network` found, as lines of text and as JSON. No Paddle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddleseg_deeplab.tools.inspect_model.draw import merge_alike, short_name

if TYPE_CHECKING:
    from paddleseg_deeplab.tools.inspect_model.memory import MemoryEstimate
    from paddleseg_deeplab.tools.inspect_model.network import AtrousLayer, NetworkFacts


def _table(head, rows):
    """Lines; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def _by(pair):
    """(height, width) as people write sizes: width x height."""
    return f"{pair[1]}x{pair[0]}"


def millions(number: float) -> str:
    """1234567 -> "1.235 M"."""
    return f"{number / 1e6:.3f} M"


def billions(number: float) -> str:
    """Multiply-adds of one image in 1e9."""
    return f"{number / 1e9:.2f} G"


def atrous_table(layers: Sequence[AtrousLayer]) -> list[str]:
    """Lines about dilated convolutions; equal ones in a row share a line.

    Args:
        layers (list[AtrousLayer]): Of one network.

    Returns:
        list[str]: lines.
    """
    if not layers:
        return ["No atrous convolution: every rate is 1."]
    head = ["atrous convolution", "kernel", "rate", "spans", "map", "valid weights"]
    head += ["most often"]
    rows = []
    for layer, count in merge_alike(layers):
        taps, share = max(layer.counts.items(), key=lambda item: item[1])
        rate = layer.rate[0] if layer.rate[0] == layer.rate[1] else _by(layer.rate)
        rows.append(
            [
                *(short_name(layer, count), _by(layer.kernel), str(rate), _by(layer.effective)),
                *(_by(layer.size), f"{100 * layer.share:.1f} %"),
                f"{taps} tap{'s' * (taps != 1)} ({100 * share:.0f} % of positions)",
            ]
        )
    return _table(head, rows)


def stage_table(facts: Mapping[int | None, NetworkFacts], stride: int | None) -> list[str]:
    """Lines about stages: receptive fields at one output stride, costs at all of them.

    Args:
        facts (dict[int, NetworkFacts]): By output stride.
        stride (int): The one whose sizes and receptive fields are shown.

    Returns:
        list[str]: lines.
    """
    own = facts[stride]
    head = ["stage", "channels", "size", "stride", "receptive field", "parameters"]
    head += [f"multiply-adds at {s}" if i == 0 else f"at {s}" for i, s in enumerate(facts)]
    costs = {s: {stage.name: stage for stage in f.stages} for s, f in facts.items()}
    rows = []
    for stage in own.stages:
        if stage.size is None:
            shown = ["-", "-", "-", "not run"]
        else:
            field = stage.receptive_field
            shown = [
                "-" if stage.channels is None else str(stage.channels),
                _by(stage.size) if stage.size else "-",
                "-" if stage.stride is None else str(stage.stride),
                str(field) if field else ("whole image" if own.receptive_fields else "-"),
            ]
        work = [costs[s].get(stage.name) for s in facts]
        rows.append(
            [
                *(stage.name, *shown, millions(stage.parameters)),
                *("-" if w is None else billions(w.multiply_adds) for w in work),
            ]
        )
    total = ["total", "", "", "", "", millions(own.parameters)]
    return _table(head, [*rows, [*total, *(billions(f.multiply_adds) for f in facts.values())]])


def as_json(facts: NetworkFacts) -> dict[str, Any]:
    """`NetworkFacts` as plain dicts and lists; sizes are [height, width]."""
    out = dataclasses.asdict(facts)
    for layer in out["atrous"]:
        layer["counts"] = {str(taps): share for taps, share in layer["counts"].items()}
    return out


def as_plain(estimate: MemoryEstimate) -> dict[str, Any]:
    """`MemoryEstimate` as plain dicts; bytes, sizes are [height, width]."""
    return dataclasses.asdict(estimate)


def memory_tables(
    estimate: MemoryEstimate, gib: float = 0, batches: Mapping[str, int] | None = None
) -> list[str]:
    """Lines about what a training step takes.

    Args:
        estimate (MemoryEstimate): Of one batch.
        gib (float): Memory of a device that ``batches`` fit into.
        batches (dict[str, int], optional): Column to images.

    Returns:
        list[str]: lines.
    """
    columns = list(estimate.peak)

    def cells(row):
        return [f"{row[column] / 2**30:.3f}" for column in columns]

    size = f"{estimate.batch_size} of {_by(estimate.input_size)}, {estimate.data_format}"
    lines = [f"Memory of a training step in GiB, estimated (batch {size})"]
    lines += _table(
        ["kept for the backward pass", *columns],
        [[stage, *cells(row)] for stage, row in estimate.stages.items()],
    )
    rows = [[name, *cells(row)] for name, row in estimate.parts.items() if any(row.values())]
    lines += ["", *_table(["", *columns], [*rows, ["peak", *cells(estimate.peak)]])]
    lines.append("Gradients of weights come as kept maps go, so the peak is less than the sum.")
    lines.append("Not in it: a device's context and work space of convolutions, about 1 GiB.")
    if estimate.unknown_losses:
        lines.append(f"Counted as cross-entropy: {', '.join(estimate.unknown_losses)}.")
    if batches:
        listed = ", ".join(f"{column} {count}" for column, count in batches.items())
        lines.append(f"Largest batch in {gib:g} GiB, 1 GiB left for those: {listed}.")
    return lines

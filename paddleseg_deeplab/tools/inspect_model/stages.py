# SPDX-License-Identifier: Apache-2.0
"""Which parts of a network are its stages, by their names and their output channels."""

import re
from collections.abc import Iterable, Mapping

from paddle import nn

BATCH_NORMS = (nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm)


def _is_list(layer):
    children = list(layer._sub_layers)
    return isinstance(layer, (nn.LayerList, nn.Sequential)) and all(c.isdigit() for c in children)


def _has_weights(layer):
    return any(p is not None for p in layer.parameters())


def units_of(model: nn.Layer) -> list[tuple[str, nn.Layer]]:
    """(name, layer) of the smallest parts that stages are put together from."""
    parts = [(n, c) for n, c in model.named_children() if n in ("backbone", "head")]
    rest = [(n, c) for n, c in model.named_children() if n not in ("backbone", "head")]
    units = []
    for name, part in parts or [("", model)]:
        for child_name, child in part.named_children():
            full = f"{name}.{child_name}" if name else child_name
            units += _unfold(full, child)
    if parts:
        units += rest
    return [(name, layer) for name, layer in units if _has_weights(layer)]


def _unfold(name, child):
    if _is_list(child):
        units = []
        for number, part in child.named_children():
            inner = f"{name}.{number}"
            # A list inside a list runs as its parts, which hooks see, not by itself.
            units += _unfold(inner, part) if isinstance(part, nn.LayerList) else [(inner, part)]
        return units
    children = [c for _, c in child.named_children()]
    convs = any(isinstance(c, nn.Conv2D) for c in children)
    norms = any(isinstance(c, BATCH_NORMS) for c in children)
    if not name.startswith("head.") or not convs or norms:  # with a norm it is one block
        return [(name, child)]
    # A decoder: its single convolution, the classifier, counts apart from its blocks.
    return [(f"{name}.{n}", c) for n, c in child.named_children()]


def _group_of(unit):
    """``backbone.bb_2_11`` -> ``backbone.bb_2``; ``backbone.fusion.3.0`` -> ``backbone.fusion``."""
    return re.sub(r"(\.\d+)+$|_\d+$", "", unit)


def stage_names(units: Iterable[str], channels: Mapping[str, int]) -> dict[str, str]:
    """Unit -> stage: units of one group, in runs of equal output channels.

    Args:
        units (list[str]): In the order of the run.
        channels (dict[str, int]): Output channels of each unit.
    """
    runs: list[tuple[tuple[str, int | None], list[str]]] = []
    for unit in units:
        key = (_group_of(unit), channels.get(unit))
        numbered = bool(re.search(r"\.\d+$", unit))
        same = runs and runs[-1][0][0] == key[0] and (runs[-1][0] == key or not numbered)
        if same:
            runs[-1][1].append(unit)
        else:
            runs.append((key, [unit]))
    count: dict[str, int] = {}
    for (group, _), _ in runs:
        count[group] = count.get(group, 0) + 1
    names = {}
    for (group, _), members in runs:
        name = group
        if count[group] > 1:
            first, last = members[0], members[-1]
            tail = re.search(r"\d+$", last)
            name = first if first == last or not tail else f"{first}-{tail.group()}"
        elif len(members) == 1:
            name = members[0]
        names.update(dict.fromkeys(members, name))
    return names

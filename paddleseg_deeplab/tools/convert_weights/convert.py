# SPDX-License-Identifier: Apache-2.0
"""Weights of torchvision, kazuto1011 and PaddleSeg -> a checkpoint for a network of this package.

The names are tables in `rules`, the files the business of `read`.
"""

import fnmatch
import os
from collections import namedtuple
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from paddle import nn

from paddleseg_deeplab.prediction.outputs import check_save_dir
from paddleseg_deeplab.tools.convert_weights.read import read_tensors
from paddleseg_deeplab.tools.convert_weights.rules import (
    ABSENT,
    CLASSIFIER,
    OPTIONAL,
    PARTS,
    SOURCES,
    reason_to_drop,
    rename,
    without_prefixes,
)
from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights import load

_SUFFIXES = (".pdparams", ".safetensors")
_BACKBONE = "backbone."
_NO_HEAD = "no part of the backbone, and --part backbone takes nothing else"


class ConvertReport(NamedTuple):
    """What `convert_weights` did.

    Attributes:
        filled (list[str]): Tensors of the layer that the file written holds, in its order.
        absent (list[tuple]): (pattern of names, reason, those names) of tensors of the layer that
            the source does not have; the file written lacks them.
        dropped (list[tuple]): (name, reason) of tensors of the source that have no place.
        notes (list[str]): What was unwrapped: sentences.
    """

    filled: list[str]
    absent: list[tuple[str, str, list[str]]]
    dropped: list[tuple[str, str]]
    notes: list[str]

    def __str__(self) -> str:
        missing = sum(len(names) for _, _, names in self.absent)
        return (
            f"{len(self.filled)} tensors converted, {len(self.dropped)} of the source dropped, "
            f"{missing} not in the source"
        )


def convert_weights(
    layer: nn.Layer,
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    source: str,
    part: str = "model",
) -> ConvertReport:
    """Converts another project's weights for a network, or fails and writes nothing.

    Every tensor of the layer is filled, except groups of `rules.ABSENT`, and every tensor
    of the file is used, except those of `rules.DROPPED` and parts the layer is built
    without; all of these are named in the log and the report. The layer itself is not changed.

    Args:
        layer (nn.Layer): The built model, or its backbone for part "backbone".
        file (str): ``.pth``, ``.safetensors``, ``.npz`` or ``.pdparams``, see
            `read.read_tensors`.
        output (str): A ``.pdparams`` or ``.safetensors`` file, replaced at once when it is
            complete; folders are made.
        source (str): "torchvision", "kazuto1011" or "paddleseg": whose names the file has.
        part (str): "model", or "backbone" for a file that goes to the backbone's ``pretrained``;
            the source may then be a whole model or a backbone alone.

    Returns:
        ConvertReport: what was done.

    Raises:
        UserError: anything that cannot be read or does not fit; the text names file and tensors.
    """
    if source not in SOURCES:
        raise UserError(f"source is {source!r}; give one of {', '.join(SOURCES)}.")
    if part not in PARTS:
        raise UserError(f"part is {part!r}; give one of {', '.join(PARTS)}.")
    check_output(output, file)
    tensors, notes = read_tensors(file)
    converted, report = match_tensors(layer, tensors, file=file, source=source, part=part)
    report = report._replace(notes=[*notes, *report.notes])
    _save(converted, output)
    _log(report, file, output)
    return report


def match_tensors(
    layer: nn.Layer,
    tensors: Mapping[str, np.ndarray],
    *,
    file: str | os.PathLike[str],
    source: str,
    part: str = "model",
) -> tuple[dict[str, np.ndarray], ConvertReport]:
    """The conversion itself, without files.

    Args:
        layer (nn.Layer), source, part: See `convert_weights`.
        tensors (dict[str, np.ndarray]): The source's, by its names.
        file (str): For messages.

    Returns:
        tuple[dict[str, np.ndarray], ConvertReport]: the layer's tensors by its own names.

    Raises:
        UserError: something does not fit.
    """
    start = _BACKBONE if part == "backbone" else ""
    own = {start + name: list(value.shape) for name, value in layer.state_dict().items()}
    short, notes = without_prefixes(tensors, source)
    name_here = _renamer(layer, source, part)
    taken: dict[str, list[str]] = {}
    dropped, unused = [], []
    for name, plain in short.items():
        here = name_here(plain)
        if here in own:
            taken.setdefault(here, []).append(name)
            continue
        reason = _reason(plain, here, own, source, part)
        if reason:
            dropped.append((name, reason))
        else:
            unused.append((name, here))
    linear = set(_linear_weights(layer, start)) if source != "paddleseg" else ()
    values = {
        here: _laid_out(tensors[names[0]], own[here], here in linear)
        for here, names in taken.items()
    }
    wrong = [
        (taken[here][0], list(value.shape), here, own[here])
        for here, value in values.items()
        if list(value.shape) != own[here]
    ]
    wrong = _drop_misfits(wrong, taken, values, dropped, short, source)
    absent, missing = _absent([name for name in own if name not in taken], taken, source)
    twice = [f"{' and '.join(names)} for {here}" for here, names in taken.items() if len(names) > 1]
    faults = _Faults(missing, unused, wrong, twice)
    if any(faults):
        advice = _advice(faults, own, short, source, part)
        _fail(faults, advice, file, source, part)
    converted = {
        name[len(start) :]: np.ascontiguousarray(values[name]) for name in own if name in values
    }
    absent = [
        (glob[len(start) :], why, [name[len(start) :] for name in names])
        for glob, why, names in absent
    ]
    return converted, ConvertReport(list(converted), absent, dropped, notes)


_Faults = namedtuple("_Faults", "missing unused wrong twice")


def _renamer(layer, source, part):
    """A function from a source's name to the name here, None without one."""
    backbone = layer if part == "backbone" else getattr(layer, "backbone", None)
    theirs = getattr(backbone, "paddleseg_name", None) if source == "paddleseg" else None
    if theirs is None:
        return lambda name: rename(name, source)
    table = {_BACKBONE + theirs(name): _BACKBONE + name for name in backbone.state_dict()}

    def renamed(name):
        name = rename(name, source)
        return table.get(name, name)

    return renamed


def _laid_out(value, shape, is_linear):
    """A tensor in the layout of its place: transposed, or a fully connected layer as a kernel."""
    if is_linear:
        return value.T  # torch has [out, in], Paddle [in, out]
    if value.ndim == 2 and len(shape) == 4 and value.size == np.prod(shape):
        return value.reshape(shape)
    return value


def _drop_misfits(wrong, taken, values, dropped, short, source):
    """Drops groups that may be absent, fit badly and have a reason; the rest stays wrong."""
    for glob, _ in ABSENT[source]:
        if not fnmatch.filter([here for _, _, here, _ in wrong], glob):
            continue
        places = fnmatch.filter(list(taken), glob)
        names = [name for here in places for name in taken[here]]
        reasons = [reason_to_drop(short[name], source) for name in names]
        if all(reasons):
            dropped.extend(zip(names, reasons))
            for here in places:
                del taken[here], values[here]
            wrong = [w for w in wrong if w[2] not in places]
    return wrong


def _reason(plain, here, own, source, part):
    """Why a tensor without a place in the layer may be dropped, or None."""
    if here is not None and part == "backbone" and not here.startswith(_BACKBONE):
        return _NO_HEAD
    for glob, why in OPTIONAL:
        fits = here is not None and fnmatch.fnmatchcase(here, glob)
        if fits and not fnmatch.filter(own, glob):
            return why
    return reason_to_drop(plain, source)


def _absent(missing, taken, source):
    """(groups the source does not have, what is missing besides)."""
    groups = []
    for glob, why in ABSENT[source]:
        names = fnmatch.filter(missing, glob)
        if names and not fnmatch.filter(taken, glob):
            groups.append((glob, why, names))
            missing = [name for name in missing if name not in names]
    return groups, missing


def _linear_weights(layer, start):
    for name, sublayer in layer.named_sublayers():
        if isinstance(sublayer, nn.Linear):
            yield f"{start}{name}.weight"


def _fail(faults, advice, file, source, part):
    parts = []
    if faults.wrong:
        named = [
            f"{name} {theirs} for {here} {ours}"
            if name != here
            else f"{name} {theirs} (here {ours})"
            for name, theirs, here, ours in faults.wrong
        ]
        parts.append(f"{len(named)} of the wrong shape: {first_few(named)}")
    if faults.missing:
        parts.append(
            f"{len(faults.missing)} tensors of the network that the file lacks: "
            f"{first_few(faults.missing)}"
        )
    if faults.unused:
        named = [
            name if here in (None, name) else f"{name} ({here})" for name, here in faults.unused
        ]
        parts.append(
            f"{len(named)} tensors of the file without a place in the network: {first_few(named)}"
        )
    if faults.twice:
        parts.append(f"two tensors for one place: {first_few(faults.twice)}")
    raise UserError(
        f"{file} does not fit this {part} as {source}'s: {'; '.join(parts)}. "
        f"{advice} Nothing was written."
    )


def _advice(faults, own, short, source, part):
    xception = load.xception_advice(short.values())
    if source == "paddleseg" and xception:
        return xception + " Its backbone alone can be had: --part backbone."
    classes = [w for w in faults.wrong if CLASSIFIER.fullmatch(w[2]) and w[1][1:] == w[3][1:]]
    if classes and len(classes) == len(faults.wrong) and not (faults.missing or faults.unused):
        theirs, ours = classes[0][1][0], classes[0][3][0]
        return (
            f"The file is for {theirs} classes, the config for {ours}: take a config of {theirs} "
            "classes, or convert the backbone alone (--part backbone)."
        )
    fitting = [s for s in SOURCES if s != "paddleseg" and s != source and _mostly(short, s)]
    if fitting and not _mostly(short, source):
        return f"The names look like {fitting[0]}'s: --source {fitting[0]}."
    backbone = [name for name in own if name.startswith(_BACKBONE)]
    # An ImageNet classifier's name may be that of a part of a head (torchvision's mobilenet_v2).
    has_head = any(
        (rename(n, source) or "").startswith("head.") and not reason_to_drop(n, source)
        for n in short.values()
    )
    if part == "model" and not has_head and not set(faults.missing).intersection(backbone):
        return "The file holds a backbone alone: --part backbone."
    return (
        "Give the config of the network that the file was made with (depth, head, classes; "
        "configs/compat has the known ones), or a file of that network."
    )


def _mostly(short, source):
    """Whether a source's table knows most of the file's names, its own prefixes taken off."""
    names = without_prefixes(short, source)[0].values()
    known = sum(bool(rename(n, source) or reason_to_drop(n, source)) for n in names)
    return 2 * known > len(short)


def check_output(
    output: str | os.PathLike[str], file: str | os.PathLike[str] | None = None
) -> None:
    """Raises UserError unless `convert_weights` can write there."""
    output = os.fspath(output)
    wanted = f"give a file that ends in {' or '.join(_SUFFIXES)}."
    if os.path.splitext(output)[1] not in _SUFFIXES:
        raise UserError(f"The output is {output}; {wanted}")
    if os.path.isdir(output):
        raise UserError(f"The output {output} is a folder; {wanted}")
    check_save_dir(os.path.dirname(output) or os.curdir, "--output")
    if file is not None and os.path.realpath(output) == os.path.realpath(file):
        raise UserError(f"The output {output} is the input; give another file.")


def _save(tensors, output):
    """Writes beside the file and renames, so that a failure leaves no half of one."""
    try:
        load.save_weights(tensors, output)
    except OSError as e:
        raise UserError(f"{output} cannot be written ({e.strerror or e}).") from e


def _log(report, file, output):
    for note in report.notes:
        logger.info("%s: %s.", file, note)
    by_reason = {}
    for name, why in report.dropped:
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        logger.info("Dropped %d tensor(s), %s: %s.", len(names), why, first_few(names))
        logger.debug("All of them: %s.", ", ".join(names))
    for glob, why, names in report.absent:
        logger.warning("Not filled: %s (%d tensors), %s.", glob, len(names), why)
        logger.debug("All of them: %s.", ", ".join(names))
    if report.absent:
        globs = ", ".join(f'"{glob}"' for glob, _, _ in report.absent)
        logger.warning(
            "%s lacks them. Where it is a `pretrained`, add pretrained_skip: [%s]; they then "
            "start from random numbers.",
            output,
            globs,
        )
    logger.info("%s -> %s: %s.", file, output, report)

# SPDX-License-Identifier: Apache-2.0
"""Loading weights, strictly, with a report of what was loaded; saving them.

Nothing in a weights file is run: see `safe_pickle`.

PaddleSeg warns about whatever does not fit and goes on, even when not one tensor fits. Here
everything has to fit unless the caller names what to skip.

Numbers that are not finite are refused on both ways. Nothing else would notice them: on a
CPU the logits of such a network are finite (paddle_quirks: relu_hides_nan).
"""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.safe_pickle import reader
from paddleseg_deeplab.utils.weights.finite import finite

_SUFFIXES = (".pdparams", ".safetensors")
# Classifiers of ImageNet checkpoints, which a backbone does not have.
_CLASSIFIER = ("out.weight", "out.bias", "fc.weight", "fc.bias")
_FIRST_CONV = "conv1_1._conv.weight"
# A batch norm adds its epsilon, 1e-5 as a rule, to the running variance before the square root;
# what lies between is rounding.
_LEAST_VARIANCE = -1e-5
DIVERGED = (
    "The training that made them diverged: take an earlier checkpoint, or train again with a lower "
    "learning rate."
)
# Attribute names that only PaddleSeg's Xception has.
_XCEPTION = ("_exit_flow_1.", "xception_65/", "xception_41/", "xception_71/")


# Tensors by name; an array of uint16 is bfloat16, as Paddle gives and takes it.
Tensors = dict[str, paddle.Tensor | np.ndarray]


class LoadReport(NamedTuple):
    """What `load_weights` did.

    Attributes:
        loaded (list[str]): Tensors taken from the file.
        missing (list[str]): Tensors of the layer that the file lacks.
        unexpected (list[str]): Tensors of the file that the layer lacks.
        wrong_shape (list[tuple]): (name, shape in the file, shape in the layer).
        skipped (list[str]): Names, of the layer or the file, that the caller said to skip; they
            are in none of the other lists.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[tuple[str, list[int], list[int]]]
    skipped: Sequence[str] = ()

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.wrong_shape)} of the wrong shape, "
            f"{len(self.skipped)} skipped"
        )


def load_weights(
    layer: nn.Layer,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    skip: Sequence[str] | None = (),
    what: str = "model",
) -> LoadReport:
    """Loads a layer's tensors from a ``.pdparams`` or ``.safetensors`` file.

    Nothing is changed unless everything fits. Tensors are converted to the layer's dtype.

    Args:
        layer (nn.Layer): Takes the weights.
        path (str): The file, or a folder that holds ``model.pdparams``, ``model.safetensors`` or
            one other file of these kinds, or an http(s) address of such a file or an archive of it.
        strict (bool): Whether missing and unexpected tensors, and those of the wrong shape, are
            an error; otherwise they are left out and the log names them.
        skip (Sequence[str]): Names of tensors to leave out, exact or with ``*``.
        what (str): What the layer is; for messages.

    Returns:
        LoadReport: what was done.

    Raises:
        UserError: the file is missing, broken, holds no weights, does not fit, or a tensor that
            would be taken is not finite in the layer's dtype.
    """
    file = find_weights(path)
    return load_tensors(layer, read_weights(file), file, strict=strict, skip=skip, what=what)


def load_tensors(
    layer: nn.Layer,
    tensors: Tensors,
    file: str | os.PathLike[str],
    *,
    strict: bool = True,
    skip: Sequence[str] | None = (),
    what: str = "model",
) -> LoadReport:
    """As `load_weights`, with what `read_weights` gave for ``file``, which messages name."""
    own = layer.state_dict()
    report = _compare(own, tensors, skip)
    _check(report, file, strict, what)
    values = {name: _as_dtype(tensors[name], own[name].dtype) for name in report.loaded}
    advice = f"{DIVERGED} If it was good once, the file is damaged: copy or download it again."
    check_finite_weights(values, f"The weights in {file}", advice)
    for name, value in values.items():
        own[name].set_value(value)
    logger.info("%s <- %s: %s.", what, file, report)
    if report.skipped:
        logger.info("Skipped as asked: %s.", first_few(report.skipped))
    if report.missing or report.unexpected or report.wrong_shape:
        logger.warning("Not loaded into the %s: %s.", what, _differences(report))
    return report


def load_entire_model(
    model: nn.Layer, pretrained: str | os.PathLike[str] | None, *, skip: Sequence[str] | None = ()
) -> LoadReport | None:
    """Loads weights for a whole model, strictly (PaddleSeg's name; there it is not strict).

    Args:
        model (nn.Layer): Takes the weights.
        pretrained (str | None): Path or URL, see `load_weights`; None changes nothing.
        skip (Sequence[str]): Names of tensors to leave out, such as a classifier's.

    Returns:
        LoadReport | None: what was done.
    """
    if pretrained is None:
        return None
    return load_weights(model, pretrained, skip=skip, what=type(model).__name__)


def load_pretrained_model(
    model: nn.Layer, pretrained: str | os.PathLike[str] | None, *, skip: Sequence[str] | None = ()
) -> LoadReport | None:
    """Loads weights for a backbone, strictly except for the checkpoint's ImageNet classifier.

    Args:
        model (nn.Layer): The backbone.
        pretrained (str | None): Path or URL, see `load_weights`; None changes nothing.
        skip (Sequence[str]): Names of tensors to leave out.

    Returns:
        LoadReport | None: what was done.
    """
    if pretrained is None:
        return None
    own = model.state_dict()
    classifier = [name for name in _CLASSIFIER if name not in own]
    skip = [*_as_list(skip), *classifier]
    return load_weights(model, pretrained, skip=skip, what=f"backbone {type(model).__name__}")


def find_weights(path: str | os.PathLike[str]) -> str:
    """Path of the weights file that a path or http(s) address means, see `load_weights`."""
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"pretrained weights are named by a path or an address, not {path!r}.")
    path = os.fspath(path)
    if path.lower().startswith(("http://", "https://")):
        from paddleseg_deeplab.utils.download import fetch

        path = os.fspath(fetch(path))
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        raise UserError(f"There are no weights at {path}: no such file or folder.")
    direct = [os.path.join(path, "model" + suffix) for suffix in _SUFFIXES]
    found = [file for file in direct if os.path.isfile(file)]
    found = found or sorted(
        os.path.join(folder, f)
        for folder, _, files in os.walk(path)
        for f in files
        if f.endswith(_SUFFIXES)
    )
    if len(found) == 1:
        return found[0]
    inside = f"{len(found)}: {first_few(found)}" if found else "none"
    raise UserError(
        f"The folder {path} should hold one {' or '.join(_SUFFIXES)} file; it holds {inside}. Name "
        "the file."
    )


def read_weights(file: str | os.PathLike[str]) -> Tensors:
    """Tensors of a ``.pdparams`` or ``.safetensors`` file by name. Runs nothing that is in it.

    Args:
        file (str): Path of the file.

    Returns:
        dict[str, Tensor | ndarray]: what it holds.

    Raises:
        UserError: the file is empty, truncated, something else, or asks for code to be run.
    """
    if os.path.getsize(file) == 0:
        raise UserError(f"The weights file {file} is empty; copy or download it again.")
    if os.fspath(file).lower().endswith(".safetensors"):
        from paddleseg_deeplab.utils.weights.safetensors import read_safetensors

        state = read_safetensors(file)
    else:
        state = reader.load(file)
    is_dict = isinstance(state, dict) and len(state) > 0
    if not is_dict or not all(isinstance(v, (np.ndarray, paddle.Tensor)) for v in state.values()):
        raise UserError(
            f"{file} holds no table of tensors by name ({type(state).__name__}); give a model's "
            ".pdparams or .safetensors file, not an optimizer's or an exported one."
        )
    return state


def save_weights(layer: nn.Layer | Tensors, path: str | os.PathLike[str]) -> None:
    """Writes a layer's tensors; ``path`` is the old or the new file at any moment.

    Args:
        layer (nn.Layer | dict[str, Tensor]): The layer, or its ``state_dict``.
        path (str): Ends in ``.pdparams`` (Paddle's own) or ``.safetensors`` (the same tensors in
            the same types, in a format that other frameworks read and that cannot hold code).

    Raises:
        UserError: another suffix, or `nonfinite_tensors` finds something; nothing is written.
        OSError: the disk does not take it.
    """
    path = os.fspath(path)
    state = _state_of(layer)
    if not path.lower().endswith(_SUFFIXES):
        raise UserError(f"{path}: weights are saved as {' or '.join(_SUFFIXES)}; name it so.")
    check_finite_weights(state, f"The weights to save as {path}")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        if path.lower().endswith(".safetensors"):
            from paddleseg_deeplab.utils.weights.safetensors import safetensors_bytes

            with open(temporary, "wb") as file:
                file.write(safetensors_bytes({k: _with_type(v) for k, v in state.items()}))
        else:
            paddle.save(state, temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def nonfinite_tensors(state: nn.Layer | Tensors) -> list[tuple[str, int, int]]:
    """Tensors that hold NaN or infinite numbers, and running variances below zero.

    Integers and booleans are left out. One pass over the numbers: 24 ms for the 27 million of
    DeepLabV3+ on ResNet50_vd on a CPU, where loading them takes 200 to 400 ms.

    Args:
        state (nn.Layer | dict[str, Tensor | ndarray]): A layer, of which its ``state_dict`` is
            taken, or tensors by name. An array of uint16 is bfloat16, as Paddle gives and takes it.

    Returns:
        list[tuple[str, int, int]]: (name, how many of its numbers are bad, how many it has).
    """
    found = []
    for name, tensor in _state_of(state).items():
        _, array = _with_type(tensor)
        good = finite(array)
        if good is None:
            continue
        if name.rpartition(".")[2] == "_variance":  # its root would be NaN
            good &= array >= _LEAST_VARIANCE
        if not good.all():
            found.append((name, int(good.size - np.count_nonzero(good)), int(good.size)))
    return found


def check_finite_weights(state: nn.Layer | Tensors, what: str, advice: str = DIVERGED) -> None:
    """Raises where `nonfinite_tensors` finds something.

    Args:
        state (nn.Layer | dict[str, Tensor | ndarray]): See `nonfinite_tensors`.
        what (str): What they are, with the file's name; begins the message.
        advice (str): What to do; ends it.

    Raises:
        UserError: naming the first tensors and how many there are.
    """
    state = _state_of(state)
    found = [f"{name} ({bad} of {size})" for name, bad, size in nonfinite_tensors(state)]
    if found:
        raise UserError(
            f"{what} are not finite: {len(found)} of {len(state)} tensors hold NaN, infinite "
            f"numbers or negative variances: {first_few(found)}. {advice}"
        )


def _state_of(state):
    return state if isinstance(state, dict) else state.state_dict()


def _type_name(value):
    """ "float32" of a tensor, an array or a dtype."""
    return str(getattr(value, "dtype", value)).rpartition(".")[2]


def _with_type(tensor):
    """(type's name, array); NumPy lacks bfloat16, of which Paddle gives the bits."""
    array = tensor.numpy() if isinstance(tensor, paddle.Tensor) else tensor
    return _type_name(tensor), np.asarray(array)


def _compare(own, tensors, skip):
    patterns = _as_list(skip)

    def skipped(name):
        return any(name == p or fnmatch.fnmatchcase(name, p) for p in patterns)

    loaded, missing, wrong_shape = [], [], []
    for name, tensor in own.items():
        if skipped(name):
            continue
        if name not in tensors:
            missing.append(name)
        elif list(tensors[name].shape) != list(tensor.shape):
            wrong_shape.append((name, list(tensors[name].shape), list(tensor.shape)))
        else:
            loaded.append(name)
    unexpected = [name for name in tensors if name not in own and not skipped(name)]
    left_out = [name for name in {**own, **tensors} if skipped(name)]
    return LoadReport(loaded, missing, unexpected, wrong_shape, left_out)


def _check(report, file, strict, what):
    """Raises UserError where the file does not fit, with the likely reason and what to do."""
    in_file = report.loaded + report.unexpected + [w[0] for w in report.wrong_shape]
    if report.loaded and not strict:
        return
    if not (report.missing or report.unexpected or report.wrong_shape) and report.loaded:
        return
    raise UserError(
        f"The weights in {file} do not fit the {what} ({report}): {_differences(report)}. "
        f"{_advice(report, in_file)}"
    )


def xception_advice(names: Iterable[str]) -> str | None:
    """Why PaddleSeg's Xception checkpoints do not fit, where names are theirs; else None."""
    if not any(mark in name for name in names for mark in _XCEPTION):
        return None
    return (
        "They are PaddleSeg's Xception: its decoder reads a 128-channel feature of the first "
        "entry block where the paper has the second block's, of 256 channels, so no network "
        "here can hold them. Take a ResNet_vd checkpoint."
    )


def _advice(report, in_file):
    xception = xception_advice(in_file)
    if xception:
        return xception
    wrong = [name for name, _, _ in report.wrong_shape]
    if wrong and all(name.endswith(_FIRST_CONV) for name in wrong):
        name, theirs, ours = report.wrong_shape[0]
        return (
            f"They are for images of {theirs[1]} channels, in_channels is {ours[1]}. Set "
            f"in_channels to {theirs[1]}, or load all but the first convolution with "
            f"pretrained_skip: [{name}], which then starts from random numbers."
        )
    if not report.loaded and any(n.startswith("backbone.") for n in in_file):
        return "They are a whole model's: give them as the model's pretrained, not the backbone's."
    if not report.loaded and any(n.startswith("backbone.") for n in report.missing):
        return "If they are a backbone's alone, give them as the backbone's pretrained."
    if wrong and not report.missing and not report.unexpected:
        return (
            "Build the network with the numbers they were trained with (num_classes, widths), or "
            "name the tensors to leave out in pretrained_skip; those start from random numbers."
        )
    return (
        "Build the network they were trained with, or name the tensors to leave out "
        "(pretrained_skip; skip in Python)."
    )


def _differences(report):
    parts = []
    if report.missing:
        parts.append(f"missing {first_few(report.missing)}")
    if report.unexpected:
        parts.append(f"unexpected {first_few(report.unexpected)}")
    if report.wrong_shape:
        shapes = [f"{name} {theirs} (here {ours})" for name, theirs, ours in report.wrong_shape]
        parts.append(f"of the wrong shape {first_few(shapes)}")
    return "; ".join(parts) or "no tensor is left after what was skipped"


def _as_list(skip):
    return [skip] if isinstance(skip, str) else list(skip or ())


def _as_dtype(value, dtype):
    """The value itself where its type fits: a whole model is not held twice."""
    if _type_name(value) == _type_name(dtype):
        return value
    tensor = value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
    return tensor.astype(dtype)

# SPDX-License-Identifier: Apache-2.0
"""``deploy.yaml``: what an exported folder holds and how to feed it. No Paddle here.

The section ``Deploy`` carries PaddleSeg's keys, so programs written for a PaddleSeg export can read
it; the section ``DeepLab`` carries the rest. A ``deploy.yaml`` of PaddleSeg's is read too.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from paddleseg_deeplab.deploy.settings import FORMATS, OUTPUT_OPS
from paddleseg_deeplab.transforms.color import Normalize
from paddleseg_deeplab.transforms.reading.values import parse_nodata
from paddleseg_deeplab.utils import safe_yaml
from paddleseg_deeplab.utils.errors import UserError

FILE_NAME = "deploy.yaml"
# Files of each format; the first is the network, the second (if any) its parameters.
MODEL_FILES: dict[str, tuple[str, ...]] = {
    "pir": ("model.json", "model.pdiparams"),
    "legacy": ("model.pdmodel", "model.pdiparams"),
    "onnx": ("model.onnx",),
}
# What the first output holds, by its operator.
_FIRST_OUTPUT = {"argmax": "labels", "softmax": "probabilities", "none": "logits"}
_FORMAT_OF_EXTENSION = {".json": "pir", ".pdmodel": "legacy", ".onnx": "onnx"}


@dataclass(kw_only=True)
class DeployFacts:
    """What deploy.yaml tells of the data: how images are prepared and results shown.

    Attributes:
        transforms (Sequence[dict]): Preprocessing, each with its ``type``, as in a config.
        to_rgb (bool): Whether three-channel images are turned from BGR to RGB.
        nodata (float | None): Pixels of which a channel has this value in the image file are 0 in
            the network's input and void (255) in the result; None: all pixels have data.
        class_names (Sequence[str]): Empty where unknown.
        palette (np.ndarray | None): uint8 [num_classes, 3] RGB.
        crf (dict | bool | None): Parameters of the dense CRF that refines the result, as
            `postprocess.settings.make_crf` takes them; None: no CRF.
        size_divisor (int | None): The input's edges are repeated until it divides both sides, see
            `prediction.restore.padded`; None: they stay.
        normalize (dict | None): ``mean`` and ``std``, lists, of the Normalize that the network
            does itself: it then takes uint8 [N, H, W, C]. None: float32 [N, C, H, W].
        program (str | None): "paddlex": the folder is for that program too, see `deploy.paddlex`.
            Not in the file.
    """

    transforms: Sequence[dict[str, Any]] = ()
    to_rgb: bool = True
    nodata: float | None = None
    class_names: Sequence[str] = ()
    palette: np.ndarray | None = None
    crf: dict[str, Any] | bool | None = None
    size_divisor: int | None = None
    normalize: dict[str, list[float]] | None = None
    program: str | None = None


@dataclass
class DeployInfo(DeployFacts):
    """An exported folder in words: the facts of its data, and of its network these.

    Attributes:
        format (str): "pir", "legacy" or "onnx".
        input_shape (list): Four numbers, [N, C, H, W]; None where the size is free.
        output_op (str): Of the first output. "argmax": int32 [N, H, W]; "softmax": float32
            [N, num_classes, H, W], 0..1; "none": the logits, float32 [N, num_classes, H, W].
        with_logits (bool): After "argmax" a second output holds the logits.
        img_channels (int): Channels of an input image.
        num_classes (int | None): None where the file does not say.
        versions (dict): Of this package and of Paddle when it was written.
        checks (dict): The differences that the export measured.
        folder (str): Where the files lie.
        model (str): File name within the folder; by default the format's, as for `params`.
        params (str | None): None where the format has none.
    """

    format: str
    input_shape: list[int | None]
    output_op: str = "argmax"
    with_logits: bool = False
    img_channels: int = 3
    num_classes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    model: str = ""
    params: str | None = None

    def __post_init__(self):
        names = (*MODEL_FILES[self.format], None)
        self.model = self.model or names[0]
        self.params = self.params or names[1]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the network gives, in this order, of "labels", "probabilities", "logits"."""
        first = _FIRST_OUTPUT[self.output_op]
        return (first, "logits") if self.with_logits else (first,)

    @property
    def has_scores(self) -> bool:
        """Whether an output holds probabilities or logits."""
        return self.outputs != ("labels",)

    @property
    def input_dtype(self) -> str:
        return "float32" if self.normalize is None else "uint8"

    @property
    def input_layout(self) -> str:
        return "NCHW" if self.normalize is None else "NHWC"

    @property
    def fed_shape(self) -> list[int | None]:
        """``input_shape`` in the order of ``input_layout``."""
        n, c, h, w = self.input_shape
        return [n, c, h, w] if self.normalize is None else [n, h, w, c]

    @property
    def model_path(self) -> str:
        return os.path.join(self.folder, self.model)

    @property
    def params_path(self) -> str | None:
        return os.path.join(self.folder, self.params) if self.params else None


def write(info: DeployInfo, path: str) -> None:
    """Writes ``info`` as YAML to the file ``path``."""
    palette = None if info.palette is None else np.asarray(info.palette).tolist()
    text: dict[str, dict[str, Any]] = {
        "Deploy": {
            "model": info.model,
            "params": info.params,
            "transforms": [dict(t) for t in info.transforms],
            "input_shape": info.fed_shape,
            "output_op": info.output_op,
            "output_dtype": "int32" if info.output_op == "argmax" else "float32",
        },
        "DeepLab": {
            "format": info.format,
            "input_name": "x",
            "input_layout": info.input_layout,
            "input_dtype": info.input_dtype,
            "outputs": list(info.outputs),
            "img_channels": info.img_channels,
            "to_rgb": info.to_rgb,
            "num_classes": info.num_classes,
            "class_names": list(info.class_names),
            "palette": palette,
            "versions": info.versions,
            "checks": info.checks,
        },
    }
    if info.normalize is not None:
        text["DeepLab"]["normalize"] = info.normalize
    if info.crf is not None:
        text["DeepLab"]["crf"] = info.crf
    if info.size_divisor is not None:
        text["DeepLab"]["size_divisor"] = int(info.size_divisor)
    if info.nodata is not None:
        text["DeepLab"]["nodata"] = float(info.nodata)
    with open(path, "w", encoding="utf-8") as f:
        yaml.dump(text, f, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Numbers of one row (a colour, a shape) on one line, everything else a line each."""

    def ignore_aliases(self, data):
        return True

    def represent_list(self, data):
        flat = bool(data) and all(isinstance(v, (int, float, type(None))) for v in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)

    def represent_tuple(self, data):
        return self.represent_list(list(data))


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(tuple, _Dumper.represent_tuple)


def read(path: str | os.PathLike[str]) -> DeployInfo:
    """Reads a folder's ``deploy.yaml``.

    Args:
        path (str): The exported folder, or the YAML file in it.

    Returns:
        DeployInfo: With ``folder`` set.

    Raises:
        UserError: No such file, not a deploy.yaml, or a model file that it names is missing.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, FILE_NAME)
    try:
        content = safe_yaml.load(safe_yaml.read_text(path))
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror}). Give the folder that export.py wrote."
        ) from e
    except yaml.YAMLError as e:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(content, dict) or not isinstance(content.get("Deploy"), dict):
        raise UserError(f"{path}: has no section `Deploy`; export.py writes one.")
    try:
        info = _info_of(path, content["Deploy"], content.get("DeepLab") or {})
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{path}: has a value of the wrong kind ({e}); export again.") from e
    for file in (info.model_path, info.params_path):
        if file and not os.path.isfile(file):
            raise UserError(f"{path}: names {os.path.basename(file)}, which is not beside it.")
    return info


def _is_count(value, low=1):
    return type(value) is int and value >= low


def _is_palette(value):
    return isinstance(value, list) and all(
        isinstance(row, list) and len(row) == 3 and all(_is_count(v, 0) and v < 256 for v in row)
        for row in value
    )


def _is_shape(value):
    free = (isinstance(v, int) and not isinstance(v, bool) for v in value if v is not None)
    return len(value) == 4 and all(free)


# Key: (may its value be this?, what it should be).
_DEPLOY_KEYS = {
    "input_shape": (
        lambda v: isinstance(v, list) and _is_shape(v),
        "four numbers, null where free",
    ),
    "transforms": (
        lambda v: isinstance(v, list) and all(isinstance(t, dict) for t in v),
        "a list of sections with a type",
    ),
}
_OUR_KEYS = {
    "format": (lambda v: isinstance(v, str), f"one of {', '.join(FORMATS)}"),
    "outputs": (lambda v: isinstance(v, list), "a list, such as [labels, logits]"),
    "img_channels": (_is_count, "a positive integer"),
    "num_classes": (_is_count, "a positive integer"),
    "size_divisor": (_is_count, "a positive integer"),
    "to_rgb": (lambda v: isinstance(v, bool), "true or false"),
    "class_names": (lambda v: isinstance(v, list), "a list"),
    "palette": (_is_palette, "a list of [red, green, blue], each 0 to 255"),
}


def _check_values(path, deploy, ours):
    if not isinstance(ours, dict):
        raise UserError(f"{path}: DeepLab should be a section, not {ours!r}.")
    for name, section, known in (("Deploy", deploy, _DEPLOY_KEYS), ("DeepLab", ours, _OUR_KEYS)):
        for key, (good, what) in known.items():
            value = section.get(key)
            if value is not None and not good(value):
                raise UserError(f"{path}: {name}.{key} should be {what}, not {value!r}.")


def _info_of(path, deploy, ours):
    _check_values(path, deploy, ours)
    model = deploy.get("model") or ""
    for name in (model, deploy.get("params") or ""):
        # Another folder's file would be another network than the one that was given.
        if not isinstance(name, str) or name in ("..", ".") or re.search(r"[/\\:\0]", name):
            raise UserError(f"{path}: model and params name files beside it, not {name!r}.")
    form = ours.get("format") or _FORMAT_OF_EXTENSION.get(os.path.splitext(model)[1])
    if form not in FORMATS:
        raise UserError(
            f"{path}: the format of Deploy.model {model!r} is {form!r}; .json (pir), .pdmodel "
            "(legacy) and .onnx are known."
        )
    output_op = deploy.get("output_op", "argmax")
    if output_op not in OUTPUT_OPS:
        raise UserError(
            f"{path}: Deploy.output_op is {output_op!r}; known: {', '.join(OUTPUT_OPS)}."
        )
    outputs = ours.get("outputs") or [_FIRST_OUTPUT[output_op]]
    with_logits = output_op == "argmax" and outputs == ["labels", "logits"]
    if not with_logits and outputs != [_FIRST_OUTPUT[output_op]]:
        raise UserError(
            f"{path}: DeepLab.outputs is {outputs}, which does not fit Deploy.output_op "
            f"{output_op}; export again."
        )
    channels = ours.get("img_channels", 3)
    shape = deploy.get("input_shape") or [None, channels, None, None]
    # PaddleSeg has written free sizes as null and, in older versions, as -1.
    shape = [v if v is not None and v > 0 else None for v in shape]
    if len(shape) != 4:
        raise UserError(f"{path}: Deploy.input_shape is {shape}; four numbers are needed.")
    normalize = _normalize_of(path, ours)
    if normalize is not None and deploy.get("input_shape"):
        shape = [shape[0], shape[3], shape[1], shape[2]]
    palette = ours.get("palette")
    return DeployInfo(
        format=form,
        input_shape=shape,
        output_op=output_op,
        with_logits=with_logits,
        transforms=deploy.get("transforms") or [],
        img_channels=shape[1] or channels,
        to_rgb=ours.get("to_rgb", True),
        num_classes=ours.get("num_classes"),
        class_names=ours.get("class_names") or [],
        palette=None if palette is None else np.asarray(palette, np.uint8).reshape(-1, 3),
        versions=ours.get("versions") or {},
        checks=ours.get("checks") or {},
        folder=os.path.dirname(path),
        model=model,
        params=deploy.get("params"),
        crf=ours.get("crf"),
        size_divisor=ours.get("size_divisor"),
        nodata=parse_nodata(f"{path}: DeepLab", ours.get("nodata")),
        normalize=normalize,
    )


def _normalize_of(path, ours):
    """`DeployFacts.normalize`; an input of another type or order is refused."""
    kind = (ours.get("input_dtype", "float32"), ours.get("input_layout", "NCHW"))
    normalize = ours.get("normalize")
    if kind == ("float32", "NCHW") and normalize is None:
        return None
    good = isinstance(normalize, dict) and set(normalize) == {"mean", "std"}
    if good:
        Normalize(**normalize)  # its errors tell of wrong numbers
    if kind != ("uint8", "NHWC") or not good:
        raise UserError(
            f"{path}: DeepLab.input_dtype and input_layout are {' and '.join(map(str, kind))}, "
            f"normalize is {normalize}. Known: float32 and NCHW without normalize; uint8 and NHWC "
            "with normalize (mean and std). Export again."
        )
    return normalize

# SPDX-License-Identifier: Apache-2.0
"""An exported folder that PaddleX 3 reads too: file names and ``inference.yml``. No Paddle.

PaddleX's segmentation reads RGB, resizes if it is told to, normalises, and takes one output of
classes. What an export would need beyond that is refused, since PaddleX would leave it out.
"""

import os
from typing import Any

import yaml

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.transforms.color import Normalize
from paddleseg_deeplab.transforms.preprocessing import Step, steps_of
from paddleseg_deeplab.transforms.resize import Resize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_YAML = "inference.yml"
FILES = (_YAML, "inference.json", "inference.pdmodel", "inference.pdiparams")
_INTERPOLATIONS = {"NEAREST": "NEAREST", "LINEAR": "LINEAR", "CUBIC": "BICUBIC", "AREA": "AREA"}
_INTERPOLATIONS["LANCZOS4"] = "LANCZOS4"


def check(info: DeployInfo) -> None:
    """Refuses an export that PaddleX would run in another way than `infer` does.

    Args:
        info (DeployInfo): What will be exported.

    Raises:
        UserError: It says what PaddleX lacks.
    """
    for bad, what in (
        (info.format == "onnx", "reads Paddle's formats: give --format pir or legacy"),
        (info.output_op != "argmax", "takes classes: give --output_op argmax"),
        (info.normalize is not None, "feeds float32: leave --input uint8 out"),
        (info.img_channels != 3, f"reads three channels, and this network {info.img_channels}"),
        (not info.to_rgb, "reads RGB, and to_rgb is False here"),
        (info.nodata is not None, f"does not know pixels without data (nodata {info.nodata})"),
        (info.size_divisor is not None, "does not pad: give --opts test_config.size_divisor=null"),
        (info.crf is not None, "has no dense CRF: give --opts test_config.crf=False"),
    ):
        if bad:
            raise UserError(f"--for paddlex: PaddleX {what}.")
    _transforms(info)


def _transforms(info: DeployInfo) -> list[dict[str, Any]]:
    """The preprocessing as PaddleX names it; it resizes first, whatever the order in the file."""
    steps = steps_of(info.transforms, "transforms")
    kinds = [step.component for step in steps]
    if kinds not in ([Normalize], [Resize, Normalize]):
        names = ", ".join(step.name for step in steps) or "nothing"
        raise UserError(
            f"--for paddlex: PaddleX prepares an image by Normalize, or by Resize and then "
            f"Normalize; transforms has: {names}. Give such steps in export.transforms."
        )
    return [_resize(step) if step.component is Resize else _normalize(step) for step in steps]


def _normalize(step: Step) -> dict[str, Any]:
    values = {key: [float(v) for v in step.settings[key]] for key in ("mean", "std")}
    return {"type": "Normalize", **{k: v * 3 if len(v) == 1 else v for k, v in values.items()}}


def _resize(step: Step) -> dict[str, Any]:
    interp = _INTERPOLATIONS.get(step.settings["interp"])
    if interp is None:
        raise UserError(
            f"--for paddlex: {step.text}: PaddleX knows the interp {', '.join(_INTERPOLATIONS)}."
        )
    size = [int(side) for side in step.settings["target_size"]]
    kept = {key: step.settings[key] for key in ("keep_ratio", "size_divisor")}
    return {"type": "Resize", "target_size": size, **kept, "interp": interp}


def finish(info: DeployInfo, plus: bool) -> None:
    """Gives the network's files PaddleX's names and writes ``inference.yml`` beside them.

    Args:
        info (DeployInfo): Of a folder that is checked and written; its file names change.
        plus (bool): DeepLabV3+; others go by DeepLabV3's name. The name picks PaddleX's program,
            which is the same for both, not the layers.
    """
    name = "Deeplabv3_Plus-R50" if plus else "Deeplabv3-R50"
    for attribute in ("model", "params"):
        old = getattr(info, attribute)
        new = "inference" + os.path.splitext(old)[1]
        os.rename(os.path.join(info.folder, old), os.path.join(info.folder, new))
        setattr(info, attribute, new)
    content = {"Global": {"model_name": name}, "Deploy": {"transforms": _transforms(info)}}
    with open(os.path.join(info.folder, _YAML), "w", encoding="utf-8") as file:
        yaml.safe_dump(content, file, sort_keys=False)
    logger.info("For PaddleX: create_model(%r, model_dir=this folder)", name)

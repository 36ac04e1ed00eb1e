# SPDX-License-Identifier: Apache-2.0
"""What an old ``deploy.yaml``, or another program's, says of its preprocessing."""

import logging

import pytest
import yaml

from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.inferer import build_compose
from paddleseg_deeplab.utils.errors import UserError

FREE = [None, 3, None, None]
N = {"type": "Normalize"}
PAD = {"type": "Padding", "target_size": [512, 512]}


def built(transforms, caplog):
    info = DeployInfo("legacy", FREE, transforms=transforms, folder="exported")
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        compose = build_compose(info)
    return compose, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "steps",
    [
        [N],
        [PAD, N],
        [{"type": "Resize", "target_size": [512, 512]}, N],
        [{"type": "ResizeByLong", "long_size": 512}, PAD, N],
        [{"type": "LimitLong", "max_long": 2048}, N],
    ],
)
def test_the_usual_files_are_taken_in_silence(steps, caplog):
    compose, told = built(steps, caplog)
    assert [type(step).__name__ for step in compose.transforms] == [item["type"] for item in steps]
    assert told == []


@pytest.mark.parametrize(
    "step",
    [
        {"type": "RandomHorizontalFlip"},
        {"type": "RandomVerticalFlip"},
        {"type": "RandomAffine"},
        {"type": "RandomScaleAspect"},
        {"type": "RandomPaddingCrop"},
        {"type": "ResizeStepScaling"},
    ],
    ids=lambda step: step["type"],
)
def test_geometry_is_refused(step, caplog):
    """Such a file was written, and gave mirrored, turned and cut masks."""
    with pytest.raises(UserError) as caught:
        built([step, N], caplog)
    for word in ("exported/deploy.yaml: Deploy.transforms.0", step["type"], "Export again"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ([], "Deploy.transforms is empty"),
        ([N, N], "Deploy.transforms.1: Normalize comes a second time"),
        ([N, PAD], "Deploy.transforms.1: Padding pads with 127.5"),
        ([{"type": "RandomDistort"}, N], "Deploy.transforms.0: RandomDistort changes images at"),
        ([{"type": "Resize", "interp": "RANDOM"}, N], "Deploy.transforms.0: Resize changes"),
    ],
)
def test_doubtful_files_are_told(steps, word, caplog):
    _, [told] = built(steps, caplog)
    assert told.startswith(f"exported/deploy.yaml: {word}")


def test_a_file_without_transforms_is_told(tmp_path, caplog):
    info = DeployInfo("legacy", FREE, num_classes=5, folder=str(tmp_path))
    for name in (info.model, info.params):
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "deploy.yaml"
    deploy_yaml.write(info, str(path))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["Deploy"]["transforms"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        assert build_compose(deploy_yaml.read(str(tmp_path))).transforms == []
    assert "Deploy.transforms is empty" in caplog.text

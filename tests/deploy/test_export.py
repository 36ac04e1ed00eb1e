# SPDX-License-Identifier: Apache-2.0
"""What `export` tells deploy.yaml, and where it tries what it wrote. No network is saved here."""

import importlib

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.deploy_yaml import DeployFacts
from paddleseg_deeplab.utils.errors import UserError

# `from paddleseg_deeplab.deploy.export import export` is the function.
exporting = importlib.import_module("paddleseg_deeplab.deploy.export")
SAMPLE = np.zeros((3, 8, 8), np.float32)


@pytest.fixture
def devices(monkeypatch):
    """Devices that an export was tried on; the network's files are empty."""
    tried = []

    def save(model, info, target):
        for name in (info.model_path, info.params_path):
            open(name, "wb").close()

    def compare(model, info, sample, device):
        tried.append(device)
        return {"argmax_pixels_differing": 0.0}

    monkeypatch.setattr(exporting, "write_network", save)
    monkeypatch.setattr(exporting, "compare_export", compare)
    return tried


def test_facts_are_read_back(devices, tmp_path):
    facts = DeployFacts(
        transforms=({"type": "Normalize", "mean": [0.5, 0.5, 0.5]},),
        to_rgb=False,
        nodata=-1,
        class_names=("sky", "road"),
        palette=np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        crf={"iterations": 3},
    )
    model = nn.Conv2D(3, 2, 1)
    model.num_classes = 2
    exporting.export(
        model, tmp_path / "o", sample=SAMPLE, format="legacy", output_op="none", facts=facts
    )
    info = deploy_yaml.read(tmp_path / "o")
    assert info.transforms == [{"type": "Normalize", "mean": [0.5, 0.5, 0.5]}]
    assert (info.to_rgb, info.nodata, info.class_names) == (False, -1, ["sky", "road"])
    np.testing.assert_array_equal(info.palette, facts.palette)
    assert info.crf["iterations"] == 3
    assert len(info.crf) > 1, "the file does not depend on later defaults"
    assert (info.num_classes, info.img_channels) == (2, 3)
    assert facts.crf == {"iterations": 3}


def test_a_crf_needs_probabilities(devices, tmp_path):
    with pytest.raises(UserError, match="--output_op argmax keeps no probabilities"):
        exporting.export(
            nn.Conv2D(3, 2, 1),
            tmp_path / "o",
            sample=SAMPLE,
            output_op="argmax",
            facts=DeployFacts(crf=True),
        )
    assert not list(tmp_path.iterdir())


def test_an_export_is_tried_where_it_will_run(devices, tmp_path, monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    for target in ("cpu", "gpu"):
        exporting.export(
            nn.Conv2D(3, 2, 1), tmp_path / target, sample=SAMPLE, format="legacy", target=target
        )
    assert devices == ["cpu", "gpu:1"]


@pytest.mark.parametrize(
    ("output_op", "outputs", "yaml_op"),
    [
        (None, ["labels", "logits"], ("argmax", "int32")),
        ("argmax", ["labels"], ("argmax", "int32")),
        ("softmax", ["probabilities"], ("softmax", "float32")),
        ("none", ["logits"], ("none", "float32")),
    ],
)
def test_deploy_yaml_says_what_there_is(output_op, outputs, yaml_op, devices, tmp_path):
    exporting.export(
        nn.Conv2D(3, 2, 1), tmp_path, sample=SAMPLE, format="legacy", output_op=output_op
    )
    content = yaml.safe_load((tmp_path / "deploy.yaml").read_text())
    assert content["DeepLab"]["outputs"] == outputs
    # PaddleSeg's keys tell of the first output, which is all that its programs read.
    assert (content["Deploy"]["output_op"], content["Deploy"]["output_dtype"]) == yaml_op
    info = deploy_yaml.read(tmp_path)
    assert (list(info.outputs), info.has_scores) == (outputs, outputs != ["labels"])
    del content["DeepLab"]["outputs"]  # as older versions wrote it, and PaddleSeg
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(content))
    assert list(deploy_yaml.read(tmp_path).outputs) == outputs[:1]
    for wrong in (["logits", "labels"], "labels", ["masks"]):
        content["DeepLab"]["outputs"] = wrong
        (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=r"deploy\.yaml: DeepLab\.outputs"):
            deploy_yaml.read(tmp_path)

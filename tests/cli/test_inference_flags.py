# SPDX-License-Identifier: Apache-2.0
"""Flags of val and predict over the config's test_config."""

import argparse

import pytest

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.cvlibs.data_facts import compose_for
from paddleseg_deeplab.cvlibs.inference import inference_settings
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.deploy import engine
from paddleseg_deeplab.deploy.settings import ENGINES
from paddleseg_deeplab.utils.errors import UserError

BATCH = {
    "batch_size": None,
    "num_workers": None,
    "engine": "auto",
    "precision": "fp32",
    "amp_level": "O1",
}
NO_FLIPS = {"flip_horizontal": False, "flip_vertical": False}


class Config:
    path = "c.yml"

    def __init__(self, **test_config):
        self.test_config = test_config


def settings(flags, aug_flag="aug_eval", **test_config):
    parser = argparse.ArgumentParser()
    add_inference_arguments(parser, aug_flag)
    out = inference_settings(Config(**test_config), parser.parse_args(flags.split()), aug_flag)
    assert {k: out.pop(k) for k in BATCH} == BATCH
    return out


@pytest.mark.parametrize(
    ("flags", "test_config", "expected"),
    [
        ("", {}, {"aug_eval": False}),
        ("--aug_eval", {}, {"aug_eval": True, "scales": 1.0, **NO_FLIPS}),
        (
            "--aug_eval --scales 0.5 1 --flip_horizontal",
            {"scales": [2.0], "flip_vertical": True},
            {"aug_eval": True, "scales": [0.5, 1.0], **NO_FLIPS, "flip_horizontal": True},
        ),
        (
            "",
            {"aug_eval": True, "scales": [1.0, 2.0]},
            {"aug_eval": True, "scales": [1.0, 2.0], **NO_FLIPS},
        ),
        (
            "--is_slide --crop_size 4 3 --stride 2 1",
            {"crop_size": [9, 9]},
            {"aug_eval": False, "is_slide": True, "crop_size": [4, 3], "stride": [2, 1]},
        ),
        (
            "--is_slide --crop_size 4 3",
            {"stride": [2, 2]},
            {"aug_eval": False, "is_slide": True, "crop_size": [4, 3], "stride": [2, 2]},
        ),
    ],
)
def test_evaluation(flags, test_config, expected):
    assert settings(flags, **test_config) == expected


def test_prediction_asks_with_its_own_switch():
    test_config = {"aug_eval": True, "scales": [0.5]}
    assert not settings("", "aug_pred", **test_config)["aug_pred"]
    out = settings("--aug_pred --scales 2", "aug_pred", **test_config)
    assert out == {"aug_pred": True, "scales": [2.0], **NO_FLIPS}


@pytest.mark.parametrize("flags", ["--batch_size 0", "--num_workers -1"])
def test_bad_numbers(flags):
    with pytest.raises(UserError, match="at least"):
        settings(flags)


def test_engines_are_those_there_are():
    assert set(ENGINES) == {"auto", "dygraph", *engine._FORMATS}


@pytest.mark.parametrize(
    ("val", "backbone", "expected"),
    [
        ({}, {}, (True, 3, None)),
        ({}, {"in_channels": 4}, (True, 4, None)),
        ({"type": "CamVid", "to_rgb": False}, {}, (False, 3, None)),
        ({"type": "Dataset", "img_channels": 2, "nodata": 7}, {"in_channels": 4}, (True, 2, 7)),
        ({"type": "Dataset"}, {"in_channels": 4}, (True, 4, None)),
        ({"type": "OfBgr"}, {"in_channels": 4}, (False, 4, 0)),
        ({"type": "OfBgr", "to_rgb": True, "nodata": 7}, {}, (True, 3, 7)),
    ],
)
def test_images_are_read_as_the_validation_set_reads_them(val, backbone, expected, monkeypatch):
    """Predict and export ask it where the set itself cannot be opened."""

    class OfBgr(Dataset):
        def __init__(self, to_rgb=False, nodata=0, img_channels=3, **others):
            super().__init__(to_rgb=to_rgb, nodata=nodata, img_channels=img_channels, **others)

    known = {**registry.DATASETS.components_dict, "OfBgr": OfBgr}
    monkeypatch.setattr(registry.DATASETS, "_components_dict", known)

    class Builder:
        config = Config()

    Builder.config.val_dataset_cfg = val
    Builder.config.model_cfg = {"backbone": backbone}
    compose = compose_for(Builder, [])
    assert (compose.to_rgb, compose.img_channels, compose.nodata) == expected

# SPDX-License-Identifier: Apache-2.0
"""configs/compat: the preprocessing that the converted weights want."""

import numpy as np
import pytest
from places import ROOT

from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.prediction.restore import preprocess
from paddleseg_deeplab.transforms import Compose

COMPAT = ROOT / "configs" / "compat"


def _preprocessed(path, picture):
    """What the config's evaluation makes of an RGB picture, read as a file would be."""
    builder = SegBuilder(Config(str(path)))
    val = builder.config.val_dataset_cfg
    compose = Compose(builder.val_transforms, to_rgb=val.get("to_rgb", True))
    blue_first = np.ascontiguousarray(picture[:, :, ::-1]).astype(np.float32)
    return preprocess(blue_first, compose)[0]


@pytest.mark.parametrize("path", sorted(COMPAT.glob("*.yml")), ids=lambda p: p.stem)
def test_preprocessing(path):
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    got = _preprocessed(path, picture)
    if path.stem.startswith("kazuto1011"):
        caffe = picture[:, :, ::-1] - np.array([104.008, 116.669, 122.675])
        np.testing.assert_allclose(got, caffe.transpose(2, 0, 1), atol=1e-4)
    else:
        assert got.shape == (3, 520, round(520 / 37 * 53))
        # A resize keeps the mean of the colours, roughly; the order of channels shows in it.
        flat = np.full((37, 53, 3), (255, 0, 51), np.uint8)
        red, green, blue = _preprocessed(path, flat).reshape(3, -1).T[0]
        expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
        np.testing.assert_allclose([red, green, blue], expected, atol=1e-5)


def test_their_names():
    names = {path.stem for path in COMPAT.glob("*.yml")}
    networks = ("torchvision_deeplabv3", *(f"kazuto1011_deeplabv{v}" for v in (1, 2, 3)))
    expected = {f"{network}_{depth}" for network in networks for depth in ("resnet50", "resnet101")}
    assert names == expected | {"kazuto1011_deeplabv2_resnet101_msc"}

# SPDX-License-Identifier: Apache-2.0
"""PaddleSeg's names, shapes and logits, kept in files that make_paddleseg_logits.py wrote."""

import json

import numpy as np
import pytest
from make_paddleseg_logits import (
    CASES,
    DEEP_CASES,
    DEEP_NETWORKS,
    DEPTHS,
    KEYS_FILE,
    LOGITS_FILE,
    NETWORKS,
    case_name,
    digest,
    fill_model,
    logits_of,
    signature,
)

import paddleseg_deeplab.models as models

# Largest difference over largest logit. Both sides run the same float32 kernels, mostly in the
# same order; where a sum is ordered differently each layer adds about 1e-7, and there are 60. A
# wrong rate, stride, epsilon or resize changes logits by 1e-2 and more.
TOLERANCE = 1e-4


def _build(network):
    model, model_args, backbone, backbone_args = {**NETWORKS, **DEEP_NETWORKS}[network]
    backbone = getattr(models, backbone)(**backbone_args)
    return getattr(models, model)(backbone=backbone, **model_args)


@pytest.fixture(scope="module")
def keys():
    return json.loads(KEYS_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("network", NETWORKS)
def test_names_and_logits(network, keys):
    model = _build(network)
    assert signature(model.state_dict()) == keys["networks"][network]
    _check_logits(model, network, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("network", DEEP_NETWORKS)
def test_logits_of_other_depths(network):
    _check_logits(_build(network), network, DEEP_CASES)


def _check_logits(model, network, cases):
    fill_model(model)
    with np.load(LOGITS_FILE) as golden:
        for size, align_corners, step in cases:
            expected = golden[case_name(network, size, align_corners)]
            got = logits_of(model, size, align_corners, step)
            assert got.shape == expected.shape
            error = np.abs(got - expected).max() / np.abs(expected).max()
            print(f"{case_name(network, size, align_corners)}: {error:.1e}")
            assert error <= TOLERANCE, (size, align_corners, error)


@pytest.mark.parametrize("model_name", ["DeepLabV3P", "DeepLabV3"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_names_at_every_depth(model_name, depth, keys):
    name = f"ResNet{depth}_vd"
    model = getattr(models, model_name)(19, getattr(models, name)())
    assert digest(model.state_dict()) == keys["digests"][f"{model_name} {name}"]

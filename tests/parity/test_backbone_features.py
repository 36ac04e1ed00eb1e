# SPDX-License-Identifier: Apache-2.0
"""Xception and MobileNetV2 against torch networks, kept in a file of make_torch_backbones.py."""

import numpy as np
import paddle
import pytest
from make_paddleseg_logits import fill_model, image
from make_torch_backbones import CASES, FEATURES_FILE, case_name, kept, mobilenet_names

import paddleseg_deeplab.models as models

# Largest difference over a feature's largest value. Float32 sums run in another order there; over
# up to 70 layers that adds up to about 3e-6. A wrong rate, stride, epsilon or activation changes
# features by 1e-3 and more.
TOLERANCE = 1e-4

_NETWORKS = list(dict.fromkeys((builder, *arguments.items()) for builder, arguments, _, _ in CASES))


@pytest.mark.parametrize("network", _NETWORKS, ids=lambda n: "_".join(map(str, n)))
def test_features(network):
    builder, *arguments = network
    arguments = dict(arguments)
    weights = None
    with np.load(FEATURES_FILE) as golden, paddle.no_grad():
        for name, settings, stride, sizes in CASES:
            if (name, settings) != (builder, arguments):
                continue
            net = getattr(models, builder)(output_stride=stride, **arguments)
            if weights is None:
                fill_model(net)
                weights = net.state_dict()
            else:
                net.set_state_dict(weights)
            net.eval()
            for size in sizes:
                expected = golden[case_name(builder, arguments, stride, size)]
                got = kept([y.numpy() for y in net(paddle.to_tensor(image(size)))])
                assert got.shape == expected.shape
                error = np.abs(got - expected).max(axis=1) / np.abs(expected).max(axis=1)
                assert error.max() <= TOLERANCE, (stride, size, error)


def test_torchvision_names():
    """torch's own state_dict has these names when the file is made."""
    net = models.MobileNetV2_x0_5()
    ours = {net.torchvision_name(name): name for name in net.state_dict()}
    assert ours == mobilenet_names()

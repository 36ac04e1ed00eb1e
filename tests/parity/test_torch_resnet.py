# SPDX-License-Identifier: Apache-2.0
"""ResNet, the cascade and its 59-class form against torch; make_torch_resnet.py wrote the file."""

import numpy as np
import paddle
import pytest
from make_paddleseg_logits import fill_model, image
from make_torch_resnet import BACKBONES, MODELS, RESNET_FILE, kept

import paddleseg_deeplab.models as models

# Largest difference over largest value: float32 sums in another order differ by about 1e-6 after
# a hundred layers; a wrong rate, stride or padding by 1e-2 and more.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def zeros_to_start_with():
    """All tensors are filled by the test, and zeros are quickly drawn."""
    paddle.nn.initializer.set_global_initializer(paddle.nn.initializer.Constant(0.0))
    yield
    paddle.nn.initializer.set_global_initializer(None)


def _compare(name, layer, size):
    fill_model(layer)
    layer.eval()
    with paddle.no_grad():
        outputs = layer(paddle.to_tensor(image(size)))
    got = outputs[-1].numpy()
    with np.load(RESNET_FILE) as golden:
        assert list(got.shape) == golden[f"{name}_shape"].tolist()
        expected = golden[name]
    error = np.abs(kept(got) - expected).max() / np.abs(expected).max()
    print(f"{name}: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("name", BACKBONES)
def test_features(name):
    builder, settings, _, size = BACKBONES[name]
    _compare(name, getattr(models, builder)(**settings), size)


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    arguments, row, classes, *_ = MODELS[name]
    builder, settings, _, size = BACKBONES[row]
    backbone = getattr(models, builder)(**settings)
    _compare(name, models.DeepLabV3(classes, backbone, (-1,), **arguments), size)

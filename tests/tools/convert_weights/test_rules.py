# SPDX-License-Identifier: Apache-2.0
"""The tables of names: ImageNet backbones of torchvision, and what stays over."""

import numpy as np
import pytest

from paddleseg_deeplab import models
from paddleseg_deeplab.tools.convert_weights.convert import match_tensors
from paddleseg_deeplab.tools.convert_weights.rules import reason_to_drop, rename

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("source", "name", "here"),
    [
        ("torchvision", "conv1.weight", "backbone.conv1._conv.weight"),
        ("torchvision", "bn1.running_var", "backbone.conv1._batch_norm._variance"),
        ("torchvision", "layer3.22.conv2.weight", "backbone.layer3.22.conv2._conv.weight"),
        (
            "torchvision",
            "backbone.layer4.0.downsample.1.bias",
            "backbone.layer4.0.downsample._batch_norm.bias",
        ),
        (
            "torchvision",
            "classifier.0.convs.3.1.running_mean",
            "head.aspp.aspp_blocks.3._batch_norm._mean",
        ),
        (
            "torchvision",
            "classifier.0.convs.4.1.weight",
            "head.aspp.global_avg_pool.1._conv.weight",
        ),
        ("torchvision", "aux_classifier.4.bias", "head.aux.cls.bias"),
        ("torchvision", "features.1.conv.1.weight", "backbone.blocks.0.project._conv.weight"),
        (
            "torchvision",
            "features.17.conv.3.weight",
            "backbone.blocks.16.project._batch_norm.weight",
        ),
        ("torchvision", "features.28.bias", "backbone.conv5_3.bias"),
        ("torchvision", "layer5.0.conv1.weight", None),
        ("torchvision", "layer1.0.conv1.bias", None),
        ("kazuto1011", "layer1.conv1.bn.weight", "backbone.conv1._batch_norm.weight"),
        (
            "kazuto1011",
            "layer4.block23.increase.conv.weight",
            "backbone.layer3.22.conv3._conv.weight",
        ),
        (
            "kazuto1011",
            "layer2.block1.shortcut.bn.running_mean",
            "backbone.layer1.0.downsample._batch_norm._mean",
        ),
        ("kazuto1011", "aspp.c3.bias", "head.aspp.3.bias"),
        (
            "kazuto1011",
            "aspp.stages.c1.conv.weight",
            "head.aspp.aspp_blocks.1._conv.weight",
        ),
        ("kazuto1011", "fc1.bn.bias", "head.aspp.conv_bn_relu._batch_norm.bias"),
        ("kazuto1011", "fc2.weight", "head.cls.weight"),
        ("kazuto1011", "conv1.weight", None),
        ("paddleseg", "head.decoder.conv.weight", "head.decoder.conv.weight"),
        ("paddleseg", "conv1_1._conv.weight", "backbone.conv1_1._conv.weight"),
    ],
)
def test_rename(source, name, here):
    assert rename(name, source) == here


@pytest.mark.parametrize(
    ("source", "name", "word"),
    [
        ("torchvision", "fc.weight", "ImageNet"),
        ("torchvision", "backbone.fc.bias", "ImageNet"),
        ("torchvision", "bn1.num_batches_tracked", "counter"),
        ("kazuto1011", "layer1.conv1.bn.num_batches_tracked", "counter"),
        ("paddleseg", "out.weight", "ImageNet"),
        ("torchvision", "layer1.0.conv1.bias", None),
        ("kazuto1011", "fc.weight", None),
        ("paddleseg", "head.cls.weight", None),
    ],
)
def test_reason_to_drop(source, name, word):
    reason = reason_to_drop(name, source)
    assert (reason is None) if word is None else (word in reason)


def test_mobilenet_names_agree_with_the_backbone():
    layer = models.MobileNetV2()
    state = {layer.torchvision_name(name): v.numpy() for name, v in layer.state_dict().items()}
    more = {
        "features.18.0.weight": np.zeros((1280, 320, 1, 1), np.float32),
        "classifier.1.weight": np.zeros((1000, 1280), np.float32),
        "classifier.1.bias": np.zeros(1000, np.float32),
    }
    converted, report = match_tensors(
        layer, {**state, **more}, file="f", source="torchvision", part="backbone"
    )
    assert not report.absent
    assert {name for name, _ in report.dropped} == set(more)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(converted[name], value.numpy())


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({}, ["fc6.*", "fc7.*"]),
        ({"multi_scale_features": True}, ["fc6.*", "fc7.*", "fusion.*"]),
        ({"fov_kernel": 4, "fov_rate": 8, "fov_channels": 64}, ["fc6.*"]),
        ({"fov_kernel": 7, "fov_rate": 4, "fov_channels": 64}, []),
    ],
)
def test_vgg16(settings, absent):
    """fc6 and fc7 are the classifier's first layers where they have its shape (64 for 4096)."""
    layer = models.VGG16_LargeFOV(**settings)
    state = {}
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    convs = [k for k in layer.state_dict() if k.startswith("conv") and k.endswith("weight")]
    for number, name in zip(numbers, convs):
        shape = layer.state_dict()[name].shape
        state[f"features.{number}.weight"] = RNG.standard_normal(shape).astype(np.float32)
        state[f"features.{number}.bias"] = np.zeros(shape[0], np.float32)
    for number, shape in ((0, (64, 512 * 49)), (3, (64, 64)), (6, (10, 64))):
        state[f"classifier.{number}.weight"] = RNG.standard_normal(shape).astype(np.float32)
        state[f"classifier.{number}.bias"] = np.zeros(shape[0], np.float32)
    converted, report = match_tensors(layer, state, file="f", source="torchvision", part="backbone")
    assert [glob for glob, _, _ in report.absent] == absent
    np.testing.assert_array_equal(converted["conv4_2.weight"], state["features.19.weight"])
    if not absent:
        theirs = state["classifier.0.weight"].reshape(64, 512, 7, 7)
        np.testing.assert_array_equal(converted["fc6.weight"], theirs)
    dropped = {name for name, _ in report.dropped}
    assert "classifier.6.weight" in dropped
    assert ("classifier.0.bias" in dropped) == ("fc6.*" in absent)

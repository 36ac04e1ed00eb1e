# SPDX-License-Identifier: Apache-2.0
"""VGG16_LargeFOV and V3+'s head against the torch code of make_vgg_features.py."""

import numpy as np
import paddle
import pytest
from make_paddleseg_logits import digest, fill_model, image
from make_vgg_features import (
    HEAD,
    HEAD_CASES,
    HEAD_MORE,
    VGG_CASES,
    head_features,
    head_name,
    keep,
    read,
)

from paddleseg_deeplab.models import DeepLabV3PHead, VGG16_LargeFOV

# Largest difference over the largest of the kept values. Both sides add float32 products, in
# another order: about 1e-6 over these 16 layers. A wrong rate, pad or kernel changes 1e-2 and more.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    return read()


def _compare(golden, name, model, outputs):
    signature, shapes, values = golden[name]
    assert digest(model.state_dict()) == signature, "other names or shapes than torch asked for"
    assert [output.shape for output in outputs] == shapes
    for i, (output, expected) in enumerate(zip(outputs, values)):
        error = np.abs(keep(f"{name}_{i}", output.numpy()) - expected).max()
        assert error <= TOLERANCE * np.abs(expected).max(), (name, i, error)


@pytest.mark.parametrize("case", VGG_CASES)
def test_vgg(case, golden):
    settings, sizes = VGG_CASES[case]
    backbone = VGG16_LargeFOV(**settings)
    fill_model(backbone)
    backbone.eval()
    for size in sizes:
        with paddle.no_grad():
            features = backbone(paddle.to_tensor(image(size)))
        _compare(golden, f"{case}_{size[0]}x{size[1]}", backbone, features)


@pytest.mark.parametrize("case", HEAD_CASES, ids=lambda case: head_name(*case))
def test_head(case, golden):
    bias, separable, upsample, align_corners, stride, size = case
    head = DeepLabV3PHead(
        **HEAD,
        **HEAD_MORE,
        align_corners=align_corners,
        head_bias=bias,
        use_sep_conv=separable,
        upsample=upsample,
        backbone_strides=(4, stride),
        image_pooling=True,
    )
    fill_model(head)
    head.eval()
    with paddle.no_grad():
        (logits,) = head([paddle.to_tensor(x) for x in head_features(stride, size)])
        large = head.upsample_logits(logits, list(size), align_corners)
    _compare(golden, head_name(*case), head, [logits, large])

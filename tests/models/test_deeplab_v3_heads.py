# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3's heads: plain, conv3x3 and cascade, the auxiliary one, biases, outputs, export.

Values of whole networks against independent ones are in tests/parity.
"""

import logging

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from stub_backbone import StubBackbone

from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.models import CrossEntropyLoss, DeepLabV3, ResNet50
from paddleseg_deeplab.models.layers import HEAD_BIASES, batch_norms
from paddleseg_deeplab.models.losses.total import compute_losses

CLASSES, WIDTH = 5, 6
HEADS = ("plain", "conv3x3", "cascade")
# Of the largest value: float32 sums in another order, over few layers.
TOLERANCE = 1e-5


def _build(head="plain", data_format="NCHW", **kwargs):
    paddle.seed(0)
    settings = {"backbone_indices": (-1,), "aspp_ratios": (1, 2), "aspp_out_channels": WIDTH}
    settings.update(kwargs)
    return DeepLabV3(
        CLASSES, StubBackbone(data_format), head=head, data_format=data_format, **settings
    )


def _image(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _logits(model, x):
    model.eval()
    with paddle.no_grad():
        return model(x)[0].numpy()


def _same(a, b):
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


def _names(model, prefix):
    return {k[len(prefix) :] for k in model.state_dict() if k.startswith(prefix)}


def _block(*names, bias=True):
    """Keys of a ConvBNReLU under each name."""
    parts = ["_conv.weight"] + ["_conv.bias"] * bias
    parts += [f"_batch_norm.{part}" for part in ("weight", "bias", "_mean", "_variance")]
    return {f"{name}.{part}" for name in names for part in parts}


@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_names_of_the_weights(head, aux):
    """What the converter and PaddleSeg's checkpoints rely on."""
    expected = {"cls.weight", "cls.bias"}
    if head != "cascade":
        expected |= _block("aspp.aspp_blocks.0", "aspp.aspp_blocks.1", "aspp.conv_bn_relu")
        expected |= _block("aspp.global_avg_pool.1", bias=False)
    if head == "conv3x3":
        expected |= _block("conv")
    if aux:
        expected |= _block("aux.conv") | {"aux.cls.weight", "aux.cls.bias"}
    assert _names(_build(head, aux=aux, aux_index=0), "head.") == expected


@pytest.mark.parametrize("head_bias", HEAD_BIASES)
def test_biases(head_bias):
    parts = {
        "branches": {"aspp.aspp_blocks.0._conv.bias", "aspp.aspp_blocks.1._conv.bias"},
        "projection": {"aspp.conv_bn_relu._conv.bias"},
        "decoder": {"conv._conv.bias", "aux.conv._conv.bias"},
        "classifier": {"cls.bias"},
    }
    expected = set().union(*(parts[part] for part in HEAD_BIASES[head_bias]), {"aux.cls.bias"})
    names = _names(_build("conv3x3", aux=True, aux_index=1, head_bias=head_bias), "head.")
    assert {n for n in names if n.endswith(".bias") and "_batch_norm" not in n} == expected


def _conv_bn_relu(layer, x):
    """Each operator anew, with the padding of a 3x3 convolution at rate 1."""
    conv, norm = layer._conv, layer._batch_norm
    y = F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    shape = [1, -1, 1, 1]
    scale = norm.weight / paddle.sqrt(norm._variance + 1e-5)
    y = y * scale.reshape(shape) + (norm.bias - norm._mean * scale).reshape(shape)
    return paddle.clip(y, min=0)


def _settle(model):
    """Batch norms that do something, after statistics of a random batch."""
    model.train()
    for seed in range(3):
        model(_image(2, 3, 48, 48, seed=seed))
    model.eval()


@pytest.mark.parametrize("head", HEADS)
def test_main_logits(head):
    model = _build(head)
    _settle(model)
    x = _image(1, 3, 40, 33)
    with paddle.no_grad():
        y = model.backbone(x)[-1]
        if head != "cascade":
            y = model.head.aspp(y)
        if head == "conv3x3":
            y = _conv_bn_relu(model.head.conv, y)
        y = F.conv2d(y, model.head.cls.weight, model.head.cls.bias)
        assert y.shape[2:] == [5, 5]
        expected = F.interpolate(y, [40, 33], mode="bilinear").numpy()
    _same(_logits(model, x), expected)


@pytest.mark.parametrize("logits_size", ["input", "stride"])
@pytest.mark.parametrize("head", HEADS)
def test_the_auxiliary_output_is_there_in_training_only(head, logits_size):
    model = _build(head, aux=True, aux_index=0, logits_size=logits_size)
    _settle(model)
    x = _image(2, 3, 40, 48)
    assert len(model(x)) == 1
    model.train()
    model.head.aux.dropout.p = 0.0
    main, auxiliary = model(x)
    grids = [(5, 6), (10, 12)] if logits_size == "stride" else [(40, 48)] * 2
    assert [tuple(y.shape[2:]) for y in (main, auxiliary)] == grids
    # The same in evaluation mode, from the feature that aux_index names.
    model.eval()
    for norm in batch_norms(model.head.aux):
        assert norm.weight.shape == [1]  # a quarter of four channels
    with paddle.no_grad():
        y = _conv_bn_relu(model.head.aux.conv, model.backbone(x)[0])
        expected = F.conv2d(y, model.head.aux.cls.weight, model.head.aux.cls.bias).numpy()
        [found] = model.head.aux(model.backbone(x))
    _same(found.numpy(), expected)


def test_the_auxiliary_loss_trains_its_part():
    """Its weight scales its gradient, and the main loss alone leaves it untouched."""
    x, label = _image(2, 3, 40, 40), paddle.to_tensor(np.arange(3200).reshape(2, 40, 40) % CLASSES)
    gradients = []
    for weight in (0.0, 0.5, 1.0):
        model = _build("conv3x3", aux=True, aux_index=1, aspp_dropout=0.0)
        model.head.aux.dropout.p = 0.0
        model.train()
        losses = {"types": [CrossEntropyLoss(), CrossEntropyLoss()], "coef": [1, weight]}
        total, parts = compute_losses(model(x), label, losses)
        assert len(parts) == 2
        total.backward()
        gradients.append(model.head.aux.cls.weight.grad.numpy())
        assert float(model.head.cls.weight.grad.abs().max()) > 0
    assert not gradients[0].any()
    np.testing.assert_allclose(gradients[2], 2 * gradients[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_one_step_lowers_the_loss(head):
    model = _build(head, aux=True, aux_index=1, aspp_dropout=0.0)
    model.head.aux.dropout.p = 0.0
    model.train()
    x, label = _image(2, 3, 40, 40), paddle.to_tensor(np.arange(3200).reshape(2, 40, 40) % CLASSES)
    losses = {"types": [CrossEntropyLoss(), CrossEntropyLoss()], "coef": [1, 0.5]}
    first, _ = compute_losses(model(x), label, losses)
    first.backward()
    step = paddle.optimizer.SGD(0.01, parameters=model.parameters())
    step.step()
    second, _ = compute_losses(model(x), label, losses)
    assert float(second) < float(first)


@pytest.mark.parametrize("head", HEADS)
def test_layouts_agree(head):
    nchw, nhwc = _build(head), _build(head, "NHWC")
    _settle(nchw)
    nhwc.set_state_dict(nchw.state_dict())
    x = _image(2, 3, 49, 40)
    other = _logits(nhwc, x.transpose([0, 2, 3, 1]))
    _same(other.transpose(0, 3, 1, 2), _logits(nchw, x))


@pytest.mark.parametrize("head", ["conv3x3", "cascade"])
def test_export_leaves_the_auxiliary_head_out(head, tmp_path):
    """`export` compares with the network in two sizes, and fails beyond 1e-3."""
    model = _build(head, aux=True, aux_index=1)
    _settle(model)
    sample = _image(3, 49, 66).numpy()
    info = export(model, str(tmp_path / "out"), sample=sample, format="pir", output_op="none")
    assert info.checks["max_abs_logits_difference"] <= 1e-3
    written = (tmp_path / "out" / "model.pdiparams").stat().st_size
    main = sum(v.size for k, v in model.state_dict().items() if ".aux." not in k)
    assert written < 4 * main + 2000  # and a little for names


def test_the_cascade_reads_the_last_extra_stage():
    """block4 to block7 without ASPP: 2048 channels of block7, then the classifier."""
    backbone = ResNet50(output_stride=16, multi_grid=(1, 2, 1), extra_stages=3)
    model = DeepLabV3(CLASSES, backbone, (6,), head="cascade", aux=True)
    assert model.head.cls.weight.shape == [CLASSES, 2048, 1, 1]
    assert model.head.aux.conv._conv.weight.shape == [256, 1024, 3, 3]  # layer3
    assert not any(isinstance(part, nn.Dropout) for part in model.head.children())
    x = _image(1, 3, 65, 65)
    model.eval()
    with paddle.no_grad():
        feature = backbone(x)[-1]
        expected = F.interpolate(model.head.cls(feature), [65, 65], mode="bilinear").numpy()
    assert feature.shape == [1, 2048, 5, 5]
    _same(_logits(model, x), expected)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"aspp_ratios": [1, 2]}, "aspp_ratios is given without effect"),
        (
            {"aspp_out_channels": 128, "image_pooling": False},
            "aspp_out_channels, image_pooling are",
        ),
        ({"aspp_dropout": 0.0}, "aspp_dropout is"),
        ({}, None),
    ],
)
def test_the_cascade_names_what_it_ignores(kwargs, named, caplog):
    """Only where it is given; the other heads have a use for all of it."""
    logging.getLogger("paddleseg_deeplab").propagate = True
    DeepLabV3(CLASSES, StubBackbone(), (-1,), head="cascade", **kwargs)
    assert (named or "without effect") in caplog.text or named is None
    assert ("without effect" in caplog.text) == (named is not None)
    caplog.clear()
    DeepLabV3(CLASSES, StubBackbone(), (-1,), **{"aspp_ratios": (1, 2), **kwargs})
    assert "without effect" not in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"head": "deep"}, "plain.*conv3x3.*cascade"),
        ({"head_bias": "some"}, "classifier"),
        ({"head": "cascade", "head_bias": "some"}, "classifier"),
        ({"aux": True, "aux_index": 3}, "auxiliary head's input.*0 to 2"),
        ({"aux": True, "aux_index": "2"}, "auxiliary head's input"),
        ({"backbone_indices": (0, 1)}, "head's input"),
        ({"aspp_ratios": (1, 0)}, "aspp_ratios"),
        ({"aux": True, "aux_index": 2}, r"aux_index is 2, the feature .*\[-1\]"),
        ({"head": "cascade", "aux": True, "aux_index": -1}, "aux_index is -1"),
        ({"aspp_dropout": 1}, "aspp_dropout is 1; .*from 0 to below 1"),
        ({"aspp_dropout": -0.1}, "aspp_dropout is -0.1"),
        ({"aspp_dropout": float("nan")}, "aspp_dropout is nan"),
        ({"aspp_dropout": True}, "aspp_dropout is True"),
        ({"head": "cascade", "aspp_dropout": "0.1"}, "aspp_dropout is '0.1'"),
    ],
)
def test_errors(kwargs, text):
    with pytest.raises(ValueError, match=text):
        _build(**kwargs)

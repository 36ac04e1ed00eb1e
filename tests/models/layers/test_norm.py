# SPDX-License-Identifier: Apache-2.0
"""Batch norm's numbers and its frozen state, and which convolutions of a head have biases."""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.models import DeepLabV3, ResNet18_vd
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.models.layers import (
    HEAD_BIASES,
    ASPPModule,
    ConvBN,
    batch_norms,
    set_batch_norm,
)


def _model(**kwargs):
    return DeepLabV3(3, ResNet18_vd(output_stride=16), aspp_out_channels=8, **kwargs)


def _image(n=2):
    values = np.random.default_rng(0).standard_normal((n, 3, 33, 33)).astype(np.float32)
    return paddle.to_tensor(values)


def _norm_state(model):
    names = ("_batch_norm.",)
    return {k: v.numpy() for k, v in model.state_dict().items() if any(n in k for n in names)}


def test_numbers_reach_every_batch_norm():
    model = _model(bn_momentum=0.5, bn_epsilon=0.25)
    norms = list(batch_norms(model))
    assert len(norms) == len(_norm_state(model)) // 4 > 20
    assert {n._momentum for n in norms} == {0.5}
    assert {n._epsilon for n in norms} == {0.25}


def test_numbers_left_out_change_nothing():
    assert {(n._momentum, n._epsilon) for n in batch_norms(_model())} == {(0.9, 1e-5)}


def test_the_running_mean_follows_the_momentum():
    layer = ConvBN(2, 2, 1, bias_attr=False)
    set_batch_norm(layer, momentum=0.75)
    layer._conv.weight.set_value(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1))
    layer(paddle.to_tensor(np.full((2, 2, 3, 3), 8.0, np.float32)))
    # 0.75 of the initial 0, and the rest of the batch's mean.
    np.testing.assert_allclose(layer._batch_norm._mean.numpy(), [2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{"bn_momentum": 1.0}, {"bn_momentum": "0.9"}, {"bn_epsilon": 0}, {"bn_epsilon": -1}]
)
def test_numbers_out_of_range(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        _model(**kwargs)


def _step(model):
    optimizer = paddle.optimizer.SGD(
        0.1, parameters=[p for p in model.parameters() if not p.stop_gradient], weight_decay=0.1
    )
    model(_image())[0].square().mean().backward()
    optimizer.step()


def test_a_frozen_model_trains_everything_but_its_batch_norms():
    model = _model(freeze_bn=True)
    weights = model.backbone.conv1_1._conv.weight.numpy().copy()
    before = {k: v.copy() for k, v in _norm_state(model).items()}
    model.train()
    with evaluation_mode(model):
        pass
    _step(model)
    after = _norm_state(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert np.abs(model.backbone.conv1_1._conv.weight.numpy() - weights).max() > 0
    assert not any(norm.training for norm in batch_norms(model))
    assert model.head.training


def test_an_unfrozen_model_trains_its_batch_norms():
    model = _model()
    before = {k: v.copy() for k, v in _norm_state(model).items()}
    _step(model)
    after = _norm_state(model)
    assert sum(not np.array_equal(before[k], after[k]) for k in before) > 0.9 * len(before)


def test_frozen_logits_are_the_same_in_training_and_evaluation():
    model = _model(freeze_bn=True, aspp_dropout=0.0)
    trained = model(_image())[0].numpy()
    model.eval()
    with paddle.no_grad():
        evaluated = model(_image())[0].numpy()
    # Biases are added to the map in one case and to batch norm's mean in the other.
    np.testing.assert_allclose(trained, evaluated, atol=1e-5 * np.abs(evaluated).max())


@pytest.mark.parametrize("bias", HEAD_BIASES)
@pytest.mark.parametrize("separable", [False, True])
def test_biases_of_aspp(bias, separable):
    module = ASPPModule((1, 2), 4, 3, False, separable, image_pooling=True, bias=bias)
    found = {name for name in module.state_dict() if name.endswith("_conv.bias")}
    branches = {name for name in module.state_dict() if name.startswith("aspp_blocks.")}
    branches = {n[: -len("weight")] + "bias" for n in branches if n.endswith("_conv.weight")}
    expected = set()
    if bias == "all":
        expected |= branches
    if bias in ("all", "projection"):
        expected.add("conv_bn_relu._conv.bias")
    assert found == expected


def test_unknown_bias():
    with pytest.raises(ValueError, match="projection"):
        ASPPModule((1,), 4, 3, False, bias="some")

# SPDX-License-Identifier: Apache-2.0
"""Batch norm's numbers and its frozen state, and which convolutions of a head have biases."""

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.models import DeepLabV3, ResNet18_vd
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.models.layers import (
    BATCH_NORMS,
    HEAD_BIASES,
    ASPPModule,
    ConvBN,
    SyncBatchNorm,
    batch_norms,
    freeze_batch_norm,
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


# -- channels last on a CPU ---------------------------------------------------------------------

# Of the largest number, or of the sum of the magnitudes of what is added up. Sums of up to 10^6
# float32 numbers in Paddle's blocks: some 16 roundings of 6e-8 on the way to each. One number after
# the other, as channels last does it, is off by 1e-5 to 1e-3.
DIGITS = 2e-6
EPSILON = 1e-5


def _float64(x, weight, bias, dy, statistics=None):
    """Batch norm of [N, H, W, C] and its gradients by their formulas, in float64: pairs of the
    numbers and of the size that their errors are measured by."""
    x, dy, axes = x.astype("float64"), dy.astype("float64"), (0, 1, 2)
    mean, variance = statistics or (x.mean(axes), x.var(axes))
    root = np.sqrt(variance + EPSILON)
    z = (x - mean) / root
    d_weight, d_bias = (dy * z).sum(axes), dy.sum(axes)
    through = 0 if statistics else (d_bias + z * d_weight) / (x.size / x.shape[-1])
    dx = weight / root * (dy - through)
    sizes = [(weight / root * np.abs(dy)).max(), np.abs(dy * z).sum(axes), np.abs(dy).sum(axes)]
    found = [weight * z + bias, mean, variance, dx, d_weight, d_bias]
    return list(zip(found, [*(np.abs(one).max() for one in found[:3]), *sizes]))


def _layer(channels, rng):
    norm = SyncBatchNorm(channels, momentum=0.0, epsilon=EPSILON, data_format="NHWC")
    norm.weight.set_value(rng.uniform(0.5, 1.5, channels).astype("float32"))
    norm.bias.set_value(rng.standard_normal(channels).astype("float32"))
    return norm


def _results(norm, x, dy):
    x = paddle.to_tensor(x, stop_gradient=False)
    y = norm(x)
    y.backward(paddle.to_tensor(dy))
    found = [y, norm._mean, norm._variance, x.grad, norm.weight.grad, norm.bias.grad]
    return [one.numpy() for one in found]


def _assert_digits(found, expected):
    for one, (other, size) in zip(found, expected):
        assert (np.abs(one - other) <= DIGITS * size).all()


SIZES = [(4, 256, 256, 2), (1, 512, 512, 3), (2, 65, 129, 5), (3, 7, 5, 4), (2, 1, 1, 3)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("trains", [True, False])
def test_channels_last_keep_their_digits(trains, shape):
    """Result, running statistics and all gradients, with the batch's statistics and with given
    ones (a layer in evaluation mode within a training)."""
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal(shape).astype("float32") + 0.5
    dy = rng.standard_normal(shape).astype("float32") + 0.5
    norm, given = _layer(shape[-1], rng), None
    if not trains:
        given = [rng.uniform(0.5, 1.5, shape[-1]).astype("float32") for _ in range(2)]
        norm._mean.set_value(given[0])
        norm._variance.set_value(given[1])
        norm.eval()
    expected = _float64(x, norm.weight.numpy(), norm.bias.numpy(), dy, given)
    _assert_digits(_results(norm, x, dy), expected)


def test_channels_last_is_the_same_layer():
    """Names, state and evaluation are those of Paddle's own, and so is an exported program."""
    norm, plain = SyncBatchNorm(3, data_format="NHWC"), paddle.nn.BatchNorm2D(3, data_format="NHWC")
    assert list(norm.state_dict()) == list(plain.state_dict())
    assert norm.full_name().rsplit("_", 1)[0] == plain.full_name().rsplit("_", 1)[0]
    assert isinstance(norm, paddle.nn.BatchNorm2D)
    assert type(norm) in BATCH_NORMS
    assert type(SyncBatchNorm(3)) is paddle.nn.BatchNorm2D
    x = paddle.rand([1, 4, 4, 3])
    programs, results = [], []
    for layer in (norm, plain):
        layer.eval()
        with paddle.no_grad():
            results.append(layer(x).numpy())
        spec = [paddle.static.InputSpec([1, 4, 4, 3])]
        program = paddle.jit.to_static(layer.forward, input_spec=spec, full_graph=True)
        operators = program.concrete_program.main_program.global_block().ops
        programs.append([operator.name() for operator in operators])
    assert programs[0] == programs[1]
    np.testing.assert_array_equal(*results)


def test_frozen_with_channels_last():
    norm = _layer(3, np.random.default_rng(0))
    freeze_batch_norm(norm)
    x = paddle.rand([2, 5, 5, 3])
    x.stop_gradient = False
    norm(x).sum().backward()
    expected = norm.weight.numpy() / np.sqrt(1 + EPSILON)
    np.testing.assert_allclose(x.grad.numpy()[0, 0, 0], expected, rtol=DIGITS)
    assert norm.weight.grad is None

# SPDX-License-Identifier: Apache-2.0
"""The average of weights against its recursion in NumPy (float32 against float64: 1e-6)."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.optimizers import ModelEMA


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2D(2, 3, 1), nn.BatchNorm2D(3))


def fill(model, rng):
    for tensor in model.state_dict().values():
        tensor.set_value(rng.random(tensor.shape, dtype="float32"))


def state(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_recursion_with_warm_up(model, decay):
    rng = np.random.default_rng(0)
    ema = ModelEMA(model, decay)
    expected = {k: v.astype("float64") for k, v in state(model).items()}
    for t in range(6):
        fill(model, rng)
        ema.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = {k: d * expected[k] + (1 - d) * v for k, v in state(model).items()}
    assert ema.updates == 6
    assert set(ema.state_dict()["average"]) == set(model.state_dict())
    for name, value in ema.state_dict()["average"].items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-6, atol=1e-6)


def test_running_statistics_are_averaged(model):
    ema = ModelEMA(model, 0.5)
    model[1]._mean.set_value(np.full(3, 10.0, "float32"))
    ema.update()  # d = 1 / 10 at t = 0
    np.testing.assert_allclose(ema.state_dict()["average"]["1._mean"].numpy(), 9.0, rtol=1e-6)


def test_integer_buffers_are_copied():
    layer = nn.Linear(1, 1)
    layer.register_buffer("count", paddle.to_tensor([0], dtype="int64"))
    ema = ModelEMA(layer)
    layer.count.set_value(paddle.to_tensor([7], dtype="int64"))
    ema.update()
    assert ema.state_dict()["average"]["count"].tolist() == [7]


def test_update_is_paddle_s_interpolation_bit_for_bit():
    rng = np.random.default_rng(0)
    net = nn.Linear(7, 5)
    ema = ModelEMA(net, decay=0.97)
    expected = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    for count in range(4):
        for value in net.state_dict().values():
            value.set_value(rng.standard_normal(value.shape).astype("float32"))
        ema.update()
        for name, value in net.state_dict().items():
            rate = 1.0 - min(0.97, (1.0 + count) / (10.0 + count))
            mean = paddle.lerp(paddle.to_tensor(expected[name]), value, rate)
            expected[name] = mean.numpy()
            np.testing.assert_array_equal(ema.state_dict()["average"][name].numpy(), expected[name])


def test_float32_needs_no_copies(model, monkeypatch):
    """Of the kernels of an update, each started once a tensor, one was a cast to the same type."""
    ema, casts = ModelEMA(model, 0.9), []
    plain = paddle.Tensor.astype

    def astype(self, dtype):
        casts.append(dtype)
        return plain(self, dtype)

    monkeypatch.setattr(paddle.Tensor, "astype", astype)
    ema.update()
    with ema.applied():
        pass
    assert casts == []
    half = ModelEMA(nn.Linear(2, 2).to(dtype="bfloat16"), 0.9)
    casts.clear()
    half.update()
    assert casts == ["float32", "float32"]  # weight and bias


def test_half_precision_weights_beside_float32_statistics():
    """A network as O2 makes it: each tensor keeps its type, the average is all float32."""
    net = nn.Sequential(nn.Conv2D(2, 3, 1), nn.BatchNorm2D(3))
    net[0].to(dtype="bfloat16")
    ema = ModelEMA(net, 0.0)
    net[0].weight.set_value(paddle.full([3, 2, 1, 1], 1.5, "bfloat16"))
    net[1]._mean.set_value(paddle.full([3], 0.3))
    ema.update()
    net[0].weight.set_value(paddle.full([3, 2, 1, 1], 3.0, "bfloat16"))
    types = {name: t.dtype for name, t in net.state_dict().items()}
    with ema.applied():
        assert {name: t.dtype for name, t in net.state_dict().items()} == types
        assert net[0].weight.astype("float32").unique().tolist() == [1.5]
        np.testing.assert_array_equal(net[1]._mean.numpy(), np.full(3, 0.3, "float32"))
    assert net[0].weight.astype("float32").unique().tolist() == [3.0]
    assert {t.dtype for t in ema.state_dict()["average"].values()} == {paddle.float32}


def test_applied_swaps_and_restores_bit_for_bit(model):
    rng = np.random.default_rng(1)
    ema = ModelEMA(model, 0.9)
    fill(model, rng)
    ema.update()
    fill(model, rng)
    own = state(model)
    with ema.applied() as inside:
        assert inside is model
        for name, value in state(model).items():
            np.testing.assert_array_equal(value, ema.state_dict()["average"][name].numpy())
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, own[name])

    def fail():
        with ema.applied():
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, own[name])


def test_average_is_not_tied_to_the_model(model):
    ema = ModelEMA(model)
    before = {k: v.numpy().copy() for k, v in ema.state_dict()["average"].items()}
    fill(model, np.random.default_rng(2))
    for name, value in ema.state_dict()["average"].items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_save_and_go_on(model, tmp_path):
    rng = np.random.default_rng(3)
    ema = ModelEMA(model, 0.9)
    fill(model, rng)
    ema.update()
    paddle.save(ema.state_dict(), str(tmp_path / "ema.pdparams"))
    other = ModelEMA(model, 0.9)
    other.set_state_dict(paddle.load(str(tmp_path / "ema.pdparams")))
    fill(model, rng)
    ema.update()
    other.update()
    assert other.updates == ema.updates == 2
    for name, value in ema.state_dict()["average"].items():
        np.testing.assert_array_equal(other.state_dict()["average"][name].numpy(), value.numpy())


def test_half_precision_is_averaged_in_float32():
    layer = nn.Linear(2, 2).to(dtype="bfloat16")
    ema = ModelEMA(layer)
    ema.update()
    assert ema.state_dict()["average"]["weight"].dtype == paddle.float32
    with ema.applied():
        assert layer.weight.dtype == paddle.bfloat16


def test_misuse(model):
    ema = ModelEMA(model)
    with ema.applied():
        with pytest.raises(RuntimeError):
            ema.update()
        with pytest.raises(RuntimeError):
            ema.applied().__enter__()
    for decay in (1.0, -0.1, "0.9", True):
        with pytest.raises(ValueError, match="decay"):
            ModelEMA(model, decay)
    with pytest.raises(ValueError, match="another model"):
        ema.set_state_dict(ModelEMA(nn.Linear(2, 2)).state_dict())
    with pytest.raises(ValueError, match="another shape"):
        ema.set_state_dict(
            ModelEMA(nn.Sequential(nn.Conv2D(2, 4, 1), nn.BatchNorm2D(4))).state_dict()
        )

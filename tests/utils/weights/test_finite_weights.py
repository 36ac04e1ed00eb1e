# SPDX-License-Identifier: Apache-2.0
"""Weights that are not finite are named wherever they come in, go out or are used.

On a CPU Paddle's ReLU turns NaN into 0, so that a network's outputs do not show them.
"""

import importlib

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import evaluate, export, predict
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.models import DeepLabV3P, ResNet18_vd
from paddleseg_deeplab.tools.convert_weights.convert import convert_weights
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import save_image
from paddleseg_deeplab.utils.weights.finite import check_exported
from paddleseg_deeplab.utils.weights.load import (
    check_finite_weights,
    load_entire_model,
    load_pretrained_model,
    load_tensors,
    nonfinite_tensors,
    save_weights,
)

core_export = importlib.import_module("paddleseg_deeplab.deploy.export")  # the name is a function
BAD = (float("nan"), float("inf"), -float("inf"))
SAMPLE = np.zeros((3, 32, 32), np.float32)


class Names(nn.Layer):
    """The tensors of DeepLabV3+ on ResNet18_vd by their names, cut to a few numbers each, so that
    each can be spoilt in turn at each door in a moment."""

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        model = DeepLabV3P(num_classes=3, backbone=ResNet18_vd(output_stride=16))
        state = model.state_dict()
        assert {name for name, _ in model.named_parameters()} <= set(state)
        self.tensors = {k: paddle.to_tensor(v.numpy().ravel()[:5]) for k, v in state.items()}

    def state_dict(self):
        return self.tensors


@pytest.fixture(scope="module")
def names():
    return Names()


def test_each_tensor_at_each_door(names, tmp_path):
    """Loading, saving in both formats, export, evaluation: NaN and both infinities in each."""
    tensors = names.state_dict()
    assert len(tensors) == 200  # 126 trained ones and the statistics of 37 batch norms
    before, dataset = arrays(names), shapes()
    for name, tensor in tensors.items():
        for i, bad in enumerate(BAD):
            spoilt = before[name].copy()
            spoilt[i * 2 % len(spoilt)] = bad
            state = {**before, name: spoilt}
            noticed(lambda state=state: load_tensors(names, state, "w.pdparams"), name)
            assert np.array_equal(tensor.numpy(), before[name])
            for suffix in ("pdparams", "safetensors"):
                path = tmp_path / f"w.{suffix}"
                noticed(lambda path=path, state=state: save_weights(state, path), name)
            tensor.set_value(spoilt)
            noticed(lambda: export(names, tmp_path / "o", sample=SAMPLE), name)
            noticed(lambda: evaluate(names, dataset, print_detail=False, progress=False), name)
            tensor.set_value(before[name])
    assert not list(tmp_path.iterdir())
    check_finite_weights(names, "all is well again")


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def noticed(way, name):
    """It raises one line that names the tensor and what to do."""
    with pytest.raises(UserError, match="are not finite: 1 of") as caught:
        way()
    text = str(caught.value)
    assert f": {name} (1 of " in text
    assert "\n" not in text
    assert "earlier checkpoint" in text
    assert "learning rate" in text


def shapes():
    return Shapes(
        transforms=[Normalize()], mode="val", num_classes=3, image_size=[32, 32], num_samples=1
    )


def test_prediction_in_python(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    model = DeepLabV3P(num_classes=3, backbone=ResNet18_vd(output_stride=16))
    tensor = model.parameters()[0]
    tensor.set_value(np.full_like(tensor.numpy(), np.nan))
    with pytest.raises(UserError, match="are not finite"):
        predict(model, None, Compose([Normalize()]), [tmp_path / "a.png"], save_dir=tmp_path / "o")
    assert not (tmp_path / "o").exists()


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)
        self.norm = nn.BatchNorm2D(4)
        self.register_buffer("steps", paddle.to_tensor([2**31], "int64"))
        self.register_buffer("scale", paddle.ones([3]))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_kinds_of_numbers(kind, as_array, bad):
    values = [1.0, -65504.0, bad, 0.0, bad]
    good = paddle.to_tensor([1.0, -65504.0, 6e-8, 0.0]).astype(kind)
    state = {"good": good, "bad": paddle.to_tensor(values, "float64").astype(kind)}
    state = {name: value.numpy() for name, value in state.items()} if as_array else state
    assert nonfinite_tensors(state) == [("bad", 2, 5)]


def test_what_is_left_alone():
    """Integers and booleans of any size, and the largest numbers that are finite."""
    largest = {np.dtype(t).name: np.array([np.finfo(t).max] * 99, t) for t in ("f2", "f4", "f8")}
    state = {
        **largest,
        "empty": np.zeros((0, 3), "f4"),
        "integers": np.array([2**63 - 1, -(2**63)]),
        "bytes": np.array([255], "u1"),
        "truth": np.array([True]),
        "norm._variance": np.array([0.0, -1e-6], "f4"),  # rounding, less than the epsilon
        "log_variance": np.array([-5.0], "f4"),  # no batch norm's
    }
    assert nonfinite_tensors(state) == []
    assert nonfinite_tensors(Net()) == []


def test_a_variance_below_zero():
    net = Net()
    net.norm._variance.set_value(np.array([1, -1e-4, 0, -3], "f4"))
    assert nonfinite_tensors(net) == [("norm._variance", 2, 4)]
    with pytest.raises(UserError, match="negative variances"):
        check_finite_weights(net, "The weights")


@pytest.mark.parametrize("name", ["scale", "norm._mean", "conv.bias"])
def test_buffers(name):
    net = Net()
    net.state_dict()[name].set_value(np.full_like(net.state_dict()[name].numpy(), np.nan))
    [(found, bad, size)] = nonfinite_tensors(net)
    assert (found, bad) == (name, size)


def save_raw(state, path):
    """Past `save_weights`, which refuses."""
    if str(path).endswith(".safetensors"):
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, str(path))
    else:
        paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))


@pytest.fixture(params=["w.pdparams", "w.safetensors"])
def spoilt(request, tmp_path):
    """(path of a file with three bad tensors, their names)."""
    state = arrays(Net())
    names = ["conv.weight", "norm.weight", "norm._mean"]
    for name in names:
        state[name].flat[0] = np.nan
    path = tmp_path / request.param
    save_raw(state, path)
    return path, names


@pytest.mark.parametrize("load", [load_entire_model, load_pretrained_model])
def test_files(spoilt, load):
    path, names = spoilt
    net = Net()
    before = arrays(net)
    with pytest.raises(UserError, match="3 of 8 tensors") as caught:
        load(net, path)
    for word in [str(path), *names]:
        assert word in str(caught.value)
    assert all(np.array_equal(before[k], v) for k, v in arrays(net).items())
    # What is left out does no harm.
    report = load(net, path, skip=names)
    assert len(report.loaded) == 5


def test_a_folder_of_them(spoilt):
    with pytest.raises(UserError, match="are not finite"):
        load_entire_model(Net(), spoilt[0].parent)


def test_numbers_too_large_for_the_layer(tmp_path):
    """Finite as float64, infinite once they are the layer's float32."""
    state = arrays(Net())
    state["conv.weight"] = np.full(state["conv.weight"].shape, 1e300)
    save_raw(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"conv\.weight \(108 of 108\)"):
        load_entire_model(Net(), tmp_path / "w.safetensors")


def test_conversion(spoilt, tmp_path):
    path, names = spoilt
    with pytest.raises(UserError, match="are not finite") as caught:
        convert_weights(Net(), path, tmp_path / "out.pdparams", source="paddleseg")
    for word in [str(path), *names]:
        assert word in str(caught.value)
    assert not (tmp_path / "out.pdparams").exists()


# -- exported folders --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pir", "legacy"])
def test_an_exported_folder(form, tmp_path, monkeypatch):
    """As older versions let it be written: the network and its export agree, on a CPU."""
    conv = Exportable()
    tensor = conv.conv.weight
    arrays = {"good": tensor.numpy(), "bad": tensor.numpy()}
    arrays["bad"].flat[-1] = np.nan
    monkeypatch.setattr(core_export, "check_finite_weights", lambda *args: None)
    monkeypatch.setattr(core_export, "compare_export", lambda *args: {})
    for name, values in arrays.items():
        tensor.set_value(values)
        export(conv, tmp_path / name, sample=SAMPLE, format=form, output_op="none")
    open_runtime(deploy_yaml.read(tmp_path / "good"), RuntimeSettings())
    with pytest.raises(UserError, match=r"model\.pdiparams: 1 of \d+ tensors hold NaN") as caught:
        open_runtime(deploy_yaml.read(tmp_path / "bad"), RuntimeSettings())
    assert "\n" not in str(caught.value)


class Exportable(nn.Layer):
    data_format, num_classes = "NCHW", 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2D(4)
        self.last = nn.Conv2D(4, 2, 1)

    def forward(self, x):
        return [self.last(nn.functional.relu(self.norm(self.conv(x))))]


def combined(*arrays, version=0):
    """A file of parameters by the description in framework.proto, written by hand."""
    kinds = {"float16": 4, "float32": 5, "float64": 6, "int64": 3, "uint16": 22}
    content = b""
    for array in arrays:
        sizes = b"".join(b"\x10" + bytes([size]) for size in array.shape)
        message = b"\x08" + bytes([kinds[array.dtype.name]]) + sizes
        content += version.to_bytes(4, "little") + bytes(8) + bytes(4)
        content += len(message).to_bytes(4, "little") + message + array.tobytes()
    return content


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "u2"])
def test_parameters_of_all_kinds(kind, tmp_path):
    path = tmp_path / "model.pdiparams"
    good = np.arange(6, dtype=kind).reshape(2, 3)
    bad = good.copy()
    bad[1, 1] = 0x7F80 if kind == "u2" else -np.inf
    integers = np.array([2**62])
    path.write_bytes(combined(good, integers, good))
    check_exported(str(path))
    path.write_bytes(combined(good, integers, bad, good, bad))
    with pytest.raises(UserError, match="2 of 5 tensors"):
        check_exported(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        bytes(3),
        bytes(100),
        combined(np.full(3, np.nan, "f4"), version=1),
        combined(np.full(3, np.nan, "f4"))[:-1],
        combined(np.full(3, np.nan, "f4")).replace(b"\x10", b"\x18"),
    ],
)
def test_another_layout_is_left_to_the_runtime(content, tmp_path):
    path = tmp_path / "model.pdiparams"
    path.write_bytes(content)
    check_exported(str(path))
    check_exported(str(tmp_path / "none"))

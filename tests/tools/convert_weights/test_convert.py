# SPDX-License-Identifier: Apache-2.0
"""What convert_weights reads, what it makes of it, and what it refuses.

A two-layer network stands for the large ones; tests/parity/test_torch_logits.py has those.
"""

import logging
import os
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn
from places import ROOT
from safetensors.numpy import save as to_safetensors
from safetensors.numpy import save_file

from paddleseg_deeplab import models
from paddleseg_deeplab.cli import main as cli
from paddleseg_deeplab.models.layers import ConvBN
from paddleseg_deeplab.tools.convert_weights.convert import convert_weights, match_tensors
from paddleseg_deeplab.tools.convert_weights.rules import rename
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.weights.load import load_pretrained_model, load_weights, read_weights

LOGGER = "paddleseg_deeplab"
RNG = np.random.default_rng(0)


class _Part(nn.Layer):
    """Holds what it is given, under the names it is given."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def _net(classes=3, **more_of_the_backbone):
    """kazuto1011's V1 without its residual blocks."""
    backbone = _Part(conv1=ConvBN(3, 4, 3, bias_attr=False), **more_of_the_backbone)
    return _Part(backbone=backbone, head=_Part(cls=nn.Conv2D(4, classes, 1)))


def _state(classes=3, start=""):
    """kazuto1011's names for `_net`."""
    unit = "layer1.conv1."
    state = {f"{unit}conv.weight": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"{unit}bn.{name}"] = RNG.uniform(0.5, 1, 4).astype(np.float32)
    state[f"{unit}bn.num_batches_tracked"] = np.array(7)
    state["fc.weight"] = RNG.standard_normal((classes, 4, 1, 1)).astype(np.float32)
    state["fc.bias"] = RNG.standard_normal(classes).astype(np.float32)
    return {start + name: value for name, value in state.items()}


def _check(converted, state):
    """converted holds state's tensors under our names, and nothing else."""
    plain = {name.replace("module.", "").replace("base.", ""): v for name, v in state.items()}
    ours = {rename(name, "kazuto1011"): v for name, v in plain.items()}
    ours.pop(None)
    assert converted.keys() == ours.keys()
    for name, value in converted.items():
        value = np.asarray(value)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ours[name].astype(np.float32))


# -- the function and the file it writes ----------------------------------------------------------


@pytest.mark.parametrize("start", ["", "module.", "base.", "module.base."])
def test_converts_loads_and_tells(start, tmp_path, caplog):
    state, net = _state(start=start), _net()
    save_file(state, str(tmp_path / "w.safetensors"))
    output = tmp_path / "new" / "folder" / "w.pdparams"
    with caplog.at_level(logging.INFO, logger=LOGGER):
        report = convert_weights(net, tmp_path / "w.safetensors", output, source="kazuto1011")
    _check(read_weights(str(output)), state)
    assert load_weights(_net(), str(output)).loaded == report.filled == list(net.state_dict())
    assert report.dropped == [(f"{start}layer1.conv1.bn.num_batches_tracked", report.dropped[0][1])]
    assert "counter" in report.dropped[0][1]
    assert "num_batches_tracked" in caplog.text
    assert len(report.notes) == start.count(".")
    assert all("prefix" in note for note in report.notes)
    assert os.listdir(output.parent) == ["w.pdparams"]


def test_the_layer_is_left_alone(tmp_path):
    net = _net()
    before = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    np.savez(tmp_path / "w.npz", **_state())
    convert_weights(net, tmp_path / "w.npz", tmp_path / "w.pdparams", source="kazuto1011")
    assert all(np.array_equal(before[k], v.numpy()) for k, v in net.state_dict().items())


def test_backbone_of_a_whole_file_and_of_its_own():
    state, net = _state(), _net(classes=19)
    converted, report = match_tensors(
        net.backbone, state, file="f", source="kazuto1011", part="backbone"
    )
    assert set(converted) == set(net.backbone.state_dict())
    dropped = dict(report.dropped)
    assert set(dropped) == {"layer1.conv1.bn.num_batches_tracked", "fc.weight", "fc.bias"}
    assert "--part backbone" in dropped["fc.bias"]
    alone = {name: v for name, v in state.items() if not name.startswith("fc")}
    again, _ = match_tensors(net.backbone, alone, file="f", source="kazuto1011", part="backbone")
    assert again.keys() == converted.keys()


def test_layers_the_source_does_not_have(tmp_path, caplog):
    extra = nn.Sequential(ConvBN(4, 4, 1, bias_attr=False))
    net = _net(layer5=extra)
    np.savez(tmp_path / "w.npz", **_state())
    with caplog.at_level(logging.INFO, logger=LOGGER):
        report = convert_weights(
            net.backbone,
            tmp_path / "w.npz",
            tmp_path / "w.pdparams",
            source="kazuto1011",
            part="backbone",
        )
    [(glob, why, names)] = report.absent
    assert (glob, len(names)) == ("layer5.*", 5)
    assert "cascade" in why
    assert 'pretrained_skip: ["layer5.*"]' in caplog.text
    load_pretrained_model(net.backbone, str(tmp_path / "w.pdparams"), skip=["layer5.*"])
    # Half of such a group is a damaged file, not a source without it.
    state = {**_state(), "layer6.block1.reduce.conv.weight": np.zeros((4, 4, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"layer6\.block1\.reduce"):
        match_tensors(net.backbone, state, file="f", source="kazuto1011", part="backbone")


def test_an_auxiliary_head_may_lack_on_either_side():
    def net(**more):
        head = _Part(cls=nn.Conv2D(4, 3, 1), **more)
        return _Part(backbone=_Part(conv1=ConvBN(3, 4, 3, bias_attr=False)), head=head)

    norm = {k: np.ones(4, np.float32) for k in ("weight", "bias", "running_mean", "running_var")}
    state = {
        "backbone.conv1.weight": np.zeros((4, 3, 3, 3), np.float32),
        **{f"backbone.bn1.{k}": v for k, v in norm.items()},
        "classifier.4.weight": np.zeros((3, 4, 1, 1), np.float32),
        "classifier.4.bias": np.zeros(3, np.float32),
    }
    aux = {
        "aux_classifier.4.weight": np.zeros((3, 4, 1, 1), np.float32),
        "aux_classifier.4.bias": np.zeros(3, np.float32),
    }
    with_aux = net(aux=_Part(cls=nn.Conv2D(4, 3, 1)))
    _, report = match_tensors(net(), {**state, **aux}, file="f", source="torchvision")
    assert {name for name, _ in report.dropped} == set(aux)
    _, report = match_tensors(with_aux, state, file="f", source="torchvision")
    assert [glob for glob, _, _ in report.absent] == ["head.aux.*"]
    aux.popitem()
    with pytest.raises(UserError, match=r"head\.aux\.cls\.bias"):
        match_tensors(with_aux, {**state, **aux}, file="f", source="torchvision")


def test_linear_weights_are_transposed():
    net = _Part(backbone=_Part(conv1=ConvBN(3, 4, 3, bias_attr=False)))
    net.head = _Part(cls=nn.Linear(4, 3))
    state = _state()
    state["fc.weight"] = state["fc.weight"][:, :, 0, 0]
    converted, _ = match_tensors(net, state, file="f", source="kazuto1011")
    np.testing.assert_array_equal(converted["head.cls.weight"], state["fc.weight"].T)


def test_paddleseg_as_it_is_and_its_xception(tmp_path):
    net = models.DeepLabV3(2, models.ResNet18_vd())
    state = {name: v.numpy() for name, v in net.state_dict().items()}
    converted, report = match_tensors(net, state, file="f", source="paddleseg")
    assert converted.keys() == state.keys()
    assert not report.dropped
    alone = {k[9:]: v for k, v in state.items() if k.startswith("backbone.")}
    alone["out.weight"] = np.zeros((512, 1000), np.float32)
    converted, report = match_tensors(
        net.backbone, alone, file="f", source="paddleseg", part="backbone"
    )
    assert [name for name, _ in report.dropped] == ["out.weight"]
    assert len(converted) == len(alone) - 1

    xception = models.Xception41_deeplab()
    theirs = {xception.paddleseg_name(k): v.numpy() for k, v in xception.state_dict().items()}
    converted, _ = match_tensors(xception, theirs, file="f", source="paddleseg", part="backbone")
    for name, value in xception.state_dict().items():
        np.testing.assert_array_equal(converted[name], value.numpy())
    whole = {f"backbone.{name}": v for name, v in theirs.items()}
    with pytest.raises(UserError, match="128-channel"):
        match_tensors(net, whole, file="f", source="paddleseg")


# -- what does not fit ----------------------------------------------------------------------------


def _without(name):
    return {k: v for k, v in _state().items() if k != name}


def _with_prefix_on_one():
    state = _state()
    return {**_without("fc.bias"), "module.fc.bias": state["fc.bias"]}


MISFITS = {
    "missing": (lambda: _without("fc.bias"), ["lacks: head.cls.bias", "Nothing was written"]),
    "extra": (lambda: {**_state(), "fc9.bias": np.zeros(2)}, ["fc9.bias", "without a place"]),
    "mixed prefixes": (_with_prefix_on_one, ["module.fc.bias", "lacks: head.cls.bias"]),
    "classes": (lambda: _state(classes=21), ["for 21 classes, the config for 3", "fc.weight"]),
    "shape": (
        lambda: {**_state(), "layer1.conv1.conv.weight": np.zeros((4, 3, 7, 7), np.float32)},
        ["layer1.conv1.conv.weight [4, 3, 7, 7] for backbone.conv1._conv.weight [4, 3, 3, 3]"],
    ),
    "deeper": (
        lambda: {**_state(), "layer4.block9.reduce.conv.weight": np.zeros((4, 4, 1, 1))},
        ["layer4.block9.reduce.conv.weight (backbone.layer3.8.conv1._conv.weight)", "depth"],
    ),
    "backbone alone": (
        lambda: {k: v for k, v in _state().items() if not k.startswith("fc")},
        ["--part backbone"],
    ),
    "another source": (
        lambda: {"backbone.bn1.bias": np.zeros(4), "backbone.bn1.weight": np.zeros(4)},
        ["--source torchvision"],
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_are_told_and_nothing_is_written(case, tmp_path):
    make, texts = MISFITS[case]
    np.savez(tmp_path / "w.npz", **make())
    with pytest.raises(UserError) as caught:
        convert_weights(
            _net(), tmp_path / "w.npz", tmp_path / "out" / "w.pdparams", source="kazuto1011"
        )
    for text in [*texts, str(tmp_path / "w.npz")]:
        assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", ["", "base.", "module.base."])
def test_names_of_another_source_are_known_behind_its_prefixes(start):
    """Either way round: torchvision's table does not know kazuto1011's prefixes."""
    with pytest.raises(UserError, match="kazuto1011's: --source kazuto1011"):
        match_tensors(_net(), _state(start=start), file="f", source="torchvision")
    theirs = {"module.backbone.bn1.bias": np.zeros(4), "module.classifier.4.bias": np.zeros(3)}
    with pytest.raises(UserError, match="torchvision's: --source torchvision"):
        match_tensors(_net(), theirs, file="f", source="kazuto1011")


def test_a_whole_mobilenet_v2_is_a_backbone_alone():
    """Its ImageNet classifier has the name of a batch norm in a head of torchvision's."""
    stem = "features.0."
    file = {stem + "0.weight": np.zeros((4, 3, 3, 3), np.float32)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        file[f"{stem}1.{name}"] = np.zeros(4, np.float32)
    file["classifier.1.weight"] = np.zeros((10, 4), np.float32)
    file["classifier.1.bias"] = np.zeros(10, np.float32)
    stem = ConvBN(3, 4, 3, bias_attr=False)
    plain = _Part(backbone=_Part(stem=stem), head=_Part(cls=nn.Conv2D(4, 3, 1)))
    conv = _Part(backbone=_Part(stem=stem), head=_Part(conv=ConvBN(4, 4, 3, bias_attr=False)))
    for net in (plain, conv):
        with pytest.raises(UserError, match="holds a backbone alone: --part backbone"):
            match_tensors(net, file, file="f", source="torchvision")
    converted, _ = match_tensors(
        plain.backbone, file, file="f", source="torchvision", part="backbone"
    )
    assert len(converted) == 5


class _Code:
    def __reduce__(self):
        return (os.mkdir, ("made-by-a-pickle",))


def _truncated():
    return to_safetensors(_state())[:-5]


def _npz(path, **arrays):
    with open(path, "wb") as f:
        np.savez(f, **arrays)


BAD_FILES = {
    "gone.npz": (None, "no such file"),
    "w.onnx": (b"x", "not from '.onnx'"),
    "w": (b"x", "without a suffix"),
    "empty.npz": (b"", "cannot be read"),
    "empty.safetensors": (b"", "cannot be read"),
    "empty.pdparams": (b"", "is empty"),
    "truncated.safetensors": (_truncated, "cannot be read"),
    "text.npz": (b"no archive at all", "cannot be read"),
    "text.pdparams": (b"no pickle at all", "cannot be read"),
    "code.npz": (lambda: pickle.dumps(_Code()), "cannot be read"),
    "objects.npz": ({"a": np.array([_Code()], object)}, "cannot be read"),
    "words.npz": ({"a": np.array(["word"])}, "not numbers"),
    "nan.npz": ({"a": np.array([1, np.nan])}, "not finite"),
    "nothing.npz": ({}, "holds no tensor"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, text = BAD_FILES[name]
    content = content() if callable(content) else content
    if isinstance(content, dict):
        _npz(name, **content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=text):
        convert_weights(_net(), name, "w.pdparams", source="kazuto1011")
    assert set(os.listdir(tmp_path)) <= {name}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("w.onnx", "ends in .pdparams"),
        ("w", "ends in .pdparams"),
        ("w.npz/x.pdparams", "is a file"),
        ("folder.pdparams", "is a folder"),
    ],
)
def test_bad_outputs(output, text, tmp_path):
    (tmp_path / "folder.pdparams").mkdir()
    np.savez(tmp_path / "w.npz", **_state())
    with pytest.raises(UserError, match=text):
        convert_weights(_net(), tmp_path / "w.npz", tmp_path / output, source="kazuto1011")
    assert sorted(os.listdir(tmp_path)) == ["folder.pdparams", "w.npz"]


def test_the_input_is_not_overwritten(tmp_path):
    file = tmp_path / "w.pdparams"
    paddle.save({"a": paddle.zeros([1])}, str(file))
    with pytest.raises(UserError, match="is the input"):
        convert_weights(_net(), file, file, source="paddleseg")


def test_a_failure_while_writing_keeps_what_was_there(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", **_state())
    (tmp_path / "w.pdparams").write_text("earlier")

    def full(state, path):
        with open(path, "w") as f:
            f.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paddle, "save", full)
    with pytest.raises(UserError, match="No space left"):
        convert_weights(_net(), tmp_path / "w.npz", tmp_path / "w.pdparams", source="kazuto1011")
    assert (tmp_path / "w.pdparams").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["w.npz", "w.pdparams"]


@pytest.mark.parametrize(("name", "value"), [("source", "caffe"), ("part", "head")])
def test_unknown_settings(name, value):
    settings = {"source": "kazuto1011", "part": "model", name: value}
    with pytest.raises(UserError, match=value):
        convert_weights(_net(), "w.npz", "w.pdparams", **settings)


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    config = str(ROOT / "configs" / "quickstart.yml")
    np.savez(tmp_path / "w.npz", **_state())
    output = tmp_path / "w.pdparams"
    command = ["convert_weights", "--source", "kazuto1011", "--config", config]
    assert cli.main([*command, "--input", str(tmp_path / "w.npz"), "--output", str(output)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"error: {tmp_path / 'w.npz'} does not fit this model")
    assert "Traceback" not in "".join(lines)
    assert not output.exists()

# SPDX-License-Identifier: Apache-2.0
"""Weights and exported folders with faults: one line that names the file, and nothing written."""

import pickle
import zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from bad_input import good_config, refuses

from paddleseg_deeplab.cli import export, infer, predict, train, val
from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.utils.visualize import save_image
from paddleseg_deeplab.utils.weights.load import save_weights


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of weights: one good, the others not."""
    folder = tmp_path_factory.mktemp("files")
    builder = SegBuilder(Config(good_config(folder)))
    model = builder.model
    save_weights(model, str(folder / "good.pdparams"))
    content = (folder / "good.pdparams").read_bytes()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    first = next(iter(state))
    tables = {
        "other_class_count": {**state, "head.decoder.conv.weight": np.zeros((9, 4, 1, 1), "f4")},
        "wrong_shape": {**state, first: np.zeros((1, 2, 3), "f4")},
        "one_missing": {name: value for name, value in state.items() if name != first},
        "one_more": {**state, "extra": np.zeros(3, "f4")},
        "other_network": {f"layer{i}.weight": np.zeros(3, "f4") for i in range(3)},
        "backbone_only": {k[9:]: v for k, v in state.items() if k.startswith("backbone.")},
        "no_tensors": {"epoch": 5, "best": 0.5},
        "empty_table": {},
        "a_list": [1, 2, 3],
        "a_number": 5,
        "nested": {"model": state},
        "not_finite": {**state, first: state[first] * np.float32("nan")},
        "text_values": dict.fromkeys(state, "x"),
    }
    for name, table in tables.items():
        (folder / f"{name}.pdparams").write_bytes(pickle.dumps(table, protocol=4))
    raw = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "short": content[:3],
        "text": b"these are weights\n",
        "html": b"<!DOCTYPE html><html>404</html>",
        "zeros": bytes(1000),
        "half": content[: len(content) - 1],
        "runs_code": pickle.dumps({"w": Runs()}),
        "image": b"\x89PNG\r\n\x1a\n" + bytes(50),
    }
    for name, data in raw.items():
        (folder / f"{name}.pdparams").write_bytes(data)
    paddle.save(builder.optimizer.state_dict(), str(folder / "optimizer.pdopt"))
    for name, data in {
        "empty": b"",
        "text": b"words and more words",
        "huge_header": b"\xff" * 8 + b"{}",
        "cut_header": (100).to_bytes(8, "little") + b'{"a"',
        "no_json": (4).to_bytes(8, "little") + b"abcd",
        "cut_data": (62).to_bytes(8, "little")
        + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'.ljust(62),
    }.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "no_weights").mkdir()
    (folder / "two").mkdir()
    for name in ("a", "b"):
        (folder / "two" / f"{name}.pdparams").write_bytes(content[:10])
    return folder


WEIGHTS = [
    *("other_class_count", "wrong_shape", "one_missing", "one_more", "other_network"),
    *("backbone_only", "no_tensors", "empty_table", "a_list", "a_number", "nested", "text_values"),
    *("empty", "truncated", "short", "text", "html", "zeros", "half", "runs_code", "image"),
    "not_finite",
]
PLACES = [f"{name}.pdparams" for name in WEIGHTS] + [
    *("optimizer.pdopt", "empty.safetensors", "text.safetensors", "huge_header.safetensors"),
    *("cut_header.safetensors", "no_json.safetensors", "cut_data.safetensors"),
    *("no_weights", "two", "none.pdparams"),
]


def run(verb, files, folder, monkeypatch, capsys, *flags, words=()):
    monkeypatch.chdir(folder)
    config = good_config(folder)
    save_image(folder / "in" / "a.png", [[[0, 100, 200]] * 32] * 32)
    line = refuses(verb.main, ["--config", config, *flags], words, capsys, folder)
    assert "this must not run" not in line


@pytest.mark.parametrize("name", PLACES)
def test_weights(files, tmp_path, monkeypatch, capsys, name):
    flags = ["--model_path", files / name, "--device", "cpu"]
    run(val, files, tmp_path, monkeypatch, capsys, *flags, words=[name])


@pytest.mark.parametrize(
    "name",
    ["truncated.pdparams", "one_missing.pdparams", "a_list.pdparams", "not_finite.pdparams"],
)
@pytest.mark.parametrize("key", ["model.pretrained", "model.backbone.pretrained"])
def test_pretrained(files, tmp_path, monkeypatch, capsys, name, key):
    flags = ["--device", "cpu", "--opts", f"{key}={files / name}"]
    place = key.rpartition(".")[0]
    run(train, files, tmp_path, monkeypatch, capsys, *flags, words=["c.yml", place, name])


@pytest.mark.parametrize("verb", [predict, export])
@pytest.mark.parametrize(
    "name", ["truncated.pdparams", "one_missing.pdparams", "not_finite.pdparams"]
)
def test_weights_of_other_commands(files, tmp_path, monkeypatch, capsys, verb, name):
    flags = ["--model_path", files / name, "--device", "cpu"]
    flags += ["--image_path", "in"] if verb is predict else []
    run(verb, files, tmp_path, monkeypatch, capsys, *flags, words=[name])


INPUTS = [
    *("empty.pdparams", "truncated.pdparams", "other_network.pdparams", "one_missing.pdparams"),
    *("a_list.pdparams", "runs_code.pdparams", "empty.safetensors", "cut_header.safetensors"),
    *("huge_header.safetensors", "cut_data.safetensors", "bad.npz", "objects.npz", "none.npz"),
    "not_finite.pdparams",
]


@pytest.mark.parametrize("name", INPUTS)
def test_weights_to_convert(files, tmp_path, monkeypatch, capsys, name):
    with zipfile.ZipFile(files / "bad.npz", "w") as file:
        file.writestr("a.npy", b"not an array")
    np.savez(files / "objects.npz", a=np.array([{}], dtype=object))
    flags = ["--source", "paddleseg", "--input", files / name, "--output", "out.pdparams"]
    verb = SimpleNamespace(main=partial(run_verb, "convert_weights"))
    run(verb, files, tmp_path, monkeypatch, capsys, *flags, words=[name])


# -------------------------------------------------------------------------------- exported folders

GOOD = """
Deploy: {model: model.json, params: model.pdiparams, transforms: [{type: Normalize}]}
DeepLab: {format: pir, num_classes: 3}
"""


def deploy(**changes):
    """deploy.yaml with keys of either section replaced."""
    import yaml

    content = yaml.safe_load(GOOD)
    for key, value in changes.items():
        content["DeepLab" if key in _OURS else "Deploy"][key] = value
    return yaml.safe_dump(content)


_OURS = ("format", "img_channels", "to_rgb", "num_classes", "class_names", "palette", "crf")
# deploy.yaml's text (None: no file), and words of the message.
DEPLOY = [
    (None, ["deploy.yaml"]),
    ("", ["deploy.yaml", "Deploy"]),
    ("words", ["deploy.yaml", "Deploy"]),
    ("Deploy: [", ["deploy.yaml", "not valid YAML"]),
    ("Deploy: 5", ["deploy.yaml", "Deploy"]),
    ("Other: {}", ["deploy.yaml", "Deploy"]),
    ("Deploy: {}", ["deploy.yaml", "model"]),
    ("Deploy: !!python/object/apply:os.system [ls]", ["deploy.yaml", "not valid YAML"]),
    (b"\xff\xfe\x00", ["deploy.yaml", "not valid YAML"]),
    (b"Deploy: \x00", ["deploy.yaml", "not valid YAML"]),
    ("[" * 3000, ["deploy.yaml", "not valid YAML"]),
    ("Deploy: {model: model.json}\nDeepLab: 5", ["deploy.yaml", "DeepLab"]),
    (deploy(model="none.json"), ["deploy.yaml", "none.json"]),
    (deploy(params="none.pdiparams"), ["deploy.yaml", "none.pdiparams"]),
    (deploy(model="model.bin", format=None), ["deploy.yaml", "model.bin"]),
    (deploy(model=5), ["deploy.yaml", "model", "5"]),
    (deploy(model=["a"]), ["deploy.yaml", "model", "['a']"]),
    (deploy(params=5), ["deploy.yaml", "params", "5"]),
    (deploy(model="../model.json"), ["deploy.yaml", "../model.json"]),
    (deploy(format="tflite"), ["deploy.yaml", "tflite"]),
    (deploy(format=["pir"]), ["deploy.yaml", "format"]),
    (deploy(output_op="max"), ["deploy.yaml", "output_op", "'max'"]),
    (deploy(output_op=["argmax"]), ["deploy.yaml", "output_op"]),
    (deploy(input_shape=[1, 3]), ["deploy.yaml", "input_shape"]),
    (deploy(input_shape=5), ["deploy.yaml", "input_shape", "5"]),
    (deploy(input_shape=["a", 3, 4, 4]), ["deploy.yaml", "input_shape", "'a'"]),
    (deploy(input_shape=[1, 3, 4.5, 4]), ["deploy.yaml", "input_shape", "4.5"]),
    (deploy(img_channels="x"), ["deploy.yaml", "img_channels", "'x'"]),
    (deploy(img_channels=0), ["deploy.yaml", "img_channels", "0"]),
    (deploy(to_rgb="perhaps"), ["deploy.yaml", "to_rgb", "'perhaps'"]),
    (deploy(num_classes="x"), ["deploy.yaml", "num_classes", "'x'"]),
    (deploy(num_classes=-1), ["deploy.yaml", "num_classes", "-1"]),
    (deploy(class_names=5), ["deploy.yaml", "class_names", "5"]),
    (deploy(palette=5), ["deploy.yaml", "palette"]),
    (deploy(palette=[[1, 2]]), ["deploy.yaml", "palette"]),
    (deploy(palette=[["a", "b", "c"]]), ["deploy.yaml", "palette"]),
    (deploy(palette=[[0, 0, 999]]), ["deploy.yaml", "palette"]),
    (deploy(transforms=5), ["deploy.yaml", "transforms", "5"]),
    (deploy(transforms=[5]), ["deploy.yaml", "transforms", "5"]),
    (deploy(transforms=[{"type": "Normalise"}]), ["deploy.yaml", "transforms", "Normalise"]),
    (deploy(transforms=[{"type": ["Normalize"]}]), ["deploy.yaml", "transforms"]),
    (deploy(transforms=[{"mean": [0.5]}]), ["deploy.yaml", "transforms"]),
    (deploy(transforms=[{"type": "Normalize", "men": [1]}]), ["deploy.yaml", "men"]),
    (deploy(transforms=[{"type": "Normalize", 5: 1}]), ["deploy.yaml", "transforms"]),
    (deploy(transforms=[{"type": "Resize", "target_size": 5}]), ["deploy.yaml", "target_size"]),
    (deploy(crf=5), ["deploy.yaml", "crf", "5"]),
    (deploy(crf={"iterations": -1}), ["deploy.yaml", "crf", "iterations"]),
    (deploy(), ["model.json"]),
    (deploy(model="model.pdmodel", format="legacy"), ["model.pdmodel"]),
]


@pytest.mark.parametrize(("text", "words"), DEPLOY)
def test_exported_folders(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "in" / "a.png", [[[0, 100, 200]] * 32] * 32)
    (tmp_path / "exported").mkdir()
    for name in ("model.json", "model.pdmodel", "model.pdiparams"):
        (tmp_path / "exported" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    if text is not None:
        raw = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "exported" / "deploy.yaml").write_bytes(raw)
    flags = ["--model_dir", "exported", "--image_path", "in", "--device", "cpu"]
    refuses(infer.main, flags, words, capsys, tmp_path)

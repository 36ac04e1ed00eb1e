# SPDX-License-Identifier: Apache-2.0
"""Reading tensors of torch (a stand-in for it), safetensors in every type, npz and pdparams."""

import json
import pickle
import sys
import types

import numpy as np
import paddle
import pytest

from paddleseg_deeplab.tools.convert_weights.read import read_tensors
from paddleseg_deeplab.utils.errors import UserError


class _Tensor:
    """As much of a torch tensor as the reader uses."""

    def __init__(self, values, dtype=np.float32):
        self._array = np.asarray(values, dtype)
        self.shape = self._array.shape

    def detach(self):
        return self

    def cpu(self):
        return self

    def is_floating_point(self):
        return self._array.dtype.kind == "f"

    def float(self):
        return _Tensor(self._array, np.float32)

    def numpy(self):
        return self._array


@pytest.fixture
def torch(monkeypatch):
    """A module named torch whose `load` returns or raises `content` and notes its arguments."""
    module = types.ModuleType("torch")

    def load(file, **settings):
        module.settings = settings
        if isinstance(module.content, Exception):
            raise module.content
        return module.content

    module.load = load
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


STATE = {"a.weight": _Tensor([1.5], np.float16), "a.num_batches_tracked": _Tensor(3, np.int64)}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (STATE, []),
        ({"state_dict": STATE, "epoch": 3}, ["took the tensors under 'state_dict', left epoch"]),
        ({"model": STATE}, ["took the tensors under 'model'"]),
        ({"model": {"state_dict": STATE}, "lr": 0.1}, ["'model', left lr", "'state_dict'"]),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "W.PTH", "pytorch_model.bin"])
def test_torch(name, content, notes, torch, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    torch.content = content
    tensors, found = read_tensors(tmp_path / name)
    assert torch.settings == {"map_location": "cpu", "weights_only": True}
    assert {k: (v.dtype.str, v.tolist()) for k, v in tensors.items()} == {
        "a.weight": ("<f4", [1.5]),
        "a.num_batches_tracked": ("<i8", 3),
    }
    assert len(found) == len(notes)
    assert all(expected in note for expected, note in zip(notes, found))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.UnpicklingError("Weights only load failed"), "more than tensors"),
        (RuntimeError("PytorchStreamReader failed"), "truncated"),
        (EOFError("Ran out of input"), "truncated"),
        ([1, 2], "found: list"),
        ({"optimizer": {"lr": 1}, "epoch": 3}, "found: optimizer, epoch"),
        ({"model": {"a": _Tensor([1]), "names": ["x"]}}, "found: names"),
        ({}, "holds no tensor"),
        ({"a": _Tensor([np.inf])}, "not finite"),
    ],
)
def test_bad_torch_files(content, text, torch, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    torch.content = content
    with pytest.raises(UserError, match=text):
        read_tensors(tmp_path / "w.pth")


def test_torch_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install torch.*safetensors\.torch\.save_file"):
        read_tensors(tmp_path / "w.pth")


def _safetensors(path, dtype, shape, data):
    entry = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("U8", "u1"), ("BOOL", "?")],
)
def test_safetensors_types(dtype, numpy_dtype, tmp_path):
    array = np.array([[1, 0, 2], [0, 1, 3]]).astype(numpy_dtype)
    _safetensors(tmp_path / "w.safetensors", dtype, [2, 3], array.tobytes())
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(tensors["a"], array)
    assert tensors["a"].dtype == (np.float32 if array.dtype.kind == "f" else array.dtype)


def test_bfloat16(tmp_path):
    """The upper half of a float32; 1 + 2**-7 is the number after 1."""
    values = np.array([0.0, 1.0, 1 + 2**-7, -3.0, 2.0**100, 2.0**-100], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    _safetensors(tmp_path / "w.safetensors", "BF16", [2, 3], halves.tobytes())
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(tensors["a"], values.reshape(2, 3))


def test_an_unknown_type(tmp_path):
    _safetensors(tmp_path / "w.safetensors", "F8_E4M3", [2], b"\0\0")
    with pytest.raises(UserError, match="F8_E4M3"):
        read_tensors(tmp_path / "w.safetensors")


def test_too_large_for_float32(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([1e300]))
    with pytest.raises(UserError, match="not finite"):
        read_tensors(tmp_path / "w.npz")


def test_pdparams(tmp_path):
    paddle.save(
        {"a": paddle.ones([2], "float16"), "b": paddle.ones([2], "bfloat16")},
        str(tmp_path / "w.pdparams"),
    )
    tensors, _ = read_tensors(tmp_path / "w.pdparams")
    for value in tensors.values():
        assert (value.dtype, value.tolist()) == (np.float32, [1.0, 1.0])

# SPDX-License-Identifier: Apache-2.0
"""Weights from anybody: each malicious file gives one error that names it, and does nothing else.

That the payloads are live is shown by giving them to Python's own unpickler.
"""

import contextlib
import copyreg
import functools
import json
import os
import pickle
import struct
import tracemalloc

import numpy as np
import paddle
import pytest
from paddle import nn
from places import ROOT

from paddleseg_deeplab.cli import main as cli
from paddleseg_deeplab.core.training.state import checkpoint as state
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.safe_pickle import machine, reader
from paddleseg_deeplab.utils.weights import load as checkpoint
from paddleseg_deeplab.utils.weights.load import load_weights, save_weights

MARK = "marker"  # in the working folder, which every test sets


def run_mark(*_):
    """The payload of the extension registry."""
    open(MARK, "w").close()


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState(dict):
    """Pickles as an object whose attributes are set."""

    def __reduce__(self):
        return functools.partial, (os.system,), (os.system, (f"touch {MARK}",), {}, None)


TOUCH = f"touch {MARK}"
OPEN = f"open({MARK!r}, 'w').close()"
MODULE = Call(__import__, "os")


def _object_array():
    return np.array([Call(os.system, TOUCH), None], dtype=object)


def _text(*lines):
    return b"".join(line.encode() + b"\n" for line in lines)


# Name: (content or value to pickle, what the error names).
LIVE = {
    "os.system": (Call(os.system, TOUCH), "system"),
    "eval": (Call(eval, OPEN), "builtins.eval"),
    "eval like Paddle's": (Call(eval, OPEN, {"data": 1}), "builtins.eval"),
    "exec": (Call(exec, OPEN), "builtins.exec"),
    "import": (MODULE, "builtins.__import__"),
    "getattr": (
        b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nU\x02os\x85RU\x06system\x86R"
        b"U\x0ctouch marker\x85R.",
        "builtins.getattr",
    ),
    "map": (Call(list, Call(map, eval, [OPEN])), "builtins.list"),
    "partial": (
        b"\x80\x02cfunctools\npartial\ncposix\nsystem\nU\x0ctouch marker\x86R)R.",
        "functools.partial",
    ),
    "reduce": (Call(functools.reduce, os.system, [TOUCH], TOUCH), "reduce"),
    "in a table": ({"a": np.ones(2), "b": {"c": [Call(os.system, TOUCH)]}}, "system"),
    "beside tensors' names": (
        {"a": np.ones(2), "StructuredToParameterName@@": Call(os.system, TOUCH)},
        "system",
    ),
    "object array": (_object_array(), "Python objects"),
    "object array in a table": ({"w": _object_array()}, "Python objects"),
    "code in a state": (WithState(), "functools.partial"),
    "GLOBAL": (
        b"\x80\x02c"
        + _text("posix", "system")
        + b"X"
        + struct.pack("<I", len(TOUCH))
        + TOUCH.encode()
        + b"\x85R.",
        "posix.system",
    ),
    "INST": (b"\x80\x02(S" + _text(repr(TOUCH)) + b"i" + _text("posix", "system") + b".", "STRING"),
    "OBJ": (b"\x80\x02(c" + _text("posix", "system") + b"U\x0ctouch markero.", "posix.system"),
    "dotted name": (
        b"\x80\x04\x8c\x08builtins\x8c\x0dstr.__class__\x93\x8c\x0btouch marke\x85R.",
        "builtins.str.__class__",
    ),
    "extension": (b"\x80\x02\x82\xf0)R.", "EXT1"),
}
_ND = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
_F4 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xff"
    + (b"J\xff\xff\xff\xffK\x00tb")
)


def _array(shape, data, kind=_F4):
    return _ND + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def _laughs(opcode):
    """Ten lists, each ten times the one before."""
    steps = b"\x80\x04]K\x01aq\x00"
    for level in range(10):
        steps += b"](" + (b"h" + bytes([level])) * 10 + opcode + b"q" + bytes([level + 1])
    return steps + b"."


_LONG = struct.pack("<I", 2**31 - 1)
_MEGABYTE = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
DEAD = {
    "persistent id": (b"\x80\x02Pmarker\n.", "PERSID"),
    "binary persistent id": (b"\x80\x04\x8c\x06markerQ.", "BINPERSID"),
    "unknown step": (b"\x80\x04\xf7.", "0xf7"),
    "newer protocol": (b"\x80\x09N.", "protocol 9"),
    "class of an array": (
        b"\x80\x02" + _ND.replace(b"numpy\nndarray", b"posix\nsystem") + b".",
        "posix.system",
    ),
    "an array's class is a tuple": (
        b"\x80\x02" + _ND.replace(b"numpy\nndarray", b"builtins\ntuple") + b".",
        "builtins.tuple",
    ),
    "call of a class": (b"\x80\x02cnumpy\nndarray\nK\x05\x85\x85R.", "numpy.ndarray"),
    "attributes of a function": (
        b"\x80\x02cnumpy._core.multiarray\nscalar\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        "numpy._core.multiarray.scalar",
    ),
    "a function as a weight": (b"\x80\x02}X\x01\x00\x00\x00acnumpy\ndtype\ns.", "numpy.dtype"),
    "an unfinished array": (b"\x80\x02}X\x01\x00\x00\x00a" + _ND + b"s.", "without content"),
    "a compound type": (
        b"\x80\x02cnumpy\ndtype\nX\x03\x00\x00\x00V16\x89\x88\x87R.",
        "V16",
    ),
    "another encoding": (b"\x80\x02c_codecs\nencode\nU\x01aU\x03zip\x86R.", "zip"),
    "bytes declared": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.", "announced"),
    "text declared": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.", "announced"),
    "bytearray declared": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.", "BYTEARRAY8"),
    "number declared": (b"\x80\x04\x8b" + _LONG + b"abc.", "number of 2147483647 bytes"),
    "array declared": (
        b"\x80\x02" + _array(b"J" + _LONG + b"J" + _LONG + b"\x86", b"C\x04abcd") + b".",
        "4 bytes in the file",
    ),
    "negative shape": (
        b"\x80\x02" + _array(b"J\xff\xff\xff\xff\x85", b"C\x04abcd") + b".",
        "shape",
    ),
    "far memory": (b"\x80\x02]r" + _LONG + b"j" + _LONG + b"\x86", "announced"),
    "laughs": (_laughs(b"e"), "values"),
    "tuple laughs": (_laughs(b"e").replace(b"](", b"(").replace(b"e", b"t"), "values"),
    "a list in itself": (b"\x80\x04]q\x00h\x00a.", "without end"),
    "a deep list": (b"\x80\x04" + b"]" * 30_000 + b"a" * 29_999 + b".", "deeper"),
    "a deep tuple as key": (b"\x80\x04})" + b"\x85" * 30_000 + b"Ns.", "tuple is the key"),
    "keys that collide": (
        b"\x80\x04}("
        + b"".join(
            b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(5000)
        )
        + b"u.",
        "keys that are not text",
    ),
    "encoded again and again": (
        b"\x80\x02" + _MEGABYTE + b"](" + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 50 + b"e.",
        "again and again",
    ),
    "one array many times": (
        b"\x80\x04"
        + _array(
            b"J" + struct.pack("<i", 1 << 18) + b"\x85",
            b"B" + struct.pack("<I", 1 << 20) + b"\0" * (1 << 20),
        )
        + b"q\x00]("
        + b"h\x00" * 500
        + b"e.",
        "tensors take more",
    ),
    "stack underflow": (b"\x80\x04aaaa.", "damaged"),
    "no mark": (b"\x80\x04e.", "damaged"),
    "items into a number": (b"\x80\x04K\x01K\x02a.", "damaged"),
    "no end": (b"\x80\x04}", "damaged"),
    "a text file": (b"#!/bin/sh\ntouch marker\n", "damaged"),
    "protocol 0": (pickle.dumps(Call(os.system, TOUCH), protocol=0), "damaged"),
}
MALICIOUS = {**LIVE, **DEAD}


def _content(value, protocol=4):
    return value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension(__name__, "run_mark", 0xF0)
    yield tmp_path
    copyreg.remove_extension(__name__, "run_mark", 0xF0)


HARMLESS = {"import", "dotted name", "eval like Paddle's", "code in a state", "map", "reduce"}


@pytest.mark.parametrize("name", [n for n in LIVE if n not in HARMLESS])
def test_the_payloads_are_live(folder, name):
    with contextlib.suppress(Exception):  # after the payload has run
        pickle.loads(_content(LIVE[name][0]))
    assert os.path.exists(MARK)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", list(MALICIOUS))
def test_malicious_pickles(folder, name, protocol):
    value, text = MALICIOUS[name]
    if protocol == 2 and isinstance(value, bytes):
        return
    content = _content(value, protocol)
    path = folder / "model.pdparams"
    path.write_bytes(content)
    layer = nn.Linear(2, 2)
    before = layer.weight.numpy()
    for load in (
        lambda: reader.load(path),
        lambda: load_weights(layer, str(path)),
        lambda: load_weights(layer, str(folder)),
        lambda: state._load(path),
    ):
        with pytest.raises(UserError) as caught:
            load()
        assert str(path) in str(caught.value)
        assert text in str(caught.value)
        assert len(str(caught.value)) < 600
    assert (layer.weight.numpy() == before).all()
    assert os.listdir(folder) == ["model.pdparams"]


@pytest.mark.parametrize("name", list(DEAD))
def test_memory_is_not_taken_on_the_word_of_a_file(folder, name):
    content = _content(DEAD[name][0])
    (folder / "model.pdparams").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            reader.load(folder / "model.pdparams")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Room for what a step makes of a byte; nothing that a file only declares.
    assert peak < 100 * len(content) + (4 << 20)


def test_the_number_of_steps_is_limited(folder, monkeypatch):
    monkeypatch.setattr(machine, "_MAX_STEPS", 1000)
    (folder / "a.pdparams").write_bytes(b"\x80\x04" + b"N" * 1001 + b".")
    with pytest.raises(UserError, match=r"a\.pdparams .*1000 steps"):
        reader.load("a.pdparams")


def test_a_command_ends_with_status_2(folder, capsys):
    path = folder / "model.pdparams"
    path.write_bytes(pickle.dumps({"a": Call(os.system, TOUCH)}))
    config = str(ROOT / "configs" / "quickstart.yml")
    arguments = ["export", "--config", config, "--model_path", str(path), "--save_dir", "out"]
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(cli.main(arguments))
    assert caught.value.code == 2
    assert "system" in capsys.readouterr().err
    assert os.listdir(folder) == ["model.pdparams"]


# ------------------------------------------------------------------------------------- safetensors


def _safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_SAFETENSORS = {
    "header longer than the file": _safetensors(b"{}", length=2**62),
    "header of 1 GB": _safetensors(b"{}", length=10**9),
    "header past the end": _safetensors(b"{}", length=3),
    "empty": b"",
    "seven bytes": b"1234567",
    "no JSON": _safetensors(b"{{{{"),
    "a list": _safetensors([1]),
    "deep JSON": _safetensors(b"[" * 100_000),
    "offsets past the end": _safetensors({"a": _entry(offsets=(0, 8))}, b"1234"),
    "offsets that turn back": _safetensors({"a": _entry(offsets=(8, 0))}, b"12345678"),
    "negative offsets": _safetensors({"a": _entry(offsets=(-8, 0))}, b"12345678"),
    "a hole": _safetensors({"a": _entry(offsets=(8, 16))}, b"1" * 16),
    "two over each other": _safetensors({"a": _entry(), "b": _entry()}, b"12345678"),
    "shape of another size": _safetensors({"a": _entry(shape=(3,))}, b"12345678"),
    "shape that overflows": _safetensors({"a": _entry(shape=(2**63, 2**63))}, b"12345678"),
    "unknown type": _safetensors({"a": _entry(dtype="PYOBJ")}, b"12345678"),
    "trailing bytes": _safetensors({"a": _entry()}, b"1" * 12),
    "a pickle": pickle.dumps(Call(os.system, TOUCH)),
}


@pytest.mark.parametrize("name", list(BAD_SAFETENSORS))
def test_bad_safetensors(folder, name):
    path = folder / "model.safetensors"
    path.write_bytes(BAD_SAFETENSORS[name])
    for place in (path, folder):
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_weights(nn.Linear(2, 2), str(place))
    assert os.listdir(folder) == ["model.safetensors"]


KINDS = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool"]


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_keep_every_bit(folder, kind):
    tensors = {"a.b": paddle.rand([3, 4]) * 9, "scalar": paddle.ones([]), "none": paddle.ones([0])}
    tensors = {name: tensor.astype(kind) for name, tensor in tensors.items()}
    save_weights({**tensors, "odd": paddle.ones([3], "uint8")}, "model.safetensors")
    from safetensors import safe_open

    with safe_open("model.safetensors", "np") as file:  # its own reader takes the file
        assert set(file.keys()) == {*tensors, "odd"}
    read = checkpoint.read_weights("model.safetensors")
    for name, tensor in tensors.items():
        again = paddle.to_tensor(read[name]).astype(kind)
        assert again.shape == tensor.shape
        assert again.numpy().tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("name", ["model.safetensors", "deeper/w.safetensors", "model.pdparams"])
def test_saved_weights_load_from_file_and_folder(folder, name):
    saved, other = (nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4)) for _ in range(2))
    save_weights(saved, name)
    for place in (name, "."):
        other.apply(lambda layer: None)
        other[0].weight.set_value(paddle.zeros([4, 3, 3, 3]))
        report = load_weights(other, place)
        assert len(report.loaded) == 6
        for key, tensor in saved.state_dict().items():
            assert (other.state_dict()[key].numpy() == tensor.numpy()).all()
    assert sorted(os.listdir(os.path.dirname(name) or ".")) == [os.path.basename(name)]


def test_two_kinds_in_one_folder_are_asked_about(folder):
    for name in ("model.pdparams", "model.safetensors"):
        save_weights(nn.Linear(1, 1), name)
    with pytest.raises(UserError, match=r"2: .*model\.pdparams.*model\.safetensors"):
        load_weights(nn.Linear(1, 1), ".")


def test_a_full_disk_keeps_the_old_file(folder, monkeypatch):
    save_weights(nn.Linear(1, 1), "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        save_weights(nn.Linear(9, 9), "model.safetensors")
    assert os.listdir(folder) == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match=r"w\.pt"):
        save_weights(nn.Linear(1, 1), "w.pt")


def test_the_best_model_as_safetensors(folder):
    saved, other = nn.Linear(3, 2), nn.Linear(3, 2)
    state.save_best_model(saved, "run", "safetensors")
    state.carry_best_model("run/iter_5", "next")
    for place in ("run/best_model", "next/best_model"):
        other.weight.set_value(paddle.zeros([3, 2]))
        load_weights(other, place)
        assert (other.weight.numpy() == saved.weight.numpy()).all()
        assert not [name for name in os.listdir(place) if name.endswith("pdparams")]

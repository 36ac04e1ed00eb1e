# SPDX-License-Identifier: Apache-2.0
"""What `paddle.load` reads, `safe_pickle` reads bit for bit; what runs code, it refuses."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.safe_pickle import machine, reader

# ------------------------------------------------------------------------------------ good files


def _net():
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 2, 1))


def _trained(make, net=None):
    net = net or _net()
    optimizer = make(net.parameters())
    for _ in range(2):
        net(paddle.ones([1, 3, 8, 8])).mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    return optimizer.state_dict()


def _momentum(parameters):
    rate = paddle.optimizer.lr.PolynomialDecay(0.1, decay_steps=10)
    return paddle.optimizer.Momentum(rate, parameters=parameters, weight_decay=1e-4)


def _warm(parameters):
    inner = paddle.optimizer.lr.CosineAnnealingDecay(0.1, T_max=9)
    return paddle.optimizer.AdamW(
        paddle.optimizer.lr.LinearWarmup(inner, 3, 0.0, 0.1), parameters=parameters
    )


def _master_weights():
    tensor = paddle.rand([3])
    return {
        "linear_0.w_0_velocity_0": paddle.rand([3]),
        "master_weights": {"linear_0.w_0": tensor, "linear_0.b_0": paddle.rand([2, 2])},
        "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.1},
    }


def _scaler():
    """As GradScaler.state_dict gives it on a GPU; on a CPU it is empty."""
    numbers = {"incr_ratio": 2.0, "decr_ratio": 0.5, "incr_count": 3, "decr_count": 0}
    return {"scale": np.float32([512]), **numbers, "use_dynamic_loss_scaling": True}


def _types():
    kinds = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    kinds += ["uint8", "bool", "complex64", "complex128"]
    return {kind: paddle.to_tensor([[0, 1, 2], [3, 4, 5]]).astype(kind) for kind in kinds}


def _shapes():
    return {
        "scalar": paddle.to_tensor(2.5),
        "none": paddle.zeros([0]),
        "empty": paddle.zeros([3, 0, 2]),
        "six": paddle.rand([1, 2, 1, 3, 1, 2]),
        "kilobytes": paddle.rand([40, 41]),
        "": paddle.ones([1]),
        "名前": paddle.ones([2]),
    }


def _nested():
    tensor = paddle.rand([2])
    return {
        "model": OrderedDict(a=tensor, b=[paddle.rand([1]), (paddle.rand([1]), "text")]),
        "numbers": [1, -1, 255, 65536, 2**31, -(2**70), 1.5, float("inf"), True, None, 1e-300],
        "numpy": [np.float64(0.1), np.float32(2), np.int64(-3), np.bool_(True)],
        "arrays": {"x": np.arange(6.0).reshape(2, 3).T},
        "set": {"a", "b", 3},
        "same twice": [tensor, tensor],
        7: "a number as key",
        ("a", 1): "a tuple as key",
    }


def _dense():
    tensor = paddle.base.core.DenseTensor()
    tensor.set(np.float32([1, 2]), paddle.CPUPlace())
    return tensor


GOOD = {
    "state_dict": lambda: _net().state_dict(),
    "sgd": lambda: _trained(lambda p: paddle.optimizer.SGD(0.1, parameters=p)),
    "momentum": lambda: _trained(_momentum),
    "adam": lambda: _trained(lambda p: paddle.optimizer.Adam(0.1, parameters=p)),
    "adamw with warmup": lambda: _trained(_warm),
    "master weights": _master_weights,
    "scaler": _scaler,
    "average": lambda: {"average": dict(_net().state_dict()), "updates": 12},
    "types": _types,
    "shapes": _shapes,
    "nested": _nested,
    "one tensor": lambda: paddle.rand([2, 3]),
    "list": lambda: [paddle.rand([2]), paddle.rand([3])],
    "arrays": lambda: {"a": np.float32([1, 2]), "b": {"c": np.int64([[3]])}},
    "dense tensor": lambda: [_dense()],
    "empty": dict,
    "text": lambda: {"a": "b" * 300, "c": ["d" * 3000, ""], "f": "\n\x00é"},
}


def assert_same(got, wanted):
    """Types, names, dtypes and bits. Names that Paddle makes up at loading are not compared."""
    assert type(got) is type(wanted)
    if isinstance(wanted, paddle.Tensor):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.numpy().tobytes() == wanted.numpy().tobytes()
        assert got.name == wanted.name or wanted.name.startswith("generated_tensor")
    elif isinstance(wanted, np.ndarray):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes()
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted):
            assert_same(a, b)
    else:
        assert got == wanted


@pytest.mark.filterwarnings("ignore:The input state dict is empty")
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", list(GOOD))
def test_reads_as_paddle_does(tmp_path, name, protocol):
    path = str(tmp_path / "file.pdparams")
    paddle.save(GOOD[name](), path, protocol=protocol)
    assert_same(reader.load(path), paddle.load(path))
    arrays = reader.load(path, return_numpy=True)
    assert_same(arrays, paddle.load(path, return_numpy=True))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_spellings_of_numpy(tmp_path, module):
    path = tmp_path / "file.pdparams"
    content = pickle.dumps({"w": np.float32([[1, 2], [3, 4]]), "s": np.float64(3)}, protocol=2)
    now = np.array(0).__reduce__()[0].__module__.encode()
    assert now in content
    path.write_bytes(content.replace(now, module.encode()))
    out = reader.load(path, return_numpy=True)
    assert_same(out, {"w": np.float32([[1, 2], [3, 4]]), "s": np.float64(3)})


def test_files_of_python_2(tmp_path):
    """Their text is bytes, and so are the bytes of arrays."""
    path = tmp_path / "file.pdparams"
    text = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x02"
    state = b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
    state += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    array = text + state + struct.pack("<2f", 1.5, -2.0) + b"tb"
    path.write_bytes(b"\x80\x02}(U\x01w" + array + b"U\x05againh\x02u.")
    expected = {"w": np.float32([1.5, -2]), "again": np.float32([1.5, -2])}
    assert_same(reader.load(path, return_numpy=True), expected)
    assert_same(paddle.load(str(path), return_numpy=True), expected)


def test_other_byte_orders_and_layouts(tmp_path):
    path = tmp_path / "file.pdparams"
    value = {"big": np.arange(4, dtype=">i4"), "columns": np.asfortranarray(np.eye(2, 3))}
    path.write_bytes(pickle.dumps(value, protocol=4))
    out = reader.load(path, return_numpy=True)
    assert_same(out["big"], np.arange(4, dtype=np.int32))
    assert out["columns"].tolist() == np.eye(2, 3).tolist()
    assert all(array.flags.writeable and array.flags.aligned for array in out.values())


def test_large_tensors_in_parts(tmp_path):
    """Protocol 2 and 3 cut tensors of 1 GB; the form of the file, on a small one."""
    path = tmp_path / "file.pdparams"
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    info = {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}
    parts = {"w@@.0": whole.ravel()[:4], "w@@.1": whole.ravel()[4:]}
    content = {**parts, "b": np.ones(1), "StructuredToParameterName@@": {"w": "conv_0.w_0"}}
    path.write_bytes(pickle.dumps({**content, "UnpackBigParamInfor@@": info}, protocol=2))
    assert_same(reader.load(path), paddle.load(str(path)))
    assert reader.load(path)["w"].name == "conv_0.w_0"
    info["w"]["slices"].append("w@@.1")
    path.write_bytes(pickle.dumps({**content, "UnpackBigParamInfor@@": info}, protocol=2))
    with pytest.raises(UserError, match="parts"):
        reader.load(path)


# ----------------------------------------------------------------------------------- damaged files


def test_every_truncation_is_one_clear_error(tmp_path):
    path = tmp_path / "cut.pdparams"
    paddle.save({**_net().state_dict()}, str(path))
    content = path.read_bytes()
    for end in [*range(400), *range(400, len(content), 37)]:
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"cut\.pdparams"):
            reader.load(path)


def test_changed_bytes_raise_nothing_else(tmp_path):
    """Whatever is done to a file, the outcome is a value or a UserError."""
    path = tmp_path / "file.pdparams"
    rng = np.random.default_rng(3)
    texts = []
    for protocol in (2, 4):
        paddle.save({**_nested(), **_shapes()}, str(path), protocol=protocol)
        content = path.read_bytes()
        for _ in range(1500):
            changed = bytearray(content)
            for place in rng.integers(0, len(content), rng.integers(1, 4)):
                changed[place] = rng.integers(256)
            path.write_bytes(bytes(changed))
            try:
                reader.load(path, return_numpy=True)
            except UserError as error:
                texts.append(str(error))
    assert len(texts) > 100
    for text in texts:
        assert str(path) in text
        assert "\n" not in text
        assert len(text) < len(str(path)) + 500


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    class Odd:
        def __reduce__(self):
            return np.dtype, ("f\n4\x1b",)

    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps({"w": Odd()}, protocol=2))
    with pytest.raises(UserError, match=r"the type f\\n4\\x1b") as caught:
        reader.load(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", [tuple(range(9)), 1 << 2000, (1, 1 << 2000)])
def test_long_keys_are_refused(key, tmp_path):
    """A key of n parts in m tables would be hashed in n * m steps."""
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps([{key: 1}, {key: 2}], protocol=2))
    with pytest.raises(UserError, match="too long for a key"):
        reader.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        reader.load(tmp_path / "none.pdparams")


def test_no_name_means_what_python_means():
    """The table of names holds functions of this package alone, and no type but stand-ins."""
    from paddleseg_deeplab.utils.safe_pickle import names

    for name, call in names.CALLS.items():
        assert call is None or call.__module__ == names.__name__, name
    assert machine.run(b"\x80\x04cbuiltins\neval\n.") is not eval

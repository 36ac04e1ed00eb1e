# SPDX-License-Identifier: Apache-2.0
"""docs/paddle_quirks.md against the code, and the faults themselves where a CPU shows them.

A fault that is mended makes its test here pass, which is then reported (XPASS, or a failure)."""

import re
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from places import ROOT

PACKAGE = ROOT / "paddleseg_deeplab"
TEXT = (ROOT / "docs" / "paddle_quirks.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S))
TAG = re.compile(r"paddle_quirks: (\w+)")
REASON = "a fault of Paddle's, see docs/paddle_quirks.md"
fault = pytest.mark.xfail(strict=True, raises=AssertionError, reason=REASON)


def tagged(folder):
    """Tag to the files of a folder that have it."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for tag in TAG.findall(path.read_text(encoding="utf-8")):
            found.setdefault(tag, set()).add(path.relative_to(folder).as_posix())
    return found


def test_every_tag_is_told_where_it_stands():
    told = {tag: set(re.findall(r"`([\w/]+\.py)`", _line(tag, "Where"))) for tag in ENTRIES}
    assert tagged(PACKAGE) == told
    assert len(re.findall("^### ", TEXT, re.M)) == len(ENTRIES) > 20
    assert set(tagged(ROOT / "tests")) <= set(ENTRIES)


@pytest.mark.parametrize("tag", ENTRIES)
def test_every_fault_has_a_test(tag):
    how, path, name = re.search(
        r"\*\*(Shown|Kept) by\*\*: `([\w/.]+)::(\w+)`", ENTRIES[tag]
    ).groups()
    code = (ROOT / path).read_text(encoding="utf-8")
    test = re.search(rf"((?:^@.*\n(?:[ )].*\n)*)*)^def {name}\(", code, re.M)
    assert test, name
    assert ("xfail" in test[1] or "@fault" in test[1]) == (how == "Shown")


@pytest.mark.parametrize("tag", ENTRIES)
def test_every_fault_is_told_whole(tag):
    for name in ("Paddle", "Symptom", "Done here", "Where"):
        assert _line(tag, name)


def _line(tag, name):
    found = re.search(rf"^- \*\*{name}\*\*: (.*?)(?=^- |\Z)", ENTRIES[tag], re.M | re.S)
    return found[1].strip() if found else ""


# -- the faults ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cpu():
    before = paddle.get_device()
    paddle.set_device("cpu")
    yield
    paddle.set_device(before)


@fault
def test_cross_entropy_limit():
    loss = F.cross_entropy(paddle.to_tensor([[0.0, 1000.0]]), paddle.to_tensor([0]))
    assert float(loss) == pytest.approx(1000)


@fault
def test_relu_hides_nan():
    assert np.isnan(F.relu(paddle.to_tensor([np.nan], "float32")).numpy()).all()


@fault
def test_batch_norm_of_one_value():
    assert nn.BatchNorm2D(1)(paddle.full([1, 1, 1, 1], 3.0)).item() == 0


@fault
def test_nhwc_batch_norm():
    x = np.random.default_rng(0).standard_normal((4, 256, 256, 2)).astype("float32") + 0.5
    norm = nn.BatchNorm2D(2, momentum=0.0, data_format="NHWC")
    norm(paddle.to_tensor(x))
    np.testing.assert_allclose(norm._variance, x.var((0, 1, 2), dtype="float64"), rtol=1e-5)


@fault
def test_same_padding_drops_dilation():
    same = nn.Conv2D(1, 1, 3, padding="same", dilation=4)
    plain = nn.Conv2D(1, 1, 3, padding=4, dilation=4)
    plain.set_state_dict(same.state_dict())
    x = paddle.rand([1, 1, 9, 9])
    np.testing.assert_allclose(same(x).numpy(), plain(x).numpy(), atol=1e-6)


def parameters(count):
    zero = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))
    return [paddle.create_parameter([1], "float32", attr=zero) for _ in range(count)]


@fault
def test_clip_by_group():
    first, second = parameters(2)
    optimizer = paddle.optimizer.SGD(
        1.0,
        parameters=[{"params": [first]}, {"params": [second]}],
        grad_clip=nn.ClipGradByGlobalNorm(1.0),
    )
    (3 * first + 4 * second).sum().backward()
    optimizer.step()
    assert (first.item(), second.item()) == pytest.approx((-0.6, -0.8))


@fault
def test_multi_tensor_order():
    moved = []
    for together in (False, True):
        own = parameters(3)
        optimizer = paddle.optimizer.Momentum(0.1, parameters=own, use_multi_tensor=together)
        for used in ((0, 2), (1, 2)):
            sum(own[i].sum() for i in used).backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
        moved.append([p.item() for p in own])
    assert moved[1] == pytest.approx(moved[0])


@fault
def test_tracing_drops_gradients():
    net = nn.Linear(1, 1)
    net(paddle.ones([1, 1])).sum().backward()

    def forward(x):
        return net(x)

    paddle.jit.to_static(forward, full_graph=True)(paddle.ones([1, 1]))
    assert net.weight.grad is not None


_COMPILED = """
import os
os.environ["FLAGS_use_onednn"] = "1"
import paddle
from paddle import nn

net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.MaxPool2D(2), nn.Upsample([9, 9], mode="bilinear"))


def forward(x):
    return net(x)


run = paddle.jit.to_static(forward, full_graph=True)
run(paddle.ones([1, 3, 9, 9])).sum().backward()
assert net[0].weight.grad is not None
"""


@fault
def test_compiled_with_onednn(tmp_path):
    place = tmp_path / "compiled.py"  # Paddle compiles what it can read in a file
    place.write_text(_COMPILED, encoding="utf-8")
    assert child(f"import runpy; runpy.run_path({str(place)!r})")


class Nhwc(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, bias_attr=False, data_format="NHWC")
        self.norm = nn.BatchNorm2D(4, data_format="NHWC")

    def forward(self, x):
        return self.norm(self.conv(x))


def legacy(net, shape, place):
    """Writes a network in the legacy format."""
    net.eval()
    spec = [paddle.static.InputSpec(shape, "float32")]
    with paddle.pir_utils.DygraphOldIrGuard():
        paddle.jit.save(paddle.jit.to_static(net, input_spec=spec, full_graph=True), str(place))


@pytest.mark.xfail(strict=True, raises=(AssertionError, ValueError), reason=REASON)
def test_nhwc_fold(tmp_path):
    from paddle import inference

    net = Nhwc()
    legacy(net, [None, 8, 8, 3], tmp_path / "n")
    config = inference.Config(str(tmp_path / "n.pdmodel"), str(tmp_path / "n.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    x = np.ones((1, 8, 8, 3), np.float32)
    [y] = predictor.run([paddle.to_tensor(x)])
    np.testing.assert_allclose(y.numpy(), net(paddle.to_tensor(x)).numpy(), atol=1e-5)


def child(code):
    """Whether a Python of its own lives to the end of the code."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


_OPEN = """
from paddle import inference
try:
    inference.create_predictor(inference.Config("{0}.pdmodel", "{0}.pdiparams"))
except Exception:
    pass
"""


@fault
def test_damaged_program(tmp_path):
    place = tmp_path / "n"
    legacy(nn.Conv2D(3, 4, 3), [None, 3, 8, 8], place)
    (tmp_path / "n.pdmodel").write_bytes(b"x" * 50)
    assert child(_OPEN.format(place.as_posix()))


_SCALE = """
import paddle


class Half(paddle.nn.Layer):
    def forward(self, x):
        return paddle.nn.functional.interpolate(x, scale_factor=0.75, mode="bilinear")


net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 3, 1), Half())
spec = paddle.static.InputSpec([None, 3, None, None], "float32")
paddle.onnx.export(net, "{}", input_spec=[spec])
"""


@fault
def test_scale_factor_in_onnx(tmp_path):
    pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
    assert child(_SCALE.format((tmp_path / "n").as_posix()))

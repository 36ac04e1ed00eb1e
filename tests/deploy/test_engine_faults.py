# SPDX-License-Identifier: Apache-2.0
"""What engines do where something fails or is too small, and what a run with them holds."""

import contextlib
import importlib
import os
import weakref
from importlib.util import find_spec

import numpy as np
import paddle
import pytest
from engine_cases import TOL, Photos, trained
from stub_backbone import StubBackbone

from paddleseg_deeplab import registry
from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.stream import NetworkSettings, engine_for
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets.shapes import Shapes
from paddleseg_deeplab.deploy import engine
from paddleseg_deeplab.deploy.compare import ExportMismatch
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.engine import Engine, open_engine
from paddleseg_deeplab.deploy.runtimes import SmallInputError
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.forward import evaluation_mode, infer_logits
from paddleseg_deeplab.prediction.batching import automatic_workers, workers_for, write_behind
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils.errors import UserError

# The package gives its function under the module's name.
predict_module = importlib.import_module("paddleseg_deeplab.core.predict")
val = importlib.import_module("paddleseg_deeplab.core.val")


@pytest.fixture(scope="module")
def model():
    return trained()


class Broken:
    name = "Broken"

    def run(self, batch):
        raise RuntimeError("no kernel")


def test_a_runtime_that_fails_later(model, caplog):
    image = Photos()[0]["img"][None]
    caplog.set_level("WARNING")
    with evaluation_mode(model), paddle.no_grad():
        expected = infer_logits(model, paddle.to_tensor(image)).numpy()
        np.testing.assert_array_equal(
            Engine(model, Broken(), falls_back=True).logits(image), expected
        )
    with pytest.raises(UserError, match=r"Broken, fp32 failed: no kernel\. Use --engine dygraph\."):
        Engine(model, Broken()).logits(image)


class SmallOnes:
    """As `OpenvinoRuntime` with inputs that are too small; counts."""

    name, runs = "SmallOnes", 0

    def run(self, batch):
        if batch.shape[2] < 35:
            raise SmallInputError("too small")
        self.runs += 1
        return np.zeros((len(batch), 3, *batch.shape[2:]), np.float32)


@pytest.mark.parametrize("falls_back", [True, False])
def test_small_batches_alone_go_through_dygraph(model, falls_back, caplog):
    found = Engine(model, SmallOnes(), falls_back=falls_back)
    small, large = (Photos()[i]["img"][None] for i in (0, 1))
    caplog.set_level("WARNING")
    with evaluation_mode(model), paddle.no_grad():
        expected = infer_logits(model, paddle.to_tensor(small)).numpy()
        for images, logits in ((large, 0), (small, expected), (small, expected), (large, 0)):
            np.testing.assert_array_equal(
                found.logits(images), np.broadcast_to(logits, [1, 3, *images.shape[2:]])
            )
    assert found._runtime.runs == 2
    [line] = [record.getMessage() for record in caplog.records]
    assert "33 x 47 pixels" in line


def test_nothing_stays_on_disk(model, monkeypatch, tmp_path):
    monkeypatch.setattr(engine.tempfile, "mkdtemp", lambda **_: str(tmp_path / "folder"))
    monkeypatch.setattr(engine, "_exported", lambda *a: os.mkdir(a[-1]))
    for name in ("posix", "nt"):
        with monkeypatch.context() as patch:
            patch.setattr(engine.os, "name", name)
            opened = open_engine(model, Photos()[0]["img"], "paddle")
            opened.__enter__()
        # A signal may end the process from here on; on Windows a runtime may hold the files open.
        assert (tmp_path / "folder").exists() == (name == "nt")
        opened.__exit__(None, None, None)
        assert not (tmp_path / "folder").exists()


def test_messages_tell_nothing_of_files_that_nobody_asked_for(model, monkeypatch):
    def mismatch(*_, **__):
        raise ExportMismatch("A logit differs.", "Nothing was written. Try another --format.")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    image = Photos()[0]["img"]
    monkeypatch.setattr(engine, "_written", lambda *_: None)
    monkeypatch.setattr(engine, "_opened", mismatch)
    with pytest.raises(
        UserError, match=r"^--engine paddle: A logit differs\. Or use --engine dygraph"
    ):
        open_engine(model, image, "paddle").__enter__()
    monkeypatch.setattr(engine, "_written", full)
    with pytest.raises(UserError, match=r"No space left.*TMPDIR names another folder"):
        open_engine(model, image, "paddle").__enter__()


def test_what_cannot_run_is_told_before_the_export(model, monkeypatch):
    monkeypatch.setattr(engine, "write_network", lambda *_: pytest.fail("exported"))
    image = Photos()[0]["img"]
    nhwc = DeepLabV3P(3, StubBackbone("NHWC"), (0, 2), (1, 2), 16, data_format="NHWC")
    with pytest.raises(UserError, match=r"--engine paddle: .*NCHW.*dygraph"):
        open_engine(nhwc, image, "paddle").__enter__()

    def no_bf16(precision):
        raise UserError(f"no {precision} here")

    monkeypatch.setattr(engine, "openvino_core", no_bf16)
    with pytest.raises(UserError, match="no bf16 here"):
        open_engine(model, image, "openvino", precision="bf16").__enter__()


class Rounding:
    """Runs the network itself, a little wrong; remembers what it was opened for."""

    name, opened = "Rounding", []

    def __init__(self, model, settings, wrong):
        self.opened.append(settings.precision)
        self.model = model
        self.wrong = wrong

    def run(self, batch):
        logits = infer_logits(self.model, paddle.to_tensor(batch)).numpy()
        return logits + np.float32(self.wrong * np.abs(logits).max()) * (logits > logits.mean())


@pytest.fixture
def rounding(model, monkeypatch):
    """Opens runtimes that are wrong by a share of the largest logit, one for each precision."""
    wrong = {"fp32": 0.0, "bf16": 0.05}
    monkeypatch.setattr(Rounding, "opened", [])
    monkeypatch.setattr(
        engine, "_written", lambda model, *_: DeployInfo("legacy", [None] * 4, "none")
    )
    monkeypatch.setattr(engine, "_check_runtime", lambda *_: None)
    monkeypatch.setattr(
        engine,
        "open_runtime",
        lambda _, settings: Rounding(model, settings, wrong[settings.precision]),
    )
    return wrong


def test_a_wrong_runtime_is_a_warning(model, rounding, caplog):
    rounding["fp32"] = 0.05
    caplog.set_level("WARNING")
    with open_engine(model, Photos()[0]["img"], "auto", pixels=1e9) as network:
        assert network is model
    assert "max_abs_logits_difference is " in caplog.text
    with pytest.raises(UserError, match=r"^--engine paddle: .*differs.*is allowed.*dygraph\.$"):
        open_engine(model, Photos()[0]["img"], "paddle").__enter__()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_compared_is_what_runs(model, rounding, precision, caplog):
    """Rounding to bf16 is told, not judged: the float32 of the same runtime is."""
    caplog.set_level("INFO")
    with open_engine(model, Photos()[0]["img"], "openvino", precision=precision) as found:
        assert isinstance(found, Engine)
        assert Rounding.opened == ["fp32", "bf16"][: 1 + (precision == "bf16")]
    assert ("rounding changes the class of " in caplog.text) == (precision == "bf16")
    rounding["fp32"] = 0.05
    with pytest.raises(UserError, match=r"--engine openvino: .*differs"):
        open_engine(model, Photos()[0]["img"], "openvino", precision=precision).__enter__()


@pytest.mark.parametrize("count", [1, 5])
def test_the_whole_set_counts_on_every_rank(model, monkeypatch, count, tmp_path):
    """A rank that has a share of the images decides as one process would."""
    asked = []

    class Stop(Exception):
        pass

    def record(model, samples, count, *_):
        asked.append(count)
        raise Stop

    class Ranks:
        rank, size, is_main = 1, 3, False

        def guard(self):
            return contextlib.nullcontext()

    for module in (val, predict_module):
        monkeypatch.setattr(module, "join", Ranks)
        monkeypatch.setattr(module, "engine_for", record)
    with pytest.raises(Stop):
        evaluate(model, Photos(count=count), progress=False)
    paths = [str(tmp_path / f"{i}.png") for i in range(count)]
    with pytest.raises(Stop):
        predict(model, None, Compose([]), paths, progress=False)
    assert asked == [count] * 2


def test_the_first_sample_is_let_go(model):
    held = []

    def samples():
        for i in range(3):
            image = Photos()[i]["img"].copy()
            held.append(weakref.ref(image))
            yield {"img": image}

    with engine_for(model, samples(), 3, NetworkSettings()) as (_, rest):
        next(rest)
        next(rest)
        assert held[0]() is None


class OwnSet(Photos):
    pass


def test_threads_are_for_what_is_known():
    """Users' own datasets and transforms are called from one thread, unless they ask for more."""

    class Own(Normalize):
        pass

    known = Shapes(transforms=[Normalize()], mode="val")
    assert workers_for(known) == automatic_workers() > 0
    assert workers_for(Shapes(transforms=[Own()], mode="val")) == 0
    assert workers_for(OwnSet()) == 0
    assert workers_for(OwnSet(), 3) == 3
    assert workers_for(predict_module._Images(Compose([Normalize()]))) == automatic_workers()
    assert workers_for(predict_module._Images(Compose([Own()]))) == 0


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_after_a_tiny_image():
    """ResNet_vd's average pools make empty maps of a side of 1; OpenVINO gave its last output."""
    paddle.seed(0)
    backbone = registry.BACKBONES["ResNet18_vd"](output_stride=16)
    net = DeepLabV3P(5, backbone, aspp_out_channels=16)
    net.eval()
    rng = np.random.default_rng(0)
    images = [
        rng.standard_normal((1, 3, *size), np.float32)
        for size in [(48, 64), (7, 10), (48, 64), (31, 64), (7, 10), (1, 1), (32, 32), (48, 64)]
    ]
    with open_engine(net, images[0][0], "openvino") as found, paddle.no_grad():
        expected = [infer_logits(net, paddle.to_tensor(image)).numpy() for image in images]
        for image, wanted in zip(images, expected):
            np.testing.assert_allclose(found.logits(image), wanted, atol=TOL * abs(wanted).max())
        for scales in ([0.15], [1.0, 0.15], [0.5]):
            wanted = np.asarray(infer.aug_probabilities(net, images[0], scales))
            got = infer.aug_probabilities(found, images[0], scales)
            np.testing.assert_allclose(got, wanted, atol=TOL)


@pytest.mark.parametrize(("outputs", "most"), [(["raw", "prob"], 1), (["raw"], 8)])
def test_results_with_probabilities_do_not_pile_up(outputs, most):
    """Each is written before the next is made; without them the threads hold labels alone."""
    made, got = [], []

    def results():
        for i in range(8):
            made.append(i)
            yield i, "labels", "probabilities"

    for sample, _, probabilities in write_behind(lambda r: r, results(), outputs, 2):
        got.append(sample)
        assert len(made) <= len(got) - 1 + most
        assert probabilities == ("probabilities" if "prob" in outputs else None)
    assert got == list(range(8))

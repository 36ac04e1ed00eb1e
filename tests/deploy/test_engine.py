# SPDX-License-Identifier: Apache-2.0
"""Exported engines in evaluation and prediction: the same results as dygraph, or dygraph itself."""

import importlib
import sys
from importlib.util import find_spec

import numpy as np
import paddle
import pytest
from engine_cases import TOL, Photos, trained
from paddle import nn
from PIL import Image
from stub_backbone import StubBackbone

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.deploy import engine
from paddleseg_deeplab.deploy.engine import Engine, check_engine, open_engine, pixels_to_run
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.transforms import Compose, ResizeByLong
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError

# The package gives its function under the module's name.
predict_module = importlib.import_module("paddleseg_deeplab.core.predict")
val = importlib.import_module("paddleseg_deeplab.core.val")


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def exported(model):
    with open_engine(model, Photos()[1]["img"], "paddle") as found:
        yield found


def differ_only_where_logits_tie(model, image, mine, theirs):
    with paddle.no_grad():
        logits = np.sort(infer_logits(model, paddle.to_tensor(image[None])).numpy()[0], axis=0)
    margin = logits[-1] - logits[-2]
    assert margin[mine != theirs].max(initial=0) <= 2 * TOL
    assert (margin > 2 * TOL).mean() > 0.99  # the comparison says something


def test_logits_and_labels_are_those_of_dygraph(model, exported):
    assert isinstance(exported, Engine)
    assert exported.name.startswith("Paddle Inference")
    data = Photos()
    for i in (0, 1, 2):
        image = data[i]["img"]
        with paddle.no_grad():
            expected = infer_logits(model, paddle.to_tensor(image[None])).numpy()
        got = exported.logits(image[None])
        np.testing.assert_allclose(got, expected, atol=TOL)
        [mine], [scores] = infer.inference(exported, image[None], [], return_scores=True)
        assert scores.shape == (3, *image.shape[1:])
        [theirs], _ = infer.inference(model, paddle.to_tensor(image[None]), [])
        differ_only_where_logits_tie(model, image, mine, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 1, "num_workers": 2},
        {"aug_eval": True, "scales": [0.75, 1.0, 1.5], "flip_horizontal": True},
        {"is_slide": True, "crop_size": (32, 24), "stride": (20, 16)},
        {"aug_eval": True, "scales": 1.25, "is_slide": True, "crop_size": 32, "stride": 32},
    ],
)
@pytest.mark.parametrize("transforms", [(), (ResizeByLong(64),)])
def test_evaluation(model, exported, monkeypatch, transforms, settings):
    data = Photos(transforms)
    options = {"print_detail": False, "progress": False, "batch_size": None, **settings}
    expected = evaluate(model, data, **options)
    monkeypatch.setattr(engine, "_exported", lambda *_: exported)  # once is enough
    got = evaluate(model, data, engine="paddle", **options)
    # Of 12,000 pixels a few may tie; the mean of three IoUs moves by 1e-4 for each at most.
    moved = np.abs(got.confusion.matrix - expected.confusion.matrix).sum() / 2
    assert moved <= 3
    assert abs(got.miou - expected.miou) <= 1e-4 * max(moved, 0)
    assert [r["index"] for r in got.records] == list(range(len(data)))


def test_prediction(model, tmp_path):
    data = Photos()
    for i, image in enumerate(data.images):
        visualize.save_image(tmp_path / "in" / f"{i}.png", image)
    paths = [str(tmp_path / "in" / f"{i}.png") for i in range(len(data))]
    found = {}
    for kind, workers in (("dygraph", 0), ("paddle", 2)):
        out = str(tmp_path / kind)
        options = {"outputs": ["raw"], "progress": False, "num_workers": workers, "engine": kind}
        result = predict(model, None, data.transforms, paths, save_dir=out, **options)
        assert list(result.written) == paths
        found[kind] = [np.asarray(Image.open(f["raw"])) for f in result.written.values()]
    for i, (mine, theirs) in enumerate(zip(found["paddle"], found["dygraph"])):
        differ_only_where_logits_tie(model, data[i]["img"], mine, theirs)


class NotFinite:
    name = "NotFinite"

    def run(self, batch):
        return np.full((len(batch), 3, *batch.shape[2:]), np.nan, np.float32)


def test_not_finite_is_found_and_named(model):
    images = np.zeros((1, 3, 40, 56), np.float32)
    found = Engine(model, NotFinite())
    with pytest.raises(UserError, match=r"photo: .*NaN"):
        infer.inference(found, images, [], names=["photo"])
    with pytest.raises(UserError, match=r"photo: .*NaN"):
        infer.aug_inference(found, images, [], [1.0, 1.5], names=["photo"])


@pytest.mark.parametrize("kind", ["auto", "dygraph", "paddle"])
def test_weights_that_are_not_finite(model, kind):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.parameters()[-1].set_value(model.parameters()[-1] * float("nan"))
        with pytest.raises(UserError, match=r"weights of this DeepLabV3P are not finite: 1 of"):
            open_engine(model, Photos()[0]["img"], kind, pixels=1e9).__enter__()
    finally:
        model.set_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, (10, 20)), 600),
        ((3, (10, 20), True, {}), 600),
        ((3, (10, 20), False, {"scales": [2.0]}), 600),
        ((3, (10, 20), True, {"scales": [0.5, 2.0]}), 600 * 4.25),
        ((3, (10, 20), True, {"scales": 2.0, "flip_horizontal": True}), 600 * 8),
        ((1, (10, 20), True, {"flip_horizontal": True, "flip_vertical": True}), 800),
        ((0, (10, 20)), 0),
    ],
)
def test_work(arguments, expected):
    assert pixels_to_run(*arguments) == expected


def test_automatic_exports_where_it_pays(model, monkeypatch):
    tried = []
    monkeypatch.setattr(engine, "_exported", lambda *_: tried.append(1))
    sample = Photos()[0]["img"]
    enough = engine.EXPORT_PIXELS
    with open_engine(model, sample, "auto", pixels=enough - 1) as network:
        assert network is model
    with open_engine(model, None, "auto", pixels=enough) as network:
        assert network is model
    with open_engine(model, sample, "auto", pixels=enough, precision="fp16") as network:
        assert network is model
    nhwc = DeepLabV3P(3, StubBackbone("NHWC"), (0, 2), (1, 2), 16, data_format="NHWC")
    with open_engine(nhwc, sample, "auto", pixels=enough) as network:
        assert network is nhwc
    with monkeypatch.context() as patch:
        patch.setattr(paddle, "get_device", lambda: "gpu:0")
        with open_engine(model, sample, "auto", pixels=enough) as network:
            assert network is model
    assert not tried
    with open_engine(model, sample, "auto", pixels=enough) as network:
        assert network is model  # nothing worked
    assert tried


class NoGraph(nn.Layer):
    """A network that leaves Paddle on its way, which no export can hold."""

    def forward(self, x):
        return [paddle.to_tensor(x.numpy() / 2)]


def test_what_cannot_be_exported_runs_in_dygraph():
    sample = Photos()[0]["img"]
    net = NoGraph()
    with open_engine(net, sample, "auto", pixels=1e9) as network:
        assert network is net
    with pytest.raises(UserError, match=r"--engine paddle: .*--engine dygraph") as error:
        open_engine(net, sample, "paddle").__enter__()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "precision", "match"),
    [
        ("torch", "fp32", "use one of"),
        ("auto", "bf16", "--engine openvino"),
        ("paddle", "bf16", "openvino has bf16"),
        ("openvino", "fp16", "openvino has bf16"),
    ],
)
def test_bad_engines(model, kind, precision, match):
    with pytest.raises(UserError, match=match):
        check_engine(kind, precision)
    with pytest.raises(UserError, match=match):
        evaluate(model, Photos(), engine=kind, precision=precision)
    with pytest.raises(UserError, match=match):
        predict(model, None, Compose([]), ["a.png"], engine=kind, precision=precision)


def test_engines_are_for_a_cpu(monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    with pytest.raises(UserError, match="for a CPU"):
        check_engine("openvino")
    check_engine("auto", "bf16")
    check_engine("dygraph", "fp16")


def test_an_engine_that_is_missing_is_an_error(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails
    opened = open_engine(model, Photos()[0]["img"], "openvino")
    with pytest.raises(UserError, match="openvino"), opened:
        pass


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino(model):
    image = Photos()[0]["img"]
    with open_engine(model, image, "openvino") as found:
        got = found.logits(image[None])
    with paddle.no_grad():
        expected = infer_logits(model, paddle.to_tensor(image[None])).numpy()
    np.testing.assert_allclose(got, expected, atol=TOL)

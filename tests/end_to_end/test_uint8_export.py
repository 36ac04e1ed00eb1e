# SPDX-License-Identifier: Apache-2.0
"""Exports that take uint8 pictures, beside the plain ones: formats, runtimes, C++, PaddleX."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from paddle import nn
from places import ROOT

from paddleseg_deeplab.deploy import deploy_yaml, inferer
from paddleseg_deeplab.deploy import export as exporting
from paddleseg_deeplab.deploy.deploy_yaml import DeployFacts
from paddleseg_deeplab.deploy.export import ExportMismatch, PictureInput, export
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import FORMATS, RuntimeSettings
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.transforms import functional

VALUES = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NORMALIZE = {"type": "Normalize", **VALUES}
CLASSES = 5
PICTURE = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8), (97, 65)
)  # BGR, smooth
RUNTIMES = [*((form, "auto") for form in FORMATS), ("legacy", "openvino"), ("onnx", "openvino")]


class Tiny(nn.Layer):
    """Real batch norm, of settled statistics, and logits of order one from colours and edges."""

    def __init__(self):
        super().__init__()
        paddle.seed(1)
        self.conv = nn.Conv2D(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2D(16)
        self.head = nn.Conv2D(16, CLASSES, 1)
        x = functional.to_planes(functional.normalize(PICTURE, **VALUES))[None]
        for _ in range(40):
            self(paddle.to_tensor(x))

    def forward(self, x):
        return [self.head(nn.functional.relu(self.norm(self.conv(x))))]


@pytest.fixture(scope="module")
def model():
    return Tiny()


def needs(form, runtime):
    if form == "onnx":
        pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")


def exported(model, folder, form, **facts):
    """An export that takes bytes, made as export.py makes it."""
    sample = PICTURE[..., ::-1].transpose(2, 0, 1).astype(np.float32)
    facts = DeployFacts(**{"normalize": VALUES, **facts})
    return export(model, str(folder), sample=sample, format=form, facts=facts)


@pytest.mark.parametrize(("form", "runtime"), RUNTIMES)
def test_bytes_give_what_the_plain_export_gives(form, runtime, model, tmp_path):
    needs(form, runtime)
    exported(model, tmp_path / "bytes", form)
    plain = functional.normalize(PICTURE[..., ::-1].astype(np.float32), **VALUES)
    sample = functional.to_planes(plain)
    export(
        model,
        str(tmp_path / "plain"),
        sample=sample,
        format=form,
        facts=DeployFacts(transforms=[NORMALIZE]),
    )
    path = str(tmp_path / "p.png")
    cv2.imwrite(path, PICTURE)
    found = []
    for name in ("bytes", "plain"):
        info = deploy_yaml.read(tmp_path / name)
        images = restore.prepare(path, inferer.build_compose(info))["img"][None]
        images = np.concatenate([images, images[..., ::-1]])
        found.append(open_runtime(info, RuntimeSettings(runtime=runtime)).outputs(images, (0, 1)))
    (labels, logits), (usual_labels, usual) = found
    assert np.unique(usual_labels).size > 2
    # Logits of order 10 from sums of 27 and 16 products: float32 (6e-8 of each) leaves 1e-5.
    np.testing.assert_allclose(logits, usual, rtol=0, atol=1e-4)
    assert (labels != usual_labels).sum() <= 1  # a tie but for rounding


def test_a_wrong_normalize_inside_is_refused(model, tmp_path, monkeypatch):
    class Wrong(PictureInput):
        def __init__(self, network, channels, normalize):
            super().__init__(network, channels, {**normalize, "mean": [0.5]})

    monkeypatch.setattr(exporting, "PictureInput", Wrong)
    with pytest.raises(ExportMismatch, match="differs from the trained one"):
        exported(model, tmp_path / "o", "legacy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["pir", "legacy"])
def test_a_folder_for_paddlex(form, model, tmp_path):
    """Read as PaddleX 3.7 reads it: inference.yml, the files beside it, one output of labels."""
    plain = functional.to_planes(functional.normalize(PICTURE[..., ::-1], **VALUES))
    facts = DeployFacts(transforms=[NORMALIZE], program="paddlex")
    folder = tmp_path / "o"
    export(model, str(folder), sample=plain, format=form, facts=facts)
    assert sorted(path.name for path in folder.iterdir()) == [
        "deploy.yaml",
        *(["inference.json"] if form == "pir" else []),
        "inference.pdiparams",
        *(["inference.pdmodel"] if form == "legacy" else []),
        "inference.yml",
    ]
    steps = yaml.safe_load((folder / "inference.yml").read_text())["Deploy"]["transforms"]
    assert [step.pop("type") for step in steps] == ["Normalize"]
    image = PICTURE[..., ::-1].astype(np.float32) / 255
    image = (image - np.float32(steps[0]["mean"])) / np.float32(steps[0]["std"])
    config = paddle.inference.Config(
        str(folder / f"inference.{'json' if form == 'pir' else 'pdmodel'}"),
        str(folder / "inference.pdiparams"),
    )
    config.disable_glog_info()
    config.disable_onednn()
    predictor = paddle.inference.create_predictor(config)
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.copy_from_cpu(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
    predictor.run()
    assert len(predictor.get_output_names()) == 1
    labels = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    expected = masks(folder, tmp_path)[None]
    assert (labels.shape, labels.dtype) == (expected.shape, np.int32)
    assert (labels != expected).sum() <= 1
    export(model, str(folder), sample=plain, format=form)
    assert not list(folder.glob("inference.*")), "files of the earlier export are left"


def masks(folder, place, runtime="auto"):
    """The mask that infer makes of the picture."""
    cv2.imwrite(str(place / "p.png"), PICTURE)
    settings = RuntimeSettings(runtime=runtime)
    network = inferer.Inferer(deploy_yaml.read(folder), settings)
    return next(iter(inferer.results(network, [str(place / "p.png")], [])))[1]


@pytest.mark.slow
def test_the_cpp_program_writes_the_mask_that_infer_writes(model, tmp_path):
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    folder, build = tmp_path / "o", tmp_path / "build"
    info = exported(model, folder, "legacy")
    place = Path(openvino.__path__[0]) / "cmake"
    subprocess.run(
        ["cmake", "-S", ROOT / "deploy/cpp", "-B", build, f"-DOpenVINO_DIR={place}"], check=True
    )
    subprocess.run(["cmake", "--build", build], check=True)
    picture, mask = tmp_path / "p.ppm", tmp_path / "m.pgm"
    cv2.imwrite(str(picture), PICTURE)
    command = [build / "segment", info.model_path, picture, mask]
    subprocess.run(command, check=True)
    np.testing.assert_array_equal(
        cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), masks(folder, tmp_path, "openvino")
    )
    picture.write_bytes(picture.read_bytes()[:500])
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr == f"{picture}: ends too early.\n"

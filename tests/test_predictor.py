# SPDX-License-Identifier: Apache-2.0
"""Predictor: every kind of picture in every runtime, streams, threads, and what cannot work."""

import importlib.util
import io
import pathlib
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import paddle
import pytest
import yaml
from engine_cases import Photos, trained
from PIL import Image
from places import ROOT

import paddleseg_deeplab
from paddleseg_deeplab import Predictor
from paddleseg_deeplab.cli import infer as cli_infer
from paddleseg_deeplab.deploy.deploy_yaml import DeployFacts
from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.prediction.result import Result
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils.errors import UserError

NAMES = ("sky", "road", "car")
PALETTE = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142]], np.uint8)
RUNTIMES = ("paddle", "onnxruntime", "openvino")
FOLDERS = {"paddle": "legacy", "openvino": "legacy", "onnxruntime": "onnx"}


@pytest.fixture(scope="module")
def network():
    return trained()


@pytest.fixture(scope="module")
def folders(network, tmp_path_factory):
    """Exports of one network, as they are asked for; kept for the whole file."""
    place, made = tmp_path_factory.mktemp("exports"), {}

    def get(form="legacy", **settings):
        key = form + "".join(map(str, settings.values()))
        if key not in made:
            if form == "onnx":
                pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
            steps = [{"type": "Normalize"}]
            facts = DeployFacts(transforms=steps, class_names=NAMES, palette=PALETTE)
            sample = Photos()[1]["img"]
            folder = str(place / key)
            export(network, folder, sample=sample, format=form, facts=facts, **settings)
            made[key] = folder
        return made[key]

    return get


@pytest.fixture(scope="module")
def predictor(folders):
    return Predictor(folders())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three pictures, RGB, and the folder of their files; two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    images = Photos(count=3).images
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"p{number}.png"), image[..., ::-1])
    return images, folder


def expected_of(network, image):
    """Labels and probabilities from the network itself and NumPy alone."""
    sample = Compose([Normalize()])({"img": image[..., ::-1]})
    with paddle.no_grad():
        logits = infer_logits(network, paddle.to_tensor(sample["img"][None])).numpy()[0]
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0), powers / powers.sum(axis=0)


def kinds_of(image, folder):
    """The same picture in each way to give it: {kind: (value, keywords)}."""
    path = folder / "p1.png"
    return {
        "path": (str(path), {}),
        "pathlib": (path, {}),
        "bytes": (path.read_bytes(), {}),
        "bytearray": (bytearray(path.read_bytes()), {}),
        "memoryview": (memoryview(path.read_bytes()), {}),
        "rgb array": (image, {}),
        "bgr array": (image[..., ::-1], {"bgr": True}),
        "float32 array": (image.astype(np.float32), {}),
        "float64 array": (image.astype(np.float64), {}),
        "Pillow": (Image.fromarray(image), {}),
        "Pillow with alpha": (Image.fromarray(image).convert("RGBA"), {}),
        "Pillow from a file": (Image.open(path), {}),
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_kind_in_every_runtime(runtime, folders, photos, network):
    if runtime != "paddle" and importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    images, folder = photos
    model = Predictor(folders(FOLDERS[runtime]), runtime=runtime)
    labels, probabilities = expected_of(network, images[1])
    assert len(np.unique(labels)) > 1, "one class alone proves nothing"
    kinds = kinds_of(images[1], folder)
    many = list(model([value for kind, (value, more) in kinds.items() if not more]))
    results = [model(value, **more) for value, more in kinds.values()] + many
    for result in results:
        assert (result.mask.dtype, result.mask.shape) == (np.int32, images[1].shape[:2])
        np.testing.assert_array_equal(result.mask, results[0].mask)
        np.testing.assert_array_equal(result.image, images[1])
    # Float32 sums in another order may swap two classes that tie: of so few pixels one.
    assert (results[0].mask != labels).sum() <= 1
    assert results[0].probabilities.dtype == np.float32
    # Logits agree within 1e-4 (see engine_cases), probabilities within half of it.
    np.testing.assert_allclose(results[0].probabilities, probabilities, rtol=0, atol=1e-4)


def test_the_same_files_as_infer(folders, photos, predictor, tmp_path):
    _, folder = photos
    kinds = ["overlay", "palette", "raw", "prob", "labelme", "labelme_polygons"]
    arguments = ["--model_dir", folders(), "--image_path", str(folder), "--device", "cpu"]
    command = [*arguments, "--save_dir", str(tmp_path / "infer"), "--outputs", *kinds]
    assert cli_infer.main(command) == 0
    for result in predictor(sorted(folder.glob("*.png")), probabilities=True):
        files = result.save(tmp_path / "own", kinds)
        assert list(files) == kinds
        for file in map(pathlib.Path, files.values()):
            same = tmp_path / "infer" / file.relative_to(tmp_path / "own")
            assert file.read_bytes() == same.read_bytes()


def test_what_a_result_offers(predictor, photos, tmp_path):
    images, folder = photos
    result = predictor(folder / "p1.png")
    assert (result.name, result.class_names) == (str(folder / "p1.png"), NAMES)
    np.testing.assert_array_equal(result.palette, PALETTE)
    shown = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown[..., ::-1], result.overlay())
    # Six tenths of the picture, four of the colours; rounding is OpenCV's.
    mixed = 0.6 * images[1] + 0.4 * PALETTE[result.mask]
    assert np.abs(result.overlay() - mixed).max() <= 0.5 + 1e-4
    assert "56x40" in repr(result)
    assert "sky" in repr(result) or "road" in repr(result)
    files = predictor(images[1]).save(tmp_path, "raw")
    assert files == {"raw": str(tmp_path / "raw_prediction" / "image.png")}
    files = result.save(tmp_path, ["raw"], name="mine")
    mask = cv2.imread(files["raw"], cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, result.mask)


def test_regions_of_a_result(predictor, photos):
    images, _ = photos
    result = predictor(images[1])
    areas = result.areas()
    assert [area.name for area in areas] == list(NAMES)
    assert [area.pixels for area in areas] == np.bincount(result.mask.ravel(), minlength=3).tolist()
    assert set(result.polygons()) == set(np.unique(result.mask).tolist())
    assert set(result.polygons([0])) <= {0}


def test_a_stream_is_read_ahead_and_no_more(predictor, photos):
    """Of a hundred pictures no more are drawn than those in work, and no result is kept."""
    images, _ = photos
    drawn, most = [], 0

    def endless():
        for number in range(100):
            drawn.append(number)
            yield images[number % 3]

    model = predictor
    singles = [model(image).mask for image in images]
    for number, result in enumerate(model(endless())):
        most = max(most, len(drawn) - number)
        assert result.name == f"image_{number}"
        np.testing.assert_array_equal(result.mask, singles[number % 3])
    assert number == 99
    # Two a thread wait, and one more is handed over.
    assert 1 < most <= 2 * model._workers + 2


def test_a_stream_may_be_left(predictor, photos):
    images, _ = photos
    before = threading.active_count()
    stream = predictor(iter(images * 5))
    next(stream)
    stream.close()
    assert threading.active_count() <= before


def test_eight_threads_and_one_predictor(predictor, photos):
    images, _ = photos
    alone = [predictor(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor, images * 16))
    for number, result in enumerate(found):
        assert result.mask.tobytes() == alone[number % 3].mask.tobytes()
        same = alone[number % 3].probabilities
        assert result.probabilities.tobytes() == same.tobytes()


def test_only_what_is_asked_for_is_copied(folders, photos, monkeypatch):
    images, folder = photos
    asked, model = [], Predictor(folders())  # an export itself asks for both
    outputs = PaddleRuntime.outputs

    def noting(self, batch, which):
        asked.append(tuple(which))
        return outputs(self, batch, which)

    monkeypatch.setattr(PaddleRuntime, "outputs", noting)
    result = model(images[0])
    left_out, [of_many] = model(images[0], probabilities=False), model([images[0]])
    [with_them] = model([images[0]], probabilities=True)
    assert asked == [(0, 1), (0,), (0,), (0, 1)]
    np.testing.assert_array_equal(with_them.probabilities, result.probabilities)
    assert with_them.probabilities is with_them.probabilities, "made once"
    for other in (left_out, of_many):
        np.testing.assert_array_equal(other.mask, result.mask)
        with pytest.raises(UserError, match="probabilities=True"):
            _ = other.probabilities
    asked.clear()
    arguments = ["--model_dir", folders(), "--image_path", str(folder / "p0.png")]
    assert cli_infer.main([*arguments, "--device", "cpu", "--save_dir", str(folder / "o")]) == 0
    assert asked == [(0,)]


def test_an_export_without_scores(folders, photos):
    images, _ = photos
    model = Predictor(folders(output_op="argmax"))
    result, [other] = model(images[0]), model([images[0]])
    np.testing.assert_array_equal(other.mask, result.mask)
    for ask in (
        lambda: result.probabilities,
        lambda: other.probabilities,
        lambda: model(images[0], probabilities=True),
        lambda: model(images, probabilities=True),
        lambda: Predictor(folders(output_op="argmax"), crf=True),
    ):
        with pytest.raises(UserError, match=r"exported with argmax.*--output_op") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_scores_that_were_resized(network, folders, photos, tmp_path):
    """Labels then come from the second output, as `predict` makes them."""
    images, _ = photos
    folder = tmp_path / "o"
    content = yaml.safe_load(pathlib.Path(folders(), "deploy.yaml").read_text())
    folder.mkdir()
    for name in ("model.pdmodel", "model.pdiparams"):
        (folder / name).write_bytes(pathlib.Path(folders(), name).read_bytes())
    steps = [{"type": "Resize", "target_size": [48, 40]}, {"type": "Normalize"}]
    content["Deploy"]["transforms"] = steps
    (folder / "deploy.yaml").write_text(yaml.safe_dump(content))
    result = Predictor(folder)(images[1])
    probabilities = result.probabilities
    assert result.mask.shape == images[1].shape[:2] == probabilities.shape[1:]
    np.testing.assert_array_equal(result.mask, probabilities.argmax(0))
    model = Predictor(folder)
    np.testing.assert_array_equal(model(images[1], probabilities=False).mask, result.mask)
    sample = model._network.load(images[1][..., ::-1].copy(), "image")
    with paddle.no_grad():
        logits = infer_logits(network, paddle.to_tensor(sample["img"][None])).numpy()[0]
    expected = restore.scores_to_labels(logits, sample["trans_info"])
    assert (result.mask != expected).sum() <= 1  # a tie but for rounding


GOOD = np.zeros((40, 50, 3), np.uint8)


def all_of(answer):
    """What is no picture may be many, whose errors come when they are drawn."""
    return answer if isinstance(answer, Result) else list(answer)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("none.png", "none.png does not exist"),
        ("", "path"),
        (b"", "no bytes"),
        (b"not a picture", "broken or of a format"),
        (GOOD.astype(np.int64), "int64.*uint8 and floats"),
        (GOOD.astype(np.uint16), "257"),
        (GOOD.astype(bool), "bool"),
        (GOOD[:, :, 0], r"\[40, 50\].*repeat a grey image"),
        (GOOD.transpose(2, 0, 1), "channels last"),
        (GOOD[None], r"array\[0\]"),
        (np.stack([GOOD, GOOD]), r"list\(array\)"),
        (np.zeros((40, 50, 4), np.uint8), "alpha"),
        (GOOD[:0], r"\[0, 50, 3\]"),
        (np.full((40, 50, 3), np.nan, np.float32), "6000 of 6000 values are NaN"),
        (np.full((40, 50, 3), np.inf), "infinite"),
        (Image.new("F", (8, 8)), "mode F"),
        (7, "int is no picture"),
        (None, "NoneType is no picture"),
    ],
    ids=lambda v: None if isinstance(v, (np.ndarray, Image.Image)) else str(v)[:20],
)
def test_a_bad_picture_is_one_line(value, words, predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        all_of(predictor(value))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=words):
        list(predictor([GOOD, value, GOOD]))
    failed = []
    found = list(predictor([GOOD, value, GOOD], on_error=lambda *each: failed.append(each)))
    assert len(found) == 2
    [(name, error)] = failed
    assert name == ("image_1" if not isinstance(value, str) else value)
    assert str(error)


def test_an_error_has_its_turn(predictor, photos):
    """Reading ahead does not lose the results of pictures before the bad one."""
    images, _ = photos
    stream = predictor([images[0], images[1], b"bad", images[2]])
    np.testing.assert_array_equal(next(stream).image, images[0])
    np.testing.assert_array_equal(next(stream).image, images[1])
    with pytest.raises(UserError, match="image_2"):
        next(stream)

    def broken():
        yield images[0]
        raise RuntimeError("the camera is gone")

    stream = predictor(broken())
    next(stream)
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(stream)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "tensorflow"}, "auto, paddle"),
        ({"runtime": "onnxruntime"}, "does not read"),
        ({"device": "gpu:99"}, "gpu:99"),
        ({"precision": "fp8"}, "fp8"),
        ({"cpu_threads": 0}, "cpu_threads"),
        ({"num_workers": -1}, "num_workers"),
        ({"crf": {"no_such": 1}}, "no_such"),
    ],
)
def test_bad_settings_are_one_line(settings, words, folders):
    with pytest.raises(UserError, match=words) as caught:
        Predictor(folders(), **settings)
    assert "\n" not in str(caught.value)


def test_bad_calls_are_one_line(predictor, tmp_path):
    with pytest.raises(UserError, match=r"export\.py wrote"):
        Predictor(tmp_path)
    with pytest.raises(UserError, match="on_error"):
        predictor(GOOD, on_error=print)
    with pytest.raises(UserError, match="coco is one file for many"):
        predictor(GOOD).save(tmp_path, ["raw", "coco"])
    with pytest.raises(UserError, match="--outputs knows"):
        predictor(GOOD).save(tmp_path, ["everything"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        predictor(GOOD).save(tmp_path / "file")
    with pytest.raises(AttributeError):
        _ = paddleseg_deeplab.predictors


def test_values_between_0_and_1_are_told_once(predictor, photos, caplog, monkeypatch):
    from paddleseg_deeplab.prediction import given

    monkeypatch.setattr(given, "_told", set())
    images, _ = photos
    for image in (images[0] / 255, images[1] / 255, np.zeros((33, 33, 3), np.float32)):
        predictor(image)
    assert caplog.text.count("between 0 and 1") == 1


def test_pictures_of_pillow_turn_and_have_16_bits(predictor, photos):
    images, _ = photos
    turned = Image.fromarray(images[1])
    turned.getexif()[0x0112] = 6  # to be shown turned by a quarter, clockwise
    content = io.BytesIO()
    turned.save(content, "PNG", exif=turned.getexif())
    again = Image.open(io.BytesIO(content.getvalue()))
    np.testing.assert_array_equal(predictor(again).image, np.rot90(images[1], -1))
    np.testing.assert_array_equal(predictor(content.getvalue()).image, np.rot90(images[1], -1))
    deep = Image.fromarray(images[1][..., 0].astype(np.uint16) * 257)
    grey = np.repeat(images[1][..., :1], 3, axis=2)
    np.testing.assert_array_equal(predictor(deep).mask, predictor(grey).mask)


def test_a_predictor_of_a_checkpoint(network, folders, photos, tmp_path):
    """The network that was trained, without an export; `network` stands for the built one."""
    images, folder = photos
    config = {
        "batch_size": 1,
        "iters": 1,
        "val_dataset": {
            "type": "Dataset",
            "mode": "val",
            "dataset_root": str(tmp_path),
            "val_path": "none.txt",
            "num_classes": 3,
            "class_names": list(NAMES),
            "transforms": [{"type": "Normalize"}],
        },
        "model": {
            "type": "DeepLabV3P",
            "backbone": {"type": "ResNet18_vd", "output_stride": 16},
            "num_classes": 3,
        },
    }
    from paddleseg_deeplab.cli import predict as cli_predict
    from paddleseg_deeplab.cvlibs import Config, SegBuilder

    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    paddle.seed(4)
    model = SegBuilder(Config(str(tmp_path / "c.yml"))).model
    batch = paddle.to_tensor(np.stack([Photos()[i]["img"] for i in (1, 2)]))
    model.train()
    with paddle.no_grad():
        for _ in range(3):
            infer_logits(model, batch)
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    arguments = ["--config", str(tmp_path / "c.yml"), "--model_path", str(tmp_path)]
    common = ["--image_path", str(folder / "p1.png"), "--device", "cpu", "--engine", "dygraph"]
    crf = {"iterations": 1}
    for name, settings, flags in (
        ("plain", {}, []),
        ("crf", {"crf": crf}, ["--crf", "--crf_params", "iterations=1"]),
    ):
        out = [tmp_path / name / kind for kind in ("own", "command")]
        more = [*flags, "--save_dir", str(out[1]), "--outputs", "raw", "prob"]
        assert cli_predict.main([*arguments, *common, *more]) == 0
        own = Predictor.from_checkpoint(tmp_path / "c.yml", tmp_path, device="cpu", **settings)
        assert own.class_names == NAMES
        result = own(folder / "p1.png")
        for file in map(pathlib.Path, result.save(out[0], ["raw", "prob"]).values()):
            assert file.read_bytes() == (out[1] / file.relative_to(out[0])).read_bytes()
        with ThreadPoolExecutor(2) as pool:
            for each in pool.map(own, [images[1]] * 4):
                np.testing.assert_array_equal(each.mask, result.mask)
    with pytest.raises(UserError, match=r"is not available|CPU build|sees"):
        Predictor.from_checkpoint(tmp_path / "c.yml", tmp_path, device="gpu:99")
    with pytest.raises(UserError):
        Predictor.from_checkpoint(tmp_path / "c.yml", tmp_path / "none")


def test_no_paddle_is_needed(folders, photos):
    pytest.importorskip("openvino")
    _, folder = photos
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        "from paddleseg_deeplab import Predictor\n"
        f"model = Predictor({folders()!r}, runtime='openvino')\n"
        f"assert model({str(folder / 'p1.png')!r}).mask.shape == (40, 56)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_a_result_goes_to_another_process(predictor, photos):
    """With its probabilities once they are made, and without them."""
    images, _ = photos
    result = predictor(images[0])
    for each in (result, predictor(images[0], probabilities=False)):
        there = pickle.loads(pickle.dumps(each))
        np.testing.assert_array_equal(there.mask, result.mask)
        with pytest.raises(UserError, match="probabilities"):
            _ = there.probabilities
    probabilities = result.probabilities
    there = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(there.probabilities, probabilities)

# SPDX-License-Identifier: Apache-2.0
"""export.py, predict.py and deploy/python/infer.py together: the same images, the same masks."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from places import ROOT

from paddleseg_deeplab.cli import export, predict
from paddleseg_deeplab.cli import infer as cli_infer
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.deploy import inferer as deploy_inferer
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.utils import visualize

SCRIPT = ROOT / "deploy" / "python" / "infer.py"
NORMALIZE = {"type": "Normalize"}
RESIZE = {"type": "Resize", "target_size": [96, 64]}
PADDING = {"type": "Padding", "target_size": [128, 96]}


@pytest.fixture(scope="module")
def infer():
    return cli_infer.main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config, and weights that tell classes apart: (path, path)."""
    folder = tmp_path_factory.mktemp("trained")
    config = {
        "batch_size": 2,
        "val_dataset": {
            "type": "Shapes",
            "mode": "val",
            "num_classes": 4,
            "image_size": [96, 64],
            "num_samples": 4,
            "transforms": [NORMALIZE],
        },
        "model": {
            "type": "DeepLabV3P",
            "backbone": {"type": "ResNet18_vd", "output_stride": 16},
            "num_classes": 4,
        },
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    paddle.seed(3)
    builder = SegBuilder(Config(str(folder / "config.yml")))
    model, dataset = builder.model, builder.val_dataset
    batch = paddle.to_tensor(np.stack([dataset[i]["img"] for i in range(4)]))
    model.train()
    for _ in range(2):
        infer_logits(model, batch)
    model.eval()
    classifier = model.head.decoder.conv
    logits = infer_logits(model, batch)
    classifier.weight.set_value(classifier.weight * (10 / float(logits.std())))
    # Without the classes' means every class is found somewhere.
    classifier.bias.set_value(-infer_logits(model, batch).mean((0, 2, 3)))
    paddle.save(model.state_dict(), str(folder / "model.pdparams"))
    return str(folder / "config.yml"), str(folder / "model.pdparams")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Scenes of three sizes, two with one stem, one in a folder of its own."""
    folder = tmp_path_factory.mktemp("images")
    sizes = {"a.png": (64, 96), "a.bmp": (80, 72), "sub/a.png": (64, 96), "b.png": (64, 96)}
    for seed, (name, (h, w)) in enumerate(sizes.items()):
        coarse = np.random.default_rng(seed).uniform(0, 255, (8, 12, 3)).astype(np.float32)
        picture = np.clip(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC), 0, 255)
        visualize.save_image(folder / name, picture.astype(np.uint8))
    return folder


def with_transforms(*transforms):
    return ["--opts", f"val_dataset.transforms={list(transforms)}"]


def run_export(trained, folder, *flags):
    config, weights = trained
    arguments = ["--config", config, "--model_path", weights, "--save_dir", str(folder)]
    return export.main([*arguments, "--device", "cpu", *flags])


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The usual export: legacy, labels and logits."""
    folder = tmp_path_factory.mktemp("usual") / "o"
    assert run_export(trained, folder, "--format", "legacy") == 0
    return folder


@pytest.fixture(scope="module")
def labels_only(exported, tmp_path_factory):
    """The usual export as an argmax that nobody asks for scores."""
    folder = tmp_path_factory.mktemp("labels") / "o"
    shutil.copytree(exported, folder)
    content = yaml.safe_load((folder / "deploy.yaml").read_text())
    content["DeepLab"]["outputs"] = ["labels"]
    (folder / "deploy.yaml").write_text(yaml.safe_dump(content))
    return folder


def masks_of(folder):
    folder = folder / "raw_prediction"
    files = sorted(p for p in folder.rglob("*.png"))
    return {
        p.relative_to(folder).as_posix(): cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in files
    }


def assert_equal_masks(ours, theirs):
    assert set(ours) == set(theirs)
    assert set(ours) == {"a_png.png", "a_bmp.png", "sub/a.png", "b.png"}
    for name, mask in ours.items():
        assert mask.shape == theirs[name].shape
        assert len(np.unique(mask)) > 1, "one class alone proves nothing"
        # Two runtimes may round a tie differently: 0.01 % of the pixels, of so few pixels one.
        assert (mask != theirs[name]).sum() <= 1, name


def without_paddle(arguments):
    """The script in a process where any import of Paddle fails; returns its exit status."""
    code = (
        "import runpy, sys\n"
        "sys.modules['paddle'] = None\n"
        f"sys.argv = ['infer.py', *{arguments!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)  # shown where the test fails
    return done.returncode


@pytest.mark.parametrize(
    ("transforms", "form", "output_op"),
    [
        ([NORMALIZE], "legacy", None),
        ([PADDING, NORMALIZE], "legacy", None),
        ([RESIZE, NORMALIZE], "legacy", None),
        ([RESIZE, NORMALIZE], "legacy", "none"),
        ([RESIZE, NORMALIZE], "onnx", None),
    ],
    ids=lambda v: "+".join(t["type"] for t in v) if isinstance(v, list) else str(v),
)
def test_masks_equal_those_of_predict(
    transforms, form, output_op, trained, images, infer, exported, tmp_path
):
    if form == "onnx":
        pytest.importorskip("paddle2onnx", reason="the extra onnx is not installed")
    opts = with_transforms(*transforms)
    folder = exported
    if transforms != [NORMALIZE]:
        folder = tmp_path / "model"
        flags = ["--output_op", output_op] if output_op else []
        assert run_export(trained, folder, "--format", form, *flags, *opts) == 0
    # By default both: scores are taken where the result has to be resized.
    content = yaml.safe_load((folder / "deploy.yaml").read_text())
    assert content["Deploy"]["output_op"] == (output_op or "argmax")
    assert content["DeepLab"]["outputs"] == (["logits"] if output_op else ["labels", "logits"])
    # A folder and an image of it: both commands take several paths, and an image once.
    paths = [str(images), str(next(p for p in images.rglob("*") if p.is_file()))]
    both = ["--image_path", *paths, "--outputs", "raw", "--device", "cpu"]
    arguments = ["--model_dir", str(folder), "--save_dir", str(tmp_path / "infer"), *both]
    run = without_paddle if form == "onnx" else infer
    assert run([*arguments, "--batch_size", "2"]) == 0
    config, weights = trained
    arguments = ["--config", config, "--model_path", weights, "--save_dir", str(tmp_path / "pred")]
    assert predict.main([*arguments, *both, *opts]) == 0
    assert_equal_masks(masks_of(tmp_path / "infer"), masks_of(tmp_path / "pred"))


def test_infer_runs_a_network_that_takes_pictures(trained, images, infer, tmp_path, capsys):
    """Without being told; Padding with whole numbers outside of it rounds nothing."""
    padding = {**PADDING, "im_padding_value": 127}
    flags = ["--format", "legacy", "--input", "uint8"]
    opts = with_transforms(padding, NORMALIZE)
    folder = tmp_path / "model"
    assert run_export(trained, folder, *flags, *opts) == 0
    both = ["--image_path", str(images), "--outputs", "raw", "--device", "cpu"]
    arguments = ["--model_dir", str(folder), "--save_dir", str(tmp_path / "infer"), *both]
    assert infer([*arguments, "--batch_size", "2"]) == 0
    config, weights = trained
    arguments = ["--config", config, "--model_path", weights, "--save_dir", str(tmp_path / "pred")]
    assert predict.main([*arguments, *both, *opts]) == 0
    assert_equal_masks(masks_of(tmp_path / "infer"), masks_of(tmp_path / "pred"))
    opts = with_transforms(NORMALIZE, padding)
    assert run_export(trained, tmp_path / "no", *flags, *opts) == 2
    assert "last step of val_dataset.transforms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("transforms", "op"), [([NORMALIZE], "softmax"), ([RESIZE, NORMALIZE], None)]
)
def test_masks_equal_those_of_predict_with_a_crf(transforms, op, trained, images, infer, tmp_path):
    # Wide in colour: these soft pictures then have edges that the CRF moves.
    opts = with_transforms(*transforms)
    opts += ["test_config.crf={'iterations': 3, 'bilateral_xy': 20, 'bilateral_rgb': 25}"]
    flags = ["--output_op", op] if op else []
    folder = tmp_path / "model"
    assert run_export(trained, folder, "--format", "legacy", *flags, *opts) == 0
    content = yaml.safe_load((folder / "deploy.yaml").read_text())
    assert content["Deploy"]["output_op"] == (op or "argmax")
    assert content["DeepLab"]["crf"]["bilateral_xy"] == 20
    assert content["DeepLab"]["crf"]["gaussian_weight"] == 3
    config, weights = trained
    both = ["--image_path", str(images), "--outputs", "raw", "prob", "--device", "cpu"]
    results = []
    cases = {"on": [], "less": ["--crf_params", "iterations=1"], "off": ["--crf", "False"]}
    for name, more in cases.items() if op else [("on", [])]:
        out = [tmp_path / f"{name}_{kind}" for kind in ("infer", "pred")]
        arguments = ["--model_dir", str(folder), "--save_dir", str(out[0])]
        assert infer([*arguments, *both, *more, "--num_workers", "2"]) == 0
        arguments = ["--config", config, "--model_path", weights, "--save_dir", str(out[1])]
        assert predict.main([*arguments, *both, *more, *opts]) == 0
        masks = [masks_of(o) for o in out]
        assert_equal_masks(*masks)
        for mask in masks[0]:
            probs = [np.load((o / "probability" / mask).with_suffix(".npy")) for o in out]
            np.testing.assert_array_equal(probs[0].argmax(0), masks[0][mask])
            # Both runtimes' logits agree to about 1e-5; ten weighted sums may multiply that.
            np.testing.assert_allclose(*probs, atol=2e-3)
        results.append(masks[1])
    for one, two in itertools.combinations(results, 2):
        assert any((one[k] != two[k]).any() for k in one)


def test_a_crf_needs_probabilities(trained, labels_only, images, infer, tmp_path, capsys):
    flags = ["--output_op", "argmax", "--opts", "test_config.crf=True"]
    assert run_export(trained, tmp_path / "o", *flags) == 2
    assert "test_config.crf" in capsys.readouterr().err
    arguments = ["--model_dir", str(labels_only), "--image_path", str(images), "--device", "cpu"]
    for flags in (["--crf"], ["--outputs", "prob"]):
        assert infer([*arguments, "--save_dir", str(tmp_path / "o"), *flags]) == 2
        told = capsys.readouterr().err
        assert "exported with argmax" in told
        assert "without --output_op" in told
    assert infer([*arguments, "--save_dir", str(tmp_path / "o"), "--num_workers", "-1"]) == 2
    assert "--num_workers" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_probabilities_and_a_fixed_batch(trained, images, infer, tmp_path):
    flags = ["--format", "legacy", "--output_op", "softmax", "--input_shape", "2", "3", "64", "96"]
    assert run_export(trained, tmp_path / "model", *flags) == 0
    status = infer(
        [
            *("--model_dir", str(tmp_path / "model"), "--image_path", str(images)),
            *("--save_dir", str(tmp_path / "o"), "--outputs", "prob", "raw", "--device", "cpu"),
            *("--batch_size", "4"),
        ]
    )
    # a.bmp has another size; the other three are done, the last batch filled up.
    assert status == 2
    assert sorted(masks_of(tmp_path / "o")) == ["a_png.png", "b.png", "sub/a.png"]
    for name, mask in masks_of(tmp_path / "o").items():
        prob = np.load((tmp_path / "o" / "probability" / name).with_suffix(".npy"))
        assert prob.dtype == np.float32
        np.testing.assert_allclose(prob.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(prob.argmax(0), mask)


def test_benchmark_prints_its_figures(exported, images, infer, tmp_path, capsys, monkeypatch):
    runs = []
    call = deploy_inferer.Inferer.infer

    def infer_noting(self, batch, *args):
        runs.append(batch.shape)
        return call(self, batch, *args)

    monkeypatch.setattr(deploy_inferer.Inferer, "infer", infer_noting)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"not a picture")
    (tmp_path / "in" / "b.png").write_bytes((images / "b.png").read_bytes())
    arguments = ["--model_dir", str(exported), "--save_dir", str(tmp_path), "--device", "cpu"]
    assert infer([*arguments, "--image_path", str(tmp_path / "in"), "--benchmark"]) == 2
    # Warm-up runs on the first image that can be read, and the one that counts.
    assert runs == [(1, 3, 64, 96)] * (deploy_inferer._WARM_UP_RUNS + 1)
    out = capsys.readouterr().out
    for word in ("preprocess", "inference", "postprocess", "images/s"):
        assert word in out
    assert (tmp_path / "added_prediction" / "b.png").is_file()
    assert (tmp_path / "pseudo_color_prediction" / "b.png").is_file()


def test_a_broken_image_does_not_stop_the_rest(exported, images, infer, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "in" / "good.png").write_bytes((images / "b.png").read_bytes())
    config = str(exported / "deploy.yaml")  # PaddleSeg's way to name the folder
    status = infer(
        [
            *("--config", config, "--image_path", str(tmp_path / "in"), "--device", "cpu"),
            *("--save_dir", str(tmp_path / "o"), "--outputs", "raw"),
        ]
    )
    assert status == 2
    assert list(masks_of(tmp_path / "o")) == ["good.png"]


@pytest.mark.parametrize("transforms", [[NORMALIZE], [RESIZE, NORMALIZE]])
def test_pixels_without_data(transforms, trained, images, infer, tmp_path, capsys):
    """`nodata` goes from the config to predict.py, deploy.yaml and infer.py: equal files, void at
    the image's own size. Beside it, images that fail, each at another place, in both."""
    config = yaml.safe_load(Path(trained[0]).read_text())
    config["val_dataset"] = {"type": "Dataset", "mode": "val", "dataset_root": str(tmp_path)}
    config["val_dataset"].update(num_classes=4, val_path="no.txt", nodata=-9999)
    config["val_dataset"]["transforms"] = transforms
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    trained = (str(tmp_path / "c.yml"), trained[1])
    folder = tmp_path / "in"
    folder.mkdir()
    without = {}
    for name, rows in (("a", slice(10, 30)), ("b", slice(0)), ("tile", slice(None))):
        image = cv2.imread(str(images / "b.png")).astype(np.float32)
        image[rows, 20:] = -9999
        without[f"{name}.png"] = image[..., 0] == -9999
        assert cv2.imwrite(str(folder / f"{name}.tiff"), image)
    without["far.png"] = np.zeros((64, 96), bool)
    assert cv2.imwrite(str(folder / "far.tiff"), np.full((64, 96, 3), 3e5, np.float32))
    assert cv2.imwrite(str(folder / "huge.tiff"), np.full((64, 96, 3), 1e9, np.float32))
    (folder / "broken.png").write_bytes(b"not a picture")
    for extension in ("png", "bmp"):  # their results' names are too long
        (folder / f"{'x' * 250}.{extension}").write_bytes((images / "b.png").read_bytes())
    assert run_export(trained, tmp_path / "model", "--format", "legacy") == 0
    assert (
        yaml.safe_load((tmp_path / "model/deploy.yaml").read_text())["DeepLab"]["nodata"] == -9999
    )
    both = ["--image_path", str(folder), "--device", "cpu", "--outputs", "raw", "palette"]
    arguments = ["--config", trained[0], "--model_path", trained[1]]
    assert predict.main([*arguments, *both, "--save_dir", str(tmp_path / "predict")]) == 2
    arguments = ["--model_dir", str(tmp_path / "model"), "--save_dir", str(tmp_path / "infer")]
    capsys.readouterr()
    assert infer([*arguments, *both, "--batch_size", "2"]) == 2
    told = "".join(capsys.readouterr())
    assert told.count("not done: ") == 4
    assert "4 of 8 images done" in told
    found = masks_of(tmp_path / "infer")
    assert set(found) == set(without)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask == 255, without[name])
        for kind in ("raw_prediction", "pseudo_color_prediction"):
            files = [tmp_path / verb / kind / name for verb in ("predict", "infer")]
            assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--device", "gpu:99"], "--device"),
        (["--device", "cpu", "--outputs", "mask"], "overlay, palette, raw, prob"),
        (["--device", "cpu", "--use_trt"], "GPU"),
        (["--device", "cpu", "--precision", "fp16"], "--device gpu"),
        (["--device", "cpu", "--batch_size", "0"], "--batch_size"),
        (["--device", "cpu", "--enable_auto_tune", "True"], "--use_trt"),
        (["--config", "also.yaml"], "--model_dir"),
        (["--device", "cpu", "--save_dir", __file__], "is a file"),
    ],
)
def test_mistakes_are_one_line_and_status_2(flags, text, exported, images, infer, tmp_path, capsys):
    arguments = ["--model_dir", str(exported), "--image_path", str(images)]
    assert infer([*arguments, "--save_dir", str(tmp_path / "o"), *flags]) == 2
    err = capsys.readouterr().err.strip()
    assert text in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read"),
        ("[1, 2", "YAML"),
        ("a: 1", "Deploy"),
        ("Deploy: {model: model.pdmodel, params: model.pdiparams}", "not beside it"),
        ("Deploy: {model: model.bin}", "model.bin"),
        ("Deploy: {model: model.json, output_op: sigmoid}", "sigmoid"),
    ],
)
def test_a_folder_that_is_no_export(content, text, images, infer, tmp_path, capsys):
    if content:
        (tmp_path / "deploy.yaml").write_text(content)
    assert infer(["--model_dir", str(tmp_path), "--image_path", str(images)]) == 2
    assert text in capsys.readouterr().err


def test_a_folder_of_paddleseg_is_read(exported, images, infer, tmp_path):
    for file in exported.iterdir():
        if file.suffix != ".yaml":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    deploy = yaml.safe_load((exported / "deploy.yaml").read_text())["Deploy"]
    # What PaddleSeg writes: this section alone.
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": deploy}))
    arguments = ["--model_dir", str(tmp_path), "--image_path", str(images), "--device", "cpu"]
    assert infer([*arguments, "--save_dir", str(tmp_path / "o")]) == 0


def test_the_script_explains_itself_without_paddle(capsys):
    assert without_paddle(["--help"]) == 0
    assert "--image_path" in capsys.readouterr().out


def test_export_says_what_is_wrong(trained, tmp_path, capsys):
    assert run_export(trained, tmp_path / "o", "--input_shape", "64", "64") == 2
    assert "four numbers" in capsys.readouterr().err
    assert run_export(trained, tmp_path / "o", "--data_format", "NHWC", "--format", "legacy") == 2
    assert "NHWC" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_export_status_1_where_it_differs(trained, tmp_path, monkeypatch):
    from paddleseg_deeplab.deploy import compare

    monkeypatch.setattr(compare, "MAX_LOGIT_DIFFERENCE", -1.0)
    assert run_export(trained, tmp_path / "o", "--format", "legacy") == 1
    assert not (tmp_path / "o").exists()

# SPDX-License-Identifier: Apache-2.0
"""The main recipe from training to deployment, at a small size, by the commands a user gives."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import ROOT

from paddleseg_deeplab.cli import main as console
from paddleseg_deeplab.cli import quickstart
from paddleseg_deeplab.transforms.reading.files import read_label

# The main recipe itself; only what costs time is smaller.
CONFIG = f"""
_base_: {ROOT.as_posix()}/configs/deeplabv3p_resnet50_os8.yml
batch_size: 2
iters: 2
train_dataset: {{image_size: [72, 56], num_samples: 4}}
val_dataset: {{image_size: [72, 56], num_samples: 3}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(config, folder) after `quickstart`: train, val, export and infer.py as processes."""
    folder = tmp_path_factory.mktemp("path")
    config = folder / "main.yml"
    config.write_text(CONFIG, encoding="utf-8")
    flags = ["--config", config, "--save_dir", folder / "out"]
    assert quickstart.main([*map(str, flags), "--least_miou", "0", "--device", "cpu"]) == 0
    return config, folder / "out"


def run(verb, done, *flags):
    config, out = done
    shared = ["--config", config, "--model_path", out / "best_model", "--device", "cpu"]
    return console.main([verb, *map(str, [*shared, *flags])])


def test_every_step_left_its_files(done):
    _, out = done
    for name in ("iter_2/model.pdparams", "best_model/model.pdparams", "config.yml", "train.log"):
        assert (out / name).is_file(), name
    assert {p.name for p in (out / "inference_model").iterdir()} == {
        "deploy.yaml",
        "model.pdiparams",
        *({"model.json"} if (out / "inference_model/model.json").exists() else {"model.pdmodel"}),
    }
    for i in range(3):
        picture = cv2.imread(str(out / "pictures" / f"scene_{i}.png"))
        # Three panels side by side, titles above, names of classes below.
        assert picture.shape[0] > 56
        assert picture.shape[1] > 3 * 72


def test_report(done):
    _, out = done
    report = json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert report["images"] == 3
    assert report["pixels"] == 3 * 72 * 56 == np.sum(report["confusion_matrix"])
    assert 0 <= report["mIoU"] <= 1
    assert len(report["worst"]) == 3
    with open(out / "evaluation" / "metrics.csv", encoding="utf-8-sig", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["name"] for row in rows] == [c["name"] for c in report["classes"]]
    assert list(rows[0]) == ["name", "iou", "precision", "recall", "dice", "pixel_share"]
    assert (out / "evaluation" / "confusion_matrix.png").is_file()


def test_predict_equals_infer(done, tmp_path):
    _, out = done
    flags = ["--image_path", out / "scenes", "--save_dir", tmp_path, "--outputs", "palette", "prob"]
    assert run("predict", done, *flags) == 0
    for i in range(3):
        name = f"pseudo_color_prediction/scene_{i}.png"
        ours, theirs = read_label(tmp_path / name), read_label(out / "predictions" / name)
        assert ours.shape == (56, 72)
        # Two runtimes may round a tie differently: 0.01 % of the pixels, of so few pixels one.
        assert (ours != theirs).sum() <= 1
        probabilities = np.load(tmp_path / "probability" / f"scene_{i}.npy")
        np.testing.assert_array_equal(probabilities.argmax(0), ours)


@pytest.mark.parametrize(
    "flags",
    [
        ["--aug_eval", "--scales", 0.75, 1.0, "--flip_horizontal"],
        ["--is_slide", "--crop_size", 48, 40, "--stride", 32, 32, "--batch_size", 2],
    ],
    ids=["aug", "slide"],
)
def test_other_ways_to_evaluate(done, flags, tmp_path):
    assert run("val", done, "--save_dir", tmp_path, *flags) == 0
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["pixels"] == 3 * 72 * 56


@pytest.mark.parametrize(
    ("verb", "flags", "words"),
    [
        ("val", ["--save_dir", __file__], ["--save_dir", "is a file"]),
        ("val", ["--worst", -1], ["--worst", "-1"]),
        ("val", ["--is_slide"], ["crop_size"]),
        ("val", ["--model_path", "nowhere"], ["nowhere"]),
        ("val", ["--precision", "bf16"], ["bf16", "CPU"]),
        ("val", ["--device", "gpu:99"], ["gpu"]),
        ("predict", ["--save_dir", Path(__file__) / "o"], ["--save_dir", "is a file"]),
        ("predict", ["--image_path", "nowhere"], ["nowhere"]),
        ("predict", ["--outputs", "mask"], ["overlay, palette, raw, prob", "mask"]),
        ("predict", ["--custom_color", 1, 2], ["custom_color"]),
        ("export", ["--save_dir", __file__], ["--save_dir", "is a file"]),
        ("export", ["--input_shape", 64, 64, "--format", "legacy"], ["four numbers"]),
    ],
)
def test_mistakes_are_one_line_and_status_2(done, verb, flags, words, tmp_path, capsys):
    _, out = done
    defaults = ["--save_dir", tmp_path / "o"]
    if verb == "predict":
        defaults += ["--image_path", out / "scenes" / "scene_0.png"]
    assert run(verb, done, *defaults, *flags) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not (tmp_path / "o").exists()


def test_unknown_verbs(capsys):
    assert console.main(["fly"]) == 2
    err = capsys.readouterr().err
    for word in ("'fly'", "train", "val", "predict", "export", "quickstart"):
        assert word in err

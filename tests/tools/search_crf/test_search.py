# SPDX-License-Identifier: Apache-2.0
"""The search of the dense CRF's parameters: grids, scores, files, processes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.core.stream import NetworkSettings
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.postprocess.settings import make_crf
from paddleseg_deeplab.prediction.crf import refine
from paddleseg_deeplab.tools.search_crf import search
from paddleseg_deeplab.tools.search_crf.probabilities import save_probabilities
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import ConfusionMatrix

GRID = {"bilateral_weight": [3, 5], "bilateral_xy": [10, 20], "bilateral_rgb": [5]}


class Guess(nn.Layer):
    """Fixed logits by colour, with a pattern of faults that a CRF can mend."""

    def __init__(self, num_classes, data_format="NCHW"):
        super().__init__()
        self.num_classes, self.data_format = num_classes, data_format
        self.mix = nn.Conv2D(3, num_classes, 1)
        rng = np.random.default_rng(0)
        self.mix.weight.set_value(rng.normal(0, 1, self.mix.weight.shape).astype("float32"))
        self.mix.bias.set_value(np.zeros(num_classes, "float32"))

    def forward(self, x):
        return [self.mix(x)]


@pytest.fixture
def registered():
    registry.MODELS.add_component(Guess)
    yield
    del registry.MODELS.components_dict["Guess"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images on disk: (folder, their arrays)."""
    folder = tmp_path_factory.mktemp("probabilities")
    rng = np.random.default_rng(0)
    arrays = []
    for i in range(3):
        label = np.zeros((16, 20), np.int64)
        label[:, 8 + i :] = 1
        image = np.where(label[..., None] == 1, 200, 40) + rng.integers(-9, 9, (16, 20, 3))
        right = np.where(rng.random(label.shape) < 0.8, 0.7, 0.2)
        probabilities = np.where(label == 0, right, 1 - right)
        label[0] = 255
        probabilities = np.stack([probabilities, 1 - probabilities]).astype(np.float32)
        arrays.append((probabilities, image.astype(np.uint8), label))
        search.save_image(str(folder), i, *arrays[-1])
    return str(folder), arrays


def test_kept_images(images):
    folder, arrays = images
    for i, (probabilities, image, label) in enumerate(arrays):
        ours = search.load_image(folder, i)
        assert ours[0].dtype == np.float32
        # Float16 has steps of at most 2**-11 below 1.
        np.testing.assert_allclose(ours[0], probabilities, atol=2**-11)
        np.testing.assert_allclose(ours[0].sum(0), 1, atol=1e-6)
        np.testing.assert_array_equal(ours[1], image)
        np.testing.assert_array_equal(ours[2], label)


def test_an_impossible_class_stays_possible(tmp_path):
    probabilities = np.array([[[1.0]], [[0.0]], [[1e-12]]], np.float32)
    search.save_image(
        str(tmp_path), 0, probabilities, np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.int64)
    )
    assert (search.load_image(str(tmp_path), 0)[0] > 0).all()


def test_grids():
    settings = search.grid_settings(GRID, {"iterations": 2})
    assert len(settings) == 4
    assert settings[1] == {
        "iterations": 2,
        "bilateral_weight": 3,
        "bilateral_xy": 20,
        "bilateral_rgb": 5,
    }
    paper = search.grid_settings(search.COARSE_GRID, search.FIXED)
    assert len(paper) == 4 * 8 * 4
    assert paper[0]["gaussian_weight"] == paper[0]["gaussian_xy"] == 3
    assert len(search.grid_settings({"bilateral_xy": [5, 5.0]}, {})) == 1
    for grid in ({"bilateral_xy": []}, {"bilateral_xy": [0]}):
        with pytest.raises(UserError):
            search.grid_settings(grid, {})


@pytest.mark.parametrize(
    ("values", "best", "expected"),
    [
        ([3, 4, 5, 6], 4, [3.5, 4, 4.5]),
        ([3, 4, 5, 6], 3, [2.5, 3, 3.5]),
        ([30, 50, 100], 50, [40, 50, 75]),
        ([30, 50, 100], 100, [75, 100, 125]),
        ([1, 9], 1, [1, 5]),  # -3 is no weight
        ([7], 7, [7]),
        ([6, 3], 3, [1.5, 3, 4.5]),
    ],
)
def test_finer_grids(values, best, expected):
    assert search.finer_grid({"bilateral_xy": values}, {"bilateral_xy": best}) == {
        "bilateral_xy": expected
    }


def _expected(arrays_folder, params):
    folder, arrays = arrays_folder
    confusion = ConfusionMatrix(2)
    for i, (_, image, label) in enumerate(arrays):
        labels, _ = refine(make_crf(params), search.load_image(folder, i)[0], image)
        confusion.update(labels, label)
    return confusion.matrix


def test_search_counts_as_a_plain_loop(images):
    advanced = []

    class Bar:
        def __init__(self, total, stage):
            advanced.append([stage, total, 0])

        def update(self, n):
            advanced[-1][2] += n

        def close(self):
            pass

    fixed = {"iterations": 2}
    trials = search.search(images[0], 3, 2, grid=GRID, fixed=fixed, progress=Bar)
    assert [t.stage for t in trials[:4]] == ["coarse"] * 4
    assert {t.stage for t in trials[4:]} == {"fine"}
    assert len({tuple(t.settings.items()) for t in trials}) == len(trials)
    for trial in trials:
        assert trial.settings["gaussian_xy"] == 3
        np.testing.assert_array_equal(
            trial.confusion.matrix, _expected(images, trial.settings), str(trial.settings)
        )
    coarse = search.best_of(trials[:4]).settings
    finer = search.finer_grid(GRID, coarse)
    assert all(t.settings[name] in finer[name] for t in trials[4:] for name in GRID)
    assert [stage for stage, _, _ in advanced] == ["coarse", "fine"]
    assert all(total == done for _, total, done in advanced)


def test_processes_change_nothing(images):
    settings = {"grid": {"bilateral_weight": [3], "bilateral_xy": [5, 9], "bilateral_rgb": [5]}}
    here = search.search(images[0], 3, 2, **settings)
    there = search.search(images[0], 3, 2, workers=2, **settings)
    assert [t.settings for t in here] == [t.settings for t in there]
    for one, two in zip(here, there):
        np.testing.assert_array_equal(one.confusion.matrix, two.confusion.matrix)


def test_workers_need_no_paddle():
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        "from paddleseg_deeplab.tools.search_crf.search import score_image\n"
        "from paddleseg_deeplab.postprocess.settings import make_crf\n"
        "make_crf(True)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def _trial(stage, miou, **settings):
    good = round(miou * 100)
    matrix = [[good, 100 - good], [0, 0]]
    return search.Trial(stage, settings, ConfusionMatrix.from_matrix(np.array(matrix)))


def test_files_and_table(tmp_path, caplog):
    names = ("bilateral_weight", "bilateral_xy", "bilateral_rgb")
    trials = [
        _trial("none", 0.6),
        _trial("coarse", 0.5, **dict(zip(names, (3.0, 30.0, 3.0)))),
        _trial("coarse", 0.8, **dict(zip(names, (4.0, 30.0, 3.0)))),
        _trial("fine", 0.8, **dict(zip(names, (4.5, 30.0, 3.0)))),
    ]
    files = search.write_results(trials, str(tmp_path / "new"))
    assert [Path(f).name for f in files] == ["results.csv", "best.yml"]
    with open(files[0], encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["stage"] for row in rows] == ["none", "coarse", "coarse", "fine"]
    assert rows[0]["bilateral_xy"] == ""
    assert float(rows[2]["mIoU"]) == trials[2].miou
    text = Path(files[1]).read_text(encoding="utf-8")
    # Of equal ones the first.
    assert yaml.safe_load(text) == {"test_config": {"crf": trials[2].settings}}
    assert "mIoU 0.3000 without the CRF, 0.4000 with it" in text
    lines = search.table(trials, most=2).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["none", "-", "-", "-", "0.3000", "0.6000"]
    assert lines[2].split()[:4] == ["coarse", "4", "30", "3"]
    assert not caplog.records
    search.write_results(trials[:2], str(tmp_path))
    assert "best used without a CRF" in caplog.text


def test_probabilities_of_a_network(tmp_path):
    data = Shapes(transforms=[], mode="val", num_classes=3, image_size=[24, 16], num_samples=5)
    model = Guess(3)
    how = NetworkSettings(batch_size=2)
    count, confusion = save_probabilities(model, data, str(tmp_path), 4, how, progress=False)
    assert count == 4
    assert len(list(tmp_path.iterdir())) == 12
    assert model.training
    data.file_list = data.file_list[:4]
    result = evaluate(model, data, print_detail=False, progress=False)
    np.testing.assert_array_equal(confusion.matrix, result.confusion.matrix)
    _, image, label = search.load_image(str(tmp_path), 3)
    np.testing.assert_array_equal(image, data.load_image(3))
    np.testing.assert_array_equal(label, data.load_label(3))


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    from paddleseg_deeplab.tools.search_crf import probabilities as crf_probabilities

    data = Shapes(transforms=[], mode="val", num_classes=3, image_size=[24, 16], num_samples=2)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(crf_probabilities.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="fewer --images"):
        save_probabilities(Guess(3), data, str(tmp_path), progress=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def config(registered, tmp_path):
    (tmp_path / "c.yml").write_text(
        "val_dataset: {type: Shapes, mode: val, num_classes: 3, image_size: [32, 24],\n"
        "  num_samples: 3, transforms: [{type: Normalize}]}\n"
        "model: {type: Guess}\n"
        "test_config: {crf: True}\n"
    )
    paddle.save(Guess(3).state_dict(), str(tmp_path / "model.pdparams"))
    return [
        *("--config", str(tmp_path / "c.yml"), "--save_dir", str(tmp_path / "out")),
        *("--model_path", str(tmp_path / "model.pdparams"), "--device", "cpu"),
    ]


def test_the_command(config, tmp_path, capsys):
    flags = "--images 2 --processes 0 --iterations 2 --bilateral_weight 3 --bilateral_xy 10 20"
    assert run_verb("search_crf", [*config, *flags.split(), "--bilateral_rgb", "5"]) == 0
    log = capsys.readouterr().err
    assert "coarse: 4 of 4 CRFs" in log  # no terminal: lines, not a bar
    assert "mIoU" in log.splitlines()[-2]
    with open(tmp_path / "out" / "results.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["stage"] for row in rows[:3]] == ["none", "coarse", "coarse"]
    best = yaml.safe_load((tmp_path / "out" / "best.yml").read_text(encoding="utf-8"))
    crf = best["test_config"]["crf"]
    assert crf["iterations"] == 2
    figures = [float(row["mIoU"]) for row in rows[1:]]
    assert float(crf["bilateral_xy"]) == float(rows[1 + int(np.argmax(figures))]["bilateral_xy"])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--images 0", "--images"),
        ("--processes -1", "--processes"),
        ("--bilateral_xy 0", "bilateral_xy"),
        ("--iterations 0", "iterations"),
        ("--gaussian_xy -1", "gaussian_xy"),
    ],
)
def test_mistakes(config, flags, text, capsys, tmp_path):
    assert run_verb("search_crf", [*config, *flags.split()]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

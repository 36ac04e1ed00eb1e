# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md against the code: its rooms, its order of imports, and its four examples."""

import re

import numpy as np
import paddle
import pytest
import yaml
from house import FLOORS
from PIL import Image
from places import ROOT

from paddleseg_deeplab.cli.main import main
from paddleseg_deeplab.cvlibs import Config, SegBuilder, manager

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)
TABLES = (manager.BACKBONES, manager.LOSSES, manager.DATASETS, manager.TRANSFORMS)


def test_every_room_is_told():
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.M)
    told = set(re.findall(r"`(\w+)(?:/|\.py)", " ".join(rows)))
    package = ROOT / "paddleseg_deeplab"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert told - {"NAME", "training"} == rooms | {"registry", "predictor"}


def test_the_floors_are_those_that_are_checked():
    drawn = re.search(r"```\n(cli.*?)```", TEXT, re.S)[1]
    assert [tuple(line.split()) for line in drawn.splitlines()] == FLOORS


def test_paths_exist():
    for path in set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", TEXT)) - {"tools/NAME/"}:
        places = (ROOT / path, ROOT / "paddleseg_deeplab" / path)
        nearby = [p / path for p in (ROOT / "paddleseg_deeplab").rglob("*") if p.is_dir()]
        assert any(place.exists() for place in (*places, *nearby)), path


@pytest.fixture
def registered(monkeypatch):
    for table in TABLES:
        monkeypatch.setattr(table, "_components_dict", dict(table.components_dict))
    for code in EXAMPLES:
        exec(compile(code, "docs/architecture.md", "exec"), {})


def test_the_examples_train_together(registered, tmp_path):
    assert len(EXAMPLES) == 4
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(photos / f"{i}.jpg")
        mask = np.repeat(rng.integers(0, 2, (32, 1), np.uint8), 32, 1)
        Image.fromarray(mask).save(photos / f"{i}.mask.png")
    data = {"type": "SideBySide", "dataset_root": str(photos), "num_classes": 2}
    steps = [{"type": "RandomTurn"}, {"type": "Normalize"}]
    config = {
        "batch_size": 3,
        "iters": 1,
        "train_dataset": {**data, "mode": "train", "transforms": steps},
        "val_dataset": {**data, "mode": "val", "transforms": steps[1:]},
        "model": {
            "type": "DeepLabV3P",
            "backbone": {"type": "TwoStages", "width": 8},
            "backbone_indices": [0, 1],
            "aspp_out_channels": 8,
            "aspp_ratios": [1, 2],
        },
        "loss": {"types": [{"type": "BrierLoss"}], "coef": [1]},
        "optimizer": {"type": "SGD"},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.01},
    }
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    flags = ["--config", str(path), "--save_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["train", *flags, "--do_eval"]) == 0
    assert (tmp_path / "out" / "best_model" / "model.pdparams").is_file()

    builder = SegBuilder(Config(str(path)))
    sample = builder.train_dataset[0]
    # Turned alike: the mask's bands of one row each lie along the image's rows or columns.
    label = sample["label"]
    assert sample["img"].shape == (3, 32, 32)
    assert (label == label[:, :1]).all() or (label == label[:1]).all()
    # The loss as its formula says, void left out; float32 sums of 32 terms.
    logits = paddle.to_tensor(rng.normal(0, 2, (1, 2, 4, 4)).astype("float32"))
    truth = rng.integers(0, 2, (1, 4, 4))
    truth[0, 0, :2] = 255
    odds = np.exp(logits.numpy().astype(np.float64))
    one = (odds / odds.sum(1, keepdims=True))[:, 1]
    expected = (2 * (one - truth) ** 2)[truth != 255].mean()
    found = builder.loss["types"][0](logits, paddle.to_tensor(truth))
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)

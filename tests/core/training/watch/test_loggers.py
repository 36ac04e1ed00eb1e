# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for VisualDL, read back with VisualDL's own reader."""

import io

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn
from PIL import Image
from visualdl import LogReader

from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.training.settings import TrainSettings
from paddleseg_deeplab.core.training.watch.loggers import VisualDLWriter
from paddleseg_deeplab.core.training.watch.preview import prediction_picture
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models import CrossEntropyLoss, DiceLoss, MixedLoss
from paddleseg_deeplab.transforms import Normalize, Resize
from paddleseg_deeplab.utils.visualize import overlay

CONFIG = "batch_size: 2\niters: 4\nmodel:\n  type: Net\n  rates:\n  - 1\n"


class Net(nn.Layer):
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        return [self.conv(x)]


def records(folder):
    """{kind: {tag: [record, ...]}} of the newest log file, the one that the page shows."""
    reader = LogReader(file_path=str(max(folder.glob("vdlrecords.*.log"))))
    return {
        kind: {tag: reader.get_data(kind, tag) for tag in tags}
        for kind, tags in reader.get_tags().items()
    }


def steps(found, tag):
    return [record.id for record in found["scalar"][tag]]


def val_set():
    return Shapes([Resize((16, 16)), Normalize()], "val", image_size=(32, 16), num_samples=2)


def run(folder, iters, **settings):
    net = Net()
    optimizer = paddle.optimizer.SGD(
        paddle.optimizer.lr.StepDecay(0.1, 2, 0.5), parameters=net.parameters()
    )
    loss = MixedLoss([CrossEntropyLoss(), DiceLoss()], [0.8, 0.2])
    return train(
        net,
        Shapes([Normalize()], image_size=(16, 16), num_samples=4),
        val_set(),
        optimizer,
        str(folder),
        iters,
        save_interval=2,
        log_iters=1,
        losses={"types": [loss], "coef": [1]},
        test_config={"print_detail": False},
        settings=TrainSettings(
            config_text=CONFIG,
            hyper_parameters={"model": "Net", "learning_rate": 0.1, "batch_size": 2},
        ),
        **{"use_vdl": True, **settings},
    )


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A folder with a run to iteration 4, resumed to 6; and what the first log held."""
    folder = tmp_path_factory.mktemp("vdl")
    run(folder, 4)
    first = records(folder)
    run(folder, 6, resume_model=folder / "iter_4")
    return folder, first, records(folder)


def test_curves(resumed):
    _, found, _ = resumed
    parts = ["loss_CrossEntropyLoss", "loss_DiceLoss"]
    times = ["batch_cost", "step_cost", "reader_cost", "images_per_second", "memory_mib"]
    for name in ("loss", "lr", *parts, *times):
        assert steps(found, f"Train/{name}") == [1, 2, 3, 4], name
    classes = [f"IoU/{name}" for name in val_set().class_names]
    assert "IoU/background" in classes
    for name in ("mIoU", "Acc", "Kappa", "Dice", "loss", *classes):
        assert steps(found, f"Evaluate/{name}") == [2, 4], name
    rates = [record.value for record in found["scalar"]["Train/lr"]]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])
    values = {tag: [r.value for r in rs] for tag, rs in found["scalar"].items()}
    # Records are float32.
    total = np.sum([values[f"Train/{part}"] for part in parts], axis=0)
    np.testing.assert_allclose(total, values["Train/loss"], rtol=1e-5)


def test_config_as_text(resumed):
    _, found, _ = resumed
    texts = {
        tag: [(r.id, r.text.encoded_text_string) for r in rs] for tag, rs in found["text"].items()
    }
    assert texts == {
        "config/run": [(0, "{batch_size: 2, iters: 4}")],
        "config/model": [(0, "{type: Net, rates: [1]}")],
    }
    again = {key.split("/")[1]: yaml.safe_load(text[0][1]) for key, text in texts.items()}
    assert {**again.pop("run"), **again} == yaml.safe_load(CONFIG)


def test_hyper_parameters_name_metrics_that_are_there(resumed):
    for found in resumed[1:]:
        [record] = found["hyper_parameters"]["hparam"]
        names = [info.name for info in record.hparam.hparamInfos]
        assert names == ["model", "learning_rate", "batch_size"]
        metrics = [info.name for info in record.hparam.metricInfos]
        assert metrics == ["Train/loss", "Evaluate/mIoU", "Evaluate/Acc"]
        assert set(metrics) <= set(found["scalar"])


def picture_of(record):
    with Image.open(io.BytesIO(record.image.encoded_image_string)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_pictures_have_the_image_s_own_colours(resumed):
    _, found, _ = resumed
    dataset = val_set()
    assert sorted(found["image"]) == [f"Evaluate/truth_and_prediction_{i}" for i in range(2)]
    for i in range(2):
        kept = found["image"][f"Evaluate/truth_and_prediction_{i}"]
        assert [record.id for record in kept] == [2, 4]
        picture = picture_of(kept[0])
        assert picture.shape == (16, 64, 3)
        truth = overlay(dataset.load_image(i), dataset.load_label(i), dataset.palette)
        np.testing.assert_array_equal(picture[:, :32], truth)


def test_a_resumed_run_goes_on_in_one_file(resumed):
    folder, first, second = resumed
    assert len(list(folder.glob("vdlrecords.*.log"))) == 2
    for tag, old in first["scalar"].items():
        new = second["scalar"][tag]
        expected = [1, 2, 3, 4, 5, 6] if tag.startswith("Train/") else [2, 4, 6]
        assert [record.id for record in new] == expected, tag
        assert [r.value for r in new[: len(old)]] == [r.value for r in old], tag
    for old, new in zip(first["image"].values(), second["image"].values()):
        assert [record.id for record in new] == [2, 4, 6]
        assert new[0].image == old[0].image
    assert [record.id for record in second["text"]["config/run"]] == [0, 4]
    assert [len(tags) for tags in second["meta_data"].values()] == [1]


def test_resuming_behind_the_end_forgets_what_came_after(resumed, tmp_path):
    folder, *_ = resumed
    run(tmp_path, 4, resume_model=folder / "iter_2")  # into another folder, too
    found = records(tmp_path)
    assert steps(found, "Train/loss") == [1, 2, 3, 4]
    assert steps(found, "Evaluate/mIoU") == [2, 4]
    run(tmp_path, 6, resume_model=tmp_path / "iter_4")
    run(tmp_path, 6, resume_model=tmp_path / "iter_4")
    found = records(tmp_path)
    assert steps(found, "Train/loss") == [1, 2, 3, 4, 5, 6]
    assert [record.id for record in found["text"]["config/run"]] == [0, 2, 4]


@pytest.mark.parametrize("lost", [1, 9, 30])
def test_a_log_cut_short_keeps_what_came_before(tmp_path, lost):
    writer = VisualDLWriter(tmp_path)
    for i in range(1, 5):
        writer.scalars({"Train/loss": i}, i)
    writer.close()
    [path] = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:-lost])
    writer = VisualDLWriter(tmp_path, resumed_at=10)
    writer.scalars({"Train/loss": 11}, 11)
    writer.close()
    found = steps(records(tmp_path), "Train/loss")
    assert found[:2] == [1, 2]
    assert found[-1] == 11


def test_odd_tags_and_absent_classes(tmp_path):
    writer = VisualDLWriter(tmp_path)
    writer.scalars({"Evaluate/IoU/50% grass": 0.5, "Evaluate/IoU/a/b": 1, "x": float("nan")}, 1)
    writer.scalars({"Evaluate/IoU/树": 0.25}, 1)
    writer.close()
    # The reader writes % where a tag has a slash; the page turns it back.
    tags = {tag.replace("%", "/") for tag in records(tmp_path)["scalar"]}
    assert tags == {"Evaluate/IoU/50percent grass", "Evaluate/IoU/a/b", "Evaluate/IoU/树"}


def test_disabled_writes_nothing(tmp_path):
    run(tmp_path, 2, use_vdl=False)
    assert (tmp_path / "iter_2").is_dir()
    assert not list(tmp_path.rglob("vdlrecords*"))


class Foreign:
    """A dataset without load_image and palette, with a grey image and a large one."""

    num_classes = 3

    def __getitem__(self, index):
        image = np.linspace(-2, 2, 1200 * 600, dtype=np.float32).reshape(1, 600, 1200)
        return {"img": image, "label": np.zeros((600, 1200), np.int64)}


def test_pictures_of_a_dataset_without_load_image():
    net = nn.Conv2D(1, 3, 1)
    picture = prediction_picture(lambda x: [net(x)], Foreign(), 0)
    assert picture.dtype == np.uint8
    assert picture.shape == (256, 1024, 3)  # shrunk to 512 each

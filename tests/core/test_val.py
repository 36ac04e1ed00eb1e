# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the counts equal an independent loop, whatever the batch size and the transforms."""

import csv
import json

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from paddleseg_deeplab.core.report import write_report
from paddleseg_deeplab.core.val import evaluate, label_like_input
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.transforms import Compose, Padding, Resize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import ConfusionMatrix

SIZES = [(12, 16), (10, 10), (12, 16), (7, 20), (12, 16), (10, 10), (12, 16)]


class Scenes:
    """Colour noise whose class is its brightest channel, with some labels wrong and some void."""

    num_classes, ignore_index, mode = 4, 255, "val"  # class 3 never occurs

    def __init__(self, transforms=(), class_names=("red", "green", "blue", "none")):
        rng = np.random.default_rng(0)
        self.transforms = Compose(list(transforms))
        self.class_names = list(class_names)
        self.images = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in SIZES]
        self.labels = [image.argmax(-1) for image in self.images]
        for label in self.labels:
            label[rng.random(label.shape) < 0.2] = 1
            label[0, :3] = 255

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        # Compose takes arrays as BGR.
        out = self.transforms({"img": self.images[i][..., ::-1]})
        label = self.labels[i].astype(np.int64)
        return {"img": out["img"], "trans_info": out["trans_info"], "label": label}


class Brightest(nn.Layer):
    """The image's channels as logits of the first three classes."""

    data_format = "NCHW"

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.BatchNorm2D(2), nn.BatchNorm2D(2)
        self.frozen.eval()

    def forward(self, x):
        assert not self.training
        return [paddle.concat([x, paddle.full_like(x[:, :1], -1.0)], axis=1)]


def quiet(model, dataset, **settings):
    return evaluate(model, dataset, print_detail=False, progress=False, **settings)


def test_counts_equal_an_independent_loop():
    data = Scenes()
    expected = np.zeros((4, 4), np.int64)
    for image, label in zip(data.images, data.labels):
        for t, p in zip(label.ravel(), image.argmax(-1).ravel()):
            if t != 255:
                expected[t, p] += 1
    result = quiet(Brightest(), data)
    np.testing.assert_array_equal(result.confusion.matrix, expected)
    miou, accuracy, class_iou, class_precision, kappa = result
    assert miou == np.nanmean(class_iou) == result.miou
    assert accuracy == np.trace(expected) / expected.sum()
    assert np.isnan(class_iou[3])
    assert np.isnan(class_precision[3])
    assert kappa == result.kappa
    assert result.loss is None


@pytest.mark.parametrize("transforms", [[], [Padding((24, 24))], [Resize((20, 14))]])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aug_eval": True, "scales": [0.5, 1.0], "flip_horizontal": True},
        {"is_slide": True, "crop_size": (8, 8), "stride": (5, 6)},
    ],
)
def test_batch_size_and_workers_do_not_matter(transforms, settings):
    model, data = Brightest(), Scenes(transforms)
    one = quiet(model, data, **settings)
    for batch_size, num_workers in ((3, 0), (16, 2)):
        other = quiet(model, data, batch_size=batch_size, num_workers=num_workers, **settings)
        np.testing.assert_array_equal(other.confusion.matrix, one.confusion.matrix)
        assert other.records == one.records


def test_padding_changes_nothing():
    plain, padded = (quiet(Brightest(), Scenes(t)) for t in ([], [Padding((24, 24))]))
    np.testing.assert_array_equal(plain.confusion.matrix, padded.confusion.matrix)


def test_records_and_worst():
    data = Scenes()
    result = quiet(Brightest(), data, worst=3, batch_size=4)
    assert [r["index"] for r in result.records] == list(range(len(data)))
    for record, image, label in zip(result.records, data.images, data.labels):
        c = ConfusionMatrix(4)
        c.update(image.argmax(-1), label)
        assert record["miou"] == c.mean_iou
        assert record["accuracy"] == c.accuracy
    scores = sorted(r["miou"] for r in result.records)
    assert [r["miou"] for r in result.worst] == scores[:3]
    assert result.worst[0]["path"].startswith("sample ")


def test_each_layer_has_its_mode_back():
    model = Brightest()
    quiet(model, Scenes())
    assert (model.training, model.trained.training, model.frozen.training) == (True, True, False)
    data = Scenes()
    data.labels[3] = np.full(SIZES[3], 9)
    with pytest.raises(UserError, match=r"sample 3: Label value 9 is outside 0\.\.3"):
        quiet(model, data)
    assert (model.training, model.trained.training, model.frozen.training) == (True, True, False)


class MeanTrueLogit(nn.Layer):
    """A loss in closed form: minus the mean logit of the true class over valid pixels."""

    def forward(self, logits, label):
        valid = (label != 255).astype("float32")
        hot = nn.functional.one_hot(label * (label != 255).astype("int64"), 4)
        hot = hot.transpose((0, 3, 1, 2))
        return -((logits * hot).sum(1) * valid).sum() / valid.sum()


@pytest.mark.parametrize("transforms", [[], [Padding((24, 24))]])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_validation_loss(transforms, batch_size):
    data = Scenes(transforms)
    data.labels[1][:] = 255  # counts for nothing
    losses = {"types": [MeanTrueLogit(), None], "coef": [0.5, 9]}  # the second is auxiliary
    expected = []
    for image, label in zip(data.images, data.labels):
        if (label != 255).any():
            true = np.take_along_axis(image.astype(float), np.minimum(label, 2)[..., None], 2)
            expected.append(-0.5 * true[..., 0][label != 255].mean())
    result = quiet(Brightest(), data, losses=losses, batch_size=batch_size)
    # Float32 sums of up to 200 values of up to 255.
    assert result.loss == pytest.approx(np.mean(expected), rel=1e-5)
    np.testing.assert_array_equal(
        result.confusion.matrix, quiet(Brightest(), data).confusion.matrix
    )
    assert np.isnan(result.records[1]["miou"])
    assert all(r["index"] != 1 for r in result.worst)


def test_validation_loss_is_left_out_with_windows():
    losses = {"types": [MeanTrueLogit()], "coef": [1]}
    window = {"is_slide": True, "crop_size": (8, 8), "stride": (8, 8)}
    assert quiet(Brightest(), Scenes(), losses=losses, **window).loss is None


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ([("resize", (4, 6))], (8, 12)),
        ([("resize", (4, 6)), ("padding", (8, 12))], (10, 12)),
        ([("padding", (4, 6), (1, 2)), ("resize", (8, 8))], (16, 16)),
    ],
)
def test_label_takes_the_images_way(steps, size):
    label = np.random.default_rng(0).integers(0, 3, (4, 6))
    out = label_like_input(label, steps, size)
    assert out.shape == size
    if steps[0][0] == "resize":
        np.testing.assert_array_equal(out[:8:2, :12:2], label)
        assert (out[8:] == 255).all()
    else:
        np.testing.assert_array_equal(out[2:10:2, 4:16:2], label)
        assert (out == 255).sum() == 16 * 16 - 4 * label.size


def test_sizes_that_differ_are_named():
    data = Scenes()
    data.labels[2] = np.zeros((5, 5), np.int64)
    losses = {"types": [MeanTrueLogit()], "coef": [1]}
    for settings in ({}, {"losses": losses}):
        with pytest.raises(UserError, match=r"sample 2.*same size"):
            quiet(Brightest(), data, **settings)


def test_masks_of_0_and_255_are_noticed(caplog):
    data = Scenes()
    quiet(Brightest(), data)
    assert not caplog.records
    data.labels = [np.where(label == 0, 0, 255) for label in data.labels]
    quiet(Brightest(), data)
    [record] = caplog.records
    assert "no class but red" in record.getMessage()
    assert "label_map: {0: 0, 255: 1}" in record.getMessage()


def test_masks_of_0_and_255_of_two_classes(caplog):
    """There the line to set is label_map alone."""
    data = Scenes(class_names=("red", "rest"))
    data.num_classes = 2
    data.labels = [np.where(label == 0, 0, 255) for label in data.labels]

    class Two(Brightest):
        def forward(self, x):
            return [super().forward(x)[0][:, :2]]

    quiet(Two(), data)
    [record] = caplog.records
    assert "set label_map: {0: 0, 255: 1} on both" in record.getMessage()


def test_images_without_labels_end_in_one_line(tmp_path):
    """Of a list, before anything runs; of one's own samples, when they come."""
    for name in ("a.png", "b.png", "m.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "l.txt").write_text("a.png\nb.png m.png\n")
    data = Dataset("test", str(tmp_path), [], 4, test_path="l.txt")
    with pytest.raises(UserError, match=r"1 of 2 images have no label, such as .*a\.png"):
        quiet(Brightest(), data)

    class Unlabelled(Scenes):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            del sample["label"]
            return sample

    with pytest.raises(UserError, match="sample 0 has no label"):
        quiet(Brightest(), Unlabelled())


def test_what_paddleseg_has_beyond_this(caplog):
    plain = quiet(Brightest(), Scenes())
    caplog.clear()
    # In PaddleSeg's order: precision, amp_level, num_workers, print_detail, auc_roc.
    window = (False, None, None)
    found = evaluate(Brightest(), Scenes(), False, 1.0, False, False, *window, "fp32", "O1", 0,
                     False, True, progress=False)  # fmt: skip
    assert found.records == plain.records
    assert [r.message for r in caplog.records if "auc_roc has no effect" in r.message]
    with pytest.raises(UserError, match="use_multilabel"):
        quiet(Brightest(), Scenes(), use_multilabel=True)


def test_mixed_precision_on_a_cpu_is_an_error():
    if paddle.get_device() != "cpu":
        pytest.skip("for CPUs")
    with pytest.raises(UserError, match="CPU"):
        quiet(Brightest(), Scenes(), precision="fp16")


def test_report(tmp_path):
    data = Scenes(class_names=["rot", "grün", "蓝", "none"])
    data.labels[1][:] = 255
    result = quiet(Brightest(), data, worst=2)
    files = write_report(result, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(files) == sorted(str(p) for p in folder.iterdir())
    summary = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert summary["mIoU"] == result.miou
    assert summary["images"] == len(data)
    assert summary["classes"][3]["iou"] is None
    assert summary["classes"][1]["name"] == "grün"
    assert summary["confusion_matrix"] == result.confusion.matrix.tolist()
    assert [w["index"] for w in summary["worst"]] == [w["index"] for w in result.worst]
    with open(folder / "metrics.csv", encoding="utf-8-sig", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["name"] for r in rows] == data.class_names
    assert float(rows[0]["iou"]) == result.class_iou[0]
    assert rows[3]["iou"] == ""
    with open(folder / "images.csv", encoding="utf-8-sig", newline="") as f:
        rows = list(csv.DictReader(f))
    assert rows[0]["path"] == result.worst[0]["path"]
    assert (rows[-1]["path"], rows[-1]["miou"]) == ("sample 1", "")
    table = result.table().splitlines()
    assert len(table) == 5
    assert table[4].split()[1:5] == ["-"] * 4

# SPDX-License-Identifier: Apache-2.0
"""One picture that fails, wherever on its way, does not cost the others."""

import errno
import json
import os

import numpy as np
import pytest
from paddle import nn

from paddleseg_deeplab.core.predict import predict, report
from paddleseg_deeplab.core.report import EvaluationResult
from paddleseg_deeplab.core.report import write_report as evaluation_report
from paddleseg_deeplab.core.training.watch import preview
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.prediction import batching, outputs, pictures
from paddleseg_deeplab.prediction.crf import refined
from paddleseg_deeplab.tools.check_dataset.check import check_datasets
from paddleseg_deeplab.tools.check_dataset.report import write_report
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import ConfusionMatrix

SIZE = (9, 12)
BAD = 2  # the picture's number, of five
MARK = 251  # its first value


class Network(nn.Layer):
    """The channels as logits; does something else where a picture of the batch is marked."""

    def __init__(self, on_mark=None):
        super().__init__()
        self.on_mark = on_mark

    def forward(self, x):
        marked = bool((x[:, 0, 0, 0] == MARK).any())
        return [self.on_mark(x) if marked and self.on_mark else x / 50]


class Marked:
    """A transform that raises for the marked picture."""

    effect = "colour"

    def __call__(self, data):
        if data["img"][0, 0, 0] == MARK:
            raise ZeroDivisionError("in a transform")
        return data


class Spoiling:
    """A transform of one's own that makes NaN of the marked picture."""

    effect = "colour"

    def __call__(self, data):
        return {**data, "img": np.where(data["img"][0, 0, 0] == MARK, np.nan, data["img"])}


def raises(error):
    def function(*_, **__):
        raise error

    function.effect = "colour"
    return function


def with_nan(x):
    logits = x / 50
    logits[:, 1, 3, 3] = float("nan")  # of all: each picture is looked at by itself then
    return logits


@pytest.fixture
def images(tmp_path):
    for i in range(5):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 250, (*SIZE, 3), dtype=np.uint8)
        image[0, 0] = MARK if i == BAD else 7
        visualize.save_image(tmp_path / "in" / f"{i}.png", image)
    return [str(tmp_path / "in" / f"{i}.png") for i in range(5)]


OUTPUTS = ("overlay", "palette", "raw", "prob")


def run(images, folder, network=None, transforms=(), **settings):
    settings = {"outputs": OUTPUTS[:3], "progress": False, "class_names": list("abc"), **settings}
    compose, folder = Compose(list(transforms)), str(folder)
    return predict(network or Network(), None, compose, images, save_dir=folder, **settings)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Crf:
    """In place of a dense CRF."""

    def __init__(self, on_mark=None):
        self.on_mark = on_mark

    def __call__(self, probabilities, image):
        if self.on_mark is not None and image[0, 0, 0] == MARK:
            raise self.on_mark
        return probabilities


WAYS = {
    "transform": ({"transforms": [Marked()]}, "ZeroDivisionError: in a transform"),
    "input": ({"transforms": [Spoiling()]}, "324 of 324 values are NaN"),
    "network": ({"network": Network(raises(RuntimeError("C++\n  traces\n" * 200)))}, "C++"),
    "memory": ({"network": Network(raises(MemoryError()))}, "Out of memory"),
    "nan": ({"network": Network(with_nan)}, "NaN or infinite"),
    "crf": ({"crf": Crf(ValueError("of its own"))}, "dense CRF: of its own"),
    "crf memory": ({"crf": Crf(MemoryError("no room"))}, "no room"),
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_the_others_are_done(images, tmp_path, way, num_workers, batch_size):
    settings, told = WAYS[way]
    options = {"num_workers": num_workers, "batch_size": batch_size, "outputs": OUTPUTS}
    result = run(images, tmp_path / "out", **settings, **options)
    others = [path for path in images if path != images[BAD]]
    assert list(result.written) == others
    [(path, reason)] = result.failed
    assert path == images[BAD]
    assert told in reason
    assert "\n" not in reason
    assert len(reason) < 600
    crf = {"crf": Crf()} if "crf" in settings else {}
    expected = run(others, tmp_path / "alone", image_dir=str(tmp_path / "in"), **options, **crf)
    assert not expected.failed
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    with pytest.raises(UserError, match=r"1 of 5 images could not be done.*2\.png"):
        report(result, 5, str(tmp_path / "out"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_result_that_cannot_be_written(images, tmp_path, num_workers):
    (tmp_path / "out" / "raw_prediction" / "2.png").mkdir(parents=True)  # a folder in its place
    result = run(images, tmp_path / "out", num_workers=num_workers)
    assert [path for path, _ in result.failed] == [images[BAD]]
    assert "directory" in result.failed[0][1]
    assert len(result.written) == 4


def test_a_name_that_is_too_long(images, tmp_path):
    stem = "x" * 250  # and with the extension in it, since two share it, 254 and ".png"
    for extension in ("bmp", "png"):
        picture = np.zeros((*SIZE, 3), np.uint8)
        visualize.save_image(tmp_path / "in" / f"{stem}.{extension}", picture)
    found, root = outputs.collect_images(str(tmp_path / "in"))
    result = run(found, tmp_path / "out", image_dir=root)
    assert len(result.written) == 5
    assert [path.rpartition(".")[2] for path, _ in result.failed] == ["bmp", "png"]
    assert all("too long" in reason for _, reason in result.failed)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, None])
def test_a_full_disk_ends_all(images, tmp_path, monkeypatch, code, num_workers):
    text = "7 requested and 0 written"  # NumPy's words, without a number
    error = OSError(text) if code is None else OSError(code, "full")
    monkeypatch.setattr(outputs, "write_outputs", raises(error))
    with pytest.raises(OSError, match=r"full|written"):
        run(images, tmp_path / "out", num_workers=num_workers)


def test_constant_images_outside_of_0_to_255(images, tmp_path):
    for i, value in enumerate((-9999, 3e5, 256)):
        path = tmp_path / "in" / f"c{i}.npy"
        np.save(path, np.full((*SIZE, 3), value, np.float32))
        images.append(str(path))
    result = run(images, tmp_path / "out")
    assert not result.failed
    assert len(result.written) == 8


def test_an_interrupt_is_none_of_a_pictures_failures(images, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "out", Network(raises(KeyboardInterrupt())))


def test_all_that_fail_are_named(images, tmp_path):
    result = run(images, tmp_path / "out", transforms=[Marked(), raises(ValueError("all"))])
    assert [path for path, _ in result.failed] == images
    assert not result.written
    assert not (tmp_path / "out").exists()


def test_batches_are_run_again_one_by_one_only_where_they_fail():
    calls = []

    def run_batch(samples, batch):
        calls.append(len(samples))
        if (batch == MARK).any():
            raise ValueError("marked")
        return [sample["im_path"] for sample in samples]

    values = [0, 1, MARK, 3, 4, 5]
    samples = [{"im_path": str(v), "img": np.full((1, 2, 2), v, np.float32)} for v in values]
    failures = []
    found = list(pictures.run_batches(run_batch, batching.equal_size_batches(samples, 3), failures))
    assert found == ["0", "1", "3", "4", "5"]
    assert failures == [(str(MARK), "ValueError: marked")]
    assert calls == [3, 1, 1, 1, 3]


def test_in_evaluation_a_crf_that_fails_is_an_error():
    sample = {"im_path": "a.png"}
    results = [(sample, None, np.zeros((2, *SIZE), np.float32))]
    image = np.full((*SIZE, 3), MARK, np.uint8)
    with pytest.raises(UserError, match=r"a\.png: the dense CRF: no"):
        list(refined(Crf(ValueError("no")), results, lambda _: image))


def test_previews_in_training(caplog):
    """A set of one's own gives images of another size than their labels."""

    class Odd:
        num_classes = 3

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"img": np.zeros((3, *SIZE), np.float32), "trans_info": []}

        def load_image(self, index):
            return np.zeros((SIZE[0] + (index == 1), SIZE[1], 3), np.uint8)

    found = dict(preview.Preview(Network(), Odd()).pictures(5))
    assert list(found) == [0, 2]
    assert "No preview of the validation image number 1: Image (10, 12)" in caplog.text


class Own:
    """A set with code of its own, which fails for one sample."""

    num_classes, file_list = 2, [[f"{i}.png", None] for i in range(4)]

    def __len__(self):
        return len(self.file_list)

    def load_image(self, index):
        if index == 1:
            raise KeyError("no such scene")
        if index == 2:
            return np.full((*SIZE, 3), np.nan, np.float32)
        return np.zeros((*SIZE, 3), np.uint8)

    def load_label(self, index):
        return np.ones(SIZE, np.uint8)


def test_check_of_a_set_with_code_of_its_own():
    class Embedded(Own, BaseDataset):
        pass

    dataset = Embedded.__new__(Embedded)
    dataset.transforms = None
    found = {f.kind: f for f in check_datasets({"train": dataset}, num_workers=2).findings}
    assert found["image_unreadable"].files == [("1.png", "'no such scene'")]
    assert found["image_values"].files == [("2.png", "324 of 324 values are NaN")]


def test_check_of_an_empty_array_and_of_a_name_that_is_not_utf8(tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((0, 5, 3), np.float32))
    odd = os.fsdecode(b"caf\xe9.npy")
    np.save(tmp_path / odd, np.full((4, 5, 3), np.nan, np.float32))
    visualize.save_image(tmp_path / "good.png", np.zeros((4, 5, 3), np.uint8))
    visualize.save_image(tmp_path / "label.png", np.zeros((4, 5), np.uint8))
    (tmp_path / "train.txt").write_text("good.png label.png\n")
    dataset = Dataset("train", str(tmp_path), [], 2, train_path="train.txt")
    for name in ("empty.npy", odd):
        dataset.file_list.append([str(tmp_path / name), str(tmp_path / "label.png")])
    check = check_datasets({"train": dataset}, num_workers=0)
    found = {f.kind: f for f in check.findings}
    assert found["image_unreadable"].files[0][1] == "an array of the shape (0, 5, 3)"
    assert found["image_values"].count == 1
    write_report(check, str(tmp_path / "report"), "c.yml")
    assert "caf\\udce9.npy" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))


def test_evaluation_report_of_a_name_that_is_not_utf8(tmp_path):
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    record = {"index": 0, "path": os.fsdecode(b"caf\xe9.png"), "miou": 1.0, "accuracy": 1.0}
    result = EvaluationResult(confusion, ["a", "b"], [record], [record])
    files = evaluation_report(result, str(tmp_path / "out"))
    assert len(files) == 4
    json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))

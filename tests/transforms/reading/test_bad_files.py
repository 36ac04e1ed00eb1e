# SPDX-License-Identifier: Apache-2.0
"""Images, labels and list files with faults: training names the file before anything is written."""

import io

import cv2
import numpy as np
import pytest
import yaml
from bad_input import GOOD, refuses
from PIL import Image

from paddleseg_deeplab.cli import predict, train, val
from paddleseg_deeplab.core.training.data.batches import training_batches
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.errors import UserError

SIZE = (24, 32)  # (height, width)


def png(array):
    return cv2.imencode(".png", np.asarray(array))[1].tobytes()


IMAGE = png(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8))
LABEL = png(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint8) % 3)
RGB = png(np.random.default_rng(1).integers(0, 3, (*SIZE, 3), np.uint8))
LINES = "a.png a_label.png\nb.png b_label.png\n"


def make(folder, **files):
    """Two images, a and b, and a config that trains and evaluates on them."""
    content = {"a.png": IMAGE, "b.png": IMAGE, "a_label.png": LABEL, "b_label.png": LABEL}
    content["list.txt"] = LINES.encode()
    (folder / "data").mkdir()
    for name, data in {**content, **files}.items():
        path = folder / "data" / name
        if data == "folder":
            path.mkdir()
        elif data is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    config = yaml.safe_load(GOOD)
    common = {"type": "Dataset", "dataset_root": "data", "num_classes": 3}
    common["transforms"] = [{"type": "Normalize"}]
    config["train_dataset"] = {**common, "mode": "train", "train_path": "list.txt"}
    config["val_dataset"] = {**common, "mode": "val", "val_path": "list.txt"}
    (folder / "c.yml").write_text(yaml.safe_dump(config), encoding="utf-8")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pdf():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PDF")
    return file.getvalue()


# What stands for the image b.png, and words of the message.
IMAGES = [
    (None, ["missing", "b.png"]),
    (b"", ["b.png"]),
    (b"\x89PNG\r\n\x1a\n", ["b.png"]),
    (IMAGE[:20], ["b.png"]),
    (IMAGE[: len(IMAGE) // 2], ["b.png"]),
    (b"some text", ["b.png"]),
    (b"\x00" * 100, ["b.png"]),
    (pdf(), ["b.png"]),
    ("folder", ["b.png"]),
    (png(np.zeros((5, 7, 3), np.uint8)), ["b_label.png", "7x5", "32x24"]),
    (png(np.zeros((*SIZE[::-1], 3), np.uint8)), ["b_label.png", "24x32", "32x24"]),
]
LABELS = [
    (None, ["missing", "b_label.png"]),
    (b"", ["b_label.png"]),
    (LABEL[:30], ["b_label.png"]),
    (LABEL[: len(LABEL) // 2], ["b_label.png"]),
    (b"some text", ["b_label.png"]),
    ("folder", ["b_label.png"]),
    (RGB, ["b_label.png", "RGB"]),
    (png(np.full(SIZE, 3, np.uint8)), ["b_label.png", "3"]),
    (png(np.full(SIZE, 254, np.uint8)), ["b_label.png", "254"]),
    (png(np.full(SIZE, 1000, np.uint16)), ["b_label.png", "1000"]),
    (png(np.zeros((5, 7), np.uint8)), ["b_label.png", "7", "32"]),
    (png(np.zeros(SIZE[::-1], np.uint8)), ["b_label.png", "24"]),
    (cv2.imencode(".jpg", np.full(SIZE, 77, np.uint8))[1].tobytes(), ["b_label.png", "77"]),
    (cv2.imencode(".tiff", np.zeros(SIZE, np.float32))[1].tobytes(), ["b_label.png", "float32"]),
]


def label_of(value):
    """A short id of a case."""
    return f"{len(value)}_bytes" if isinstance(value, bytes) else None


FILES = [("b.png", *case) for case in IMAGES] + [("b_label.png", *case) for case in LABELS]


@pytest.mark.parametrize(("name", "content", "words"), FILES, ids=label_of)
def test_images_and_labels(tmp_path, monkeypatch, capsys, name, content, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, **{name: content})
    refuses(train.main, ["--config", "c.yml", "--device", "cpu"], words, capsys, tmp_path)


# Bytes of data/list.txt (None: none), what train_dataset has besides, and words of the message.
LISTS = [
    (None, {}, ["list.txt", "train_path"]),
    ("folder", {}, ["list.txt"]),
    (b"", {}, ["list.txt", "names no files"]),
    (b"\n\n  \n", {}, ["list.txt", "names no files"]),
    (b"# a comment\n", {}, ["list.txt", "names no files"]),
    (b"\xef\xbb\xbf", {}, ["list.txt", "names no files"]),
    (b"\xff\xfea\x00.\x00p\x00n\x00g\x00", {}, ["list.txt"]),
    (bytes(range(256)), {}, ["list.txt"]),
    (IMAGE, {}, ["list.txt"]),
    (b"\x00\x00\x00", {}, ["list.txt"]),
    (b"a.png\x00 a_label.png\n", {}, ["list.txt", "zero bytes"]),
    (b"a.png,a_label.png\n", {}, ["list.txt:1", "separator", "a.png,a_label.png"]),
    (b"a.png;a_label.png\n", {}, ["list.txt:1", "separator"]),
    (b"a.png a_label.png\nb.png\n", {}, ["list.txt:2", "b.png"]),
    (b"a.png a_label.png extra.png\n", {}, ["list.txt:1", "extra.png"]),
    (b"my image.png a_label.png\n", {}, ["list.txt:1", "my image.png"]),
    (b"a.png a_label.png\n", {"separator": ","}, ["list.txt:1", "','"]),
    (b"a.png,\n", {"separator": ","}, ["list.txt:1", "a.png,"]),
    (b",a_label.png\n", {"separator": ","}, ["list.txt:1"]),
    (b"a.png a_label.png\n", {"separator": ""}, ["separator", "''"]),
    (b"a.png a_label.png\n", {"separator": 5}, ["separator", "5"]),
    (b"a.png a_label.png\n", {"separator": None}, ["separator", "None"]),
    (b"none.png a_label.png\n", {}, ["1 of the files", "none.png"]),
    (b"a.png none.png\nb.png none2.png\n", {}, ["2 of the files", "none.png", "none2.png"]),
    (b"../a.png a_label.png\n", {}, ["a.png"]),
    (b"data/a.png data/a_label.png\n", {}, ["a.png", "missing"]),
    (b"A.png a_label.png\r\n", {}, ["A.png"]),
    (b"a.png a_label.png\n", {"dataset_root": "none"}, ["dataset_root", "none"]),
    (b"a.png a_label.png\n", {"dataset_root": None}, ["dataset_root"]),
    (b"a.png a_label.png\n", {"dataset_root": "c.yml"}, ["c.yml"]),
    (b"a.png a_label.png\n", {"train_path": None}, ["train_path"]),
    (b"a.png a_label.png\n", {"train_path": 5}, ["train_path", "5"]),
    (b"a.png a_label.png\n", {"train_path": ["list.txt"]}, ["train_path", "list.txt"]),
    (b"a.png a_label.png\n", {"mode": "val"}, ["val_path"]),
    (b"a.png a_label.png\n", {"class_names": "none.txt"}, ["class_names", "none.txt"]),
    (b"a.png a_label.png\n", {"class_names": ["one"]}, ["class_names", "1", "3"]),
    (b"a.png a_label.png\n", {"class_names": 5}, ["class_names", "5"]),
    (b"a.png a_label.png\n", {"class_names": "a.png"}, ["class_names", "a.png"]),
    (b"a.png a_label.png\n", {"palette": [[0, 0, 0]]}, ["palette", "3"]),
    (b"a.png a_label.png\n", {"palette": 5}, ["palette"]),
    (b"a.png a_label.png\n", {"palette": [[0, 0, 900]] * 3}, ["palette", "255"]),
    (b"a.png a_label.png\n", {"label_map": 5}, ["label_map", "5"]),
    (b"a.png a_label.png\n", {"label_map": {}}, ["label_map", "{}"]),
    (b"a.png a_label.png\n", {"label_map": {0: 9}}, ["label_map", "9"]),
    (b"a.png a_label.png\n", {"label_map": {"x": 0}}, ["label_map", "'x'"]),
    (b"a.png a_label.png\n", {"label_map": {0: None}}, ["label_map", "None"]),
    (b"a.png a_label.png\n", {"label_map": {0: 0, 1: 1}}, ["a_label.png", "2"]),
    (b"a.png a_label.png\n", {"label_map": {0: float("inf")}}, ["label_map", "inf"]),
    (b"a.png a_label.png\n", {"num_classes": 2}, ["num_classes", "2", "3"]),
    (b"a.png a_label.png\n", {"ignore_index": -1}, ["ignore_index", "-1"]),
    (b"a.png a_label.png\n", {"ignore_index": "void"}, ["ignore_index", "'void'"]),
    (b"a.png a_label.png\n", {"edge": True}, ["edge"]),
    (b"a.png a_label.png\n", {"transforms": [{"type": "Padding", "target_size": [8, 8]}]}, ["8x8"]),
]


@pytest.mark.parametrize(("content", "settings", "words"), LISTS, ids=label_of)
def test_lists_and_settings(tmp_path, monkeypatch, capsys, content, settings, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, **{"list.txt": content})
    config = yaml.safe_load((tmp_path / "c.yml").read_text(encoding="utf-8"))
    config["train_dataset"].update(settings)
    del config["val_dataset"]
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    refuses(train.main, ["--config", "c.yml", "--device", "cpu"], words, capsys, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace(" ", "\t").encode(),
        b"# two\n\n" + LINES.encode() + b"  \n",
        LINES.encode() * 2,
        "größe.png 图.png\n".encode(),
    ],
    ids=["BOM", "CRLF", "tabs", "comments", "twice", "unicode"],
)
def test_lists_that_are_only_unusual(tmp_path, content):
    make(tmp_path, **{"list.txt": content, "größe.png": IMAGE, "图.png": LABEL})
    dataset = Dataset("train", tmp_path / "data", [Normalize()], 3, train_path="list.txt")
    assert dataset[0]["img"].shape == (3, *SIZE)


SPOILT = [
    ("b.png", b"", "b.png"),
    ("b.png", IMAGE[:50], "b.png"),
    ("b_label.png", LABEL[:50], "b_label.png"),
    ("b_label.png", png(np.full(SIZE, 9, np.uint8)), "b_label.png"),
]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("name", "content", "word"), SPOILT, ids=label_of)
def test_a_file_that_goes_bad_in_training_is_named(tmp_path, name, content, word, num_workers):
    """After the checks at the start: what a worker says arrives as it was said."""
    make(tmp_path)
    dataset = Dataset("train", tmp_path / "data", [Normalize()], 3, train_path="list.txt")
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        list(training_batches(dataset, 1, range(2), seed=0, num_workers=num_workers, shuffle=False))
    assert "\n" not in str(caught.value)


class Breaks:
    """A transform of one's own with a bug."""

    def __call__(self, data):
        raise IndexError("list index out of range")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bug_in_a_transform_names_the_image(tmp_path, num_workers):
    make(tmp_path)
    dataset = Dataset("train", tmp_path / "data", [Breaks()], 3, train_path="list.txt")
    with pytest.raises(RuntimeError, match=r"(?s)a\.png could not be read.*index out of range"):
        list(training_batches(dataset, 1, range(1), seed=0, num_workers=num_workers, shuffle=False))


@pytest.mark.parametrize("num_workers", ["0", "2"])
@pytest.mark.parametrize(("name", "content", "word"), SPOILT, ids=label_of)
def test_evaluation_names_the_file(tmp_path, monkeypatch, capsys, name, content, word, num_workers):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, **{name: content})
    flags = ["--config", "c.yml", "--device", "cpu", "--num_workers", num_workers]
    refuses(val.main, flags, [word], capsys, tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights for the network of `make`'s config."""
    from paddleseg_deeplab.cvlibs import Config, SegBuilder
    from paddleseg_deeplab.utils.weights.load import save_weights

    folder = tmp_path_factory.mktemp("weights")
    make(folder)
    path = folder / "model.pdparams"
    save_weights(SegBuilder(Config(folder / "c.yml", opts=["dataset_root=x"])).model, str(path))
    return path


# --image_path, the content of data/b.png, and words of the message.
PREDICTED = [
    ("data/b.png", b"", ["b.png"]),
    ("data/b.png", IMAGE[:40], ["b.png"]),
    ("data/b.png", b"text", ["b.png"]),
    ("data/b.png", "folder", ["b.png", "no images"]),
    ("data/none.png", IMAGE, ["none.png"]),
    ("data/words.txt", IMAGE, ["none.png"]),
    ("data/binary.dat", IMAGE, ["binary.dat"]),
    ("data/empty.txt", IMAGE, ["empty.txt", "no images"]),
    ("data/header.npy", IMAGE, ["header.npy"]),
    ("data/flat.npy", IMAGE, ["flat.npy", "(6,)"]),
    ("data/objects.npy", IMAGE, ["objects.npy"]),
    ("data/text.npy", IMAGE, ["text.npy"]),
]


@pytest.mark.parametrize(("path", "content", "words"), PREDICTED, ids=label_of)
def test_prediction_names_the_file(tmp_path, monkeypatch, capsys, weights, path, content, words):
    monkeypatch.chdir(tmp_path)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,"
    files = {"words.txt": b"none.png\n", "binary.dat": bytes(range(256)), "empty.txt": b"\n"}
    files["header.npy"] = header.ljust(128)
    files["flat.npy"] = npy(np.zeros(6))
    files["objects.npy"] = npy(np.array([{}], dtype=object))
    files["text.npy"] = npy(np.array(["a"]))
    make(tmp_path, **{"b.png": content, **files})
    flags = ["--config", "c.yml", "--model_path", weights, "--image_path", path, "--device", "cpu"]
    refuses(predict.main, flags, words, capsys, tmp_path)

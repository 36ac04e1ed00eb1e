# SPDX-License-Identifier: Apache-2.0
"""How a data check reads: cut files, each file once, threads; and the look before training."""

import io
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from faulty_sets import (
    COUNTS,
    Folder,
    H,
    W,
    colour_labels,
    copies,
    image_is_text,
    jpeg_cut,
    label,
    label_smaller,
    masks,
    picture,
    png_cut,
    repeats,
    run,
    stray_values,
)
from PIL import Image

from paddleseg_deeplab.cli import train
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.tools.check_dataset import check, files
from paddleseg_deeplab.tools.check_dataset.check import check_datasets, quick_check
from paddleseg_deeplab.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def encoded(form, **settings):
    buffer = io.BytesIO()
    Image.fromarray(picture(3, (24, 32))).save(buffer, form, **settings)
    return buffer.getvalue()


def jpeg_with_a_thumbnail():
    """A JPEG whose EXIF segment holds a whole JPEG, end marker and all."""
    inner = encoded("JPEG")
    segment = b"Exif\0\0" + inner
    outer = encoded("JPEG")
    return outer[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + outer[2:]


@pytest.mark.parametrize(
    ("content", "walk"),
    [
        (encoded("JPEG"), files.check_jpeg),
        (encoded("JPEG", progressive=True), files.check_jpeg),
        (encoded("JPEG", restart_marker_blocks=1), files.check_jpeg),
        (jpeg_with_a_thumbnail(), files.check_jpeg),
        (encoded("PNG"), files.check_png),
    ],
    ids=["baseline", "progressive", "restarts", "thumbnail", "png"],
)
def test_every_cut_is_found(content, walk):
    walk(content)
    for length in range(8, len(content)):
        with pytest.raises(files.Truncated):
            walk(content[:length])


def test_hash_is_of_pixels_and_shape():
    a = picture(1)
    assert files.pixel_hash(a) == files.pixel_hash(a.copy())
    assert files.pixel_hash(a) != files.pixel_hash(a.reshape(W, H, 3))
    b = a.copy()
    b[-1, -1, -1] ^= 1
    assert files.pixel_hash(a) != files.pixel_hash(b)


def test_workers_change_nothing(folder):
    for change in (label_smaller, copies, masks, png_cut, repeats):
        change(folder)
    results = [run(folder, "--num_workers", str(n)) for n in (0, 1, 3)]
    assert results[0] == results[1] == results[2]
    assert results[0][0] == 1


def test_each_file_is_read_once(folder, monkeypatch):
    folder.lists["val"] += folder.lists["train"]
    folder.lists["train"] += folder.lists["train"]
    reads, real = Counter(), files._content

    def counted(path, *rest):
        reads[path] += 1
        return real(path, *rest)

    monkeypatch.setattr(files, "_content", counted)
    result = check_datasets(folder.datasets(), num_workers=2)
    assert len(reads) == 2 * sum(COUNTS.values())
    assert set(reads.values()) == {1}
    train_set, val_set = result.sets["train"], result.sets["val"]
    assert (train_set.samples, train_set.checked, val_set.checked) == (12, 6, 9)
    # A repeated entry is seen twice in training, so its pixels count twice.
    assert train_set.counts.sum() == 12 * (H - 1) * W


def test_few_pairs_are_ahead(folder, monkeypatch):
    """Memory is bounded: facts do not pile up while the report is behind."""
    folder.lists["train"] = [f"train{k % 6}.png train{k % 6}_l.png" for k in range(6)]
    alive, most = [0], [0]
    real = check.read_pair

    def counted(*args):
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return real(*args)

    monkeypatch.setattr(check, "read_pair", counted)
    monkeypatch.setattr(check, "_AHEAD", 1)
    plain = types.SimpleNamespace(nodata=None)
    tasks = {(3, "None", str(k), None): [(plain, 1)] for k in range(50)}
    for _ in check._read_all(tasks, 2):
        alive[0] -= 1
    # Two running or waiting for each of two threads, and the one that is handed out.
    assert most[0] <= 4


def test_progress_counts_pairs(folder):
    class Bar:
        def __init__(self, total):
            self.total, self.done, self.closed = total, 0, False

        def update(self, n):
            self.done += n

        def close(self):
            self.closed = True

    bars = []
    check_datasets(folder.datasets(), progress=lambda n: bars.append(Bar(n)) or bars[-1])
    assert (bars[0].total, bars[0].done, bars[0].closed) == (9, 9, True)


# ------------------------------------------------------------------------------- before training

# Faults that the cheap half has to find, and the words of its line.
EARLY = [
    (png_cut, None),  # in val, which is checked with do_eval only
    (label_smaller, "image 24x16, label 22x16"),
    (colour_labels, "hold colours"),
    (stray_values, "label_map: {0: 0, 1: 1, 2: 2, 77: 255, 200: 255}"),
    (masks, "label_map: {0: 0, 255: 1}"),
    (jpeg_cut, "end marker"),
    (image_is_text, None),
]


@pytest.mark.parametrize(("change", "words"), EARLY, ids=lambda v: getattr(v, "__name__", ""))
def test_training_looks_first(folder, change, words):
    change(folder)
    datasets = folder.datasets()
    if words is None:
        quick_check({"train_dataset": datasets["train"]}, "my.yml")
        with pytest.raises(UserError, match=r"val_dataset: .*check_dataset --config my.yml"):
            quick_check({"val_dataset": datasets["val"]}, "my.yml")
        return
    with pytest.raises(UserError) as caught:
        quick_check({"train_dataset": datasets["train"]}, "my.yml")
    text = str(caught.value)
    assert words in text
    assert text.startswith("train_dataset: ")
    assert "\n" not in text
    assert "paddleseg-deeplab check_dataset --config my.yml" in text


def test_training_accepts(folder, tmp_path):
    folder.lists["val"] += folder.lists["train"]  # warnings and leaks are check_dataset's matter
    datasets = folder.datasets()
    quick_check({f"{name}_dataset": each for name, each in datasets.items()}, "my.yml")
    quick_check({"train_dataset": Shapes([], "train", num_samples=2)}, "my.yml")
    (tmp_path / "data/train2.png").unlink()
    with pytest.raises(UserError, match="do not exist"):
        quick_check({"train_dataset": datasets["train"]}, "my.yml")


def test_rare_objects_are_no_masks_of_void(folder):
    """A few labels without the one class beside void are refused only if hundreds agree."""
    folder.settings["num_classes"] = 2
    background = label((0,))
    lines = []
    for k in range(40):
        folder.image(f"train{k}.png", picture(k))
        folder.label(f"train{k}_l.png", label((0, 1)) if k == 1 else background)
        lines.append(f"train{k}.png train{k}_l.png")
    folder.lists["train"] = lines
    quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")
    folder.label("train1_l.png", background)
    with pytest.raises(UserError, match="0/255 masks"):
        quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")


def test_masks_of_0_and_255_among_more_classes(folder):
    """A label_map would merge the classes, as of masks whose objects all became void."""
    folder.all_labels(label((0, 255)))
    status, report, text = run(folder)
    assert status == 1
    finding = report["findings"][0]
    assert finding["kind"] == "mask_0_255"
    assert finding["paste"] == []
    assert "prepare_dataset coco --crowd class" in finding["advice"]
    assert "label_map: {0: 0, 255: 1}" not in text
    with pytest.raises(UserError, match="No pixel is of the classes 1 to 2"):
        quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")


def test_sets_of_void_are_refused_and_sparse_ones_not(folder):
    void = np.full((H, W), 255, np.uint8)
    folder.lists["train"] = []
    for k in range(40):
        folder.image(f"train{k}.png", picture(k))
        folder.label(f"train{k}_l.png", label((0,)) if k == 1 else void)
        folder.lists["train"].append(f"train{k}.png train{k}_l.png")
    quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")
    folder.label("train1_l.png", void)
    with pytest.raises(UserError, match="without any labelled pixel"):
        quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")


def test_lists_that_are_empty_or_have_no_labels(folder):
    folder.lists["val"] = ["alone.png"]
    status, report, _ = run(folder)
    assert status == 1
    assert [f["kind"] for f in report["findings"]] == ["bad_line"]
    assert report["findings"][0]["count"] == 2  # the line, and that no other is left
    folder.lists["val"] = folder.lists["train"]
    dataset = folder.datasets()["train"]
    dataset.file_list = [entry[:1] for entry in dataset.file_list]
    assert check_datasets({"train": dataset}).findings == []


def test_only_a_handful_is_read(folder, monkeypatch):
    reads = []
    monkeypatch.setattr(
        check, "read_pair", lambda *args: reads.append(args) or files.read_pair(*args)
    )
    folder.lists["train"] = []
    for k in range(40):
        folder.image(f"train{k}.png", picture(k))
        folder.lists["train"].append(f"train{k}.png train{k % 6}_l.png")
    quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")
    assert len(reads) == 16
    assert reads[0][0].endswith("train0.png")
    assert reads[-1][0].endswith("train39.png")


def test_train_stops_before_the_model(folder, tmp_path, capsys, monkeypatch):
    masks(folder)
    dic = yaml.safe_load(Path(folder.config()).read_text())
    dic.update(
        model={"type": "DeepLabV3P", "backbone": {"type": "ResNet18_vd"}},
        loss={"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
        optimizer={"type": "SGD"},
        lr_scheduler={"type": "PolynomialDecay", "learning_rate": 0.01},
    )
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(dic))
    from paddleseg_deeplab.cvlibs import SegBuilder

    monkeypatch.setattr(SegBuilder, "model", property(lambda _: pytest.fail("a model was built")))
    flags = ["--config", str(path), "--save_dir", str(tmp_path / "run"), "--device", "cpu"]
    assert train.main(flags) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: train_dataset: 0/255 masks")
    assert "{0: 0, 255: 1}" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_no_damage_raises(tmp_path):
    """Decoders raise anything on damaged files; a check goes on to the next file."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    np.save(buffer, label())
    sources = [
        *(encoded(form) for form in ("JPEG", "PNG", "BMP", "TIFF", "GIF")),
        buffer.getvalue(),
    ]
    kinds = Counter()
    for k in range(300):
        content = bytearray(sources[k % len(sources)])
        for place in rng.integers(0, min(len(content), 120), 3):
            content[place] = rng.integers(256)
        if k % 3 == 0:
            content = content[: rng.integers(1, len(content))]
        path = tmp_path / ("a.npy" if k % len(sources) == 5 else "a.bin")
        path.write_bytes(content)
        problems = files.read_pair(str(path), str(path), 3).problems
        kinds.update(kind.split("_", 1)[1] for kind, _, _ in problems)
    assert kinds["unreadable"] > 50
    assert kinds["truncated"] > 50

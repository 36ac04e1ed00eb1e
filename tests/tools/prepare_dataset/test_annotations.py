# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset labelme and coco: known shapes, read back by `Dataset`."""

import base64
import os

import numpy as np
from annotated_sets import (
    SQUARE,
    H,
    W,
    box,
    call,
    coco,
    drawn,
    image,
    indices,
    labelme,
    load,
    polygon,
    tree,
)
from PIL import Image

from paddleseg_deeplab.cli.main import run_verb

# ---------------------------------------------------------------------------------------- labelme


def expected_of(k, cat=1, dog=2):
    labels = np.zeros((H, W), int)
    labels[0:4, k : k + 3] = dog
    labels[5:9, 0:9] = cat
    return labels


def test_labelme(tmp_path):
    source, out = drawn(tmp_path / "in"), tmp_path / "out"
    flags = ("labelme", "--annotations", source, "--save_dir", out, "--val", 0.4)
    assert call(*flags, "--dry_run") == 0
    assert not out.exists()
    assert call(*flags) == 0
    seen = {}
    for mode, count in (("train", 3), ("val", 2)):
        dataset = load(out, mode, ",")  # the folders' names have blanks
        assert dataset.class_names == ["background", "cat", "dog"]
        assert len(dataset) == count
        for sample in map(dataset.__getitem__, range(count)):
            k = int(os.path.basename(sample["im_path"])[0])
            assert (sample["label"] == expected_of(k)).all()
            seen[k] = mode
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert indices(out / "annotations/day 0/0.png").max() == 2
    before = tree(out)
    assert call(*flags) == 0  # nothing to do
    assert call(*flags, "--overwrite") == 0
    assert tree(out) == before
    assert call(*flags, "--classes", "dog", "cat") == 2  # class_names.txt would change
    assert tree(out) == before


def test_labelme_keeps_folders_together(tmp_path):
    source, out = drawn(tmp_path / "in", 8), tmp_path / "out"
    assert call("labelme", "--annotations", source, "--save_dir", out, "--group_by_folder") == 0
    folders = [
        {os.path.dirname(pair[0]) for pair in load(out, mode, ",").file_list}
        for mode in ("train", "val")
    ]
    assert [len(each) for each in folders] == [1, 1]
    assert folders[0] != folders[1]


def test_labelme_classes_in_a_file_and_an_image_inside(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    names = tmp_path / "labels.txt"
    names.write_text("__ignore__\n_background_\ndog\ncat\n", encoding="utf-8")
    image(tmp_path / "x.png")
    coded = base64.b64encode((tmp_path / "x.png").read_bytes()).decode()
    shapes = [box("dog", 0, 0, 3, 3), box("__ignore__", 2, 2, 5, 5), box("tree", 8, 8, 9, 9)]
    labelme(source / "a.json", shapes, imageData=coded, imagePath="..\\gone\\a.jpg")
    flags = ("labelme", "--annotations", source, "--save_dir", out, "--val", 0, "--classes", names)
    assert call(*flags) == 2
    assert call(*flags, "--other_labels", "void") == 0
    expected = np.zeros((H, W), int)
    expected[0:3, 0:3] = 1
    expected[2:5, 2:5] = expected[8, 8] = 255
    [sample] = list(map(load(out, "train").__getitem__, [0]))
    assert (sample["label"] == expected).all()
    assert (out / "class_names.txt").read_text() == "background\ndog\ncat\n"
    assert sample["img"].max() == 90


def test_unknown_labels_are_listed_with_counts(tmp_path, capsys):
    source = drawn(tmp_path / "in", 3)
    flags = ("labelme", "--annotations", source, "--save_dir", tmp_path / "out", "--classes")
    assert call(*flags, "dogs", "bird") == 2
    error = capsys.readouterr().err
    assert "'cat' (3), 'dog' (3)" in error
    assert not (tmp_path / "out").exists()


def test_an_image_turned_by_its_exif(tmp_path):
    """It was drawn on as training sees it: upright."""
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (H, W)).save(tmp_path / "in/a.jpg", exif=exif)
    labelme(tmp_path / "in/a.json", [box("dog", 2, 3, 4, 5)])
    flags = ("labelme", "--annotations", tmp_path / "in", "--save_dir", tmp_path / "o", "--val", 0)
    assert call(*flags) == 0
    sample = load(tmp_path / "o", "train", classes=2)[0]
    assert sample["label"].shape == sample["img"].shape[1:] == (H, W)
    assert sample["label"].sum() == 4


# ------------------------------------------------------------------------------------------- COCO


def test_coco(tmp_path):
    runs = {"size": [H, W], "counts": [H * 4, H * 2, H * 10]}
    crowd = {"image_id": 5, "category_id": 9, "iscrowd": 1, "segmentation": runs}
    small = polygon(3, 3, 5, 3, 5, 5, 3, 5, category_id=9)
    images = [
        {"id": 5, "file_name": "a.jpg", "height": H, "width": W},
        {"id": 6, "file_name": "sub/b.jpg"},
    ]
    flags = coco(tmp_path, [small, SQUARE, crowd], images)
    assert call(*flags) == 0
    expected = np.zeros((H, W), int)
    expected[:, 4:6] = 255
    expected[2:8, 2:8] = 1
    expected[3:5, 3:5] = 2
    dataset = load(tmp_path / "o", "train")
    assert dataset.class_names == ["background", "cow", "kite"]
    assert (dataset[0]["label"] == expected).all()
    assert not dataset[1]["label"].any()
    assert call(*flags, "--mode", "val", "--crowd", "skip") == 0
    assert 255 not in load(tmp_path / "o", "val")[0]["label"]
    assert call(*flags, "--mode", "test", "--classes", "kite") == 2
    flags = (*flags[:-1], tmp_path / "p", "--classes", "kite", "--other_labels", "background")
    assert call(*flags) == 0
    only = load(tmp_path / "p", "train", classes=2)[0]["label"]
    # Cows are background now, on top of the crowd as before.
    assert (only == np.choose(np.minimum(expected, 3), [0, 0, 1, 255])).all()
    assert set(np.unique(only)) == {0, 1, 255}


def test_coco_by_several_processes(tmp_path):
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(5)]
    records = [polygon(k, 0, 9, 0, 9, 9, image_id=k) for k in range(5)]
    flags = [str(flag) for flag in coco(tmp_path, records, images)]
    assert run_verb("prepare_dataset", [*flags, "--num_workers", "2"]) == 0
    before = tree(tmp_path / "o")
    assert call(*flags, "--overwrite") == 0
    assert tree(tmp_path / "o") == before

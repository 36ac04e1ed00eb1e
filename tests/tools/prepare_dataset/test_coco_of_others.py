# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset coco with the JSON of CVAT, Roboflow and people's own programs."""

import json

import numpy as np
import pytest
from annotated_sets import SQUARE, H, W, call, coco, indices, lines, load, polygon, tree

COW = np.zeros((H, W), int)
COW[2:8, 2:8] = 1  # what SQUARE draws, as class 1


def brush(first, width, category_id=3, image_id=5):
    """What CVAT writes for a mask that was drawn by brush: whole columns, as runs, and iscrowd."""
    runs = {"size": [H, W], "counts": [H * first, H * width, H * (W - first - width)]}
    return {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 1,
        "segmentation": runs,
    }


def changed(root, change, annotations=(SQUARE,), **more):
    """Flags of a COCO set whose JSON `change` changes."""
    flags = coco(root, list(annotations), **more)
    content = json.loads((root / "i.json").read_text(encoding="utf-8"))
    change(content)
    (root / "i.json").write_text(json.dumps(content), encoding="utf-8")
    return flags


# ---------------------------------------------------------------------------------------- crowds

ALL_CROWD = {
    "one class": ([brush(0, 3)], "1 of 1 annotations are crowds", "cow (1 of 1)"),
    "every class": (
        [brush(0, 3), brush(5, 2), brush(9, 1, 9)],
        "3 of 3 annotations",
        "cow (2 of 2), kite (1 of 1)",
    ),
    "one of two classes": ([SQUARE, brush(0, 3, 9)], "1 of 2", "kite (1 of 1)"),
    "small ones": ([brush(k, 1) for k in range(12)], "12 of 12 annotations", "cow (12 of 12)"),
    "true in place of 1": ([dict(brush(0, 3), iscrowd=True)], "1 of 1", "cow (1 of 1)"),
}


@pytest.mark.parametrize("case", ALL_CROWD)
def test_a_class_that_is_all_crowd_stops(tmp_path, case, capsys):
    annotations, counts, classes = ALL_CROWD[case]
    flags = coco(tmp_path, annotations)
    before = tree(tmp_path)
    assert call(*flags) == 2
    error = capsys.readouterr().err
    for words in (counts, classes, "--crowd class", "CVAT"):
        assert words in error, error
    assert len(error.splitlines()) == 1
    assert tree(tmp_path) == before


def test_masks_of_a_brush_become_classes(tmp_path, capsys):
    flags = coco(tmp_path, [brush(0, 3), brush(9, 1, 9)])
    assert call(*flags, "--crowd", "class") == 0
    expected = np.zeros((H, W), int)
    expected[:, 0:3], expected[:, 9] = 1, 2
    assert (load(tmp_path / "o", "train")[0]["label"] == expected).all()
    assert "2 of 2 annotations are crowds (iscrowd), now of their class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "values", "words"),
    [("void", {0, 255}, "1 of 1 annotations are crowds (iscrowd), now void (255)"),
     ("skip", {0}, "1 of 1 annotations are crowds (iscrowd), now left out")],
)  # fmt: skip
def test_what_was_asked_for_is_done_and_said(tmp_path, capsys, flag, values, words):
    assert call(*coco(tmp_path, [brush(0, 3)]), "--crowd", flag) == 0
    assert set(np.unique(indices(tmp_path / "o/annotations/train/a.png"))) == values
    assert words in capsys.readouterr().err


def test_real_crowds_are_void_and_counted(tmp_path, capsys):
    """As in COCO itself: some of a class."""
    assert call(*coco(tmp_path, [SQUARE, brush(9, 2)])) == 0
    expected = COW.copy()
    expected[:, 9:11] = 255
    assert (load(tmp_path / "o", "train")[0]["label"] == expected).all()
    assert "1 of 2 annotations are crowds (iscrowd), now void (255)" in capsys.readouterr().err


def test_without_crowds_nothing_is_said_of_them(tmp_path, capsys):
    assert call(*coco(tmp_path, [SQUARE])) == 0
    assert "(iscrowd)" not in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("told", [(W, H), (H + 1, W), (2 * H, 2 * W), (1, 1), (W, W)])
def test_wrong_sizes_have_a_way_on(tmp_path, told, capsys):
    image = {"id": 5, "file_name": "a.jpg", "height": told[0], "width": told[1]}
    flags = coco(tmp_path, [SQUARE], [image])
    assert call(*flags) == 1
    error = capsys.readouterr().err
    assert "--ignore_sizes" in error
    assert ("sides are swapped" in error) == (told == (W, H))
    assert call(*flags, "--ignore_sizes") == 0
    assert (load(tmp_path / "o", "train")[0]["label"] == COW).all()


@pytest.mark.parametrize(
    "points",
    [(2, 2, 8, 2, 8, H + 2), (W + 2, 2, 8, 2, 8, 8), (-2, 1, 5, 1, 5, 5), (1, -2, 5, 1, 5, 5),
     (2, 2, 2 * W, 2, 2, 2 * H)],
)  # fmt: skip
def test_drawings_of_another_size_are_not_taken_for_it(tmp_path, points, capsys):
    assert call(*coco(tmp_path, [polygon(*points)]), "--ignore_sizes") == 1
    assert "--ignore_sizes cannot help" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- paths

PATHS = (
    "C:\\data\\x\\a.jpg", "/home/u/x/a.jpg", "..\\images\\a.jpg", "../a.jpg",
    "\\\\server\\x\\a.jpg", "D:a.jpg/a.jpg",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_another_machine_have_a_way_on(tmp_path, path, capsys):
    flags = changed(tmp_path, lambda c: c["images"][0].update(file_name=path))
    assert call(*flags) == 2
    assert "--basename" in capsys.readouterr().err
    assert call(*flags, "--basename") == 0
    assert (load(tmp_path / "o", "train")[0]["label"] == COW).all()


@pytest.mark.parametrize("path", ["sub\\a.jpg", ".\\sub\\a.jpg", "./sub/a.jpg", "sub//a.jpg"])
def test_relative_paths_are_read_as_they_are_meant(tmp_path, path):
    flags = changed(
        tmp_path,
        lambda c: c["images"][0].update(file_name=path),
        images=[{"id": 5, "file_name": "sub/a.jpg"}],
    )
    assert call(*flags) == 0
    assert (load(tmp_path / "o", "train")[0]["label"] == COW).all()


def test_paths_from_a_folder_above(tmp_path, capsys):
    flags = changed(tmp_path, lambda c: c["images"][0].update(file_name="images/a.jpg"))
    assert call(*flags) == 1
    assert "1 images are not where the JSON says" in capsys.readouterr().err
    assert call(*flags, "--basename") == 0


def test_names_that_are_no_longer_different(tmp_path, capsys):
    images = [{"id": 5, "file_name": "x/a.jpg"}, {"id": 6, "file_name": "y/a.jpg"}]
    assert call(*coco(tmp_path, [SQUARE], images), "--basename") == 2
    assert "would both be written" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ categories


def test_two_categories_of_one_name(tmp_path, capsys):
    categories = [{"id": 3, "name": "cow"}, {"id": 8, "name": "big cow"}, {"id": 9, "name": "cow"}]
    other = polygon(10, 2, 12, 2, 12, 4, 10, 4, category_id=9)
    flags = coco(tmp_path, [SQUARE, other], categories=categories)
    assert call(*flags) == 2
    error = capsys.readouterr().err
    assert "category cow twice" in error
    assert "--classes cow 'big cow'" in error
    assert call(*flags, "--classes", "cow", "big cow") == 0
    expected = COW.copy()
    expected[2:4, 10:12] = 1
    assert (load(tmp_path / "o", "train")[0]["label"] == expected).all()


def test_a_category_that_is_listed_twice_as_it_is(tmp_path, capsys):
    flags = changed(tmp_path, lambda c: c["categories"].append(dict(c["categories"][0])))
    assert call(*flags) == 0
    assert load(tmp_path / "o", "train").class_names == ["background", "cow", "kite"]


def test_an_id_of_two_categories(tmp_path, capsys):
    flags = changed(tmp_path, lambda c: c["categories"].append({"id": 3, "name": "horse"}))
    assert call(*flags) == 2
    error = capsys.readouterr().err
    assert "'cow' and 'horse'" in error
    assert "Give each an id of its own" in error


ROOTS = {
    "Roboflow's": [{"id": 0, "name": "things", "supercategory": "none"}],
    "its own group": [{"id": 0, "name": "things", "supercategory": "things"}],
    "without a group": [{"id": 0, "name": "things"}],
    "last": [{"id": 77, "name": "things", "supercategory": ""}],
    "text for an id": [{"id": "root", "name": "things", "supercategory": "none"}],
}


@pytest.mark.parametrize("case", ROOTS)
def test_a_category_that_only_groups_others(tmp_path, case, capsys):
    leaf = {"id": 3, "name": "cow", "supercategory": "things"}
    flags = coco(tmp_path, [SQUARE], categories=[*ROOTS[case], leaf])
    assert call(*flags) == 0
    assert "'things'" in (error := capsys.readouterr().err)
    assert "only groups others: left out; --classes keeps it" in error
    assert load(tmp_path / "o", "train", classes=2).class_names == ["background", "cow"]
    flags = (*flags[:-1], tmp_path / "p", "--classes", "things", "cow")
    assert call(*flags) == 0
    assert (load(tmp_path / "p", "train")[0]["label"] == 2 * COW).all()


def test_a_category_without_annotations_stays_a_class(tmp_path):
    """It may have some in the other file, of train or val."""
    categories = [
        {"id": 1, "name": "person", "supercategory": "person"},  # as in COCO
        {"id": 3, "name": "cow", "supercategory": "animal"},
    ]
    assert call(*coco(tmp_path, [SQUARE], categories=categories)) == 0
    assert load(tmp_path / "o", "train").class_names == ["background", "person", "cow"]
    assert len(lines(tmp_path / "o", "train")) == 1

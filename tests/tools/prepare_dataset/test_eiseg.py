# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset eiseg: each of the forms in which EISeg writes labels gives the same masks."""

import json

import numpy as np
import pytest
from annotated_sets import H, W, call, image, indices, lines, load, mask
from PIL import Image

from paddleseg_deeplab.tools.prepare_dataset.eiseg import read_label_list
from paddleseg_deeplab.utils.errors import UserError

LIST = "1 road 128 64 128 \n7 traffic light 250 170 30 \n3 sky 70 130 180 \n"
CODES = {1: (128, 64, 128), 7: (250, 170, 30), 3: (70, 130, 180)}
BOXES = {1: (0, 0, 6, 4), 7: (2, 2, 9, 8), 3: (9, 9, 16, 12)}  # left, top, right, bottom


def ids():
    """The grey values of a mask: later boxes on top."""
    labels = np.zeros((H, W), np.uint8)
    for number, (left, top, right, bottom) in BOXES.items():
        labels[top:bottom, left:right] = number
    return labels


def classes():
    """The same as classes: 1 road, 2 sky, 3 traffic light, in the order of their ids."""
    return np.select([ids() == 1, ids() == 3, ids() == 7], [1, 2, 3], 0)


def pseudo():
    colours = np.zeros((H, W, 3), np.uint8)
    for number, colour in CODES.items():
        colours[ids() == number] = colour
    return colours


def polygons():
    return json.dumps(
        [
            {
                "name": "x",
                "labelIdx": number,
                "color": CODES[number],
                "points": [[left, top], [right, top], [right, bottom], [left, bottom]],
            }
            for number, (left, top, right, bottom) in BOXES.items()
        ]
    )


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        (folder / name).write_text(content, encoding="utf-8")
    else:
        Image.fromarray(content).save(folder / name)


FORMS = {
    "grey": ("a.png", ids, "1 grey"),
    "json": ("a.json", polygons, "1 json"),
    "pseudo": ("a_pseudo.png", pseudo, "1 pseudo"),
    "remote sensing": ("a_mask.tif", ids, "1 grey"),
    "json with the ending": ("a.jpg.json", polygons, "1 json"),
}


def flags_of(root, *more):
    image(root / "in/a.jpg")
    (root / "in/label").mkdir(exist_ok=True)
    (root / "in/label/autosave_label.txt").write_text(LIST, encoding="utf-8")
    return ("eiseg", "--images", root / "in", "--save_dir", root / "o", "--val", 0, *more)


@pytest.mark.parametrize("case", FORMS)
def test_each_form_gives_the_same_mask(tmp_path, case, capsys):
    name, content, words = FORMS[case]
    flags = flags_of(tmp_path)
    write(tmp_path / "in/label", name, content())
    assert call(*flags) == 0
    assert (indices(tmp_path / "o/annotations/a.png") == classes()).all()
    assert f"from: {words}" in capsys.readouterr().err
    dataset = load(tmp_path / "o", "train", classes=4)
    assert dataset.class_names == ["background", "road", "sky", "traffic light"]
    assert (dataset[0]["label"] == classes()).all()


def test_grey_values_go_first_and_cutouts_are_no_images(tmp_path):
    flags = flags_of(tmp_path)
    for name, content in (
        ("a.png", ids()),
        ("a_pseudo.png", pseudo()),
        ("a_cutout.png", pseudo()),
        ("a.json", "[]"),
    ):
        write(tmp_path / "in/label", name, content)
    for _ in range(2):
        assert call(*flags) == 0
        assert (indices(tmp_path / "o/annotations/a.png") == classes()).all()
        assert len(lines(tmp_path / "o", "train")) == 1


def test_another_folder_and_list(tmp_path):
    flags = flags_of(tmp_path, "--labels", tmp_path / "l", "--label_list", tmp_path / "mine.txt")
    write(tmp_path / "l", "a.png", ids())
    (tmp_path / "mine.txt").write_text("1 street\n3 air\n7 lamp\n")
    assert call(*flags) == 0
    assert load(tmp_path / "o", "train", classes=4).class_names[1:] == ["street", "air", "lamp"]
    flags = (*flags, "--save_dir", tmp_path / "p", "--classes", "lamp", "--other_labels", "void")
    assert call(*flags) == 0
    found = indices(tmp_path / "p/annotations/a.png")
    assert (found == np.choose(classes(), [0, 255, 255, 1])).all()


@pytest.mark.parametrize("flag", [None, "skip", "background"])
def test_images_that_are_not_done_yet(tmp_path, flag, capsys):
    flags = flags_of(tmp_path, *(["--unlabelled", flag] if flag else []))
    write(tmp_path / "in/label", "a.png", ids())
    image(tmp_path / "in/b.jpg")
    assert call(*flags) == 0
    assert "1 images have no labels, such as b.jpg" in capsys.readouterr().err
    assert len(lines(tmp_path / "o", "train")) == 1 + (flag == "background")


BAD = {
    "no list": (lambda r: (r / "in/label/autosave_label.txt").unlink(), 2, "--label_list"),
    "only COCO": (
        lambda r: (
            (r / "in/label/autosave_label.txt").unlink(),
            (r / "in/label/annotations.json").write_text("{}"),
        ),
        2,
        "prepare_dataset coco",
    ),
    "no folder": (lambda r: (r / "in/label").rename(r / "in/other"), 2, "no such folder"),
    "nothing done": (lambda r: None, 2, "no file there belongs"),
    "an id of no label": (lambda r: mask(r / "in/label/a.png", ids() + 10), 1, "10 ("),
    "polygon of no label": (
        lambda r: write(r / "in/label", "a.json", polygons().replace(': 3,', ': 4,')),
        1,
        "the id 4",
    ),
    "cut JSON": (lambda r: write(r / "in/label", "a.json", "["), 1, "no whole JSON"),
    "labelme's JSON": (lambda r: write(r / "in/label", "a.json", '{"shapes": []}'), 1, "labelme"),
    "no points": (lambda r: write(r / "in/label", "a.json", '[{"labelIdx": 1}]'), 1, "no points"),
    "another colour": (
        lambda r: write(r / "in/label", "a_pseudo.png", np.full((H, W, 3), 9, np.uint8)),
        1,
        "(9, 9, 9)",
    ),
    "another size": (lambda r: mask(r / "in/label/a.png", ids()[:-1]), 1, f"({H}, {W})"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_named(tmp_path, case, capsys):
    spoil, status, words = BAD[case]
    flags = flags_of(tmp_path)
    spoil(tmp_path)
    assert call(*flags) == status
    error = capsys.readouterr().err
    assert words in error, error
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["road 1 2 3", "0 road 1 2 3", "255 x 1 2 3", "1 a\n1 b", "\n"])
def test_bad_lists_of_labels(tmp_path, text):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(UserError, match=r"l\.txt"):
        read_label_list(str(tmp_path / "l.txt"))

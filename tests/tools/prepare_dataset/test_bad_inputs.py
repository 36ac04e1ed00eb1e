# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset with bad input: status 2 and nothing written, or status 1 and the file named."""

import base64
import json
import os
import sys

import numpy as np
import pytest
from annotated_sets import (
    SQUARE,
    H,
    W,
    box,
    call,
    coco,
    drawn,
    folders,
    image,
    labelme,
    lines,
    mask,
    polygon,
    tree,
)  # fmt: skip

from paddleseg_deeplab.cli.main import run_verb


def drawn_flags(root, *more):
    drawn(root / "in", 3)
    return ("labelme", "--annotations", root / "in", "--save_dir", root / "out", *more)


def with_record(root, change):
    """COCO whose content `change` spoils."""
    flags = coco(root, [SQUARE])
    content = json.loads((root / "i.json").read_text())
    changed = change(content)
    content = changed if isinstance(changed, (dict, list)) else content
    (root / "i.json").write_text(json.dumps(content))
    return flags


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


WHOLE = {  # status 2, nothing written: flags, or annotations that are wrong as a whole
    "no kind": (lambda r: (), "kind"),
    "unknown kind": (lambda r: ("ade",), "invalid choice"),
    "unknown flag": (lambda r: ("split", "--what"), "required"),
    "cityscapes without a folder": (
        lambda r: ("cityscapes", "--dataset_root", r / "no"),
        "no such folder",
    ),
    "cityscapes without labels": (lambda r: ("cityscapes", "--dataset_root", r), "labelIds.png"),
    "sbd without its files": (
        lambda r: ("voc_sbd", "--sbd_root", r, "--voc_root", r),
        "it lacks cls",
    ),
    "labelme without a folder": (
        lambda r: ("labelme", "--annotations", r / "no", "--save_dir", r / "o"),
        "no such folder",
    ),
    "labelme in an empty folder": (
        lambda r: ("labelme", "--annotations", r, "--save_dir", r / "o"),
        "no .json files",
    ),
    "output is a file": (
        lambda r: (
            *drawn_flags(r)[:3], "--save_dir", written(r / "file", "x")
        ),
        "is a file",
    ),
    "output below a file": (
        lambda r: (*drawn_flags(r)[:3], "--save_dir", written(r / "file", "x") / "o"),
        "is a file",
    ),
    "unknown label": (lambda r: drawn_flags(r, "--classes", "dog"), "'cat' (3)"),
    "a class twice": (lambda r: drawn_flags(r, "--classes", "dog", "cat", "dog"), "dog twice"),
    "no classes": (lambda r: drawn_flags(r, "--classes", "background"), "no classes"),
    "no file of classes": (lambda r: drawn_flags(r, "--classes", r / "c.txt"), "cannot be read"),
    "val too large": (lambda r: drawn_flags(r, "--val", "1.5"), "--val should be"),
    "val negative": (lambda r: drawn_flags(r, "--val", "-0.1"), "--val should be"),
    "val no number": (lambda r: drawn_flags(r, "--val", "nan"), "--val should be"),
    "nothing to train": (lambda r: drawn_flags(r, "--val", "0.5", "--test", "0.5"), "is left"),
    "line of no width": (lambda r: drawn_flags(r, "--line_width", "0"), "--line_width"),
    "bad seed": (lambda r: drawn_flags(r, "--seed", "-1"), "--seed"),
    "separator in a name": (lambda r: drawn_flags(r, "--separator", " "), "holds the separator"),
    "too few folders": (
        lambda r: drawn_flags(r, "--group_by_folder", "--val", "0.2", "--test", "0.2"),
        "cannot be dealt out",
    ),
    "coco without a file": (
        lambda r: ("coco", "--json", r / "no", "--images", r, "--save_dir", r / "o"),
        "does not exist",
    ),
    "coco that is cut": (
        lambda r: (
            "coco", "--json", written(r / "i.json", '{"images": ['), "--images", r, "--save_dir",
            r / "o",
        ),
        "no whole JSON",
    ),
    "coco nested too deeply": (
        lambda r: (
            "coco", "--json", written(r / "i.json", "[" * 200000), "--images", r, "--save_dir",
            r / "o",
        ),
        "no whole JSON",
    ),
    "coco that is a list": (lambda r: with_record(r, lambda c: [c]), "no list 'images'"),
    "coco that is labelme's": (
        lambda r: with_record(r, lambda c: {"shapes": []}),
        "looks like labelme's",
    ),
    "coco without images": (lambda r: with_record(r, lambda c: c.update(images=[])), "no images"),
    "coco image without id": (
        lambda r: with_record(r, lambda c: c["images"][0].pop("id")),
        "images[0] lacks",
    ),
    "coco image twice": (
        lambda r: with_record(r, lambda c: c["images"].append(dict(c["images"][0], width=1))),
        "id 5 twice",
    ),
    "coco category twice": (
        lambda r: with_record(r, lambda c: c["categories"].append({"id": 77, "name": "cow"})),
        "cow twice",
    ),
    "coco unknown category": (
        lambda r: coco(r, [SQUARE, polygon(1, 1, 2, 1, 2, 2, category_id=4)]),
        "4 (1)",
    ),
    "coco other ids": (lambda r: coco(r, [dict(SQUARE, image_id="5")]), "no annotation is of"),
    "coco too many categories": (
        lambda r: coco(r, [], categories=[{"id": k, "name": f"c{k}"} for k in range(255)]),
        "at most 254",
    ),
    "coco path that leaves": (
        lambda r: coco(r, [], [{"id": 5, "file_name": "../../a.jpg"}]),
        "inside the folder",
    ),
    "coco absolute path": (
        lambda r: with_record(r, lambda c: c["images"][0].update(file_name=str(r / "a.jpg"))),
        "inside the folder",
    ),
    "coco two images for one mask": (
        lambda r: coco(r, [], [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "a.png"}]),
        "would both be written",
    ),
    "split without images": (
        lambda r: (os.makedirs(r / "e"), ("split", "--images", r / "e", "--masks", r / "e"))[1],
        "--mask_suffix",
    ),
    "split of an empty folder": (
        lambda r: (os.makedirs(r / "e"), (*folders(r, "ab")[:3], "--masks", r / "e"))[1],
        "no image files",
    ),
    "split without pairs": (lambda r: folders(r, "ab", "_seg"), "--mask_suffix _seg?"),
    "split of twins": (
        lambda r: (image(r / "images/a.png"), folders(r, "ab"))[1],
        "differ in their ending",
    ),
    "split with too few": (lambda r: folders(r, "a"), "cannot be dealt out"),
    "workers": (lambda r: (*folders(r, "ab"), "--num_workers", "-1"), "--num_workers"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_done(name, tmp_path, capsys):
    make, words = WHOLE[name]
    flags = [str(flag) for flag in make(tmp_path)]
    before = tree(tmp_path)
    try:
        status = run_verb("prepare_dataset", flags)
    except SystemExit as end:  # from the flags' parser
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert words in error, error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert tree(tmp_path) == before


CODED = base64.b64encode(b"no picture").decode()


def bad_labelme(shape=None, **more):
    """A labelme file `bad.json` among good ones."""
    return lambda r: labelme(
        r / "in/bad.json", [box("dog", 0, 0, 2, 2) if shape is None else shape], **more
    )


def shape(kind, points, **more):
    return {"label": "dog", "shape_type": kind, "points": points, **more}


OUTSIDE = [[90, 90], [99, 90], [99, 99]]
PARTS = {  # one bad file among three good ones: status 1, the three are done
    "cut JSON": (lambda r: written(r / "in/bad.json", '{"shapes": ['), "no whole JSON"),
    "not UTF-8": (lambda r: (r / "in/bad.json").write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "other JSON": (lambda r: written(r / "in/bad.json", "[1]"), "no labelme file"),
    "coco's JSON": (lambda r: written(r / "in/bad.json", '{"annotations": []}'), "COCO"),
    "shape without label": (bad_labelme({"points": []}), "no label or no points"),
    "missing image": (bad_labelme(imagePath="gone.jpg"), "'gone.jpg' does not exist"),
    "broken image inside": (bad_labelme(imagePath="gone.jpg", imageData=CODED), "is no image"),
    "no base64": (bad_labelme(imagePath="gone.jpg", imageData="§"), "no base64"),
    "broken image": (
        lambda r: (written(r / "in/bad.jpg", "x"), bad_labelme()(r)),
        "bad.jpg is no image",
    ),
    "another size": (
        lambda r: (image(r / "in/bad.jpg"), bad_labelme(imageWidth=W + 1)(r)),
        f"its image is ({H}, {W})",
    ),
    "outside": (bad_labelme(shape("polygon", OUTSIDE)), "outside the image"),
    "circle outside": (bad_labelme(shape("circle", [[-9, 5], [-5, 5]])), "outside the image"),
    "two points": (bad_labelme(shape("polygon", OUTSIDE[:2])), "has 2 points"),
    "circle of three": (bad_labelme(shape("circle", OUTSIDE)), "has 3 points"),
    "text for a point": (bad_labelme(shape("point", [["a", "b"]])), "no pairs"),
    "unknown shape": (bad_labelme(shape("ellipse", OUTSIDE)), "not known"),
    "broken mask": (bad_labelme(shape("mask", OUTSIDE[:2], mask=CODED)), "no base64 PNG"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_the_rest_is_done(name, tmp_path, capsys):
    make, words = PARTS[name]
    if name not in ("missing image", "broken image inside", "no base64", "broken image"):
        image(tmp_path / "in/bad.jpg")
    flags = drawn_flags(tmp_path)
    make(tmp_path)
    assert call(*flags) == 1
    told = [line for line in "".join(capsys.readouterr()).splitlines() if "not done" in line]
    assert len(told) == 1
    assert "bad.json" in told[0]
    assert words in told[0], told[0]
    listed = lines(tmp_path / "out", "train") + lines(tmp_path / "out", "val")
    assert len(listed) == 3
    assert not any("bad" in path for path in [*listed, *tree(tmp_path / "out")])


COCO_PARTS = {
    "no segmentation": ({"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 2]}, "only a box?"),
    "empty segmentation": ({"image_id": 5, "category_id": 3, "segmentation": []}, "only a box?"),
    "odd numbers": (polygon(1, 1, 2, 1, 2), "x, y, x, y"),
    "two points": (polygon(1, 1, 2, 1), "has 2 points"),
    "outside": (polygon(50, 50, 60, 50, 60, 60), "outside the image"),
    "text": (polygon(1, 1, 2, 1, 2, "two"), "no pairs"),
    "runs of another size": (
        {"image_id": 5, "category_id": 3, "segmentation": {"size": [W, H], "counts": [H * W]}},
        "of the size",
    ),
    "runs too long": (
        {"image_id": 5, "category_id": 3, "segmentation": {"size": [H, W], "counts": [2**60]}},
        "add up to",
    ),
    "unlisted image": (polygon(1, 1, 2, 1, 2, 2, image_id=99), "does not list"),
}


@pytest.mark.parametrize("name", COCO_PARTS)
def test_the_rest_of_coco_is_done(name, tmp_path, capsys):
    record, words = COCO_PARTS[name]
    images = [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b.jpg"}]
    flags = coco(tmp_path, [record, dict(SQUARE, image_id=6)], images)
    assert call(*flags) == 1
    text = "".join(capsys.readouterr())
    assert text.count("not done") == 1
    assert words in text, text
    assert any(line.startswith("../images/b.jpg ") for line in lines(tmp_path / "o", "train"))


def test_coco_images_missing_or_of_another_size(tmp_path, capsys):
    images = [{"id": k, "file_name": f"{k}.jpg", "height": H, "width": W} for k in (5, 6, 7)]
    flags = coco(tmp_path, [SQUARE], images)
    (tmp_path / "images/6.jpg").unlink()
    image(tmp_path / "images/7.jpg", (W, H))
    assert call(*flags) == 1
    text = "".join(capsys.readouterr())
    assert "6.jpg does not exist" in text
    assert f"the JSON says ({H}, {W}) (height, width), the image is ({W}, {H})" in text
    assert len(lines(tmp_path / "o", "train")) == 1


def test_links_into_the_output_are_not_followed_for_lists(tmp_path):
    """A list that is a dangling link exists, too: it is not replaced without a word."""
    flags = folders(tmp_path, "abc")
    os.symlink(tmp_path / "nowhere.txt", tmp_path / "train.txt")
    assert call(*flags) == 2
    assert not (tmp_path / "nowhere.txt").exists()
    assert call(*flags, "--overwrite") == 0
    assert not (tmp_path / "nowhere.txt").exists()
    assert not (tmp_path / "train.txt").is_symlink()


def test_masks_are_not_taken_for_json_or_lists(tmp_path):
    """Lists and left-over temporary files inside the folders are no images."""
    flags = folders(tmp_path, "abcd")
    mask(tmp_path / "masks/.a.png.1.tmp.png", np.zeros((H, W)))
    written(tmp_path / "images/notes.txt", "x")
    assert call(*flags) == 0


def test_without_scipy(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    for path in ("cls", "train.txt", "val.txt", "JPEGImages", "SegmentationClass"):
        (tmp_path / path).mkdir()
    for path in ("train.txt", "val.txt"):
        written(tmp_path / "ImageSets/Segmentation" / path, "a\n")
    assert call("voc_sbd", "--sbd_root", tmp_path, "--voc_root", tmp_path) == 2
    assert "paddleseg-deeplab[crf]" in capsys.readouterr().err


def test_a_link_in_a_circle_ends(tmp_path):
    flags = folders(tmp_path, "abcd")
    for name in ("images", "masks"):
        os.symlink(tmp_path / name, tmp_path / name / "again", target_is_directory=True)
    assert call(*flags) == 0
    assert len(lines(tmp_path, "train")) + len(lines(tmp_path, "val")) == 4

# SPDX-License-Identifier: Apache-2.0
"""Files for labelme and COCO, read back by prepare_dataset, and the table of areas."""

import base64
import errno
import json
import os

import annotated_sets as sets
import cv2
import numpy as np
import pytest

from paddleseg_deeplab.prediction import annotations
from paddleseg_deeplab.prediction.annotations import Annotations, labelme_content
from paddleseg_deeplab.tools.prepare_dataset.labelme import draw_labelme
from paddleseg_deeplab.utils.errors import DiskError, UserError

NAMES = ["background", "road", "car"]
BLOB = np.kron(np.random.default_rng(1).integers(0, 3, (3, 4)), np.ones((4, 4), int))


def ring():
    """A ring of cars on the background, road around it, and pixels without data."""
    labels = np.zeros((sets.H, sets.W), np.int32)
    labels[:, :3] = 1
    labels[3:9, 5:13] = 2
    labels[5:7, 7:11] = 0
    labels[11, 14:] = 255
    return labels


def filled_ring():
    """Rings in rings, with something in each hole and corners that touch: polygons hold it."""
    labels = np.ones((sets.H, sets.W), np.int32)
    labels[2:10, 2:12] = 2
    labels[3:9, 3:11] = 255
    labels[4:8, 4:10] = 1
    labels[5, 5] = labels[6, 6] = 2
    labels[0, 0] = 0
    return labels


@pytest.fixture
def written(tmp_path):
    """Writes results of masks with images; gives {kind: file} and the folders."""

    def write(*masks, kinds=("labelme", "labelme_polygons", "coco", "areas"), names=NAMES):
        photos, out = tmp_path / "photos", tmp_path / "out"
        made = Annotations(kinds, str(out), names, str(photos))
        for index, labels in reversed(list(enumerate(masks))):  # as threads may end
            image = photos / "day 1" / f"{index}.jpg"
            sets.image(image, labels.shape)
            made.add(index, str(image), os.path.join("day 1", str(index)), labels)
        made.finish()
        return out

    return write


def prepared(out, kind, classes=NAMES[1:], count=1):
    """The masks that prepare_dataset makes of the files."""
    target = out / f"again {kind}"
    if kind == "coco":
        where = ["--json", out / "coco.json", "--images", out.parent / "photos"]
    else:
        where = ["--annotations", out / kind, "--val", "0"]
    flags = [kind.split("_")[0], *where, "--save_dir", target, "--classes", *classes]
    assert sets.call(*flags) == 0
    found = sorted((target / "annotations").rglob("*.png"))
    assert len(found) == count
    return [sets.indices(path) for path in found]


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_masks_come_back_exactly(written, kind):
    masks = [ring(), filled_ring(), BLOB, np.full((5, 3), 2)]
    for got, labels in zip(prepared(written(*masks), kind, count=4), masks):
        np.testing.assert_array_equal(got, labels)


@pytest.mark.parametrize("kind", ["labelme", "coco", "labelme_polygons"])
def test_a_network_without_a_background_gets_one(written, kind):
    """All its classes are shapes; prepare_dataset counts them from 1."""
    labels = np.where(BLOB == 1, 255, BLOB)
    (got,) = prepared(written(labels, names=["sky", "road", "car"]), kind, ["sky", "road", "car"])
    np.testing.assert_array_equal(got, np.where(labels == 255, 255, labels + 1))


def test_polygons_come_back_where_nothing_is_lost(written):
    masks = [filled_ring(), BLOB]
    out = written(*masks)
    for got, labels in zip(prepared(out, "labelme_polygons", count=2), masks):
        np.testing.assert_array_equal(got, labels)
    for path in (out / "labelme_polygons").rglob("*.json"):
        assert not any(shape["description"] for shape in json.loads(path.read_text())["shapes"])


@pytest.mark.parametrize("seed", range(5))
def test_polygons_of_noise_come_back(seed):
    """Rings that close at corners, crossed by others: painted one over the other they fit."""
    labels = np.random.default_rng(seed).choice(3, (20, 30), p=[0.1, 0.5, 0.4])
    content = labelme_content(labels, ["sky", *NAMES[1:]], "a.jpg", polygons=True)
    numbers = {"sky": 0, "road": 1, "car": 2}
    np.testing.assert_array_equal(draw_labelme(content["shapes"], numbers, (20, 30)), labels)


@pytest.mark.parametrize("seed", range(5))
def test_what_polygons_of_noise_lose_is_told(seed):
    """Background in holes, and no other pixel; none is lost in silence."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, (8, 9), p=[0.15, 0.45, 0.4] if seed else [0, 0.5, 0.5])
    shapes = labelme_content(labels, NAMES, "a.jpg", polygons=True)["shapes"]
    drawn = draw_labelme(shapes, {"road": 1, "car": 2}, labels.shape)
    lost = drawn != labels
    assert not labels[lost].any()
    told = " ".join(shape["description"] for shape in shapes)
    counts = [int(text.split()[0]) for text in told.split("hole of ")[1:]]
    assert bool(counts) == lost.any()
    # What lies in a hole of a region that lies in a hole is told of both.
    assert sum(counts) >= lost.sum()


def test_polygons_say_where_a_hole_is_lost(written):
    out = written(ring())
    content = json.loads((out / "labelme_polygons" / "day 1" / "0.json").read_text())
    told = {shape["label"]: shape["description"] for shape in content["shapes"]}
    assert told == {"road": "", "__ignore__": "", "car": "hole of 8 pixels lost at x 7, y 5"}
    expected = ring()
    expected[5:7, 7:11] = 2
    np.testing.assert_array_equal(prepared(out, "labelme_polygons")[0], expected)


def test_a_labelme_file_holds_what_labelme_writes(written):
    """Keys and meaning as labelme 5.5 has them: the corners of a mask are pixels inside it."""
    out = written(ring())
    content = json.loads((out / "labelme" / "day 1" / "0.json").read_text())
    shapes = content.pop("shapes")
    assert content == {
        "version": "5.5.0",
        "flags": {},
        "imagePath": "../../../photos/day 1/0.jpg",
        "imageData": None,
        "imageHeight": sets.H,
        "imageWidth": sets.W,
    }
    assert [shape["label"] for shape in shapes] == ["road", "car", "__ignore__"]
    car = shapes[1]
    data = base64.b64decode(car.pop("mask"))
    assert car == {
        "label": "car",
        "points": [[5, 3], [12, 8]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
    }
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(picture, ring()[3:9, 5:13] == 2)


def test_coco_as_pycocotools_reads_it(written):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as oracle

    masks = [ring(), filled_ring()]
    out = written(*masks)
    read = coco.COCO(str(out / "coco.json"))
    assert [category["id"] for category in read.loadCats(read.getCatIds())] == [1, 2, 255]
    assert [read.imgs[number]["file_name"] for number in (1, 2)] == ["day 1/0.jpg", "day 1/1.jpg"]
    for number, labels in enumerate(masks, 1):
        assert (read.imgs[number]["height"], read.imgs[number]["width"]) == labels.shape
        found = read.loadAnns(read.getAnnIds(imgIds=[number]))
        assert [each["category_id"] for each in found] == [1, 2, 255]
        for each in found:
            part = read.annToMask(each)
            np.testing.assert_array_equal(part, labels == each["category_id"])
            assert each["area"] == part.sum()
            assert each["bbox"] == oracle.toBbox(each["segmentation"]).tolist()
    assert sorted(read.anns) == list(range(1, 7))  # from 1: to its evaluation 0 is no annotation


def test_areas(written):
    out = written(np.array([[0, 2, 2]]), np.array([[255, 1], [1, 1]]), kinds=["areas"])
    assert (out / "areas.csv").read_text(encoding="utf-8") == (
        "image,class_id,class,pixels,share\n"
        "day 1/0.jpg,0,background,1,0.333333\n"
        "day 1/0.jpg,1,road,0,0.000000\n"
        "day 1/0.jpg,2,car,2,0.666667\n"
        "day 1/1.jpg,0,background,0,0.000000\n"
        "day 1/1.jpg,1,road,3,0.750000\n"
        "day 1/1.jpg,2,car,0,0.000000\n"
        "day 1/1.jpg,255,void,1,0.250000\n"
    )
    assert not (out / "coco.json").exists()


def test_numbers_that_are_no_class_are_void(written):
    out = written(np.array([[0, 1, 7, 255]]))
    np.testing.assert_array_equal(prepared(out, "coco")[0], [[0, 1, 255, 255]])


def test_an_image_of_background_alone():
    assert labelme_content(np.zeros((2, 3), int), NAMES, "a.jpg")["shapes"] == []
    assert labelme_content(np.zeros((2, 3), int), NAMES, "a.jpg", polygons=True)["shapes"] == []
    with pytest.raises(UserError, match="empty"):
        labelme_content(np.zeros((0, 3), int), NAMES, "a.jpg", polygons=True)


def test_a_full_disk_leaves_what_was_there(written, monkeypatch):
    out = written(ring(), kinds=["coco"])
    before = (out / "coco.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(annotations.os, "replace", full)
    with pytest.raises(DiskError, match=r"No space left.*what is written stays") as caught:
        written(filled_ring(), kinds=["coco"])
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["coco.json"]
    assert (out / "coco.json").read_bytes() == before

# SPDX-License-Identifier: Apache-2.0
"""The public datasets: their real folder layouts in small, their labels, and missing files."""

import inspect
import pickle

import cv2
import numpy as np
import pytest

from paddleseg_deeplab import datasets as D
from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets import catalog
from paddleseg_deeplab.utils.errors import UserError

NAMES = [
    "Cityscapes",
    "PascalVOC",
    "ADE20K",
    "PascalContext",
    "PascalContext59",
    "CocoStuff",
    "CamVid",
    "OpticDiscSeg",
]
SETS = "ImageSets/Segmentation"


def put(root, path, value):
    """Writes a 4x3 image or label of one value, or a text file."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        target.write_text(value)
    else:
        array = np.full((3, 4), value, np.uint8)
        if "label" not in path and not path.endswith(".png"):
            array = np.stack([array] * 3, 2)
        assert cv2.imwrite(str(target), array)


def labels(dataset):
    """The single value of each sample's label."""
    found = []
    for index in range(len(dataset)):
        values = np.unique(dataset[index]["label"])
        assert len(values) == 1
        found.append(int(values[0]))
    return found


def city(root, mode, places, kind="labelTrainIds"):
    for town, number, value in places:
        stem = f"{town}/{town}_{number:06d}_000019"
        put(root, f"leftImg8bit/{mode}/{stem}_leftImg8bit.png", 50)
        if value is not None:
            put(root, f"gtFine/{mode}/{stem}_gtFine_{kind}.png", value)


def test_classes_and_colours_fit():
    counts = {
        "Cityscapes": 19,
        "PascalVOC": 21,
        "ADE20K": 150,
        "PascalContext": 60,
        "PascalContext59": 59,
        "CocoStuff": 171,
        "CamVid": 11,
        "OpticDiscSeg": 2,
    }
    assert sorted(counts) == sorted(NAMES)
    for name, count in counts.items():
        kind = registry.DATASETS[name]
        assert (count, 3, 255) == (kind.NUM_CLASSES, kind.IMG_CHANNELS, kind.IGNORE_INDEX)
        assert len(set(kind.ROW.class_names)) == count
        assert kind.ROW.palette is None or len(kind.ROW.palette) == count


def test_constructors_take_paddleseg_s_parameters_in_its_order():
    for name in NAMES:
        parameters = list(inspect.signature(registry.DATASETS[name]).parameters)
        expected = ["transforms", "dataset_root", "mode", "edge"]
        if name == "OpticDiscSeg":
            expected[:2] = ["dataset_root", "transforms"]
        assert parameters[:4] == expected


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_missing_root_says_where_to_get_the_data(name, tmp_path):
    kind = registry.DATASETS[name]
    for root in (None, str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=name) as caught:
            kind(dataset_root=root)
        assert "http" in str(caught.value)
        assert "dataset_root" in str(caught.value)
    with pytest.raises(UserError, match=f"{name}: mode") as caught:  # the folder is empty
        kind(dataset_root=str(tmp_path), mode="train")
    assert "http" in str(caught.value)
    with pytest.raises(UserError, match="mode must be one of"):
        kind(dataset_root=str(tmp_path), mode="training")
    with pytest.raises(UserError, match="edge"):
        kind(dataset_root=str(tmp_path), edge=True)


def test_cityscapes_pairs_by_name(tmp_path):
    city(tmp_path, "train", [("ulm", 1, 3), ("ulm", 2, 255), ("aachen", 7, 18)])
    city(tmp_path, "test", [("bonn", 1, None)])
    data = D.Cityscapes([], str(tmp_path), "train")
    assert labels(data) == [18, 3, 255]
    for image, label in data.file_list:
        key = image.rsplit("/", 1)[-1].replace("_leftImg8bit.png", "")
        assert label.rsplit("/", 1)[-1].startswith(key)
    assert D.Cityscapes([], str(tmp_path), "test").file_list[0][1] is None
    assert pickle.loads(pickle.dumps(data)).file_list == data.file_list


@pytest.mark.parametrize("lost", ["image", "label"])
def test_one_missing_file_shifts_nothing(tmp_path, lost):
    city(tmp_path, "train", [("ulm", n, n) for n in range(4)])
    gone = {
        "image": tmp_path / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",
        "label": tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png",
    }[lost]
    gone.unlink()
    with pytest.raises(UserError, match="1 of 4 files lack") as caught:
        D.Cityscapes([], str(tmp_path), "train")
    assert "ulm_000001" in str(caught.value)
    assert "ulm_000002" not in str(caught.value)


def test_cityscapes_converts_label_ids_where_there_are_no_train_ids(tmp_path):
    ids = {7: 0, 8: 1, 0: 255, 6: 255, 33: 18, 29: 255, 31: 16, 17: 5, 18: 255}
    city(tmp_path, "train", [("ulm", k, k) for k in ids], kind="labelIds")
    assert labels(D.Cityscapes([], str(tmp_path), "train")) == [ids[k] for k in sorted(ids)]
    kept = [v for v in catalog.CITYSCAPES_LABEL_IDS.values() if v != 255]
    assert sorted(kept) == list(range(19))
    assert len(catalog.CITYSCAPES_LABEL_IDS) == 34


def test_pascal_voc(tmp_path):
    for name, value in (("2007_000001", 0), ("2007_000002", 20), ("2008_000003", 255)):
        put(tmp_path, f"VOC2012/JPEGImages/{name}.jpg", 9)
        put(tmp_path, f"VOC2012/SegmentationClass/{name}.png", value)
    put(tmp_path, "VOC2012/JPEGImages/2009_000004.jpg", 9)
    put(tmp_path, "VOC2012/SegmentationClassAug/2009_000004.png", 7)
    put(tmp_path, f"VOC2012/{SETS}/train.txt", "2007_000002\n2007_000001\n")
    put(tmp_path, f"VOC2012/{SETS}/val.txt", "2008_000003\r\n")
    put(tmp_path, f"VOC2012/{SETS}/trainval.txt", "2007_000002\n2007_000001\n2008_000003\n")
    root = str(tmp_path)
    assert labels(D.PascalVOC([], root)) == [20, 0]
    assert labels(D.PascalVOC([], root, "val")) == [255]
    assert labels(D.PascalVOC([], root, "trainval")) == [20, 0, 255]
    with pytest.raises(UserError, match=r"aug\.txt"):
        D.PascalVOC([], root, "trainaug")
    put(tmp_path, f"VOC2012/{SETS}/aug.txt", "2009_000004\n")
    data = D.PascalVOC([], root, "trainaug")
    assert labels(data) == [20, 0, 7]
    assert "trans_info" not in data[0]  # trainaug trains
    assert labels(D.PascalVOC([], str(tmp_path / "VOC2012"))) == [20, 0]
    put(tmp_path, f"VOC2012/{SETS}/val.txt", "2008_000003\n2008_000009\n")
    with pytest.raises(UserError, match=r"2 of the files .*2008_000009\.jpg"):
        D.PascalVOC([], root, "val")


def test_palette_labels_are_read_as_class_numbers(tmp_path):
    from PIL import Image

    put(tmp_path, "VOC2012/JPEGImages/a.jpg", 9)
    put(tmp_path, f"VOC2012/{SETS}/train.txt", "a\n")
    image = Image.fromarray(np.full((3, 4), 15, np.uint8), mode="P")
    image.putpalette(D.voc_palette(256).ravel().tolist())
    (tmp_path / "VOC2012/SegmentationClass").mkdir()
    image.save(tmp_path / "VOC2012/SegmentationClass/a.png")
    assert labels(D.PascalVOC([], str(tmp_path))) == [15]


def test_ade20k_zero_is_void_and_the_rest_move_down(tmp_path):
    for name, value in (("ADE_train_00000001", 0), ("ADE_train_00000002", 1), ("x", 150)):
        put(tmp_path, f"images/training/{name}.jpg", 9)
        put(tmp_path, f"annotations/training/{name}.png", value)
    assert labels(D.ADE20K([], str(tmp_path))) == [255, 0, 149]
    put(tmp_path, "images/validation/y.jpg", 9)
    put(tmp_path, "annotations/validation/y.png", 151)
    with pytest.raises(UserError, match=r"y\.png .*151"):
        D.ADE20K([], str(tmp_path), "val")[0]


def test_pascal_context(tmp_path):
    for name, value in (("2008_000002", 0), ("2008_000003", 59)):
        put(tmp_path, f"JPEGImages/{name}.jpg", 9)
        put(tmp_path, f"Context/{name}.png", value)
    put(tmp_path, f"{SETS}/train_context.txt", "2008_000002\n2008_000003\n")
    assert labels(D.PascalContext([], str(tmp_path))) == [0, 59]
    assert labels(D.PascalContext59([], str(tmp_path))) == [255, 58]
    one, other = (kind([], str(tmp_path)) for kind in (D.PascalContext, D.PascalContext59))
    assert one.class_names[1:] == other.class_names
    np.testing.assert_array_equal(one.palette[1:], other.palette)
    # PaddleSeg's converter numbers the kept classes by their sorted ids, which are alphabetical.
    names = D.PascalContext.ROW.class_names
    assert names[0] == "background"
    assert list(names[1:]) == sorted(names[1:])


def test_coco_stuff_converted_and_raw(tmp_path):
    for name, value in (("000000000001", 0), ("000000000002", 12), ("000000000003", 255)):
        put(tmp_path, f"images/train2017/{name}.jpg", 9)
        put(tmp_path, f"annotations/train2017/{name}.png", value)
    assert labels(D.CocoStuff([], str(tmp_path))) == [0, 12, 255]
    assert labels(D.CocoStuff([], str(tmp_path), raw_ids=True)) == [0, 11, 255]
    put(tmp_path, "annotations/train2017/000000000002.png", 181)
    assert labels(D.CocoStuff([], str(tmp_path), raw_ids=True)) == [0, 170, 255]
    with pytest.raises(UserError, match="181"):
        labels(D.CocoStuff([], str(tmp_path)))
    kept = [v for v in catalog.COCO_STUFF_IDS.values() if v != 255]
    assert kept == list(range(171))


def test_camvid_eleven_is_void(tmp_path):
    for k, value in enumerate((0, 10, 11)):
        put(tmp_path, f"images/train/{k}.jpg", 9)
        put(tmp_path, f"labels/train/{k}.png", value)
    lines = "".join(f"images/train/{k}.jpg labels/train/{k}.png\n" for k in range(3))
    put(tmp_path, "train.txt", lines)
    data = D.CamVid([], str(tmp_path))
    assert labels(data) == [0, 10, 255]
    assert D.class_pixel_counts(data).tolist() == [12] + [0] * 9 + [12]
    put(tmp_path, "labels/train/1.png", 12)
    with pytest.raises(UserError, match="12"):
        data[1]


def test_optic_disc_from_a_folder_and_from_a_download(tmp_path, monkeypatch):
    root = tmp_path / "cache" / "optic_disc_seg"
    put(root, "JPEGImages/H0002.jpg", 9)
    put(root, "Annotations/H0002.png", 1)
    for mode in ("train", "val", "test"):
        put(root, f"{mode}_list.txt", "JPEGImages/H0002.jpg Annotations/H0002.png\n")
    assert labels(D.OpticDiscSeg(str(root), [])) == [1]
    asked = []

    def fetch(url):
        asked.append(url)
        return str(tmp_path / "cache")

    monkeypatch.setattr(catalog, "fetch", fetch)
    data = D.OpticDiscSeg(transforms=[], mode="test")
    assert labels(data) == [1]
    assert asked == [D.OpticDiscSeg.URL]
    with pytest.raises(UserError, match="Leave dataset_root out to download"):
        D.OpticDiscSeg(str(tmp_path / "nowhere"))

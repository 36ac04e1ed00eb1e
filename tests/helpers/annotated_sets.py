# SPDX-License-Identifier: Apache-2.0
"""Small sets of others' annotations, for the tests of prepare_dataset."""

import json

import cv2
import numpy as np
from PIL import Image

from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.datasets import Dataset

H, W = 12, 16


def image(path, size=(H, W), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    coded = cv2.imencode(path.suffix, np.full((*size, 3), value, np.uint8))[1]
    path.write_bytes(coded.tobytes())


def mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)


def call(*flags):
    return run_verb("prepare_dataset", [*map(str, flags), "--num_workers", "0"])


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def indices(path):
    with Image.open(path) as file:
        assert file.mode in ("P", "L")
        return np.array(file)


def box(label, left, top, right, bottom):
    points = [[left, top], [right, bottom]]
    return {"label": label, "shape_type": "rectangle", "points": points}


def labelme(path, shapes, **more):
    content = {"imagePath": path.stem + ".jpg", "imageHeight": H, "imageWidth": W, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "5", "shapes": shapes, **content}), encoding="utf-8")
    return path


def drawn(root, count=5):
    for k in range(count):
        image(root / f"day {k % 2}" / f"{k}.jpg", value=k)
        labelme(
            root / f"day {k % 2}" / f"{k}.json",
            [box("dog", k, 0, k + 3, 4), box("cat", 0, 5, 9, 9)],
        )
    return root


def load(root, mode, separator=" ", classes=3):
    return Dataset(
        mode,
        str(root),
        [],
        classes,
        separator=separator,
        class_names="class_names.txt",
        **{f"{mode}_path": f"{mode}.txt"},
    )


def coco(root, annotations, images=None, categories=None):
    images = images or [{"id": 5, "file_name": "a.jpg", "height": H, "width": W}]
    (root / "images").mkdir()
    for record in images:
        if ".." not in record["file_name"]:
            image(root / "images" / record["file_name"])
    content = {
        "images": images,
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations)],
        "categories": categories or [{"id": 9, "name": "kite"}, {"id": 3, "name": "cow"}],
    }
    (root / "i.json").write_text(json.dumps(content), encoding="utf-8")
    return (
        "coco",
        "--json",
        root / "i.json",
        "--images",
        root / "images",
        "--save_dir",
        root / "o",
    )


def polygon(*numbers, image_id=5, category_id=3):
    return {"image_id": image_id, "category_id": category_id, "segmentation": [list(numbers)]}


def folders(root, names, suffix=""):
    for name in names:
        image(root / "images" / f"{name}.jpg")
        mask(root / "masks" / f"{name}{suffix}.png", np.zeros((H, W)))
    return ("split", "--images", root / "images", "--masks", root / "masks")


def lines(root, mode):
    return (root / f"{mode}.txt").read_text(encoding="utf-8").splitlines()


SQUARE = polygon(2, 2, 8, 2, 8, 8, 2, 8)

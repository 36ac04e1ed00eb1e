# SPDX-License-Identifier: Apache-2.0
"""Results as other programs read them: labelme's JSON, COCO's JSON, a table of areas. No Paddle.

A class whose name is one of `BACKGROUNDS` is not written as a shape; pixels without a class (void,
255) are, under the name `__ignore__`. So ``prepare_dataset`` gives the same mask back.
"""

import base64
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from paddleseg_deeplab.prediction import regions
from paddleseg_deeplab.prediction.outputs import RUN_OUTPUTS, SHAPES, disk_error
from paddleseg_deeplab.prediction.regions import ClassArea
from paddleseg_deeplab.transforms.reading.values import BACKGROUNDS, IGNORED, VOID

_LABELME = "5.5.0"  # the version of labelme whose files these are like


@dataclasses.dataclass(frozen=True)
class _Record:
    """What the files of a whole run need of an image."""

    name: str
    size: tuple[int, int]
    areas: list[ClassArea]
    objects: list[dict[str, Any]]


class Annotations:
    """Writes these files in a run over many images; several threads may use it.

    Args:
        outputs (Sequence[str]): What is wanted, keys of ``OUTPUTS`` and ``RUN_OUTPUTS``; those
            of ``PICTURES`` are left to `write_outputs`.
        save_dir (str): Folder of all results.
        class_names (int | Sequence[str]): Names of the classes, or how many there are.
        root (str): Folder that the images' names in the files start from.

    Attributes:
        records (dict): Of each image by its index in the run; `finish` writes them.
    """

    def __init__(
        self, outputs: Sequence[str], save_dir: str, class_names: int | Sequence[str], root: str
    ) -> None:
        self._shapes = [kind for kind in outputs if kind in SHAPES]
        self._whole = [kind for kind in outputs if kind in RUN_OUTPUTS]
        self._save_dir, self._root = save_dir, root
        self._names = regions.names_of(class_names)
        self.records: dict[int, Any] = {}

    def add(self, index: int, path: str, name: str, labels: np.ndarray) -> dict[str, str]:
        """Writes the files of one image, and keeps what those of the run need of it.

        Args:
            index (int): Of the image in the run.
            path (str): The image.
            name (str): Of its results, see `output_names`.
            labels (np.ndarray): Integers [H, W].

        Returns:
            dict: kind -> path written.
        """
        files = {}
        for kind in self._shapes:
            folder, extension = SHAPES[kind]
            target = os.path.join(self._save_dir, folder, name + extension)
            image = _relative(path, os.path.dirname(target))
            polygons = kind == "labelme_polygons"
            _write(target, _json(labelme_content(labels, self._names, image, polygons)))
            files[kind] = target
        if self._whole:
            objects = list(coco_objects(labels, self._names)) if "coco" in self._whole else []
            areas = regions.class_areas(labels, self._names)
            name = _relative(path, self._root)
            self.records[index] = _Record(name, (labels.shape[0], labels.shape[1]), areas, objects)
        return files

    def add_records(self, others: Iterable[dict[int, Any]]) -> None:
        """Adds the `records` of others that had a share of the same run."""
        for records in others:
            self.records.update(records)

    def finish(self) -> dict[str, str]:
        """Writes the files of the whole run, in the images' order; kind -> path written.

        Where no image is done, there are none.

        Raises:
            DiskError: One cannot be written.
        """
        files = {}
        records = [self.records[index] for index in sorted(self.records)]
        for kind in self._whole if records else ():
            target = os.path.join(self._save_dir, RUN_OUTPUTS[kind])
            text = _areas_text(records) if kind == "areas" else self._coco_text(records)
            try:
                _write(target, text)
            except OSError as error:
                raise disk_error(self._save_dir, error) from error
            files[kind] = target
        return files

    def _coco_text(self, records):
        images, annotations = [], []
        for number, record in enumerate(records, 1):
            height, width = record.size
            about = {"id": number, "file_name": record.name, "height": height, "width": width}
            images.append(about)
            for item in record.objects:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **item})
        categories = list(enumerate(self._names))
        if any(item["category_id"] == VOID for item in annotations):
            categories.append((VOID, IGNORED[0]))
        return _json(
            {
                "info": {"description": "Predicted by paddleseg_deeplab"},
                "licenses": [],
                "images": images,
                "annotations": annotations,
                "categories": [
                    {"id": number, "name": name, "supercategory": ""}
                    for number, name in categories
                    if name not in BACKGROUNDS
                ],
            }
        )


def labelme_content(
    labels: np.ndarray, class_names: int | Sequence[str], image: str, polygons: bool = False
) -> dict[str, Any]:
    """A labelme file: one mask for each class, or polygons.

    labelme paints later shapes over earlier ones, and so does ``prepare_dataset``: polygons come
    from large to small, and what lies in a hole is painted after what is around it. Where nothing
    is (the background), the hole is lost, and the polygon's description says so.

    Args:
        labels (np.ndarray): Integers [H, W].
        class_names (int | Sequence[str]): Names of the classes, or how many there are.
        image (str): The image's path, from the folder of the file.
        polygons (bool): Write polygons.
    """
    names = regions.names_of(class_names)
    labels, written = _with_names(labels, names)
    shapes = _polygon_shapes(labels, written) if polygons else _mask_shapes(labels, written)
    return {
        "version": _LABELME,
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
        "imageHeight": labels.shape[0],
        "imageWidth": labels.shape[1],
    }


def coco_objects(labels: np.ndarray, class_names: int | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields COCO's annotations of an image, one for each class, without ids.

    Args:
        labels (np.ndarray): Integers [H, W].
        class_names (int | Sequence[str]): Names of the classes, or how many there are. A
            category's id is the class.
    """
    labels, written = _with_names(labels, regions.names_of(class_names))
    for number, rle in regions.rle_of_classes(labels).items():
        if number in written:
            part = labels == number
            rows, columns = regions.box_of(part)
            size = [columns.stop - columns.start, rows.stop - rows.start]
            yield {
                "category_id": number,
                "segmentation": rle,
                "area": int(np.count_nonzero(part)),
                "bbox": [columns.start, rows.start, *size],
                "iscrowd": 0,
            }


def _with_names(labels, names):
    """Labels with 255 for all that is no class; {number: name} of what is to be written."""
    labels = regions.checked_mask(labels)
    if labels.max() >= len(names):
        labels = np.where(labels >= len(names), VOID, labels)
    named = {**dict(enumerate(names)), VOID: IGNORED[0]}
    return labels, {number: name for number, name in named.items() if name not in BACKGROUNDS}


def _shape(name, kind, points, description="", **more):
    return {
        "label": name,
        "points": points,
        "group_id": None,
        "description": description,
        "shape_type": kind,
        "flags": {},
        **more,
    }


def _mask_shapes(labels, written):
    for number in regions.classes_in(labels):
        if number in written:
            part = labels == number
            rows, columns = regions.box_of(part)
            _, data = cv2.imencode(".png", part[rows, columns].astype(np.uint8))
            # The corners are pixels, and both belong to the mask.
            points = [[columns.start, rows.start], [columns.stop - 1, rows.stop - 1]]
            coded = base64.b64encode(data.tobytes()).decode("ascii")
            yield _shape(written[number], "mask", points, mask=coded)


def _polygon_shapes(labels, written):
    unwritten = ~np.isin(labels, list(written))
    found = []
    for number, each in regions.polygons(labels, list(written)).items():
        # Holes by their numbers, and how many of the pixels in each no shape will cover.
        _, holes = cv2.connectedComponents((labels != number).astype(np.uint8), connectivity=8)
        lost = np.bincount(holes[unwritten], minlength=int(holes.max()) + 1)
        for region in each:
            about = _lost_holes(region, holes, lost)
            shape = _shape(written[number], "polygon", region.outer.tolist(), about)
            found.append((-regions.area_of(region.outer), shape))
    return [shape for _, shape in sorted(found, key=lambda item: item[0])]


def _lost_holes(region, holes, lost):
    texts = []
    for outline in region.holes:
        x, y = outline[0].tolist()  # the pixel below and right of it lies in the hole
        if count := int(lost[holes[y, x]]):
            texts.append(f"hole of {count} pixels lost at x {x}, y {y}")
    return "; ".join(texts)


def _areas_text(records):
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class_id", "class", "pixels", "share"])
    for record in records:
        for area in record.areas:
            row = [record.name, area.class_id, area.name, area.pixels, f"{area.share:.6f}"]
            table.writerow(row)
    return text.getvalue()


def _relative(path, folder):
    """A path from a folder, with forward slashes; whole where there is none (other drives)."""
    try:
        path = os.path.relpath(path, folder or os.curdir)
    except ValueError:
        path = os.path.abspath(path)
    return path.replace(os.sep, "/")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _write(path, text):
    """Whole or not at all: a full disk leaves no half of a file."""
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    place = f"{path}.{os.getpid()}.part"
    try:
        with open(place, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(place, path)
    except BaseException:
        if os.path.lexists(place):
            os.remove(place)
        raise

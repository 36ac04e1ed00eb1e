# SPDX-License-Identifier: Apache-2.0
"""Masks from COCO's instance annotations; stands on no COCO library."""

import collections
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset import lists, polygons
from paddleseg_deeplab.tools.prepare_dataset.classes import (
    check_names,
    class_numbers,
    found_names,
    read_classes,
)
from paddleseg_deeplab.tools.prepare_dataset.jobs import (
    Job,
    Options,
    Outcome,
    image_size,
    run_jobs,
    write_mask,
)
from paddleseg_deeplab.tools.prepare_dataset.rle import decode_mask
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError


def read_instances(
    path: str,
) -> tuple[dict[int | str, dict[str, Any]], list[dict[str, Any]], dict[int | str, str]]:
    """Reads an instance file.

    Returns:
        tuple: images {id: record}, annotations [record], categories {id: name}.

    Raises:
        UserError: It is no JSON, or no instance file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"--json {path} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--json {path} is no whole JSON: {error}.") from error
    parts = {}
    for key, needed in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id")),
        ("categories", ("id", "name")),
    ):
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list):
            hint = (
                " It looks like labelme's."
                if isinstance(content, dict) and "shapes" in content
                else ""
            )
            raise UserError(f"--json {path} has no list {key!r}: it is no instance file.{hint}")
        for number, record in enumerate(records):
            # Ids serve as keys, names as paths.
            if not isinstance(record, dict) or not all(
                isinstance(record.get(name), (int, str)) for name in needed
            ):
                raise UserError(f"--json {path}: {key}[{number}] lacks {' or '.join(needed)}.")
        parts[key] = records
    if not parts["images"]:
        raise UserError(f"--json {path} has no images.")
    images, categories = (_by_id(parts[key], path, key) for key in ("images", "categories"))
    return images, parts["annotations"], {k: str(c["name"]).strip() for k, c in categories.items()}


def _by_id(records, path, key):
    table = {}
    for record in records:
        if table.setdefault(record["id"], record) is not record:
            raise UserError(f"--json {path}: {key} has the id {record['id']!r} twice.")
    return table


def annotation_mask(record: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Pixels of one annotation: polygons, run lengths as a list, or as text.

    Several polygons are parts of one object; what lies in one of them belongs to it.

    Returns:
        numpy.ndarray: bool [height, width].

    Raises:
        ValueError: It has no segmentation, a broken one, or one that lies outside the image.
    """
    what = f"the annotation {record.get('id')!r}"
    segmentation = record.get("segmentation")
    if isinstance(segmentation, dict):
        try:
            return decode_mask(segmentation, size)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"{what} has no segmentation (only a box?)")
    mask = np.zeros(size, bool)
    outside = 0
    for numbers in segmentation:
        if not isinstance(numbers, list) or len(numbers) % 2:
            raise ValueError(f"{what} has a polygon that is no list of x, y, x, y, ...")
        pairs = list(zip(numbers[::2], numbers[1::2]))
        points = polygons.check_points(pairs, 3, what)
        mask |= polygons.polygon(points, size)
        low, high = points.min(axis=0), points.max(axis=0)
        outside += bool((high < 0).any() or (low > size[::-1]).any())
    if outside == len(segmentation):
        raise ValueError(f"{what} lies outside the image of {size[1]} x {size[0]}")
    return mask


def draw_coco(
    records: Iterable[Mapping[str, Any]],
    numbers: Mapping[int | str, int],
    size: tuple[int, int],
    crowd: str = "void",
) -> np.ndarray:
    """A mask of the annotations of one image.

    Larger ones are painted first (by their pixels; of equal ones the first in the file), so that
    what lies on something stays visible; crowds before all others.

    Args:
        records (list[dict]): Its annotations.
        numbers (dict): {category id: class number}.
        size (tuple): (height, width).
        crowd (str): What becomes of annotations with iscrowd: "void" (255), "class" or "skip".

    Returns:
        numpy.ndarray: uint8 [height, width], background 0.
    """
    drawn = []
    for record in records:
        crowded = bool(record.get("iscrowd"))
        if crowded and crowd == "skip":
            continue
        mask = annotation_mask(record, size)
        number = VOID if crowded and crowd == "void" else numbers[record["category_id"]]
        # Only its box is kept: hundreds of whole masks of an aerial image fill any memory.
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            part = mask[box].copy()
            drawn.append((not crowded, -np.count_nonzero(part), number, box, part))
    labels = np.zeros(size, np.uint8)
    for *_, number, box, part in sorted(drawn, key=lambda item: item[:2]):
        labels[box][part] = number
    return labels


def convert_coco(
    place: str,
    image: str,
    told: tuple[int | None, int | None],
    records: Iterable[Mapping[str, Any]],
    numbers: Mapping[int | str, int],
    count: int,
    crowd: str,
) -> None:
    """Writes the mask of one image."""
    size = image_size(image)
    if None not in told and tuple(told) != size:
        raise ValueError(f"the JSON says {tuple(told)} (height, width), the image is {size}")
    write_mask(place, draw_coco(records, numbers, size, crowd), count)


def _inside(name):
    """Parts of a relative path that stays in its folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or os.path.isabs(name) or ":" in parts[0] or "\0" in name:
        raise UserError(
            f"The JSON names the image {name!r}; a path inside the folder of images is needed."
        )
    return parts


def _classes(categories, annotations, classes, other_labels, path):
    """Names of the classes, {category id: class number}, and how often each name occurs."""
    used = collections.Counter(record["category_id"] for record in annotations)
    unknown = sorted((k for k in used if k not in categories), key=str)
    if unknown:
        raise UserError(
            f"--json {path}: annotations are of categories that it does not list: "
            + ", ".join(f"{k!r} ({used[k]})" for k in unknown)
            + f". Listed: {', '.join(f'{k!r} {v}' for k, v in categories.items()) or 'none'}."
        )
    found = collections.Counter()
    for key, name in categories.items():
        found[name] += used[key]
    if classes:
        names = read_classes(classes)
    else:
        ordered = sorted(categories, key=lambda k: (isinstance(k, str), k))
        kept = set(found_names(found))
        names = [categories[k] for k in ordered if categories[k] in kept]
        names = check_names(names, f"--json {path}")
    # A category without a single annotation is no mistake, whether it is a class or not.
    counts = {name: count for name, count in found.items() if count or name in names}
    numbers = class_numbers(names, counts, other_labels, "--classes")
    return names, {key: numbers.get(name, 0) for key, name in categories.items()}, found


def prepare_coco(
    json_path: str,
    images: str,
    save_dir: str,
    *,
    mode: str = "train",
    classes: Sequence[str] | None = None,
    other_labels: str = "error",
    crowd: str = "void",
    options: Options,
) -> Outcome:
    """Writes annotations/<mode>/*.png, <mode>.txt and class_names.txt.

    Args:
        json_path (str): The instance file.
        images (str): The folder that its file names start from; the images stay there.
        save_dir (str): Where everything goes; the same for train and val.
        mode (str): "train", "val" or "test".
        classes (list[str]): Names of the classes 1, 2, ... or one file of them; None takes all
            categories in the order of their ids.
        other_labels (str): What becomes of categories outside `classes`: "error", "background",
            "void".
        crowd (str): See `draw_coco`.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: The JSON is broken, has unknown categories (all are listed with their counts),
            or names paths outside `images`; nothing was written.
    """
    listed, annotations, categories = read_instances(json_path)
    if not os.path.isdir(images):
        raise UserError(f"--images {images}: there is no such folder.")
    names, numbers, found = _classes(categories, annotations, classes, other_labels, json_path)
    outcome = Outcome()
    records = collections.defaultdict(list)
    for record in annotations:
        records[record["image_id"]].append(record)
    if records and not records.keys() & listed.keys():
        raise UserError(
            f"--json {json_path}: no annotation is of an image that it lists; image_id has to be "
            "the same number or text as the image's id."
        )
    for key in sorted(records.keys() - listed.keys(), key=str):
        reason = f"{len(records[key])} annotations of an image that it does not list"
        outcome.failures.append((f"{json_path}: image id {key!r}", reason))
    jobs, rows = [], []
    for key, record in listed.items():
        parts = _inside(str(record["file_name"]))
        image = os.path.join(images, *parts)
        stem = os.path.splitext(os.path.join(*parts))[0]
        mask = os.path.join(save_dir, "annotations", mode, stem + ".png")
        told = (record.get("height"), record.get("width"))
        data = (image, told, records.get(key, []), numbers, len(names) + 1, crowd)
        jobs.append(Job(image, mask, convert_coco, data))
        rows.append(tuple(lists.relative(path, save_dir) for path in (image, mask)))

    texts, _ = lists.list_text({f"{mode}.txt": sorted(rows)}, options.separator, names)
    lists.check_lists(texts, save_dir, options.overwrite)
    made = run_jobs(jobs, options, outcome, "masks")
    rows = [row for row, is_there in zip(rows, made) if is_there]
    if rows:
        texts, used = lists.list_text({f"{mode}.txt": sorted(rows)}, options.separator, names)
        lists.write_lists(texts, save_dir, options, outcome)
        outcome.notes.append("annotations: " + ", ".join(f"{n} {found[n]}" for n in found))
        outcome.notes.append(lists.advice(save_dir, texts, used, len(names) + 1))
    return outcome

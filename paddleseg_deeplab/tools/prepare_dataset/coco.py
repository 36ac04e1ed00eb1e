# SPDX-License-Identifier: Apache-2.0
"""Masks from COCO's instance annotations; stands on no COCO library."""

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset.classes import (
    Wanted,
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
    write_mask,
)
from paddleseg_deeplab.tools.prepare_dataset.pixels import polygons
from paddleseg_deeplab.tools.prepare_dataset.pixels.rle import decode_mask
from paddleseg_deeplab.tools.prepare_dataset.whole_set import Entry, WholeSet, mask_place
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files import written


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read an instance file.

    Attributes:
        crowd (str): What becomes of annotations with iscrowd: "void" (255), "class" or "skip".
            None stands for "void", but stops where that takes a whole class away.
        basename (bool): Of the images' paths only the file's name counts.
        ignore_sizes (bool): The images' height and width in the JSON do not count.
    """

    crowd: str | None = None
    basename: bool = False
    ignore_sizes: bool = False


def read_instances(
    path: str,
) -> tuple[dict[int | str, dict[str, Any]], list[dict[str, Any]], dict[int | str, Any]]:
    """Reads an instance file.

    Returns:
        tuple: images {id: record}, annotations [record], categories {id: record}.

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
    categories = {k: {**c, "name": str(c["name"]).strip()} for k, c in categories.items()}
    return images, parts["annotations"], categories


def _by_id(records, path, key):
    table = {}
    for record in records:
        if table.setdefault(record["id"], record) != record:
            raise UserError(
                f"--json {path}: {key} has the id {record['id']!r} twice, for "
                f"{_called(table[record['id']])!r} and {_called(record)!r}. Give each an id of its "
                "own in the JSON."
            )
    return table


def _called(record):
    return record.get("name", record.get("file_name"))


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
    stated_size: tuple[int | None, int | None],
    records: Iterable[Mapping[str, Any]],
    numbers: Mapping[int | str, int],
    count: int,
    reading: Reading,
) -> None:
    """Writes the mask of one image."""
    size = image_size(image)
    if reading.ignore_sizes:
        for record in records:
            _check_inside(record, size)
    elif None not in stated_size and tuple(stated_size) != size:
        advice = "Where only these two numbers are wrong, give --ignore_sizes."
        if tuple(stated_size) == size[::-1]:
            advice = (
                "Its sides are swapped: where only these two numbers are, give --ignore_sizes; "
                "where the picture was turned after it was drawn on, turn it back."
            )
        raise ValueError(
            f"the JSON says {tuple(stated_size)} (height, width), the image is {size}. {advice}"
        )
    write_mask(place, draw_coco(records, numbers, size, reading.crowd or "void"), count)


def _check_inside(record, size):
    """Where sizes do not count, polygons have to show that they are this image's."""
    segmentation = record.get("segmentation")
    for numbers in segmentation if isinstance(segmentation, list) else ():
        pairs = list(zip(numbers[::2], numbers[1::2])) if isinstance(numbers, list) else []
        points = polygons.check_points(pairs, 1, f"the annotation {record.get('id')!r}")
        if (points < -1).any() or (points > np.array(size[::-1]) + 1).any():
            raise ValueError(
                f"the annotation {record.get('id')!r} reaches beyond the image of {size[1]} x "
                f"{size[0]}: it was drawn on another size, and --ignore_sizes cannot help."
            )


def _inside(name, basename):
    """Parts of a relative path that stays in its folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if basename and parts and parts[-1] != ".." and "\0" not in name:
        return parts[-1:]
    absolute = name.startswith(("/", "\\")) or os.path.isabs(name)
    if not parts or ".." in parts or absolute or ":" in parts[0] or "\0" in name:
        raise UserError(
            f"The JSON names the image {name!r}; a path inside the folder of images is needed. "
            "Where the file's name alone is enough to find it there, give --basename."
        )
    return parts


def _classes(categories, annotations, wanted, path):
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
    if wanted.classes:
        names = read_classes(wanted.classes)
    else:
        ordered = sorted(categories, key=lambda k: (isinstance(k, str), k))
        kept = set(found_names(found))
        names = [categories[k] for k in ordered if categories[k] in kept]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            several = " ".join(repr(name) if " " in name else name for name in dict.fromkeys(names))
            raise UserError(
                f"--json {path} has the category {', '.join(twice)} twice, with several ids. To "
                f"make one class of each name, give --classes {several}."
            )
        names = check_names(names, f"--json {path}")
    # A category without a single annotation is no mistake, whether it is a class or not.
    counts = {name: count for name, count in found.items() if count or name in names}
    numbers = class_numbers(names, counts, wanted.other_labels, "--classes")
    return names, {key: numbers.get(name, 0) for key, name in categories.items()}, found


def _without_roots(records, annotations, wanted):
    """{id: name} without categories that only group others, as some programs write them; notes."""
    categories = {key: record["name"] for key, record in records.items()}
    used = {record["category_id"] for record in annotations}
    groups = {
        str(record.get("supercategory")): record["id"]
        for record in records.values()
        if record.get("supercategory") != record["name"]
    }
    roots = [k for k, name in categories.items() if name in groups and k not in used]
    if wanted.classes or not roots or len(roots) == len(categories):
        return categories, []
    named = ", ".join(f"{categories[k]!r} (id {k!r})" for k in roots)
    note = f"{named} has no annotation and only groups others: left out; --classes keeps it"
    return {k: name for k, name in categories.items() if k not in roots}, [note]


def _crowds(annotations, categories, names, reading, path):
    """A list of a sentence about annotations with iscrowd, empty where there are none.

    Raises:
        UserError: All annotations of a class are crowds, and nobody said what becomes of them.
    """
    crowds, total = collections.Counter(), collections.Counter()
    for record in annotations:
        name = categories[record["category_id"]]
        total[name] += 1
        crowds[name] += bool(record.get("iscrowd"))
    whole = [name for name in names if crowds[name] and crowds[name] == total[name]]
    counts = f"{sum(crowds.values())} of {len(annotations)} annotations are crowds (iscrowd)"
    if whole and reading.crowd is None:
        listed = ", ".join(f"{name} ({crowds[name]} of {total[name]})" for name in whole)
        raise UserError(
            f"--json {path}: {counts}, and all of {listed}: void, they would leave nothing to "
            "learn. CVAT marks masks drawn by brush so: give --crowd class. To have them void all "
            "the same, give --crowd void."
        )
    if not sum(crowds.values()):
        return []
    became = {"class": "of their class", "skip": "left out"}.get(reading.crowd, "void (255)")
    return [f"{counts}, now {became}"]


def prepare_coco(
    json_path: str,
    images: str,
    save_dir: str,
    *,
    mode: str = "train",
    wanted: Wanted,
    reading: Reading,
    options: Options,
) -> Outcome:
    """Writes annotations/<mode>/*.png, <mode>.txt and class_names.txt.

    Args:
        json_path (str): The instance file.
        images (str): The folder that its file names start from; the images stay there.
        save_dir (str): Where everything goes; the same for train and val.
        mode (str): "train", "val" or "test".
        wanted (Wanted): The classes; all categories come in the order of their ids.
        reading (Reading): How to read the file.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: The JSON is broken, has unknown categories (all are listed with their counts),
            names paths outside `images`, or has a class of crowds alone; nothing was written.
    """
    listed, annotations, records = read_instances(json_path)
    if not os.path.isdir(images):
        raise UserError(f"--images {images}: there is no such folder.")
    categories, notes = _without_roots(records, annotations, wanted)
    names, numbers, found = _classes(categories, annotations, wanted, json_path)
    crowds = _crowds(annotations, categories, names, reading, json_path)
    notes = ["annotations: " + ", ".join(f"{n} {found[n]}" for n in found), *notes, *crowds]
    outcome = Outcome()
    records = _by_image(annotations, listed, json_path, outcome)
    entries = {}
    for key, record in listed.items():
        name = "/".join(_inside(str(record["file_name"]), reading.basename))
        found = written.find(name, images)
        image = found[0] if found else os.path.join(images, *name.split("/"))
        stated_size = (record.get("height"), record.get("width"))
        data = (image, stated_size, records.get(key, []), numbers, len(names) + 1, reading)
        job = Job(image, mask_place(save_dir, name, mode), convert_coco, data)
        entries[repr(key)] = Entry(image, job)
    order = sorted(entries, key=lambda key: entries[key].image)
    whole = WholeSet(entries, {mode: order}, ["background", *names], save_dir, alone=False)
    whole.write(options, outcome, notes)
    elsewhere = [
        entry.image
        for entry in entries.values()
        if not os.path.isfile(entry.image)
        and os.path.isfile(os.path.join(images, os.path.basename(entry.image)))
    ]
    if elsewhere:
        outcome.notes.append(
            f"{len(elsewhere)} images are not where the JSON says, such as {elsewhere[0]}, but "
            f"{images} has files of their names: --basename finds them"
        )
    return outcome


def _by_image(annotations, listed, path, outcome):
    """{image id: its annotations}; those of unknown images become failures."""
    records = collections.defaultdict(list)
    for record in annotations:
        records[record["image_id"]].append(record)
    if records and not records.keys() & listed.keys():
        raise UserError(
            f"--json {path}: no annotation is of an image that it lists; image_id has to be "
            "the same number or text as the image's id."
        )
    for key in sorted(records.keys() - listed.keys(), key=str):
        reason = f"{len(records[key])} annotations of an image that it does not list"
        outcome.failures.append((f"{path}: image id {key!r}", reason))
    return records

# SPDX-License-Identifier: Apache-2.0
"""Masks from labelme's JSON files."""

import base64
import collections
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paddleseg_deeplab.prediction.outputs import IMAGE_EXTENSIONS
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
    find_files,
    image_size,
    in_order,
    read_header,
    run_jobs,
    write_bytes,
    write_mask,
)
from paddleseg_deeplab.utils.errors import UserError

# Points that each shape needs at least; None: any number from the least on.
_POINTS = {
    "polygon": (3, None),
    "oriented_rectangle": (4, 4),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "points": (1, None),
    "mask": (2, 2),
}


def read_annotation(path: str) -> dict[str, Any]:
    """Reads a labelme file.

    Returns:
        dict: With "shapes", each a dict with "label" (text) and "points" (a list).

    Raises:
        ValueError: It is no JSON, or no labelme file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no whole JSON: {error}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        coco = isinstance(content, dict) and "annotations" in content
        hint = " (it looks like COCO: prepare_dataset coco)" if coco else ""
        raise ValueError(f"is no labelme file: it has no list of shapes{hint}")
    for number, shape in enumerate(shapes):
        if not (
            isinstance(shape, dict)
            and isinstance(shape.get("points"), list)
            and isinstance(shape.get("label"), (str, int))
        ):
            raise ValueError(f"its shape {number} has no label or no points")
        shape["label"] = str(shape["label"]).strip()
    return content


def _image_of(path, content):
    """The image file that imagePath names, or None where it is not there."""
    told = content.get("imagePath")
    if isinstance(told, str) and told and "\0" not in told:
        # labelme on Windows writes backslashes.
        for name in (told, told.replace("\\", "/")):
            image = os.path.normpath(os.path.join(os.path.dirname(path), name))
            if os.path.isfile(image):
                return image
    return None


def embedded_image(content: Mapping[str, Any]) -> tuple[bytes, tuple[int, int], str]:
    """The image inside a labelme file: its bytes, (height, width) and ending.

    Raises:
        ValueError: There is none, or it is broken.
    """
    coded = content.get("imageData")
    if not coded:
        raise ValueError(
            f"its image {content.get('imagePath')!r} does not exist, and it holds no imageData"
        )
    try:
        data = base64.b64decode(coded, validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its imageData is no base64 text: {error}") from error
    try:
        size, kind = read_header(data)
    except ValueError as error:
        raise ValueError(f"its imageData {error}") from error
    ending = ".jpg" if kind == "JPEG" else f".{str(kind).lower()}"
    if ending not in IMAGE_EXTENSIONS:
        raise ValueError(f"its imageData is of the format {kind}")
    return data, size, ending


def survey(path: str) -> tuple[collections.Counter[str], str | None, str | None]:
    """What is to be known of a file before the work: {label: shapes}, image path or None, ending.

    Raises:
        ValueError: It cannot be used.
    """
    content = read_annotation(path)
    labels = collections.Counter(shape["label"] for shape in content["shapes"])
    image = _image_of(path, content)
    return labels, image, None if image else embedded_image(content)[2]


def shape_mask(
    shape: Mapping[str, Any], size: tuple[int, int], line_width: float, point_radius: float
) -> np.ndarray:
    """Pixels of one labelme shape: bool [height, width].

    A circle is given by its centre and a point of its edge; lines are `line_width` wide with round
    ends, points are discs. labelme's own `shape_to_mask` has 10 and 5 for these.

    Raises:
        ValueError: An unknown kind, wrong points, or nothing of it inside the image.
    """
    kind = shape.get("shape_type") or "polygon"
    what = f"the {kind} of {shape['label']!r}"
    if kind not in _POINTS:
        raise ValueError(f"{what} is of a kind that is not known: {', '.join(_POINTS)} are")
    least, most = _POINTS[kind]
    points = polygons.check_points(shape["points"], least, what)
    if most and len(points) > most:
        raise ValueError(f"{what} has {len(points)} points, needs {most}")
    if kind in ("polygon", "oriented_rectangle"):
        mask = polygons.polygon(points, size)
    elif kind == "rectangle":
        mask = polygons.rectangle(points, size)
    elif kind == "circle":
        radius = math.dist(*points.tolist())
        mask = polygons.disc(points[0], radius, size)
        points = points[:1] + np.array([[-radius], [radius]])  # its box
    elif kind in ("line", "linestrip"):
        mask = polygons.strip(points, line_width, size)
    elif kind == "mask":
        mask = polygons.stamp(points, shape.get("mask"), size)
    else:
        mask = np.zeros(size, bool)
        for point in points:
            mask |= polygons.disc(point, point_radius, size)
    low, high = points.min(axis=0), points.max(axis=0)
    if not mask.any() and ((high < 0).any() or (low > size[::-1]).any()):
        raise ValueError(
            f"{what} lies outside the image of {size[1]} x {size[0]}, at {low.tolist()} to "
            f"{high.tolist()}"
        )
    return mask


def draw_labelme(
    shapes: Iterable[Mapping[str, Any]],
    numbers: Mapping[str, int],
    size: tuple[int, int],
    line_width: float = 10,
    point_radius: float = 5,
) -> np.ndarray:
    """A mask of labelme shapes, later ones on top.

    Args:
        shapes (list[dict]): As `read_annotation` gives them.
        numbers (dict): {label: class number}.
        size (tuple): (height, width).
        line_width, point_radius (float): See `shape_mask`.

    Returns:
        numpy.ndarray: uint8 [height, width], background 0.
    """
    labels = np.zeros(size, np.uint8)
    for shape in shapes:
        labels[shape_mask(shape, size, line_width, point_radius)] = numbers[shape["label"]]
    return labels


def convert_labelme(
    place: str,
    source: str,
    numbers: Mapping[str, int],
    count: int,
    line_width: float,
    point_radius: float,
    image_target: str,
) -> None:
    """Writes the mask of one file and, where the image is inside it, the image."""
    content = read_annotation(source)
    image = _image_of(source, content)
    if image:
        size = image_size(image)
    else:
        data, size, _ = embedded_image(content)
    told = (content.get("imageHeight"), content.get("imageWidth"))
    if None not in told and told != size:
        raise ValueError(f"was drawn on {told} (height, width), its image is {size}")
    labels = draw_labelme(content["shapes"], numbers, size, line_width, point_radius)
    if not image:
        write_bytes(image_target, data)
    write_mask(place, labels, count)


def _survey_all(annotations, save_dir, options, outcome):
    """{path inside the folder: (image path or None, ending)} and the labels found."""
    names = find_files(annotations, "--annotations", (".json",), but=save_dir)
    if not names:
        raise UserError(f"--annotations {annotations}: no .json files in it.")
    found, usable = collections.Counter(), {}
    paths = [os.path.join(annotations, name) for name in names]
    results = in_order(survey, [(path,) for path in paths], options, "reading")
    for (result, reason), name, path in zip(results, names, paths):
        if reason is None:
            found.update(result[0])
            usable[name] = result[1:]
        else:
            outcome.failures.append((path, reason))
    return usable, found


def prepare_labelme(
    annotations: str,
    save_dir: str,
    *,
    classes: Sequence[str] | None = None,
    other_labels: str = "error",
    line_width: float = 10.0,
    point_radius: float = 5.0,
    deal: lists.Deal,
    options: Options,
) -> Outcome:
    """Writes annotations/*.png, class_names.txt and lists; images inside files go to images/.

    Args:
        annotations (str): Folder of .json files, searched with its sub folders.
        save_dir (str): Where everything goes. Images that are files stay where they are.
        classes (list[str]): Names of the classes 1, 2, ... or one file of them; None takes the
            labels found, sorted. The background is 0, labels `__ignore__` are 255.
        other_labels (str): What becomes of labels outside `classes`: "error", "background", "void".
        line_width, point_radius (float): See `shape_mask`.
        deal (Deal): How images are dealt out to train, val and test.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: Labels outside `classes` (all are listed with their counts), no files, lists
            that exist; nothing was written.
    """
    for flag, value in (("--line_width", line_width), ("--point_radius", point_radius)):
        if not 0 < value < math.inf:
            raise UserError(f"{flag} should be above 0, not {value}.")
    names = read_classes(classes) if classes else None
    outcome = Outcome()
    usable, found = _survey_all(annotations, save_dir, options, outcome)
    if not usable:
        return outcome
    if names is None:
        names = check_names(found_names(found), f"The labels of {annotations}")
    numbers = class_numbers(names, found, other_labels, "--classes")
    jobs, keys = [], {}
    for name, source, image, mask in _places(annotations, save_dir, usable):
        data = (source, numbers, len(names) + 1, line_width, point_radius, image)
        jobs.append(Job(source, mask, convert_labelme, data))
        keys[name] = tuple(lists.relative(path, save_dir) for path in (image, mask))
    sets = deal.sets(keys)

    def texts_of(keys):
        rows = {
            f"{part}.txt": [keys[key] for key in some if key in keys] for part, some in sets.items()
        }
        rows = {name: some for name, some in rows.items() if some}
        return lists.list_text(rows, options.separator, names)

    lists.check_lists(texts_of(keys)[0], save_dir, options.overwrite, whole=True)
    made = run_jobs(jobs, options, outcome, "masks")
    keys = {key: row for (key, row), is_there in zip(keys.items(), made) if is_there}
    if keys:
        texts, used = texts_of(keys)
        lists.write_lists(texts, save_dir, options, outcome)
        shapes = ", ".join(f"{label} {found[label]}" for label in sorted(found))
        outcome.notes.append(f"shapes: {shapes or 'none'}")
        outcome.notes.append(lists.advice(save_dir, texts, used, len(names) + 1))
    return outcome


def _places(annotations, save_dir, usable):
    """Yields (name, annotation, image, mask) of each file: the last three are paths."""
    for name, (image, ending) in usable.items():
        stem = os.path.splitext(name)[0]
        source = os.path.join(annotations, *name.split("/"))
        inner = image or os.path.join(save_dir, "images", *f"{stem}{ending}".split("/"))
        mask = os.path.join(save_dir, "annotations", *f"{stem}.png".split("/"))
        yield name, source, inner, mask

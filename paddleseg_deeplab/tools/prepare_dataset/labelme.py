# SPDX-License-Identifier: Apache-2.0
"""Masks from labelme's JSON files."""

import base64
import collections
import json
import math
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
    find_files,
    image_size,
    in_order,
    read_header,
    write_bytes,
    write_mask,
)
from paddleseg_deeplab.tools.prepare_dataset.lists import Deal
from paddleseg_deeplab.tools.prepare_dataset.pixels import polygons
from paddleseg_deeplab.tools.prepare_dataset.whole_set import (
    UNLABELLED,
    Entry,
    WholeSet,
    background_entry,
    mask_place,
)
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files import written
from paddleseg_deeplab.utils.files.folders import IMAGE_EXTENSIONS

# Points that each shape needs at least; None: any number from the least on.
_POINTS = {
    "polygon": (3, None),
    "oriented_rectangle": (4, 4),
    "rotation": (4, 4),  # X-AnyLabeling's name for it
    "quadrilateral": (4, 4),  # likewise
    "rectangle": (2, 4),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "points": (1, None),
    "mask": (2, 2),
}
_FILLED = ("polygon", "oriented_rectangle", "rotation", "quadrilateral")


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
    named = content.get("imagePath")
    if isinstance(named, str) and named and "\0" not in named:
        # labelme on Windows writes backslashes; a path of another machine may lie here by its name.
        for name in (named, named.replace("\\", "/").rpartition("/")[2]):
            found = written.find(name, os.path.dirname(path) or os.curdir)
            if found is not None:
                return found[0]
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
    if (most and len(points) > most) or (kind == "rectangle" and len(points) == 3):
        raise ValueError(f"{what} has {len(points)} points, needs {most}")
    # X-AnyLabeling writes all four corners of a rectangle.
    if kind in _FILLED or len(points) == 4 == most:
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
    stated_size = (content.get("imageHeight"), content.get("imageWidth"))
    if None not in stated_size and stated_size != size:
        raise ValueError(f"was drawn on {stated_size} (height, width), its image is {size}")
    labels = draw_labelme(content["shapes"], numbers, size, line_width, point_radius)
    if not image:
        write_bytes(image_target, data)
    write_mask(place, labels, count)


def _survey_all(annotations, save_dir, options, outcome):
    """{path inside the folder: (image path or None, ending)} and the labels found."""
    names = find_files(annotations, "--annotations", (".json",), [save_dir])
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
    wanted: Wanted,
    line_width: float = 10.0,
    point_radius: float = 5.0,
    unlabelled: str | None = None,
    deal: Deal,
    options: Options,
) -> Outcome:
    """Writes annotations/*.png, class_names.txt and lists; images inside files go to images/.

    Args:
        annotations (str): Folder of .json files, searched with its sub folders.
        save_dir (str): Where everything goes. Images that are files stay where they are.
        wanted (Wanted): The classes; of all labels found, they are sorted. The background is 0,
            labels `__ignore__` are 255.
        line_width, point_radius (float): See `shape_mask`.
        unlabelled (str): What becomes of images without a JSON: "background", an empty mask, or
            "skip", which None stands for.
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
    names = read_classes(wanted.classes) if wanted.classes else None
    outcome = Outcome()
    usable, found = _survey_all(annotations, save_dir, options, outcome)
    if not usable:
        return outcome
    if names is None:
        names = check_names(found_names(found), f"The labels of {annotations}")
    numbers = class_numbers(names, found, wanted.other_labels, "--classes")
    entries = {}
    for name, source, image, mask in _places(annotations, save_dir, usable):
        data = (source, numbers, len(names) + 1, line_width, point_radius, image)
        entries[name] = Entry(image, Job(source, mask, convert_labelme, data))
    alone = _without_annotation(annotations, save_dir, entries)
    notes = [
        "shapes: " + (", ".join(f"{label} {found[label]}" for label in sorted(found)) or "none")
    ]
    if alone:
        notes.append(
            f"{len(alone)} images have no JSON, such as {alone[0]}: "
            + UNLABELLED[unlabelled or "skip"]
            + ("" if unlabelled else " (--unlabelled background makes them empty masks)")
        )
    if unlabelled == "background":
        for name in alone:
            entries[name] = background_entry(annotations, name, save_dir, len(names) + 1)
    whole = WholeSet(entries, deal.sets(entries), ["background", *names], save_dir)
    whole.write(options, outcome, notes)
    return outcome


def _without_annotation(annotations, save_dir, entries):
    """Images in the folder that no file of annotations is about: paths inside it."""
    known = {os.path.realpath(entry.image) for entry in entries.values()}
    known_stems = find_files(annotations, "--annotations", (".json",), [save_dir])
    stems = {os.path.splitext(name)[0] for name in known_stems}
    made = [save_dir, os.path.join(save_dir, "annotations")]  # both may be the same folder
    return [
        name
        for name in find_files(annotations, "--annotations", but=made)
        if os.path.splitext(name)[0] not in stems
        and os.path.realpath(os.path.join(annotations, *name.split("/"))) not in known
    ]


def _places(annotations, save_dir, usable):
    """Yields (name, annotation, image, mask) of each file: the last three are paths."""
    for name, (image, ending) in usable.items():
        stem = os.path.splitext(name)[0]
        source = os.path.join(annotations, *name.split("/"))
        inner = image or os.path.join(save_dir, "images", *f"{stem}{ending}".split("/"))
        yield name, source, inner, mask_place(save_dir, name)

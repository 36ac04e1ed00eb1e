# SPDX-License-Identifier: Apache-2.0
"""Masks from what PaddleSeg's EISeg writes beside the images.

For an image a.jpg its folder of labels holds, as the settings say: a.png (grey, the labels' ids;
a.jpg itself where endings are kept), a_mask.tif (the same, for remote sensing), a.json (polygons),
a_pseudo.png (colours), a_cutout.png (no mask); for all images autosave_label.txt (a line
``id name r g b`` for each label) and annotations.json (COCO's form).
"""

import collections
import json
import os
import re
from collections.abc import Mapping

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset.cityscapes import map_values
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
)
from paddleseg_deeplab.tools.prepare_dataset.lists import Deal
from paddleseg_deeplab.tools.prepare_dataset.pixels import polygons
from paddleseg_deeplab.tools.prepare_dataset.pixels.colour_table import (
    code_of,
    read_codes,
    to_classes,
)
from paddleseg_deeplab.tools.prepare_dataset.whole_set import (
    UNLABELLED,
    Entry,
    WholeSet,
    background_entry,
    mask_place,
    write_like,
)
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files import written

_LIST = "autosave_label.txt"
_LINE = re.compile(r"^(\d+)\s+(.+?)(?:\s+(\d+)\s+(\d+)\s+(\d+))?$")
# What an image's labels may lie in, the best first: grey values are exact.
_KINDS = ("grey", "json", "pseudo")


def read_label_list(path: str) -> dict[int, tuple[str, int | None]]:
    """{id: (name, colour or None)} of EISeg's list of labels.

    Raises:
        UserError: It cannot be read, or a line is of another form.
    """
    labels: dict[int, tuple[str, int | None]] = {}
    for number, line in enumerate(written.read_text(path).splitlines(), 1):
        match = _LINE.match(line.strip())
        if not line.strip():
            continue
        if match is None or not 0 < int(match[1]) < VOID or int(match[1]) in labels:
            raise UserError(
                f"{path}:{number}: a line must be an id of its own from 1 to 254, a name and a "
                f"colour, such as '1 road 128 64 128', not {line.strip()!r}."
            )
        colour = None if match[3] is None else code_of(int(match[k]) for k in (3, 4, 5))
        labels[int(match[1])] = match[2], colour
    if not labels:
        raise UserError(f"{path} names no labels.")
    return labels


def _label_list(labels: str, given: str | None) -> str:
    for path in (given,) if given else (_LIST, f"label/{_LIST}"):
        place = path if given else os.path.join(labels, path)
        if os.path.isfile(place):
            return place
    coco = os.path.isfile(os.path.join(labels, "annotations.json"))
    hint = " Its annotations.json can be read by prepare_dataset coco." if coco else ""
    raise UserError(
        f"{given or os.path.join(labels, _LIST)} does not exist: EISeg's list of labels says "
        f"which number is which class. Save it there in EISeg, or give --label_list.{hint}"
    )


def _candidates(name: str) -> dict[str, list[str]]:
    stem = os.path.splitext(name)[0]
    return {
        "grey": [f"{stem}.png", f"{stem}_mask.tif", name],
        "json": [f"{stem}.json", f"{name}.json"],
        "pseudo": [f"{stem}_pseudo.png", f"{stem}_pseudo{os.path.splitext(name)[1]}"],
    }


def find_source(labels: str, name: str) -> tuple[str, str] | None:
    """(kind, file) that holds an image's labels: grey values, else polygons, else colours."""
    candidates = _candidates(name)
    for kind in _KINDS:
        for candidate in candidates[kind]:
            found = written.find(candidate, labels)
            if found is not None:
                return kind, found[0]
    return None


def draw_polygons(path: str, numbers: Mapping[int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask of the polygons of a JSON of EISeg, later ones on top: uint8 [height, width].

    Raises:
        ValueError: It is no such file, or has an id that the list of labels lacks.
    """
    try:
        content = json.loads(written.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no whole JSON: {error}") from error
    if not isinstance(content, list):
        hint = "; it looks like labelme's: prepare_dataset labelme" if "shapes" in content else ""
        raise ValueError(f"is none of EISeg's files: it is no list of polygons{hint}")
    mask = np.zeros(size, np.uint8)
    for place, record in enumerate(content):
        if not isinstance(record, dict) or not isinstance(record.get("points"), list):
            raise ValueError(f"its polygon {place} has no points")
        number = numbers.get(record["labelIdx"]) if "labelIdx" in record else None
        if number is None:
            raise ValueError(
                f"its polygon {place} has the id {record.get('labelIdx')!r}, which the list of "
                "labels lacks"
            )
        points = polygons.check_points(record["points"], 3, f"its polygon {place}")
        mask[polygons.polygon(points, size)] = number
    return mask


def convert_eiseg(
    place: str, kind: str, source: str, image: str, numbers: dict, codes: dict, count: int
) -> None:
    """Writes the mask of one image; `numbers` by the labels' ids, `codes` by their colours."""
    if kind == "json":
        labels = draw_polygons(source, numbers, image_size(image))
    elif kind == "pseudo":
        labels = to_classes(read_codes(source), codes, None)
    else:
        table = np.full(65536, -1, np.int16)
        for value, number in {0: 0, **numbers}.items():
            table[value] = number
        ids = ", ".join(map(str, sorted(numbers)))
        labels = map_values(read_label(source), table, f"0 and the ids of the labels are: {ids}")
    write_like(place, labels, image, count)


def prepare_eiseg(
    images: str,
    labels: str | None,
    save_dir: str,
    *,
    label_list: str | None = None,
    wanted: Wanted,
    unlabelled: str | None = None,
    deal: Deal,
    options: Options,
) -> Outcome:
    """Writes annotations/*.png, class_names.txt and lists.

    Args:
        images (str): The folder of images that was opened in EISeg.
        labels (str): Where EISeg put its files; None: its folder "label" in `images`.
        save_dir (str): Where everything goes; the images stay where they are.
        label_list (str): The list of labels; None: autosave_label.txt in `labels`.
        wanted (Wanted): The classes; all labels come in the order of their ids.
        unlabelled (str): What becomes of images without a file: "background", an empty mask, or
            "skip", which None stands for.
        deal (Deal): How images are dealt out to train, val and test.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: No images, no list of labels, no file for any image, or lists that exist;
            nothing was written.
    """
    labels = labels or os.path.join(images, "label")
    if not os.path.isdir(labels):
        raise UserError(f"--labels {labels}: there is no such folder.")
    listed = read_label_list(_label_list(labels, label_list))
    found = collections.Counter(name for name, _ in listed.values())
    if wanted.classes:
        names = read_classes(wanted.classes)
    else:
        kept = set(found_names(found))
        names = [listed[key][0] for key in sorted(listed) if listed[key][0] in kept]
        names = check_names(names, "EISeg's list of labels")
    by_name = class_numbers(names, found, wanted.other_labels, "--classes")
    numbers = {key: by_name[name] for key, (name, _) in listed.items()}
    codes = {c: numbers[key] for key, (_, c) in listed.items() if c is not None}
    kinds: collections.Counter[str] = collections.Counter()
    outcome, entries, alone = Outcome(), {}, []
    for name in find_files(images, "--images", but=[labels, save_dir]):
        source = find_source(labels, name) if "/" not in name else None
        if source is None:
            alone.append(name)
            continue
        kinds[source[0]] += 1
        image = os.path.join(images, name)
        data = (*source, image, numbers, {0: 0, **codes}, len(names) + 1)
        entries[name] = Entry(
            image, Job(source[1], mask_place(save_dir, name), convert_eiseg, data)
        )
    if not entries:
        raise UserError(
            f"--labels {labels}: no file there belongs to any of {len(alone)} images in {images}."
        )
    notes = ["from: " + ", ".join(f"{kinds[kind]} {kind}" for kind in _KINDS if kinds[kind])]
    if alone:
        notes.append(
            f"{len(alone)} images have no labels, such as {alone[0]}: "
            f"{UNLABELLED[unlabelled or 'skip']}"
        )
    for name in alone if unlabelled == "background" else ():
        entries[name] = background_entry(images, name, save_dir, len(names) + 1)
    whole = WholeSet(entries, deal.sets(entries), ["background", *names], save_dir)
    whole.write(options, outcome, notes)
    return outcome

# SPDX-License-Identifier: Apache-2.0
"""Masks of one class each (0 and another value, or shades between) put together to masks of
classes."""

import collections
import dataclasses
import os
import re
from collections.abc import Sequence

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
    inner,
    write_mask,
)
from paddleseg_deeplab.tools.prepare_dataset.lists import Deal
from paddleseg_deeplab.tools.prepare_dataset.whole_set import (
    UNLABELLED,
    Entry,
    WholeSet,
    background_entry,
    mask_place,
)
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.source import load_npy
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.folders import ARRAY_EXTENSION, IMAGE_EXTENSIONS
from paddleseg_deeplab.utils.files.written import same

_SUFFIXES = (*IMAGE_EXTENSIONS, ARRAY_EXTENSION)
_PIECES = re.compile(r"(\{image\}|\{class\}|\*)")


@dataclasses.dataclass(frozen=True)
class Layers:
    """How the masks of an image are called and read.

    Attributes:
        pattern (str): Path of a mask inside its folder, without the ending: {image} is the image's
            path without the ending, {class} the class, * anything.
        threshold (float): Share of the highest value from which on a pixel is of the class; None
            wants masks of two values.
    """

    pattern: str = "{class}/{image}"
    threshold: float | None = None

    def check(self) -> None:
        """Refuses what cannot work.

        Raises:
            UserError: A pattern without {image}, or with other braces; a threshold out of range.
        """
        rest = _PIECES.sub("", self.pattern)
        if "{image}" not in self.pattern or "{" in rest or "}" in rest:
            raise UserError(
                "--mask_pattern is the path of a mask with {image}, and {class} where its class "
                f"stands, such as {{class}}/{{image}} or {{image}}_{{class}}, not {self.pattern!r}."
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"--threshold should be above 0 and at most 1, not {self.threshold}.")

    def match(self, path: str, images: Sequence[str] | dict[str, str]) -> tuple[str, str] | None:
        """(image, class) that a mask is of; the longest name of an image that fits."""
        stem = same(os.path.splitext(path)[0])
        longest = len(stem)
        while longest:
            found = re.fullmatch(self._expression(longest), stem)
            if found is None:
                return None
            if found["image"] in images:
                return found["image"], found.groupdict().get("class", "")
            longest = len(found["image"]) - 1
        return None

    def _expression(self, longest: int) -> str:
        pieces = {
            "{image}": f"(?P<image>.{{1,{longest}}})",
            "{class}": "(?P<class>[^/]+)",
            "*": "[^/]*?",
        }
        return "".join(pieces.get(p, re.escape(p)) for p in _PIECES.split(self.pattern))


def read_binary(path: str, threshold: float | None) -> np.ndarray:
    """Where a mask of one class has it: bool [H, W].

    Args:
        path (str): Whole numbers, or a .npy file of floats.
        threshold (float): Of 255 (65535 for 16 bits); of 1 for floats that go no further. None
            wants 0 and one other value.

    Raises:
        ValueError: More than two values, and no threshold.
    """
    is_float = path.lower().endswith(ARRAY_EXTENSION) and load_npy(path, "label").dtype.kind == "f"
    values = load_npy(path, "label") if is_float else read_label(path)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"is {values.dtype} {values.shape}; finite numbers [height, width] needed")
    found = np.unique(values)
    most = float(found[-1]) if len(found) else 0.0
    two = len(found) < 2 or (len(found) == 2 and found[0] == 0)
    if two and (threshold is None or most <= 1):
        return values > 0
    if threshold is None:
        raise ValueError(
            f"holds {len(found)} values, {found[0]} to {found[-1]}, not 0 and one other. Shades: "
            "--threshold 0.5 takes half of the highest value and more. Numbers of classes: "
            "prepare_dataset split"
        )
    top = (1 if most <= 1 else 255) if is_float or most <= 255 else 65535
    return values >= threshold * top


def merge_masks(
    place: str, image: str, layers: list[tuple[str, int]], count: int, threshold: float | None
) -> int:
    """Writes the mask of one image; returns the pixels that several classes have.

    Args:
        place (str): Where to.
        image (str): The image.
        layers (list): (mask, class), later ones on top.
        count (int): Number of classes.
        threshold (float): See `read_binary`.
    """
    size = image_size(image)
    labels = np.zeros(size, np.uint8)
    shared = np.zeros(size, bool)
    for path, number in layers:
        try:
            mask = read_binary(path, threshold)
        except ValueError as error:
            raise ValueError(str(error) if path in str(error) else f"{path} {error}") from error
        if mask.shape != size:
            raise ValueError(f"{path} is {mask.shape} (height, width), the image is {size}")
        shared |= mask & (labels > 0) & (labels != number)
        labels[mask] = number
    write_mask(place, labels, count)
    return int(shared.sum())


def _by_image(
    images: dict[str, str], masks: str, layers: Layers, outcome: Outcome, but: Sequence[str]
) -> tuple[dict[str, list[tuple[str, str]]], collections.Counter[str]]:
    """{image: (mask, class) of each of its masks}, and how many masks each class has."""
    found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    counts: collections.Counter[str] = collections.Counter()
    files = find_files(masks, "--masks", _SUFFIXES, but)
    for path in files:
        match = layers.match(path, images)
        place = os.path.join(masks, *path.split("/"))
        if match is None:
            outcome.failures.append((place, f"is of no image, going by {layers.pattern}"))
        else:
            found[match[0]].append((place, match[1]))
            counts[match[1]] += 1
    if not found:
        raise UserError(
            f"--masks {masks}: none of {len(files)} masks is of one of {len(images)} images, going "
            f"by --mask_pattern {layers.pattern}. A mask there: {files[0] if files else 'none'}."
        )
    return found, counts


def prepare_binary(
    images: str,
    masks: str,
    save_dir: str,
    *,
    layers: Layers,
    wanted: Wanted,
    unlabelled: str | None = None,
    deal: Deal,
    options: Options,
) -> Outcome:
    """Writes annotations/*.png, class_names.txt and lists.

    Args:
        images, masks (str): Folders.
        save_dir (str): Where everything goes; the images stay where they are.
        layers (Layers): How the masks of an image are called and read.
        wanted (Wanted): The classes, later ones on top; all that are found are sorted.
        unlabelled (str): What becomes of images without any mask: "background", "skip", or None,
            which names them as failures.
        deal (Deal): How images are dealt out to train, val and test.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: No masks of these images, classes that were not asked for, lists that exist;
            nothing was written.
    """
    layers.check()
    names = read_classes(wanted.classes) if wanted.classes else None
    if "{class}" not in layers.pattern and (names is None or len(names) != 1):
        raise UserError(
            f"--mask_pattern {layers.pattern} has no {{class}}: name the one class of all masks "
            "with --classes."
        )
    outcome = Outcome()
    files = find_files(images, "--images", _SUFFIXES, [save_dir, *inner(masks, images)])
    by_stem = {same(os.path.splitext(path)[0]): path for path in files}
    found, counts = _by_image(by_stem, masks, layers, outcome, [save_dir, *inner(images, masks)])
    if names is not None and "{class}" not in layers.pattern:
        counts = collections.Counter({names[0]: sum(counts.values())})
        found = {key: [(path, names[0]) for path, _ in rows] for key, rows in found.items()}
    if names is None:
        names = check_names(found_names(counts), f"--masks {masks}")
    numbers = class_numbers(names, counts, wanted.other_labels, "--classes")
    entries, alone = {}, []
    for stem, name in sorted(by_stem.items()):
        if stem not in found:
            alone.append(name)
            continue
        image = os.path.join(images, *name.split("/"))
        rows = sorted(((path, numbers[label]) for path, label in found[stem]), key=lambda r: r[1])
        data = (image, rows, len(names) + 1, layers.threshold)
        entries[name] = Entry(image, Job(image, mask_place(save_dir, name), merge_masks, data))
    notes = ["masks: " + ", ".join(f"{label} {counts[label]}" for label in sorted(counts))]
    if unlabelled is None:
        outcome.failures += [(os.path.join(images, name), "has no mask") for name in alone]
    elif alone:
        notes.append(f"{len(alone)} images without a mask: {UNLABELLED[unlabelled]}")
    for name in alone if unlabelled == "background" else ():
        entries[name] = background_entry(images, name, save_dir, len(names) + 1)
    whole = WholeSet(entries, deal.sets(entries), ["background", *names], save_dir)
    whole.write(options, outcome, notes)
    shared = [pixels for pixels in outcome.results.values() if pixels]
    if shared:
        outcome.notes.append(
            f"{sum(shared)} pixels of {len(shared)} images are of several classes: the later one "
            "in the order of the classes has them"
        )
    return outcome

# SPDX-License-Identifier: Apache-2.0
"""The kinds of faults that a data check knows: how grave they are, their words and their cure."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.transforms.reading.values import VOID

ERROR, WARNING, HINT = "error", "warning", "hint"
KEPT_FILES = 1000  # of one finding, for report.json
_LISTED_CLASSES = 60  # a longer label_map is no help to print


@dataclasses.dataclass(frozen=True)
class Kind:
    level: str
    title: str
    advice: str


# In the order of the report.
KINDS = {
    "bad_line": Kind(
        ERROR,
        "List lines that are not an image and a label",
        "Correct the lines. If paths hold blanks, separate image and label by another "
        "character and name it with `separator`.",
    ),
    "unpaired": Kind(
        ERROR,
        "Files without a partner of the same name",
        "Add the missing partner, or remove the file.",
    ),
    "image_missing": Kind(
        ERROR,
        "Images that do not exist",
        "Correct the list or dataset_root, or add the files.",
    ),
    "label_missing": Kind(
        ERROR,
        "Labels that do not exist",
        "Correct the list or dataset_root, or add the files.",
    ),
    "image_unreadable": Kind(
        ERROR,
        "Images that cannot be read",
        "Fetch or export them again, or take them off the list.",
    ),
    "label_unreadable": Kind(
        ERROR,
        "Labels that cannot be read",
        "Export them again, or take the pairs off the list.",
    ),
    "image_truncated": Kind(
        ERROR,
        "Truncated images",
        "Copy or fetch them again: training would stop at them or, with OpenCV before version 5, "
        "see grey where the data ends.",
    ),
    "label_truncated": Kind(
        ERROR,
        "Truncated labels",
        "Copy or export them again.",
    ),
    "size_mismatch": Kind(
        ERROR,
        "Labels of another size than their image",
        "Export the labels at the size of the images; if sides are swapped, save the image "
        "without its EXIF rotation.",
    ),
    "image_channels": Kind(
        ERROR,
        "Images with another number of channels than img_channels",
        "Set img_channels to what the files hold, on the dataset, or convert the files.",
    ),
    "image_values": Kind(
        ERROR,
        "Images with values that are NaN, infinite, or beyond 1e6 in magnitude",
        "Repair the files. Where the value marks pixels without data, name it on the dataset, and "
        "they become void:",
    ),
    "label_colours": Kind(
        ERROR,
        "Labels that hold colours where class numbers are expected",
        "Convert them to PNGs of one channel whose values are the class numbers (a palette "
        "PNG may have any colours).",
    ),
    "label_not_ids": Kind(
        ERROR,
        "Labels that are not one whole number a pixel",
        "Write them as whole numbers [height, width].",
    ),
    "mask_0_255": Kind(
        ERROR,
        "0/255 masks",
        "Tell which class each value stands for, on the dataset:",
    ),
    "label_values": Kind(
        ERROR,
        "Labels with values that are no class",
        "",
    ),
    "nothing_labelled": Kind(
        ERROR,
        "Sets without any labelled pixel",
        "Every pixel is void: correct ignore_index or label_map.",
    ),
    "leak": Kind(
        ERROR,
        "Images of val that are also in train",
        "Take them out of one of the two: a score on images that were trained on says nothing.",
    ),
    "labels_differ": Kind(
        WARNING,
        "Images that occur again with another label",
        "Keep the right label: contradicting ones teach nothing.",
    ),
    "duplicate_images": Kind(
        WARNING,
        "Images that occur again under another name, with the same label",
        "Remove the copies, unless they are there to count more.",
    ),
    "repeated_entries": Kind(
        WARNING,
        "Repeated entries of the list",
        "Remove them, unless they are there to count more.",
    ),
    "empty_class": Kind(
        WARNING,
        "Classes that never occur",
        "A class without pixels is not learnt in train and has no IoU in val. Add images of "
        "it, or check label_map and num_classes.",
    ),
    "void_labels": Kind(
        WARNING,
        "Labels that are void everywhere",
        "They teach nothing; finish them or take them off the list.",
    ),
    "jpeg_labels": Kind(
        WARNING,
        "Labels that are JPEG files",
        "JPEG changes values at every border between classes: write labels as PNG.",
    ),
    "turned_images": Kind(
        WARNING,
        "Pictures that their EXIF field turns, whose masks fit both ways by their size",
        "",
    ),
    "palettes_differ": Kind(
        WARNING,
        "Labels in whose palettes a number has another colour than in others",
        "The numbers count, not the colours: if a class has one colour and several numbers, write "
        "the labels anew with one palette for all.",
    ),
    "dim_images": Kind(
        WARNING,
        "Images of 16 bits or floats that are nearly black",
        "",
    ),
    "mixed_channels": Kind(
        WARNING,
        "Images converted from other channels",
        "Grey is copied to three channels, colour turned to grey, and transparency dropped; "
        "see that this is meant.",
    ),
    "numbers_differ": Kind(
        HINT,
        "Labels that other programs read otherwise",
        "The numbers in the files are taken as classes. Programs that take the picture that a "
        "viewer shows get others: write labels as 8-bit grey or palette PNG.",
    ),
    "small_images": Kind(
        HINT,
        "Images smaller than the crop of training",
        "",
    ),
}


@dataclasses.dataclass
class Finding:
    """One kind of fault in one set.

    Attributes:
        kind (str): A key of `KINDS`.
        where (str): "train", "val" or "train and val".
        level (str): "error", "warning" or "hint".
        count (int): How many files, entries or classes.
        files (list): (path or name, detail) of the first `KEPT_FILES`.
        advice (str): What to do.
        paste (list[str]): Config lines ready to paste; the first is the one to try.
        values (list): For values of labels: [value, pixels, files, first file].
    """

    kind: str
    where: str
    count: int = 0
    files: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    advice: str = ""
    paste: list[str] = dataclasses.field(default_factory=list)
    values: list[list[Any]] = dataclasses.field(default_factory=list)

    @property
    def level(self) -> str:
        return KINDS[self.kind].level

    @property
    def title(self) -> str:
        return f"{KINDS[self.kind].title}: {self.count}"

    def add(self, path: str, detail: str = "") -> None:
        """Counts one more file."""
        self.count += 1
        if len(self.files) < KEPT_FILES:
            self.files.append((str(path), detail))


def level_counts(findings: Sequence[Finding]) -> dict[str, int]:
    """{"error": findings of that level, "warning": ..., "hint": ...}."""
    return {level: sum(f.level == level for f in findings) for level in (ERROR, WARNING, HINT)}


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings as the report has them: by kind, train before val."""
    order = list(KINDS)
    return sorted(findings, key=lambda f: (order.index(f.kind), f.where))


def is_mask(values: Iterable[int], label_map: Mapping[int, int] | None) -> bool:
    """Whether raw values of a whole set are those of 0/255 masks that no label_map explains."""
    return label_map is None and set(values) == {0, 255}


def flow_map(label_map: Mapping[int, int]) -> str:
    """A label_map as one line of YAML."""
    return "label_map: {" + ", ".join(f"{k}: {v}" for k, v in label_map.items()) + "}"


def suggest(
    values: Iterable[int],
    num_classes: int,
    ignore_index: int,
    label_map: Mapping[int, int] | None,
    *,
    common: bool = True,
) -> list[str]:
    """Config lines that would make the raw values of a set classes.

    Args:
        values (iterable of int): All values in its label files.
        num_classes, ignore_index (int): As the dataset has them.
        label_map (dict or None): Likewise.
        common (bool): Most labels have values that are no class, so it is the settings that are
            wrong, not some labels.

    Returns:
        list[str]: Lines to paste, the likeliest first; maybe none.
    """
    values = sorted(values)
    # A label_map takes 0 to 65535.
    if len(values) > _LISTED_CLASSES or not values or values[0] < 0 or values[-1] > 65535:
        return []
    classes = [v for v in values if v != ignore_index]
    if label_map is not None:
        added = {v: ignore_index for v in classes if v not in label_map}
        return [flow_map({**label_map, **added})] if len(label_map) <= _LISTED_CLASSES else []
    if is_mask(values, None):
        # Of more classes, 255 would make one.
        return [flow_map({0: 0, 255: 1})] if num_classes == 2 else []
    lines = []
    if len(classes) == num_classes:
        lines.append(flow_map({v: k for k, v in enumerate(classes)}))
    elif len(values) == num_classes and common:
        lines.append(flow_map({v: k for k, v in enumerate(values)}))
    # A few numbers beyond the last class look like a wrong number of classes.
    if classes and num_classes <= classes[-1] < 255 and classes[-1] < 2 * len(classes):
        lines.append(f"num_classes: {classes[-1] + 1}")
    void = {v: ignore_index for v in classes if v >= num_classes}
    if void and num_classes <= _LISTED_CLASSES:
        kept = {k: k for k in range(num_classes)}
        lines.insert(len(lines) if common else 0, flow_map({**kept, **void}))
    return lines


def values_finding(
    where: str,
    raw: Mapping[int, Sequence[Any]],
    dataset: BaseDataset,
    label_map: Mapping[int, int] | None,
    known: Callable[[int], bool],
    *,
    common: bool,
) -> Finding | None:
    """The finding about the values of a set's labels, or None where all are classes.

    Args:
        where (str): The set.
        raw (dict): value: [pixels, files, first file], of every value in the label files.
        dataset: For num_classes and ignore_index.
        label_map (dict or None): Of the dataset.
        known (callable): Whether a value is a class or void.
        common (bool): See `suggest`.
    """
    num_classes = dataset.num_classes
    ignore = getattr(dataset, "ignore_index", VOID)
    bad = [value for value in sorted(raw) if not known(value)]
    mask = is_mask(raw, label_map)
    if not bad and not mask:
        return None
    finding = Finding("mask_0_255" if mask else "label_values", where)
    finding.values = [[value, *raw[value]] for value in ([0, 255] if mask else bad) if value in raw]
    finding.paste = suggest(raw, num_classes, ignore, label_map, common=common)
    finding.advice = (
        KINDS["mask_0_255"].advice
        if num_classes == 2
        else (
            f"No pixel is of the classes 1 to {num_classes - 1}. Where 255 stands for some of "
            "them, make the masks again (from COCO: prepare_dataset coco --crowd class); where it "
            "is one class beside the background, set num_classes: 2 and a label_map."
        )
    )
    if not mask:
        finding.advice = (
            f"Classes are 0 to {num_classes - 1} and {ignore} is void"
            + (", after label_map" if label_map is not None else "")
            + ". "
            + ("Set one of these on the dataset:" if finding.paste else "Correct the label files.")
        )
    if not _takes(dataset, "label_map"):
        finding.paste = []
        finding.advice += (
            f" {type(dataset).__name__} takes no such settings: convert the files, or use the "
            "dataset type Dataset."
        )
    return finding


def _takes(dataset, key):
    return key in inspect.signature(type(dataset)).parameters

# SPDX-License-Identifier: Apache-2.0
"""Masks, lists and class_names.txt of a set: the one writer of all kinds that make masks."""

import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset import lists
from paddleseg_deeplab.tools.prepare_dataset.jobs import (
    Job,
    Options,
    Outcome,
    image_size,
    run_jobs,
    write_mask,
)

# What becomes of images without annotations: said with their number.
UNLABELLED = {"background": "background", "skip": "left out"}

_Name = TypeVar("_Name", bound=Hashable)  # a path, or COCO's id of an image


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image of a set.

    Attributes:
        image (str): Its file, which stays where it is or is written by the job.
        job (Job): Makes its mask, `job.target`.
    """

    image: str
    job: Job


def mask_place(save_dir: str, name: str, *folders: str) -> str:
    """Where the mask of an image goes: annotations/<its path without the ending>.png."""
    stem = os.path.splitext(name)[0]
    return os.path.join(save_dir, "annotations", *folders, *f"{stem}.png".split("/"))


def background_entry(images: str, name: str, save_dir: str, count: int) -> Entry:
    """An image on which there is nothing."""
    image = os.path.join(images, *name.split("/"))
    return Entry(image, Job(image, mask_place(save_dir, name), write_background, (image, count)))


def write_like(place: str, labels: np.ndarray, image: str, count: int) -> None:
    """Writes the mask of an image, if it is of the image's size.

    Raises:
        ValueError: It is of another.
    """
    size = image_size(image)
    if labels.shape != size:
        raise ValueError(f"is {labels.shape} (height, width), the image {image} is {size}")
    write_mask(place, labels, count)


def write_background(place: str, image: str, count: int) -> None:
    """Writes the mask of an image on which there is nothing."""
    write_mask(place, np.zeros(image_size(image), np.uint8), count)


@dataclasses.dataclass(frozen=True)
class WholeSet(Generic[_Name]):
    """A set as it is to be written.

    Attributes:
        entries (dict): By a name, such as the path inside a folder.
        sets (dict): "train", "val" or "test": names of its entries.
        class_names (list[str]): Of the classes 0, 1, ...
        save_dir (str): Where lists and class_names.txt go; paths in lists start from there.
        alone (bool): No other list may lie there, since it would share images with these.
    """

    entries: Mapping[_Name, Entry]
    sets: Mapping[str, Sequence[_Name]]
    class_names: Sequence[str]
    save_dir: str
    alone: bool = True

    def _texts(self, names: set[_Name], separator: str | None) -> tuple[dict[str, str], str]:
        rows = {
            f"{part}.txt": [self._row(name) for name in some if name in names]
            for part, some in self.sets.items()
        }
        rows = {name: some for name, some in rows.items() if some}
        return lists.list_text(rows, separator, self.class_names)

    def _row(self, name: _Name) -> tuple[str, str]:
        entry = self.entries[name]
        image, mask = (
            lists.relative(path, self.save_dir) for path in (entry.image, entry.job.target)
        )
        return image, mask

    def write(self, options: Options, outcome: Outcome, notes: Sequence[str] = ()) -> None:
        """Makes all masks, then the lists of those that could be made.

        Args:
            options (Options): How to work.
            outcome (Outcome): Gets what was done, and the lines for the config.
            notes (Sequence[str]): What was found; told where anything was made.

        Raises:
            UserError: A list or class_names.txt that is there would change, or a path that no
                list can hold; nothing was written.
        """
        texts, _ = self._texts(set(self.entries), options.separator)
        lists.check_lists(texts, self.save_dir, options.overwrite, whole=self.alone)
        made = run_jobs([entry.job for entry in self.entries.values()], options, outcome, "masks")
        names = {name for name, is_there in zip(self.entries, made) if is_there}
        if names:
            texts, used = self._texts(names, options.separator)
            lists.write_lists(texts, self.save_dir, options, outcome)
            outcome.notes += notes
            count = len(self.class_names)
            outcome.notes.append(lists.advice(self.save_dir, texts, used, count))

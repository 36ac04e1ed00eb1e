# SPDX-License-Identifier: Apache-2.0
"""How public datasets lay out their files; each layout turns a folder into pairs of files.

A layout is called with (dataset_root, mode, the dataset's name, faults) and returns the list of
[image, label or None]. `faults` is a list that gets (kind, place, detail) of each faulty line and
of each file without its partner in place of an error, or None; missing files then stay listed.
Pairs are matched by name, never by position: one file that is missing is an error that names
it, and cannot shift the labels of all others (as sorted lists did in PaddleSeg's Cityscapes).
A layout raises FileNotFoundError where its folders or lists are not there at all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from paddleseg_deeplab.datasets.base import Faults, Pair
from paddleseg_deeplab.datasets.dataset import check_files_exist, read_list_file
from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.files.folders import walk
from paddleseg_deeplab.utils.files.written import read_text, same


def files_by_name(folder: str, suffix: str) -> dict[str, str]:
    """{name: path} of the files below `folder` that end in `suffix`.

    The name is the path inside the folder without the suffix, with forward slashes.
    """
    return {
        same(path[: -len(suffix)]): os.path.join(folder, *path.split("/"))
        for path in walk(folder, (suffix.lower(),))
        if path.endswith(suffix)
    }


def pair_by_name(
    images: Mapping[str, str], labels: Mapping[str, str], what: str, faults: Faults | None = None
) -> list[Pair]:
    """Matches two results of `files_by_name`; sorted by name.

    Args:
        images, labels (dict): The results.
        what (str): For the message.
        faults (list, optional): Gets ("unpaired", file, what it lacks) in place of an error.

    Raises:
        UserError: files without a partner (the first few and the count are named).
    """
    for one, other, kind in ((images, labels, "a label"), (labels, images, "an image")):
        alone = sorted(one.keys() - other.keys())
        if faults is not None:
            faults += [("unpaired", one[name], f"lacks {kind}") for name in alone]
        elif alone:
            shown = first_few([one[name] for name in alone], more=", ...")
            raise UserError(f"{what}: {len(alone)} of {len(one)} files lack {kind}: {shown}.")
    return [[images[name], labels[name]] for name in sorted(images) if name in labels]


@dataclass(frozen=True)
class Folders:
    """Images and labels in two folders, with equal names up to their suffixes.

    `{}` in the folder names stands for the mode, or for what `parts` ((mode, name), ...) puts
    in its place. Modes in `unlabelled` have no labels.
    """

    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    parts: tuple[tuple[str, str], ...] = ()
    unlabelled: tuple[str, ...] = ()

    def _folder(self, root, pattern, mode):
        return os.path.join(root, *pattern.format(dict(self.parts).get(mode, mode)).split("/"))

    def has_labels(self, root: str, mode: str) -> bool:
        """Whether there is any label file of a mode."""
        return bool(files_by_name(self._folder(root, self.labels, mode), self.label_suffix))

    def __call__(self, root: str, mode: str, name: str, faults: Faults | None = None) -> list[Pair]:
        folders = [self._folder(root, self.images, mode)]
        if mode not in self.unlabelled:
            folders.append(self._folder(root, self.labels, mode))
        for folder in folders:
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"{name}: mode {mode!r} needs the folder {folder}.")
        found = files_by_name(folders[0], self.image_suffix)
        if not found:
            raise FileNotFoundError(f"{name}: no *{self.image_suffix} in {folders[0]}.")
        if mode in self.unlabelled:
            return [[found[key], None] for key in sorted(found)]
        labels = files_by_name(folders[1], self.label_suffix)
        what = f"{name} {mode}, {self.label_suffix} in {folders[1]}"
        return pair_by_name(found, labels, what, faults)


@dataclass(frozen=True)
class NameLists:
    """List files of bare names, as the VOC devkit has them.

    `lists` maps a mode to (list file, label folder) entries, all of which are read.
    """

    images: str
    lists: dict[str, tuple[tuple[str, str], ...]]
    subfolder: str = ""

    def __call__(self, root: str, mode: str, name: str, faults: Faults | None = None) -> list[Pair]:
        # The devkit's own folder or the year's folder in it: both are often given.
        inner = os.path.join(root, self.subfolder)
        root = inner if self.subfolder and os.path.isdir(inner) else root
        pairs = []
        for list_file, labels in self.lists[mode]:
            list_file = os.path.join(root, *list_file.split("/"))
            if not os.path.isfile(list_file):
                raise FileNotFoundError(f"{name}: mode {mode!r} needs the file {list_file}.")
            lines = read_text(list_file).splitlines()
            names = [line.strip() for line in lines if line.strip()]
            pairs += [
                [
                    os.path.join(root, self.images, n + ".jpg"),
                    os.path.join(root, labels, n + ".png"),
                ]
                for n in names
            ]
        if not pairs:
            raise UserError(f"{name}: the list files of mode {mode!r} in {root} name no images.")
        if faults is None:
            check_files_exist(pairs, f"the list of {name} {mode}")
        return pairs


@dataclass(frozen=True)
class PairLists:
    """List files with an image and its label on each line; `{}` stands for the mode."""

    lists: str

    def __call__(self, root: str, mode: str, name: str, faults: Faults | None = None) -> list[Pair]:
        path = os.path.join(root, self.lists.format(mode))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{name}: mode {mode!r} needs the list file {path}.")
        labels = "optional" if mode == "test" else "required"
        return read_list_file(path, root, labels=labels, faults=faults)

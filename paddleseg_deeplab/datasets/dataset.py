# SPDX-License-Identifier: Apache-2.0
"""The dataset of one's own files: a list file names images and labels."""

import collections
import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets.base import BaseDataset, Faults, Pair, Transforms
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import MissingData, UserError, first_few
from paddleseg_deeplab.utils.files import written
from paddleseg_deeplab.utils.logger import logger

_VAIN = 100  # missing files of a list that are looked for in other readings
_LOOKED_AT = 4  # masks of a set that are looked at when it is opened


def read_list_file(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    separator: str = " ",
    *,
    labels: str = "required",
    faults: Faults | None = None,
) -> list[Pair]:
    """Reads a list file: an image and its label on each line, relative to `root`.

    Blank lines and lines that begin with # are skipped; a byte-order mark and Windows line
    endings do no harm. A blank separator means any run of blanks and tabs, so file names with
    blanks need another separator, such as a tab or a comma. A path that is not there as written
    is looked for as it can only be meant (`utils.files.written`): backslashes, a slash before a
    path below `root`, `~`, accents as another system writes them.

    Args:
        path (str): The list file, UTF-8, or UTF-16 with a byte-order mark.
        root (str): What relative paths start from.
        separator (str): What stands between image and label.
        labels (str): "required", or "optional" where a line may name an image only.
        faults (list, optional): Gets ("bad_line", file:line, what it holds) of each faulty line in
            place of an error, and missing files stay in the result.

    Returns:
        list[list]: [image path, label path or None].

    Raises:
        UserError: a line of another form (file and line are named), no lines, files missing.
    """
    if not isinstance(separator, str) or not separator:
        raise UserError(f"separator must be a character such as ' ' or ',', not {separator!r}.")
    try:
        text = written.read_text(path)
    except UserError as error:
        raise UserError(f"Cannot read the list file: {error}") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip(" \r\n")
        if not line.strip() or line.startswith("#"):
            continue
        items: Pair = line.split() if separator == " " else line.split(separator)
        items = [item.strip() for item in items]
        if len(items) > 2 or not all(items) or (len(items) == 1 and labels == "required"):
            if faults is not None:
                faults.append(("bad_line", f"{path}:{number}", repr(line)))
                continue
            raise UserError(
                f"{path}:{number}: a line must be an image, {separator!r} and a label, not "
                f"{line!r}. If the paths hold blanks, use another separator and set it "
                "(separator: ',' for example)."
            )
        rows.append(items + [None] * (2 - len(items)))
    pairs = _found(rows, root, path)
    if faults is None:
        if not pairs:
            raise UserError(f"The list file {path} names no files.")
        check_files_exist(pairs, path)
    elif not pairs:
        faults.append(("bad_line", str(path), "names no files"))
    return pairs


def _found(rows, root, source):
    """Paths of the files that rows of a list name; what is not there as written is looked for."""
    pairs = [[item and os.path.normpath(os.path.join(root, item)) for item in row] for row in rows]
    missing, how, vain = set(missing_files(pairs)), collections.Counter(), 0
    for pair, row in zip(pairs, rows) if missing else ():
        for place, path in enumerate(pair):
            # Where the first ones are nowhere, all the others will not be asked for, too.
            if path in missing and (how or vain < _VAIN):
                found = written.find(row[place], root)
                vain += found is None
                if found is not None:
                    pair[place], told = found
                    how[told] += 1
    for told, count in how.items():
        logger.info("%s: %d paths are read %s.", source, count, told)
    return pairs


def missing_files(pairs: Iterable[Pair]) -> list[str]:
    """The files of `pairs` that are not there, each once, in order.

    Folders are listed once each: asking for every file by itself takes minutes on a network
    drive.
    """
    folders: dict[str, set[str]] = {}
    missing: dict[str, None] = {}
    for path in (path for pair in pairs for path in pair if path is not None):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        # The second question is for file systems that fold letter case or accents.
        if name not in folders[folder] and not os.path.isfile(path):
            missing[path] = None
    return list(missing)


def check_files_exist(pairs: Iterable[Pair], source: str | os.PathLike[str]) -> None:
    """UserError, with the first few and the count, if files of `pairs` are not there."""
    missing = missing_files(pairs)
    if missing:
        shown = first_few(missing, more=", ...")
        raise MissingData(
            f"{len(missing)} of the files that {source} names are missing: {shown}."
            + written.hint(missing[0])
        )


def check_root(name: str, root: str | os.PathLike[str] | None, hint: str) -> str:
    """Returns `root` as a str; UserError with `hint` if it is no folder."""
    root = root if root is None else written.meant(os.fspath(root))
    if root is None or not os.path.isdir(root):
        given = "dataset_root is not set" if root is None else f"there is no folder {root}"
        raise MissingData(f"{name}: {given}. {hint}")
    return root


@registry.DATASETS.add_component
class Dataset(BaseDataset):
    """One's own images and labels, named by list files as in PaddleSeg.

    Args:
        mode (str): "train", "val" or "test"; chooses the list file.
        dataset_root (str): What the paths in the list files are relative to.
        transforms (list): Transforms of a sample.
        num_classes (int): Number of classes, background included; 2 to 255.
        img_channels (int): Channels of an image: 1 (grey), 3, or more.
        train_path, val_path, test_path (str): The list files, relative to the working
            directory as in PaddleSeg or, if there is no such file, to `dataset_root`. In test
            lists a line may name an image without a label.
        separator (str): Between image and label on a line; " " means any blanks and tabs.
        ignore_index (int): The label value of void pixels.
        edge (bool): Must be False (PaddleSeg's edge labels serve other networks).
        class_names (str or list): A file with one name a line, found as the list files are, or
            the names; default class_0, class_1, ...
        label_map (dict): Turns label values into classes, such as {0: 0, 255: 1} for 0/255
            masks. Values that it does not list are an error, except `ignore_index`, which
            stays void.
        palette (list): [red, green, blue] of each class; default the VOC colour table.
        seed (int): Seed of the random transforms.
        to_rgb (bool): False keeps OpenCV's BGR order of three-channel images.
        nodata (float): Marks pixels without data: those of which a channel has this value in the
            file (NaN, infinity and "nan" are allowed) are void, and 0 in the image.

    Raises:
        UserError: a setting, list file or file is wrong; it is named.
    """

    thread_safe = draws_from_rng = True

    def __init__(
        self,
        mode: str,
        dataset_root: str | os.PathLike[str],
        transforms: Transforms,
        num_classes: int,
        img_channels: int = 3,
        train_path: str | os.PathLike[str] | None = None,
        val_path: str | os.PathLike[str] | None = None,
        test_path: str | os.PathLike[str] | None = None,
        separator: str = " ",
        ignore_index: int = VOID,
        edge: bool = False,
        *,
        class_names: str | os.PathLike[str] | Sequence[str] | None = None,
        label_map: Mapping[int, int] | None = None,
        palette: Sequence[Sequence[int]] | np.ndarray | None = None,
        seed: int = 0,
        to_rgb: bool = True,
        nodata: float | str | None = None,
    ) -> None:
        self.dataset_root = check_root(
            "Dataset", dataset_root, "Set dataset_root to the folder that the list files refer to."
        )
        if isinstance(class_names, (str, os.PathLike)):
            class_names = self._find("class_names", class_names)
        self._refuse_edge(edge)
        self._set_up_classes(
            num_classes,
            ignore_index=ignore_index,
            class_names=class_names,
            palette=palette,
            label_map=label_map,
        )
        self._set_up_samples(
            mode,
            ("train", "val", "test"),
            transforms,
            img_channels=img_channels,
            to_rgb=to_rgb,
            nodata=nodata,
            seed=seed,
        )
        key = f"{self.mode}_path"
        given = {"train": train_path, "val": val_path, "test": test_path}[self.mode]
        if given is None:
            raise UserError(f"Dataset: mode {self.mode!r} needs {key}, the list file.")
        self.file_list = read_list_file(
            self._find(key, given),
            self.dataset_root,
            separator,
            labels="optional" if self.mode == "test" else "required",
            faults=self.faults,
        )
        if self.label_map is None and self.faults is None:
            self._warn_of_masks_of_void()

    def _warn_of_masks_of_void(self):
        """0/255 masks without a label_map are no error, but train on nothing: 255 is void."""
        step = max(1, len(self.file_list) // _LOOKED_AT)
        paths = [path for _, path in self.file_list[::step][:_LOOKED_AT] if path is not None]
        values = set()
        for path in paths:
            with contextlib.suppress(UserError):  # it is told when the sample is read
                values.update(np.unique(read_label(path)).tolist())
        if self.ignore_index in values and values <= {0, self.ignore_index}:
            logger.warning(
                "Dataset: %d masks that were looked at, such as %s, hold no class but 0: %d is "
                "void. %s",
                *(len(paths), paths[0], self.ignore_index),
                f"If it stands for class 1, set label_map: {{0: 0, {self.ignore_index}: 1}}."
                if self.num_classes == 2
                else f"Which of the {self.num_classes} classes it was cannot be told from them.",
            )

    def _find(self, key, path):
        if not isinstance(path, (str, os.PathLike)):
            raise UserError(f"Dataset: {key} must be the path of a file, not {path!r}.")
        path = written.expand_home(os.fspath(path))
        for candidate in (path, os.path.join(self.dataset_root, path)):
            if os.path.isfile(candidate):
                return candidate
        # Written on Windows, or from dataset_root with a slash before it.
        found = written.find(path, self.dataset_root)
        if found is not None:
            return found[0]
        raise MissingData(
            f"Dataset: {key} {path} is no file, neither in the working directory nor in "
            f"{self.dataset_root}."
        )

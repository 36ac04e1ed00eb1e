# SPDX-License-Identifier: Apache-2.0
"""List files of images and masks, written so that `Dataset` reads them back as they are."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset.jobs import Options, Outcome, write_bytes
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_SEPARATORS = (" ", ",", ";", "\t", "|")  # the first that no path holds


def relative(path: str, root: str) -> str:
    """A path for a list file: from `root`, with forward slashes; whole where that cannot be."""
    try:
        inside = os.path.relpath(path, root)
    except ValueError:  # another drive
        inside = os.path.abspath(path)
    inside = inside.replace(os.sep, "/")
    return "./" + inside if inside.startswith("#") else inside  # else it would be a comment


def _fits(path, separator):
    parts = path.split() if separator == " " else path.split(separator)
    return parts == [path]


def list_text(
    pairs: Mapping[str, Sequence[tuple[str, ...]]],
    separator: str | None = None,
    names: Sequence[str] = (),
) -> tuple[dict[str, str], str]:
    """The text of list files, and of class_names.txt where there are names.

    Args:
        pairs (dict): "train.txt", ...: (image, mask) paths as they are to stand there.
        separator (str): Wanted between them; None takes the first of blank, comma, semicolon,
            tab and bar that stands in no path, the same for all lists.
        names (list[str]): Of the classes 0, 1, ...

    Returns:
        tuple: {file name: text}; and the separator.

    Raises:
        UserError: A path that no list can hold, or not with this separator.
    """
    paths = [path for rows in pairs.values() for pair in rows for path in pair]
    for path in paths:
        with contextlib.suppress(UnicodeEncodeError):
            path.encode("utf-8")
            if path.splitlines() == [path] and path.strip() == path:
                continue
        raise UserError(
            f"{path!r} cannot stand in a list file: it has line breaks, blanks at an end or "
            "characters that are no UTF-8. Rename it."
        )
    for candidate in _SEPARATORS if separator is None else (separator,):
        bad = next((path for path in paths if not _fits(path, candidate)), None)
        if bad is None:
            texts = {
                name: "".join(candidate.join(pair) + "\n" for pair in rows)
                for name, rows in pairs.items()
            }
            if names:
                texts["class_names.txt"] = "\n".join(names) + "\n"
            return texts, candidate
    hint = "leave --separator out" if separator is not None else "rename it"
    raise UserError(f"{bad!r} holds the separator that would follow it: {hint}.")


def check_lists(
    texts: Mapping[str, str], folder: str, overwrite: bool, whole: bool = False
) -> None:
    """Before the work: no file that exists may become another.

    Args:
        texts (dict): File name: its text if all goes well.
        folder (str): Where they lie.
        overwrite (bool): Allows it.
        whole (bool): They are all the lists of a dataset: another one from an earlier split would
            share images with them.

    Raises:
        UserError: One exists with another text; nothing was written.
    """
    for name, text in texts.items():
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not overwrite and _read(path) != text:
            raise UserError(
                f"{path} exists and would change. Give --overwrite to replace it, or write to "
                "another folder."
            )
    for name in ("train.txt", "val.txt", "test.txt") if whole else ():
        path = os.path.join(folder, name)
        if name not in texts and os.path.lexists(path):
            raise UserError(
                f"{path} is of an earlier split and would share images with the new lists. "
                "Remove it."
            )


def _read(path):
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        return file.read()
    return None


def write_lists(texts: Mapping[str, str], folder: str, options: Options, outcome: Outcome) -> None:
    """Writes text files; those that exist with another text only if `options.overwrite`."""
    for name, text in texts.items():
        path = os.path.join(folder, name)
        if os.path.lexists(path) and _read(path) == text:
            outcome.kept.append(path)
        elif options.dry_run:
            outcome.done.append(path)
        elif os.path.lexists(path) and not options.overwrite:
            # Only where files failed that an earlier run had made.
            logger.warning("%s is left as it was; --overwrite would replace it.", path)
            outcome.kept.append(path)
        else:
            try:
                write_bytes(path, text.encode("utf-8"))
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error}.") from error
            outcome.done.append(path)


@dataclasses.dataclass(frozen=True)
class Deal:
    """How things are dealt out to train, val and test.

    Attributes:
        val, test (float): Shares, 0 to 1.
        seed (int): Of the shuffle, 0 or more.
        group_by_folder (bool): Things of one folder, such as the frames of a video, stay together.

    Raises:
        UserError: A share or the seed is out of range, or nothing is left to train.
    """

    val: float = 0.2
    test: float = 0.0
    seed: int = 0
    group_by_folder: bool = False

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"--seed should be at least 0, not {self.seed}.")
        for name, share in (("val", self.val), ("test", self.test)):
            if not 0 <= share < 1:
                raise UserError(f"--{name} should be at least 0 and below 1, not {share}.")
        if self.val + self.test >= 1:
            raise UserError(
                f"--val and --test together are {self.val + self.test:g}: nothing is left to train."
            )

    def sets(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Set: its paths, sorted. The sets are "train" and each share above 0; see `split`."""
        groups = collections.defaultdict(list)
        for path in paths:
            groups[os.path.dirname(path) if self.group_by_folder else path].append(path)
        return split(groups, {"val": self.val, "test": self.test}, self.seed)


def split(
    groups: Mapping[str, Sequence[str]], shares: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """Deals things out to train and other sets, at random but the same each time.

    Args:
        groups (dict): Name of a group: its things. A group stays together.
        shares (dict): "val", "test", ...: share of the things. A share above 0 gets one group at
            least, and then groups for as long as that brings it nearer to its share.
        seed (int): Of the shuffle.

    Returns:
        dict: "train" and each share above 0: its things, sorted.

    Raises:
        UserError: Fewer groups than sets.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    if len(groups) <= len(wanted):
        raise UserError(
            f"{len(groups)} images or folders of images cannot be dealt out to "
            f"{len(wanted) + 1} sets. Lower --val and --test to 0, or leave --group_by_folder out."
        )
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    total = sum(map(len, groups.values()))
    sets, place = {}, 0
    for position, (name, share) in enumerate(wanted.items()):
        members: list[str] = []
        target = share * total
        last = len(order) - (len(wanted) - position)  # the rest must have one each
        while place < last:
            group = groups[order[place]]
            if members and len(members) + len(group) / 2 > target:
                break
            members += group
            place += 1
        sets[name] = sorted(members)
    rest = [thing for name in order[place:] for thing in groups[name]]
    return {"train": sorted(rest), **sets}


def advice(
    folder: str, texts: Iterable[str], separator: str, num_classes: int | None = None
) -> str:
    """The lines of a config that use the lists."""
    lines = [f"dataset_root: {folder}"]
    if num_classes:
        lines.append(f"num_classes: {num_classes}")
        lines.append("class_names: class_names.txt")
    if separator != " ":
        shown = {"\t": '"\\t"'}.get(separator, f'"{separator}"')
        lines.append(f"separator: {shown}")
    lines += [
        f"{os.path.splitext(name)[0]}_path: {name}"
        for name in texts
        if os.path.splitext(name)[0] in ("train", "val", "test")
    ]
    return "for the config: " + "; ".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""Class names and numbers of annotations whose labels are names."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

from paddleseg_deeplab.transforms.reading.values import BACKGROUNDS, IGNORED, VOID
from paddleseg_deeplab.utils.errors import UserError, nearest
from paddleseg_deeplab.utils.files.written import read_text

MOST_CLASSES = 255  # 0 to 254; 255 is void


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which classes a person asks for.

    Attributes:
        classes (list[str]): Names of the classes 1, 2, ... or one file of them; None takes all
            that are found.
        other_labels (str): What becomes of the others: "error", "background" or "void".
    """

    classes: list[str] | None = None
    other_labels: str = "error"


def read_classes(given: Sequence[str]) -> list[str]:
    """Class names from the flag --classes.

    Args:
        given (list[str]): The names; or one file with a name a line, as labelme's --labels takes.

    Returns:
        list[str]: Without the background and labelme's `__ignore__`.

    Raises:
        UserError: No names, a name twice, or a file that is not there.
    """
    source = "--classes"
    names = list(given)
    if len(names) == 1 and (os.path.isfile(names[0]) or names[0].lower().endswith(".txt")):
        source = f"--classes {names[0]}"
        try:
            names = read_text(names[0]).splitlines()
        except UserError as error:
            raise UserError(f"--classes: {error}") from error
    names = [name.strip() for name in names]
    names = [name for name in names if name and name not in (*BACKGROUNDS, *IGNORED)]
    return check_names(names, source)


def check_names(names: Sequence[str], source: str) -> list[str]:
    """The names, if they can be classes 1 to len(names) beside the background.

    Raises:
        UserError: None, too many, a name twice, or one that a list of lines cannot hold.
    """
    if not names:
        raise UserError(f"{source} names no classes beside the background.")
    if len(names) + 1 > MOST_CLASSES:
        raise UserError(
            f"{source} has {len(names)} classes; at most {MOST_CLASSES - 1} fit beside the "
            "background, since 255 is void. Choose some with --classes."
        )
    for name in names:
        if not name.strip() or len(name.splitlines()) != 1 or name in BACKGROUNDS:
            raise UserError(f"{source}: {name!r} cannot be the name of a class.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{source} has the class {', '.join(twice)} twice.")
    return list(names)


def class_numbers(
    names: Sequence[str], found: Mapping[str, int], other_labels: str, source: str
) -> dict[str, int]:
    """{label: class number} of all labels found.

    Args:
        names (list[str]): Names of the classes 1, 2, ...
        found (dict): How often each label occurs.
        other_labels (str): What becomes of labels that are no class: "error", "background" or
            "void".
        source (str): What the names were given by, for the message.

    Returns:
        dict[str, int]: The background's usual names are 0, `__ignore__` is 255.

    Raises:
        UserError: With "error", labels that are no class; all that were found are listed.
    """
    table = {**dict.fromkeys(BACKGROUNDS, 0), **dict.fromkeys(IGNORED, VOID)}
    table.update({name: number for number, name in enumerate(names, 1)})
    unknown = sorted(label for label in found if label not in table)
    if unknown and other_labels == "error":
        listed = ", ".join(f"{label!r} ({found[label]})" for label in unknown)
        rest = ", ".join(f"{label!r} ({found[label]})" for label in sorted(found) if label in table)
        raise UserError(
            f"{source} lacks labels that were found: {listed}. {nearest(unknown[0], names)} Known "
            f"ones that were found: {rest or 'none'}. Add or correct them, or say what becomes "
            "of them: --other_labels background or void."
        )
    table.update(dict.fromkeys(unknown, 0 if other_labels == "background" else VOID))
    return {label: table[label] for label in {*found, *names}}


def found_names(found: Iterable[str]) -> list[str]:
    """Class names from the labels found: sorted, without background and `__ignore__`."""
    return sorted(label for label in found if label not in (*BACKGROUNDS, *IGNORED))

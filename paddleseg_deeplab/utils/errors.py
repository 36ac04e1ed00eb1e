# SPDX-License-Identifier: Apache-2.0
"""Exceptions whose text is meant for the person at the keyboard."""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType


class UserError(ValueError):
    """A mistake the user can mend.

    The text is one sentence or two: what came, what is allowed, what to do, with the file
    and value named. Commands print it without a traceback and exit with status 2.
    """


class MissingData(UserError):
    """A folder or file of a dataset is not there; all else may be right."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; nothing is saved from that iteration on."""


class NonFiniteScores(UserError):
    """A network's outputs are NaN or infinite; names the image."""


class RunStopped(RuntimeError):
    """Another process of the run failed or is gone; commands print the line and exit with 1."""


class DiskError(UserError, OSError):
    """The disk is full or gone: no result can be written any more; those that are stay."""


class PackageError(UserError, ImportError):
    """An installed package is missing, of a wrong version, or cannot be imported."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`` Did you mean 'iters'?`` with the space before it, or "" where nothing is near."""
    match = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint such as ``Did you mean 'iters'?`` or, where nothing is near, the known names."""
    known = [str(k) for k in known]
    if hint := did_you_mean(name, known):
        return hint.strip()
    return f"Known: {', '.join(known)}." if known else "There is nothing to choose from."


def first_few(texts: Sequence[object], most: int = 5, more: str = " and {} more") -> str:
    """The first of many texts, such as ``a, b and 3 more``.

    Args:
        texts (list): What to name; str or what becomes one.
        most (int): So many are named.
        more (str): Follows where there are more; ``{}`` is their number.
    """
    shown = ", ".join(map(str, texts[:most]))
    return shown + more.format(len(texts) - most) if len(texts) > most else shown


def import_extra(name: str, *, need: str = "The ONNX format", extra: str = "onnx") -> ModuleType:
    """Imports a module that comes with one of the package's extras.

    Args:
        name (str): The module.
        need (str): What needs it, as the message's subject.
        extra (str): The extra to install.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(
            f"{need} needs {name.partition('.')[0]} ({e}): "
            f"pip install 'paddleseg-deeplab[{extra}]'."
        ) from e

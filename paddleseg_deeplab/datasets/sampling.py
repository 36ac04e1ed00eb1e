# SPDX-License-Identifier: Apache-2.0
"""The config's `sampler`: how often an epoch of training holds each image.

A component takes its parameters and returns a function that takes the training set and returns a
`Sampling`, or None for the plain shuffle. Another one can be registered in `registry.SAMPLERS`.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets.base import BaseDataset, names_of_classes
from paddleseg_deeplab.datasets.label_counts import label_counts
from paddleseg_deeplab.utils.errors import UserError, nearest

_BY = ("pixels", "images")  # what is counted of a class
# The V3 paper's hard classes, by their names in PASCAL VOC.
_HARD_CLASSES = ("bicycle", "chair", "diningtable", "pottedplant", "sofa")


@dataclasses.dataclass
class Sampling:
    """How often an epoch holds each image.

    Attributes:
        rates (numpy.ndarray): float64 [samples], draws an epoch on average; their sum, the
            epoch's length, is a whole number.
        summary (str): What it means for the classes, for the log.
    """

    rates: np.ndarray
    summary: str


Sampler = Callable[[BaseDataset], Sampling | None]  # of a training set; None: each image once


@registry.SAMPLERS.add_component
def shuffle() -> Sampler:
    """Each image once an epoch, in random order: what happens without a `sampler`."""
    return lambda dataset: None


@registry.SAMPLERS.add_component
def class_balanced(power: float = 1.0, max_repeat: float = 4.0, by: str = "pixels") -> Sampler:
    """Images in which rare classes have much of their pixels come more often.

    With power 1 a draw is as if a class were picked, all of them alike, and then one of its pixels
    (or, by images, one of the images with it): the weight of an image is the sum over the classes
    of its share in the class's pixels (images). Class-aware sampling of Shen et al. 2016 (Relay
    Backpropagation, section 4.1), carried over to images with several classes. An epoch is as long
    as the set. Images without a labelled pixel are not drawn, unless power is 0.

    Args:
        power (float): Exponent of the weights, 0 (all alike: the plain shuffle) to 1.
        max_repeat (float): Most draws of an image an epoch on average, at least 1; what is cut off
            is shared out among the other images.
        by (str): "pixels" or "images".

    Returns:
        callable: Training set to `Sampling`.

    Raises:
        UserError: A parameter is outside its range.
    """
    _number("power", power, 0, 1)
    _number("max_repeat", max_repeat, 1)
    if by not in _BY:
        raise UserError(f"by should be pixels or images, not {by!r}. {nearest(by, _BY)}")

    def sampling(dataset):
        counts = label_counts(dataset)
        if not counts.any():
            raise UserError("class_balanced: the training set has no labelled pixel.")
        parts = counts.astype(np.float64) if by == "pixels" else (counts > 0).astype(np.float64)
        parts = parts[:, counts.any(axis=0)]
        weights = (parts / parts.sum(axis=0)).sum(axis=1) ** power
        rates = capped_rates(weights, len(weights), max_repeat)
        return Sampling(rates, _summary("class_balanced", rates, dataset, counts))

    return sampling


@registry.SAMPLERS.add_component
def repeat_hard(classes: Sequence[str | int] = _HARD_CLASSES, times: int = 2) -> Sampler:
    """Images that hold a hard class come several times an epoch, all others once.

    DeepLabV3 paper, section 4, "an effective bootstrapping method": images with hard classes are
    duplicated in the training set. The paper does so for the test set of PASCAL VOC, where it
    trains on train + val, with the classes that are the default here.

    Args:
        classes (list): Names of classes, without regard to case, blanks, - and _; or numbers.
        times (int): Draws of such an image an epoch, at least 1; 2 duplicates it.

    Returns:
        callable: Training set to `Sampling`.

    Raises:
        UserError: A parameter is of another kind, a class is unknown, or no image holds one.
    """
    if not isinstance(classes, (list, tuple)) or not classes:
        raise UserError(f"classes should be a list of names or numbers, not {classes!r}.")
    if isinstance(times, bool) or not isinstance(times, numbers.Integral) or times < 1:
        raise UserError(f"times should be an integer from 1 on, not {times!r}.")

    def sampling(dataset):
        chosen = class_numbers(classes, dataset)
        counts = label_counts(dataset)
        hard = (counts[:, chosen] > 0).any(axis=1)
        if not hard.any():
            named = ", ".join(names_of_classes(dataset)[k] for k in chosen)
            raise UserError(f"repeat_hard: no image of the training set holds {named}.")
        rates = np.where(hard, float(times), 1.0)
        return Sampling(rates, _summary("repeat_hard", rates, dataset, counts))

    return sampling


@registry.SAMPLERS.add_component
def weighted(path: str | os.PathLike[str]) -> Sampler:
    """Images come in proportion to weights of one's own; an epoch is as long as the set.

    Labels are not read.

    Args:
        path (str): A text file with a number from 0 on for each line of the training list, from
            the working directory or, if there is no such file, from the set's `dataset_root`.
            Blank lines and lines that begin with # are skipped.

    Returns:
        callable: Training set to `Sampling`.

    Raises:
        UserError: The file is missing, has another count of lines than the set has images, or
            holds something else than such numbers; file and line are named.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path should be a file name, not {path!r}.")

    def sampling(dataset):
        weights = _read_weights(path, dataset)
        rates = capped_rates(weights, len(weights), math.inf)
        return Sampling(rates, _head("weighted", rates))

    return sampling


def capped_rates(weights: Sequence[float] | np.ndarray, total: int, cap: float) -> np.ndarray:
    """Shares out draws in proportion to weights, none above a cap.

    Args:
        weights (array): float [n], at least 0, one of them above 0.
        total (int): Draws; fewer where so many do not fit under the cap.
        cap (float): Above 0.

    Returns:
        numpy.ndarray: float64 [n]: min(cap, t * weights) with the one t for which the sum is
        right.
    """
    shares = np.asarray(weights, np.float64)
    shares = shares / shares.max()  # sums of great numbers stay finite
    free = shares > 0
    total = min(total, math.floor(min(cap, total) * free.sum()))
    rates = np.zeros(len(weights))
    left = float(total)
    while left > 0 and free.any():
        rates[free] = shares[free] * (left / shares[free].sum())
        over = free & (rates > cap)
        if not over.any():
            break
        rates[over] = cap
        free &= ~over
        left = total - cap * np.count_nonzero((shares > 0) & ~free)
    return rates


def class_numbers(classes: Sequence[str | int], dataset: BaseDataset) -> list[int]:
    """Numbers of classes given by name or number.

    Raises:
        UserError: There is no such class; names the nearest.
    """
    names = names_of_classes(dataset)
    plain = {_plain(name): number for number, name in enumerate(names)}
    found = []
    for each in classes:
        if isinstance(each, numbers.Integral) and not isinstance(each, bool):
            if not 0 <= each < len(names):
                raise UserError(
                    f"classes: there is no class {each}; they are 0 to {len(names) - 1}."
                )
            found.append(int(each))
        elif isinstance(each, str) and _plain(each) in plain:
            found.append(plain[_plain(each)])
        else:
            raise UserError(f"classes: there is no class {each!r}. {nearest(each, names)}")
    return sorted(set(found))


def _plain(name):
    return "".join(letter for letter in name.lower() if letter not in " -_")


def _number(key, value, low, high=math.inf):
    allowed = f"{low} to {high}" if high < math.inf else f"at least {low}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
        raise UserError(f"{key} should be a number, {allowed}, not {value!r}.")


def _read_weights(path, dataset):
    candidates = [path]
    if getattr(dataset, "dataset_root", None):
        candidates.append(os.path.join(dataset.dataset_root, path))
    found = next((each for each in candidates if os.path.isfile(each)), None)
    if found is None:
        raise UserError(f"weighted: there is no file {' or '.join(map(str, candidates))}.")
    try:
        with open(found, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"weighted: cannot read {found}: {error}.") from error
    weights = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < math.inf:
            raise UserError(f"{found}:{number}: a weight is a number from 0 on, not {text[:80]!r}.")
        weights.append(weight)
    if len(weights) != len(dataset):
        raise UserError(
            f"{found} has {len(weights)} weights, but the training set has {len(dataset)} images."
        )
    if not any(weights):
        raise UserError(f"{found}: all weights are 0.")
    return weights


def _head(name, rates):
    drawn = rates[rates > 0]
    text = (
        f"Sampler {name}: an epoch is {round(rates.sum())} draws from {len(rates)} images, each "
        f"drawn {drawn.min():.2f} to {drawn.max():.2f} times on average"
    )
    never = len(rates) - len(drawn)
    return text + (f"; {never} are never drawn." if never else ".")


def class_shares(rates: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the classes in what is drawn.

    Args:
        rates (numpy.ndarray): float64 [n], draws an epoch.
        counts (numpy.ndarray): int64 [n, classes], pixels.

    Returns:
        tuple: Share of the draws that hold a class, and of the labelled pixels drawn that are of
        it (of the whole images, before crops); float64 [classes] each.
    """
    images = rates @ (counts > 0) / rates.sum()
    pixels = rates @ counts.astype(np.float64)
    return images, pixels / max(pixels.sum(), 1.0)


def _summary(name, rates, dataset, counts):
    """The log's lines: what an epoch is, and each class before and after."""
    before = class_shares(np.ones(len(rates)), counts)
    after = class_shares(rates, counts)
    names = names_of_classes(dataset)
    width = max(map(len, names))
    lines = [_head(name, rates), f"  {'class':{width}}  % of the images    % of the pixels"]
    for k, label in enumerate(names):
        images, pixels = (
            f"{100 * old[k]:6.2f} -> {100 * new[k]:6.2f}" for old, new in zip(before, after)
        )
        lines.append(f"  {label:{width}}  {images}   {pixels}")
    return "\n".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""Labels made cleaner before anything is written of them. No Paddle.

In this order: pixels that the network is not sure of become unknown, small holes are filled, small
regions take the class around them. Pixels without a class (void, 255, and unknown ones) stay as
they are, whatever is around them. As for outlines, pixels that share an edge are one region.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from paddleseg_deeplab.prediction.batching import Result, read_ahead
from paddleseg_deeplab.prediction.regions import box_of
from paddleseg_deeplab.transforms.reading.values import VOID, mark_void
from paddleseg_deeplab.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cleanup:
    """What is to be done to labels; by default nothing.

    Attributes:
        min_area (int | None): Regions of fewer pixels take the class around them, see
            `merge_small`.
        fill_holes (int | None): Holes of fewer pixels are filled, see `fill_holes`.
        threshold (float | None): Where the best class has a lower probability, pixels become
            `unknown`; above 0, at most 1.
        unknown (int): 255, or another number up to 255, a class too.

    Raises:
        UserError: A number is not allowed.
    """

    min_area: int | None = None
    fill_holes: int | None = None
    threshold: float | None = None
    unknown: int = VOID

    def __post_init__(self) -> None:
        for name in ("min_area", "fill_holes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(
                    f"--{name} {value}: a number of pixels from 1 on is needed. Leave the flag out "
                    "to keep the labels as they are."
                )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(
                f"--threshold {self.threshold}: a probability above 0 and up to 1 is needed."
            )
        if not 0 <= self.unknown <= VOID:
            raise UserError(f"--unknown {self.unknown}: a number from 0 to {VOID} is needed.")

    @property
    def needs_probabilities(self) -> bool:
        """Whether `mark` takes probabilities."""
        return self.threshold is not None

    def mark(
        self, labels: np.ndarray, probabilities: np.ndarray | None, nodata: np.ndarray | None
    ) -> np.ndarray:
        """Labels with void where there is no data, and unknown where the network is not sure.

        Args:
            labels (np.ndarray): Integers [H, W]; they stay as they are.
            probabilities (np.ndarray | None): float [K, H, W]; needed with `threshold`.
            nodata (np.ndarray | None): bool [H, W].
        """
        if self.threshold is not None:
            if probabilities is None:
                raise ValueError("A threshold needs probabilities [K, H, W]; got None.")
            unsure = probabilities.max(axis=0) < self.threshold
            labels = np.where(unsure, np.int32(self.unknown), labels)
        return mark_void(labels, nodata)

    def tidy(self, labels: np.ndarray, num_classes: int = VOID) -> np.ndarray:
        """Labels with small holes filled, then small regions merged.

        Args:
            labels (np.ndarray): Integers [H, W], from `mark`.
            num_classes (int): Labels from here on are no class.
        """
        if self.fill_holes is not None:
            labels = fill_holes(labels, self.fill_holes, num_classes)
        if self.min_area is not None:
            labels = merge_small(labels, self.min_area, num_classes)
        return labels

    def apply(
        self,
        labels: np.ndarray,
        probabilities: np.ndarray | None = None,
        nodata: np.ndarray | None = None,
    ) -> np.ndarray:
        """`mark`, then `tidy`."""
        return self.tidy(self.mark(labels, probabilities, nodata), _classes(probabilities))


def _classes(probabilities):
    return VOID if probabilities is None else min(len(probabilities), VOID)


def cleaned(
    cleanup: Cleanup,
    results: Iterable[Result],
    on_error: Callable[[str, Exception], None],
    num_workers: int = 0,
    keep_probabilities: bool = False,
) -> Iterator[Result]:
    """Cleans the labels of a stream of results, several images at once where that is asked for.

    Args:
        cleanup (Cleanup): What to do.
        results (Iterable): Of (sample, labels, probabilities or None).
        on_error (callable): Takes (path, error) of an image that fails, which is then left out.
        num_workers (int): Threads; 0 works in the caller's.
        keep_probabilities (bool): They are wanted afterwards, and take their memory until then.

    Yields:
        tuple: sample, labels, probabilities or None.
    """

    def marked():
        # Here, not in the threads: what waits for those has no probabilities any more.
        for sample, labels, probabilities in results:
            try:
                labels = cleanup.mark(labels, probabilities, sample["nodata"])
            except Exception as error:  # memory, most likely
                on_error(sample["im_path"], error)
                continue
            classes = _classes(probabilities)
            yield sample, labels, probabilities if keep_probabilities else None, classes

    def tidied(item):
        sample, labels, probabilities, classes = item
        try:
            return sample, cleanup.tidy(labels, classes), probabilities
        except Exception as error:
            on_error(sample["im_path"], error)
            return None

    found = read_ahead(tidied, marked(), 0 if keep_probabilities else num_workers)
    return (result for result in found if result is not None)


def _parts(labels, num_classes):
    """Yields each class that the labels hold: its number, its box, where it is in the box."""
    counts = np.bincount(labels.ravel())[:num_classes]
    for number in np.flatnonzero(counts[:VOID]).tolist():
        part = labels == number
        box = box_of(part)
        yield number, box, part[box]


def fill_holes(labels: np.ndarray, below: int, num_classes: int = VOID) -> np.ndarray:
    """Fills small holes of each class with that class.

    A hole is what pixels of one class surround on all sides (they may touch at corners), whatever
    classes are in it. What reaches the image's border is no hole. Where one lies in another, and
    both are small, the larger one is filled.

    Args:
        labels (np.ndarray): Integers [H, W], not negative.
        below (int): Holes of fewer pixels are filled. There is a limit because to the background,
            for one, every object is a hole.
        num_classes (int): Labels from here on, and 255, are no class; they stay.

    Returns:
        np.ndarray: The same type; a new array.
    """
    filled, largest = labels.copy(), np.zeros(labels.shape, np.int32)
    for number, box, part in _parts(labels, num_classes):
        found, places, stats, _ = cv2.connectedComponentsWithStats(
            (~part).astype(np.uint8), connectivity=4
        )
        left, top, width, height, area = stats.T
        inside = (left > 0) & (left + width < part.shape[1])
        inside &= (top > 0) & (top + height < part.shape[0])
        inside[0] = False  # the class itself
        area = np.where(inside & (area < below), area, 0)
        if found > 1 and area.any():
            area = area[places]
            more = area > largest[box]
            largest[box][more] = area[more]
            filled[box][more] = number
    fixed = (labels >= num_classes) | (labels == VOID)
    filled[fixed] = labels[fixed]
    return filled


def merge_small(labels: np.ndarray, below: int, num_classes: int = VOID) -> np.ndarray:
    """Gives small regions the class around them.

    A region of fewer than `below` pixels takes, of the regions around it that are not small, the
    class with which it shares the longest border (counted in edges of pixels; of equal ones the
    lower class). One that has only small ones around it waits until they have found their class,
    and then takes part in that. All that find theirs in one round do so at once, so that no order
    matters. What has no way to a large region stays, as in an image that has none.

    Args:
        labels (np.ndarray): Integers [H, W], not negative.
        below (int): Regions of fewer pixels are small.
        num_classes (int): Labels from here on, and 255, are no class; they stay, and no region
            takes them.

    Returns:
        np.ndarray: The same type; a new array where something changes.
    """
    regions = np.zeros(labels.shape, np.int32)  # their numbers from 1 on; 0: no class
    classes = [np.zeros(1, np.int64)]
    count = 0
    for number, box, part in _parts(labels, num_classes):
        found, places = cv2.connectedComponents(part.astype(np.uint8), connectivity=4)
        regions[box] += np.where(part, places + count, 0)
        classes.append(np.full(found - 1, number))
        count += found - 1
    small = np.bincount(regions.ravel(), minlength=count + 1) < below
    small[0] = False
    if not small.any():
        return labels
    taken = _taken_classes(np.concatenate(classes), small, *_borders(regions, small))
    return np.where(regions > 0, taken[regions], labels).astype(labels.dtype, copy=False)


def _borders(regions, small):
    """(small region, region beside it, edges that they share) of all such pairs, as arrays."""
    keys = []
    for one, other in ((regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])):
        differ = one != other
        one, other = one[differ].astype(np.int64), other[differ].astype(np.int64)
        for mine, beside in ((one, other), (other, one)):
            wanted = small[mine] & (beside > 0)
            keys.append(mine[wanted] * len(small) + beside[wanted])
    pairs, edges = np.unique(np.concatenate(keys), return_counts=True)
    return pairs // len(small), pairs % len(small), edges


def _taken_classes(classes, small, mine, beside, edges):
    """The class of each region, with `small` ones merged in rounds, see `merge_small`."""
    most = int(classes.max()) + 1
    waiting = small.copy()
    while True:
        left = waiting[mine]
        mine, beside, edges = mine[left], beside[left], edges[left]
        votes = ~waiting[beside]
        if not votes.any():
            return classes
        keys, place = np.unique(mine[votes] * most + classes[beside[votes]], return_inverse=True)
        length = np.bincount(place.ravel(), weights=edges[votes])
        voter, wanted = keys // most, keys % most
        order = np.lexsort((wanted, -length, voter))
        first = order[np.append(True, np.diff(voter[order]) > 0)]
        classes[voter[first]] = wanted[first]
        waiting[voter[first]] = False

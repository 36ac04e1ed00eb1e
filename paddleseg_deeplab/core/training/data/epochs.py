# SPDX-License-Identifier: Apache-2.0
"""Which images an epoch holds, and in which order, where some count more than others."""

import hashlib
from collections.abc import Sequence

import numpy as np

_BITS = 32  # fractions of a draw are counted in units of 2**-32, so that sums are exact
_NEAR = 1e-9  # a rate this near to a whole number is meant to be it


class Sampler:
    """Epochs in which image ``i`` is drawn ``rates[i]`` times on average.

    Each epoch holds it `floor` or `ceil` of that many times, so a whole rate is kept exactly, and
    all epochs have the same length. Which of the fractional rates are rounded up follows from
    (seed, epoch), by systematic sampling (Madow 1949) in a random order: one random start, equal
    steps along the sum of the fractions. Gupta et al. 2019 (LVIS, section 6) round repeat factors
    by a coin for each image instead, which keeps the averages but not the length; with a fixed
    length a position in the stream tells its epoch without a look at the epochs before.

    Args:
        rates (array): float [n], at least 0; their sum is a whole number, the epoch's length.
        size (int, optional): Images there are, to check the rates against.

    Attributes:
        length (int): Draws in an epoch.
        most (int): Most draws of one image in one epoch.
        digest (str): Tells different rates apart.

    Raises:
        ValueError: The rates are not such numbers.
    """

    def __init__(self, rates: Sequence[float] | np.ndarray, size: int | None = None) -> None:
        rates = np.array(rates, dtype=np.float64)
        if size is not None and rates.shape != (size,):
            raise ValueError(f"rates should have {size} numbers, one an image, not {rates.shape}.")
        if rates.ndim != 1 or not rates.size or not np.isfinite(rates).all() or rates.min() < 0:
            raise ValueError("rates must be a flat list of numbers from 0 on.")
        whole = np.rint(rates)
        rates = np.where(np.abs(rates - whole) < _NEAR, whole, rates)
        total = rates.sum()
        self.length = int(np.rint(total))
        if self.length < 1 or abs(total - self.length) > 1e-6 * max(1.0, total):
            raise ValueError(f"rates must add up to a whole number from 1 on, not to {total!r}.")
        self.most = int(np.ceil(rates).max())
        self._whole = np.floor(rates).astype(np.int64)
        self._fraction = rates - self._whole
        self._open = np.flatnonzero(self._fraction)
        ticks = np.rint(rates * 2**_BITS).astype(np.int64)
        self.digest = hashlib.sha256(ticks.astype("<i8").tobytes()).hexdigest()[:12]

    def _counts(self, rng):
        """How often an epoch holds each image: int64 [n]."""
        counts = self._whole.copy()
        rest = self.length - int(counts.sum())
        if rest:
            order = rng.permutation(self._open)
            ends = np.cumsum(self._fraction[order])
            ends = np.rint(ends * (rest / ends[-1] * 2**_BITS)).astype(np.int64)
            ends[-1] = rest << _BITS
            start = rng.integers(1 << _BITS)
            counts[order] += np.diff((ends + start) >> _BITS, prepend=0)
        return counts

    def epoch(self, seed: int, number: int, shuffle: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The draws of an epoch, from the arguments alone.

        Args:
            seed (int): Of the run.
            number (int): Of the epoch, from 0 on.
            shuffle (bool): False keeps the set's order, repeats side by side.

        Returns:
            tuple: Indices, int64 [length], and as many numbers that no other draw of the same
            image has, for its augmentation. Where all rates are 1 these are the order and the
            number of an epoch without a sampler.
        """
        rng = np.random.default_rng([seed, number])
        counts = self._counts(rng)
        indices = np.repeat(np.arange(len(counts)), counts)
        repeats = np.arange(self.length) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = number * self.most + repeats
        if not shuffle:
            return indices, numbers
        order = rng.permutation(self.length)
        return indices[order], numbers[order]

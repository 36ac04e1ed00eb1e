# SPDX-License-Identifier: Apache-2.0
"""Gaussian filtering of scattered points in any dimension on the permutohedral lattice.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (2010): the
points are spread onto the corners of the simplices they lie in (splat), values are blurred along
the lattice's d + 1 directions, and read back with the same weights (slice). Splat, blur and slice
are sparse matrices here. The rounding and the order of float32 operations are those of the
implementation that pydensecrf wraps, so that the lattice points and weights are the same ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# Lattice coordinates are held to what pydensecrf's 16-bit keys hold: beyond, float32 has too few
# digits left for the weights.
_MAX_COORDINATE = 32767
_POINTS_AT_ONCE = 16384  # the rows of all temporary arrays stay in the cache
_PACKED_BITS = 62

# Applies a function to each of a list and returns the list of results.
Run = Callable[[Callable[[Any], Any], list[Any]], list[Any]]


class Lattice:
    """The lattice points around a set of points, and the weights between both.

    Args:
        features (np.ndarray): float32 [d, N], d >= 1, N >= 1: positions in units of the
            Gaussian's standard deviation.
        run (Callable): Applies a function to each of a list and returns the list of results:
            by default one after the other, or a thread pool's map.

    Attributes:
        size (int): Number of lattice points, M. They are numbered by the first of the N points
            that touches them, so that neighbours in the image are neighbours in memory.
        corners (np.ndarray): int32 [N, d + 1], the lattice points at each point's simplex.
        weights (np.ndarray): float32 [N, d + 1], barycentric: each row sums to 1.
        neighbours (list): For each of the d + 1 directions (indptr, indices), both int32: row m of
            this CSR pattern lists the points one step before and after m, where they exist.
        scale (float): 1 / (1 + 2^-d), by which a slice is multiplied.

    Raises:
        ValueError: features beyond the lattice's range, which is 32767 steps.
    """

    def __init__(self, features: np.ndarray, run: Run | None = None) -> None:
        run = run or _run
        dims, count = features.shape
        self.scale = 1.0 / (1.0 + 2.0**-dims)
        blocks = [slice(at, at + _POINTS_AT_ONCE) for at in range(0, count, _POINTS_AT_ONCE)]
        parts = run(lambda block: _simplices(features[:, block]), blocks)
        strides, shift = _strides(parts, dims)
        keys = np.empty((dims + 1, count), np.int64)
        run(lambda job: _pack(job[0], job[1], strides, shift, keys), list(zip(blocks, parts)))
        self.weights = np.empty((count, dims + 1), np.float32)
        for block, (_, _, weights) in zip(blocks, parts):
            self.weights[block] = weights.T
        colours = run(lambda colour: _distinct(keys[colour]), list(range(dims + 1)))
        self._number(colours, count, run)
        self._connect(colours, strides, run)

    def _number(self, colours, count, run):
        """Numbers the lattice points and fills ``corners``; sorted keys keep their numbers."""
        width = len(colours)
        touched = np.zeros(count * width, np.int32)
        for colour, (_, first, _, _) in enumerate(colours):
            touched[first * width + colour] = 1
        np.cumsum(touched, out=touched)
        self.size = int(touched[-1])
        self.corners = np.empty((count, width), np.int32)
        self._numbers = [
            touched[first * width + colour] - 1 for colour, (_, first, _, _) in enumerate(colours)
        ]

        def fill(colour):
            _, _, order, group = colours[colour]
            self.corners[order, colour] = self._numbers[colour][group]

        run(fill, list(range(width)))

    def _connect(self, colours, strides, run):
        """Finds the neighbours along each direction.

        The coordinates of a lattice point are all congruent to its colour modulo d + 1, and keys
        hold the quotients. One step back subtracts 1 from all coordinates and adds d + 1 to that
        of the direction; the colour is one lower, and below 0 it wraps to d.
        """
        width = len(colours)
        lowest = sum(strides)

        def connect(direction):
            before = np.full(self.size, -1, np.int32)
            after = np.full(self.size, -1, np.int32)
            for colour in range(width):
                keys, numbers = colours[colour][0], self._numbers[colour]
                target = (colour - 1) % width
                wanted = keys + (strides[direction] - (0 if colour else lowest))
                found = np.searchsorted(colours[target][0], wanted)
                found[found == len(colours[target][0])] = 0
                there = colours[target][0][found] == wanted
                mine, other = numbers[there], self._numbers[target][found[there]]
                before[mine] = other
                after[other] = mine
            pairs = np.stack([before, after], 1)
            exists = pairs >= 0
            indptr = np.zeros(self.size + 1, np.int32)
            np.cumsum(exists[:, 0].astype(np.int8) + exists[:, 1], out=indptr[1:])
            return indptr, pairs[exists]

        self.neighbours = run(connect, list(range(width)))
        del self._numbers


def _run(function, jobs):
    return [function(job) for job in jobs]


def _simplices(features):
    """The simplex around each point.

    Args:
        features (np.ndarray): float32 [d, n].

    Returns:
        tuple: The remainder-0 corner's coordinates divided by d + 1, float32 [d + 1, n]; the rank
            of each coordinate's difference from it, int8 [d + 1, n]; barycentric weights of the
            corners by remainder, float32 [d + 1, n].
    """
    dims, count = features.shape
    f32 = np.float32
    up, down = f32(dims + 1), f32(1.0) / f32(dims + 1)
    # Blurring with [1/2, 1, 1/2] along all directions has this standard deviation (page 6).
    deviation = float(f32(np.sqrt(2.0 / 3.0) * (dims + 1)))
    elevated = np.empty((dims + 1, count), f32)
    total = np.zeros(count, f32)
    for j in range(dims, 0, -1):
        part = features[j - 1] * f32(1.0 / np.sqrt(j * (j + 1.0)) * deviation)
        np.subtract(total, f32(j) * part, out=elevated[j])
        total += part
    elevated[0] = total
    nearest = np.rint(elevated * down)
    offset = elevated - nearest * up
    rank = np.zeros((dims + 1, count), np.int8)
    for i in range(dims):
        less = offset[i] < offset[i + 1 :]
        rank[i] += less.sum(0, dtype=np.int8)
        rank[i + 1 :] += ~less
    # Rounding may leave the plane where coordinates sum to 0; moved back, ranks shift along.
    rank += nearest.sum(0).astype(np.int8)
    moved = (rank < 0).view(np.int8) - (rank > dims).view(np.int8)
    rank += moved * np.int8(dims + 1)
    nearest += moved
    values = (elevated - nearest * up) * down
    # Sorted by rank; a network of exchanges beats np.sort on many short columns.
    for last in range(dims, 0, -1):
        for j in range(last):
            lower = np.minimum(values[j], values[j + 1])
            np.maximum(values[j], values[j + 1], out=values[j + 1])
            values[j] = lower
    weights = np.empty_like(values)
    np.subtract(values[1:], values[:-1], out=weights[1:])
    np.add(values[0], f32(1) - values[dims], out=weights[0])
    return nearest, rank, weights


def _strides(parts, dims):
    """Factors that turn coordinates into one int64, and what to subtract from them before.

    Mixed radix, or where 64 bits are too few fixed random odd numbers: sums then wrap around, and
    two of a million points share one with a chance below 1e-7.
    """
    low = np.min([nearest.min(1) for nearest, _, _ in parts], 0)[:dims]
    high = np.max([nearest.max(1) for nearest, _, _ in parts], 0)[:dims]
    _check_range(low, high, dims)
    low, high = low.astype(np.int64) - 2, high.astype(np.int64) + 2
    radix = [int(extent) for extent in high - low + 1]
    strides = [1]
    for extent in radix:
        strides.append(strides[-1] * extent)
    if strides.pop() >= 2**_PACKED_BITS:
        strides = [int(s) | 1 for s in np.random.default_rng(0).integers(1, 2**58, dims)]
    return [*strides, 0], low


def _check_range(low, high, dims):
    """Raises ValueError where coordinates divided by d + 1 are too large for the lattice's keys."""
    reach = float(max(-low.min(), high.max())) * (dims + 1)
    if not reach < _MAX_COORDINATE - 2 * (dims + 1):
        raise ValueError(
            f"points reach {reach:.0f} in lattice units, allowed is {_MAX_COORDINATE}."
        )


def _pack(block, part, strides, shift, keys):
    """Writes the keys of all corners of one block of points: ``keys`` is int64 [d + 1, N]."""
    nearest, rank, _ = part
    dims = len(strides) - 1
    key = np.zeros(nearest.shape[1], np.int64)
    for i in range(dims):
        key += (nearest[i].astype(np.int64) - shift[i]) * np.int64(strides[i])
    keys[0, block] = key
    for colour in range(1, dims + 1):
        # The corner of the next colour is one step along the coordinate of the next lower rank.
        for i in range(dims):
            key -= (rank[i] == dims - colour + 1) * np.int64(strides[i])
        keys[colour, block] = key


def _distinct(keys):
    """(distinct keys sorted, first index of each, order, group of each of the ordered)."""
    bits = len(keys).bit_length()
    if keys.min() >= 0 and keys.max() < 1 << (63 - bits):
        # Key and index in one number: NumPy sorts numbers three times as fast as indices.
        ordered = np.sort((keys << bits) | np.arange(len(keys)))
        order = ordered & ((1 << bits) - 1)
        ordered >>= bits
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    new = np.ones(len(keys), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    starts = np.flatnonzero(new)
    group = np.cumsum(new, dtype=np.int32)
    group -= 1
    return ordered[starts], order[starts], order, group

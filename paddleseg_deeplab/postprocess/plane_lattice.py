# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice in the plane as an array: no keys to sort, neighbours at fixed places.

In two dimensions it is a lattice of triangles, and pixels closer to each other than its points
touch nearly all that lie in the image. Numbered by row and column, each point has its neighbours a
fixed number of points away, so that a blur is a few additions of whole rows.
"""

import numpy as np

from paddleseg_deeplab.postprocess.permutohedral import POINTS_AT_ONCE, check_range, simplices

_VALUES_AT_ONCE = 100_000  # in each of four buffers, so that they stay in the cache
_LEAST_SHARE = 0.7  # of the array's points that should be touched; else it wastes work


class PlaneLattice:
    """What `Lattice` is, for d = 2; its blurs are not scaled: `scale` makes up for that.

    Moving by +1 along coordinate 0 of the three goes one column to the right and half a row down,
    along coordinate 1 one column to the left and half a row down, along coordinate 2 one row up. A
    row of the array has the even columns first and then the odd ones, which lie half a row lower,
    and at both ends rows and columns without points.

    Args:
        features (np.ndarray): float32 [2, N]: positions over the Gaussian's standard deviation.
        run (Callable): Applies a function to each of a list and returns the list of results.

    Attributes:
        size (int): Points of the array, those that no pixel touches too.
        corners, weights, scale: As of `Lattice`.
        rows, width (int): The array's; size is their product.

    Raises:
        ValueError: features beyond the lattice's range.
        Sparse: too few of the array's points are touched.
    """

    def __init__(self, features, run):
        count = features.shape[1]
        blocks = [slice(at, at + POINTS_AT_ONCE) for at in range(0, count, POINTS_AT_ONCE)]
        self.weights = np.empty((count, 3), np.float32)
        self.corners = np.empty((count, 3), np.int32)
        found = run(lambda block: self._place(block, features), blocks)
        (low, high) = np.min([f[0] for f in found], 0), np.max([f[1] for f in found], 0)
        # One more at each end; the first column is even. Python's integers: nothing overflows.
        first_column, first_row = int(low[0] // 2) - 1, int(low[1]) - 1
        half = int(high[0] // 2) + 2 - first_column
        rows = int(high[1]) + 2 - first_row
        self.rows, self.width = rows, 2 * half
        self.size = rows * self.width
        if self.size * _LEAST_SHARE > 3 * count:
            raise Sparse
        run(lambda job: self._index(*job, first_column, first_row), list(zip(blocks, found)))
        touched = np.zeros(self.size, bool)
        touched[self.corners.ravel()] = True
        inside = touched.reshape(rows, 2, half)[1:-1, :, 1:-1]
        if inside.size and inside.mean() < _LEAST_SHARE:
            raise Sparse
        touched.reshape(rows, 2, half)[:, :, [0, -1]] = True  # `_clear` knows these
        self._untouched = np.flatnonzero(~touched)
        # Each of three blurs is [1, 2, 1], twice as large as it should be.
        self.scale = 1.0 / (1.0 + 2.0**-2) / 2.0**3

    def _place(self, block, features):
        """(lowest and highest column and row, columns, rows) of a block's corners, [3, n]."""
        nearest, rank, weights = simplices(features[:, block])
        # As in `Lattice`. The third is minus their sum, at most twice as far: within 32 bits.
        check_range(nearest[:2].min(1), nearest[:2].max(1), 2)
        self.weights[block] = weights.T
        nearest = nearest.astype(np.int32)
        columns = np.empty(nearest.shape, np.int32)
        rows = np.empty_like(columns)
        for colour in range(3):
            # The corner's coordinates are 3 quotient + colour.
            quotient = nearest - (rank >= 3 - colour)
            np.subtract(quotient[0], quotient[1], out=columns[colour])
            half_rows = -3 * quotient[2] - colour
            np.right_shift(half_rows - (columns[colour] & 1), 1, out=rows[colour])
        ends = ((columns.min(), rows.min()), (columns.max(), rows.max()))
        return (*ends, columns, rows)

    def _index(self, block, found, first_column, first_row):
        _, _, columns, rows = found
        at = (rows - first_row) * np.int32(self.width) + (columns >> 1) - np.int32(first_column)
        at += (columns & 1) * np.int32(self.width // 2)
        self.corners[block] = at.T

    def filter(self, fill, out, start, stop):
        """Blurs along all directions; in between, values stay in the cache.

        A few rows at a time go from buffer to buffer, a direction each. A point's neighbours are
        at most one row away, so each buffer is a row behind the one before, and keeps the last two
        rows of its input.

        Args:
            fill (Callable): ``fill(first, last, out)`` writes the points first to last before the
                blurs into a float32 [last - first, K].
            out (np.ndarray): float32 [size, K], C order, takes the rows start to stop.
            start, stop (int): Rows.
        """
        classes = out.shape[1]
        row = self.width * classes
        most = max(1, _VALUES_AT_ONCE // row)
        buffers = [np.zeros((most + 2) * row, np.float32) for _ in range(4)]
        sums = buffers.pop()  # zeros: what is not written there is still added up
        out = out.reshape(-1)
        for at in range(start - 3, stop + 3, most):
            count = min(most, stop + 3 - at)
            first, last = np.clip((at, at + count), 0, self.rows).tolist()
            new = buffers[0][2 * row : (2 + count) * row]
            if last - first < count:
                new[:] = 0
            if first < last:
                part = new[(first - at) * row : (last - at) * row]
                fill(first * self.width, last * self.width, part.reshape(-1, classes))
            for direction in range(2):
                target = buffers[direction + 1][2 * row :]
                self._blur_aslant(direction, buffers[direction], target, sums, count, classes)
                self._clear(target, at - 1 - direction, count, classes)
            first, last = max(at - 3, start), min(at - 3 + count, stop)
            if first < last:
                source = buffers[2][(first - at + 3) * row : (last - at + 5) * row]
                pairs = sums[: len(source) - row]
                np.add(source[:-row], source[row:], out=pairs)
                np.add(pairs[:-row], pairs[row:], out=out[first * row : last * row])
            for buffer in buffers:
                buffer[: 2 * row] = buffer[count * row : (count + 2) * row]

    def _blur_aslant(self, direction, source, target, sums, count, classes):
        """Direction 0 or 1 on ``count`` rows, the first of which is the second of ``source``.

        Sums of each point and the next one to the right, then of each sum and the one to the left.
        """
        half, row = self.width // 2 * classes, self.width * classes

        def lines(array, at, number):  # half a row of each of so many rows
            return np.ndarray((number, half), np.float32, array, 4 * at, (4 * row, 4))

        # The first and the last column of each half get nonsense, but have no points.
        if direction == 0:  # right of odd columns is a row down
            odd = lines(sums, half, count + 1)
            right = lines(source, row + classes, count + 1)
            np.add(lines(source, half, count + 1), right, out=odd)
            even, odd = lines(sums, row, count), odd[1:]
            np.add(lines(source, row, count), lines(source, row + half, count), out=even)
            left_of_even, left_of_odd = lines(sums, half - classes, count), even
        else:  # right of even columns is a row up
            even, odd = lines(sums, row, count + 1), lines(sums, row + half, count)
            np.add(lines(source, row, count + 1), lines(source, half, count + 1), out=even)
            right = lines(source, row + classes, count)
            np.add(lines(source, row + half, count), right, out=odd)
            left_of_even, left_of_odd = lines(sums, row + half - classes, count), even[1:]
            even = even[:count]
        np.add(even, left_of_even, out=lines(target, 0, count))
        np.add(odd, left_of_odd, out=lines(target, half, count))

    def _clear(self, values, at, count, classes):
        """Sets points that no pixel touches to 0: they pass nothing on."""
        lines = values[: count * self.width * classes].reshape(count, 2, self.width // 2, classes)
        lines[:, :, 0] = lines[:, :, -1] = 0
        ends = np.searchsorted(self._untouched, (at * self.width, (at + count) * self.width))
        points = self._untouched[ends[0] : ends[1]] - at * self.width
        if len(points):
            values[: count * self.width * classes].reshape(-1, classes)[points] = 0


class Sparse(Exception):
    """A lattice with too many holes for an array."""

# SPDX-License-Identifier: Apache-2.0
"""Filters all classes of an image on the lattices of several kernels, with sparse matrices.

A multiplication by a CSR matrix is a multiply-add of K neighbouring floats for each entry: 4 ns for
20 floats in the cache, more where the rows come from outside it. What was tried on a
photograph of 512x512 with 21 classes and the default kernels (1.2 and 0.2 lattice points a pixel;
milliseconds an iteration on one core):

- SciPy's products kernel by kernel, ``slice @ (blur @ (splat @ (norm * Q)))``: 1.3 to 1.8 times as
  long as with weights and norms in the matrices, buffers that stay, and blocks of rows.
- The bilateral kernel's splat by pixels (a CSC matrix) in place of lattice points (CSR): 7 in place
  of 13.6, the same numbers; but one thread's work.
- The Gaussian's lattice as an array of rows and columns: built in 11 in place of 80, once for all
  images of a size; all blurs no shorter than by CSR matrices (14). It was here and went: 190 lines
  for 5 to 8 % of the time.
- One kernel a thread in place of all threads at one kernel after the other: 27 in place of 43.
- The Gaussian as one matrix over pixels: 32 entries a pixel, no gain. All blurs of the bilateral
  kernel in one matrix: 56 entries a pixel in place of 6; in pairs as many as apart.
- Lattice points by sorted keys: splat and slice 1.4 to 4 times as long as in the order in which
  the pixels meet them.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest

import numpy as np

from paddleseg_deeplab.postprocess.permutohedral import Lattice, Run

_TINY = np.float32(1e-20)  # under the root of a kernel's sums, as in pydensecrf


class LatticeFilter:
    """Splat, blur and slice of several kernels as sparse matrices.

    Weights and normalisation are in the matrices: `spread` and then `read` add the sum of
    w D^-1/2 K D^-1/2 Q over the kernels.

    Args:
        kernels (list): (`Lattice`, weight above 0) of each kernel.
        classes (int): Columns of Q, K or fewer.
        rows (int): Rows of [*, K] worked on at once, as fit into the cache.
        run (Callable): Applies a function to each of a list, in any order, and returns the results.
        threads (int): How many of them at a time; the numbers do not depend on it.

    Attributes:
        of_ones (np.ndarray): float32 [N, 1], what the filter makes of ones.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[Lattice, float]],
        classes: int,
        rows: int,
        run: Run,
        threads: int,
    ) -> None:
        self._run = run
        # Few long calls: threads that take turns at many short ones mostly wait for each other.
        self._whole = threads <= len(kernels)
        self._kernels = []
        for lattice, weight in kernels:
            self._kernels.append(_Kernel(lattice, weight, rows, threads))
        run(lambda kernel: kernel.count(), self._kernels)
        self.spread(None)
        run(lambda kernel: kernel.normalise(), self._kernels)
        count = len(kernels[0][0].corners)
        self.of_ones = np.zeros((count, 1), np.float32)
        self.spread(np.ones_like(self.of_ones))
        self.read(self.of_ones, (0, count))
        for kernel in self._kernels:
            kernel.resize(classes)

    def spread(self, q: np.ndarray | None) -> None:
        """Splats all of Q, [N, K], onto the lattices and blurs there; None: what `count` left."""
        phases = [kernel.phases(q) for kernel in self._kernels]
        if self._whole:
            self._run(lambda jobs: list(map(_do, jobs)), [chain.from_iterable(p) for p in phases])
            return
        for phase in zip_longest(*phases, fillvalue=()):
            self._run(_do, list(chain.from_iterable(phase)))

    def read(self, q: np.ndarray, block: tuple[int, int]) -> None:
        """Adds to ``q``, the rows ``block`` of [N, K], what the lattices hold there."""
        for kernel in self._kernels:
            kernel.read(q, block)


def _do(job):
    job[0](*job[1:])


class _Kernel:
    """A kernel's weights, which hold its norm after `normalise`, and its values on the lattice."""

    def __init__(self, lattice, weight, rows, threads):
        self._lattice, self._weight = lattice, np.float32(weight * lattice.scale)
        self._rows, self._threads = rows, threads
        self._multiply, self._scatter = _products()
        self._weights = lattice.weights.copy()
        count, width = self._weights.shape
        indptr = np.arange(0, count * width + 1, width, dtype=np.int32)
        self._slice = indptr, lattice.corners.ravel(), self._weights.ravel()
        self._splat = None  # the transpose's rows
        self._counts = None
        halves = np.full(max(len(x) for _, x in lattice.neighbours), 0.5, np.float32)
        self._blurs = [(pointers, x, halves[: len(x)]) for pointers, x in lattice.neighbours]
        self.resize(1)

    def resize(self, classes):
        """New values, of so many classes."""
        self._values = [np.zeros((self._lattice.size, classes), np.float32) for _ in range(2)]

    def count(self):
        """Splats ones with the plain weights, for `normalise`."""
        count = len(self._weights)
        self._counts = np.zeros((self._lattice.size, 1), np.float32)
        ones = np.ones(count, np.float32)
        self._scatter(*self._counts.shape[:1], count, 1, *self._slice, ones, self._counts.ravel())

    def normalise(self):
        """Takes the kernel's sums, which the lattice holds now, and its weight into the weights."""
        sums = np.zeros((len(self._weights), 1), np.float32)
        self.read(sums, (0, len(sums)))
        sums *= np.float32(self._lattice.scale)
        # Half of the weight and scale goes to each side, so one array serves both.
        norm = np.sqrt(self._weight) / np.sqrt(sums + _TINY)
        for column in self._weights.T:  # long rows
            column *= norm[:, 0]
        self._counts = None
        if self._threads > 2:
            from scipy import sparse

            indptr, corners, weights = self._slice
            shape = len(indptr) - 1, self._lattice.size
            splat = sparse.csr_matrix((weights, corners, indptr), shape).T.tocsr()
            self._splat = splat.indptr, splat.indices, splat.data

    def read(self, q, block):
        self._add(self._slice, block, self._values[0], q)

    def phases(self, q):
        """[[(function, *arguments), ...], ...]: phases one after the other, of jobs in any order.

        To and fro between the two arrays of values: a lattice of n directions starts in array
        n % 2, so that all of them end in the first.
        """
        blocks = row_blocks(0, self._lattice.size, self._rows)
        if q is None or self._splat is None:
            splat = [(self._splat_all, q)]
        else:
            splat = [
                (self._fill, q, self._values[len(self._blurs) % 2], *block) for block in blocks
            ]
        steps = range(1, len(self._blurs) + 1)
        return [splat, *([(self._blur, step, *block) for block in blocks] for step in steps)]

    def _splat_all(self, q):
        """By pixels: they are in order, and so twice as fast as `_fill`, but by one thread."""
        out = self._values[len(self._blurs) % 2]
        if q is None:
            np.copyto(out, self._counts)
            return
        out[:] = 0
        self._scatter(len(out), *q.shape, *self._slice, q.ravel(), out.ravel())

    def _fill(self, q, out, first, last):
        """By lattice points: ``out[first:last]``. Adds up in the same order as `_splat_all`."""
        out = out[first:last]
        out[:] = 0
        self._add(self._splat, (first, last), q, out)

    def _blur(self, step, first, last):
        """Blurs with [1/2, 1, 1/2] along direction step - 1."""
        to = (len(self._blurs) - step) % 2
        source, out = self._values[1 - to], self._values[to][first:last]
        np.copyto(out, source[first:last])
        self._add(self._blurs[step - 1], (first, last), source, out)

    def _add(self, matrix, block, x, y):
        """y += matrix[block] @ x"""
        indptr, indices, data = matrix
        first, last = block
        self._multiply(
            *(last - first, len(x), x.shape[1]),
            *(indptr[first : last + 1], indices, data, x.ravel(), y.ravel()),
        )


def _products():
    """SciPy's y += A x for rows of a CSR matrix, and for a CSC matrix.

    The public product makes a new array each time and knows no blocks of rows; SciPy's own
    routines beneath it do, but are private: should they go one day, the public one takes over.
    """
    try:
        from scipy.sparse._sparsetools import csc_matvecs, csr_matvecs
    except ImportError:
        return _public_matvecs, _public_scatter
    return csr_matvecs, csc_matvecs


def _public_matvecs(n_row, n_col, n_vecs, indptr, indices, data, x, y):
    from scipy import sparse

    part = slice(indptr[0], indptr[-1])
    block = (data[part], indices[part], indptr - indptr[0])
    y += (sparse.csr_matrix(block, (n_row, n_col)) @ x.reshape(n_col, n_vecs)).ravel()


def _public_scatter(n_row, n_col, n_vecs, indptr, indices, data, x, y):
    from scipy import sparse

    matrix = sparse.csc_matrix((data, indices, indptr), (n_row, n_col))
    y += (matrix @ x.reshape(n_col, n_vecs)).ravel()


def row_blocks(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """[(first, last), ...] of at most so many rows each."""
    return [(at, min(at + rows, stop)) for at in range(start, stop, rows)]

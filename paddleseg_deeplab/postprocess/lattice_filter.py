# SPDX-License-Identifier: Apache-2.0
"""Filters all classes of an image on the lattices of several kernels, with sparse matrices.

A multiplication by a CSR matrix is one multiply-add of K neighbouring floats for each entry, and
memory's speed decides. What was tried on a photograph of 512x512 with 21 classes and the default
kernels, which have 1.2 and 0.5 lattice points a pixel (CPU time, medians of runs in turn):

- SciPy's products kernel by kernel, ``slice @ (blur @ (splat @ (norm * Q)))``: 1.3 to 1.8 times
  as long as this file, which keeps weights and norms in the matrices and its buffers from
  iteration to iteration, and works on blocks of rows.
- The 2-D kernel as one matrix over pixels: 32 entries a pixel in place of 16 in five factors, no
  gain; at deviation 3 it has 280. Its first and last blur taken into splat and slice: 31 ms an
  iteration in place of 40, but 27 ms to multiply them, and most of the gain is had by `_plan`.
- All blurs of the bilateral kernel in one matrix: 56 entries a pixel in place of 6. In pairs: as
  many as apart.
- Scattering Q by the slice matrix's rows, without a splat matrix: 10 ms in place of 16 for the
  bilateral kernel, 12 in place of 10 for the other, but each thread needs its own lattices, and
  sums depend on the number of threads.
- Lattice points by sorted keys: splat and slice 1.4 to 4 times as long as in the order in which
  the pixels meet them. Pixels in tiles of 64x64: 5 % less in all, not done.
"""

from itertools import chain, zip_longest

import numpy as np

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
        threads (int): How many of them at a time.

    Attributes:
        of_ones (np.ndarray): float32 [N, 1], what the filter makes of ones.
    """

    def __init__(self, kernels, classes, rows, run, threads):
        from scipy import sparse

        self._multiply, self._run = _csr_matvecs(), run
        lattices = [lattice for lattice, _ in kernels]
        self._spans = np.cumsum([0, *(lattice.size for lattice in lattices)]).tolist()
        size = self._spans[-1]
        self._blurs = []
        for lattice in lattices:
            halves = np.full(max(len(x) for _, x in lattice.neighbours), 0.5, np.float32)
            self._blurs.append([(ptr, x, halves[: len(x)]) for ptr, x in lattice.neighbours])
        self._phases = _merge([_plan(k, x, rows, threads) for k, x in enumerate(lattices)])
        count = len(lattices[0].corners)
        corners = np.concatenate(
            [lattice.corners + np.int32(at) for lattice, at in zip(lattices, self._spans)], 1
        )
        indptr = np.arange(0, corners.size + 1, corners.shape[1], dtype=np.int32)
        weights = np.concatenate([lattice.weights for lattice in lattices], 1)
        self._slice = (indptr, corners.ravel(), weights.ravel())
        # The kernels' sums: ones through the lattice, before the weights are scaled.
        ones = np.bincount(corners.ravel(), weights.ravel(), size).astype(np.float32)[:, None]
        self._values = [ones, ones.copy()]
        self._pass(None)
        at = 0
        for lattice, weight in kernels:
            part = slice(at, at + lattice.weights.shape[1])
            at = part.stop
            read = self._values[0][corners[:, part], 0]
            sums = np.einsum("ij,ij->i", read, lattice.weights) * np.float32(lattice.scale)
            # Half of the weight and scale goes to each side, so one array serves both.
            norm = np.sqrt(np.float32(weight * lattice.scale)) / np.sqrt(sums + _TINY)
            weights[:, part] *= norm[:, None]
        back = sparse.csr_matrix((weights.ravel(), corners.ravel(), indptr), (count, size))
        forth = back.T.tocsr()
        self._splat = (forth.indptr, forth.indices, forth.data)
        self._values = [np.empty((size, 1), np.float32) for _ in range(2)]
        self._pass(np.ones((count, 1), np.float32))
        self.of_ones = np.zeros((count, 1), np.float32)
        self.read(self.of_ones, (0, count))
        self._values = [np.empty((size, classes), np.float32) for _ in range(2)]

    def spread(self, q):
        """Splats all of Q, [N, K], onto the lattices and blurs there."""
        self._pass(q)

    def read(self, q, block):
        """Adds to ``q``, the rows ``block`` of [N, K], what the lattices hold there."""
        self._add(self._slice, block, self._values[0], q)

    def _pass(self, q):
        """All steps of all kernels; without ``q`` the splats are there already."""

        def follow(jobs):
            for kernel, step, first, last in jobs:
                if step or q is not None:
                    self._step(q, kernel, step, first, last)

        for chains in self._phases:
            self._run(follow, chains)

    def _step(self, q, kernel, step, first, last):
        """Step 0 splats, step n blurs with [1/2, 1, 1/2] along direction n - 1: rows of a lattice.

        To and fro between the two arrays of values: a lattice of n directions starts in array
        n % 2, so that all of them end in the first.
        """
        blurs, start, stop = self._blurs[kernel], *self._spans[kernel : kernel + 2]
        out = self._values[(len(blurs) - step) % 2][start + first : start + last]
        if step == 0:
            out[:] = 0
            self._add(self._splat, (start + first, start + last), q, out)
        else:
            source = self._values[(len(blurs) - step + 1) % 2][start:stop]
            np.copyto(out, source[first:last])
            self._add(blurs[step - 1], (first, last), source, out)

    def _add(self, matrix, block, x, y):
        """y += matrix[block] @ x"""
        indptr, indices, data = matrix
        first, last = block
        self._multiply(
            *(last - first, len(x), x.shape[1]),
            *(indptr[first : last + 1], indices, data, x.ravel(), y.ravel()),
        )


def _csr_matvecs():
    """SciPy's y += A x for rows of a CSR matrix.

    The public product makes a new array each time and knows no blocks of rows; SciPy's own
    routine beneath it does, but is private: should it go one day, the public one takes over.
    """
    try:
        from scipy.sparse._sparsetools import csr_matvecs
    except ImportError:
        return _public_matvecs
    return csr_matvecs


def _public_matvecs(n_row, n_col, n_vecs, indptr, indices, data, x, y):
    from scipy import sparse

    part = slice(indptr[0], indptr[-1])
    block = (data[part], indices[part], indptr - indptr[0])
    y += (sparse.csr_matrix(block, (n_row, n_col)) @ x.reshape(n_col, n_vecs)).ravel()


def row_blocks(start, stop, rows):
    """[(first, last), ...] of at most so many rows each."""
    return [(at, min(at + rows, stop)) for at in range(start, stop, rows)]


def _plan(kernel, lattice, rows, threads):
    """In which order to do a lattice's steps on its blocks of rows.

    A step on a block needs the step before on the block and, where the lattice's reach is less
    than a block, on its two neighbours. With numbers in the image's order that is so in two
    dimensions: there the steps follow each other closely through the lattice while the rows are in
    the cache, which takes a tenth off the whole time. Else each step waits for the one before.

    Returns:
        list[list[list[tuple]]]: Phases, one after the other, of chains, at the same time, of
            (kernel, step, first row, last row), in order.
    """
    steps = len(lattice.neighbours) + 1
    blocks = row_blocks(0, lattice.size, max(1, rows // 4, lattice.reach))
    segments = min(threads, len(blocks) // (2 * steps))
    if not segments:
        blocks = row_blocks(0, lattice.size, rows)
        return [[[(kernel, step, *block)] for block in blocks] for step in range(steps)]
    cuts = [len(blocks) * i // segments for i in range(segments + 1)]
    segment_of = np.repeat(np.arange(segments), np.diff(cuts)).tolist()
    chains, seams = [[] for _ in range(segments)], [[] for _ in range(segments - 1)]
    for front in range(len(blocks) + steps - 1):
        for step in range(steps):
            at = front - step
            if not 0 <= at < len(blocks):
                continue
            segment, job = segment_of[at], (kernel, step, *blocks[at])
            # What needs blocks of another segment waits until both are done.
            if segment and at - step < cuts[segment]:
                seams[segment - 1].append(job)
            elif segment < segments - 1 and at + step >= cuts[segment + 1]:
                seams[segment].append(job)
            else:
                chains[segment].append(job)
    return [chains, [sorted(seam, key=lambda job: job[1]) for seam in seams]]


def _merge(plans):
    """Phases of all kernels at once, the long chains first."""
    phases = [list(chain.from_iterable(phase)) for phase in zip_longest(*plans, fillvalue=[])]
    return [sorted(phase, key=len, reverse=True) for phase in phases]

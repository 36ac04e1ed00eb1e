# SPDX-License-Identifier: Apache-2.0
"""The fully connected CRF of DeepLab V1 and V2, in NumPy and SciPy: no compiler is needed.

Krähenbühl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(2011), with the conventions of pydensecrf, whose Q this equals to about 1e-6: kernels normalised
symmetrically, each pixel's own message kept.
"""

import hashlib
import numbers
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paddleseg_deeplab.postprocess.lattice_filter import LatticeFilter, row_blocks
from paddleseg_deeplab.postprocess.permutohedral import Lattice
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError, import_extra

_LEAST = 1e-5  # pydensecrf's unary_from_softmax clips there
_SAFE_EXPONENT = 60.0  # exp of more is scaled first; float32 overflows at 88
_VALUES_AT_ONCE = 1 << 17  # of a block of rows: half a MiB, so that a block stays in the cache


class LatticeCache:
    """Keeps the lattices used last; several threads may use one. A copy starts without any.

    CRFs that differ in weights or iterations alone share them.

    A lattice of d dimensions takes 8 (d + 1) bytes a pixel and 12 (d + 1) to 20 (d + 1) a lattice
    point: some 20 MB for an image of 512x512 and its colours.

    Args:
        most (int): How many are kept, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[Hashable, Lattice] = OrderedDict()

    def __reduce__(self):
        # A lock cannot be copied; lattices can be made again.
        return type(self), (self._most,)

    def get(self, key: Hashable, make: Callable[[], Lattice]) -> Lattice:
        """What ``make()`` returned for this key (hashable), made anew if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()  # without the lock: others need not wait
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value


class DenseCRF:
    """Refines class probabilities by the image: mean field in a fully connected CRF.

    The energy is -log P for each pixel plus, for each pair of pixels of different classes::

        bilateral_weight * exp(-|p - q|^2 / 2 bilateral_xy^2 - |I_p - I_q|^2 / 2 bilateral_rgb^2)
        + gaussian_weight * exp(-|p - q|^2 / 2 gaussian_xy^2)

    and an iteration is Q <- softmax(log P + sum_k w_k D_k^-1/2 K_k D_k^-1/2 Q), D_k = K_k 1, with
    K_k the Gaussian as the permutohedral lattice approximates it. The defaults are those of the
    common implementations; the DeepLab V2 paper fixes the Gaussian kernel and searches weight 3
    to 6, xy 30 to 100 and rgb 3 to 6 of the bilateral one on a validation set.

    Args:
        iterations (int): Mean field updates, at least 0; 0 gives the clipped and normalised P.
        bilateral_weight (float): At least 0; 0 leaves the kernel out.
        bilateral_xy (float): Standard deviation in pixels, above 0.
        bilateral_rgb (float): Standard deviation in steps of 0..255, above 0, of each channel.
        gaussian_weight (float): At least 0; 0 leaves the kernel out.
        gaussian_xy (float): Standard deviation in pixels, above 0.
        compatibility (array_like, optional): float [K, K], the cost of a pair of classes, in place
            of Potts's 1 - identity: the weights multiply it. As in pydensecrf, (C + C^T) / 2 is
            used; ``compat=weight * C`` there is the same.
        threads (int, optional): As many as Paddle was told to use, by default. The result does not
            depend on it.
        lattices (LatticeCache, optional): Keeps the lattices of images too, for CRFs that share it
            and run on one image with the same standard deviations.

    Raises:
        UserError: a setting out of range, or SciPy is not installed.
    """

    PARAMETERS = (
        "iterations",
        "bilateral_weight",
        "bilateral_xy",
        "bilateral_rgb",
        "gaussian_weight",
        "gaussian_xy",
        "compatibility",
    )

    def __init__(
        self,
        iterations: int = 10,
        bilateral_weight: float = 4.0,
        bilateral_xy: float = 67.0,
        bilateral_rgb: float = 3.0,
        gaussian_weight: float = 3.0,
        gaussian_xy: float = 1.0,
        compatibility: Sequence[Sequence[float]] | np.ndarray | None = None,
        *,
        threads: int | None = None,
        lattices: LatticeCache | None = None,
    ) -> None:
        self.iterations = _whole("iterations", iterations, 0)
        self.bilateral_weight = _number("bilateral_weight", bilateral_weight)
        self.bilateral_xy = _number("bilateral_xy", bilateral_xy, above_zero=True)
        self.bilateral_rgb = _number("bilateral_rgb", bilateral_rgb, above_zero=True)
        self.gaussian_weight = _number("gaussian_weight", gaussian_weight)
        self.gaussian_xy = _number("gaussian_xy", gaussian_xy, above_zero=True)
        self.compatibility = _matrix(compatibility)
        self.threads = thread_count() if threads is None else _whole("threads", threads, 1)
        import_extra("scipy.sparse", need="The dense CRF", extra="crf")
        # Images of one size share the Gaussian's lattice.
        self._gaussian, self._bilateral = lattices or LatticeCache(1), lattices

    def __repr__(self):
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.PARAMETERS)
        return f"DenseCRF({values})"

    def __call__(self, probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Runs the mean field.

        Args:
            probabilities (np.ndarray): Float [K, H, W], K >= 1, in 0..1. Values below 1e-5 count
                as 1e-5, above 1 as 1, as in pydensecrf's ``unary_from_softmax``.
            image (np.ndarray): uint8 or float [H, W, C] or [H, W] in 0..255, of any number of
                channels; RGB, or any order: all count alike. One grey channel is not the same as
                three equal ones, whose distance is sqrt(3) times as large.

        Returns:
            np.ndarray: Q, float32 [K, H, W], sums to 1 over the classes. Deterministic.

        Raises:
            ValueError: shapes or types do not fit, something is NaN or infinite, or a float image
                that is not all zero has no value above 1, as one in 0..1.
            UserError: a kernel too narrow for this image, or compatibility of another size.
        """
        probabilities, image = _check(probabilities, image)
        classes, height, width = probabilities.shape
        if self.compatibility is not None and len(self.compatibility) != classes:
            raise UserError(
                f"compatibility has {len(self.compatibility)} classes, the network {classes}; give "
                f"a matrix of {classes} x {classes}."
            )
        with ThreadPoolExecutor(self.threads) as pool:
            # Small images are done before threads have started.
            alone = self.threads == 1 or height * width * classes <= _VALUES_AT_ONCE
            run = _one_by_one if alone else lambda function, jobs: list(pool.map(function, jobs))
            kernels = self._kernels(image, run) if self.iterations else []
            flat = probabilities.reshape(classes, -1)
            field = _MeanField(flat, kernels, self.compatibility, run, 1 if alone else self.threads)
            for step in range(self.iterations):
                field.step(last=step + 1 == self.iterations)
        return field.result.reshape(classes, height, width)

    def _kernels(self, image, run):
        """[(lattice, weight), ...] of the kernels that count."""
        height, width, _ = image.shape
        kernels = []
        if self.gaussian_weight:
            key = ("gaussian", height, width, self.gaussian_xy)
            lattice = self._gaussian.get(
                key,
                lambda: self._lattice(
                    _positions(height, width, self.gaussian_xy), "gaussian_xy", run
                ),
            )
            kernels.append((lattice, self.gaussian_weight))
        if self.bilateral_weight:
            lattice = self._bilateral_lattice(image, run)
            kernels.append((lattice, self.bilateral_weight))
        return kernels

    def _bilateral_lattice(self, image, run):
        height, width, _ = image.shape

        def make():
            colours = image.reshape(height * width, -1).T.astype(np.float32)
            colours /= np.float32(self.bilateral_rgb)
            features = np.concatenate([_positions(height, width, self.bilateral_xy), colours])
            return self._lattice(features, "bilateral_xy or bilateral_rgb", run)

        if self._bilateral is None:
            return make()
        digest = hashlib.blake2b(image.tobytes()).digest()
        key = (image.shape, image.dtype.str, digest, self.bilateral_xy, self.bilateral_rgb)
        return self._bilateral.get(key, make)

    @staticmethod
    def _lattice(features, names, run):
        # Where the pixels do not fill groups of four, pydensecrf's vector code fills them up with
        # points at 0; their lattice points pass on values near the black of the first pixel, which
        # changes Q there by some 1e-2. Done likewise, to be equal.
        count = features.shape[1]
        if count % 4:
            features = np.pad(features, ((0, 0), (0, 1)))
        try:
            lattice = Lattice(features, run)
        except ValueError as e:
            raise UserError(f"{names} is too small for this image: {e}") from e
        lattice.corners, lattice.weights = lattice.corners[:count], lattice.weights[:count]
        return lattice


def _one_by_one(function, jobs):
    return [function(job) for job in jobs]


def _positions(height, width, deviation):
    """float32 [2, H * W]: x and y over the standard deviation."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(deviation)
    return np.stack([x.ravel(), y.ravel()])


class _MeanField:
    """The iteration on [rows, K] arrays in C order, in blocks of rows, by any number of threads.

    A block of Q is read back from the lattices, exponentiated and normalised while it is in the
    cache. Q sums to 1 over the classes, so with Potts's costs the last class is not filtered: its
    messages are those of ones less those of the other classes.
    """

    def __init__(self, probabilities, kernels, compatibility, run, threads):
        self._run = run
        classes, count = probabilities.shape
        self._costs, kept = None, max(1, classes - 1)
        if compatibility is not None:
            symmetric = 0.5 * (compatibility + compatibility.T)
            self._costs, kept = np.ascontiguousarray(-symmetric, np.float32), classes
        self._unary = np.empty((count, kept), np.float32)
        self._last = np.empty(count, np.float32)  # the last class's, with the messages of ones
        self._q = np.empty_like(self._unary)
        self.result = np.empty((classes, count), np.float32)
        rows = max(1, _VALUES_AT_ONCE // classes)
        self._pixels = row_blocks(0, count, rows)
        self._filter = None
        if kernels and classes > 1:
            self._filter = LatticeFilter(kernels, kept, rows, run, threads)
        run(lambda block: self._start(block, probabilities), self._pixels)
        if self._filter is not None:
            # Q is at most 1, so messages are at most those of ones, give or take rounding.
            self._safe = float(self._filter.of_ones.max()) < _SAFE_EXPONENT
            self._last += self._filter.of_ones[:, 0]
        self._buffers = threading.local()

    def _start(self, block, probabilities):
        rows, kept = slice(*block), self._q.shape[1]
        clipped = probabilities[:, rows].astype(np.float32)
        np.clip(clipped, _LEAST, 1.0, out=clipped)
        unary = np.log(clipped)
        self._unary[rows], self._last[rows] = unary[:kept].T, unary[-1]
        clipped /= clipped.sum(0)
        if self._filter is None:
            self.result[:, rows] = clipped
        else:
            self._q[rows] = clipped[:kept].T

    def step(self, last):
        """One update; the last one fills ``result``."""
        if self._filter is not None:
            self._filter.spread(self._q)
            update = self._update if self._costs is None else self._update_by_costs
            self._run(lambda block: update(block, last), self._pixels)

    def _update(self, block, last):
        rows = slice(*block)
        q = self._messages(block)
        final = self._last[rows] - _row_sums(q)
        q += self._unary[rows]
        if not self._safe:
            highest = np.maximum(q.max(1), final)
            q -= highest[:, None]
            final -= highest
        np.exp(q, out=q)
        np.exp(final, out=final)
        sums = _row_sums(q) + final
        if last:
            np.divide(q.T, sums, out=self.result[:-1, rows])
            np.divide(final, sums, out=self.result[-1, rows])
        else:
            self._scale(q, 1 / sums, self._q[rows])

    def _update_by_costs(self, block, last):
        rows = slice(*block)
        q = self._messages(block) @ self._costs
        q += self._unary[rows]
        q -= q.max(1, keepdims=True)
        np.exp(q, out=q)
        sums = _row_sums(q)
        if last:
            np.divide(q.T, sums, out=self.result[:, rows])
        else:
            self._scale(q, 1 / sums, self._q[rows])

    def _messages(self, block):
        """What the lattices hold for a block, in memory that stays in this thread's cache."""
        kept = getattr(self._buffers, "kept", None)
        if kept is None:
            kept = self._buffers.kept = np.empty_like(self._q[: self._pixels[0][1]])
        q = kept[: block[1] - block[0]]
        q[:] = 0
        self._filter.read(q, block)
        return q

    @staticmethod
    def _scale(q, factors, out):
        np.einsum("ij,i->ij", q, factors, out=out)


def _row_sums(array):
    return np.einsum("ij->i", array)  # four times as fast as sum(1) on short rows


def _check(probabilities, image):
    """The arrays as [K, H, W] and [H, W, C], or a ValueError."""
    probabilities, image = np.asarray(probabilities), np.asarray(image)
    if probabilities.ndim != 3 or 0 in probabilities.shape:
        raise ValueError(f"probabilities should be [K, H, W], got {probabilities.shape}.")
    if probabilities.dtype.kind != "f":
        raise ValueError(f"probabilities should be float, got {probabilities.dtype}.")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] == 0:
        raise ValueError(f"image should be [H, W, C] or [H, W], got {image.shape}.")
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(f"image should be uint8, or float in 0..255, got {image.dtype}.")
    if image.shape[:2] != probabilities.shape[1:]:
        raise ValueError(
            f"image is {image.shape[:2]}, probabilities are {probabilities.shape[1:]} (height, "
            "width): bring both to one size."
        )
    for name, array in (("probabilities", probabilities), ("image", image)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} hold NaN or infinite values.")
    if image.dtype.kind == "f" and image.any() and image.max() <= 1:
        raise ValueError(
            f"image is {image.dtype} and nowhere above 1, as if it were in 0..1; it should be in "
            "0..255: multiply it by 255."
        )
    return probabilities, image


def _whole(name, value, least):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name} should be a whole number of at least {least}, got {value!r}.")
    return int(value)


def _number(name, value, above_zero=False):
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and np.isfinite(value)
    if not good or value < 0 or (above_zero and value == 0):
        allowed = "above 0" if above_zero else "of at least 0"
        raise UserError(f"{name} should be a number {allowed}, got {value!r}.")
    return float(value)


def _matrix(value):
    if value is None:
        return None
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError) as e:
        raise UserError(f"compatibility should be a matrix of numbers, got {value!r}.") from e
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise UserError(
            f"compatibility should be K x K finite numbers, got an array of {matrix.shape}."
        )
    return matrix

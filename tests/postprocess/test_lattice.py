# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice and the filter on it: properties."""

import copy
import pickle

import numpy as np
import pytest

from paddleseg_deeplab.postprocess import dense_crf, permutohedral
from paddleseg_deeplab.postprocess.dense_crf import LatticeCache
from paddleseg_deeplab.postprocess.lattice_filter import LatticeFilter
from paddleseg_deeplab.postprocess.permutohedral import Lattice


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8])
def test_lattice(dims):
    features = np.random.default_rng(dims).uniform(-9, 9, (dims, 200)).astype(np.float32)
    lattice = Lattice(features)
    assert lattice.corners.shape == lattice.weights.shape == (200, dims + 1)
    assert set(lattice.corners.ravel()) == set(range(lattice.size))
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-5)
    assert lattice.weights.min() > -1e-5
    assert len(lattice.neighbours) == dims + 1
    for indptr, indices in lattice.neighbours:
        assert indptr[-1] == len(indices)
        pairs = {(m, n) for m in range(lattice.size) for n in indices[indptr[m] : indptr[m + 1]]}
        assert pairs == {(n, m) for m, n in pairs}
        assert all(m != n for m, n in pairs)
    # Numbered in the order in which the points meet them.
    _, first = np.unique(lattice.corners, return_index=True)
    assert (np.diff(first) > 0).all()


def test_equal_points_share_corners_and_weights():
    base = np.random.default_rng(0).uniform(0, 1, (2, 50)).astype(np.float32)
    same = Lattice(np.repeat(base, 2, 1))
    np.testing.assert_array_equal(same.corners[::2], same.corners[1::2])
    np.testing.assert_array_equal(same.weights[::2], same.weights[1::2])


def test_keys_that_do_not_fit_64_bits(monkeypatch):
    features = np.random.default_rng(0).uniform(0, 30, (5, 300)).astype(np.float32)
    expected = Lattice(features)
    monkeypatch.setattr(permutohedral, "_PACKED_BITS", 0)
    hashed = Lattice(features)
    np.testing.assert_array_equal(hashed.corners, expected.corners)
    for one, other in zip(hashed.neighbours, expected.neighbours):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def positions(size, deviation):
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / np.float32(deviation)
    return np.stack([x.ravel(), y.ravel()])


def filtered(features, values, threads=1):
    """The filter's result for [N, K] and of ones, with some weight."""
    lattice = Lattice(features)
    found = LatticeFilter(
        [(lattice, 2.5)], values.shape[1], 50, dense_crf._one_by_one, threads=threads
    )
    found.spread(values)
    out = np.zeros_like(values)
    found.read(out, (0, len(out)))
    return out, found.of_ones


# Float32 sums of up to some hundred positive terms, in another order: 1e-5 of the largest.
@pytest.mark.parametrize("deviation", [0.3, 0.8, 1.3, 3.5])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (13, 21), (24, 9)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_filter_is_a_product_of_its_matrices(size, deviation, threads):
    """Splat, blur along each direction, slice: written out densely in float64."""
    features = positions(size, deviation)
    count = size[0] * size[1]
    values = np.random.default_rng(0).uniform(0, 1, (count, 3)).astype(np.float32)
    lattice = Lattice(features)
    splat = np.zeros((lattice.size, count))
    np.add.at(splat, (lattice.corners, np.arange(count)[:, None]), lattice.weights)
    whole = splat
    for indptr, indices in lattice.neighbours:
        blur = np.eye(lattice.size)
        for m in range(lattice.size):
            blur[m, indices[indptr[m] : indptr[m + 1]]] = 0.5
        whole = blur @ whole
    whole = splat.T @ whole * lattice.scale
    norm = 1 / np.sqrt(whole.sum(1))
    matrix = 2.5 * norm[:, None] * whole * norm
    found = filtered(features, values, threads)
    for ours, expected in zip(found, (matrix @ values, matrix.sum(1, keepdims=True))):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.max())


def test_the_range():
    # Along y the third coordinate is twice the other two, beyond what is asked of those.
    features = positions((20000, 12), 1)
    nearest = permutohedral._simplices(features)[0]
    assert np.abs(nearest[2]).max() * 3 > permutohedral._MAX_COORDINATE
    out, _ = filtered(features, np.ones((features.shape[1], 2), np.float32))
    assert np.isfinite(out).all()
    for axis in (0, 1):
        beyond = positions((40, 40), 1)
        beyond[axis] *= 1000
        with pytest.raises(ValueError, match="allowed is 32767"):
            Lattice(beyond)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_splats_by_pixels_and_by_points_are_the_same_numbers(threads):
    features = np.random.default_rng(0).uniform(0, 4, (5, 300)).astype(np.float32)
    values = np.random.default_rng(1).uniform(0, 1, (300, 4)).astype(np.float32)
    expected = filtered(features, values)
    for ours, other in zip(filtered(features, values, threads), expected):
        np.testing.assert_array_equal(ours, other)


def test_the_cache_forgets_what_was_used_least_lately():
    cache = LatticeCache(2)
    assert [cache.get(key, lambda key=key: [key]) for key in "abab"] == [["a"], ["b"]] * 2
    assert cache.get("c", lambda: "new") == "new"
    assert cache.get("b", lambda: "made again") == ["b"]
    assert cache.get("a", lambda: "made again") == "made again"


def test_copies_of_the_cache_start_empty():
    cache = LatticeCache(2)
    cache.get("a", lambda: "kept")
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        for key in "abcbc":
            other.get(key, lambda key=key: "new " + key)
        assert other.get("b", lambda: "made again") == "new b"
        assert other.get("a", lambda: "made again") == "made again"
    assert cache.get("a", lambda: "made again") == "kept"

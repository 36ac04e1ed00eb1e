# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice, with keys and as an array: properties, and one beside the other."""

import copy
import pickle

import numpy as np
import pytest

from paddleseg_deeplab.postprocess import dense_crf, permutohedral, plane_lattice
from paddleseg_deeplab.postprocess.lattice_cache import LatticeCache
from paddleseg_deeplab.postprocess.lattice_filter import LatticeFilter
from paddleseg_deeplab.postprocess.permutohedral import Lattice
from paddleseg_deeplab.postprocess.plane_lattice import PlaneLattice, Sparse


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


def filtered(kind, features, values, threads=1):
    """The filter's result for [N, K] and of ones, with some weight."""
    lattice = kind(features, dense_crf._one_by_one)
    found = LatticeFilter(
        [(lattice, 2.5)], values.shape[1], 50, dense_crf._one_by_one, threads=threads
    )
    found.spread(values)
    out = np.zeros_like(values)
    found.read(out, (0, len(out)))
    return out, found.of_ones


# Float32 sums of up to some hundred positive terms, in another order: 1e-5 of the largest.
@pytest.mark.parametrize("deviation", [0.8, 1, 1.3, 3, 3.5])
@pytest.mark.parametrize("size", [(37, 53), (64, 20), (20, 64)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_plane_as_an_array_filters_as_the_lattice_does(size, deviation, threads, monkeypatch):
    monkeypatch.setattr(plane_lattice, "_VALUES_AT_ONCE", 500)  # several steps
    features = positions(size, deviation)
    values = np.random.default_rng(0).uniform(0, 1, (size[0] * size[1], 3)).astype(np.float32)
    found = filtered(PlaneLattice, features, values, threads)
    for ours, expected in zip(found, filtered(Lattice, features, values)):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.max())


def test_the_plane_with_scattered_points():
    """Holes inside the array and a ragged edge; what no point touches passes nothing on."""
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 12, (2, 900)).astype(np.float32)
    features = features[:, (features.sum(0) < 20) & (np.hypot(*(features - 6)) > 0.7)]
    values = rng.uniform(0, 1, (features.shape[1], 2)).astype(np.float32)
    array = PlaneLattice(features, dense_crf._one_by_one)
    assert array.size > Lattice(features).size + 50
    for ours, expected in zip(*(filtered(k, features, values) for k in (PlaneLattice, Lattice))):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.max())


def test_the_plane_and_the_lattice_take_the_same_range():
    rng = np.random.default_rng(0)
    # Along y the third coordinate is twice the other two, beyond what is asked of those.
    features = positions((20000, 12), 1)
    nearest = permutohedral.simplices(features)[0]
    assert np.abs(nearest[2]).max() * 3 > permutohedral.MAX_COORDINATE
    values = rng.uniform(0, 1, (features.shape[1], 2)).astype(np.float32)
    for ours, expected in zip(*(filtered(k, features, values) for k in (PlaneLattice, Lattice))):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.max())
    for axis in (0, 1):
        beyond = positions((40, 40), 1)
        beyond[axis] *= 1000
        for kind in (PlaneLattice, Lattice):
            with pytest.raises(ValueError, match="allowed is 32767"):
                kind(beyond, dense_crf._one_by_one)


@pytest.mark.parametrize(("size", "deviation"), [((1, 1), 1), ((1, 40), 1), ((30, 30), 0.3)])
def test_too_sparse_for_an_array(size, deviation):
    with pytest.raises(Sparse):
        PlaneLattice(positions(size, deviation), dense_crf._one_by_one)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_splats_by_pixels_and_by_points_are_the_same_numbers(threads):
    features = np.random.default_rng(0).uniform(0, 4, (5, 300)).astype(np.float32)
    values = np.random.default_rng(1).uniform(0, 1, (300, 4)).astype(np.float32)
    expected = filtered(Lattice, features, values)
    for ours, other in zip(filtered(Lattice, features, values, threads), expected):
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

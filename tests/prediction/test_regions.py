# SPDX-License-Identifier: Apache-2.0
"""Areas, outlines and run lengths of masks; pycocotools has the last word where it is there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddleseg_deeplab.prediction import regions
from paddleseg_deeplab.tools.prepare_dataset.pixels import polygons as reader
from paddleseg_deeplab.tools.prepare_dataset.pixels.rle import decode_mask
from paddleseg_deeplab.utils.errors import UserError

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 1, 2, 255]))
)
RING = np.pad(np.pad(np.zeros((2, 3), np.uint8), 1, constant_values=1), 2)


def drawn(outline, size):
    return reader.polygon(outline.astype(np.float64), size)


def test_areas_by_hand():
    mask = np.array([[0, 2, 2], [255, 2, 7]], np.int32)
    areas = regions.class_areas(mask, ["sky", "road", "car"])
    assert areas == [
        (0, "sky", 1, 1 / 6),
        (1, "road", 0, 0.0),
        (2, "car", 3, 0.5),
        (7, "void", 1, 1 / 6),
        (255, "void", 1, 1 / 6),
    ]
    assert [area.name for area in regions.class_areas(mask, 2)] == [
        *("class 0", "class 1"),
        *["void"] * 3,
    ]


def test_outlines_of_a_pixel_and_of_a_ring_by_hand():
    """The coordinates: corners of pixels, x first, clockwise outside, the other way round holes."""
    one = np.zeros((4, 5), np.uint8)
    one[2, 3] = 1
    (pixel,) = regions.polygons(one, [1])[1]
    assert pixel.outer.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]
    assert pixel.holes == []
    (ring,) = regions.polygons(RING, [1])[1]
    assert ring.outer.tolist() == [[2, 2], [7, 2], [7, 6], [2, 6]]
    assert [hole.tolist() for hole in ring.holes] == [[[3, 3], [3, 5], [6, 5], [6, 3]]]
    assert [regions.area_of(line) for line in (ring.outer, *ring.holes)] == [20, -6]


def test_pixels_that_touch_at_a_corner_are_two_regions():
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], np.uint8)
    found = regions.polygons(mask)
    assert [region.outer.tolist() for region in found[1]] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [3, 2], [3, 3], [1, 3]],
    ]
    assert [len(region.outer) for region in found[0]] == [6, 4]


@settings(deadline=None, max_examples=50)
@given(MASKS)
def test_outlines_are_the_mask(mask):
    """Each region is its outer outline less its holes, as this package reads polygons."""
    found = regions.polygons(mask)
    assert set(found) == set(np.unique(mask)) - {255}
    for number, each in found.items():
        covered = np.zeros(mask.shape, np.int64)
        for region in each:
            covered += drawn(region.outer, mask.shape)
            for hole in region.holes:
                covered -= drawn(hole, mask.shape)
                x, y = hole[0]
                assert drawn(hole, mask.shape)[y, x]  # what the class' description promises
            x, y = region.outer[0]
            assert mask[y, x] == number
            pixels = sum(regions.area_of(line) for line in (region.outer, *region.holes))
            assert pixels > 0
            for line in (region.outer, *region.holes):
                steps = np.diff(np.vstack([line, line[:1]]), axis=0)
                # Sideways and up or down in turn: no point is there without need.
                assert ((steps[:, 0] == 0) != (steps[:, 1] == 0)).all()
                assert ((steps[1:, 0] == 0) != (steps[:-1, 0] == 0)).all()
        np.testing.assert_array_equal(covered, mask == number)


@settings(deadline=None, max_examples=50)
@given(MASKS)
def test_run_lengths_are_read_back(mask):
    for number, rle in regions.rle_of_classes(mask).items():
        np.testing.assert_array_equal(decode_mask(rle, mask.shape), mask == number)
        assert regions.rle_encode(mask == number) == rle
    nothing = regions.rle_encode(np.zeros(mask.shape, bool))
    assert not decode_mask(nothing, mask.shape).any()


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_run_lengths_are_those_of_pycocotools(classes):
    oracle = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(classes)
    for scale in (1, 40, 700):  # run lengths of one to three characters
        mask = np.kron(rng.integers(0, classes, (6, 7)), np.ones((scale, 3), np.uint8))
        for number, rle in regions.rle_of_classes(mask).items():
            part = np.asfortranarray(mask == number, np.uint8)
            expected = oracle.encode(part)
            assert rle == {"size": expected["size"], "counts": expected["counts"].decode()}
            assert oracle.area(rle) == np.count_nonzero(part)
    nothing = np.zeros((3, 4), np.uint8, order="F")
    assert regions.rle_encode(nothing)["counts"] == oracle.encode(nothing)["counts"].decode()


@pytest.mark.parametrize("function", [regions.polygons, regions.rle_encode, regions.rle_of_classes])
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((0, 5), np.uint8), r"empty.*\[0, 5\]"),
        (np.zeros((3, 4, 1), np.uint8), r"\[H, W\].*\[3, 4, 1\]"),
        (np.zeros((3, 4), np.float32), "float32"),
        (np.full((3, 4), -1), "-1"),
    ],
)
def test_what_is_no_mask(function, mask, words):
    with pytest.raises(UserError, match=words):
        function(mask)


def test_outlines_of_void_alone():
    assert regions.polygons(np.full((3, 4), 255, np.uint8)) == {}

# SPDX-License-Identifier: Apache-2.0
"""Labels cleaned of doubt, holes and specks, each pixel as the rules say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddleseg_deeplab.prediction import regions
from paddleseg_deeplab.prediction.cleanup import Cleanup, cleaned, fill_holes, merge_small
from paddleseg_deeplab.utils.errors import UserError

LABELS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays(np.int32, size, elements=st.sampled_from([0, 0, 0, 1, 1, 2, 255]))
)


def table(text):
    """Labels from a picture of digits; V is void."""
    rows = text.split()
    return np.array([[255 if sign == "V" else int(sign) for sign in row] for row in rows], np.int32)


@pytest.mark.parametrize(
    ("before", "below", "after"),
    [
        # The speck takes what is around it; that of three pixels is not below three.
        ("00000 01000 00022 00002", 3, "00000 00000 00022 00002"),
        # The longest border wins: the speck has two edges of 1 and one of 2 and of 0.
        ("00000 11000 13222 11222", 2, "00000 11000 11222 11222"),
        # Of equal borders the lower class wins.
        ("11222 11322 11222", 2, "11222 11222 11222"),
        ("111 131 222 222", 2, "111 111 222 222"),
        # A speck in a speck waits for that one.
        ("000000 011110 012110 011110 000000", 13, "000000 000000 000000 000000 000000"),
        # Specks side by side find theirs at once.
        ("0001111 0023111 0001111", 2, "0001111 0001111 0001111"),
        # Pixels that touch at a corner are two regions.
        ("1100 1100 0011 0010", 4, "1100 1100 0000 0000"),
        # Void stays, gives no class, and cuts regions off.
        ("0000 0VV0 0V10 0000", 3, "0000 0VV0 0V00 0000"),
        ("00000 0VVV0 0V1V0 0VVV0 00000", 3, "00000 0VVV0 0V1V0 0VVV0 00000"),
        # Nothing is large.
        ("01 10", 9, "01 10"),
    ],
)
def test_small_regions_by_hand(before, below, after):
    labels = table(before)
    np.testing.assert_array_equal(merge_small(labels, below), table(after))
    np.testing.assert_array_equal(labels, table(before))


@pytest.mark.parametrize(
    ("before", "below", "after"),
    [
        ("1111 1231 1111", 3, "1111 1111 1111"),  # of two classes
        ("1111 1231 1111", 2, "1111 1231 1111"),  # too large
        ("111 121 121", 9, "111 121 121"),  # open to the border
        ("0100 1210 0100", 2, "0100 1110 0100"),  # corners close it
        ("1111 12V1 1111", 3, "1111 11V1 1111"),  # void stays, though it counts
        ("1111 12V1 1111", 2, "1111 12V1 1111"),
        # A hole in a hole: the larger one is filled, if it is small.
        ("11111 12221 12321 12221 11111", 10, "11111 11111 11111 11111 11111"),
        ("11111 12221 12321 12221 11111", 9, "11111 12221 12221 12221 11111"),
    ],
)
def test_holes_by_hand(before, below, after):
    labels = table(before)
    np.testing.assert_array_equal(fill_holes(labels, below), table(after))
    np.testing.assert_array_equal(labels, table(before))


def flood(labels, start):
    """The region of a pixel, step by step: an independent version."""
    steps = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    found, waiting = {start}, [start]
    while waiting:
        y, x = waiting.pop()
        for a, b in steps:
            place = (y + a, x + b)
            inside = 0 <= place[0] < labels.shape[0] and 0 <= place[1] < labels.shape[1]
            if inside and place not in found and labels[place] == labels[start]:
                found.add(place)
                waiting.append(place)
    return found


def sizes(labels):
    return {place: len(flood(labels, place)) for place in np.ndindex(labels.shape)}


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(1, 6))
def test_what_holds_of_small_regions_whatever_the_labels(labels, below):
    after, size = merge_small(labels, below), sizes(labels)
    for place, number in np.ndenumerate(labels):
        if number == 255 or size[place] >= below:
            assert after[place] == number  # large ones and void stay
    changed = {place for place in np.ndindex(labels.shape) if after[place] != labels[place]}
    left = sizes(after)
    assert all(left[place] >= below for place in changed)
    # A small region that is left has nothing but its own kind and void beside it.
    for place in np.ndindex(labels.shape):
        if after[place] != 255 and left[place] < below:
            for y, x in flood(after, place):
                for other in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
                    if other in left and after[other] != 255:
                        assert left[other] < below
    np.testing.assert_array_equal(merge_small(after, below), after)


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(1, 6))
def test_holes_are_the_same_as_step_by_step(labels, below):
    expected, largest = labels.copy(), np.zeros(labels.shape, int)
    height, width = labels.shape
    for number in sorted(set(labels.ravel()) - {255}):
        other = np.where(labels == number, 0, 1)
        for place in np.argwhere(other):
            hole = flood(other, tuple(place))
            edge = any(y in (0, height - 1) or x in (0, width - 1) for y, x in hole)
            if not edge and len(hole) < below and len(hole) > largest[tuple(place)]:
                largest[tuple(place)] = len(hole)
                if labels[tuple(place)] != 255:
                    expected[tuple(place)] = number
    np.testing.assert_array_equal(fill_holes(labels, below), expected)


def test_threshold():
    probabilities = np.array([[[0.6, 0.59, 0.3]], [[0.4, 0.41, 0.7]]], np.float32)
    labels = np.array([[0, 0, 1]], np.int32)
    for unknown in (255, 0, 1, 9):
        marked = Cleanup(threshold=0.6, unknown=unknown).apply(labels, probabilities)
        np.testing.assert_array_equal(marked, [[0, unknown, 1]])
    nodata = np.array([[True, False, False]])
    marked = Cleanup(threshold=0.6, unknown=1).apply(labels, probabilities, nodata)
    np.testing.assert_array_equal(marked, [[255, 1, 1]])
    with pytest.raises(ValueError, match="probabilities"):
        Cleanup(threshold=0.6).apply(labels)


def test_an_unknown_number_is_no_class_unless_it_is_one():
    """In 3x3 pixels of class 1 the middle one is unknown: as a class it is a speck and goes."""
    probabilities = np.stack([np.full((3, 3), 0.1), np.full((3, 3), 0.9)]).astype(np.float32)
    probabilities[:, 1, 1] = 0.5
    labels = np.ones((3, 3), np.int32)
    for unknown, middle in ((255, 255), (2, 2), (0, 1)):
        cleanup = Cleanup(min_area=2, fill_holes=2, threshold=0.6, unknown=unknown)
        assert cleanup.apply(labels, probabilities)[1, 1] == middle


def test_holes_are_filled_before_small_regions_go():
    """A ring of eight pixels round one of another class: with that one it has nine, and stays."""
    labels = table("00000 01110 01210 01110 00000")
    np.testing.assert_array_equal(
        Cleanup(fill_holes=2, min_area=9).apply(labels), table("00000 01110 01110 01110 00000")
    )
    assert not Cleanup(min_area=9).apply(labels).any()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_a_stream(num_workers, keep):
    labels = table("0000 0100 0001")
    probabilities = np.full((2, 3, 4), 0.5, np.float32)
    nodata = labels == 2
    nodata[0, 0] = True
    samples = [{"im_path": name, "nodata": nodata} for name in "abc"]
    results = [(sample, labels, probabilities) for sample in samples]
    results[1] = (samples[1], labels[:2], probabilities)  # fails: no fit
    failed = []
    found = list(
        cleaned(
            Cleanup(min_area=2, threshold=0.5),
            results,
            lambda *error: failed.append(error),
            num_workers,
            keep,
        )
    )
    assert [sample["im_path"] for sample, *_ in found] == ["a", "c"]
    assert [name for name, _ in failed] == ["b"]
    for _, cleaner, kept in found:
        np.testing.assert_array_equal(cleaner, table("V000 0000 0000"))
        assert (kept is probabilities) == keep
        assert regions.class_areas(cleaner, 2)[0].pixels == 11


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_area": 0}, "--min_area 0.*from 1"),
        ({"min_area": -3}, "--min_area -3"),
        ({"fill_holes": 0}, "--fill_holes 0"),
        ({"threshold": 0.0}, "--threshold 0.0.*above 0"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"threshold": 0.5, "unknown": 256}, "--unknown 256.*0 to 255"),
        ({"threshold": 0.5, "unknown": -1}, "--unknown -1"),
    ],
)
def test_numbers_that_are_not_allowed(wrong, words):
    with pytest.raises(UserError, match=words) as caught:
        Cleanup(**wrong)
    assert "\n" not in str(caught.value)

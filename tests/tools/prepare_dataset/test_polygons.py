# SPDX-License-Identifier: Apache-2.0
"""Pixels of drawn shapes and of COCO's run lengths, each against a slow version of its own."""

import base64
import itertools
import math

import cv2
import numpy as np
import pytest

from paddleseg_deeplab.tools.prepare_dataset import coco, labelme
from paddleseg_deeplab.tools.prepare_dataset.pixels import polygons, rle

SIZE = (13, 17)


def centres(size):
    return [(r, c, c + 0.5, r + 0.5) for r in range(size[0]) for c in range(size[1])]


def inside(points, x, y):
    """Even-odd rule by one ray to the right of one point."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


def slow_polygon(points, size):
    mask = np.zeros(size, bool)
    for r, c, x, y in centres(size):
        mask[r, c] = inside(points, x, y)
    return mask


def distance(x, y, a, b):
    """From a point to a segment, by trying the ends and the foot of the perpendicular."""
    ends = min(math.dist((x, y), a), math.dist((x, y), b))
    length = math.dist(a, b)
    if length == 0:
        return ends
    foot = ((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / length
    if not 0 <= foot <= length:
        return ends
    across = (x - a[0]) * (b[1] - a[1]) - (y - a[1]) * (b[0] - a[0])
    return abs(across) / length


@pytest.mark.parametrize(
    "points",
    [
        [(2.2, 1.3), (11.7, 2.1), (6.4, 10.8)],
        [(1.1, 1.1), (9.3, 1.4), (9.1, 8.7), (5.2, 3.3), (1.6, 8.2)],  # concave
        [(2.1, 2.2), (12.3, 10.4), (12.1, 2.3), (2.3, 10.2)],  # crosses itself
        [(-5.3, -4.1), (30.2, 5.3), (4.4, 40.6)],  # past all borders
        [(3.2, 4.1), (3.3, 4.2), (3.25, 4.3)],  # no centre in it
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_polygon_against_a_ray_from_every_pixel(points, turned):
    points = points[::-1] if turned else points
    assert (polygons.polygon(np.array(points), SIZE) == slow_polygon(points, SIZE)).all()


def test_random_polygons():
    rng = np.random.default_rng(0)
    for _ in range(30):
        points = (rng.random((rng.integers(3, 12), 2)) * 24 - 4).tolist()
        got = polygons.polygon(np.array(points), SIZE)
        assert (got == slow_polygon([tuple(p) for p in points], SIZE)).all()


def test_neighbours_share_no_pixel_and_leave_none():
    """Polygons with a common edge, centres exactly on it included."""
    left = polygons.polygon(np.array([(0, 0), (6.5, 0), (9.5, 13), (0, 13)]), SIZE)
    right = polygons.polygon(np.array([(6.5, 0), (17, 0), (17, 13), (9.5, 13)]), SIZE)
    assert not (left & right).any()
    assert (left | right).all()


def test_whole_pixels_are_exact():
    mask = polygons.rectangle(np.array([(8.0, 9.0), (3.0, 2.0)]), SIZE)
    expected = np.zeros(SIZE, bool)
    expected[2:9, 3:8] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(("centre", "radius"), [((6.2, 7.1), 4.3), ((0, 0), 5), ((16, 2), 0.8)])
def test_disc(centre, radius):
    expected = np.zeros(SIZE, bool)
    for r, c, x, y in centres(SIZE):
        expected[r, c] = math.dist((x, y), centre) <= radius
    assert (polygons.disc(centre, radius, SIZE) == expected).all()


@pytest.mark.parametrize(
    "points",
    [
        [(2.1, 3.2), (13.4, 9.7)],
        [(2.1, 3.2), (13.4, 3.2), (13.4, 11.3), (-4.0, 11.3)],
        [(5.2, 5.1), (5.2, 5.1)],
    ],
)
def test_strip(points):
    expected = np.zeros(SIZE, bool)
    for r, c, x, y in centres(SIZE):
        near = min(distance(x, y, a, b) for a, b in itertools.pairwise(points))
        expected[r, c] = near <= 1.65
    assert (polygons.strip(np.array(points), 3.3, SIZE) == expected).all()


@pytest.mark.parametrize("corner", [(4, 5), (-2, -1), (15, 11)])
def test_stamp(corner):
    picture = np.random.default_rng(1).integers(0, 2, (4, 6)).astype(np.uint8)
    coded = base64.b64encode(cv2.imencode(".png", picture)[1]).decode()
    points = np.array([corner, (corner[0] + 5, corner[1] + 3)], float)
    expected = np.zeros(SIZE, bool)
    for r in range(4):
        for c in range(6):
            y, x = corner[1] + r, corner[0] + c
            if 0 <= y < SIZE[0] and 0 <= x < SIZE[1]:
                expected[y, x] = picture[r, c]
    assert (polygons.stamp(points, coded, SIZE) == expected).all()


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([[1, 2]], "has 1 points"),
        ([], "has 0 points"),
        ([[1, 2], [3, 4], [5]], "no pairs"),
        ([[1, 2], [3, 4], [5, float("nan")]], "no pairs"),
        ([[1, 2], [3, 4], [5, 1e300]], "no pairs"),
        ([[1, 2], [3, 4], [5, "x"]], "no pairs"),
        ([[1, 2], [3, 4], None], "no pairs"),
        ([1, 2, 3, 4, 5, 6], "no pairs"),
    ],
)
def test_bad_points(points, word):
    with pytest.raises(ValueError, match=word):
        polygons.check_points(points, 3, "the polygon")


# ------------------------------------------------------------------------------------ run lengths

# Written by pycocotools' encode (2.0) for these masks.
BOX = np.zeros((7, 9), bool)
BOX[2:5, 3:7] = True
BALL = (np.mgrid[:40, :50][0] - 20) ** 2 + (np.mgrid[:40, :50][1] - 25) ** 2 < 150
HOLE = np.ones((300, 400), bool)
HOLE[100, 200] = False
NOISE = [
    [1, 1, 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 1, 0, 0],
    [0, 1, 0, 0, 1],
    [1, 0, 1, 1, 0],
    [0, 1, 0, 1, 0],
]
KNOWN = [
    (BOX, "g03400000<"),
    (BALL, "j`05P16K4M2N2N2O0O2O000O2O00000001N10001N101N2N2N3L5Ja>"),
    (HOLE, "0Tfj11gI"),
    (np.array(NOISE, bool), "031N010O00010O43LM1"),
]


def slow_runs(mask):
    counts, value = [0], False
    for c in range(mask.shape[1]):
        for r in range(mask.shape[0]):
            if mask[r, c] != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return counts


@pytest.mark.parametrize(("mask", "text"), KNOWN)
def test_run_lengths(mask, text):
    assert rle.decode_counts(text) == slow_runs(mask)
    for counts in (text, slow_runs(mask)):
        got = rle.decode_mask({"size": list(mask.shape), "counts": counts}, mask.shape)
        assert (got == mask).all()


def test_random_run_lengths_written_by_another_hand():
    """An encoder made from the format's description: differences, groups of five bits."""

    def encode(counts):
        text = ""
        for place, count in enumerate(counts):
            value = count - counts[place - 2] if place > 2 else count
            while True:
                group, value = value & 31, value >> 5
                last = value == (-1 if group & 16 else 0)
                text += chr((group if last else group | 32) + 48)
                if last:
                    break
        return text

    assert [encode(slow_runs(mask)) for mask, _ in KNOWN] == [text for _, text in KNOWN]
    rng = np.random.default_rng(2)
    for share in (0.02, 0.3, 0.5, 0.9):
        mask = rng.random((37, 23)) < share
        record = {"size": [37, 23], "counts": encode(slow_runs(mask))}
        assert (rle.decode_mask(record, (37, 23)) == mask).all()


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"size": [7, 9], "counts": "g0340000"}, "add up to"),
        ({"size": [7, 9], "counts": "g03400000<P"}, "end within"),
        ({"size": [7, 9], "counts": "g0 3"}, "where none is possible"),
        ({"size": [7, 9], "counts": "o" * 40}, "where none is possible"),
        ({"size": [9, 7], "counts": "g03400000<"}, "are of the size"),
        ({"size": None, "counts": [63]}, "are of the size"),
        ({"size": [7, 9], "counts": [10, -4, 57]}, "add up to"),
        ({"size": [7, 9], "counts": [64]}, "add up to"),
        ({"size": [7, 9], "counts": [62.5, 0.5]}, "whole numbers"),
        ({"size": [7, 9]}, "whole numbers"),
    ],
)
def test_bad_run_lengths(record, word):
    with pytest.raises(ValueError, match=word):
        rle.decode_mask(record, (7, 9))


# -------------------------------------------------------------------------------- whole drawings


def test_labelme_paints_later_shapes_on_top():
    shapes = [
        {"label": "a", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]},
        {"label": "b", "shape_type": "circle", "points": [[9, 6], [9, 9]]},
        {"label": "__ignore__", "shape_type": "line", "points": [[0, 5], [17, 5]]},
        {"label": "a", "shape_type": "point", "points": [[3, 5]]},
        {"label": "b", "points": [[12, 9], [16, 9], [16, 12]]},  # a polygon, as old files have it
    ]
    expected = np.zeros(SIZE, np.uint8)
    for r, c, x, y in centres(SIZE):
        if 1 < x < 9 and 1 < y < 9:
            expected[r, c] = 1
        if math.dist((x, y), (9, 6)) <= 3:
            expected[r, c] = 2
        if abs(y - 5) <= 1:
            expected[r, c] = 255
        if math.dist((x, y), (3, 5)) <= 2:
            expected[r, c] = 1
        if inside([(12, 9), (16, 9), (16, 12)], x, y):
            expected[r, c] = 2
    numbers = {"a": 1, "b": 2, "__ignore__": 255}
    got = labelme.draw_labelme(shapes, numbers, SIZE, line_width=2, point_radius=2)
    assert (got == expected).all()


def square(left, top, side):
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


def test_coco_paints_small_things_on_large_ones():
    small = {"id": 1, "category_id": 7, "segmentation": [square(4, 4, 2)], "area": 999}
    large = {"id": 2, "category_id": 3, "segmentation": [square(2, 2, 8), square(12, 2, 2)]}
    crowd_mask = np.zeros(SIZE, bool)
    crowd_mask[:, 3] = True
    runs = {"size": list(SIZE), "counts": slow_runs(crowd_mask)}
    crowd = {"id": 3, "category_id": 7, "iscrowd": 1, "segmentation": runs}
    base = np.zeros(SIZE, np.uint8)
    base[2:10, 2:10] = base[2:4, 12:14] = 1
    base[4:6, 4:6] = 2
    for records in ([small, large, crowd], [crowd, large, small]):
        for setting, number in (("void", 255), ("class", 2), ("skip", 0)):
            expected = base.copy()
            if setting != "skip":  # a crowd lies below what is told apart
                expected[crowd_mask & (base == 0)] = number
            got = coco.draw_coco(records, {3: 1, 7: 2}, SIZE, setting)
            assert (got == expected).all(), setting

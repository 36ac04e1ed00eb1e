# SPDX-License-Identifier: Apache-2.0
"""The embedded scenes: determinism, exact masks, and classes that colour cannot tell."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from paddleseg_deeplab import registry
from paddleseg_deeplab import transforms as T
from paddleseg_deeplab.datasets import Shapes, class_pixel_counts
from paddleseg_deeplab.datasets.shapes.geometry import SHAPES, Placed, draw_mask, signed_distance
from paddleseg_deeplab.datasets.shapes.paint import paint_scene
from paddleseg_deeplab.utils.errors import UserError

KINDS = {name: k for k, (name, _) in enumerate(SHAPES)}


def small(mode="train", size=(64, 48), **kwargs):
    return Shapes(mode=mode, image_size=size, **kwargs)


def test_sample_follows_the_data_contract():
    data = small("val", num_classes=8)
    sample = data[3]
    assert sample["img"].shape == (3, 48, 64)
    assert sample["img"].dtype == np.float32
    assert sample["img"].min() >= 0
    assert sample["img"].max() <= 255
    assert sample["label"].shape == (48, 64)
    assert sample["label"].dtype == np.int64
    assert sample["trans_info"] == []
    assert registry.DATASETS["Shapes"] is Shapes
    assert data.class_names[0] == "background"
    assert len(data.class_names) == 8
    assert data.palette.shape == (8, 3)
    assert data.palette.dtype == np.uint8
    assert len(data) == len(data.file_list) == 100
    assert set(small()[0]) == {"img", "label", "im_path"}


def test_a_scene_follows_from_seed_mode_and_index_alone():
    first, again = small(seed=7), pickle.loads(pickle.dumps(small(seed=7)))
    order = [5, 0, 3]
    expected = {i: first[i] for i in range(6)}
    for i in order:
        for key in ("img", "label"):
            np.testing.assert_array_equal(again[i][key], expected[i][key])
    np.testing.assert_array_equal(first[-1]["label"], first[len(first) - 1]["label"])
    with pytest.raises(IndexError):
        first[len(first)]


def test_modes_and_seeds_share_no_scene():
    groups = [
        {small(mode, seed=seed).load_image(i).tobytes() for i in range(12)}
        for mode in ("train", "val", "test")
        for seed in (0, 1, 2**32 - 1)
    ]
    assert len(set().union(*groups)) == 12 * len(groups)


def test_epochs_change_the_transforms_but_not_the_scene():
    plain, flipped = small(), small(transforms=[T.RandomHorizontalFlip(0.5)])
    scene = plain[2, 0]["label"]
    np.testing.assert_array_equal(plain[2, 9]["label"], scene)
    seen = set()
    for epoch in range(12):
        label = flipped[2, epoch]["label"]
        np.testing.assert_array_equal(label, flipped[2, epoch]["label"])
        seen.add(np.array_equal(label, scene))
        assert np.array_equal(label, scene) or np.array_equal(label, scene[:, ::-1])
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("size", "channels"),
    [((16, 16), 3), ((33, 70), 1), ((97, 41), 4), ((200, 40), 3), ((64, 64), 6)],
)
def test_any_size_and_any_number_of_channels(size, channels):
    sample = small(size=size, img_channels=channels, num_classes=8)[1]
    assert sample["img"].shape == (channels, size[1], size[0])
    assert sample["label"].shape == (size[1], size[0])


def test_the_same_scene_at_every_resolution():
    # Away from edges the masks are equal; 4% leaves room for edge pixels of a 64-pixel scene.
    for index in range(5):
        coarse = small(size=(64, 64), num_classes=8).load_label(index)
        fine = small(size=(192, 192), num_classes=8).load_label(index)[1::3, 1::3]
        assert np.mean(coarse != fine) < 0.04


AREAS = {  # of circumradius 1 and detail 0.5; stretching keeps areas
    "disk": np.pi,
    "star": 5 * 0.46 * np.sin(np.pi / 5),
    "square": 2.0,
    "ring": np.pi * (1 - 0.55**2),
    "triangle": 3 * np.sqrt(3) / 4,
    "cross": 8 * 0.29 * np.sqrt(1 - 0.29**2) - 4 * 0.29**2,
}


def lens(r, s, d):
    """Area shared by circles of radii r and s whose centres are d apart."""
    a = (d * d + r * r - s * s) / (2 * d)
    b = d - a
    return (
        r * r * np.arccos(a / r) + s * s * np.arccos(b / s) - d * np.sqrt(max(r * r - a * a, 0.0))
    )


AREAS["crescent"] = np.pi - lens(1.0, 0.85, 0.575)


@pytest.mark.parametrize("name", list(AREAS))
@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_masks_have_the_area_of_their_geometry(name, stretch):
    shape = Placed(KINDS[name], 0.5, 0.5, 0.3, 0.4, stretch, 0.5)
    mask = draw_mask([shape], 400, 400)
    assert set(np.unique(mask)) == {0, KINDS[name] + 1}
    # Counting pixel centres errs by a small part of the outline: 0.5% at radius 120 px.
    assert mask.astype(bool).sum() == pytest.approx(AREAS[name] * 120**2, rel=0.005)


@pytest.mark.parametrize("name", list(AREAS))
def test_the_image_crosses_half_where_the_mask_begins(name):
    shape = Placed(KINDS[name], 0.52, 0.47, 0.35, 1.1, 1.2, 0.5)
    rng = np.random.default_rng(3)
    image = paint_scene(rng, [shape], 90, 90, 3, difficulty=0).astype(np.float64)
    mask = draw_mask([shape], 90, 90).astype(bool)
    outside, inside = image[0, 0], np.median(image[mask], axis=0)
    share = ((image - outside) @ (inside - outside)) / np.sum((inside - outside) ** 2)
    clear = np.abs(share - 0.5) > 0.02  # colours are whole numbers
    np.testing.assert_array_equal(share[clear] > 0.5, mask[clear])


def test_flat_scenes_show_exactly_the_topmost_shape():
    data = small(size=(128, 128), num_classes=8, difficulty=0)
    for index in range(4):
        image, mask = data.load_image(index), data.load_label(index)
        owner = np.full(mask.shape, -1)
        blended = np.zeros(mask.shape, bool)
        plan = data._plan(index)
        for k, shape in enumerate(plan):
            rows, columns, distance = signed_distance(shape, 128, 128)
            owner[rows, columns][distance <= 0] = k
            blended[rows, columns] |= np.abs(distance) < 0.5
        kinds = np.array([shape.kind + 1 for shape in plan] + [0])
        np.testing.assert_array_equal(mask, kinds[owner])
        for k in np.unique(owner):
            colours = image[(owner == k) & ~blended]
            assert len(np.unique(colours, axis=0)) <= 1


def test_difficulty_changes_the_image_and_never_the_mask():
    scenes = [small(difficulty=d, size=(64, 64)) for d in (0, 0.5, 1)]
    for index in range(3):
        masks = [s.load_label(index) for s in scenes]
        np.testing.assert_array_equal(masks[0], masks[1])
        np.testing.assert_array_equal(masks[0], masks[2])
    assert not np.array_equal(scenes[1].load_image(0), scenes[2].load_image(0))


def test_appearance_does_not_know_the_class():
    plan = small(size=(96, 96))._plan(4)
    centres = [(int(p.y * 96), int(p.x * 96)) for p in plan]
    pictures = [
        paint_scene(
            np.random.default_rng(1), [replace(p, kind=kind) for p in plan], 96, 96, difficulty=0
        )
        for kind in (KINDS["disk"], KINDS["square"], KINDS["star"])
    ]
    top = [c for k, c in enumerate(centres) if not _covered(plan, k, c)]
    assert len(top) >= 3
    for row, column in top:
        assert len({tuple(picture[row, column]) for picture in pictures}) == 1


def _covered(plan, k, centre):
    row, column = centre
    for shape in plan[k + 1 :]:
        reach = 1.2 * shape.radius * 96 + 2
        if np.hypot(row - shape.y * 96, column - shape.x * 96) < reach:
            return True
    return False


def test_colour_statistics_are_alike_for_all_classes():
    data = small(size=(48, 48), num_classes=4, seed=11)
    colours = [[] for _ in range(4)]
    for index in range(250):
        image, mask = data.load_image(index), data.load_label(index)
        for k in range(4):
            if np.count_nonzero(mask == k) > 30:
                colours[k].append(image[mask == k].mean(axis=0))
    means = np.array([np.mean(c, axis=0) for c in colours])
    # Scene means deviate by about 60; at least 150 scenes hold each class, so a class mean errs
    # by 5. Four times that on both sides of the overall mean.
    assert min(map(len, colours)) > 150
    assert np.abs(means - means.mean(axis=0)).max() < 20
    spreads = np.array([np.std(c, axis=0) for c in colours])
    assert spreads[1:].min() > 35  # a shape's colour is anything


def test_classes_are_balanced_and_the_background_is_the_largest():
    counts = class_pixel_counts(small(size=(48, 48), num_classes=8, num_samples=400))
    share = counts / counts.sum()
    assert 0.6 < share[0] < 0.9
    # 400 scenes hold about 330 of each shape, of very different sizes: 30% of their mean.
    np.testing.assert_allclose(share[1:], share[1:].mean(), rtol=0.3)


def test_class_pixel_counts_takes_evenly_spread_samples():
    data = small(num_samples=9)
    every = [np.bincount(data.load_label(i).ravel(), minlength=3) for i in range(9)]
    np.testing.assert_array_equal(class_pixel_counts(data), np.sum(every, axis=0))
    np.testing.assert_array_equal(class_pixel_counts(data, 3), every[0] + every[4] + every[8])
    assert class_pixel_counts(data, 50).sum() == 9 * 48 * 64


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"mode": "eval"}, "train, val, test"),
        ({"num_classes": 9}, "2 to 8"),
        ({"num_classes": 1}, "2 to 8"),
        ({"image_size": (8, 64)}, "at least 16"),
        ({"image_size": 64}, "(width, height)"),
        ({"num_samples": 0}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"difficulty": 1.5}, "difficulty"),
        ({"objects": (5, 2)}, "objects"),
        ({"sizes": (0.2, 0.1)}, "sizes"),
        ({"sizes": (0.1, 0.6)}, "sizes"),
        ({"sizes": 0.1}, "sizes"),
        ({"transforms": None}, "transforms"),
        ({"img_channels": 0}, "img_channels"),
    ],
)
def test_bad_settings_are_named(kwargs, text):
    with pytest.raises(UserError, match="Shapes") as caught:
        Shapes(**kwargs)
    assert text in str(caught.value)

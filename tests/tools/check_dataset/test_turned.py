# SPDX-License-Identifier: Apache-2.0
"""Pictures that EXIF turns: which way their masks fit, and what training says of them."""

import numpy as np
import pytest
from faulty_sets import (
    Folder,
    label,
    palettes_that_differ,
    scene,
    turned_by_180,
    turned_squares,
    twelve_bits,
)
from faulty_sets import run as check
from picture_files import turned as written

from paddleseg_deeplab.tools.check_dataset import turned
from paddleseg_deeplab.tools.check_dataset.check import largest_std, quick_check
from paddleseg_deeplab.tools.check_dataset.files import read_pair
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.transforms.reading import exif
from paddleseg_deeplab.utils.logger import logger


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def test_edges_in_closed_form():
    """A step of 6 in the middle of 4 columns, on a slope of 1: (6 / 1) over the mean change."""
    image = np.float32([[0, 1, 7, 8]] * 3)
    mask = np.uint8([[0, 0, 1, 1]] * 3)
    # Three rows change by 1, 6, 1; two steps down change nothing at 4 columns: 24 over 17 steps.
    assert turned.edges(image, mask) == pytest.approx(6 / (24 / 17))
    assert turned.edges(np.repeat(image[:, :, None], 5, 2), mask) == pytest.approx(6 / (24 / 17))
    assert turned.edges(image, 0 * mask) == 1 == turned.edges(0 * image, mask)


@pytest.mark.parametrize("number", range(2, 9))
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_mask_on_stored_pixels_is_told(number, size):
    stored = label((0, 0, 0, 1, 2), size)  # its borders lie on no line of symmetry
    image = exif.turn(scene(stored), number)
    fit = turned.compare(image, stored, (number, 1))
    # By the size where it can be told, else by the borders.
    assert fit.is_open == (number < 5 or size[0] == size[1])
    assert fit.verdict == turned.STORED
    assert turned.compare(image, exif.turn(stored, number), (number, 1)).verdict == turned.READ
    assert turned.compare(image, exif.turn(stored, number), (number, number)) is None
    assert turned.compare(scene(stored), exif.turn(stored, number), (1, number)).verdict == (
        turned.STORED
    )
    flat = np.ones_like(stored)
    assert turned.compare(exif.turn(scene(flat), number), exif.turn(flat, number), (number, 1)) in (
        turned.Fit(number, 1, 1.0, 1.0 if fit.is_open else None),
    )


def test_the_report_counts_the_ways(folder):
    turned_squares(folder)
    _, report, text = check(folder)
    advice = report["findings"][0]["advice"]
    assert "1 fit so, 1 fit the pixels as they are stored, and of 1 it cannot be told" in advice
    assert report["sets"]["val"]["images_by_orientation"] == {"6": 2, "8": 1}
    assert "val: images that their EXIF field turns: 2 (6: turned to the right), 1 (8:" in text


def test_sizes_that_differ_say_whose_field_it_is(folder):
    stored = label(size=(24, 40))
    paths = [str(folder.root / name) for name in ("a.jpg", "l.png")]

    for turns, words in (((6, 1), "image is turned by its EXIF"), ((1, 6), "label is turned by")):
        folder.bytes("a.jpg", written(scene(stored), turns[0], "JPEG"))
        folder.bytes("l.png", written(stored, turns[1], "PNG"))
        facts = read_pair(*paths, 3)
        assert [kind for kind, _, _ in facts.problems] == ["size_mismatch"]
        assert words in facts.problems[0][2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turned_by_180, "Pictures that their EXIF field turns"),
        (palettes_that_differ, "a number has another colour than in others: 1"),
        (twelve_bits, "nearly black: 6"),
    ],
)
def test_training_says_it_in_one_line(folder, monkeypatch, change, words):
    said = []
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    quick_check({"train_dataset": folder.datasets()["train"]}, "my.yml")
    assert said == []
    change(folder)
    datasets = folder.datasets()
    if folder.transforms:
        datasets["train"].transforms.transforms = [Normalize()]
    quick_check({"train_dataset": datasets["train"]}, "my.yml")
    assert len(said) == 1
    assert said[0].startswith("train_dataset: ")
    assert words in said[0]
    assert "\n" not in said[0]


def test_largest_std():
    assert largest_std([Normalize(std=[0.1, 0.3, 0.2])]) == 0.3
    assert largest_std([{"type": "RandomBlur"}, {"type": "Normalize", "std": [0.04]}]) == 0.04
    assert largest_std([{"type": "Normalize"}]) == 0.5
    assert largest_std([]) is largest_std(None) is largest_std([len]) is None

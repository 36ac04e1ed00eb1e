# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset labelme: shapes of X-AnyLabeling, and images that nobody drew on."""

import numpy as np
import pytest
from annotated_sets import H, W, box, call, drawn, image, indices, labelme, lines, mask

from paddleseg_deeplab.tools.prepare_dataset.labelme import shape_mask

SIZE = (H, W)


def shape(kind, points):
    return {"label": "dog", "shape_type": kind, "points": points}


CORNERS = {
    "upright": [[2, 2], [8, 2], [8, 6], [2, 6]],
    "turned": [[8, 1], [14, 5], [10, 11], [4, 7]],
    "from another corner": [[8, 6], [2, 6], [2, 2], [8, 2]],
    "the other way round": [[2, 2], [2, 6], [8, 6], [8, 2]],
    "partly outside": [[-3, 2], [8, 2], [8, 6], [-3, 6]],
}


@pytest.mark.parametrize("case", CORNERS)
@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle", "rectangle"])
def test_four_corners_are_their_polygon(case, kind):
    points = CORNERS[case]
    wanted = shape_mask(shape("polygon", points), SIZE, 10, 5)
    assert wanted.any()
    assert (shape_mask(shape(kind, points), SIZE, 10, 5) == wanted).all()


def test_a_rectangle_of_two_or_four_corners_is_the_same():
    two = shape_mask(shape("rectangle", [[2, 2], [8, 6]]), SIZE, 10, 5)
    four = shape_mask(shape("rectangle", CORNERS["upright"]), SIZE, 10, 5)
    assert (two == four).all()
    assert two.sum() == 6 * 4


@pytest.mark.parametrize(
    ("kind", "count"),
    [("rotation", 3), ("rotation", 5), ("rectangle", 1), ("rectangle", 3), ("rectangle", 5),
     ("quadrilateral", 3), ("circle", 4)],
)  # fmt: skip
def test_other_numbers_of_corners_are_refused(kind, count):
    points = [[1, 1], [5, 1], [5, 5], [1, 5], [1, 3]][:count]
    with pytest.raises(ValueError, match=f"has {count} points"):
        shape_mask(shape(kind, points), SIZE, 10, 5)


# ------------------------------------------------------------------------ images without a JSON


@pytest.mark.parametrize("flag", [None, "skip", "background"])
def test_images_without_a_json_are_counted(tmp_path, flag, capsys):
    source, out = drawn(tmp_path / "in", 3), tmp_path / "out"
    for name in ("day 0/empty.jpg", "more/b.png", "c.webp"):
        image(source / name)
    flags = ("labelme", "--annotations", source, "--save_dir", out, "--val", "0")
    flags = (*flags, "--unlabelled", flag) if flag else flags
    for _ in range(2):
        assert call(*flags) == 0
        said = capsys.readouterr().err
        assert "3 images have no JSON, such as c.webp" in said
        assert ("--unlabelled background" in said) == (flag is None)
        assert len(lines(out, "train")) == (6 if flag == "background" else 3)
    if flag == "background":
        found = indices(out / "annotations/more/b.png")
        assert found.shape == (H, W)
        assert not found.any()


def test_nothing_is_said_where_every_image_has_one(tmp_path, capsys):
    source = drawn(tmp_path / "in", 2)
    labelme(source / "other name.json", [box("dog", 0, 0, 2, 2)], imagePath="x.jpg")
    image(source / "x.jpg")  # found by imagePath
    assert call("labelme", "--annotations", source, "--save_dir", tmp_path / "o") == 0
    assert "no JSON" not in capsys.readouterr().err


def test_what_was_written_is_no_image_without_a_json(tmp_path, capsys):
    """Where results go into the folder of the annotations."""
    source = drawn(tmp_path / "in", 3)
    flags = ("labelme", "--annotations", source, "--save_dir", source, "--unlabelled", "background")
    for _ in range(2):
        assert call(*flags) == 0
        assert "no JSON" not in capsys.readouterr().err
    mask(source / "old/mask.png", np.zeros((H, W)))
    assert call(*flags, "--overwrite") == 0
    assert "1 images have no JSON, such as old/mask.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["C:\\x\\a.jpg", "/home/u/a.jpg", "..\\in\\a.jpg", "../gone/a.jpg", "a.jpg"]
)
def test_paths_of_another_machine(tmp_path, path):
    """The image lies beside its JSON, as labelme puts them."""
    image(tmp_path / "in/a.jpg")
    labelme(tmp_path / "in/a.json", [box("dog", 2, 3, 4, 5)], imagePath=path)
    flags = ("labelme", "--annotations", tmp_path / "in", "--save_dir", tmp_path / "o", "--val", 0)
    assert call(*flags) == 0
    assert lines(tmp_path / "o", "train") == ["../in/a.jpg annotations/a.png"]

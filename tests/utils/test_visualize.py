# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels: exact colours, exact files, and errors instead of silence."""

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError

PALETTE = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
LABELS = np.array([[0, 1, 2], [255, 2, 3]], np.uint8)


def test_default_palette_is_paddlesegs():
    # Known values of the scheme, from its second entry on.
    expected = [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    palette = visualize.default_palette(256)
    np.testing.assert_array_equal(palette[:5], expected)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette[:255], axis=0)) == 255
    flat = visualize.get_color_map_list(3, [1, 2, 3])
    assert flat == [1, 2, 3, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize("color", [[1, 2], [1, 2, 256], [-1, 0, 0]])
def test_custom_color_is_checked(color):
    with pytest.raises(UserError, match="custom_color"):
        visualize.default_palette(3, color)


def test_colorize():
    rgb = visualize.colorize(LABELS.astype(np.int64), PALETTE)
    np.testing.assert_array_equal(rgb[0], PALETTE)
    for y, x in ((1, 0), (1, 2)):  # void and a class beyond the palette
        assert tuple(rgb[y, x]) == visualize.VOID_COLOR
    assert rgb.dtype == np.uint8


@pytest.mark.parametrize("bad", [np.full((2, 2), 256), np.full((2, 2), -1), np.zeros((2, 2))])
def test_colorize_refuses(bad):
    with pytest.raises(ValueError, match="Labels"):
        visualize.colorize(bad, PALETTE)


def test_overlay_is_the_weighted_mean():
    image = np.full((2, 3, 3), 100, np.uint8)
    got = visualize.overlay(image, LABELS, PALETTE, 0.6)
    expected = np.rint(0.6 * 100 + 0.4 * visualize.colorize(LABELS, PALETTE).astype(float))
    assert np.abs(got.astype(float) - expected).max() <= 1  # rounding of the weighted sum
    assert (image == 100).all()
    with pytest.raises(ValueError, match="differ in size"):
        visualize.overlay(image[:1], LABELS, PALETTE)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((2, 2), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 1), 7.4, np.float32), [7, 7, 7]),
        (np.dstack([np.full((2, 2), v, np.uint8) for v in (1, 2)]), [1, 1, 1]),
        (np.dstack([np.full((2, 2), v, np.uint8) for v in (1, 2, 3, 4)]), [1, 2, 3]),
    ],
)
def test_to_rgb_takes_any_channels(image, expected):
    rgb = visualize.to_rgb(image)
    assert rgb.shape == (2, 2, 3)
    assert rgb.dtype == np.uint8
    assert rgb[0, 0].tolist() == expected


def test_to_rgb_stretches_other_ranges():
    rgb = visualize.to_rgb(np.array([[0.0, 1000.0, 2000.0]]))
    assert rgb[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("value", [1e9, -9999, 256, -1])
def test_to_rgb_of_a_constant_image_of_another_range_is_black(value, dtype):
    rgb = visualize.to_rgb(np.full((2, 3, 3), value, dtype))
    assert rgb.dtype == np.uint8
    assert (rgb == 0).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan, 0, 255], [0, 0, 255]),
        ([np.inf, 10, 20], [255, 10, 20]),
        ([-np.inf, 0, 1000], [0, 0, 255]),
        ([np.nan, np.inf, -np.inf], [0, 255, 0]),
        ([-3.4e38, 0, 3.4e38], [0, 128, 255]),  # their span is no float32
        ([1.7e308, 0, 2000], [255, 0, 255]),
        ([-1.7e308, np.nan, 3], [0, 0, 3]),
    ],
)
def test_to_rgb_of_what_is_not_finite(values, expected):
    assert visualize.to_rgb(np.array([values]))[0, :, 0].tolist() == expected


def test_to_rgb_of_an_empty_image():
    assert visualize.to_rgb(np.zeros((0, 4, 3), np.float32)).shape == (0, 4, 3)


def test_palette_png_keeps_numbers_and_colours(tmp_path):
    path = tmp_path / "neu" / "größe 图.png"
    visualize.palette_png(str(path), LABELS, PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), LABELS)
        rgb = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(rgb, visualize.colorize(LABELS, PALETTE))


@pytest.mark.parametrize("name", ["a.png", "neu/b.bmp", "图/größe.PNG"])
def test_save_image_round_trip(tmp_path, name):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    visualize.save_image(tmp_path / name, rgb)
    read = cv2.imdecode(np.fromfile(tmp_path / name, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], rgb)


def test_save_image_raises(tmp_path):
    rgb = np.zeros((2, 2, 3), np.uint8)
    for name in ("a.xyz", "a"):
        with pytest.raises(UserError, match="cannot write"):
            visualize.save_image(tmp_path / name, rgb)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        visualize.save_image(tmp_path / "file" / "a.png", rgb)


def test_side_by_side_holds_the_panels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)
    truth, prediction = rng.integers(0, 3, (2, 60, 100))
    names = ["sky", "road", "Straße"]
    picture = visualize.side_by_side(image, truth, prediction, PALETTE, names)
    top = 24
    for i, panel in enumerate(
        [image, visualize.colorize(truth, PALETTE), visualize.colorize(prediction, PALETTE)]
    ):
        left = 6 + i * 106
        np.testing.assert_array_equal(picture[top : top + 60, left : left + 100], panel)
    below = picture[top + 60 :].reshape(-1, 3)
    for color in PALETTE:  # the legend
        assert (below == color).all(axis=1).any()
    without = visualize.side_by_side(image, None, prediction, PALETTE, names)
    assert without.shape[1] == picture.shape[1] - 106
    with pytest.raises(ValueError, match="differ"):
        visualize.side_by_side(image, truth[:5], prediction, PALETTE, names)


@pytest.mark.parametrize("k", [2, 11, 60])
def test_confusion_matrix_picture(k):
    matrix = np.eye(k, dtype=np.int64) * 10
    matrix[1] = 0
    picture = visualize.confusion_matrix_picture(matrix, [f"class{i}" for i in range(k)])
    assert picture.dtype == np.uint8
    colors = picture.reshape(-1, 3)
    assert (colors == (8, 48, 107)).all(axis=1).any()  # the diagonal
    assert (colors == (225, 225, 225)).all(axis=1).any()  # the row without pixels
    with pytest.raises(ValueError, match="class names"):
        visualize.confusion_matrix_picture(matrix, ["a"])

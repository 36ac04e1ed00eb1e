# SPDX-License-Identifier: Apache-2.0
"""functional.py against closed forms and independent NumPy versions."""

import colorsys
import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleseg_deeplab.transforms import functional as F

SIDES = st.integers(1, 70)


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


@given(old=SIDES, new=SIDES)
@settings(max_examples=200, deadline=None)
def test_nearest_index_is_nearest_to_the_half_pixel_centre(old, new):
    index = F.nearest_index(old, new)
    where = (np.arange(new) + 0.5) * old / new - 0.5
    # Positions outside the first and last centre belong to the first and last element.
    distance = np.abs(index - np.clip(where, 0, old - 1))
    assert index.min() >= 0
    assert index.max() < old
    assert distance.max() <= 0.5 + 1e-9
    assert (np.diff(index) >= 0).all()


@pytest.mark.parametrize(("old", "new"), [(8, 4), (9, 3), (4, 8), (5, 15), (7, 7)])
def test_nearest_index_at_whole_ratios(old, new):
    if new >= old:
        expected = np.repeat(np.arange(old), new // old)
    else:
        expected = np.arange(new) * (old // new) + (old // new - 1) // 2
    np.testing.assert_array_equal(F.nearest_index(old, new), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint16", "bool", "float32"])
@pytest.mark.parametrize("channels", [None, 1, 3, 7])
def test_nearest_keeps_dtype_and_values(dtype, channels):
    shape = (9, 11) if channels is None else (9, 11, channels)
    img = (noise(shape) > 127).astype(dtype) * np.array(1, dtype)
    out = F.resize(img, (14, 5), cv2.INTER_NEAREST)
    assert out.dtype == img.dtype
    assert out.shape == (14, 5, *shape[2:])
    assert set(np.unique(out)) <= set(np.unique(img))


@pytest.mark.parametrize("interp", sorted(F.INTERPOLATIONS))
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 5, 130])
def test_resize_any_number_of_channels_is_resize_of_each(interp, channels):
    flag = F.INTERPOLATIONS[interp]
    shape = (10, 13) if channels is None else (10, 13, channels)
    img = noise(shape)
    for size in ((7, 20), (5, 6), (20, 31)):
        out = F.resize(img, size, flag)
        assert out.shape == (*size, *shape[2:])
        if channels is not None:
            one = F.resize(np.ascontiguousarray(img[:, :, -1]), size, flag)
            # OpenCV may sum in another order for another number of channels: float32 rounding.
            np.testing.assert_allclose(out[:, :, -1], one, rtol=1e-5, atol=1e-3)


def test_bilinear_resize_closed_form():
    # A ramp stays a ramp at half-pixel centres, away from the ends where it is held.
    ramp = np.tile(np.arange(12, dtype=np.float32), (3, 1))
    out = F.resize(ramp, (3, 18))
    where = (np.arange(18) + 0.5) * 12 / 18 - 0.5
    np.testing.assert_allclose(out[1], np.clip(where, 0, 11), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "size", "argument", "expected"),
    [
        (F.size_by_long, (30, 60), 100, (50, 100)),
        (F.size_by_short, (30, 60), 100, (100, 200)),
        (F.size_by_long, (1, 1000), 10, (1, 10)),  # no side becomes 0
        (F.scaled_size, (3, 5), 0.5, (2, 2)),  # Python's round: halves to even
        (F.size_within, (30, 60), (100, 100), (50, 100)),
        (F.size_within, (60, 30), (40, 100), (80, 40)),  # the target turns with the image
        (F.size_within, (10, 10), (40, 100), (40, 40)),
    ],
)
def test_sizes(function, size, argument, expected):
    assert function(size, argument) == expected


def test_pad_and_crop_are_inverse():
    img = noise((5, 7, 6))
    out = F.pad(img, (9, 12), 3.0, (2, 4))
    np.testing.assert_array_equal(F.crop(out, 2, 4, (5, 7)), img)
    assert out.sum() == pytest.approx(img.sum() + 3 * 6 * (9 * 12 - 5 * 7), rel=1e-6)
    colors = F.pad(img, (6, 7), [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(colors[5, 0], np.arange(6))
    with pytest.raises(ValueError, match="2 numbers and the image 6 channels"):
        F.pad(img, (9, 12), [1, 2])
    with pytest.raises(ValueError, match="2 numbers and the image 1 channels"):
        F.pad(img[:, :, 0], (9, 12), [1, 2])


@pytest.mark.parametrize("channels", [None, 1, 3, 4, 5, 9])
@pytest.mark.parametrize(("angle", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
@pytest.mark.parametrize("interp", [cv2.INTER_NEAREST, cv2.INTER_LINEAR])
def test_right_angles_are_exact(channels, angle, turns, interp):
    img = noise((6, 9) if channels is None else (6, 9, channels))
    matrix, size = F.rotation((6, 9), angle)
    out = F.warp_affine(img, matrix, size, interp, 7)
    # warpAffine rounds coordinates to 1/32 pixel at best, exact here up to float rounding.
    np.testing.assert_allclose(out, np.rot90(img, turns), atol=2e-2)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint16", "uint32", "bool"])
def test_warp_nearest_keeps_dtype(dtype):
    label = np.arange(48).reshape(6, 8).astype(dtype)
    out = F.warp_affine(label, [[1, 0, 2], [0, 1, 1]], (7, 10), cv2.INTER_NEAREST, 1)
    assert out.dtype == label.dtype
    np.testing.assert_array_equal(out[1:, 2:], label)
    assert (out[0] == 1).all()
    assert (out[:, :2] == 1).all()


def test_warp_fills_each_channel_with_its_colour():
    img = np.zeros((4, 4, 6), np.float32)
    out = F.warp_affine(img, [[1, 0, 100], [0, 1, 0]], (3, 3), cv2.INTER_LINEAR, range(6))
    np.testing.assert_array_equal(out, np.broadcast_to(np.arange(6), (3, 3, 6)))


@pytest.mark.parametrize("channels", [None, 1, 3, 5])
def test_normalize_closed_form(channels):
    img = noise((6, 4) if channels is None else (6, 4, channels))
    n = channels or 1
    mean, std = np.linspace(0.1, 0.6, n), np.linspace(0.2, 0.4, n)
    out = F.normalize(img, mean, std)
    expected = (img.astype(np.float64) / 255 - (mean if channels else mean[0])) / (
        std if channels else std[0]
    )
    assert out.dtype == np.float32
    # Values reach 5: a few float32 roundings of 6e-8 relative each.
    np.testing.assert_allclose(out, expected, atol=3e-6)
    if channels:
        assert out.transpose(2, 0, 1).flags["C_CONTIGUOUS"]
    one = F.normalize(img, [0.5], [0.25])
    np.testing.assert_allclose(one, (img.astype(np.float64) / 255 - 0.5) / 0.25, atol=3e-6)


def test_normalize_refuses_other_lengths():
    with pytest.raises(ValueError, match="mean has 3 values and the image 4 channels"):
        F.normalize(noise((3, 3, 4)), [0, 0, 0], [1])


def test_photometric_identities():
    img = noise((8, 9, 3))
    for operation in (F.brightness, F.contrast, F.saturation, F.sharpness):
        np.testing.assert_allclose(operation(img, 1.0), img, atol=1e-3)
    # Through HSV and back: float32 in OpenCV, well below half a grey level.
    np.testing.assert_allclose(F.hue(img, 0.0), img, atol=0.01)
    np.testing.assert_allclose(F.hue(img, 256.0), img, atol=0.01)


def test_photometric_closed_forms():
    img = noise((8, 9, 3))
    luma = img @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(F.brightness(img, 0.3), img * 0.3, rtol=1e-5)
    np.testing.assert_allclose(F.brightness(img, 3.0), np.clip(img * 3.0, 0, 255), rtol=1e-5)
    np.testing.assert_allclose(F.contrast(img, 0.0), np.full_like(img, luma.mean()), rtol=1e-4)
    np.testing.assert_allclose(
        F.contrast(img, 1.5), np.clip(1.5 * img - 0.5 * luma.mean(), 0, 255), atol=1e-2
    )
    np.testing.assert_allclose(
        F.saturation(img, 0.0), np.repeat(luma[:, :, None], 3, axis=2), rtol=1e-4
    )
    five = noise((8, 9, 5))
    np.testing.assert_allclose(F.contrast(five, 0.0), np.full_like(five, five.mean()), rtol=1e-4)
    spot = np.zeros((5, 5), np.float32)
    spot[2, 2] = 130
    smooth = F.sharpness(spot, 0.0)
    assert smooth[2, 2] == pytest.approx(50, rel=1e-4)
    assert smooth[1, 1] == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "uint32", "float16", "float64"])
def test_mean_grey_of_any_numbers(dtype):
    img = (noise((8, 9, 3)) > 100).astype(dtype)
    luma = (img @ np.array([0.299, 0.587, 0.114])).mean()
    assert F.mean_grey(img) == pytest.approx(luma, rel=1e-6)  # the weights are float32


def test_hue_against_the_standard_library():
    img = noise((4, 5, 3), seed=3)
    out = F.hue(img, 25.6)  # a tenth of the circle
    for pixel, changed in zip(img.reshape(-1, 3), out.reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*(pixel.astype(float) / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 0.1) % 1, s, v)) * 255
        np.testing.assert_allclose(changed, expected, atol=0.02)


@pytest.mark.parametrize("channels", [None, 1, 3, 5, 70])
@pytest.mark.parametrize("blur", [F.gaussian_blur, F.box_blur, F.median_blur])
@pytest.mark.parametrize("size", [3, 9])
def test_blurs_keep_shape_dtype_and_constants(channels, blur, size):
    shape = (12, 11) if channels is None else (12, 11, channels)
    out = blur(np.full(shape, 77, np.float32), size)
    assert out.shape == shape
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, 77, atol=1e-3)
    assert blur(noise(shape), size).std() < noise(shape).std()


FUNCTIONS = [
    lambda x: F.resize(x, (5, 30)),
    lambda x: F.resize(x, (5, 30), cv2.INTER_NEAREST),
    lambda x: F.pad(x, (20, 20), 1),
    lambda x: F.crop(x, 1, 2, (3, 4)),
    F.horizontal_flip,
    F.vertical_flip,
    lambda x: F.warp_affine(x, [[1, 0.2, 0], [0, 1, 0]], (9, 9)),
    lambda x: F.normalize(x, [0.5], [0.5]),
    lambda x: F.brightness(x, 1.5),
    lambda x: F.contrast(x, 1.5),
    lambda x: F.saturation(x, 1.5),
    lambda x: F.hue(x, 5),
    lambda x: F.sharpness(x, 1.5),
    lambda x: F.gaussian_blur(x, 3),
    lambda x: F.box_blur(x, 3),
    lambda x: F.median_blur(x, 3),
    lambda x: F.add_noise(x, 1.0),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "flipped", "planar"])
def test_input_is_never_changed(function, layout):
    base = noise((12, 14, 3))
    img = {
        "contiguous": base,
        "flipped": base[:, ::-1],
        "planar": np.ascontiguousarray(base.transpose(2, 0, 1)).transpose(1, 2, 0),
    }[layout]
    before = hashlib.sha256(img.tobytes()).digest()
    out = function(img)
    assert hashlib.sha256(img.tobytes()).digest() == before
    np.testing.assert_allclose(out, function(np.ascontiguousarray(img)), atol=1e-4)

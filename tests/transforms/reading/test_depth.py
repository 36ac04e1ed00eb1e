# SPDX-License-Identifier: Apache-2.0
"""Images of 16 bits and floats: every number of the file arrives, in one scale."""

import cv2
import numpy as np
import pytest
from picture_files import png, tiff

from paddleseg_deeplab import kernels
from paddleseg_deeplab.transforms.reading import source
from paddleseg_deeplab.transforms.reading.files import read_image

# The types that a PNG can have: channels, its colour type.
TYPES = {1: 0, 3: 2, 4: 6}
H, W = 24, 40


def numbers(channels, most=65535):
    """All of a range, in every channel in another order."""
    ramp = np.linspace(0, most, H * W).round().astype(np.uint16)
    planes = [np.random.default_rng(k).permutation(ramp).reshape(H, W) for k in range(channels)]
    return np.dstack(planes)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("channels", TYPES)
@pytest.mark.parametrize("form", ["png", "tif"])
def test_16_bits_keep_all_levels(tmp_path, channels, form):
    """They were cut to 8 for one and three channels: 256 levels, and 16 of 12-bit data."""
    for most in (65535, 4095):
        truth = numbers(channels, most)
        content = png(truth, 16, TYPES[channels]) if form == "png" else tiff(truth.squeeze())
        image = read_image(written(tmp_path, f"a.{form}", content), channels)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, truth.astype(np.float32) / np.float32(257))
        assert len(np.unique(image)) == H * W


@pytest.mark.parametrize("channels", TYPES)
def test_the_scale_is_that_of_8_bits(tmp_path, channels):
    """A picture and the same one widened to 16 bits (v * 257) are equal, to the last bit."""
    narrow = (numbers(channels) >> 8).astype(np.uint16)
    wide = written(tmp_path, "16.png", png(narrow * 257, 16, TYPES[channels]))
    same = written(tmp_path, "8.png", png(narrow, 8, TYPES[channels]))
    np.testing.assert_array_equal(read_image(wide, channels), read_image(same, channels))


def test_grey_and_colour_are_converted_at_full_depth(tmp_path):
    grey = numbers(1)
    path = written(tmp_path, "grey.png", png(grey, 16, 0))
    np.testing.assert_array_equal(read_image(path, 3), np.repeat(grey, 3, 2) / np.float32(257))
    colour = numbers(3)
    image = read_image(written(tmp_path, "colour.png", png(colour, 16, 2)), 1)
    # Rec. 601; OpenCV's weights are multiples of 2**-14: off by 3 * 2**-15 * 255 at most.
    weights = [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image[..., 0], colour @ weights / 257, atol=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_windows_equal_the_whole(tmp_path, channels):
    """Those of a PNG are decoded down to their last row only."""
    path = written(tmp_path, "a.png", png(numbers(channels), 16, TYPES[channels]))
    whole = read_image(path, channels)
    opened = source.open_image(path, channels)
    assert isinstance(opened, source.PngSource) == (kernels.parse_png(b"") is None)
    for top, left, height, width in ((0, 0, 5, 7), (3, 11, 10, 20), (H - 4, 2, 4, 9)):
        part = opened.window(top, left, (height, width))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_nodata_is_compared_before_the_scale(tmp_path):
    truth = numbers(3)
    truth[4, 5, 1] = 7
    opened = source.open_image(written(tmp_path, "a.png", png(truth, 16, 2)), 3, nodata=7)
    np.testing.assert_array_equal(opened.void, (truth == 7).any(2))


def test_avif_of_10_bits_stays_a_picture_of_8(tmp_path):
    """OpenCV gives 0 to 1023 for it where depth is asked for: nearly black in a scale of 16."""
    grey = np.repeat(np.linspace(0, 1023, 64 * 64).astype(np.uint16).reshape(64, 64, 1), 3, 2)
    ok, content = cv2.imencode(".avif", grey, [cv2.IMWRITE_AVIF_DEPTH, 10])
    if not ok or cv2.imdecode(content, cv2.IMREAD_COLOR) is None:
        pytest.skip("this OpenCV knows no AVIF")
    image = read_image(written(tmp_path, "a.avif", content.tobytes()))
    # The codec loses a few levels of 256; a wrong scale would be off by 250.
    np.testing.assert_allclose(image, grey / 1023 * 255, atol=6)


@pytest.mark.parametrize("form", ["pfm", "hdr"])
def test_formats_of_floats_are_not_cut_to_8_bits(tmp_path, form):
    """Their white is 1, so 1 becomes 255; what is brighter stays so."""
    truth = np.random.default_rng(0).uniform(0.1, 3, (H, W, 3)).astype(np.float32)
    path = tmp_path / f"a.{form}"
    assert cv2.imwrite(str(path), truth[..., ::-1])
    tolerance = 1e-6 if form == "pfm" else 1 / 128  # HDR has 8 bits of mantissa
    image = read_image(path)
    np.testing.assert_allclose(image, truth * 255, rtol=tolerance, atol=3 * 255 * tolerance)
    assert image.max() > 256

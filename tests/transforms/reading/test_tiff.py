# SPDX-License-Identifier: Apache-2.0
"""TIFF files of any type and any number of channels: what stands in them is what is read."""

import contextlib
import sys

import numpy as np
import pytest
import tifffile
from picture_files import tiff

from paddleseg_deeplab.transforms.reading import limit, tiff as reader  # isort: skip
from paddleseg_deeplab.transforms.reading.files import nodata_of, read_image
from paddleseg_deeplab.utils.errors import UserError

H, W = 12, 17
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


def picture(channels, dtype):
    """All kinds of numbers that a type has, below the limit of an image's values."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        image = rng.random((H, W, channels))
    else:
        info = np.iinfo(dtype)
        low, high = max(info.min, -500_000), min(info.max, 500_000)
        image = rng.integers(low, high, (H, W, channels), endpoint=True)
    image = image.astype(dtype)
    return image[:, :, 0] if channels == 1 else image


def expected(image):
    """As it is to be read: float32, [H, W, C]."""
    image = image.reshape(H, W, -1)
    return image.astype(np.float32) / np.float32(257 if image.dtype == np.uint16 else 1)


def written(folder, content):
    path = folder / "a.tif"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_all_types(tmp_path, dtype, channels, planar):
    """Bands one after the other were noise, signs were lost, colours multiplied by alpha, 16 bits
    cut to 8; 2, 5 and more channels and floats of 16 bits were called broken."""
    image = picture(channels, dtype)
    path = written(tmp_path, tiff(image, **({"planarconfig": planar} if channels > 1 else {})))
    np.testing.assert_array_equal(read_image(path, channels), expected(image))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_bands_that_are_no_colours(tmp_path, channels, dtype, extra):
    """Files of bands say that they are grey: OpenCV gave the first one for all."""
    image = picture(channels, dtype)
    settings = {"photometric": "minisblack", "extrasamples": [extra] * (channels - 1)}
    path = written(tmp_path, tiff(image, **settings))
    np.testing.assert_array_equal(read_image(path, channels), expected(image))


STORED = {
    "big endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "tiles": {"tile": (16, 16)},
    "deflate": {"compression": "zlib"},
    "deflate, tiles, predictor": {"compression": "zlib", "tile": (16, 16), "predictor": True},
    "strips": {"rowsperstrip": 5},
}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize(("channels", "dtype"), [(5, "float32"), (5, "uint16"), (3, "int16")])
def test_ways_to_store(tmp_path, how, channels, dtype):
    if "predictor" in how and dtype == "float32":
        pytest.skip("the predictor of floats needs imagecodecs")
    image = picture(channels, dtype)
    path = written(tmp_path, tiff(image, **STORED[how]))
    np.testing.assert_array_equal(read_image(path, channels), expected(image))


@pytest.mark.parametrize("channels", [3, 5])
def test_channels_as_pages(tmp_path, channels):
    """tifffile.imwrite of an array [C, H, W] makes them; OpenCV gave the first page for all."""
    image = picture(channels, "uint8")
    pages = np.moveaxis(image, 2, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pages, photometric="minisblack")
    np.testing.assert_array_equal(read_image(path, channels), expected(image))
    # Other numbers of pages are pictures of their own, of which the first counts.
    np.testing.assert_array_equal(read_image(path, 1)[:, :, 0], pages[0])


def test_smaller_pictures_of_the_same_are_no_channels(tmp_path):
    """Cloud-optimised files hold smaller copies behind the picture."""
    image = picture(5, "uint16")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        settings = {"photometric": "minisblack", "planarconfig": "contig"}
        file.write(image, subifds=0, **settings)
        file.write(image[::2, ::2], subfiletype=1, **settings)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 5), expected(image))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (4, "uint8"), (5, "float32")])
def test_orientation(tmp_path, number, channels, dtype):
    """Whoever reads a file turns it: OpenCV, Pillow (transparency), or this package."""
    image = picture(channels, dtype)
    plain = read_image(written(tmp_path, tiff(image)), channels)
    path = written(tmp_path, tiff(image, extratags=[(274, "H", 1, number, False)]))
    ways = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: np.rot90(plain, 2).transpose(1, 0, 2),
        8: np.rot90(plain),
    }
    np.testing.assert_array_equal(read_image(path, channels), ways[number])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_transparency_is_dropped_and_multiplies_nothing(tmp_path, dtype):
    image = picture(4, dtype)
    rgb = expected(image)[:, :, :3]
    path = written(tmp_path, tiff(image))
    np.testing.assert_array_equal(read_image(path, 3), rgb)
    np.testing.assert_array_equal(read_image(path, 3, to_rgb=False), rgb[..., ::-1])
    grey = rgb @ np.float32([0.299, 0.587, 0.114])
    # OpenCV's weights are multiples of 2**-14: off by 3 * 2**-15 * 255 at most, and it rounds.
    atol = 0.03 + 0.5 / (257 if dtype == "uint16" else 1)
    np.testing.assert_allclose(read_image(path, 1)[..., 0], grey, atol=atol)
    pair = written(tmp_path, tiff(image[:, :, [0, 3]], extrasamples=[2]))
    np.testing.assert_array_equal(read_image(pair, 1)[..., 0], rgb[..., 0])


def test_pixels_without_data(tmp_path):
    image = picture(5, "float32")
    image[2, 3, 4] = -9999
    path = written(tmp_path, tiff(image))
    np.testing.assert_array_equal(nodata_of(path, 5, -9999), (image == -9999).any(2))
    image[1, 1, 1] = np.nan
    with pytest.raises(UserError, match=r"a\.tif: 1 of 1020 values are NaN"):
        read_image(written(tmp_path, tiff(image)), 5)


# ---------------------------------------------------------------------------------- what is refused


def refused(path, channels):
    with pytest.raises(UserError) as caught:
        read_image(path, channels)
    text = str(caught.value)
    assert text.startswith(f"Image {path} ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("held", "wanted"), [(5, 3), (5, 1), (2, 3), (8, 5), (5, 8)])
def test_another_number_of_channels(tmp_path, held, wanted):
    text = refused(written(tmp_path, tiff(picture(held, "float32"))), wanted)
    assert f"(12, 17, {held}), expected [height, width, {wanted}]: set img_channels" in text


def test_without_tifffile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    text = refused(written(tmp_path, tiff(picture(5, "float32"))), 5)
    assert "holds 5 channels of 32-bit floats: reading it needs tifffile" in text
    assert "pip install 'paddleseg-deeplab[tiff]'" in text
    for channels, dtype in ((1, "float32"), (3, "uint16"), (4, "uint8"), (3, "int16")):
        image = picture(channels, dtype)  # for these OpenCV and Pillow will do
        path = written(tmp_path, tiff(image))
        np.testing.assert_array_equal(read_image(path, channels), expected(image))


def test_without_imagecodecs(tmp_path, monkeypatch):
    path = written(tmp_path, tiff(picture(5, "uint16"), compression="zlib"))
    told = ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    def fails(*_, **__):
        raise told

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fails)
    assert "needs the package imagecodecs (<COMPRESSION.LZW: 5>" in refused(path, 5)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_damaged_files(tmp_path):
    """Cut anywhere: refused in one line. A byte changed in the header: that, or read."""
    content = tiff(picture(5, "uint16"), compression="zlib")
    whole = len(content)
    for length in range(0, whole - 1, 61):
        refused(written(tmp_path, content[:length]), 5)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        changed[rng.integers(4, 300)] = rng.integers(256)
        with contextlib.suppress(UserError):
            read_image(written(tmp_path, bytes(changed)), 5)


def test_limit_of_pixels(tmp_path, monkeypatch):
    """Pillow does not know these files, so their own header is asked before memory is."""
    monkeypatch.setenv(limit.VARIABLE, str(H * W))
    assert "declares 8 channels of 32-bit floats, 17 x 12: too much for an image of 3" in refused(
        written(tmp_path, tiff(picture(8, "float32"))), 3
    )
    monkeypatch.setenv(limit.VARIABLE, str(H * W - 1))
    assert "17 x 12 pixels, above the limit" in refused(
        written(tmp_path, tiff(picture(5, "float32"))), 5
    )


def test_header():
    header = reader.look(tiff(picture(5, "int16"), planarconfig="separate"))
    assert (header.width, header.height, header.bits, header.samples) == (W, H, 16, 5)
    assert (header.planar, header.kind, header.pages) == (2, 2, 1)
    assert str(header) == "5 channels of 16-bit whole numbers with a sign"
    assert reader.look(b"\x89PNG\r\n\x1a\n") is None

# SPDX-License-Identifier: Apache-2.0
"""Labels of every bit depth and format: the numbers in the file, not those of its picture."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from picture_files import grey_tiff, png, tiff
from PIL import Image

from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.datasets.label_counts import label_counts
from paddleseg_deeplab.transforms.reading import labels
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.utils.errors import UserError

H, W = 6, 37


def ids(bits):
    """All numbers of so many bits, as far as they find room, from 0 on."""
    return (np.arange(H * W).reshape(H, W) % min(2**bits, H * W)).astype(np.uint16)


def check(folder, content, truth, suffix="png"):
    path = folder / f"a.{suffix}"
    path.write_bytes(content)
    label = read_label(path)
    assert label.dtype.kind in "ui"
    np.testing.assert_array_equal(label, truth)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png(tmp_path, bits):
    """Grey of 2 and 4 bits came as 0, 85, ... and 0, 17, ...; of 16 bits and several channels the
    upper half came alone: class 1 was 0."""
    check(tmp_path, png(ids(bits), bits), ids(bits))
    if bits <= 8:
        palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3))
        check(tmp_path, png(ids(bits), bits, 3, palette), ids(bits))
    if bits >= 8:
        opaque = np.full((H, W), 2**bits - 1, np.uint16)
        check(tmp_path, png(np.dstack([ids(bits)] * 3), bits, 2), ids(bits))
        check(tmp_path, png(np.dstack([ids(bits), opaque]), bits, 4), ids(bits))
        check(tmp_path, png(np.dstack([*[ids(bits)] * 3, opaque]), bits, 6), ids(bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff(tmp_path, bits, photometric):
    """Of one bit, white is 1, whichever bit stands for white; else the number is the class."""
    stored = 1 - ids(1) if (bits, photometric) == (1, 0) else ids(bits)
    check(tmp_path, grey_tiff(stored, bits, photometric), ids(bits), "tif")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32"])
def test_types_of_tiff(tmp_path, dtype):
    check(tmp_path, tiff(ids(6).astype(dtype)), ids(6), "tif")
    packed = tiff(ids(6).astype(dtype), compression="zlib", tile=(16, 16), byteorder=">")
    check(tmp_path, packed, ids(6), "tif")
    if dtype == "uint16":
        check(tmp_path, tiff(np.dstack([ids(9)] * 3)), ids(9), "tif")


@pytest.mark.parametrize("most", [1, 3, 20, 100, 200, 254, 255, 256, 1000, 40000, 65534, 65535])
def test_pgm(tmp_path, most):
    """Its greatest number may be any, and a picture is stretched from it: 1 of 20 came as 13."""
    truth = np.minimum(np.arange(H * W).reshape(H, W) * max(1, most // (H * W)), most)
    truth = truth.astype(np.uint16)
    head = b"%d %d\n%d\n" % (W, H, most)
    binary = truth.astype(">u2" if most > 255 else np.uint8).tobytes()
    text = " ".join(map(str, truth.ravel())).encode()
    check(tmp_path, b"P5\n" + head + binary, truth, "pgm")
    check(tmp_path, b"P2\n" + head + text, truth, "pgm")
    three = np.repeat(truth.astype(">u2" if most > 255 else np.uint8), 3, 1).tobytes()
    check(tmp_path, b"P6\n" + head + three, truth, "ppm")


def test_every_number_of_every_pgm():
    """Pillow's stretching is undone exactly."""
    for most in [*range(1, 255), 256, 257, 999, 32767, 40000, 65534]:
        top = 255 if most < 256 else 65535
        numbers = np.arange(most + 1)
        stretched = np.minimum(top, np.floor(numbers / most * top + 0.5))
        np.testing.assert_array_equal(np.rint(stretched * (most / top)), numbers)


@pytest.mark.parametrize("form", ["BMP", "GIF", "TGA", "PCX", "PNG", "TIFF"])
@pytest.mark.parametrize("palette", [None, "random", "greys"])
def test_palettes(tmp_path, form, palette):
    numbers = ids(4).astype(np.uint8)
    image = Image.fromarray(numbers)
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    if palette is not None:
        image.putpalette((colours if palette == "random" else np.arange(256).repeat(3)).ravel())
    file = io.BytesIO()
    image.save(file, form)
    check(tmp_path, file.getvalue(), numbers, form.lower())
    found = labels.decode_label(file.getvalue()).palette
    if palette == "random":
        np.testing.assert_array_equal(found[:16], colours[:16])


def test_what_other_programs_read():
    for content, others in (
        (png(ids(8), 8), None),
        (png(ids(1), 1), None),
        (png(ids(2), 2), 85),
        (png(ids(4), 4), 17),
        (png(ids(4), 4, 3, np.zeros((16, 3))), None),
        (png(np.dstack([ids(16)] * 3), 16, 2), 0),
        (grey_tiff(ids(8), 8, 0), 254),
        (b"P5\n2 1\n3\n\0\1", 85),
    ):
        assert labels.decode_label(content).others == others


def test_all_ways_to_a_label(tmp_path):
    """Samples, untransformed labels and the counts of a sampler."""
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "l.png").write_bytes(png(ids(2), 2))
    (tmp_path / "list.txt").write_text("a.png l.png\n")
    for mode in ("train", "val"):
        data = Dataset(mode, str(tmp_path), [], 4, **{f"{mode}_path": "list.txt"})
        np.testing.assert_array_equal(data[0]["label"], ids(2))
        np.testing.assert_array_equal(data.load_label(0), ids(2))
        np.testing.assert_array_equal(
            label_counts(data, cache=False)[0], np.bincount(ids(2).ravel())
        )


def test_two_bands_are_no_label(tmp_path):
    two = tiff(np.dstack([ids(4), ids(3)]).astype(np.uint16), photometric="minisblack")
    (tmp_path / "a.tif").write_bytes(two)
    with pytest.raises(UserError, match=r"a\.tif holds colours \(mode 2 channels of 16-bit"):
        read_label(tmp_path / "a.tif")
    assert tifffile.imread(io.BytesIO(two)).shape == (H, W, 2)


def test_deep_colours(tmp_path):
    """Channels that differ in the lower half alone are colours too."""
    different = np.dstack([ids(8), ids(8), ids(8) + 1])
    (tmp_path / "a.png").write_bytes(png(different, 16, 2))
    assert cv2.imread(str(tmp_path / "a.png")).max() == 0  # what 8 bits show
    with pytest.raises(UserError, match="holds colours"):
        read_label(tmp_path / "a.png")

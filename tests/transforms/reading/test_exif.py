# SPDX-License-Identifier: Apache-2.0
"""EXIF orientations: images and labels of every format are read as a viewer shows them."""

import io

import numpy as np
import pytest
from picture_files import chunk, png, turned
from PIL import Image, features

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab.tools.prepare_dataset.jobs import read_header
from paddleseg_deeplab.tools.prepare_dataset.pixels.colour_table import read_codes
from paddleseg_deeplab.transforms.reading import exif
from paddleseg_deeplab.transforms.reading.files import read_image, read_label

# Large patches, which JPEG and AVIF keep to a few grey levels; no turn of it equals another.
GREY = np.kron(np.uint8([[0, 1, 2], [3, 4, 5]]) * 40, np.ones((16, 16), np.uint8))
RGB = np.repeat(GREY[:, :, None], 3, 2)
RGBA = np.dstack([RGB, GREY // 2 + 100])
NUMBERS = range(1, 9)


def plainly(array, number):
    """What TIFF 6.0 (page 36) says of where row 0 and column 0 of the file are on the screen."""
    return {
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.swapaxes(0, 1),  # left, top
        6: lambda a: np.rot90(a, -1),  # right, top
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),  # right, bottom
        8: lambda a: np.rot90(a),  # left, bottom
    }[number](array)


@pytest.mark.parametrize("number", NUMBERS)
def test_turning(number):
    for array in (GREY, RGB, RGBA):
        there = exif.turn(array, number)
        np.testing.assert_array_equal(there, plainly(array, number))
        np.testing.assert_array_equal(exif.turn_back(there, number), array)
        assert exif.swaps_sides(number) == (there.shape[:2] != array.shape[:2])


# Form, its settings, and the pictures that it can hold.
FORMS = [
    ("JPEG", {"quality": 100, "subsampling": 0}, (GREY, RGB)),
    ("PNG", {}, (GREY, RGB, RGBA)),
    ("TIFF", {}, (GREY, RGB, RGBA)),
    ("WEBP", {"lossless": True}, (RGB, RGBA)),
    ("AVIF", {"quality": 100}, (RGB,)),
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("form", "settings", "pictures"), FORMS, ids=[f[0] for f in FORMS])
def test_images(tmp_path, number, form, settings, pictures):
    """Four channels and AVIF were never turned."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    path = tmp_path / f"a.{form.lower()}"
    for picture in pictures:
        path.write_bytes(turned(picture, number, form, **settings))
        channels = picture.shape[2] if picture.ndim == 3 else 1
        image = read_image(path, channels)
        expected = plainly(picture, number).reshape(image.shape).astype(np.float32)
        np.testing.assert_allclose(image, expected, atol=12 if form in ("JPEG", "AVIF") else 0)
        assert read_header(path.read_bytes())[0] == image.shape[:2]  # what prepare_dataset asks


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1", "RGB"])
def test_labels(tmp_path, number, form, mode):
    """A TIFF's was followed, a PNG's was not."""
    numbers = (GREY // 40).astype(np.uint16 if mode == "I;16" else np.uint8)
    label = Image.fromarray(numbers > 2 if mode == "1" else numbers)
    if mode == "P":
        label.putpalette([7, 8, 9] * 256)
    if mode == "RGB":
        label = label.convert("RGB")
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(turned(label, number, form))
    expected = plainly(np.asarray(numbers > 2 if mode == "1" else numbers), number)
    np.testing.assert_array_equal(read_label(path), expected)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_mask_made_of_its_picture_fits(tmp_path, number):
    """Programs that copy the EXIF field with the pixels give such pairs."""
    for form in ("PNG", "TIFF"):
        image, label = tmp_path / f"a.{form.lower()}", tmp_path / f"l.{form.lower()}"
        image.write_bytes(turned(RGB, number, form))
        label.write_bytes(turned(GREY // 40, number, form))
        sample = T.Compose([])({"img": str(image), "label": str(label)})
        np.testing.assert_array_equal(sample["label"], sample["img"][0] // 40)


@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_masks_of_colours(tmp_path, number, form):
    """Those that prepare_dataset makes classes of."""
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(turned(RGB, number, form))
    codes = GREY.astype(np.int32) * 0x010101
    np.testing.assert_array_equal(read_codes(str(path)), plainly(codes, number))


def field(number):
    """The EXIF field itself."""
    content = turned(GREY, number, "PNG")
    return Image.open(io.BytesIO(content)).info["exif"].removeprefix(b"Exif\0\0")


def test_where_the_field_stands(tmp_path):
    """Behind the pixels it counts too; as a text or in XMP it counts nowhere."""
    hexed = b"\nexif\n%8d\n%s\n" % (len(field(3)) + 6, (b"Exif\0\0" + field(3)).hex().encode())
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    cases = [
        (chunk(b"eXIf", field(3)), 3),
        (chunk(b"eXIf", field(9)), 1),
        (chunk(b"eXIf", b"damaged"), 1),
        (chunk(b"tEXt", b"Raw profile type exif\0" + hexed), 1),
        (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), 1),
    ]
    for late, number in cases:
        (tmp_path / "a.png").write_bytes(png(GREY, late=late))
        expected = plainly(GREY, number)
        for channels in (1, 3):
            image = read_image(tmp_path / "a.png", channels)
            np.testing.assert_array_equal(image[:, :, 0], expected)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), expected)

# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset binary: masks of one class each become masks of classes."""

import numpy as np
import pytest
from annotated_sets import H, W, call, image, indices, lines, load, mask, tree
from PIL import Image

from paddleseg_deeplab.tools.prepare_dataset.binary import Layers, read_binary
from paddleseg_deeplab.utils.errors import UserError

CLASSES = ("cat", "traffic_light")


def part(k, name):
    """Where a class is in the image k: cats above, lights below, sharing row 5."""
    where = np.zeros((H, W), bool)
    rows = np.s_[k:6] if name == "cat" else np.s_[5:11]
    where[rows, k : k + 6] = True
    return where


def expected(k, order=CLASSES):
    labels = np.zeros((H, W), int)
    for number, name in enumerate(order, 1):
        labels[part(k, name)] = number
    return labels


def layered(root, pattern, count=3, top=255):
    for k in range(count):
        image(root / "images" / f"day/{k}.jpg", value=k)
        for name in CLASSES:
            inside = pattern.format(**{"image": f"day/{k}", "class": name}).replace("*", "x")
            mask(root / "masks" / f"{inside}.png", part(k, name) * top)
    return ("binary", "--images", root / "images", "--masks", root / "masks", "--save_dir",
            root / "o")  # fmt: skip


PATTERNS = ("{class}/{image}", "{image}_{class}", "{image}/{class}", "{image}-*_{class}",
            "masks/{image}.{class}", "{class}_mask/{image}")  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_classes_are_put_together(tmp_path, pattern, top, capsys):
    flags = (*layered(tmp_path, pattern, top=top), "--mask_pattern", pattern)
    if pattern == PATTERNS[0]:
        flags = flags[:-2]
    assert call(*flags) == 0
    for k in range(3):
        assert (indices(tmp_path / f"o/annotations/day/{k}.png") == expected(k)).all()
    assert load(tmp_path / "o", "train").class_names == ["background", *CLASSES]
    said = capsys.readouterr().err
    assert "cat 3, traffic_light 3" in said
    # Row 5 is of both: 6 pixels each.
    assert "18 pixels of 3 images are of several classes" in said
    before = tree(tmp_path / "o")
    assert call(*flags, "--overwrite") == 0
    assert tree(tmp_path / "o") == before


def test_the_order_of_classes_says_what_is_on_top(tmp_path):
    flags = layered(tmp_path, "{class}/{image}")
    assert call(*flags, "--classes", *reversed(CLASSES)) == 0
    assert (indices(tmp_path / "o/annotations/day/1.png") == expected(1, CLASSES[::-1])).all()


def test_several_masks_of_one_class(tmp_path):
    """One for each nucleus, as in the Data Science Bowl 2018."""
    image(tmp_path / "images/a.png")
    cells = [np.zeros((H, W), np.uint8) for _ in range(3)]
    for k, cell in enumerate(cells):
        cell[2 * k : 2 * k + 2, 3 * k : 3 * k + 4] = 255
        mask(tmp_path / f"masks/a/masks/{k:x}f3.png", cell)
    flags = ("binary", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--val", 0,
             "--mask_pattern", "{image}/masks/*", "--save_dir", tmp_path / "o")  # fmt: skip
    assert call(*flags) == 2  # whose masks are they?
    assert call(*flags, "--classes", "nucleus") == 0
    found = indices(tmp_path / "o/annotations/a.png")
    assert (found == (np.sum(cells, axis=0) > 0)).all()


def shades():
    return np.linspace(0, 255, H * W).round().astype(np.uint8).reshape(H, W)


@pytest.mark.parametrize(
    ("values", "threshold", "wanted"),
    [
        (shades(), 0.5, shades() >= 127.5),
        (shades(), 1.0, shades() == 255),
        (shades().astype(np.uint16) * 257, 0.25, shades() >= 63.75),
        (shades() / 255, 0.5, shades() / 255 >= 0.5),
        (shades().astype(np.float32), 0.5, shades() >= 127.5),
        (shades() > 99, 0.5, shades() > 99),
        ((shades() > 99).astype(np.uint8), 0.5, shades() > 99),  # 0 and 1 are no shades
        ((shades() > 99).astype(np.uint8) * 100, 0.5, np.zeros((H, W), bool)),
        ((shades() > 99).astype(np.uint8) * 100, None, shades() > 99),
        (np.zeros((H, W), np.uint8), None, np.zeros((H, W), bool)),
        (np.full((H, W), 255, np.uint8), None, np.ones((H, W), bool)),
    ],
)
def test_masks_of_shades(tmp_path, values, threshold, wanted):
    np.save(tmp_path / "a.npy", values)
    assert (read_binary(str(tmp_path / "a.npy"), threshold) == wanted).all()
    if values.dtype in (np.uint8, np.uint16):
        Image.fromarray(values).save(tmp_path / "a.png")
        assert (read_binary(str(tmp_path / "a.png"), threshold) == wanted).all()


def test_one_soft_mask_an_image(tmp_path, capsys):
    for k in range(2):
        image(tmp_path / f"images/{k}.jpg")
        mask(tmp_path / f"masks/{k}.png", shades())
    flags = ("binary", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--save_dir",
             tmp_path / "o", "--mask_pattern", "{image}", "--classes", "person")  # fmt: skip
    assert call(*flags) == 1
    error = capsys.readouterr().err
    assert "0 and one other" in error
    assert "--threshold 0.5" in error
    assert call(*flags, "--threshold", 0.5) == 0
    assert (indices(tmp_path / "o/annotations/0.png") == (shades() >= 127.5)).all()


@pytest.mark.parametrize("values", [[0, 1, 2], [3, 7], [0, 254, 255], [0, 1, 255], [1, 2]])
def test_what_is_no_mask_of_two_values_is_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", np.resize(np.array(values, np.uint8), (H, W)))
    with pytest.raises(ValueError, match=f"holds {len(values)} values"):
        read_binary(str(tmp_path / "a.npy"), None)


@pytest.mark.parametrize(
    "values", [np.full((H, W), np.nan), np.zeros((H, W, 2)), np.full((H, W), np.inf)]
)
def test_what_is_no_mask_at_all_is_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match="finite numbers"):
        read_binary(str(tmp_path / "a.npy"), 0.5)


@pytest.mark.parametrize("pattern", ["{class}", "{image}_{label}", "{image}}", "masks/*", "{image"])
def test_bad_patterns(pattern):
    with pytest.raises(UserError, match="--mask_pattern"):
        Layers(pattern).check()


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan"), float("inf")])
def test_bad_thresholds(threshold):
    with pytest.raises(UserError, match="--threshold"):
        Layers(threshold=threshold).check()


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{image}_{class}", "a_b_c.png", ("a_b", "c")),
        ("{image}_{class}", "a_c_d.png", ("a", "c_d")),
        ("{image}_{class}", "z_c.png", None),
        ("{class}/{image}", "cat/sub/x.png", ("sub/x", "cat")),
        ("{image}", "a.b.png", ("a.b", "")),
        ("{image}.{class}", "a.b.c.png", ("a.b", "c")),
    ],
)
def test_names_are_taken_apart_by_the_images_there_are(pattern, path, found):
    images = ["a", "a_b", "a.b", "sub/x"]
    assert Layers(pattern).match(path, images) == found


def test_what_belongs_to_nothing_is_named(tmp_path, capsys):
    flags = layered(tmp_path, "{class}/{image}")
    image(tmp_path / "images/alone.jpg")
    mask(tmp_path / "masks/cat/night/9.png", np.zeros((H, W)))
    mask(tmp_path / "masks/cat/day/2.png", np.zeros((H - 1, W)))
    assert call(*flags, "--val", "0") == 1
    error = capsys.readouterr().err
    for words in ("9.png: is of no image", "alone.jpg: has no mask", f"({H - 1}, {W})"):
        assert words in error, error
    assert len(lines(tmp_path / "o", "train")) == 2
    flags = (*layered(tmp_path, "{class}/{image}"), "--mask_pattern", "{image}_{class}")
    assert call(*flags) == 2
    assert "A mask there: cat/day/0.png" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "count"), [("background", 4), ("skip", 3)])
def test_images_without_a_mask(tmp_path, flag, count, capsys):
    flags = layered(tmp_path, "{class}/{image}")
    image(tmp_path / "images/alone.jpg")
    assert call(*flags, "--unlabelled", flag, "--val", "0") == 0
    assert "1 images without a mask" in capsys.readouterr().err
    assert len(lines(tmp_path / "o", "train")) == count


def _tiff(path, array, **more):
    pytest.importorskip("tifffile").imwrite(path, array, **more)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("five bands", lambda p: _tiff(f"{p}.tif", np.zeros((H, W, 5), np.float32),
                                       photometric="minisblack", planarconfig="contig")),
        ("bands apart", lambda p: _tiff(f"{p}.tif", np.zeros((5, H, W), np.uint16),
                                        photometric="minisblack", planarconfig="separate")),
        ("pages", lambda p: _tiff(f"{p}.tif", np.zeros((5, H, W), np.uint8),
                                  photometric="minisblack")),
        ("array", lambda p: np.save(f"{p}.npy", np.zeros((H, W, 7)))),
        ("16 bits", lambda p: Image.fromarray(np.zeros((H, W), np.uint16)).save(f"{p}.png")),
    ],
)  # fmt: skip
def test_images_of_many_bands(tmp_path, name, write):
    (tmp_path / "images").mkdir()
    write(tmp_path / "images/0")
    mask(tmp_path / "masks/0.png", part(0, "cat"))
    flags = ("binary", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--save_dir",
             tmp_path / "o", "--mask_pattern", "{image}", "--classes", "cat",
             "--val", 0)  # fmt: skip
    assert call(*flags) == 0
    assert (indices(tmp_path / "o/annotations/0.png") == part(0, "cat")).all()


def test_masks_inside_the_folder_of_images(tmp_path):
    for k in range(2):
        image(tmp_path / f"in/{k}.jpg")
        mask(tmp_path / f"in/masks/{k}.png", part(k, "cat"))
    flags = ("binary", "--images", tmp_path / "in", "--masks", tmp_path / "in/masks", "--save_dir",
             tmp_path / "in/o", "--mask_pattern", "{image}", "--classes", "cat")  # fmt: skip
    assert call(*flags) == 0
    assert call(*flags) == 0  # what it wrote is no image
    assert len(lines(tmp_path / "in/o", "train")) == len(lines(tmp_path / "in/o", "val")) == 1

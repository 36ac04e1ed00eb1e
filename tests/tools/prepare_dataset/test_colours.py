# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset colours: masks of colours come back as the classes they were made from."""

import numpy as np
import pytest
from annotated_sets import H, W, call, image, indices, lines, load, tree
from PIL import Image

from paddleseg_deeplab.datasets import CamVid, Cityscapes, PascalVOC
from paddleseg_deeplab.tools.prepare_dataset.pixels.colour_table import (
    code_of,
    count_codes,
    read_codes,
    read_table,
    to_classes,
)
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.utils.errors import UserError

CVAT = (
    "# label:color_rgb:parts:actions\nroad:128,64,128::\nbackground:0,0,0::\n"
    "traffic light:250,170,30::\n"
)
COLOURS = np.array([(0, 0, 0), (128, 64, 128), (250, 170, 30)], np.uint8)  # of classes 0, 1, 2
NAMES = ["background", "road", "traffic light"]


def labels_of(k):
    """Classes of the image k: all three, each time others."""
    return np.random.default_rng(k).integers(0, 3, (H, W))


def colour_set(root, count=3, ending="png", write=None):
    """Images with masks in colours, and the flags for them."""
    for k in range(count):
        image(root / "images" / f"{k}.jpg", value=k)
        picture = Image.fromarray(COLOURS[labels_of(k)])
        path = root / "masks" / f"{k}.{ending}"
        path.parent.mkdir(exist_ok=True)
        if write is None:
            picture.save(path)
        else:
            write(picture, path)
    (root / "labelmap.txt").write_text(CVAT, encoding="utf-8")
    return (
        *("colours", "--images", root / "images", "--masks", root / "masks"),
        *("--save_dir", root / "o"),
    )


def table_flags(root):
    return ("--colours", root / "labelmap.txt")


def check(root, classes=3, names=NAMES):
    """All masks are the classes that they were made of; returns how many there are."""
    seen = 0
    for mode in ("train", "val"):
        dataset = load(root / "o", mode, classes=classes)
        assert dataset.class_names == names
        for sample in map(dataset.__getitem__, range(len(dataset))):
            k = int(sample["im_path"].split("/")[-1][0])
            assert (sample["label"] == labels_of(k)).all()
            seen += 1
    return seen


def as_palette(picture, path):
    picture.quantize(8).save(path)


WRITERS = {
    "RGB": None,
    "palette": as_palette,
    "RGBA": lambda picture, path: picture.convert("RGBA").save(path),
    "transparent": lambda picture, path: transparent(picture).save(path),
}


def transparent(picture):
    picture = picture.convert("RGBA")
    picture.putalpha(0)
    return picture


@pytest.mark.parametrize("case", WRITERS)
def test_colours_come_back_as_classes(tmp_path, case, capsys):
    flags = (*colour_set(tmp_path, write=WRITERS[case]), *table_flags(tmp_path))
    assert call(*flags, "--dry_run") == 0
    assert not (tmp_path / "o").exists()
    assert call(*flags) == 0
    assert check(tmp_path) == 3
    said = capsys.readouterr().err
    counts = np.bincount(np.concatenate([labels_of(k).ravel() for k in range(3)]))
    for name, count in zip(NAMES, counts):
        assert f"{name} {count}" in said
    before = tree(tmp_path / "o")
    assert call(*flags, "--overwrite") == 0
    assert tree(tmp_path / "o") == before


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "gif", "ppm"])
def test_formats(tmp_path, ending):
    assert call(*colour_set(tmp_path, ending=ending), *table_flags(tmp_path)) == 0
    assert check(tmp_path) == 3


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_mask_turned_by_its_exif(tmp_path, number, kind):
    """Colours are turned as class numbers are, of which `read_label` is the rule."""
    labels = labels_of(0).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(labels).save(tmp_path / f"l.{kind}", exif=exif)
    Image.fromarray(COLOURS[labels]).save(tmp_path / f"c.{kind}", exif=exif)
    wanted = read_label(str(tmp_path / f"l.{kind}"))
    numbers = {code_of(colour): k for k, colour in enumerate(COLOURS)}
    found = to_classes(read_codes(str(tmp_path / f"c.{kind}")), numbers, None)
    assert (found == wanted).all()
    assert (found.shape == labels.shape) == (number < 5)


TABLES = {
    "CVAT's": CVAT,
    "table with a head": "name, r, g, b\nbackground, 0, 0, 0\nroad, 128, 64, 128\n"
    "traffic light, 250, 170, 30\n",
    "numbers first": "0 0 0\tbackground\n128 64 128\troad\n250 170 30\ttraffic light\n",
    "blanks": "background 0 0 0\nroad 128 64 128\ntraffic light 250 170 30\n",
    "hexadecimal": "background #000000\nroad #804080\ntraffic light #FAAA1E\n",
    "semicolons and quotes": '"background";0;0;0\n"road";128;64;128\n"traffic light";250;170;30\n',
    "Windows": CVAT.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_many_programs(tmp_path, case):
    path = tmp_path / "t.txt"
    path.write_text(TABLES[case], encoding="utf-8")
    table = read_table(str(path))
    wanted = dict(zip(map(code_of, COLOURS), NAMES))
    assert table == wanted


BAD_TABLES = {
    "a line of one word": ("road\ncar 1 2 3\nbus", "t.txt:3"),
    "two numbers": ("road 1 2", "t.txt:1"),
    "beyond 255": ("road 1 2 256", "t.txt:1"),
    "a colour twice": ("road 1 2 3\ncar 1 2 3", "both 'road' and 'car'"),
    "nothing": ("# road\n", "names no colours"),
    "no name": (",1,2,3", "t.txt:1"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_name_the_line(tmp_path, case):
    text, words = BAD_TABLES[case]
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(str(tmp_path / "t.txt"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dataset"), [("voc", PascalVOC), ("Cityscapes", Cityscapes), ("camvid", CamVid)]
)
def test_known_data_sets(name, dataset):
    """Every class, and void, painted with the data set's palette and read again."""
    table = read_table(name)
    names = [n for n in table.values() if n != "__ignore__"]
    assert names == dataset.CLASS_NAMES
    numbers = {c: names.index(n) if n in names else 255 for c, n in table.items()}
    codes = np.array([code_of(c) for c in dataset.PALETTE])
    assert (to_classes(codes, numbers, None) == np.arange(len(names))).all()
    void = next(code for code, n in table.items() if n == "__ignore__")
    assert to_classes(np.array([void]), numbers, None) == [255]


def test_every_colour_has_its_own_number(tmp_path):
    """Against a loop over pixels."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    codes = read_codes(str(tmp_path / "a.png"))
    assert codes.tolist() == [
        [65536 * int(r) + 256 * int(g) + int(b) for r, g, b in row] for row in colours
    ]
    assert sum(count_codes(codes).values()) == 35


# --------------------------------------------------------------------------------- other colours


def spoiled(root, colour=(1, 2, 3), pixels=5):
    """A set of which one mask has `pixels` of an unknown colour."""
    flags = colour_set(root)
    path = root / "masks/1.png"
    picture = np.array(Image.open(path))
    picture.reshape(-1, 3)[:pixels] = colour
    Image.fromarray(picture).save(path)
    return (*flags, *table_flags(root))


@pytest.mark.parametrize(
    "colour", [(1, 2, 3), (0, 0, 1), (255, 255, 255), (128, 128, 64), (249, 170, 30)]
)
def test_unknown_colours_are_named_with_counts_and_files(tmp_path, colour, capsys):
    flags = spoiled(tmp_path, colour)
    before = tree(tmp_path)
    assert call(*flags) == 2
    error = capsys.readouterr().err
    for words in (f"{colour} (5 pixels in 1 masks, such as 1.png)", "--other_labels"):
        assert words in error
    assert len(error.splitlines()) == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("flag", "value"), [("void", 255), ("background", 0)])
def test_unknown_colours_become_what_was_asked_for(tmp_path, flag, value, capsys):
    assert call(*spoiled(tmp_path), "--other_labels", flag) == 0
    expected = labels_of(1)
    expected.ravel()[:5] = value
    assert (indices(tmp_path / "o/annotations/1.png") == expected).all()
    assert f"1 unknown colours, 5 pixels: now {flag}" in capsys.readouterr().err


def test_smoothed_masks_are_told_as_such(tmp_path, capsys):
    flags = colour_set(tmp_path, write=lambda p, path: p.resize((64, 48)).resize((W, H)).save(path))
    assert call(*flags, *table_flags(tmp_path)) == 2
    assert "JPEG or from smoothed edges" in capsys.readouterr().err


# ----------------------------------------------------------------------------- classes, channels


def test_names_become_void_or_are_chosen(tmp_path, capsys):
    flags = (*colour_set(tmp_path), *table_flags(tmp_path))
    assert call(*flags, "--void", "road") == 0
    expected = np.choose(labels_of(0), [0, 255, 1])
    assert (indices(tmp_path / "o/annotations/0.png") == expected).all()
    flags = (*flags, "--save_dir", tmp_path / "p", "--classes", "traffic light")
    assert call(*flags) == 2
    assert "'road'" in capsys.readouterr().err
    assert call(*flags, "--other_labels", "background") == 0
    assert (indices(tmp_path / "p/annotations/0.png") == (labels_of(0) == 2)).all()
    assert call(*flags, "--void", "rood") == 2
    assert "--void rood: not in" in capsys.readouterr().err


def test_a_table_without_background_has_no_empty_class(tmp_path):
    flags = (*colour_set(tmp_path), *table_flags(tmp_path))
    (tmp_path / "labelmap.txt").write_text("sky:0,0,0::\nroad:128,64,128::\ncar:250,170,30::\n")
    assert call(*flags) == 0
    assert check(tmp_path, names=["sky", "road", "car"]) == 3


@pytest.mark.parametrize("channel", ["red", "green", "blue"])
def test_class_numbers_in_a_channel(tmp_path, channel):
    """As CARLA's semantic camera writes them: in red, the others are 0."""
    flags = colour_set(tmp_path)
    place = ("red", "green", "blue").index(channel)
    for k in range(3):
        colours = np.zeros((H, W, 4), np.uint8)
        colours[..., place], colours[..., 3] = labels_of(k), 255
        colours[0, 0, place] = 255
        Image.fromarray(colours).save(tmp_path / "masks" / f"{k}.png")
    assert call(*flags, "--channel", channel) == 0
    expected = labels_of(2)
    expected[0, 0] = 255
    assert (indices(tmp_path / "o/annotations/2.png") == expected).all()
    assert load(tmp_path / "o", "train").class_names == ["class_0", "class_1", "class_2"]
    flags = (*flags, "--save_dir", tmp_path / "p", "--channel", channel, "--classes")
    assert call(*flags, "road", "car") == 0
    assert load(tmp_path / "p", "train").class_names == ["background", "road", "car"]
    assert call(*flags, "road") == 2  # 2 is no class then


def test_what_cannot_be_meant_is_refused(tmp_path, capsys):
    flags = colour_set(tmp_path)
    for more in ((), ("--channel", "red", *table_flags(tmp_path))):
        assert call(*flags, *more) == 2
        assert "Give --colours" in capsys.readouterr().err
    assert call(*flags, "--colours", tmp_path / "gone.txt") == 2
    assert "gone.txt cannot be read" in capsys.readouterr().err


def test_one_bad_mask_does_not_stop_the_others(tmp_path, capsys):
    flags = (*colour_set(tmp_path, 4), *table_flags(tmp_path))
    (tmp_path / "masks/0.png").write_bytes(b"no picture")
    Image.fromarray(COLOURS[labels_of(1)][:-1]).save(tmp_path / "masks/1.png")
    Image.fromarray(np.zeros((H, W), np.uint16)).save(tmp_path / "masks/2.png")
    image(tmp_path / "images/alone.jpg")
    assert call(*flags, "--val", "0") == 1
    error = capsys.readouterr().err
    for words in ("0.png cannot be read", f"({H}, {W})", "holds no colours of 8 bits", "no mask"):
        assert words in error, error
    assert len(lines(tmp_path / "o", "train")) == 1


@pytest.mark.parametrize(("flag", "count"), [("background", 4), ("skip", 3)])
def test_images_without_a_mask(tmp_path, flag, count, capsys):
    flags = (*colour_set(tmp_path), *table_flags(tmp_path))
    image(tmp_path / "images/alone.jpg")
    assert call(*flags, "--unlabelled", flag, "--val", "0") == 0
    assert "1 images without a mask" in capsys.readouterr().err
    assert len(lines(tmp_path / "o", "train")) == count
    if flag == "background":
        assert not indices(tmp_path / "o/annotations/alone.png").any()

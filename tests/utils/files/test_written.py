# SPDX-License-Identifier: Apache-2.0
"""Lists and paths from other systems: read where they can mean one thing only, else explained."""

import logging
import os
import unicodedata

import pytest

from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.datasets.dataset import read_list_file
from paddleseg_deeplab.datasets.layouts import files_by_name, pair_by_name
from paddleseg_deeplab.prediction.outputs import collect_images
from paddleseg_deeplab.tools.prepare_dataset.binary import Layers
from paddleseg_deeplab.tools.prepare_dataset.jobs import Outcome
from paddleseg_deeplab.tools.prepare_dataset.split import Pairing
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.written import expand_home, find, read_text

COMPOSED, APART = (unicodedata.normalize(form, "straße é ü") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("images/a.jpg", "masks/a.png", f"images/{COMPOSED}.jpg", f"masks/{APART}.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


READ = {  # a line with a comma: what is said of it
    "backslashes": ("images\\a.jpg,masks\\a.png", "2 paths are read with / for \\"),
    "leading slash": ("/images/a.jpg,/masks/a.png", "2 paths are read without the /"),
    "leading backslash": ("\\images\\a.jpg,\\masks\\a.png", "2 paths are read without the /"),
    "home": ("~/images/a.jpg,masks/a.png", "1 paths are read with ~ as the home folder"),
    "accents apart": (f"images/{APART}.jpg,masks/{APART}.png", "1 paths are read with accents"),
    "accents composed": (f"images/{COMPOSED}.jpg,masks/{COMPOSED}.png", "accents as NFD"),
    "both": (f"\\images\\{APART}.jpg,masks/{APART}.png", "1 paths are read with accents as NFC"),
    "as it is": ("images/a.jpg,masks/a.png", ""),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_other_systems(root, case, encoding, caplog):
    line, words = READ[case]
    path = root / "l.txt"
    path.write_bytes((line + "\r\n").encode(encoding))
    with caplog.at_level(logging.INFO):
        [[image, mask]] = read_list_file(str(path), str(root), ",")
    assert os.path.isfile(image)
    assert os.path.isfile(mask)
    assert words in caplog.text if words else not caplog.text
    assert list(map(os.path.isfile, collect_images(path)[0])) == [True]


@pytest.mark.parametrize("names", [("a\\b.jpg", "a/b.jpg"), ("~x/b.jpg", "b.jpg")])
def test_what_is_there_as_written_goes_first(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find(names[0], str(tmp_path)) == (str(tmp_path / names[0]), "as it is")


MISSING = {
    "letter case": ("images/A.JPG", ["images/a.jpg", "letter case counts"]),
    "ending": ("images/a.png", ["images/a.jpg", "the ending differs"]),
    "no folder": ("pictures/2/a.jpg", ["has no folder pictures"]),
    "of a Windows machine": ("C:\\data\\a.jpg", ["Windows machine", "dataset_root"]),
    "of its network": ("\\\\server\\data\\a.jpg", ["Windows machine"]),
    "of another machine": ("/mnt9/data/a.jpg", ["has no folder mnt9"]),
    "nowhere": ("images/zzz.jpg", ["zzz.jpg"]),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_files_come_with_a_hint(root, case):
    written, words = MISSING[case]
    (root / "l.txt").write_text(f"{written},masks/a.png\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_list_file(str(root / "l.txt"), str(root), ",")
    for word in ["1 of the files", "l.txt", *words]:
        assert word in str(caught.value)


def test_a_list_all_of_whose_files_are_missing_is_not_asked_about_for_long(root, monkeypatch):
    asked = []
    monkeypatch.setattr("paddleseg_deeplab.utils.files.written.find", lambda *a: asked.append(a))
    (root / "l.txt").write_text("".join(f"x{k}.jpg y{k}.png\n" for k in range(500)))
    with pytest.raises(UserError, match="1000 of the files"):
        read_list_file(str(root / "l.txt"), str(root))
    assert len(asked) == 100


TEXTS = {
    "UTF-16 without a mark": ("a.jpg b.png".encode("utf-16-le"), "UTF-16"),
    "GBK": ("图像.jpg".encode("gbk"), "no UTF-8 text"),
    "Latin-1": ("größe.jpg".encode("latin-1"), "Save it as UTF-8"),
    "cut UTF-16": ("a.jpg".encode("utf-16")[:-1], "no UTF-8 text"),
    "zero bytes": (b"a\0b", "zero bytes"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_other_encodings_are_explained(tmp_path, case):
    content, words = TEXTS[case]
    path = tmp_path / "l.txt"
    path.write_bytes(content)
    for read in (read_text, lambda p: read_list_file(str(p), str(tmp_path)), collect_images):
        with pytest.raises(UserError, match=words) as caught:
            read(path)
        assert "l.txt" in str(caught.value)
    with pytest.raises(UserError, match=words):
        Dataset("val", str(tmp_path), [], 2, val_path="l.txt", class_names="l.txt")


def test_home_in_settings(root, monkeypatch):
    (root / "l.txt").write_text("images/a.jpg masks/a.png\n")
    data = Dataset("val", "~", [], 2, val_path="~/l.txt")
    assert data.file_list[0][0] == str(root / "images/a.jpg")
    assert len(Dataset("val", "~", [], 2, val_path="/l.txt").file_list) == 1
    assert collect_images("~/images/a.jpg")[0] == [str(root / "images/a.jpg")]
    (root / "~").mkdir()
    monkeypatch.chdir(root)
    assert expand_home("~") == "~"  # a folder of that name is there


@pytest.mark.parametrize(
    "path",
    ["images\\a.jpg", "~/images/a.jpg", f"images/{APART}.jpg", "images\\", ".\\images/a.jpg"],
)
def test_paths_of_flags_are_read_as_they_are_meant(root, monkeypatch, path):
    monkeypatch.chdir(root)
    assert len(collect_images(path)[0]) == (2 if path == "images\\" else 1)
    assert all(map(os.path.isfile, collect_images([path, "images/a.jpg"])[0]))


def test_a_leading_slash_is_meant_below_a_root_only(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="no such image"):
        collect_images("/images/a.jpg")


def test_names_of_pairs_are_compared_with_composed_accents(root):
    """Of layouts by folders, and of prepare_dataset."""
    images, masks = (files_by_name(root / part, end) for part, end in (("images", ".jpg"),
                     ("masks", ".png")))  # fmt: skip
    pairs = pair_by_name(images, masks, "test")
    assert [os.path.basename(p) for pair in pairs for p in pair] == [
        *("a.jpg", "a.png"),
        *(f"{COMPOSED}.jpg", f"{APART}.png"),
    ]
    found, alone, _ = Pairing().find(str(root / "images"), str(root / "masks"), Outcome())
    assert found == [("a.jpg", "a.png"), (f"{COMPOSED}.jpg", f"{APART}.png")]
    assert alone == []
    assert Layers("{image}").match(f"{APART}.png", [COMPOSED]) == (COMPOSED, "")

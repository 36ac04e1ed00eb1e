# SPDX-License-Identifier: Apache-2.0
"""The search in folders: what belongs to a system is passed over, what can be read is taken."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_deeplab.prediction.outputs import collect_images
from paddleseg_deeplab.transforms.reading.files import read_image
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.folders import IMAGE_EXTENSIONS, LeftOut, walk


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


HIDDEN = (
    *(".ipynb_checkpoints/a-checkpoint.jpg", "._a.jpg", "__MACOSX/._a.jpg", "__MACOSX/a.jpg"),
    *(".hidden.png", "sub/.thumbs/a.jpg", "sub/._b.png"),
)


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_ones_are_passed_over_and_counted(tmp_path, name, caplog):
    make(tmp_path, "a.jpg", "sub/b.png", ".DS_Store", name)
    left_out = LeftOut()
    assert walk(tmp_path, IMAGE_EXTENSIONS, left_out=left_out) == ["a.jpg", "sub/b.png"]
    assert left_out.hidden == 1
    with caplog.at_level("INFO"):
        assert len(collect_images(tmp_path)[0]) == 2
    assert "1 hidden" in caplog.text


def test_what_is_not_read_is_said_with_counts(tmp_path, caplog):
    make(tmp_path, "a.jpg", "b.tga", "c.TGA", "d.heic", "notes.txt", "e.json")
    with caplog.at_level("INFO"):
        assert [os.path.basename(p) for p in collect_images(tmp_path)[0]] == ["a.jpg"]
    assert "1 .heic, 2 .tga (not read here: convert them to PNG)" in caplog.text
    with pytest.raises(UserError, match=r"b\.tga: pictures of the kind \.tga are not read"):
        collect_images(tmp_path / "b.tga")


def test_nothing_is_said_of_a_plain_folder(tmp_path, caplog):
    make(tmp_path, "a.jpg", "sub/b.png", "list.txt", ".DS_Store")
    with caplog.at_level("INFO"):
        collect_images(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize("ending", [".jfif", ".JFIF", ".gif", ".GIF", ".avif", ".pnm", ".apng"])
def test_what_can_be_read_is_taken(tmp_path, ending):
    kind = {".jfif": "JPEG", ".pnm": "PPM", ".apng": "PNG"}.get(ending.lower(), ending[1:].upper())
    Image.new("RGB", (8, 6), (90, 90, 90)).save(tmp_path / f"a{ending}", kind)
    if cv2.imread(str(tmp_path / f"a{ending}")) is None:
        pytest.skip(f"this OpenCV does not read {kind}")
    [path] = collect_images(tmp_path)[0]
    # AVIF and JPEG may be off by a level or two.
    assert np.abs(read_image(path) - 90).max() <= 2


def test_linked_folders_are_followed_once(tmp_path):
    make(tmp_path, "in/z/a.jpg", "other/b.jpg")
    os.symlink(tmp_path / "in", tmp_path / "in/again", target_is_directory=True)
    os.symlink(tmp_path / "in/z", tmp_path / "in/a", target_is_directory=True)  # sorts before z
    os.symlink(tmp_path / "other", tmp_path / "in/link", target_is_directory=True)
    os.symlink(tmp_path / "other", tmp_path / "in/link2", target_is_directory=True)
    os.symlink(tmp_path / "gone", tmp_path / "in/broken", target_is_directory=True)
    assert walk(tmp_path / "in", (".jpg",)) == ["link/b.jpg", "z/a.jpg"]


def test_folders_that_are_left_out(tmp_path):
    make(tmp_path, "a.jpg", "out/b.jpg", "sub/out/c.jpg")
    assert walk(tmp_path, (".jpg",), [tmp_path / "out"]) == ["a.jpg", "sub/out/c.jpg"]
    # The folder itself is searched all the same.
    assert walk(tmp_path, (".jpg",), [tmp_path]) == ["a.jpg", "out/b.jpg", "sub/out/c.jpg"]


def test_hidden_folders_above_do_not_count(tmp_path):
    make(tmp_path, ".cache/in/a.jpg")
    folder = tmp_path / ".cache/in"
    assert len(collect_images(folder)[0]) == len(collect_images(f"{folder}/*.jpg")[0]) == 1
    make(tmp_path, "p/__MACOSX/a.jpg", "p/b.jpg")
    assert collect_images(f"{tmp_path}/p/**/*.jpg")[0] == [f"{tmp_path}/p/b.jpg"]

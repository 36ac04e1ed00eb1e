# SPDX-License-Identifier: Apache-2.0
"""Which images are meant, and names that never collide."""

import os

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddleseg_deeplab.prediction.outputs import (
    collect_images,
    output_names,
    parse_outputs,
    report_failures,
    write_ids,
    write_outputs,
)
from paddleseg_deeplab.tools.prepare_dataset.lists import list_text
from paddleseg_deeplab.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "B.PNG", "sub/c.tif", "sub/c d.png", "notes.txt", "out/old.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def relative(found, folder):
    paths, root = found
    return [os.path.relpath(p, folder).replace(os.sep, "/") for p in paths], root


def test_folder(folder):
    names, root = relative(collect_images(folder), folder)
    assert names == ["B.PNG", "a.jpg", "out/old.png", "sub/c d.png", "sub/c.tif"]
    assert root == str(folder)


def test_results_are_not_taken_for_images(folder):
    names, _ = relative(collect_images(folder, exclude=folder / "out"), folder)
    assert "out/old.png" not in names
    # A folder that is its own results folder.
    (folder / "raw_prediction").mkdir()
    (folder / "raw_prediction" / "a.png").write_bytes(b"")
    names, _ = relative(collect_images(folder, exclude=folder), folder)
    assert "a.jpg" in names
    assert "raw_prediction/a.png" not in names


def test_arrays_where_there_are_no_pictures(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2))
    assert collect_images(tmp_path)[0] == [str(tmp_path / "x.npy")]
    (tmp_path / "y.png").write_bytes(b"")
    assert collect_images(tmp_path)[0] == [str(tmp_path / "y.png")]


def test_one_image(folder):
    assert relative(collect_images(folder / "a.jpg"), folder) == (["a.jpg"], str(folder))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg"]),
        ("sub/*", ["sub/c d.png", "sub/c.tif"]),
        ("**/*.png", ["out/old.png", "sub/c d.png"]),
        ("[ab].*", ["a.jpg"]),
    ],
)
def test_glob(folder, pattern, names):
    found = collect_images(os.path.join(str(folder), pattern))
    assert relative(found, folder)[0] == names
    assert all(p.startswith(found[1]) for p in found[0])


def test_list_file(folder):
    lines = ["sub/c d.png", "a.jpg labels/a.png", "# a remark", "", "a.jpg", "gone.png\tx.png"]
    (folder / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    names, _ = relative(collect_images(folder / "list.txt"), folder)
    # In the list's order, once each; what does not exist is reported when it is read.
    assert names == ["sub/c d.png", "a.jpg", "gone.png"]


def test_sequence(folder):
    given = [str(folder / "sub" / "c.tif"), str(folder / "a.jpg")]
    assert collect_images(given) == (given, str(folder))


LINES = {  # of a list: the image is named with a blank in it
    "comma": "sub/c d.png,masks/c d.png",
    "comma and blank": "sub/c d.png, masks/c d.png",
    "semicolon": "sub/c d.png;masks/c d.png",
    "tab": "sub/c d.png\tmasks/c d.png",
    "bar": "sub/c d.png|masks/c d.png",
    "blank": "sub/c d.png masks/c.png",
    "alone": "sub/c d.png",
    "backslash": "sub\\c d.png,masks\\c d.png",
}


@pytest.mark.parametrize("case", LINES)
def test_lists_of_any_separator(folder, case):
    (folder / "list.txt").write_text(LINES[case] + "\na.jpg\n", encoding="utf-8")
    names, _ = relative(collect_images(folder / "list.txt"), folder)
    assert names == ["sub/c d.png", "a.jpg"]


@pytest.mark.parametrize("separator", [None, ",", ";", "|", "\t"])
def test_lists_that_prepare_dataset_writes(folder, separator):
    pairs = [("sub/c d.png", "masks/c d.png"), ("a.jpg", "masks/a.png")]
    texts, _ = list_text({"train.txt": pairs}, separator)
    (folder / "train.txt").write_text(texts["train.txt"], encoding="utf-8")
    names, _ = relative(collect_images(folder / "train.txt"), folder)
    assert names == ["sub/c d.png", "a.jpg"]


def test_many_paths_of_any_kind(folder):
    (folder / "list.txt").write_text("sub/c.tif\n", encoding="utf-8")
    given = ["a.jpg", "list.txt", "sub", "B.*", "a.jpg", "gone.png"]
    names, root = relative(collect_images([str(folder / name) for name in given]), folder)
    assert names == ["a.jpg", "sub/c.tif", "sub/c d.png", "B.PNG", "gone.png"]
    assert root == str(folder)
    with pytest.raises(UserError, match="name at least one"):
        collect_images([])


def test_a_list_of_which_nothing_is_there(folder):
    (folder / "list.txt").write_text("x.jpg\ny.jpg m.png\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of the 2 images"):
        collect_images(folder / "list.txt")


@pytest.mark.parametrize("name", ["nothing", "*.webp", "empty", "notes.txt", "model.bin"])
def test_nothing_there(folder, name):
    (folder / "empty").mkdir()
    (folder / "model.bin").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=name.replace("*", r"\*")):
        collect_images(folder / name)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["r/a.jpg", "r/b.jpg"], ["a", "b"]),
        (["r/x/a.jpg", "r/y/a.jpg"], ["x/a", "y/a"]),
        (["r/a.jpg", "r/a.png", "r/b.png"], ["a_jpg", "a_png", "b"]),
        (["r/a.jpg", "r/a.png", "r/a_jpg.bmp"], ["a_jpg_2", "a_png", "a_jpg"]),
        (["r/A.jpg", "r/a.jpg"], ["A_jpg", "a_jpg_2"]),
        (["r/a.b.jpg"], ["a.b"]),
        (["other/a.jpg", "r/b.jpg"], ["other/a", "b"]),
    ],
)
def test_names(paths, names):
    assert output_names(paths, "r") == [n.replace("/", os.sep) for n in names]


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "x/", "X/", "../"]), st.sampled_from("aAb"),
                  st.sampled_from(["", ".jpg", ".png", "_jpg.png", "_jpg_2.bmp"])),
        unique=True, max_size=12,
    )
)  # fmt: skip
def test_names_never_collide_nor_lead_outside(parts):
    names = output_names([f"r/{''.join(p)}" for p in parts], "r")
    assert len({n.casefold() for n in names}) == len(parts)
    assert not any(os.pardir in n.split(os.sep) or os.path.isabs(n) for n in names)


@pytest.mark.parametrize(("top", "dtype"), [(18, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_ids_survive(tmp_path, top, dtype):
    labels = np.arange(12).reshape(3, 4) * top // 11
    write_ids(str(tmp_path / "ids.png"), labels)
    read = cv2.imread(str(tmp_path / "ids.png"), cv2.IMREAD_UNCHANGED)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, labels)


def test_prob_needs_probabilities(tmp_path):
    image, labels = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), int)
    palette = np.zeros((1, 3), np.uint8)
    with pytest.raises(ValueError, match="probabilities"):
        write_outputs(
            str(tmp_path), "a", image=image, labels=labels, palette=palette, outputs=["prob"]
        )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [("overlay", ("overlay",)), ("raw, prob,raw", ("raw", "prob")), (["raw"], ("raw",))],
)
def test_parse_outputs(text, kinds):
    assert parse_outputs(text) == kinds


@pytest.mark.parametrize("text", ["", "mask", "overlay mask"])
def test_unknown_outputs(text):
    with pytest.raises(UserError, match="overlay, palette, raw, prob"):
        parse_outputs(text)


def test_report():
    assert report_failures([], 3, "o") == 0
    assert report_failures([("a.png", "broken")], 3, "o") == 2

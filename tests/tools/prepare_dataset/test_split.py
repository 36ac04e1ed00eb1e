# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset split: disjoint, complete, the same each time, and read back by `Dataset`."""

import os

import numpy as np
import pytest
from annotated_sets import H, W, call, folders, image, lines, mask, tree

from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.tools.prepare_dataset import lists
from paddleseg_deeplab.utils.errors import UserError

# ------------------------------------------------------------------------------------------ split


def test_split(tmp_path):
    names = [f"v{k % 4}/f{k}" for k in range(20)]
    flags = folders(tmp_path, names, "_mask")
    shares = ("--val", 0.2, "--test", 0.1, "--mask_suffix", "_mask")
    assert call(*flags, *shares, "--dry_run") == 0
    assert not (tmp_path / "train.txt").exists()
    assert call(*flags, *shares) == 0
    sets = {mode: lines(tmp_path, mode) for mode in ("train", "val", "test")}
    assert [len(each) for each in sets.values()] == [14, 4, 2]
    every = [each for some in sets.values() for each in some]
    assert sorted(every) == sorted(f"images/{n}.jpg masks/{n}_mask.png" for n in names)
    for mode, some in sets.items():
        dataset = Dataset(mode, str(tmp_path), [], 2, **{f"{mode}_path": f"{mode}.txt"})
        assert len(dataset) == len(some)
        assert dataset[0]["label"].shape == (H, W)
    before = tree(tmp_path)
    assert call(*flags, *shares) == 0  # the same once more is no change
    assert call(*flags, *shares, "--seed", 1) == 2
    assert tree(tmp_path) == before
    assert call(*flags, "--overwrite", "--mask_suffix", "_mask") == 2  # test.txt would overlap
    assert tree(tmp_path) == before
    assert call(*flags, *shares, "--seed", 1, "--overwrite") == 0
    assert lines(tmp_path, "val") != sets["val"]
    assert call(*flags, *shares, "--seed", 0, "--overwrite") == 0
    assert tree(tmp_path) == before


def test_split_by_folder(tmp_path):
    flags = folders(tmp_path, [f"v{k % 5}/f{k}" for k in range(20)])
    assert call(*flags, "--group_by_folder", "--val", 0.2, "--test", 0.2) == 0
    videos = [{line.split("/")[1] for line in lines(tmp_path, m)} for m in ("train", "val", "test")]
    assert [len(each) for each in videos] == [3, 1, 1]
    assert len(set.union(*videos)) == 5


def test_split_names_what_lacks_its_partner(tmp_path, capsys):
    flags = folders(tmp_path, "abcde")
    image(tmp_path / "images/alone.jpg")
    mask(tmp_path / "masks/left.png", np.zeros((H, W)))
    assert call(*flags) == 1
    text = "".join(capsys.readouterr())
    assert "alone.jpg: has no mask" in text
    assert "left.png: has no image" in text
    assert len(lines(tmp_path, "train")) + len(lines(tmp_path, "val")) == 5


def test_split_of_one_folder(tmp_path):
    for name in "abc":
        image(tmp_path / "all" / f"{name}.png")
        mask(tmp_path / "all" / f"{name}_m.png", np.zeros((H, W)))
    flags = (
        "split",
        "--images",
        tmp_path / "all",
        "--masks",
        tmp_path / "all",
        "--save_dir",
        tmp_path,
    )
    assert call(*flags, "--mask_suffix", "_m") == 0
    every = sorted(lines(tmp_path, "train") + lines(tmp_path, "val"))
    assert every == [f"all/{n}.png all/{n}_m.png" for n in "abc"]


@pytest.mark.parametrize(
    ("names", "separator"),
    [
        (["a", "b"], " "),
        (["a b", "c"], ","),
        (["a b", "c,d"], ";"),
        (["a b,c;d", "#e"], "\t"),
        (["wide\u3000blank", "b"], ","),
        (["猫", "ä"], " "),
    ],
)
def test_separators(tmp_path, names, separator):
    assert call(*folders(tmp_path, names), "--val", 0) == 0
    dataset = Dataset("train", str(tmp_path), [], 2, train_path="train.txt", separator=separator)
    assert sorted(os.path.basename(p[0]) for p in dataset.file_list) == sorted(
        f"{n}.jpg" for n in names
    )


@pytest.mark.parametrize("path", ["a\nb", "a\x85b", " a", "a\u2028", "\udcff"])
def test_names_that_no_list_can_hold(path):
    with pytest.raises(ValueError, match="cannot stand in a list"):
        lists.list_text({"train.txt": [(path, "m.png")]})


def test_split_properties():
    rng = np.random.default_rng(0)
    for seed in range(40):
        sizes = rng.integers(1, 9, rng.integers(3, 30))
        groups = {f"g{k}": [(k, j) for j in range(n)] for k, n in enumerate(sizes)}
        shares = {"val": float(rng.random() * 0.5), "test": float(rng.random() * 0.4)}
        sets = lists.split(groups, shares, seed)
        every = [each for some in sets.values() for each in some]
        assert len(every) == len(set(every)) == sizes.sum()
        assert set(sets) == {"train", "val", "test"}
        assert all(sets.values())
        where = {}
        for name, some in sets.items():
            for group, _ in some:
                assert where.setdefault(group, name) == name
        if (sizes == 1).all() or len(sizes) > 20:
            for name, share in shares.items():
                # As near as groups allow: half of the largest one.
                assert abs(len(sets[name]) - share * sizes.sum()) <= max(sizes) / 2 + 1
        turned = dict(sorted(groups.items(), reverse=True))
        assert lists.split(turned, shares, seed) == sets


@pytest.mark.parametrize(
    ("deal", "text"),
    [
        ({"val": 1.0}, "--val should be at least 0 and below 1, not 1.0"),
        ({"test": -0.1}, "--test should be at least 0 and below 1, not -0.1"),
        ({"val": float("nan")}, "--val should be at least 0"),
        ({"val": 0.6, "test": 0.5}, "together are 1.1: nothing is left to train"),
        ({"seed": -1}, "--seed should be at least 0, not -1"),
    ],
)
def test_what_cannot_be_dealt(deal, text):
    with pytest.raises(UserError, match=text):
        lists.Deal(**deal)


def test_folders_stay_together():
    paths = [f"v{k % 5}/f{k}" for k in range(20)]
    sets = lists.Deal(0.2, 0.2, group_by_folder=True).sets(paths)
    assert sorted([*sets["train"], *sets["val"], *sets["test"]]) == sorted(paths)
    assert [len({path.split("/")[0] for path in some}) for some in sets.values()] == [3, 1, 1]
    single = lists.Deal(0.2, 0.2).sets(paths)
    assert [len(some) for some in single.values()] == [12, 4, 4]
    assert single != lists.Deal(0.2, 0.2, seed=1).sets(paths)


@pytest.mark.parametrize(("images", "masks"), [("d", "d/masks"), ("d/images", "d"), ("d", "e")])
def test_a_folder_inside_the_other(tmp_path, images, masks, capsys):
    for name in "abc":
        image(tmp_path / images / f"{name}.jpg")
        mask(tmp_path / masks / f"{name}.png", np.zeros((H, W)))
    flags = ("split", "--images", tmp_path / images, "--masks", tmp_path / masks)
    assert call(*flags) == 0
    assert "3 pairs" in capsys.readouterr().err

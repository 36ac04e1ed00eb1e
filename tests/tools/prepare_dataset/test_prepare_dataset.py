# SPDX-License-Identifier: Apache-2.0
"""prepare_dataset: what it writes is what the datasets read; nothing is spoilt, all is named."""

import os

import numpy as np
from annotated_sets import H, W, call, image, indices, mask, tree
from PIL import Image
from scipy.io import savemat

from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.datasets import Cityscapes, PascalVOC
from paddleseg_deeplab.utils.visualize import voc_palette

# ------------------------------------------------------------------------------------ Cityscapes

# From Cityscapes' published label table: train id of each label id that has one.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def cityscapes(root, labels=None):
    labels = np.arange(34).repeat(4).reshape(8, 17) if labels is None else labels
    for part, name in (("train", "aachen/aachen_0"), ("val", "ulm/ulm_1")):
        mask(root / "gtFine" / part / f"{name}_gtFine_labelIds.png", labels)
        image(root / "leftImg8bit" / part / f"{name}_leftImg8bit.png", labels.shape)
    return labels


def test_cityscapes(tmp_path):
    labels = cityscapes(tmp_path)
    flags = ("cityscapes", "--dataset_root", tmp_path)
    raw = Cityscapes([], str(tmp_path), "val").load_label(0)
    assert call(*flags, "--dry_run") == 0
    assert not list(tmp_path.rglob("*labelTrainIds*"))
    assert call(*flags) == 0
    made = tmp_path / "gtFine/val/ulm/ulm_1_gtFine_labelTrainIds.png"
    expected = np.vectorize(lambda v: TRAIN_IDS.get(v, 255))(labels)
    assert (indices(made) == expected).all()
    for mode in ("train", "val"):
        dataset = Cityscapes([], str(tmp_path), mode)
        assert dataset.label_map is None
        assert (dataset[0]["label"] == expected).all()
    assert (raw == expected).all()
    made.write_bytes(b"kept")
    assert call(*flags) == 0
    assert made.read_bytes() == b"kept"
    assert call(*flags, "--overwrite") == 0
    assert (indices(made) == expected).all()


def test_one_broken_file_does_not_stop_the_rest(tmp_path, capsys):
    labels = cityscapes(tmp_path)
    mask(tmp_path / "gtFine/train/a/a_gtFine_labelIds.png", np.where(labels == 33, 77, labels))
    (tmp_path / "gtFine/train/a/b_gtFine_labelIds.png").write_bytes(b"no picture")
    assert call("cityscapes", "--dataset_root", tmp_path) == 1
    text = "".join(capsys.readouterr())
    assert "a_gtFine_labelIds.png: holds values that are no label: 77 (4 pixels)" in text
    assert text.count("not done: ") == 2
    made = sorted(p.name for p in tmp_path.rglob("*labelTrainIds.png"))
    assert made == ["aachen_0_gtFine_labelTrainIds.png", "ulm_1_gtFine_labelTrainIds.png"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_several_processes_do_the_same(tmp_path, capsys):
    for name in ("one", "two"):
        cityscapes(tmp_path / name)
        (tmp_path / name / "gtFine/b_gtFine_labelIds.png").write_bytes(b"no picture")
    assert call("cityscapes", "--dataset_root", tmp_path / "one") == 1
    flags = ["cityscapes", "--dataset_root", str(tmp_path / "two"), "--num_workers", "2"]
    assert run_verb("prepare_dataset", flags) == 1
    assert "".join(capsys.readouterr()).count("not done: ") == 2
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_full_disk_stops_at_once(tmp_path, capsys, monkeypatch):
    cityscapes(tmp_path)

    def full(path, labels):
        with open(path, "wb") as file:
            file.write(b"half of")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr("paddleseg_deeplab.tools.prepare_dataset.cityscapes.write_ids", full)
    before = tree(tmp_path)
    assert call("cityscapes", "--dataset_root", tmp_path) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert tree(tmp_path) == before


# ------------------------------------------------------------------------------------ VOC and SBD


def sbd_and_voc(root):
    """SBD labels a, b, c, d; of these VOC has b in train and c in val, and e besides."""
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    rng = np.random.default_rng(0)
    labels = {}
    for name in "abcde":
        image(voc / "JPEGImages" / f"{name}.jpg")
        labels[name] = rng.integers(0, 21, (H, W))
        labels[name][0] = 255
    for name in "abcd":
        (sbd / "cls").mkdir(parents=True, exist_ok=True)
        # As SBD's files: a 1 x 1 struct with Boundaries and Segmentation in it.
        fields = {"Segmentation": labels[name].astype(np.uint8), "Boundaries": np.zeros(3)}
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": fields})
    (sbd / "train.txt").write_text("a\nb\n")
    (sbd / "val.txt").write_text("c\nd\n")
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/train.txt").write_text("b\ne\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\n")
    (voc / "SegmentationClass").mkdir()
    own = {name: (labels[name] + 1) % 21 for name in "bce"}
    for name in "be":
        picture = Image.fromarray(own[name].astype(np.uint8))
        picture.putpalette(voc_palette(256).tobytes())
        picture.save(voc / "SegmentationClass" / f"{name}.png")
    own["c"][3] = 255
    colours = np.vstack([voc_palette(21), np.tile([[224, 224, 192]], (235, 1))])[own["c"]]
    Image.fromarray(colours.astype(np.uint8)).save(voc / "SegmentationClass/c.png")
    return voc, {**labels, **own}


def test_voc_sbd(tmp_path):
    voc, labels = sbd_and_voc(tmp_path)
    roots = ("--sbd_root", tmp_path / "benchmark_RELEASE", "--voc_root", tmp_path / "VOCdevkit")
    before = tree(tmp_path)
    assert call("voc_sbd", *roots, "--dry_run") == 0
    assert tree(tmp_path) == before
    assert call("voc_sbd", *roots) == 0
    # Neither what train.txt adds anyway, nor anything of val.
    assert (voc / "ImageSets/Segmentation/aug.txt").read_text() == "a\nd\n"
    for name in "abcde":  # SBD's, but VOC's own where there is one
        made = indices(voc / "SegmentationClassAug" / f"{name}.png")
        assert (made == labels[name]).all(), name
    dataset = PascalVOC([], str(tmp_path / "VOCdevkit"), "trainaug")
    names = [os.path.basename(pair[0])[0] for pair in dataset.file_list]
    assert names == ["b", "e", "a", "d"]
    for index, name in enumerate(names):
        assert (dataset[index]["label"] == labels[name]).all()
    after = tree(tmp_path)
    assert call("voc_sbd", *roots) == 0
    assert tree(tmp_path) == after


def test_voc_sbd_refuses_to_lose_a_list(tmp_path, capsys):
    voc, _ = sbd_and_voc(tmp_path)
    aug = voc / "ImageSets/Segmentation/aug.txt"
    aug.write_text("d\na\n")
    flags = ("voc_sbd", "--sbd_root", tmp_path / "benchmark_RELEASE/dataset", "--voc_root", voc)
    assert call(*flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert not (voc / "SegmentationClassAug").exists()
    assert call(*flags, "--overwrite") == 0
    assert aug.read_text() == "a\nd\n"


def test_voc_sbd_leaves_out_what_it_could_not_make(tmp_path, capsys):
    voc, _ = sbd_and_voc(tmp_path)
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "cls/a.mat").write_bytes(b"MATLAB 5.0 MAT-file but not really")
    savemat(sbd / "cls/f.mat", {"GTcls": {"Segmentation": np.full((H, W), 21, np.uint8)}})
    savemat(sbd / "cls/g.mat", {"other": 1})
    savemat(sbd / "cls/h.mat", {"GTcls": {"Segmentation": np.zeros((H, H), np.uint8)}})
    (sbd / "val.txt").write_text("c\nd\nf\ng\nh\ni\n")
    for name in "fghi":
        image(voc / f"JPEGImages/{name}.jpg")
    (voc / "JPEGImages/e.jpg").unlink()
    Image.new("RGB", (W, H), (1, 2, 3)).save(voc / "SegmentationClass/c.png")
    assert call("voc_sbd", "--sbd_root", sbd, "--voc_root", tmp_path / "VOCdevkit") == 1
    text = "".join(capsys.readouterr())
    assert text.count("not done: ") == 7
    for words in (
        "a.mat: has no GTcls",
        f"f.mat: holds values that are no label: 21 ({H * W} pixels)",
        "g.mat: has no GTcls",
        f"h.mat: is ({H}, {H})",
        "i.mat does not exist",
        "e.jpg does not exist",
        f"(1, 2, 3) ({H * W} pixels)",
    ):
        assert words in text, words
    assert (voc / "ImageSets/Segmentation/aug.txt").read_text() == "d\n"

# SPDX-License-Identifier: Apache-2.0
"""One's own data: list files, label values, channels, and messages that name the file."""

import logging
import os

import cv2
import numpy as np
import pytest

from paddleseg_deeplab import transforms as T
from paddleseg_deeplab.datasets import (
    Dataset,
    Shapes,
    class_pixel_counts,
    label_table,
    voc_palette,
)
from paddleseg_deeplab.datasets.base import require_labels
from paddleseg_deeplab.datasets.dataset import missing_files, read_list_file
from paddleseg_deeplab.utils.errors import UserError

LABEL = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "my photo"):
        image = rng.integers(0, 256, (3, 4, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        assert cv2.imwrite(str(tmp_path / f"{name}_label.png"), LABEL)
    (tmp_path / "list.txt").write_text("a.png a_label.png\nb.png b_label.png\n")
    return tmp_path


def make(root, mode="train", num_classes=3, transforms=(), **kwargs):
    paths = {"train_path": "list.txt", "val_path": "list.txt", "test_path": "list.txt"}
    return Dataset(mode, str(root), list(transforms), num_classes, **{**paths, **kwargs})


GOOD_LISTS = {
    "plain": ("a.png a_label.png\nb.png b_label.png", " ", 2),
    "blank lines, comments, many blanks": ("\n# mine\n  a.png \t a_label.png  \n\n", " ", 1),
    "windows": ("a.png a_label.png\r\nb.png b_label.png\r\n", " ", 2),
    "byte-order mark": ("\ufeffa.png a_label.png\n", " ", 1),
    "comma": ("a.png,a_label.png\nmy photo.png, my photo_label.png\n", ",", 2),
    "tab": ("my photo.png\tmy photo_label.png", "\t", 1),
    "dots": ("./a.png ./a_label.png", " ", 1),
}


@pytest.mark.parametrize("case", list(GOOD_LISTS))
def test_good_list_files(root, case):
    text, separator, count = GOOD_LISTS[case]
    (root / "l.txt").write_bytes(text.encode("utf-8"))
    pairs = read_list_file(str(root / "l.txt"), str(root), separator)
    assert len(pairs) == count
    for image, label in pairs:
        assert os.path.isfile(image)
        assert os.path.isfile(label)
        assert label == image.replace(".png", "_label.png")


BAD_LISTS = {
    "one path": ("a.png a_label.png\n\nb.png\n", " ", ["l.txt:3", "b.png"]),
    "blank in a path": ("my photo.png my photo_label.png", " ", ["l.txt:1", "separator"]),
    "wrong separator": ("a.png,a_label.png", " ", ["l.txt:1"]),
    "empty label": ("a.png,", ",", ["l.txt:1"]),
    "empty file": ("\n# nothing\n", " ", ["names no files"]),
    "missing": ("a.png a_label.png\nc.png c_label.png", " ", ["2 of the files", "c.png"]),
    "not text": (b"\xff\xfe\x00\x81", " ", ["l.txt"]),
    "empty separator": ("a.png a_label.png", "", ["separator"]),
}


@pytest.mark.parametrize("case", list(BAD_LISTS))
def test_bad_list_files(root, case):
    text, separator, expected = BAD_LISTS[case]
    (root / "l.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_list_file(str(root / "l.txt"), str(root), separator)
    for part in expected:
        assert part in str(caught.value)


def test_only_the_first_missing_files_are_named(root):
    (root / "l.txt").write_text("".join(f"x{i}.png a_label.png\n" for i in range(40)))
    with pytest.raises(UserError, match=r"40 of the files .*x4\.png, \.\.\.") as caught:
        read_list_file(str(root / "l.txt"), str(root))
    assert "x5.png" not in str(caught.value)


def test_test_lists_may_leave_labels_out(root):
    (root / "t.txt").write_text("a.png\nb.png b_label.png\n")
    data = make(root, "test", test_path="t.txt")
    assert [pair[1] is None for pair in data.file_list] == [True, False]
    assert "label" not in data[0]
    assert data[0]["trans_info"] == []
    np.testing.assert_array_equal(data[1]["label"], LABEL)
    with pytest.raises(UserError, match=r"t\.txt:1"):
        make(root, "val", val_path="t.txt")


@pytest.mark.parametrize(
    ("text", "count"),
    [("a.png\n", 1), ("a.png\nb.png\n", 2), ("a.png\nb.png b_label.png\n", 1),
     ("a.png a_label.png\nb.png b_label.png\n", 0)],
)  # fmt: skip
def test_what_is_evaluated_needs_labels(root, text, count):
    (root / "t.txt").write_text(text)
    data = make(root, "test", test_path="t.txt")
    if not count:
        require_labels(data, "val_dataset")
        return
    with pytest.raises(UserError) as caught:
        require_labels(data, "val_dataset")
    for words in ("val_dataset", f"{count} of {len(data)} images", "a.png", "'test'", "predict"):
        assert words in str(caught.value)


def test_sets_that_make_their_labels_are_left_alone(root):
    class Own(Dataset):
        def load_label(self, index):
            return LABEL

    (root / "t.txt").write_text("a.png\n")
    data = Own("test", str(root), [], 3, test_path="t.txt")
    for each in (data, Shapes([], num_samples=1, mode="val"), [1, 2]):
        require_labels(each, "val_dataset")


@pytest.mark.parametrize(
    ("count", "words"), [(2, "set label_map: {0: 0, 255: 1}"), (3, "Which of")]
)
def test_masks_of_0_and_255(root, count, words, caplog):
    for name in ("a", "b"):
        cv2.imwrite(str(root / f"{name}_label.png"), np.where(LABEL == 0, 0, 255).astype(np.uint8))
    make(root, num_classes=count)
    [record] = caplog.records
    assert words in record.getMessage()


def test_list_paths_are_found_from_the_working_directory_first(root, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert len(make(root)) == 2  # below dataset_root
    (work / "list.txt").write_text("b.png b_label.png\n")
    assert len(make(root)) == 1
    with pytest.raises(UserError, match=r"no\.txt is no file"):
        make(root, train_path="no.txt")
    with pytest.raises(UserError, match="needs train_path"):
        make(root, train_path=None)


def test_samples_of_train_and_val(root):
    train = make(root, "train", transforms=[T.RandomHorizontalFlip(1.0)])[0]
    np.testing.assert_array_equal(train["label"], LABEL[:, ::-1])
    assert train["label"].dtype == np.int64
    assert "trans_info" not in train
    val = make(root, "val", transforms=[T.Resize((8, 6))])[0]
    assert val["img"].shape == (3, 6, 8)
    np.testing.assert_array_equal(val["label"], LABEL)
    assert val["trans_info"] == [("resize", (3, 4))]
    assert val["im_path"] == str(root / "a.png")
    bgr = cv2.imread(str(root / "a.png"))
    np.testing.assert_array_equal(make(root)[0]["img"], bgr[:, :, ::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(make(root, to_rgb=False)[0]["img"], bgr.transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(root, channels):
    shape = (3, 4, 4) if channels == 4 else (3, 4)
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert cv2.imwrite(str(root / "a.png"), image)
    data = make(root, img_channels=channels)
    assert data[0]["img"].shape == (channels, 3, 4)
    if channels == 1:
        np.testing.assert_array_equal(data[0]["img"][0], image)
    assert data.img_channels == data.transforms.img_channels == channels


def test_label_map_turns_any_values_into_classes(root):
    mask = np.where(LABEL == 1, 255, 0).astype(np.uint8)
    assert cv2.imwrite(str(root / "a_label.png"), mask)
    data = make(root, num_classes=2, label_map={0: 0, 255: 1})
    np.testing.assert_array_equal(data[0]["label"], LABEL == 1)
    with pytest.raises(UserError, match=r"b_label.png .*does not list: 1, 2"):
        data[1]
    wide = np.array([[1000, 7], [255, 7]], np.uint16)
    assert cv2.imwrite(str(root / "a_label.png"), wide)
    assert cv2.imwrite(str(root / "a.png"), np.zeros((2, 2, 3), np.uint8))
    data = make(root, num_classes=2, label_map={1000: 1, 7: 0})
    np.testing.assert_array_equal(data[0]["label"], [[1, 0], [255, 0]])  # 255 stays void


def test_values_that_are_no_class_are_reported(root):
    label = LABEL.copy()
    label[0, 0], label[1, 1], label[2, 2] = 255, 19, 200
    assert cv2.imwrite(str(root / "b_label.png"), label)
    data = make(root)
    assert data[0]["label"].max() == 2
    with pytest.raises(UserError) as caught:
        data[1]
    for part in ("b_label.png", "19, 200", "0 to 2", "255 is void", "label_map"):
        assert part in str(caught.value)
    wide = np.full((3, 4), 3, np.uint16)
    wide[0, 0] = 65535
    assert cv2.imwrite(str(root / "b_label.png"), wide)
    with pytest.raises(UserError, match="3, 65535"):
        data[1]


class _Messages(logging.Handler):
    """What reaches the package's logger, once each, whatever handlers other tests left above it."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def test_masks_of_0_and_255_without_a_label_map_are_warned_of(root):
    messages = _Messages()
    logging.getLogger("paddleseg_deeplab").addHandler(messages)
    for name in ("a", "b"):
        assert cv2.imwrite(str(root / f"{name}_label.png"), (LABEL == 1) * np.uint8(255))
    make(root, label_map={0: 0, 255: 1})
    assert not messages.texts
    make(root, num_classes=2)
    (told,) = messages.texts
    for part in ("a_label.png", "no class but 0", "label_map: {0: 0, 255: 1}"):
        assert part in told
    messages.texts.clear()
    assert cv2.imwrite(str(root / "b_label.png"), LABEL)
    make(root)
    assert not messages.texts


def test_jpeg_masks_are_named_as_the_cause(root):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[3:9, 4:11] = 255
    assert cv2.imwrite(str(root / "m.jpg"), pixels)
    assert cv2.imwrite(str(root / "i.png"), pixels)
    (root / "list.txt").write_text("i.png m.jpg\n")
    with pytest.raises(UserError, match="JPEG changes values"):
        make(root, label_map={0: 0, 255: 1})[0]


def test_a_subclass_with_paddleseg_s_constructor(root):
    """There a dataset sets its attributes by itself and does not call its parent's constructor."""

    class Own(Dataset):
        NUM_CLASSES = 3

        def __init__(self, transforms, dataset_root=None, mode="train", edge=False):
            self.transforms = T.Compose(transforms)
            self.mode = mode
            self.num_classes = self.NUM_CLASSES
            self.file_list = [[str(root / "a.png"), str(root / "a_label.png")]]

    sample = Own([T.Normalize()], str(root))[0, 1]
    assert sample["img"].shape == (3, 3, 4)
    assert np.array_equal(sample["label"], LABEL)
    assert class_pixel_counts(Own([])).tolist() == [4, 4, 4]
    assert cv2.imwrite(str(root / "a_label.png"), LABEL + 9)
    with pytest.raises(UserError, match="no class: 9, 10, 11"):
        Own([], mode="val")[0]


def test_negative_and_huge_values_are_reported(root):
    data = make(root)
    for value in (-1, 70000):
        label = np.zeros((3, 4), np.int64)
        label[0, 0] = value
        with pytest.raises(UserError, match=str(value)):
            data._to_classes(label, "x.npy")
    assert data._to_classes(np.zeros((3, 4), np.int64), "x.npy").dtype == np.uint8


def test_another_ignore_index_covers_padding_too(root):
    pad = T.Padding(target_size=(5, 3))
    data = make(root, "train", num_classes=3, ignore_index=0, transforms=[pad])
    label = data[0]["label"]
    assert label.shape == (3, 5)
    np.testing.assert_array_equal(label[:, :4], LABEL)
    np.testing.assert_array_equal(label[:, 4], 0)
    np.testing.assert_array_equal(class_pixel_counts(data), [0, 8, 8])


def test_sizes_that_differ_name_both_files(root):
    assert cv2.imwrite(str(root / "a_label.png"), LABEL[:2])
    with pytest.raises(UserError) as caught:
        make(root)[0]
    for part in ("a.png", "a_label.png", "4x3", "4x2"):
        assert part in str(caught.value)


def test_class_names_and_palette(root):
    assert make(root).class_names == ["class_0", "class_1", "class_2"]
    (root / "names.txt").write_text("sky\nroad\n\ncar\n")
    assert make(root, class_names="names.txt").class_names == ["sky", "road", "car"]
    assert make(root, class_names=["x", "y", "z"]).class_names == ["x", "y", "z"]
    colours = [[0, 0, 0], [1, 2, 3], [255, 0, 9]]
    np.testing.assert_array_equal(make(root, palette=colours).palette, colours)
    np.testing.assert_array_equal(make(root).palette, [[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    # Two further rows of the devkit's table.
    np.testing.assert_array_equal(voc_palette(21)[[15, 20]], [[192, 128, 128], [0, 64, 128]])
    assert len(np.unique(voc_palette(255), axis=0)) == 255


class Mine(Dataset):
    """A user's, with a constructor of its own."""

    def __init__(self, folder):
        super().__init__("train", folder, [], 3, train_path="list.txt")


def test_a_set_with_faults_can_be_opened_to_tell_them_all(root):
    (root / "list.txt").write_text("a.png a_label.png\nlonely\nno.png no_label.png\n1 2 3\n")
    for _ in range(2):  # nothing is kept from one to the next
        data = Mine.with_faults(folder=str(root))
        assert type(data) is Mine
        assert data.faults == [
            ("bad_line", f"{root / 'list.txt'}:2", "'lonely'"),
            ("bad_line", f"{root / 'list.txt'}:4", "'1 2 3'"),
        ]
        assert len(data.file_list) == 2
        assert missing_files(data.file_list) == [str(root / "no.png"), str(root / "no_label.png")]
    with pytest.raises(UserError, match=r"list\.txt:2"):
        Mine(str(root))


BAD_SETTINGS = [
    ({"mode": "predict"}, "train, val, test"),
    ({"num_classes": 1}, "num_classes"),
    ({"num_classes": 256}, "num_classes"),
    ({"num_classes": "3"}, "num_classes"),
    ({"num_classes": True}, "num_classes"),
    ({"img_channels": 0}, "img_channels"),
    ({"edge": True}, "edge"),
    ({"class_names": ["a", "b"]}, "2 names for 3 classes"),
    ({"class_names": "no.txt"}, "no.txt"),
    ({"palette": [[0, 0, 0]]}, "palette"),
    ({"palette": [[0, 0, 300]] * 3}, "palette"),
    ({"label_map": [0, 1]}, "label_map"),
    ({"label_map": {}}, "label_map"),
    ({"label_map": {0: 3}}, "turns 0 into 3"),
    ({"label_map": {-1: 0}}, "-1"),
    ({"label_map": {"x": 0}}, "'x'"),
    ({"separator": ""}, "separator"),
    ({"seed": -1}, "seed"),
]


@pytest.mark.parametrize(("kwargs", "text"), BAD_SETTINGS)
def test_bad_settings_are_named(root, kwargs, text):
    with pytest.raises(UserError) as caught:
        make(root, **kwargs)
    assert text in str(caught.value)


def test_a_missing_root_and_compose_of_other_channels(root):
    with pytest.raises(UserError, match="dataset_root is not set"):
        Dataset("train", None, [], 2)
    with pytest.raises(UserError, match="no folder"):
        make(root / "nowhere")
    with pytest.raises(UserError, match="made for 1 channels"):
        Dataset("train", root, T.Compose([], img_channels=1), 3, train_path="list.txt")


def test_keys_of_index_and_epoch_seed_the_transforms(root):
    noise = [T.RandomNoise(prob=1.0)]
    data = make(root, transforms=noise, seed=5)
    first = data[1, 3]["img"]
    np.testing.assert_array_equal(first, make(root, transforms=noise, seed=5)[1, 3]["img"])
    assert not np.array_equal(first, data[1, 4]["img"])
    assert not np.array_equal(first, make(root, transforms=noise, seed=6)[1, 3]["img"])
    with pytest.raises(IndexError):
        data[2]


def test_label_table_by_a_literal_case():
    table = label_table({10: 1, 20: 0, 30: 255}, 2, 255)
    assert {int(v): int(table[v]) for v in np.flatnonzero(table >= 0)} == {
        10: 1,
        20: 0,
        30: 255,
        255: 255,
    }

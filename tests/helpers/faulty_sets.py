# SPDX-License-Identifier: Apache-2.0
"""A small sound set of images and labels, and the ways to spoil it, with what is to be found."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import yaml
from picture_files import png, turned
from PIL import Image

from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.datasets import Dataset

W, H, CLASSES = 24, 16, 3
COUNTS = {"train": 6, "val": 3}


def picture(seed, size=(H, W), channels=3):
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def label(values=(0, 1, 2), size=(H, W), dtype=np.uint8):
    """Equal vertical stripes of the values, and a void row at the bottom."""
    stripes = np.asarray(values, dtype)[np.arange(size[1]) * len(values) // size[1]]
    full = np.tile(stripes, (size[0], 1))
    full[-1] = 255
    return full


class Folder:
    """A sound set of PNG pairs, with its config, to be spoilt."""

    def __init__(self, root):
        self.root = Path(root)
        self.lists = {mode: [] for mode in COUNTS}
        for mode, count in COUNTS.items():
            for k in range(count):
                name = f"{mode}{k}"
                self.image(f"{name}.png", picture([k, count]))
                self.label(f"{name}_l.png", label())
                self.lists[mode].append(f"{name}.png {name}_l.png")
        self.settings = {"num_classes": CLASSES}
        self.transforms = []

    def image(self, name, array):
        cv2.imwrite(str(self.root / name), array)

    def label(self, name, array):
        Image.fromarray(array).save(self.root / name)

    def bytes(self, name, content):
        (self.root / name).write_bytes(content)

    def cut(self, name, share=0.6):
        content = (self.root / name).read_bytes()
        self.bytes(name, content[: int(len(content) * share)])

    def all_labels(self, array):
        for mode, count in COUNTS.items():
            for k in range(count):
                self.label(f"{mode}{k}_l.png", array)

    def config(self):
        dic = {"batch_size": 2, "iters": 2}
        for mode, lines in self.lists.items():
            (self.root / f"{mode}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            dic[f"{mode}_dataset"] = {
                "type": "Dataset",
                "mode": mode,
                "dataset_root": str(self.root),
                f"{mode}_path": f"{mode}.txt",
                "transforms": self.transforms,
                **self.settings,
            }
        path = self.root / "config.yml"
        path.write_text(yaml.safe_dump(dic), encoding="utf-8")
        return str(path)

    def datasets(self):
        self.config()
        paths = {f"{mode}_path": f"{mode}.txt" for mode in COUNTS}
        return {m: Dataset(m, str(self.root), [], **paths, **self.settings) for m in COUNTS}


def run(folder, *flags):
    """(exit status, report.json, report.md) of the command."""
    out = folder.root.parent / "report"
    shutil.rmtree(out, ignore_errors=True)
    status = run_verb(
        "check_dataset", ["--config", folder.config(), "--save_dir", str(out), *flags]
    )
    text = (out / "report.json").read_text(encoding="utf-8")
    return status, json.loads(text), (out / "report.md").read_text(encoding="utf-8")


# Changes that leave the set sound.


def grey_jpeg(folder):
    Image.fromarray(picture(9, (64, 64), 1)).save(folder.root / "train0.jpg", progressive=True)
    folder.label("train0_l.png", label(size=(64, 64)))
    folder.lists["train"][0] = "train0.jpg train0_l.png"
    folder.settings["img_channels"] = 1
    for mode, count in COUNTS.items():
        for k in range(count):
            folder.image(f"{mode}{k}.png", picture([k, count], channels=1))


def turned_with_its_label(folder, size=(W, H)):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(picture(9, size)).save(folder.root / "train0.jpg", exif=exif)
    folder.lists["train"][0] = "train0.jpg train0_l.png"


def grey_label_in_colour_file(folder):
    folder.label("train0_l.png", np.repeat(label()[:, :, None], 3, 2))


def palette_label(folder):
    Image.fromarray(label()).convert("P").save(folder.root / "train0_l.png")


def arrays(folder):
    np.save(folder.root / "train0.npy", picture(9).astype(np.float32))
    np.save(folder.root / "train0_l.npy", label(dtype=np.int64))
    folder.lists["train"][0] = "train0.npy train0_l.npy"


def mapped_masks(folder):
    folder.all_labels(np.where(label() == 1, 255, 0).astype(np.uint8))
    folder.settings.update(num_classes=2, label_map={0: 0, 255: 1})


def other_void(folder):
    folder.all_labels(np.where(label() == 255, 9, label()).astype(np.uint8))
    folder.settings["ignore_index"] = 9


def data_after_the_end(folder):
    Image.fromarray(picture(9)).save(folder.root / "train0.jpg", quality=95)
    with open(folder.root / "train0.jpg", "ab") as file:
        file.write(b"a camera's own data" * 20)
    folder.lists["train"][0] = "train0.jpg train0_l.png"


def colour_labels_of(folder, palettes):
    """Label files with palettes: {name: colours of 0, 1, 2}."""
    for name, colours in palettes.items():
        image = Image.fromarray(label())
        image.putpalette(np.uint8([*colours, *[(9, 9, 9)] * 252, (255, 255, 255)]).ravel())
        image.save(folder.root / name)


BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)


def palettes_that_agree(folder):
    """A class that only some of them have, greys, and no palette at all."""
    one, other = (BLACK, RED, GREEN), (BLACK, RED, BLUE)
    colour_labels_of(folder, {"train0_l.png": one, "val0_l.png": one})
    palette_label(folder)
    colour_labels_of(folder, {"train1_l.png": one})
    image = Image.fromarray(label((0, 1)))  # its 2 has another colour, and no pixel
    image.putpalette(np.uint8([*other, *[(9, 9, 9)] * 253]).ravel())
    image.save(folder.root / "train2_l.png")


def turned_likewise(folder):
    """Picture and mask with the same orientation, as tools write them that keep the field."""
    folder.bytes("train0.png", turned(picture(9), 3, "PNG"))
    folder.bytes("train0_l.png", turned(label(), 3, "PNG"))


def deep(folder, most, normalize=None):
    """All pictures of 16 bits, up to a number."""
    folder.transforms = [{"type": "Normalize", **(normalize or {})}]
    for mode, count in COUNTS.items():
        for k in range(count):
            numbers = picture([k, count]).astype(np.uint16) * (most // 255)
            folder.bytes(f"{mode}{k}.png", png(numbers, 16, 2))


def deep_and_bright(folder):
    deep(folder, 65535)


def deep_and_one_is_dark(folder):
    deep(folder, 65535)
    folder.bytes("train0.png", png(picture(9).astype(np.uint16), 16, 2))


def twelve_bits_as_expected(folder):
    deep(folder, 4095, {"mean": [0.03], "std": [0.03]})


def floats_without_normalize(folder):
    np.save(folder.root / "train0.npy", picture(9).astype(np.float32) / 255)
    folder.lists["train"][0] = "train0.npy train0_l.png"


SOUND = [
    palettes_that_agree,
    turned_likewise,
    deep_and_bright,
    deep_and_one_is_dark,
    twelve_bits_as_expected,
    floats_without_normalize,
    grey_jpeg,
    turned_with_its_label,
    grey_label_in_colour_file,
    palette_label,
    arrays,
    mapped_masks,
    other_void,
    data_after_the_end,
]


# Changes that spoil it.


def as_jpeg(folder, name="train0", **settings):
    Image.fromarray(picture(9)).save(folder.root / f"{name}.jpg", **settings)
    folder.lists["train"][0] = f"{name}.jpg train0_l.png"


def bad_line(folder):
    folder.lists["train"].insert(2, "alone.png")


def image_missing(folder):
    (folder.root / "train2.png").unlink()


def both_missing(folder):
    folder.lists["val"].append("gone.png gone_l.png")


def image_is_text(folder):
    folder.bytes("val1.png", b"<html>not found</html>")


def image_is_empty(folder):
    folder.bytes("val1.png", b"")


def image_with_a_wrong_byte(folder):
    content = bytearray((folder.root / "train1.png").read_bytes())
    content[len(content) // 2] ^= 0x10
    folder.bytes("train1.png", bytes(content))


def label_is_text(folder):
    folder.bytes("train1_l.png", b"no picture")


def jpeg_cut(folder):
    as_jpeg(folder)
    folder.cut("train0.jpg", 0.7)


def jpeg_with_a_tail_of_zeros(folder):
    as_jpeg(folder)
    content = (folder.root / "train0.jpg").read_bytes()
    folder.bytes("train0.jpg", content[: len(content) * 2 // 3].ljust(len(content), b"\0"))


def jpeg_without_its_end(folder):
    as_jpeg(folder, progressive=True)
    folder.bytes("train0.jpg", (folder.root / "train0.jpg").read_bytes()[:-2])


def png_cut(folder):
    folder.cut("val0.png")


def bmp_cut(folder):
    folder.image("train0.bmp", picture(9))
    folder.cut("train0.bmp")
    folder.lists["train"][0] = "train0.bmp train0_l.png"


def array_cut(folder):
    arrays(folder)
    folder.cut("train0.npy")


def label_cut(folder):
    folder.cut("train3_l.png", 0.7)


def label_smaller(folder):
    folder.label("train1_l.png", label(size=(H, W - 2)))
    folder.label("val2_l.png", label(size=(H - 1, W)))


def turned_alone(folder):
    turned_with_its_label(folder, (H, W))


def too_few_channels(folder):
    folder.settings["img_channels"] = 4
    for mode, count in COUNTS.items():
        for k in range(count):
            folder.image(f"{mode}{k}.png", picture([k, count], channels=4 if k else 3))


def too_many_channels(folder):
    np.save(folder.root / "train0.npy", picture(9, channels=5))
    folder.lists["train"][0] = "train0.npy train0_l.png"


def colour_labels(folder):
    palette = np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    for k in (1, 4):
        folder.label(f"train{k}_l.png", palette[label() % 3])


def fractions(folder):
    np.save(folder.root / "a.npy", label().astype(np.float32))
    np.save(folder.root / "b.npy", label()[None])
    folder.lists["train"][0] = "train0.png a.npy"
    folder.lists["train"][1] = "train1.png b.npy"


def stray_values(folder):
    spoilt = label()
    spoilt[0, :5], spoilt[1, :2] = 200, 77
    folder.label("train4_l.png", spoilt)
    folder.label("val0_l.png", np.where(label() == 2, 3, label()).astype(np.uint8))


def wide_values(folder):
    spoilt = label(dtype=np.int32)
    spoilt[0, :3], spoilt[1, :2] = -1, 70000
    np.save(folder.root / "a.npy", spoilt)
    folder.lists["train"][0] = "train0.png a.npy"


def masks(folder):
    folder.all_labels(np.where(label() == 1, 255, 0).astype(np.uint8))
    folder.settings["num_classes"] = 2


def unlisted_value(folder):
    folder.settings["label_map"] = {0: 0, 1: 1, 2: 2}
    folder.label("train0_l.png", np.where(label() == 255, 7, label()).astype(np.uint8))


def all_void(folder):
    for k in range(COUNTS["val"]):
        folder.label(f"val{k}_l.png", np.full((H, W), 255, np.uint8))


def one_void(folder):
    """All of it, in a JPEG besides."""
    folder.label("train0_l.jpg", np.full((H, W), 255, np.uint8))
    folder.lists["train"][0] = "train0.png train0_l.jpg"


def same_file_in_both(folder):
    folder.lists["val"].append(folder.lists["train"][1])


def copy_in_both(folder):
    image = cv2.imread(str(folder.root / "train1.png"))
    folder.image("val1.bmp", image)
    folder.lists["val"][1] = "val1.bmp val1_l.png"


def copies(folder):
    for k in (0, 3):
        shutil.copy(folder.root / "train2.png", folder.root / f"train{k}.png")


def copy_with_another_label(folder):
    shutil.copy(folder.root / "train2.png", folder.root / "train5.png")
    folder.label("train5_l.png", label((2, 1, 0)))


def repeats(folder):
    folder.lists["train"] += [folder.lists["train"][0]] * 2


def no_class_2(folder):
    for k in range(COUNTS["val"]):
        folder.label(f"val{k}_l.png", label((0, 1)))


def grey_and_transparent(folder):
    folder.image("train0.png", picture(9, channels=1))
    folder.image("train1.png", picture(8, channels=4))


def larger_crop(folder):
    folder.transforms = [{"type": "RandomPaddingCrop", "crop_size": [W, H + 4]}]
    folder.image("train0.png", picture(9, (H + 4, W)))
    folder.label("train0_l.png", label(size=(H + 4, W)))


def scene(labels):
    """A picture that shows what its mask says, and some noise: [H, W, 3]."""
    grey = np.uint8([40, 120, 200, 250])[np.minimum(labels, 3)]
    noise = np.random.default_rng(0).integers(0, 10, (*labels.shape, 3), dtype=np.uint8)
    return grey[:, :, None] - noise


def turned_by_180(folder):
    """Its mask was drawn on the pixels as they are stored."""
    folder.bytes("train0.jpg", turned(scene(label()), 3, "JPEG", quality=95))
    folder.lists["train"][0] = "train0.jpg train0_l.png"


def mirrored_mask(folder):
    folder.image("train1.png", scene(label()))
    folder.bytes("train1_l.png", turned(label(), 2, "PNG"))


def turned_squares(folder):
    """One of three masks fits as it is read, one the stored pixels, one is all of a class."""
    square = label(size=(32, 32))
    for k, (number, drawn) in enumerate(((6, np.rot90(square)), (8, square), (6, square))):
        flat = k == 2
        labels = np.ones_like(square) if flat else square
        folder.bytes(f"val{k}.png", turned(scene(1 * labels if flat else drawn), number, "PNG"))
        folder.label(f"val{k}_l.png", labels)


def palettes_that_differ(folder):
    """Red is 1 in most, and 2 in one."""
    usual = (BLACK, RED, GREEN)
    names = ("train0_l.png", "train2_l.png", "val1_l.png")
    colour_labels_of(folder, dict.fromkeys(names, usual))
    colour_labels_of(folder, {"train3_l.png": (BLACK, GREEN, RED)})


def two_and_four_bits(folder):
    for k, bits in enumerate((2, 4)):
        folder.bytes(f"train{k}_l.png", png(np.minimum(label(), 2), bits))


def twelve_bits(folder):
    deep(folder, 4095)


def floats_up_to_one(folder):
    floats_without_normalize(folder)
    folder.transforms = [{"type": "Normalize"}]


# Change; kind, set and count of what is found; the first file; words of its detail.
FAULTS = [
    (bad_line, "bad_line train 1", "train.txt:3", "alone.png"),
    (image_missing, "image_missing train 1", "train2.png", ""),
    (both_missing, "image_missing val 1, label_missing val 1", "gone.png", ""),
    (image_is_text, "image_unreadable val 1", "val1.png", "broken"),
    (image_is_empty, "image_unreadable val 1", "val1.png", "an empty file"),
    (image_with_a_wrong_byte, "image_unreadable train 1", "train1.png", "checksum"),
    (label_is_text, "label_unreadable train 1", "train1_l.png", "Pillow"),
    (jpeg_cut, "image_truncated train 1", "train0.jpg", "without an end marker"),
    (jpeg_with_a_tail_of_zeros, "image_truncated train 1", "train0.jpg", "end marker"),
    (jpeg_without_its_end, "image_truncated train 1", "train0.jpg", "end marker"),
    (png_cut, "image_truncated val 1", "val0.png", "without its last chunk"),
    (bmp_cut, "image_truncated train 1", "train0.bmp", "truncated"),
    (array_cut, "image_truncated train 1", "train0.npy", ""),
    (label_cut, "label_truncated train 1", "train3_l.png", "last chunk"),
    (label_smaller, "size_mismatch train 1, size_mismatch val 1", "train1_l.png", "label 22x16"),
    (turned_alone, "size_mismatch train 1", "train0_l.png", "EXIF"),
    (
        too_few_channels,
        "image_channels train 1, image_channels val 1",
        "train0.png",
        "is 4",
    ),
    (too_many_channels, "image_channels train 1", "train0.npy", "5 channels"),
    (colour_labels, "label_colours train 2", "train1_l.png", "mode RGB, 3 colours"),
    (fractions, "label_not_ids train 2", "a.npy", "float32"),
    (
        stray_values,
        "label_values train 1, label_values val 1",
        "train4_l.png",
        "77 (2 pixels)",
    ),
    (wide_values, "label_values train 1", "a.npy", "-1 (3 pixels), 70000 (2"),
    (masks, "mask_0_255 train 6, mask_0_255 val 3", "train0_l.png", "120 pixels are 255"),
    (unlisted_value, "label_values train 1", "train0_l.png", "7 (24 pixels)"),
    (all_void, "nothing_labelled val 1, void_labels val 3", "val", ""),
    (one_void, "void_labels train 1, jpeg_labels train 1", "train0_l.jpg", ""),
    (same_file_in_both, "leak train and val 1", "train1.png", "the same file"),
    (copy_in_both, "leak train and val 1", "val1.bmp", "train1.png"),
    (copies, "duplicate_images train 2", "train2.png", "train0.png"),
    (copy_with_another_label, "labels_differ train 1", "train5.png", "train2.png"),
    (repeats, "repeated_entries train 2", "train0.png", "3 times"),
    (no_class_2, "empty_class val 1", "2 class_2", ""),
    (grey_and_transparent, "mixed_channels train 2", "train0.png", "mode L"),
    (larger_crop, "small_images train 5", "train1.png", "24x16"),
    (turned_by_180, "turned_images train 1", "train0_l.png", "mask 1: not turned; edges below"),
    (mirrored_mask, "turned_images train 1", "train1_l.png", "mask 2: left and right swapped"),
    (turned_squares, "turned_images val 3", "val1_l.png", "picture 8: turned to the left"),
    (
        palettes_that_differ,
        "palettes_differ train and val 1",
        "train3_l.png",
        "1 is (0, 200, 0), and (200, 0, 0) in 3 others",
    ),
    (two_and_four_bits, "numbers_differ train 2", "train0_l.png", "1 is 85 there"),
    (twelve_bits, "dim_images train 6, dim_images val 3", "train0.png", "at most 15.9 of 255"),
    (floats_up_to_one, "dim_images train 1", "train0.npy", "at most 1 of 255"),
]
# The first line that is to paste.
PASTE = {
    stray_values: "label_map: {0: 0, 1: 1, 2: 2, 77: 255, 200: 255}",
    masks: "label_map: {0: 0, 255: 1}",
    unlisted_value: "label_map: {0: 0, 1: 1, 2: 2, 7: 255}",
}

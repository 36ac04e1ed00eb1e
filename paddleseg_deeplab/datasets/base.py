# SPDX-License-Identifier: Apache-2.0
"""What all datasets share: from a label file and an image to a checked, transformed sample."""

import contextlib
import copy
import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np

from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.transforms.checks import Sample, Transform
from paddleseg_deeplab.transforms.reading.files import nodata_of, read_image, read_label
from paddleseg_deeplab.transforms.reading.values import VOID, mark_void, parse_nodata
from paddleseg_deeplab.utils.errors import UserError, first_few
from paddleseg_deeplab.utils.files.written import read_text
from paddleseg_deeplab.utils.visualize import voc_palette

Transforms = Sequence[Transform] | Compose
Pair = list[Any]  # [image path, label path or None]
Faults = list[tuple[str, str, str]]  # (kind, place, detail) of each
_Item = TypeVar("_Item")


class BaseDataset:
    """Images with labels; plain Python, one for every framework's loader.

    Attributes:
        mode (str): Which part; only "train" transforms the label together with the image.
        num_classes (int): Number of classes, background included.
        img_channels (int): Channels of an image.
        ignore_index (int): The label of void pixels, 255.
        file_list (list[list]): [image path, label path or None] of each sample.
        class_names (list[str]): One name for each class.
        palette (numpy.ndarray): uint8 [num_classes, 3], RGB.
        transforms (Compose): What is done to each sample.
        seed (int): Seed of the random transforms.
        nodata (float or None): Pixels of which a channel has this value in the file are void, and
            0 in the image; see `Compose`.
        takes_epoch (bool): Tells the training loop that (index, epoch) is a key.
        faults (list or None): See `with_faults`.
    """

    mode: str
    num_classes: int
    file_list: list[Pair]
    class_names: list[str]
    palette: np.ndarray
    transforms: Compose
    takes_epoch = True
    # PaddleSeg's own datasets set mode, transforms, num_classes and file_list in a constructor
    # that does not call their parent's; so here is the rest.
    ignore_index = VOID
    img_channels = 3
    seed = 0
    edge = False
    to_rgb = True
    label_map: dict[int, int] | None = None
    faults: Faults | None = None
    _table: np.ndarray | None = None

    @classmethod
    def with_faults(cls, **settings: Any) -> "BaseDataset":
        """Opens a set whose lists have faults, to tell them all (`check_dataset`).

        Args:
            **settings: What the constructor takes.

        Returns:
            BaseDataset: Its `faults` has (kind, place, detail) of each: "bad_line" with file:line,
            "unpaired" with the file. Missing files stay in `file_list`, where
            `dataset.missing_files` finds them.

        Raises:
            UserError: As the constructor, but for such faults.
        """
        dataset = cls.__new__(cls)
        dataset.faults = []  # the constructor fills it in place of raising
        cls.__init__(dataset, **settings)
        return dataset

    def _refuse_edge(self, edge):
        if edge:
            raise UserError(
                f"{type(self).__name__}: edge labels (edge: True) serve networks other than "
                "DeepLab; leave it out."
            )

    def _set_up_classes(
        self, num_classes, *, ignore_index=VOID, class_names=None, palette=None, label_map=None
    ):
        """Checks and stores what labels mean."""
        name = type(self).__name__
        # 255 classes: labels are often 8-bit, and one value must be left for void pixels.
        self.num_classes = _integer(name, "num_classes", num_classes, 2, 255)
        self.ignore_index = _integer(name, "ignore_index", ignore_index, 0, 65535)
        self.class_names = _names(name, class_names, self.num_classes)
        self.palette = _palette(name, palette, self.num_classes)
        self._use_label_map(label_map)

    def _set_up_samples(
        self, mode, modes, transforms, *, img_channels=3, to_rgb=True, nodata=None, seed=0
    ):
        """Checks and stores which part of the data is read, and what is done to each sample."""
        name = type(self).__name__
        self.mode = str(mode).lower()
        if self.mode not in modes:
            raise UserError(f"{name}: mode must be one of {', '.join(modes)}, not {mode!r}.")
        self.img_channels = _integer(name, "img_channels", img_channels, 1, 512)
        self.seed = _integer(name, "seed", seed, 0, 2**32 - 1)
        self.to_rgb = to_rgb
        self.transforms = _compose(name, transforms, to_rgb, self.img_channels, nodata)
        self.file_list = []

    def _use_label_map(self, label_map):
        name = type(self).__name__
        self.label_map = _label_map(name, label_map, self.num_classes, self.ignore_index)
        self._table = label_table(self.label_map, self.num_classes, self.ignore_index)

    @property
    def nodata(self) -> float | None:
        return getattr(self.transforms, "nodata", None)

    def __len__(self) -> int:
        return len(self.file_list)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample.

        Args:
            key (int or tuple): The index, or (index, epoch): random transforms draw from
                `default_rng([seed, epoch, index])`, so workers and restarts change nothing.

        Returns:
            dict: "img" float32 [C, H, W]; "label" int64 [H, W] where there is one, void as
            `ignore_index`: in mode "train" transformed with the image, else at its original
            size; "im_path" str; outside "train" also "trans_info", which undoes the
            transforms.

        Raises:
            UserError: a file is missing or broken, image and label differ in size, or the
                label holds values that are no class; it names the files.
        """
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        index = self._index(index)
        training = self.mode.startswith("train")
        sample = self._read(index)
        has_label = sample.get("label") is not None
        sample["gt_fields"] = ["label"] if training and has_label else []
        sample["rng"] = np.random.default_rng([self.seed, int(epoch), index])
        out = self._transform(sample)
        result = {"img": out["img"], "im_path": self.file_list[index][0]}
        if has_label:
            label = out["label"].astype(np.int64)
            if self.ignore_index != VOID:
                label[label == VOID] = self.ignore_index
            result["label"] = label
        if not training:
            result["trans_info"] = out["trans_info"]
        return result

    def _read(self, index):
        """The image's path and, where there is one, the label as it was read: [H, W] of classes."""
        path, label_path = self.file_list[index]
        sample = {"img": path}
        if label_path is not None:
            # The label's values are checked here, the sizes of both by Compose.
            own = type(self).load_label is not BaseDataset.load_label
            # Compose marks as void what has no data, without reading the image once more for it.
            sample["label"] = self.load_label(index) if own else self._load_classes(index)
            sample["label_path"] = label_path
        return sample

    def _transform(self, sample):
        """Opens the image, checks its size and runs the transforms: see `Compose.__call__`."""
        return self.transforms(sample)

    def load_image(self, index: int) -> np.ndarray:
        """The untransformed image of a sample: float32 [H, W, C], 0..255, RGB."""
        path = self.file_list[self._index(index)][0]
        return read_image(path, self.img_channels, True, self.nodata)

    def load_label(self, index: int) -> np.ndarray | None:
        """The untransformed label of a sample: uint8 [H, W] of classes, 255 void; or None.

        With `nodata` the image is read too: it says what is void.

        Raises:
            UserError: values that are no class.
        """
        label = self._load_classes(index)
        if label is None or self.nodata is None:
            return label
        path, label_path = self.file_list[self._index(index)]
        mask = nodata_of(path, self.img_channels, self.nodata)
        if mask is not None and mask.shape != label.shape:
            raise UserError(
                f"The label {label_path} is {label.shape}, its image {path} is {mask.shape} "
                "(height, width). Make them equal."
            )
        return mark_void(label, mask)

    def _load_classes(self, index):
        """`load_label` as the label's file alone has it."""
        path = self.file_list[self._index(index)][1]
        return None if path is None else self._to_classes(read_label(path), path)

    def _index(self, index):
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no sample {index} among {len(self)}")
        return index % len(self)

    def _to_classes(self, label, path):
        """Turns the values of a label file into classes, 255 void: uint8 [H, W]."""
        if self._table is None:
            self._use_label_map(None)
        if label.dtype == np.uint8 and label.size:
            small = self._table[:256]
            if self.label_map is None and self.ignore_index == VOID:
                # Classes already: with 1 added, void wraps around to 0.
                if (label + np.uint8(1)).max() <= self.num_classes:
                    return label
            # Two look-ups of 8 bits, each a tenth of one in the table of 16.
            elif not cv2.LUT(label, (small < 0).astype(np.uint8)).any():
                return cv2.LUT(label, small.astype(np.uint8))
        known = (label >= 0) & (label < len(self._table)) if label.dtype != np.uint8 else None
        if known is None or known.all():
            classes = self._table[label]
            if classes.min(initial=0) >= 0:
                return classes.astype(np.uint8)
            known = classes >= 0
        else:
            known &= self._table[np.where(known, label, 0)] >= 0
        values = np.unique(label[~known]).tolist()
        some = first_few(values, 8, ", ...")
        if str(path).lower().endswith((".jpg", ".jpeg")):
            some += " (JPEG changes values: write masks as PNG)"
        if self.label_map is None:
            raise UserError(
                f"The label {path} holds values that are no class: {some}. Classes are 0 to "
                f"{self.num_classes - 1} and {self.ignore_index} is void. Correct num_classes or "
                "ignore_index, or turn values into classes with label_map (for a 0/255 mask: "
                "label_map: {0: 0, 255: 1})."
            )
        raise UserError(
            f"The label {path} holds values that label_map does not list: {some}. Add them, "
            f"with {self.ignore_index} as the class of those to ignore."
        )


def require_labels(dataset: object, section: str) -> None:
    """What trains or is evaluated needs a label for each image.

    Args:
        dataset: Any dataset; one that makes its labels itself is left alone.
        section (str): Its place in the config, for the message.

    Raises:
        UserError: It lists images without one.
    """
    kind = type(dataset)
    if not isinstance(dataset, BaseDataset) or any(
        getattr(kind, name) is not getattr(BaseDataset, name)
        for name in ("__getitem__", "_read", "load_label")
    ):
        return
    pairs = dataset.file_list
    alone = [pair[0] for pair in pairs if len(pair) > 1 and pair[1] is None]
    if alone:
        raise UserError(
            f"{section}: {len(alone)} of {len(pairs)} images have no label, such as {alone[0]} "
            f"(mode {getattr(dataset, 'mode', None)!r}). Name a mask for each in the list, or use "
            "predict, which needs none."
        )


def evenly(items: Sequence[_Item], count: int | None) -> list[_Item]:
    """`count` items of a sequence, evenly spread; all where there are no more, or it is None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def class_pixel_counts(dataset: BaseDataset, max_samples: int | None = None) -> np.ndarray:
    """Counts the pixels of each class, for class weights.

    Args:
        dataset (BaseDataset): Any dataset of this package, with labels.
        max_samples (int): Look at no more than this many samples, evenly spread; None: all.

    Returns:
        numpy.ndarray: int64 [num_classes]; void pixels are not counted.
    """
    total = np.zeros(dataset.num_classes, np.int64)
    for index in evenly(range(len(dataset)), max_samples):
        label = dataset.load_label(index)
        if label is not None:
            counts = np.bincount(label.ravel(), minlength=VOID + 1)
            total += counts[: dataset.num_classes]
    return total


def _integer(name, key, value, low, high):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name}: {key} must be an integer, not {value!r}.")
    value = int(value)
    if not low <= value <= high:
        raise UserError(f"{name}: {key} must be {low} to {high}, not {value}.")
    return value


def _compose(name, transforms, to_rgb, img_channels, nodata):
    nodata = parse_nodata(name, nodata)
    if isinstance(transforms, Compose):
        if transforms.img_channels != img_channels:
            raise UserError(
                f"{name}: its transforms were made for {transforms.img_channels} channels, the "
                f"images have {img_channels}; set img_channels on both."
            )
        if nodata is not None:
            transforms = copy.copy(transforms)
            transforms.nodata = nodata
        return transforms
    if not isinstance(transforms, (list, tuple)):
        raise UserError(f"{name}: transforms must be a list, not {transforms!r}.")
    return Compose(list(transforms), to_rgb=to_rgb, img_channels=img_channels, nodata=nodata)


def names_of_classes(dataset: BaseDataset) -> list[str]:
    """Names of any dataset's classes; those without are class_0, class_1, ..."""
    return list(getattr(dataset, "class_names", None) or _plain_names(dataset.num_classes))


def _plain_names(num_classes):
    return [f"class_{k}" for k in range(num_classes)]


def _names(name, class_names, num_classes):
    if class_names is None:
        return _plain_names(num_classes)
    if isinstance(class_names, (str, os.PathLike)):
        try:
            lines = read_text(class_names).splitlines()
        except UserError as error:
            raise UserError(f"{name}: cannot read class_names: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        source = f"the file {class_names}"
    elif isinstance(class_names, (list, tuple)):
        found, source = [str(each) for each in class_names], "class_names"
    else:
        raise UserError(f"{name}: class_names must be a file or a list, not {class_names!r}.")
    if len(found) != num_classes:
        raise UserError(f"{name}: {source} has {len(found)} names for {num_classes} classes.")
    return found


def _palette(name, palette, num_classes):
    if palette is None:
        return voc_palette(num_classes)
    with contextlib.suppress(ValueError, TypeError):
        table = np.asarray(palette, dtype=np.int64)
        if table.shape == (num_classes, 3) and table.min() >= 0 and table.max() <= 255:
            return table.astype(np.uint8)
    raise UserError(
        f"{name}: palette must hold [red, green, blue], each 0 to 255, for {num_classes} classes."
    )


def _label_map(name, label_map, num_classes, ignore_index):
    """Checks a label_map; returns dict[int, int] or None."""
    if label_map is None:
        return None
    if not isinstance(label_map, dict) or not label_map:
        raise UserError(f"{name}: label_map must be like {{0: 0, 255: 1}}, not {label_map!r}.")
    checked = {}
    for value, target in label_map.items():
        try:
            if float(value) != int(value) or float(target) != int(target):
                raise ValueError("a fraction")
            checked[int(value)] = int(target)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{name}: label_map entry {value!r}: {target!r} is no whole number."
            ) from None
    for value, target in checked.items():
        if not 0 <= value <= 65535:
            raise UserError(f"{name}: label_map value {value} is outside 0 to 65535.")
        if not (0 <= target < num_classes or target in (ignore_index, VOID)):
            raise UserError(
                f"{name}: label_map turns {value} into {target}, which is neither a class "
                f"(0 to {num_classes - 1}) nor the void value {ignore_index}."
            )
    return checked


def label_table(
    label_map: Mapping[int, int] | None, num_classes: int, ignore_index: int
) -> np.ndarray:
    """Class of each label value 0..65535: int16, VOID for void, -1 for values that are no class.

    Void inside is always 255, whatever the files use, because transforms pad with it; a value
    that is void by `ignore_index` and not listed in `label_map` stays void.
    """
    table = np.full(65536, -1, np.int16)
    if label_map is None:
        table[:num_classes] = np.arange(num_classes)
    table[ignore_index] = VOID
    for value, target in (label_map or {}).items():
        table[value] = VOID if target in (ignore_index, VOID) else target
    return table

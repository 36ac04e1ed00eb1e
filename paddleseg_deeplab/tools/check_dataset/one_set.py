# SPDX-License-Identifier: Apache-2.0
"""What a data check gathers about one set: counts, sizes, and what is wrong with single files."""

from collections import Counter
from typing import Any

import numpy as np

from paddleseg_deeplab.datasets.base import BaseDataset, label_table, names_of_classes
from paddleseg_deeplab.tools.check_dataset import turned
from paddleseg_deeplab.tools.check_dataset.files import PairFacts
from paddleseg_deeplab.tools.check_dataset.findings import KINDS, Finding, is_mask, values_finding
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts
from paddleseg_deeplab.utils.errors import first_few

_DIM = 255 / 16  # no value above it: 12 bits in a file of 16, or floats of which white is 1
# What Pillow calls the channels of a file, where OpenCV would convert them without a word.
_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "LA": 2, "P": 3, "RGB": 3, "RGBA": 4, "CMYK": 4}


def loads_files(dataset: BaseDataset) -> bool:
    """Whether a dataset's samples are plain files, read as `BaseDataset` reads them."""
    if not isinstance(dataset, BaseDataset):
        return True
    names = ("load_image", "load_label", "_read", "_to_classes")
    return all(getattr(type(dataset), name) is getattr(BaseDataset, name) for name in names)


class SetCheck:
    """One set while it is checked, and what is known of it then.

    Attributes:
        name (str): "train" or "val".
        dataset: The dataset.
        samples (int): Entries of its list.
        checked (int): Different pairs that were read.
        labelled (int): Labels that could be read.
        counts (numpy.ndarray): int64 [num_classes], pixels; repeated entries count again.
        images_with (numpy.ndarray): int64 [num_classes], labels in which a class occurs.
        void, unknown (int): Pixels that are void, and pixels of values that are no class.
        nodata_pixels (int): Pixels of images without data; those of labelled ones are void too.
        sizes (Counter): Images of each (width, height).
        modes (Counter): Images of each kind of channels in the file.
        orientations (Counter): Images of each EXIF orientation but 1.
        palettes (dict): {((value, colour), ...): [label, ...]} of the palette labels.
        findings (dict): Kind: `Finding`.
    """

    def __init__(
        self,
        name: str,
        dataset: BaseDataset,
        crop_size: tuple[int, int] | None = None,
        std: float | None = None,
    ) -> None:
        self.name, self.dataset, self.std = name, dataset, std
        self.crop_size = crop_size
        self.file_based = loads_files(dataset)
        self.num_classes = int(dataset.num_classes)
        self.img_channels = int(getattr(dataset, "img_channels", 3))
        self.ignore_index = int(getattr(dataset, "ignore_index", VOID))
        # What an embedded set's load_label gives are classes already.
        self.label_map = getattr(dataset, "label_map", None) if self.file_based else None
        self.table = label_table(
            self.label_map, self.num_classes, self.ignore_index if self.file_based else VOID
        )
        self.class_names = names_of_classes(dataset)
        self.samples = len(dataset.file_list)
        # Samples of other sets come as the set itself makes them.
        self.nodata = getattr(dataset, "nodata", None) if self.file_based else None
        self.checked = self.labelled = self.void = self.unknown = self.nodata_pixels = 0
        self.counts = np.zeros(self.num_classes, np.int64)
        self.images_with = np.zeros(self.num_classes, np.int64)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.orientations: Counter[int] = Counter()
        self.palettes: dict[tuple, list[str]] = {}
        self.findings: dict[str, Finding] = {}
        # Values of images that are not finite or too large.
        self.examples: Counter[str] = Counter()
        self.raw: dict[int, list[Any]] = {}  # label value: [pixels, files, first file]
        # Pictures that EXIF turns otherwise than their labels.
        self.turned: list[tuple[str | None, turned.Fit]] = []
        # Greatest values of images of other numbers than 8 bits.
        self.peaks: list[tuple[float, str]] = []
        # (image, label, hash of image, hash of label), for duplicates
        self.entries: list[tuple[str | None, str | None, bytes | None, bytes | None]] = []

    def entries_listed(self) -> list[tuple[str, str | None]]:
        """(image, label or None) of each entry of the list; PaddleSeg's may lack the label."""
        return [(each[0], each[1] if len(each) > 1 else None) for each in self.dataset.file_list]

    def find(self, kind: str, path: str, detail: str = "") -> None:
        self.findings.setdefault(kind, Finding(kind, self.name, advice=KINDS[kind].advice)).add(
            path, detail
        )

    def known(self, value: int) -> bool:
        """Whether a label value is a class or void."""
        return 0 <= value < len(self.table) and self.table[value] >= 0

    def take(self, facts: PairFacts, image: str | None, label: str | None, times: int) -> None:
        """Adds what a pair of files holds."""
        self.checked += 1
        self.nodata_pixels += times * facts.nodata
        for kind, path, detail in facts.problems:
            self.find(kind, path, detail)
        if facts.example and self.nodata is None and self.file_based:
            self.examples[facts.example] += 1
        if facts.size is not None:
            self._take_image(facts, image)
        self.entries.append((image, label, facts.image_hash, facts.label_hash))
        if facts.values is not None:
            self._take_label(facts, label if label is not None else image, times)

    def _take_image(self, facts, image):
        self.sizes[facts.size] += 1
        mode = facts.mode
        self.modes[mode or "?"] += 1
        if facts.orientation != 1:
            self.orientations[facts.orientation] += 1
        if facts.peak is not None:
            self.peaks.append((facts.peak, image))
        if self.img_channels in (1, 3) and _CHANNELS.get(mode, self.img_channels) != (
            self.img_channels
        ):
            self.find("mixed_channels", image, f"mode {mode}")
        if self.crop_size and any(s < c for s, c in zip(facts.size, self.crop_size)):
            self.find("small_images", image, "{}x{}".format(*facts.size))

    def _take_label(self, facts, label, times):
        self.labelled += 1
        here = np.zeros(self.num_classes, np.int64)
        void, bad = 0, {}
        for value, pixels in facts.values.items():
            entry = self.raw.setdefault(value, [0, 0, str(label)])
            entry[0] += pixels
            entry[1] += 1
            if not self.known(value):
                bad[value] = pixels
            elif self.table[value] == VOID:
                void += pixels
            else:
                hidden = facts.nodata_values.get(value, 0)
                void += hidden
                here[self.table[value]] += pixels - hidden
        if bad or facts.other_values:
            listed = [f"{value} ({pixels} pixels)" for value, pixels in bad.items()]
            listed += ["..."] if facts.other_values else []
            self.find("label_values", label, first_few(listed, 8, ", ..."))
        elif void and not here.any():
            self.find("void_labels", label)
        # A mask may be 255 all over; `finish` looks at the values of the whole set.
        if 255 in facts.values and is_mask({0, *facts.values}, self.label_map):
            self.find("mask_0_255", label, f"{facts.values[255]} pixels are 255")
        if facts.fit is not None:
            self.turned.append((label, facts.fit))
        if facts.palette is not None:
            self._take_palette(facts.palette, label)
        if facts.others is not None:
            self.find("numbers_differ", label, f"1 is {facts.others} there")
        if str(label).lower().endswith((".jpg", ".jpeg")) and self.file_based:
            self.find("jpeg_labels", label)
        self.counts += times * here
        self.images_with += here > 0
        self.void += times * void
        self.unknown += times * (sum(bad.values()) + facts.other_values)

    def _take_palette(self, palette, label):
        """Colours of values that are classes; a ramp of greys has none to tell."""
        colours = {v: c for v, c in palette.items() if v != self.ignore_index and c != (v, v, v)}
        if colours:
            self.palettes.setdefault(tuple(colours.items()), []).append(str(label))

    def finish(self) -> None:
        """The findings about the set as a whole."""
        files, masks = (self.findings.pop(k, None) for k in ("label_values", "mask_0_255"))
        common = files is not None and 2 * files.count > self.labelled
        about = values_finding(
            self.name, self.raw, self.dataset, self.label_map, self.known, common=common
        )
        if about is not None:
            found = masks if about.kind == "mask_0_255" else files
            assert found is not None  # each of these files has been noted
            about.count, about.files = found.count, found.files
            self.findings[about.kind] = about
        self._finish_classes(masks=about is not None and about.kind == "mask_0_255")
        values = self.findings.get("image_values")
        if values is not None and self.examples:
            values.paste = [f"nodata: {self.examples.most_common(1)[0][0]}"]
        elif values is not None:
            values.advice = "Repair the files."
        self._finish_turned()
        self._finish_dim()
        small = self.findings.get("small_images")
        if small is not None and self.crop_size is not None:
            width, height = (min(side) for side in zip(*self.sizes))
            small.advice = (
                "The crop of training is {}x{} (width x height), and what is beyond an image "
                "becomes void. A crop of {}x{} would fit into every image at its own size; a "
                "random scaling below 1 makes them smaller still.".format(
                    *self.crop_size, width, height
                )
            )

    def _finish_turned(self):
        """Nothing is said where the size of each mask tells that it was drawn on what is shown."""
        if not any(fit.is_open for _, fit in self.turned):
            return
        order = [turned.STORED, turned.UNKNOWN, turned.READ]
        for label, fit in sorted(self.turned, key=lambda each: order.index(each[1].verdict)):
            self.find("turned_images", label, str(fit))
        verdicts = Counter(fit.verdict for _, fit in self.turned)
        self.findings["turned_images"].advice = (
            "A picture and its mask are read as a viewer shows them. By the edges below the masks' "
            f"borders {verdicts[turned.READ]} fit so, {verdicts[turned.STORED]} fit the pixels as "
            f"they are stored, and of {verdicts[turned.UNKNOWN]} it cannot be told. Look at them; "
            "where masks were drawn on the stored pixels, save the pictures without EXIF "
            "orientation (exiftool -Orientation= FILES)."
        )

    def _finish_dim(self):
        """All images of a set that are not of 8 bits are nearly black for its Normalize."""
        peak = max((peak for peak, _ in self.peaks), default=0)
        # A set whose Normalize divides by a small std is made for small numbers.
        if not 0 < peak <= _DIM or self.std is None or self.std <= _DIM / 255:
            return
        for each, image in self.peaks:
            self.find("dim_images", image, f"at most {each:.3g} of 255")
        white = 1 if peak <= 1 else min(2.0 ** np.ceil(np.log2(peak)), 16)
        self.findings["dim_images"].advice = (
            "Images are expected in 0 to 255, and 16 bits are divided by 257; no value of these is "
            f"above {peak:.3g}. If white is about {white:g} there, write the files with numbers "
            f"that are {255 / white:.3g} times as high, or make mean and std of Normalize "
            f"{255 / white:.3g} times smaller."
        )

    def _finish_classes(self, masks):
        if not self.labelled or masks:
            return
        if not self.counts.any():
            if not self.unknown:
                self.find("nothing_labelled", self.name)
            return
        for k in np.flatnonzero(self.counts == 0).tolist():
            self.find("empty_class", f"{k} {self.class_names[k]}")

    def weights(self) -> list[float] | None:
        """Suggested class weights, as `weight: auto` of a loss makes them; None without pixels."""
        return class_weights_from_counts(self.counts) if self.counts.any() else None

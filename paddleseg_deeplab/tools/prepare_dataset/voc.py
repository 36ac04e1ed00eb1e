# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC 2012 with the labels of the Semantic Boundaries Dataset, for mode trainaug."""

import os
from collections.abc import Iterable

import numpy as np

from paddleseg_deeplab.datasets.base import label_table
from paddleseg_deeplab.tools.prepare_dataset import lists
from paddleseg_deeplab.tools.prepare_dataset.cityscapes import map_values
from paddleseg_deeplab.tools.prepare_dataset.jobs import Job, Options, Outcome, run_jobs
from paddleseg_deeplab.tools.prepare_dataset.pixels.colour_table import (
    code_of,
    read_codes,
    to_classes,
)
from paddleseg_deeplab.tools.prepare_dataset.whole_set import write_like
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError, import_extra
from paddleseg_deeplab.utils.files.written import read_text
from paddleseg_deeplab.utils.visualize import VOID_COLOR, voc_palette

_CLASSES = 21
_LISTS = os.path.join("ImageSets", "Segmentation")


def _write(place, label, image):
    """Writes classes as a palette PNG, if they are VOC's and of the image's size."""
    table = label_table(None, _CLASSES, VOID)
    labels = map_values(label, table, "classes are 0 to 20, and 255 is void")
    write_like(place, labels, image, _CLASSES)


def convert_sbd(place: str, source: str, image: str) -> None:
    """Writes the classes of one SBD .mat file, GTcls.Segmentation, as a palette PNG."""
    loadmat = import_extra("scipy.io", need="Reading SBD's .mat files", extra="crf").loadmat
    try:
        content = loadmat(source, variable_names=["GTcls"])
        label = np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist") from error
    except Exception as error:  # scipy raises many kinds for damaged files
        raise ValueError(f"has no GTcls.Segmentation ({type(error).__name__}: {error})") from error
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise ValueError(f"its GTcls.Segmentation is {label.dtype} {label.shape}, not integers")
    _write(place, label, image)


def convert_voc(place: str, source: str, image: str) -> None:
    """Writes one mask of VOC, palette indices or VOC's colours, as a palette PNG."""
    try:
        label = read_label(source)
    except UserError:
        label = _from_colours(source)
    _write(place, label, image)


def _from_colours(source):
    """Classes of a mask in VOC's colours: uint8 [H, W]; other colours are listed in an error."""
    numbers = {code_of(c): k for k, c in enumerate(voc_palette(_CLASSES))}
    return to_classes(read_codes(source), {**numbers, code_of(VOID_COLOR): VOID}, None)


def _inner(root, inside, needed, flag):
    """`root` or the folder in it that holds `needed`.

    Raises:
        UserError: Neither does.
    """
    for folder in (root, *(os.path.join(root, *name.split("/")) for name in inside)):
        if all(os.path.exists(os.path.join(folder, *name.split("/"))) for name in needed):
            return folder
    raise UserError(f"{flag} {root}: it lacks {', '.join(needed)}, and so do folders in it.")


def _names(path):
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for name in names:
        if os.path.basename(name) != name or "\\" in name:
            raise UserError(f"{path} names {name!r}, which is no plain name of an image.")
    return names


def aug_names(sbd: Iterable[str], voc_train: Iterable[str], voc_val: Iterable[str]) -> list[str]:
    """Names of the images that only SBD labels, sorted.

    `PascalVOC`'s trainaug is train.txt and aug.txt together: images of VOC's train are left out
    here, so that none counts twice, and those of its val, so that the score stays honest. (With
    the real lists 9118 are left, 10582 with train's 1464.)
    """
    return sorted(set(sbd) - set(voc_train) - set(voc_val))


def prepare_voc_sbd(sbd_root: str, voc_root: str, *, options: Options) -> Outcome:
    """Makes SegmentationClassAug and ImageSets/Segmentation/aug.txt.

    VOC's own masks are put beside SBD's, and go before them: for the images that both label, and
    for those of val that SBD's lists hold.

    Args:
        sbd_root (str): benchmark_RELEASE, or its folder dataset with cls, train.txt and val.txt.
        voc_root (str): VOCdevkit, or its folder VOC2012.
        options (Options): How.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: Folders or lists are missing, aug.txt exists with other names, no SciPy.
    """
    needed = ("cls", "train.txt", "val.txt")
    sbd = _inner(sbd_root, ("dataset", "benchmark_RELEASE/dataset"), needed, "--sbd_root")
    needed_of_voc = (
        "JPEGImages",
        "SegmentationClass",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/val.txt",
    )
    voc = _inner(voc_root, ("VOC2012", "VOCdevkit/VOC2012"), needed_of_voc, "--voc_root")
    import_extra("scipy.io", need="Reading SBD's .mat files", extra="crf")
    train, val = (_names(os.path.join(voc, _LISTS, f"{part}.txt")) for part in ("train", "val"))
    known = [name for part in ("train", "val") for name in _names(os.path.join(sbd, f"{part}.txt"))]
    names = aug_names(known, train, val)
    if not names:
        raise UserError(f"The lists of {sbd} name no image beyond train and val of {voc}.")
    own = sorted({*train, *val})
    lists.check_lists({"aug.txt": _text(names)}, os.path.join(voc, _LISTS), options.overwrite)
    jobs = [
        *(_job(voc, name, os.path.join(sbd, "cls", name + ".mat"), convert_sbd) for name in names),
        *(
            _job(voc, name, os.path.join(voc, "SegmentationClass", name + ".png"), convert_voc)
            for name in own
        ),
    ]
    outcome = Outcome()
    made = run_jobs(jobs, options, outcome)
    names = [name for name, is_there in zip(names, made) if is_there]
    if names:
        texts = {"aug.txt": _text(names)}
        lists.write_lists(texts, os.path.join(voc, _LISTS), options, outcome)
    total = len(names) + len(set(train))
    outcome.notes.append(f"aug.txt: {len(names)} images; trainaug: {total} with those of train")
    return outcome


def _text(names):
    return "\n".join(names) + "\n"


def _job(voc, name, source, convert):
    image = os.path.join(voc, "JPEGImages", name + ".jpg")
    target = os.path.join(voc, "SegmentationClassAug", name + ".png")
    return Job(source, target, convert, (source, image))

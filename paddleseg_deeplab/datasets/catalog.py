# SPDX-License-Identifier: Apache-2.0
"""Public datasets: one row each, with classes, colours, label convention and file layout."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets import class_names
from paddleseg_deeplab.datasets.base import BaseDataset, Faults, Pair, Transforms
from paddleseg_deeplab.datasets.dataset import check_root
from paddleseg_deeplab.datasets.layouts import Folders, NameLists, PairLists
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.download import fetch
from paddleseg_deeplab.utils.errors import MissingData
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.visualize import voc_palette

_TRAIN_VAL = ("train", "val")
_ALL = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Row:
    """What sets one dataset apart.

    `layout(root, mode, name, faults)` lists the files (see `layouts`); `hint` says where the data
    comes from and how it must lie; `label_map` turns the files' values into classes; without a
    `palette` the VOC colour table is used.
    """

    class_names: tuple[str, ...]
    modes: tuple[str, ...]
    layout: Callable[[str, str, str, Faults | None], list[Pair]]
    hint: str
    label_map: dict[int, int] | None = None
    palette: tuple[tuple[int, ...], ...] | None = None


class CatalogDataset(BaseDataset):
    """A public dataset in its usual layout.

    Args:
        transforms (list): Transforms of a sample.
        dataset_root (str): Its folder.
        mode (str): One of the row's modes; those that begin with "train" are for training.
        edge (bool): Must be False (PaddleSeg's edge labels serve other networks).
        seed (int): Seed of the random transforms.
        to_rgb (bool): False keeps OpenCV's BGR order, which Caffe's weights want.
        nodata (float): Pixels of which a channel has this value (NaN is allowed) are void.

    Raises:
        UserError: the folder or files are missing (the text says where to get them), or a
            setting is wrong.
    """

    ROW: Row  # of every set, not of this class
    CLASS_NAMES: list[str]
    NUM_CLASSES: int
    PALETTE: tuple[tuple[int, ...], ...] | np.ndarray
    IMG_CHANNELS = 3
    IGNORE_INDEX = VOID

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "ROW"):
            # Known without the files: a trained model is often used where its dataset is not.
            cls.CLASS_NAMES = list(cls.ROW.class_names)
            cls.NUM_CLASSES = len(cls.CLASS_NAMES)
            cls.PALETTE = cls.ROW.palette or voc_palette(cls.NUM_CLASSES)

    def __init__(
        self,
        transforms: Transforms = (),
        dataset_root: str | os.PathLike[str] | None = None,
        mode: str = "train",
        edge: bool = False,
        *,
        seed: int = 0,
        to_rgb: bool = True,
        nodata: float | str | None = None,
    ) -> None:
        row, name = self.ROW, type(self).__name__
        self._refuse_edge(edge)
        self._set_up_classes(
            self.NUM_CLASSES,
            ignore_index=self.IGNORE_INDEX,
            class_names=row.class_names,
            palette=row.palette,
            label_map=row.label_map,
        )
        self._set_up_samples(
            mode,
            row.modes,
            transforms,
            img_channels=self.IMG_CHANNELS,
            to_rgb=to_rgb,
            nodata=nodata,
            seed=seed,
        )
        self.dataset_root = check_root(name, self._find_root(dataset_root), row.hint)
        try:
            self.file_list = self._list_files()
        except FileNotFoundError as error:
            raise MissingData(f"{error} {row.hint}") from error

    def _find_root(self, dataset_root):
        return dataset_root

    def _list_files(self):
        name = type(self).__name__
        return self.ROW.layout(self.dataset_root, self.mode, name, self.faults)


def _identity(num_classes, *void):
    """A label_map that keeps the classes and makes the values in `void` void."""
    return {**{k: k for k in range(num_classes)}, **dict.fromkeys(void, VOID)}


# Class of each of the 34 label ids in Cityscapes' own *_labelIds.png; the others are void.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_LABEL_IDS = {
    **dict.fromkeys(range(34), VOID),
    **{label_id: k for k, label_id in enumerate(_CITYSCAPES_IDS)},
}


@registry.DATASETS.add_component
class Cityscapes(CatalogDataset):
    """Cityscapes, 19 classes of streets; modes train, val, test. See CatalogDataset.

    Labels are the *_labelTrainIds.png files, as in PaddleSeg. Where a mode has none of them,
    the *_labelIds.png files of the download serve instead and are converted while reading.
    Mode "test" comes without labels.
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.CITYSCAPES,
        _ALL,
        Folders(
            "leftImg8bit/{}",
            "gtFine/{}",
            "_leftImg8bit.png",
            "_gtFine_labelTrainIds.png",
            unlabelled=("test",),
        ),
        "Get leftImg8bit and gtFine from https://www.cityscapes-dataset.com; below dataset_root "
        "must lie leftImg8bit/<mode>/<city>/*_leftImg8bit.png and "
        "gtFine/<mode>/<city>/*_gtFine_labelTrainIds.png (or *_gtFine_labelIds.png).",
        palette=(
            (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
            (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
            (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
            (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
        ),
    )  # fmt: skip

    def _list_files(self):
        layout = self.ROW.layout
        if self.mode != "test" and not layout.has_labels(self.dataset_root, self.mode):
            raw = dataclasses.replace(layout, label_suffix="_gtFine_labelIds.png")
            if raw.has_labels(self.dataset_root, self.mode):
                logger.info("Cityscapes: no *_labelTrainIds.png; converting *_labelIds.png.")
                self._use_label_map(CITYSCAPES_LABEL_IDS)
                layout = raw
        return layout(self.dataset_root, self.mode, "Cityscapes", self.faults)


_VOC_LISTS = "ImageSets/Segmentation"


@registry.DATASETS.add_component
class PascalVOC(CatalogDataset):
    """PASCAL VOC 2012, 21 classes; modes train, val, trainval, trainaug. See CatalogDataset.

    "trainaug" adds the images of ImageSets/Segmentation/aug.txt with labels from
    SegmentationClassAug to those of "train", as in PaddleSeg.
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.PASCAL_VOC,
        ("train", "trainval", "trainaug", "val"),
        NameLists(
            "JPEGImages",
            {
                "train": ((f"{_VOC_LISTS}/train.txt", "SegmentationClass"),),
                "val": ((f"{_VOC_LISTS}/val.txt", "SegmentationClass"),),
                "trainval": ((f"{_VOC_LISTS}/trainval.txt", "SegmentationClass"),),
                "trainaug": (
                    (f"{_VOC_LISTS}/train.txt", "SegmentationClass"),
                    (f"{_VOC_LISTS}/aug.txt", "SegmentationClassAug"),
                ),
            },
            subfolder="VOC2012",
        ),
        "Get http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar and set "
        "dataset_root to its VOCdevkit folder, which holds VOC2012/JPEGImages, "
        "VOC2012/SegmentationClass and VOC2012/ImageSets/Segmentation; trainaug also needs "
        "VOC2012/SegmentationClassAug and VOC2012/ImageSets/Segmentation/aug.txt, which "
        "paddleseg-deeplab prepare_dataset voc_sbd makes from the Semantic Boundaries Dataset.",
    )


@registry.DATASETS.add_component
class ADE20K(CatalogDataset):
    """ADE20K scene parsing, 150 classes; modes train, val. See CatalogDataset.

    In the files 0 is void and 1 to 150 are the classes 0 to 149.
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.ADE20K,
        _TRAIN_VAL,
        Folders(
            "images/{}",
            "annotations/{}",
            ".jpg",
            ".png",
            parts=(("train", "training"), ("val", "validation")),
        ),
        "Get http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and set "
        "dataset_root to its folder, which holds images/training, images/validation, "
        "annotations/training and annotations/validation.",
        label_map={0: VOID, **{k + 1: k for k in range(150)}},
    )


@registry.DATASETS.add_component
class PascalContext(CatalogDataset):
    """PASCAL-Context, background and 59 classes; modes train, val, trainval.

    Labels are those that PaddleSeg's convert_voc2010.py writes. See CatalogDataset.
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.PASCAL_CONTEXT,
        ("train", "trainval", "val"),
        NameLists(
            "JPEGImages",
            {
                m: ((f"{_VOC_LISTS}/{m}_context.txt", "Context"),)
                for m in ("train", "trainval", "val")
            },
        ),
        "Get VOC2010 from http://host.robots.ox.ac.uk/pascal/VOC/voc2010 and convert the "
        "annotations of https://www.cs.stanford.edu/~roozbeh/pascal-context; below dataset_root "
        "must lie JPEGImages, Context/*.png and ImageSets/Segmentation/<mode>_context.txt.",
    )


@registry.DATASETS.add_component
class PascalContext59(CatalogDataset):
    """PASCAL-Context without its background, which is void here: 59 classes.

    Files, modes and colours are those of PascalContext. (PaddleSeg has no such dataset.)
    """

    thread_safe = draws_from_rng = True
    ROW = dataclasses.replace(
        PascalContext.ROW,
        class_names=class_names.PASCAL_CONTEXT[1:],
        label_map={0: VOID, **{k + 1: k for k in range(59)}},
        palette=tuple(map(tuple, voc_palette(60)[1:].tolist())),
    )


# The 171 classes among the ids of COCO-Stuff's own pixel maps: all from 0 to 181 but these.
_COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_STUFF_IDS = {
    **{raw: k for k, raw in enumerate(i for i in range(182) if i not in _COCO_UNUSED)},
    **dict.fromkeys(_COCO_UNUSED, VOID),
}


@registry.DATASETS.add_component
class CocoStuff(CatalogDataset):
    """COCO-Stuff 164k, 171 classes; modes train, val. See CatalogDataset.

    Args:
        transforms, dataset_root, mode, edge, seed, nodata: As in CatalogDataset.
        raw_ids (bool): The labels are the pixel maps as downloaded (ids 0 to 181, 255 void),
            not those that PaddleSeg's convert_cocostuff.py writes (0 to 170, 255 void).
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.COCO_STUFF,
        _TRAIN_VAL,
        Folders(
            "images/{}",
            "annotations/{}",
            ".jpg",
            ".png",
            parts=(("train", "train2017"), ("val", "val2017")),
        ),
        "Get train2017, val2017 and stuffthingmaps_trainval2017 from "
        "https://github.com/nightrome/cocostuff; below dataset_root must lie images/train2017, "
        "images/val2017, annotations/train2017 and annotations/val2017. Set raw_ids: True unless "
        "the annotations were converted to 171 numbers.",
    )

    def __init__(
        self,
        transforms: Transforms = (),
        dataset_root: str | os.PathLike[str] | None = None,
        mode: str = "train",
        edge: bool = False,
        *,
        seed: int = 0,
        raw_ids: bool = False,
        nodata: float | str | None = None,
    ) -> None:
        super().__init__(transforms, dataset_root, mode, edge, seed=seed, nodata=nodata)
        if raw_ids:
            self._use_label_map(COCO_STUFF_IDS)


@registry.DATASETS.add_component
class CamVid(CatalogDataset):
    """CamVid, 11 classes of streets; modes train, val, test. See CatalogDataset.

    The list files train.txt, val.txt and test.txt name an image and a label on each line. In
    the labels 0 to 10 are the classes and 11 is void.
    """

    thread_safe = draws_from_rng = True
    ROW = Row(
        class_names.CAMVID,
        _ALL,
        PairLists("{}.txt"),
        "Below dataset_root must lie train.txt, val.txt and test.txt, each line an image and its "
        "label (0 to 10, 11 void) relative to dataset_root. The photographs are described at "
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/.",
        label_map=_identity(11, 11),
        palette=(
            (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
            (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0),
            (0, 128, 192),
        ),
    )  # fmt: skip


@registry.DATASETS.add_component
class OpticDiscSeg(CatalogDataset):
    """Optic discs in photographs of the retina, 2 classes; modes train, val, test.

    The parameters come in PaddleSeg's order, which differs from the other datasets. With
    `dataset_root` left out the data is downloaded to the cache.
    """

    thread_safe = draws_from_rng = True
    URL = "https://paddleseg.bj.bcebos.com/dataset/optic_disc_seg.zip"
    ROW = Row(
        class_names.OPTIC_DISC,
        _ALL,
        PairLists("{}_list.txt"),
        "Leave dataset_root out to download it, or set it to the folder of "
        f"{URL}, which holds train_list.txt, val_list.txt and test_list.txt.",
    )

    def __init__(
        self,
        dataset_root: str | os.PathLike[str] | None = None,
        transforms: Transforms = (),
        mode: str = "train",
        edge: bool = False,
        *,
        seed: int = 0,
        nodata: float | str | None = None,
    ) -> None:
        super().__init__(transforms, dataset_root, mode, edge, seed=seed, nodata=nodata)

    def _find_root(self, dataset_root):
        if dataset_root is not None:
            return dataset_root
        folder = fetch(self.URL)
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
        has_lists = os.path.isfile(os.path.join(folder, "train_list.txt"))
        return folder if has_lists or len(inside) != 1 else inside[0]

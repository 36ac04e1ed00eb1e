# SPDX-License-Identifier: Apache-2.0
"""What a config says of its data, the set there or not: names, colours, how images are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs.preprocessing import parameters_of
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils.errors import MissingData
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.visualize import voc_palette

if TYPE_CHECKING:
    from paddleseg_deeplab.cvlibs.builder import SegBuilder
    from paddleseg_deeplab.datasets.base import BaseDataset
    from paddleseg_deeplab.transforms.checks import Transform


def dataset_facts(builder: SegBuilder) -> tuple[BaseDataset | None, list[str], np.ndarray]:
    """Validation set, class names and colours, as far as they can be had.

    A trained model is often used where its dataset is not: then names and colours are the
    config's, the dataset class', or made up (the VOC colour table, as datasets have it). Nothing
    else about the dataset may be wrong.

    Args:
        builder (SegBuilder): Of the run.

    Returns:
        tuple: The dataset or None; list[str] and uint8 [K, 3] RGB for the model's K classes.
    """
    config, count = builder.config.val_dataset_cfg, builder.model.num_classes
    dataset, component = None, None
    if config:
        component = registry.DATASETS[config["type"]]
        try:
            dataset = builder.val_dataset
        except (MissingData, FileNotFoundError) as error:
            logger.info("Going on without the dataset itself: %s", error)
    facts: list[Any] = []
    for key, made_up in (
        ("class_names", [f"class {i}" for i in range(count)]),
        ("palette", voc_palette(count)),
    ):
        value = getattr(dataset, key, None)
        if value is None and dataset is None and config:
            value = config.get(key, getattr(component, key.upper(), None))
        usable = value is not None and not isinstance(value, str) and len(value) == count
        facts.append(value if usable else made_up)
    return dataset, list(facts[0]), np.asarray(facts[1], np.uint8)


def compose_for(builder: SegBuilder, transforms: Sequence[Transform]) -> Compose:
    """A `Compose` that reads images as the validation set does, which need not be there.

    Args:
        builder (SegBuilder): Of the run.
        transforms (list): Its ``val_transforms`` or ``export_transforms``.

    Returns:
        Compose: For as many channels as ``val_dataset`` says, else the backbone, else the dataset's
        class; else 3.
    """
    cfg = builder.config.val_dataset_cfg
    val = parameters_of(registry.DATASETS, cfg)
    component = registry.DATASETS[cfg["type"]] if cfg else None
    backbone = builder.config.model_cfg.get("backbone") or {}
    channels = backbone.get("in_channels", getattr(component, "IMG_CHANNELS", 3))
    return Compose(
        transforms,
        to_rgb=val.get("to_rgb", True),
        img_channels=cfg.get("img_channels", channels),
        nodata=val.get("nodata"),
    )


def compose_of(builder: SegBuilder, dataset: BaseDataset | None) -> Compose:
    """The Compose of prediction: the validation set's, or where that cannot be opened or has no
    transforms one made from the config alone.

    Args:
        builder (SegBuilder): Of the run.
        dataset (BaseDataset | None): Of `dataset_facts`.
    """
    if dataset is not None and builder.config.val_dataset_cfg.get("transforms"):
        return dataset.transforms
    return compose_for(builder, builder.val_transforms)

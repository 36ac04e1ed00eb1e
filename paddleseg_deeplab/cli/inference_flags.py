# SPDX-License-Identifier: Apache-2.0
"""Flags and settings that val and predict share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddleseg_deeplab.cli.common import add_crf_arguments, add_divisor_argument
from paddleseg_deeplab.deploy.settings import ENGINES
from paddleseg_deeplab.utils.errors import MissingData
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    import numpy as np

    from paddleseg_deeplab.cvlibs.builder import SegBuilder
    from paddleseg_deeplab.datasets.base import BaseDataset
    from paddleseg_deeplab.transforms import Compose
    from paddleseg_deeplab.transforms.checks import Transform


def add_inference_arguments(
    parser: argparse.ArgumentParser, aug_flag: str, crf: bool = True
) -> None:
    """Adds the flags of scales, flips, sliding window, batches, engine, precision and the CRF.

    Args:
        parser (argparse.ArgumentParser): Takes them.
        aug_flag (str): "aug_eval" or "aug_pred", as PaddleSeg names the switch.
        crf (bool): Also those of the CRF. Default True.
    """
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--batch_size",
        type=int,
        help="images of equal size at once (default: 1, small ones together)",
    )
    add_divisor_argument(run, "the config's test_config.size_divisor")
    run.add_argument(
        "--num_workers",
        type=int,
        help="threads that read ahead, and that write (default: 2, or 1 on one processor; 0 with "
        "datasets or transforms of your own)",
    )
    run.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the network on a CPU: dygraph, or an export of it in Paddle Inference, "
        "ONNX Runtime or OpenVINO. auto (default): where there are enough images to pay for the "
        "export, OpenVINO if it is installed, else Paddle Inference",
    )
    run.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="fp16 and bf16: mixed precision on a GPU; bf16 with --engine openvino: on a CPU that "
        "has it (default: fp32)",
    )
    run.add_argument("--amp_level", choices=["O1", "O2"], default="O1", help="default: O1")
    aug = parser.add_argument_group("several scales and flips (probabilities are averaged)")
    aug.add_argument(f"--{aug_flag}", action="store_true", help="average scales and flips")
    aug.add_argument("--scales", nargs="+", type=float, help="such as 0.75 1.0 1.25 (default: 1.0)")
    aug.add_argument("--flip_horizontal", action="store_true", help="also the mirrored image")
    aug.add_argument("--flip_vertical", action="store_true", help="also the image upside down")
    window = parser.add_argument_group("sliding window")
    window.add_argument("--is_slide", action="store_true", help="go over the image in windows")
    window.add_argument(
        "--slide_above",
        type=float,
        metavar="FACTOR",
        help="windows for large images only: those of more than FACTOR times the pixels of "
        "--crop_size, here by default the training's crop",
    )
    window.add_argument(
        "--crop_size", nargs=2, type=int, metavar=("W", "H"), help="the window, such as 512 512"
    )
    window.add_argument(
        "--stride",
        nargs=2,
        type=int,
        metavar=("W", "H"),
        help="its steps, such as 341 341 (with --slide_above by default two thirds of the window)",
    )
    if crf:
        add_crf_arguments(parser, "the config's test_config.crf")


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
    import numpy as np

    from paddleseg_deeplab import registry
    from paddleseg_deeplab.utils.visualize import voc_palette

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
    from paddleseg_deeplab import registry
    from paddleseg_deeplab.transforms import Compose

    val = builder.config.val_dataset_cfg
    component = registry.DATASETS[val["type"]] if val else None
    backbone = builder.config.model_cfg.get("backbone") or {}
    channels = backbone.get("in_channels", getattr(component, "IMG_CHANNELS", 3))
    return Compose(
        transforms,
        to_rgb=val.get("to_rgb", True),
        img_channels=val.get("img_channels", channels),
        nodata=val.get("nodata"),
    )

# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: *_labelIds.png (34 ids) to *_labelTrainIds.png (19 classes, 255 void)."""

import os

import numpy as np

from paddleseg_deeplab.datasets.base import label_table
from paddleseg_deeplab.datasets.catalog import CITYSCAPES_LABEL_IDS, Cityscapes
from paddleseg_deeplab.prediction.outputs import write_ids
from paddleseg_deeplab.tools.prepare_dataset.jobs import Job, Options, Outcome, find_files, run_jobs
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError


def map_values(label: np.ndarray, table: np.ndarray, allowed: str) -> np.ndarray:
    """Maps label values by a table in which -1 means that a value is unknown.

    Args:
        label (numpy.ndarray): Integers [H, W].
        table (numpy.ndarray): int16 [65536].
        allowed (str): The values there may be, for the message.

    Returns:
        numpy.ndarray: uint8 [H, W].

    Raises:
        ValueError: Unknown values; they are listed with their pixels.
    """
    values, counts = np.unique(label, return_counts=True)
    unknown = [
        f"{value} ({count} pixels)"
        for value, count in zip(values.tolist(), counts.tolist())
        if not 0 <= value < len(table) or table[value] < 0
    ]
    if unknown:
        raise ValueError(f"holds values that are no label: {', '.join(unknown)}; {allowed}")
    return table[label].astype(np.uint8)


def convert_cityscapes(place: str, source: str) -> None:
    """Reads one *_labelIds.png and writes its train ids, 8-bit grey, to `place`."""
    table = label_table(CITYSCAPES_LABEL_IDS, Cityscapes.NUM_CLASSES, VOID)
    label = map_values(read_label(source), table, "label ids are 0 to 33, and 255")
    write_ids(place, label)


def prepare_cityscapes(
    dataset_root: str, *, annotations: str = "gtFine", options: Options
) -> Outcome:
    """Converts all label ids below a folder; the train ids lie beside them.

    Args:
        dataset_root (str): The folder with gtFine, or any above its files.
        annotations (str): "gtFine" or "gtCoarse".
        options (Options): How.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: There are no such files.
    """
    old, new = (f"_{annotations}_{kind}.png" for kind in ("labelIds", "labelTrainIds"))
    found = find_files(dataset_root, "--dataset_root", (old.lower(),))
    jobs = []
    for path in (os.path.join(dataset_root, name) for name in found if name.endswith(old)):
        jobs.append(Job(path, path[: -len(old)] + new, convert_cityscapes, (path,)))
    if not jobs:
        raise UserError(f"--dataset_root {dataset_root}: no *{old} below it. {Cityscapes.ROW.hint}")
    outcome = Outcome()
    run_jobs(jobs, options, outcome)
    return outcome

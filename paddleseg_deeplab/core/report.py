# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: figures, table, and the files it is kept in."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_deeplab.core.stream import label_of, name_of
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.metrics import ConfusionMatrix


@dataclasses.dataclass
class EvaluationResult:
    """What `evaluate` found.

    Iterating gives what PaddleSeg's `evaluate` returns: mIoU, accuracy, class IoU, class
    precision, kappa.

    Attributes:
        confusion (ConfusionMatrix): Counts of the whole set, from which every figure comes.
        class_names (list[str]): Names in order.
        records (list[dict]): An image each, in the dataset's order: index, path, miou, accuracy
            (over its own pixels; NaN where all are void).
        worst (list[dict]): The records with the lowest miou, the lowest first.
        loss (float | None): Mean validation loss an image, None where it was not asked for.
        seconds (float): Wall time.
    """

    confusion: ConfusionMatrix
    class_names: list[str]
    records: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    loss: float | None = None
    seconds: float = 0.0

    @property
    def miou(self) -> float:
        return self.confusion.mean_iou

    @property
    def accuracy(self) -> float:
        return self.confusion.accuracy

    @property
    def kappa(self) -> float:
        return self.confusion.kappa

    @property
    def mean_dice(self) -> float:
        return self.confusion.mean_dice

    @property
    def class_iou(self) -> np.ndarray:
        """float64 [K], NaN for a class absent from truth and prediction."""
        return self.confusion.iou

    @property
    def class_precision(self) -> np.ndarray:
        return self.confusion.precision

    def __iter__(self) -> Iterator[float | np.ndarray]:
        return iter((self.miou, self.accuracy, self.class_iou, self.class_precision, self.kappa))

    def summary(self) -> dict[str, Any]:
        """Everything but the single images' records, as JSON can hold it."""
        out: dict[str, Any] = {
            "images": len(self.records),
            "loss": self.loss,
            "seconds": round(self.seconds, 3),
        }
        out.update(self.confusion.summary(self.class_names))
        out["confusion_matrix"] = self.confusion.matrix.tolist()
        out["worst"] = [
            {k: None if v != v else v for k, v in record.items()} for record in self.worst
        ]
        return out

    def table(self) -> str:
        """Class name, IoU, precision, recall, Dice and pixel share as lines of text."""
        width = max([len("class"), *(len(n) for n in self.class_names)])
        lines = [
            f"{'class':<{width}}  {'IoU':>7} {'precision':>9} {'recall':>7} {'Dice':>7} "
            f"{'share':>7}"
        ]
        c = self.confusion
        columns = (c.iou, c.precision, c.recall, c.dice, c.pixel_share)
        for i, name in enumerate(self.class_names):
            iou, precision, recall, dice, share = (
                "-" if v[i] != v[i] else f"{v[i]:.4f}" for v in columns
            )
            lines.append(
                f"{name:<{width}}  {iou:>7} {precision:>9} {recall:>7} {dice:>7} {share:>7}"
            )
        return "\n".join(lines)


def count_image(
    confusion: ConfusionMatrix, sample: Mapping[str, Any], predicted: np.ndarray
) -> dict[str, Any]:
    """Adds one image to the counts of a set.

    Args:
        confusion (ConfusionMatrix): Of the set; is changed.
        sample (dict): With ``index`` and ``label``, integers [H, W].
        predicted (np.ndarray): Integers [H, W].

    Returns:
        dict: The image's record, as `EvaluationResult.records` has them.

    Raises:
        UserError: The sizes differ, or a label's value is out of range; the file is named.
    """
    name, label = name_of(sample), label_of(sample)
    if label.shape != predicted.shape:
        raise UserError(
            f"{name}: the prediction has size {predicted.shape}, its label "
            f"{sample.get('label_path', '')} {label.shape} (height, width). Image and label must "
            "have the same size."
        )
    try:
        added = confusion.update(predicted, label)
    except ValueError as error:
        raise UserError(f"{sample.get('label_path') or name}: {error}") from error
    own = ConfusionMatrix.from_matrix(added)
    return {
        "index": int(sample["index"]),
        "path": name,
        "miou": own.mean_iou,
        "accuracy": own.accuracy,
    }


def log_result(result: EvaluationResult) -> None:
    """Logs the figures, the table of classes and the worst images."""
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    logger.info(
        "Evaluated %d images in %.1f s: mIoU %.4f, accuracy %.4f, kappa %.4f, Dice %.4f%s",
        len(result.records),
        result.seconds,
        result.miou,
        result.accuracy,
        result.kappa,
        result.mean_dice,
        loss,
    )
    logger.info("Classes (- means absent from truth and prediction):\n%s", result.table())
    if result.worst:
        lines = "\n".join(f"  {r['miou']:.4f}  {r['path']}" for r in result.worst)
        logger.info("Images with the lowest mIoU:\n%s", lines)


def _cell(value):
    """A table cell: empty for None and NaN, which a spreadsheet cannot hold."""
    return "" if value is None or value != value else value


def _write_csv(path, columns, rows):
    # utf-8-sig: spreadsheets then read names outside ASCII; newline="": csv writes its own.
    with open(path, "w", encoding="utf-8-sig", newline="", errors="backslashreplace") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row[column]) for column in columns])


def write_report(result: EvaluationResult, save_dir: str | Path) -> list[str]:
    """Writes a result into a folder; files of the same names are replaced.

    - ``metrics.json``: all figures, the confusion matrix (truth by prediction), the worst images.
      A figure that does not exist is null.
    - ``metrics.csv``: a class a row: name, iou, precision, recall, dice, pixel_share.
    - ``images.csv``: an image a row, the worst first: path, miou, accuracy.
    - ``confusion_matrix.png``.

    Args:
        result (EvaluationResult): From `evaluate`.
        save_dir (str): Folder, made if missing.

    Returns:
        list[str]: The files.
    """
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    summary = result.summary()
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    # A file name need not be UTF-8.
    to = {"encoding": "utf-8", "errors": "backslashreplace"}
    (folder / "metrics.json").write_text(text + "\n", **to)
    columns = ["name", "iou", "precision", "recall", "dice", "pixel_share"]
    _write_csv(folder / "metrics.csv", columns, summary["classes"])
    # Images of void alone have no mIoU; they come last.
    images = sorted(result.records, key=lambda r: (r["miou"] != r["miou"], r["miou"]))
    _write_csv(folder / "images.csv", ["path", "miou", "accuracy"], images)
    picture = visualize.confusion_matrix_picture(result.confusion.matrix, result.class_names)
    visualize.save_image(folder / "confusion_matrix.png", picture)
    names = ("metrics.json", "metrics.csv", "images.csv", "confusion_matrix.png")
    return [str(folder / name) for name in names]

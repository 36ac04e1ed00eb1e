# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics from one confusion matrix. NumPy only.

Every figure below is a function of the matrix, so figures of parts (batches, ranks, images) are
had by adding matrices, never by averaging averages.

Two cases without an obvious value are settled here once:

- A class that is absent from truth and prediction has no IoU, Dice, precision or recall: NaN, and
  it is left out of the means. (PaddleSeg gives it IoU 1 and Dice 0, which moves the means.)
- A class that is present on one side only has IoU and Dice 0; of its precision (never predicted)
  and recall (never true) the undefined one is 0, as in PaddleSeg.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Pixels per pass: the 64-bit index that bincount needs stays at 0.5 MiB for images of any size,
# and inside a processor's cache.
_CHUNK = 1 << 16


def _nan_mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _ratio(numerator, denominator, known):
    """numerator / denominator; 0 where the denominator is 0, NaN where the class is unknown."""
    out = np.zeros(len(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    out[~known] = np.nan
    return out


def _json_number(value):
    """A float that JSON can hold: NaN becomes None."""
    value = float(value)
    return None if np.isnan(value) else value


class ConfusionMatrix:
    """Counts pixels by (true class, predicted class) and derives the metrics.

    Args:
        num_classes (int): Number of classes, at least 1.
        ignore_index (int): Label value of pixels that never count. Default 255.

    Attributes:
        matrix (np.ndarray): int64 [num_classes, num_classes]; row: truth, column: prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if int(num_classes) < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        self.num_classes = int(num_classes)
        self.ignore_index = int(ignore_index)
        self.matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, ignore_index: int = 255) -> "ConfusionMatrix":
        """Wraps counts that exist already: an integer array [K, K], which is copied."""
        matrix = np.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"A confusion matrix is square, got shape {matrix.shape}.")
        self = cls(matrix.shape[0], ignore_index)
        self.matrix += matrix.astype(np.int64)
        return self

    def update(self, pred: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Adds the pixels of one label map or of a batch of them.

        Beside its inputs it needs a few MiB, whatever the size of the image.

        Args:
            pred (np.ndarray): Predicted classes, integers 0..num_classes-1, any shape.
            label (np.ndarray): True classes of the same shape: 0..num_classes-1 or ignore_index.

        Returns:
            np.ndarray: int64 [K, K], the counts that these pixels added.

        Raises:
            ValueError: the shapes differ, or a value is outside its range. Nothing is added then.
            TypeError: an array does not hold integers.
        """
        pred, label = np.asarray(pred), np.asarray(label)
        if pred.shape != label.shape:
            raise ValueError(f"Prediction {pred.shape} and label {label.shape} differ in shape.")
        for name, array in (("prediction", pred), ("label", label)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"The {name} must hold integers, got {array.dtype}.")
        pred, label = pred.reshape(-1), label.reshape(-1)
        k = self.num_classes
        counts = np.zeros((k + 1) * k, dtype=np.int64)
        for start in range(0, label.size, _CHUNK):
            rows = label[start : start + _CHUNK].astype(np.int64)
            columns = pred[start : start + _CHUNK].astype(np.int64)
            if columns.min() < 0 or columns.max() >= k:
                bad = columns[(columns < 0) | (columns >= k)][0]
                raise ValueError(f"Predicted class {bad} is outside 0..{k - 1}.")
            void = rows == self.ignore_index
            wrong = ((rows < 0) | (rows >= k)) & ~void
            if wrong.any():
                raise ValueError(
                    f"Label value {rows[wrong][0]} is outside 0..{k - 1} and is not the ignored "
                    f"value {self.ignore_index}; correct num_classes, or map the labels' values."
                )
            rows[void] = k  # an extra row, dropped below
            rows *= k
            rows += columns
            counts += np.bincount(rows, minlength=counts.size)
        added = counts.reshape(k + 1, k)[:k]
        self.matrix += added
        return added

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Adds another matrix (of another batch, process or image); returns self."""
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"Cannot merge {other.num_classes} classes into {self.num_classes} classes."
            )
        self.matrix += other.matrix
        return self

    # Areas, int64 [K], in pixels.
    @property
    def intersection(self) -> np.ndarray:
        return np.diagonal(self.matrix).copy()

    @property
    def label_area(self) -> np.ndarray:
        return self.matrix.sum(axis=1)

    @property
    def pred_area(self) -> np.ndarray:
        return self.matrix.sum(axis=0)

    @property
    def total(self) -> int:
        """Pixels that counted."""
        return int(self.matrix.sum())

    @property
    def present(self) -> np.ndarray:
        """bool [K]: the class occurs in truth or prediction."""
        return (self.label_area + self.pred_area) > 0

    # Per class, float64 [K] in 0..1, NaN for a class that is nowhere.
    @property
    def iou(self) -> np.ndarray:
        union = self.label_area + self.pred_area - self.intersection
        return _ratio(self.intersection, union, self.present)

    @property
    def dice(self) -> np.ndarray:
        return _ratio(2 * self.intersection, self.label_area + self.pred_area, self.present)

    @property
    def precision(self) -> np.ndarray:
        """Of the pixels predicted as the class, the share that is right."""
        return _ratio(self.intersection, self.pred_area, self.present)

    @property
    def recall(self) -> np.ndarray:
        """Of the pixels of the class, the share that was found."""
        return _ratio(self.intersection, self.label_area, self.present)

    @property
    def pixel_share(self) -> np.ndarray:
        """Share of the true pixels, sums to 1; zeros when nothing was counted."""
        return self.label_area / max(self.total, 1)

    # Single figures, float, NaN when nothing was counted.
    @property
    def mean_iou(self) -> float:
        return _nan_mean(self.iou)

    @property
    def mean_dice(self) -> float:
        return _nan_mean(self.dice)

    @property
    def mean_precision(self) -> float:
        return _nan_mean(self.precision)

    @property
    def mean_recall(self) -> float:
        return _nan_mean(self.recall)

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU weighted by pixel share."""
        return float(np.nansum(self.iou * self.pixel_share)) if self.total else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of all counted pixels that are right."""
        return float(self.intersection.sum() / self.total) if self.total else float("nan")

    @property
    def kappa(self) -> float:
        """Cohen's kappa, (po - pe) / (1 - pe); NaN when chance alone explains everything."""
        if not self.total:
            return float("nan")
        shares = self.matrix / self.total
        chance = float(shares.sum(axis=0) @ shares.sum(axis=1))
        if chance >= 1.0:
            return float("nan")
        return float((np.trace(shares) - chance) / (1.0 - chance))

    def summary(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """All figures as plain numbers that JSON can hold; NaN becomes None.

        Args:
            class_names (list[str], optional): Names in order; default "0", "1", ...

        Returns:
            dict: mIoU, accuracy, kappa, mDice, mPrecision, mRecall, fwIoU, pixels, and `classes`,
            a list of dicts with name, iou, precision, recall, dice, pixel_share.
        """
        names = check_class_names(class_names, self.num_classes)
        columns = {
            "iou": self.iou,
            "precision": self.precision,
            "recall": self.recall,
            "dice": self.dice,
            "pixel_share": self.pixel_share,
        }
        return {
            "mIoU": _json_number(self.mean_iou),
            "accuracy": _json_number(self.accuracy),
            "kappa": _json_number(self.kappa),
            "mDice": _json_number(self.mean_dice),
            "mPrecision": _json_number(self.mean_precision),
            "mRecall": _json_number(self.mean_recall),
            "fwIoU": _json_number(self.frequency_weighted_iou),
            "pixels": self.total,
            "classes": [
                {"name": name, **{key: _json_number(v[i]) for key, v in columns.items()}}
                for i, name in enumerate(names)
            ],
        }


def check_class_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """The names as a list of str, numbers where there are none; ValueError if too few or many."""
    if class_names is None:
        return [str(i) for i in range(num_classes)]
    names = [str(name) for name in class_names]
    if len(names) != num_classes:
        raise ValueError(f"{len(names)} class names for {num_classes} classes.")
    return names

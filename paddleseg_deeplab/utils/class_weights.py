# SPDX-License-Identifier: Apache-2.0
"""Class weights from pixel counts. NumPy alone, for losses and data checks both."""

from collections.abc import Sequence

import numpy as np


def class_weights_from_counts(
    counts: Sequence[int] | np.ndarray, *, limit: float = 10.0
) -> list[float]:
    """Median-frequency class weights (Eigen and Fergus 2015, section 6.3.2, "median frequency
    balancing") from the pixel counts of a whole training set.

    weight = median count of the classes present / own count, held within [1/limit, limit] so
    that a handful of pixels cannot rule the gradient. (The paper counts per image in which the
    class occurs; only totals are known here.) A class that never occurs gets 1: it cannot act in
    training, and other data are not distorted by it.

    Args:
        counts (sequence of int): Labelled pixels of each class, void not counted.
        limit (float): Largest weight, at least 1; its inverse is the smallest.

    Returns:
        list[float]: One weight per class.

    Raises:
        ValueError: no counts, a negative one, or none above 0.
    """
    counts = np.asarray(counts, dtype="float64")
    if counts.ndim != 1 or counts.size == 0 or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"counts must be a flat list of numbers >= 0, not {counts.tolist()!r}.")
    present = counts > 0
    if not present.any():
        raise ValueError("counts are all 0: the training set has no labelled pixel.")
    if not limit >= 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}.")
    weights = np.ones_like(counts)
    weights[present] = np.median(counts[present]) / counts[present]
    return np.clip(weights, 1.0 / limit, limit).tolist()

# SPDX-License-Identifier: Apache-2.0
"""The one interface by which logs, curves and users' own code look on at a training."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paddleseg_deeplab.core.report import EvaluationResult


@dataclasses.dataclass(frozen=True)
class IterationReport:
    """One update of the weights.

    Attributes:
        iteration (int): Counted from 1.
        loss (float): Weighted sum of the parts, over all batches and processes.
        parts (dict[str, float]): Weighted parts by name.
        learning_rate (float): Used in this iteration.
        reader_seconds (float): Waited for data.
        step_seconds (float): Forward, backward and update.
    """

    iteration: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    reader_seconds: float
    step_seconds: float


class Watcher:
    """Looks on at a run; each method does nothing unless it is overridden.

    What a method raises ends the run.
    """

    def after_iteration(self, report: IterationReport) -> None:
        """Takes an iteration, in order. On a GPU losses are read when a log line or a checkpoint is
        due: the calls for all iterations since then come one after another."""

    def after_saving(self, iteration: int, folder: Path) -> None:
        """A checkpoint of an iteration stands in its folder."""

    def after_evaluation(self, iteration: int, result: "EvaluationResult") -> None:
        """Takes an `EvaluationResult` of the weights of an iteration (of their moving average where
        there is one, which the network holds meanwhile)."""

    def close(self) -> None:
        """The run has ended, well or badly."""

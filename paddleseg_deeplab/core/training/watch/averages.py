# SPDX-License-Identifier: Apache-2.0
"""Means over the iterations between two log lines."""

import dataclasses
import sys

import paddle

from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.watch.watcher import IterationReport


def memory_in_mib() -> int:
    """Peak memory: of the GPU where one is used, else of this process; MiB, 0 if unknown."""
    if paddle.get_device() != "cpu" and paddle.device.is_compiled_with_cuda():
        return paddle.device.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


@dataclasses.dataclass(frozen=True)
class Means:
    """What a log line tells; losses and seconds are means over its iterations.

    Attributes:
        loss (float), parts (dict[str, float]): As of `IterationReport`.
        learning_rate (float): Of the last iteration.
        reader_seconds, step_seconds, batch_seconds (float): An iteration; the last is their sum.
        images_per_second (float): Over all processes.
        memory_mib (int): See `memory_in_mib`.
    """

    loss: float
    parts: dict[str, float]
    learning_rate: float
    reader_seconds: float
    step_seconds: float
    batch_seconds: float
    images_per_second: float
    memory_mib: int


class Averages:
    """Collects iterations until a line is due.

    Args:
        schedule (Schedule): Says when.
        images_per_iter (int): Images in an iteration.
    """

    def __init__(self, schedule: Schedule, images_per_iter: int) -> None:
        self._schedule = schedule
        self._images_per_iter = images_per_iter
        self._reports: list[IterationReport] = []

    def add(self, report: IterationReport) -> Means | None:
        """Takes an `IterationReport`; `Means` where a line is due, else None."""
        self._reports.append(report)
        if not self._schedule.logs_at(report.iteration):
            return None
        reports, self._reports = self._reports, []
        reader = _mean([r.reader_seconds for r in reports])
        step = _mean([r.step_seconds for r in reports])
        return Means(
            loss=_mean([r.loss for r in reports]),
            parts={name: _mean([r.parts[name] for r in reports]) for name in report.parts},
            learning_rate=report.learning_rate,
            reader_seconds=reader,
            step_seconds=step,
            batch_seconds=reader + step,
            images_per_second=self._images_per_iter / (reader + step) if reader + step else 0.0,
            memory_mib=memory_in_mib(),
        )


def _mean(values):
    return sum(values) / len(values)

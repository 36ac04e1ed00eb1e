# SPDX-License-Identifier: Apache-2.0
"""The log lines and the progress bar of a training."""

import sys

import paddle
from tqdm import tqdm

from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.watch.averages import Averages
from paddleseg_deeplab.core.training.watch.watcher import IterationReport, Watcher
from paddleseg_deeplab.utils.logger import logger

_LONG = 3600  # seconds of training on a CPU from which on there is advice


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


class TrainMonitor(Watcher):
    """Averages over ``log_iters`` iterations and reports them.

    Args:
        schedule (Schedule): Of the run.
        start (int): Iterations done before.
        images_per_iter (int): Images in an iteration.
        dataset_size (int): Images in the training set, for the epoch.
    """

    def __init__(
        self, schedule: Schedule, start: int, images_per_iter: int, dataset_size: int
    ) -> None:
        self.iters = schedule.iters
        self._on_cpu = paddle.get_device() == "cpu"
        self._is_first = True
        self._averages = Averages(schedule, images_per_iter)
        self.images_per_iter = images_per_iter
        self.dataset_size = dataset_size
        # On a terminal only: in a file a bar is noise.
        self.bar = tqdm(
            total=schedule.iters,
            initial=start,
            unit="iter",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def after_iteration(self, report: IterationReport) -> None:
        self.bar.update(1)
        if self._is_first and self._on_cpu and report.iteration < self.iters:
            self._tell_time_left(report.iteration, report.reader_seconds + report.step_seconds)
        self._is_first = False
        means = self._averages.add(report)
        if means is not None:
            self._report(report.iteration, means)

    def _tell_time_left(self, iteration, seconds):
        """On a CPU ten iterations, after which the first line comes, may take minutes. (On a GPU
        the first iteration says little: it is the one that builds the kernels.)"""
        left = (self.iters - iteration) * seconds
        logger.info(
            "The first iteration took %.1f s: the %d that are left will take about %s, without "
            "evaluations.",
            seconds,
            self.iters - iteration,
            _clock(left),
        )
        if left > _LONG:
            logger.info(
                "That is long, since this is a CPU. To see a whole run in minutes: "
                "paddleseg-deeplab quickstart (or make quickstart). For your own data, a lighter "
                "recipe: configs/camvid/deeplabv3p_resnet18_os16_256x256.yml. To shorten this run: "
                "--iters. Or use a GPU."
            )

    def _report(self, iteration, means):
        parts = ", ".join(f"{name}: {value:.4f}" for name, value in means.parts.items())
        epoch = (iteration * self.images_per_iter - 1) // self.dataset_size + 1
        left = _clock((self.iters - iteration) * means.batch_seconds)
        logger.info(
            f"[TRAIN] epoch: {epoch}, iter: {iteration}/{self.iters}, "
            f"loss: {means.loss:.4f} ({parts}), lr: {means.learning_rate:.6g}, "
            f"batch_cost: {means.batch_seconds:.4f}, step_cost: {means.step_seconds:.4f}, "
            f"reader_cost: {means.reader_seconds:.4f}, "
            f"ips: {means.images_per_second:.2f} images/s, "
            f"memory: {means.memory_mib} MiB | ETA {left}"
        )
        self.bar.set_postfix(loss=f"{means.loss:.4f}", lr=f"{means.learning_rate:.4g}")

    def close(self) -> None:
        self.bar.close()

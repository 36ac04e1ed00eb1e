# SPDX-License-Identifier: Apache-2.0
"""How long a run is, and at which iterations it logs, saves and evaluates."""

import dataclasses

from paddleseg_deeplab.core.training.state.progress import Progress
from paddleseg_deeplab.utils.logger import logger


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A run's plan; iterations count from 1.

    Attributes:
        iters (int): Iterations.
        save_interval (int): Iterations between checkpoints; each is evaluated.
        log_iters (int): Iterations between log lines.
        early_stop_intervals (int | None): Evaluations without a better mIoU after which it ends.
    """

    iters: int
    save_interval: int = 1000
    log_iters: int = 10
    early_stop_intervals: int | None = None

    def logs_at(self, iteration: int) -> bool:
        """Whether a line is due after an iteration."""
        return iteration % self.log_iters == 0 or iteration == self.iters

    def saves_at(self, iteration: int) -> bool:
        """Whether a checkpoint is due after an iteration."""
        return iteration % self.save_interval == 0 or iteration == self.iters

    def is_over(self, progress: Progress, evaluates: bool) -> bool:
        """Whether a run that has got so far ends here; says so where it ends early.

        Args:
            progress (Progress): Where it stands.
            evaluates (bool): Only a run that evaluates ends early.
        """
        if progress.iteration >= self.iters:
            return True
        waited = progress.evaluations_without_gain
        if not evaluates or not self.early_stop_intervals or waited < self.early_stop_intervals:
            return False
        logger.info(
            "Early stop: no better mIoU in %d evaluations; the best was %.4f at iteration %d.",
            waited,
            progress.best_miou,
            progress.best_iteration,
        )
        return True

    def has_ended(self, progress: Progress, evaluates: bool) -> bool:
        """Whether a run that is resumed has nothing left to do; says so."""
        if evaluates and progress.evaluation_due:
            return False
        if progress.iteration >= self.iters:
            logger.warning("All %d iterations are done already; nothing is trained.", self.iters)
        return self.is_over(progress, evaluates)

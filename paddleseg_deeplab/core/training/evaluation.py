# SPDX-License-Identifier: Apache-2.0
"""Evaluation within a training: shows the result and keeps the best weights."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddleseg_deeplab.core.dataset import LabelledDataset
from paddleseg_deeplab.core.training.state.run_folder import RunFolder
from paddleseg_deeplab.core.training.watch.watcher import Watcher
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.utils.errors import NonFiniteLoss, NonFiniteScores
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.out_of_memory import CHECKPOINT_KEPT, OutOfMemory

if TYPE_CHECKING:
    from paddleseg_deeplab.core.training.trainer import TrainingState


class Evaluation:
    """Evaluates a model in training.

    Args:
        dataset: In mode "val".
        settings (dict): Keyword arguments of `core.val.evaluate`.
        folder (RunFolder): Keeps the best model.
        save_format (str): Suffix of its file.
        watchers (Sequence[Watcher]): Are told of each result.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        settings: Mapping[str, Any],
        folder: RunFolder,
        save_format: str,
        watchers: Sequence[Watcher],
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._folder = folder
        self._save_format = save_format
        self._watchers = watchers

    def run(self, state: "TrainingState") -> None:
        """Evaluates the weights, or their average where there is one; updates the progress.

        Args:
            state (TrainingState): Its progress gets the best mIoU and where it was.
        """
        progress, ranks = state.progress, state.step.ranks
        with state.ema.applied() if state.ema is not None else contextlib.nullcontext():
            result = self._evaluated(state)
            with ranks.guard():
                for watcher in self._watchers:
                    watcher.after_evaluation(progress.iteration, result)
            if result.miou != result.miou:
                logger.warning("No best model is kept of an evaluation that has no mIoU.")
            if result.miou > progress.best_miou:
                progress.best_miou = float(result.miou)
                progress.best_iteration = progress.iteration
                progress.evaluations_without_gain = 0
                self._folder.save_best_model(state.step.model, self._save_format)
            else:
                progress.evaluations_without_gain += 1
        if progress.best_iteration:
            logger.info(
                "[EVAL] The best model so far is from iteration %d, mIoU %.4f.",
                progress.best_iteration,
                progress.best_miou,
            )

    def _evaluated(self, state):
        """The result; what ends the training here says so in its line."""
        step, ranks = state.step, state.step.ranks
        try:
            return evaluate(step.model, self._dataset, losses=step.losses, **self._settings)
        except OutOfMemory as error:
            raise ranks.alike(OutOfMemory(f"{error} {CHECKPOINT_KEPT}")) from error
        except NonFiniteScores as error:
            # Images are looked at when they are read, so it is the weights.
            diverged = NonFiniteLoss(
                f"Training stopped at its evaluation of iteration {state.progress.iteration}: "
                f"{error} Here the training has diverged, though its weights are finite still: "
                "lower the learning rate, or clip gradients (optimizer.grad_clip_cfg)."
            )
            raise ranks.alike(diverged) from error

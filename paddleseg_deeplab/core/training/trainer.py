# SPDX-License-Identifier: Apache-2.0
"""What happens between the iterations of a training run: saving, evaluating, stopping."""

import contextlib
from pathlib import Path

from paddleseg_deeplab.core.ranks import share_statistics
from paddleseg_deeplab.core.slide import WINDOW_SETTINGS
from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.progress import save_evaluation
from paddleseg_deeplab.core.training.watch.preview import prediction_pictures
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.utils.errors import NonFiniteLoss, NonFiniteScores
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.out_of_memory import CHECKPOINT_KEPT, OutOfMemory

_PICTURES = 4  # validation images whose predictions are shown in VisualDL


class Run:
    """Saves, evaluates and stops a run; the only place that writes checkpoints.

    Args:
        save_dir (str): The run's folder.
        step (TrainStep): Its model, optimizer and scaler are saved.
        progress (Progress): Kept up to date.
        ema (ModelEMA | None): Saved too, and what is evaluated.
        evaluation (Evaluation | None): Run after each regular checkpoint.
        stop (StopRequest): Asked after each iteration and throughout evaluation.
        keep (int): Checkpoints kept.
        config_text (str): Goes into them.
        early_stop (int | None): Evaluations without gain after which to stop.

    Attributes:
        before_saving (callable): Called before a checkpoint is written; raises where the weights
            are not fit to be kept.
    """

    def __init__(
        self, save_dir, step, progress, ema, evaluation, stop, keep, config_text, early_stop
    ):
        self.save_dir = Path(save_dir)
        self.step = step
        self.progress = progress
        self.ema = ema
        self.evaluation = evaluation
        self.stop = stop
        self.keep = keep
        self.config_text = config_text
        self.early_stop = early_stop
        self.before_saving = lambda: None

    def make_up_evaluation(self, resumed, iters):
        """Makes the evaluation that was cut off after the checkpoint; True if it was the end."""
        if self.evaluation is None or not self.progress.evaluation_due:
            return False
        logger.info("Evaluating iteration %d, which was cut off.", self.progress.iteration)
        # Another run's folder is left as it is.
        own = resumed.parent.resolve() == self.save_dir.resolve()
        self._evaluate(resumed if own else None)
        ends = self.progress.iteration >= iters or stops_early(self.progress, self.early_stop)
        if not ends:
            self._check_stop()
        return ends

    def after_iteration(self, due, last, signal=0):
        """Saves and evaluates where that is due, or where a signal came; True stops early.

        Args:
            due (bool): Save, and evaluate.
            last (bool): It was the last iteration.
            signal (int): That came to any of the processes before they agreed in this iteration
                (`Figures.signal`), and stops all of them now; 0 for none. One that came since
                waits for the next, as the others do not know of it (there are none to wait for
                where one process runs alone).

        Raises:
            Interrupted: A signal came; there is a checkpoint of this iteration.
        """
        if self.step.ranks.size == 1:
            signal = self.stop.signal or 0
        self.stop.take_on(signal)
        if not due:
            if signal:
                self._save(interrupted=True)
                self._check_stop()
            return False
        # Saved first: an evaluation that fails, or is cut off, then costs no training.
        folder = self._save()
        if self.evaluation is None:
            if not last:
                self._check_stop()
            return False
        self._evaluate(folder)
        ends = last or stops_early(self.progress, self.early_stop)
        if not ends:
            self._check_stop()
        return ends

    def _save(self, interrupted=False):
        self.before_saving()
        self.progress.interrupted = interrupted
        self.progress.evaluation_due = self.evaluation is not None and not interrupted
        folder = self.save_dir / f"iter_{self.progress.iteration}"
        share_statistics(self.step.ranks, self.step.model, self.ema)
        with self.step.ranks.guard():
            if self.step.ranks.is_main:
                checkpoint.save_checkpoint(
                    *(self.save_dir, self.step.model, self.step, self.progress, self.ema),
                    keep=self.keep,
                    config_text=self.config_text,
                )
        logger.info("Saved %s.", folder)
        return folder

    def _check_stop(self):
        with self.step.ranks.guard():
            self.stop.check()

    def _evaluate(self, folder):
        self._check_stop()
        self.evaluation.run(self.progress, self.ema)
        self.progress.evaluation_due = False
        if folder is None:
            return
        with self.step.ranks.guard():
            if self.step.ranks.is_main:
                save_evaluation(folder, self.progress)


def has_ended(progress, iters, evaluates, early_stop):
    """Whether a run that is resumed has nothing left to do."""
    if evaluates and progress.evaluation_due:
        return False
    if progress.iteration >= iters:
        logger.warning("All %d iterations are done already; nothing is trained.", iters)
        return True
    return evaluates and stops_early(progress, early_stop)


def stops_early(progress, intervals):
    waited = progress.evaluations_without_gain
    if not intervals or waited < intervals:
        return False
    logger.info(
        "Early stop: no better mIoU in %d evaluations; the best was %.4f at iteration %d.",
        *(waited, progress.best_miou, progress.best_iteration),
    )
    return True


class Evaluation:
    """Evaluates a model in training, shows the result and keeps the best weights."""

    def __init__(self, model, dataset, losses, settings, save_dir, writer, ranks, save_format):
        self.model = model
        self.dataset = dataset
        self.losses = losses
        self.settings = settings
        self.save_dir = save_dir
        self.writer = writer
        self.ranks = ranks
        self.save_format = save_format

    def run(self, progress, ema=None):
        """Evaluates the weights, or their average where there is one; updates ``progress``."""
        with ema.applied() if ema is not None else contextlib.nullcontext():
            try:
                result = evaluate(self.model, self.dataset, losses=self.losses, **self.settings)
            except OutOfMemory as error:
                raise self.ranks.alike(OutOfMemory(f"{error} {CHECKPOINT_KEPT}")) from error
            except NonFiniteScores as error:
                # Images are looked at when they are read, so it is the weights.
                told = NonFiniteLoss(
                    f"Training stopped at its evaluation of iteration {progress.iteration}: "
                    f"{error} Here the training has diverged, though its weights are finite still: "
                    "lower the learning rate, or clip gradients (optimizer.grad_clip_cfg)."
                )
                raise self.ranks.alike(told) from error
            with self.ranks.guard():
                self._show(result, progress.iteration)
            if result.miou != result.miou:
                logger.warning("No best model is kept of an evaluation that has no mIoU.")
            if result.miou > progress.best_miou:
                progress.best_miou = float(result.miou)
                progress.best_iteration = progress.iteration
                progress.evaluations_without_gain = 0
                with self.ranks.guard():
                    if self.ranks.is_main:
                        checkpoint.save_best_model(self.model, self.save_dir, self.save_format)
            else:
                progress.evaluations_without_gain += 1
        if progress.best_iteration:
            logger.info(
                "[EVAL] The best model so far is from iteration %d, mIoU %.4f.",
                *(progress.best_iteration, progress.best_miou),
            )

    def _show(self, result, iteration):
        if not self.writer.enabled:
            return
        scalars = {"Evaluate/mIoU": result.miou, "Evaluate/Acc": result.accuracy}
        scalars.update({"Evaluate/Kappa": result.kappa, "Evaluate/Dice": result.mean_dice})
        if result.loss is not None:
            scalars["Evaluate/loss"] = result.loss
        for name, iou in zip(result.class_names, result.class_iou):
            scalars[f"Evaluate/IoU/{name}"] = iou
        self.writer.scalars(scalars, iteration)
        precision = (self.settings["precision"], self.settings["amp_level"])
        window = {name: self.settings.get(name) for name in WINDOW_SETTINGS}
        with evaluation_mode(self.model):
            found = prediction_pictures(self.model, self.dataset, _PICTURES, *precision, window)
            for i, picture in found:
                self.writer.image(f"Evaluate/truth_and_prediction_{i}", picture, iteration)

# SPDX-License-Identifier: Apache-2.0
"""A run's folder: the checkpoint it goes on from, and those it leaves."""

import math
from pathlib import Path

from paddleseg_deeplab.core.ranks import share_statistics
from paddleseg_deeplab.core.training.state import checkpoint, folder
from paddleseg_deeplab.core.training.state.progress import save_evaluation, warn_of_another_machine
from paddleseg_deeplab.core.training.state.same_run import CONFIG, check_same_run
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_READING = ("batch_size", "accumulation_steps", "processes")  # what an iteration reads


class RunFolder:
    """Reads and writes ``save_dir``; the only place that writes checkpoints.

    All processes of a run call each method; the first one writes.

    Args:
        path (str): The folder.
        ranks (Ranks): The processes.
        config_text (str): The run's config, YAML; goes beside the checkpoints and into them.
        keep (int): Checkpoints kept; 0 keeps all.

    Attributes:
        path (Path): The folder.
        resumed (Path | None): The checkpoint that the run went on from.
    """

    def __init__(self, path, ranks, config_text="", keep=5):
        self.path = Path(path)
        self.resumed = None
        self._ranks = ranks
        self._config_text = config_text
        self._keep = keep

    def begin(self, state, settings, resume_model=None):
        """Prepares the folder, and loads what is resumed into the state.

        Args:
            state (TrainingState): Freshly built; its progress says what this run is.
            settings (TrainSettings): With the checkpoint where it is found already, the seed that
                the user gave, and whether another run's checkpoint is taken.
            resume_model (str | None): An ``iter_N`` folder, or "auto".

        Raises:
            UserError: The checkpoint is damaged, of another run, or not the same everywhere.
        """
        ranks = self._ranks
        with ranks.guard():
            if ranks.is_main:
                self.path.mkdir(parents=True, exist_ok=True)
                folder.clean(self.path)
        with ranks.guard():
            self.resumed = settings.checkpoint
            if self.resumed is None:
                self.resumed = checkpoint.find_checkpoint(resume_model, self.path)
            if self.resumed is not None:
                kept = state.progress.settings
                state.progress = checkpoint.resume(
                    self.resumed, state.step.model, state.step, state.ema
                )
                self._take_on(state.progress, kept, settings)
        self._check_same_for_all()
        progress = state.progress
        if progress.images < 0:  # a new run's, or of a checkpoint that does not tell
            progress.images = progress.iteration * _images_an_iteration(progress.settings)
        with ranks.guard():
            if ranks.is_main and self._config_text:
                folder.write_text(self.path / CONFIG, self._config_text)
            if ranks.is_main and self.resumed is not None:
                checkpoint.carry_best_model(self.resumed, self.path)
        ranks.copy_first(state.step.model.state_dict().values())

    def is_resumed_here(self):
        """Whether the checkpoint resumed is one of this folder; others' are left as they are."""
        return self.resumed is not None and self.resumed.parent.resolve() == self.path.resolve()

    def save_checkpoint(self, state):
        """Writes ``iter_N`` of the state; the folder, a Path.

        Raises:
            NotWritten: The disk is full or fails; older checkpoints are as they were.
            NonFiniteLoss: A tensor is not finite; nothing is written.
        """
        share_statistics(self._ranks, state.step.model, state.ema)
        with self._ranks.guard():
            if self._ranks.is_main:
                checkpoint.save_checkpoint(
                    self.path,
                    state.step.model,
                    state.step,
                    state.progress,
                    state.ema,
                    keep=self._keep,
                    config_text=self._config_text,
                )
        written = self.path / f"iter_{state.progress.iteration}"
        logger.info("Saved %s.", written)
        return written

    def save_evaluation(self, checkpoint_folder, progress):
        """Notes in a checkpoint that its evaluation is done, and with what outcome."""
        with self._ranks.guard():
            if self._ranks.is_main:
                save_evaluation(checkpoint_folder, progress)

    def save_best_model(self, model, save_format):
        """Writes ``best_model``; see `checkpoint.save_best_model`."""
        with self._ranks.guard():
            if self._ranks.is_main:
                checkpoint.save_best_model(model, self.path, save_format)

    def _take_on(self, progress, kept, settings):
        """Checks that the run resumed is this one, and takes on what may differ."""
        seed = progress.seed if settings.seed is None else settings.seed
        saved = {**progress.settings, "seed": progress.seed}
        now = {**kept, "seed": seed}
        if saved.get("processes", now["processes"]) != now["processes"]:
            # Another number of processes is the same run as long as they read as many images.
            saved, now = _by_images(saved), _by_images(now)
        ignore = settings.resume_ignore_config
        check_same_run(self.resumed, self._config_text, now, saved, ignore=ignore)
        warn_of_another_machine(progress)
        progress.seed, progress.settings = seed, kept

    def _check_same_for_all(self):
        names = self._ranks.gather(None if self.resumed is None else self.resumed.name)
        if len(set(names)) > 1:
            raise UserError(
                f"--resume_model: the processes found different checkpoints ({names}); --save_dir "
                "has to be the same folder for all of them, on storage that the machines share."
            )


def _by_images(settings):
    """Settings with the images that an iteration reads in place of who reads how many."""
    rest = {key: value for key, value in settings.items() if key not in _READING}
    return {"images an iteration": _images_an_iteration(settings), **rest}


def _images_an_iteration(settings):
    return math.prod(settings[key] for key in _READING)

# SPDX-License-Identifier: Apache-2.0
"""A run's folder: the checkpoint it goes on from, which has to be of the same run, and those it
leaves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from paddle import nn

from paddleseg_deeplab.core.ranks import Ranks, share_statistics
from paddleseg_deeplab.core.training.settings import TrainSettings
from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.checkpoint import CONFIG
from paddleseg_deeplab.core.training.state.folder import clean, write_text
from paddleseg_deeplab.core.training.state.progress import (
    Progress,
    save_evaluation,
    warn_of_another_machine,
)
from paddleseg_deeplab.utils import safe_yaml
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    from paddleseg_deeplab.core.training.trainer import TrainingState

_READING = ("batch_size", "accumulation_steps", "processes")  # what an iteration reads
# Not part of what is learned: how long, how it is evaluated and exported, how it is run. What an
# iteration reads is compared as a setting, since processes share it.
_FREE = (
    "batch_size",
    "accumulation_steps",
    "images_per_update",
    "iters",
    "val_dataset",
    "test_config",
    "export",
    "dataset_root",
    "to_static_training",
)
# Where files lie; weights that the checkpoint's own replace; how an update is computed.
_FREE_ANYWHERE = (
    "dataset_root",
    "train_path",
    "val_path",
    "test_path",
    "pretrained",
    "use_multi_tensor",
)
_ABSENT = "(absent)"


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

    def __init__(
        self, path: str | Path, ranks: Ranks, config_text: str = "", keep: int = 5
    ) -> None:
        self.path = Path(path)
        self.resumed: Path | None = None
        self._ranks = ranks
        self._config_text = config_text
        self._keep = keep

    def begin(
        self,
        state: "TrainingState",
        settings: TrainSettings,
        resume_model: str | Path | None = None,
    ) -> None:
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
                clean(self.path)
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
                write_text(self.path / CONFIG, self._config_text)
            if ranks.is_main and self.resumed is not None:
                checkpoint.carry_best_model(self.resumed, self.path)
        ranks.copy_first(state.step.model.state_dict().values())

    def is_resumed_here(self) -> bool:
        """Whether the checkpoint resumed is one of this folder; others' are left as they are."""
        return self.resumed is not None and self.resumed.parent.resolve() == self.path.resolve()

    def save_checkpoint(self, state: "TrainingState") -> Path:
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

    def save_evaluation(self, checkpoint_folder: Path, progress: Progress) -> None:
        """Notes in a checkpoint that its evaluation is done, and with what outcome."""
        with self._ranks.guard():
            if self._ranks.is_main:
                save_evaluation(checkpoint_folder, progress)

    def save_best_model(self, model: nn.Layer, save_format: str) -> None:
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configs beyond what a resumed run may change.

    ``batch_size`` and ``accumulation_steps`` are left to the settings of `check_same_run`. Free
    to differ are ``images_per_update`` (which is for information), ``iters``, ``val_dataset``,
    ``test_config``, ``export``, ``to_static_training`` and ``use_multi_tensor``, folders and list
    files of the training set, and pretrained weights, which the checkpoint's replace.

    Args:
        old, new (dict): Resolved configs.

    Returns:
        list[str]: ``key: old -> new``, keys with dots and list places as ``--opts`` takes them.
    """
    one, other = (
        dict(_flat({k: v for k, v in config.items() if k not in _FREE})) for config in (old, new)
    )
    lines = []
    for key in [*one, *(key for key in other if key not in one)]:
        before, after = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines


def check_same_run(
    folder: str | Path,
    config_text: str,
    settings: Mapping[str, Any] | None = None,
    saved_settings: Mapping[str, Any] | None = None,
    *,
    ignore: bool = False,
) -> None:
    """Refuses to go on from another run's checkpoint.

    Args:
        folder (str): The checkpoint; one without ``config.yml`` has nothing to compare.
        config_text (str): This run's resolved config, YAML; "" compares none.
        settings, saved_settings (dict, optional): What the config does not tell, of this run and
            of the checkpoint; what only one has is not compared.
        ignore (bool): Warn, and go on.

    Raises:
        UserError: There are differences; they are listed, one a line.
    """
    lines = []
    path = Path(folder) / CONFIG
    if config_text and path.is_file():
        lines += differences(_read_config(path), yaml.safe_load(config_text) or {})
    for key, value in (settings or {}).items():
        saved = (saved_settings or {}).get(key, value)
        if saved != value:
            lines.append(f"{key}: {saved} -> {value}")
    lines = list(dict.fromkeys(lines))
    if not lines:
        return
    listed = "".join(f"\n  {line}" for line in lines)
    if ignore:
        logger.warning("%s is from another run; going on as told in spite of:%s", folder, listed)
        return
    raise UserError(
        f"--resume_model {folder} is from another run. Go on with its settings, or take what "
        f"differs into account with --resume_ignore_config:{listed}"
    )


def _read_config(path):
    try:
        content = safe_yaml.load(safe_yaml.read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--resume_model: {path} is damaged ({error}).") from error
    return content if isinstance(content, dict) else {}


def _flat(value, place=""):
    """Yields (key with dots, plain value); an empty section or list counts as a value."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        yield place, value
        return
    for key, inner in items:
        if key not in _FREE_ANYWHERE and key != "pretrained_skip":
            yield from _flat(inner, f"{place}.{key}" if place else str(key))

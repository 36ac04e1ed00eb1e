# SPDX-License-Identifier: Apache-2.0
"""What `core.train.train` takes beyond PaddleSeg's parameters."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddle.optimizer import Optimizer

from paddleseg_deeplab.core.training.watch.watcher import Watcher
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger


@dataclasses.dataclass
class TrainSettings:
    """Settings of a training that PaddleSeg does not have.

    Attributes:
        accumulation_steps (int): Batches whose gradients are averaged in one iteration.
        ema_decay (float): Share of the old average kept, with `use_ema`.
        seed (int | None): Of order, augmentation and dropout; 0 by default, and a resumed run
            keeps its own.
        config_text (str): The resolved config, YAML: shown in VisualDL, kept in each checkpoint,
            and compared with the one in the checkpoint that is resumed.
        hyper_parameters (dict | None): Name to number or text, for VisualDL's table.
        checkpoint (Path | None): To go on from, as `find_checkpoint` gave it: `train` does not look
            again, and `resume_model` is not used.
        resume_ignore_config (bool): Goes on from a checkpoint of another config, with a warning.
        image_rates (np.ndarray | None): float [images], how often an epoch holds each image on
            average (see `epochs.Sampler`); once by default.
        save_format (str): Suffix of the best model's file, "pdparams" or "safetensors".
        watchers (Sequence[Watcher]): Look on at the run, on its first process.
    """

    accumulation_steps: int = 1
    ema_decay: float = 0.999
    seed: int | None = None
    config_text: str = ""
    hyper_parameters: dict[str, float | str] | None = None
    checkpoint: Path | None = None
    resume_ignore_config: bool = False
    image_rates: np.ndarray | None = None
    save_format: str = "pdparams"
    watchers: Sequence[Watcher] = ()

    def check(self) -> None:
        """Refuses what cannot work.

        Raises:
            UserError: Saying which setting.
        """
        if self.accumulation_steps < 1:
            raise UserError(
                f"accumulation_steps should be at least 1, not {self.accumulation_steps}."
            )
        for watcher in self.watchers:
            if not isinstance(watcher, Watcher):
                raise UserError(
                    f"settings.watchers: {type(watcher).__name__} is no Watcher; derive it from "
                    "paddleseg_deeplab.core.training.watch.watcher.Watcher."
                )


def from_keywords(settings: TrainSettings | None, keywords: Mapping[str, Any]) -> TrainSettings:
    """The settings, where they may have been given one by one as of old.

    Args:
        settings (TrainSettings | None): Given whole.
        keywords (dict): Given one by one; a line says that this ends.

    Raises:
        UserError: Both were given, or a setting cannot work.
        TypeError: A keyword is unknown.
    """
    if not keywords:
        settings = settings or TrainSettings()
        settings.check()
        return settings
    known = [field.name for field in dataclasses.fields(TrainSettings)]
    for name in keywords:
        if name not in known:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}")
    names = ", ".join(keywords)
    if settings is not None:
        raise UserError(
            f"train() got settings and, beside them, {names}: put all of them into "
            "settings=TrainSettings(...)."
        )
    logger.warning(
        "train(): give %s in settings=TrainSettings(...); as keywords of their own they go with "
        "the next release.",
        names,
    )
    settings = TrainSettings(**keywords)
    settings.check()
    return settings


def check_given(
    optimizer: Optimizer | None, losses: Mapping[str, Any] | None
) -> tuple[Optimizer, Mapping[str, Any]]:
    """Both, which have the default None since they stand behind others that have one.

    Raises:
        UserError: One is missing.
    """
    if optimizer is None or losses is None:
        name = "optimizer" if optimizer is None else "losses"
        raise UserError(f"train() needs {name}: give it by name ({name}=...).")
    return optimizer, losses


def warn_of_no_effect(
    profiler_options: str | None, own_logger: logging.Logger | None, print_mem_info: bool
) -> None:
    """One line that names PaddleSeg's parameters that were given and change nothing here."""
    given = {
        "profiler_options": profiler_options is not None,
        "logger": own_logger is not None,
        "print_mem_info": not print_mem_info,  # log lines always tell the memory
    }
    names = [name for name, is_given in given.items() if is_given]
    if names:
        logger.warning(
            "train(): %s: no effect here, accepted for code written for PaddleSeg.",
            ", ".join(names),
        )

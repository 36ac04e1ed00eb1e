# SPDX-License-Identifier: Apache-2.0
"""Where a run stands: what a checkpoint keeps beside its tensors."""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import paddle

from paddleseg_deeplab.core.training.state.folder import write_text
from paddleseg_deeplab.utils.cpu import processor_name
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

PROGRESS = "progress.json"
_ITER = re.compile(r"^iter_(\d+)$")
# Beside the manifest: it is written when the folder has long stood.
_EVALUATION = "evaluation.json"
_EVALUATED = ("best_miou", "best_iteration", "evaluations_without_gain")


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        iteration (int): Iterations done.
        best_miou (float): Best validation mIoU so far; -1 before the first evaluation.
        best_iteration (int): Where it was reached.
        evaluations_without_gain (int): For early stopping.
        seed (int): Of data order, augmentation and dropout.
        optimizer (str): Class of the optimizer whose state lies beside it.
        evaluation_due (bool): The evaluation of these weights has not come to its end.
        interrupted (bool): Saved because a signal came, not at the run's interval.
        settings (dict): What the config does not tell and a resumed run must keep.
        images (int): Read so far by all processes, the position in the data order; -1 in
            checkpoints that do not tell.
        machine (dict): What else decides the last digits on a CPU: see `machine`.
    """

    iteration: int = 0
    best_miou: float = -1.0
    best_iteration: int = 0
    evaluations_without_gain: int = 0
    seed: int = 0
    optimizer: str = ""
    evaluation_due: bool = False
    interrupted: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: int = -1
    machine: dict[str, str] = dataclasses.field(default_factory=dict)


def machine() -> dict[str, str]:
    """What has to stay the same for a resumed run to repeat a CPU's numbers bit for bit.

    Returns:
        dict[str, str]: Threads of Paddle's and MKL's kernels, Paddle's version, the processor.
    """
    threads = ("FLAGS_paddle_num_threads", "MKL_NUM_THREADS")
    out = {name: os.environ.get(name, "") for name in threads}
    return {**out, "Paddle": paddle.__version__, "processor": processor_name()}


def warn_of_another_machine(progress: Progress) -> None:
    """Says what of `machine` differs from the checkpoint's; on a CPU alone, as a GPU computes by
    other means."""
    now = machine()
    differing = [
        f"{name} {saved or 'unset'} -> {now.get(name) or 'unset'}"
        for name, saved in progress.machine.items()
        if saved != now.get(name)
    ]
    if differing and paddle.get_device() == "cpu":
        logger.warning(
            "The checkpoint was made with other settings of the machine (%s): this run goes on "
            "from the same weights, but its numbers will differ in the last digits from those of "
            "a run that was not stopped.",
            ", ".join(differing),
        )


def iteration_of(folder: str | Path) -> int | None:
    """The N of ``iter_N``, or None for another name."""
    found = _ITER.search(Path(folder).name)
    return int(found[1]) if found else None


def save_evaluation(folder: str | Path, progress: Progress) -> None:
    """Notes in a checkpoint that its evaluation is done, and with what outcome."""
    values = {name: getattr(progress, name) for name in _EVALUATED}
    text = json.dumps({**values, "sha256": _digest(values)}, indent=2) + "\n"
    write_text(Path(folder) / _EVALUATION, text)


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_progress(folder: str | Path) -> Progress:
    """The `Progress` kept in a checkpoint, with the outcome of its evaluation where that is done.

    Raises:
        UserError: ``progress.json`` is damaged, or missing where the name is not ``iter_N``.
    """
    folder = Path(folder)
    path = folder / PROGRESS
    if path.is_file():
        try:
            progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"--resume_model: {path} is damaged ({error}).") from error
        _add_evaluation(progress, folder / _EVALUATION)
        return progress
    iteration = iteration_of(folder)
    if iteration is None:
        raise UserError(
            f"--resume_model {folder} has no progress.json and its name is not iter_N, so the "
            "iteration is unknown."
        )
    return Progress(iteration=iteration)


def _add_evaluation(progress, path):
    try:
        saved = json.loads(path.read_bytes())
        values = {name: saved[name] for name in _EVALUATED}
        if saved["sha256"] != _digest(values):
            raise ValueError("its checksum is not the one written")
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): the evaluation is made again.", path, error)
        return
    for name, value in values.items():
        setattr(progress, name, value)
    progress.evaluation_due = False

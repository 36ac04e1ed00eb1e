# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: what a run needs to go on, written whole or not at all."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import paddle

from paddleseg_deeplab.utils.checkpoint import load_weights
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_ITER = re.compile(r"^iter_(\d+)$")
_WEIGHTS, _OPTIMIZER = "model.pdparams", "model.pdopt"
_EMA, _SCALER, _PROGRESS = "ema.pdparams", "scaler.pdopt", "progress.json"


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
    """

    iteration: int = 0
    best_miou: float = -1.0
    best_iteration: int = 0
    evaluations_without_gain: int = 0
    seed: int = 0
    optimizer: str = ""


def save_weights(model, folder):
    """Writes ``<folder>/model.pdparams``, which is the old or the new one at any moment."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (_WEIGHTS + ".tmp")
    paddle.save(model.state_dict(), str(temporary))
    os.replace(temporary, folder / _WEIGHTS)


def save_progress(folder, progress):
    """Writes ``<folder>/progress.json``, which is the old or the new one at any moment."""
    path = Path(folder) / _PROGRESS
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(dataclasses.asdict(progress), indent=2) + "\n"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def save_checkpoint(save_dir, model, step, progress, ema=None, keep=5):
    """Writes ``<save_dir>/iter_N`` and removes all but the newest ``keep`` of its kind.

    Args:
        save_dir (str): The run's folder.
        model (nn.Layer): Its weights go to ``model.pdparams``.
        step (TrainStep): Its optimizer goes to ``model.pdopt``, a loss scaler beside it.
        progress (Progress): Goes to ``progress.json``.
        ema (ModelEMA, optional): Goes to ``ema.pdparams``.
        keep (int): Checkpoints kept; 0 keeps all.

    Returns:
        Path: The folder written; it appears when it is complete.
    """
    folder = Path(save_dir) / f"iter_{progress.iteration}"
    progress.optimizer = type(step.optimizer).__name__
    objects = {_WEIGHTS: model.state_dict(), _OPTIMIZER: step.optimizer.state_dict()}
    if ema is not None:
        objects[_EMA] = ema.state_dict()
    if step.scaler.is_enable():
        objects[_SCALER] = step.scaler.state_dict()
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, value in objects.items():
        paddle.save(value, str(temporary / name))
    save_progress(temporary, progress)
    # One of this name is left from a run that this one was resumed behind.
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    # Those past this iteration come from such a run too and do not count.
    mine = [p for p in checkpoints(save_dir) if iteration_of(p) <= progress.iteration]
    for stale in mine[:-keep] if keep else []:
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def iteration_of(folder):
    """The N of ``iter_N``, or None for another name."""
    found = _ITER.search(Path(folder).name)
    return int(found[1]) if found else None


def checkpoints(save_dir):
    """The ``iter_N`` folders of a run, oldest first."""
    folders = [p for p in Path(save_dir).glob("iter_*") if iteration_of(p) is not None]
    return sorted((p for p in folders if p.is_dir()), key=iteration_of)


def resume(folder, model, step, ema=None):
    """Loads a checkpoint that `save_checkpoint` wrote into a freshly built run.

    A PaddleSeg checkpoint (``model.pdparams`` and ``model.pdopt`` in ``iter_N``) is taken too; the
    iteration then comes from the folder's name.

    Args:
        folder (str): An ``iter_N`` folder.
        model (nn.Layer), step (TrainStep), ema (ModelEMA, optional): Take the state.

    Returns:
        Progress: Where the run goes on.

    Raises:
        UserError: A file is missing or damaged, or does not fit the model or the optimizer.
    """
    folder = Path(folder)
    for name in (_WEIGHTS, _OPTIMIZER):
        if not (folder / name).is_file():
            inside = checkpoints(folder)
            such = f" such as {inside[-1]}" if inside else ""
            raise UserError(f"--resume_model {folder} has no {name}; give an iter_N folder{such}.")
    progress = _read_progress(folder)
    optimizer = type(step.optimizer).__name__
    if progress.optimizer not in ("", optimizer):
        raise UserError(
            f"--resume_model {folder} was trained with {progress.optimizer}, the config's "
            f"optimizer is {optimizer}. Keep the optimizer, or start anew from these weights with "
            "--opts model.pretrained=<folder>."
        )
    load_weights(model, str(folder / _WEIGHTS))
    saved = _load(folder / _OPTIMIZER)
    try:
        step.optimizer.set_state_dict(_renamed(saved, _load(folder / _WEIGHTS), model))
        if step.scaler.is_enable() and (folder / _SCALER).is_file():
            step.scaler.load_state_dict(_load(folder / _SCALER))
        if ema is not None:
            _resume_ema(folder, model, ema)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign file makes Paddle raise
        raise UserError(f"--resume_model {folder} does not fit this run ({error}).") from error
    logger.info("Resumed from %s at iteration %d.", folder, progress.iteration)
    return progress


def _load(path):
    try:
        return paddle.load(str(path))
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(
            f"--resume_model: {path} is damaged ({type(error).__name__}: {error}). Take an earlier "
            "checkpoint."
        ) from error


def _renamed(saved, weights, model):
    """The optimizer's state under the names that this process gave the parameters.

    Paddle numbers parameters by the order in which a process makes layers (conv2d_0, ...) and
    names the optimizer's tensors after them; the weights file tells which layer had which name.
    """
    own = {key: tensor.name for key, tensor in model.state_dict().items()}
    new = {getattr(t, "name", key): own[key] for key, t in weights.items() if key in own}
    # Longest first, so that no name is taken for another that begins with it.
    old = sorted(new, key=len, reverse=True)
    out = {}
    for key, value in saved.items():
        if key == "master_weights":
            value = {new.get(name, name): tensor for name, tensor in value.items()}
        elif key != "LR_Scheduler":
            name = next((n for n in old if key.startswith(n + "_")), "")
            key = new.get(name, "") + key[len(name) :]
        out[key] = value
    return out


def _resume_ema(folder, model, ema):
    if (folder / _EMA).is_file():
        ema.set_state_dict(_load(folder / _EMA))
        return
    logger.warning("%s holds no moving average (EMA): it starts at the weights.", folder)
    ema.set_state_dict({"average": model.state_dict(), "updates": 0})


def _read_progress(folder):
    path = folder / _PROGRESS
    if path.is_file():
        try:
            return Progress(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"--resume_model: {path} is damaged ({error}).") from error
    iteration = iteration_of(folder)
    if iteration is None:
        raise UserError(
            f"--resume_model {folder} has no progress.json and its name is not iter_N, so the "
            "iteration is unknown."
        )
    return Progress(iteration=iteration)


def carry_best_model(folder, save_dir):
    """Copies the best model of the run that is resumed, where the new run has another folder."""
    best, target = Path(folder).parent / "best_model", Path(save_dir) / "best_model"
    if (best / _WEIGHTS).is_file() and not target.exists():
        shutil.copytree(best, target)

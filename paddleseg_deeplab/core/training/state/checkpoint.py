# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: what a run needs to go on, written whole or not at all."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.core.training.state.folder import fault, has_manifest, remove, writing
from paddleseg_deeplab.core.training.state.progress import (
    PROGRESS,
    Progress,
    iteration_of,
    machine,
    read_progress,
)
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.safe_pickle import reader
from paddleseg_deeplab.utils.weights.load import (
    check_finite_weights,
    load_tensors,
    nonfinite_tensors,
    read_weights,
    save_weights,
)

CONFIG = "config.yml"
_WEIGHTS, _OPTIMIZER = "model.pdparams", "model.pdopt"
_EMA, _SCALER = "ema.pdparams", "scaler.pdopt"
_SHOWN = 3  # tensors in a message


def save_best_model(model: nn.Layer, save_dir: str | Path, save_format: str = "pdparams") -> None:
    """Writes ``<save_dir>/best_model``, which is the old or the new one; "safetensors" or not.

    Raises:
        NonFiniteLoss: A tensor is not finite; the old one stays.
    """
    weights = in_float32(model.state_dict())
    _check_finite(weights, "best_model")
    with writing(Path(save_dir) / "best_model") as temporary:
        save_weights(weights, temporary / f"model.{save_format}")


def in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose half-precision tensors are float32, under the names they had."""
    out = {}
    for key, tensor in state.items():
        if tensor.dtype in (paddle.float16, paddle.bfloat16):
            name, tensor = tensor.name, tensor.detach().astype("float32")
            tensor.name = name  # `_renamed` finds the optimizer's tensors by it
        out[key] = tensor
    return out


def _check_finite(tensors, place):
    """Refuses to save what is not finite: it would be taken for a good state later."""
    found = [f"{name} ({bad} of {size} values)" for name, bad, size in nonfinite_tensors(tensors)]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise NonFiniteLoss(
            f"{place} is not saved: {len(found)} of {len(tensors)} tensors hold NaN or infinite "
            f"values ({', '.join(found[:_SHOWN])}{more}). Training has diverged, or an image holds "
            "values that no network can take. Lower the learning rate, clip gradients "
            "(optimizer.grad_clip_cfg), look at the images, and go on from an earlier checkpoint."
        )


def _tensors(state, prefix=""):
    """The tensors in a state dict and the dicts in it, by name."""
    out = {}
    for key, value in state.items():
        if isinstance(value, dict):
            out.update(_tensors(value, f"{prefix}{key}."))
        elif isinstance(value, paddle.Tensor):
            out[prefix + key] = value
    return out


def save_checkpoint(
    save_dir: str | Path,
    model: nn.Layer,
    step: TrainStep,
    progress: Progress,
    ema: ModelEMA | None = None,
    keep: int = 5,
    config_text: str = "",
) -> Path:
    """Writes ``<save_dir>/iter_N`` and removes all but the newest ``keep`` of its kind.

    Args:
        save_dir (str): The run's folder.
        model (nn.Layer): Its weights go to ``model.pdparams``.
        step (TrainStep): Its optimizer goes to ``model.pdopt``, a loss scaler beside it.
        progress (Progress): Goes to ``progress.json``.
        ema (ModelEMA, optional): Goes to ``ema.pdparams``.
        keep (int): Checkpoints kept; 0 keeps all.
        config_text (str): The run's config, YAML; goes to ``config.yml`` unless it is "".

    Returns:
        Path: The folder written; it appears when it is complete.

    Raises:
        NotWritten: The disk is full or fails; older checkpoints are as they were.
        NonFiniteLoss: A tensor is not finite; nothing is written.
    """
    folder = Path(save_dir) / f"iter_{progress.iteration}"
    progress.optimizer = type(step.optimizer).__name__
    progress.machine = machine()
    objects = {_WEIGHTS: in_float32(model.state_dict()), _OPTIMIZER: step.optimizer.state_dict()}
    if ema is not None:
        objects[_EMA] = ema.state_dict()
    if step.scaler.is_enable():
        objects[_SCALER] = step.scaler.state_dict()
    _check_finite(_tensors(objects), folder.name)
    texts = {PROGRESS: json.dumps(dataclasses.asdict(progress), indent=2) + "\n"}
    if config_text:
        texts[CONFIG] = config_text
    with writing(folder) as temporary:
        for name, value in objects.items():
            paddle.save(value, str(temporary / name))
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
    for stale in _stale(folder, keep, progress.interrupted):
        remove(stale)
    return folder


def _stale(folder, keep, interrupted):
    """The checkpoints that one just written makes superfluous; the disk is the queue."""
    if not keep:
        return []
    # Those past this iteration are of a run that this one was resumed behind and do not count.
    mine = [p for p in checkpoints(folder.parent) if iteration_of(p) < iteration_of(folder)]
    # One that a signal forced has served, and would push out one that an unbroken run has.
    forced = [p for p in mine if _was_interrupted(p)]
    regular = [p for p in mine if p not in forced]
    return forced + ([] if interrupted else regular[: max(len(regular) + 1 - keep, 0)])


def _was_interrupted(folder):
    try:
        return bool(json.loads((folder / PROGRESS).read_bytes())["interrupted"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # one of PaddleSeg or of an earlier version


def checkpoints(save_dir: str | Path) -> list[Path]:
    """The ``iter_N`` folders of a run, oldest first."""
    numbered = [(iteration_of(p), p) for p in Path(save_dir).glob("iter_*") if p.is_dir()]
    return [p for _, p in sorted((n, p) for n, p in numbered if n is not None)]


def find_checkpoint(resume_model: str | Path | None, save_dir: str | Path) -> Path | None:
    """The folder that ``--resume_model`` means.

    Args:
        resume_model (str | None): An ``iter_N`` folder, or "auto" for the newest whole one in
            `save_dir`; damaged ones are passed over with a warning.
        save_dir (str): The run's folder.

    Returns:
        Path | None: None to start anew.

    Raises:
        UserError: The folder named is damaged.
    """
    if resume_model is None:
        return None
    if str(resume_model) != "auto":
        folder = Path(resume_model)
        # One without a manifest (PaddleSeg's) is taken as it is.
        wrong = fault(folder) if has_manifest(folder) else None
        if wrong is not None:
            raise UserError(f"--resume_model: {wrong}. Take an earlier checkpoint.")
        return folder
    for folder in reversed(checkpoints(save_dir)):
        wrong = fault(folder)
        if wrong is None:
            return folder
        logger.warning("--resume_model auto passes %s over: %s.", folder.name, wrong)
    logger.info("--resume_model auto: no whole checkpoint in %s; starting anew.", save_dir)
    return None


def resume(
    folder: str | Path, model: nn.Layer, step: TrainStep, ema: ModelEMA | None = None
) -> Progress:
    """Loads a checkpoint that `save_checkpoint` wrote into a freshly built run.

    A PaddleSeg checkpoint (``model.pdparams`` and ``model.pdopt`` in ``iter_N``) is taken too; the
    iteration then comes from the folder's name.

    Args:
        folder (str): An ``iter_N`` folder that `find_checkpoint` gave.
        model (nn.Layer), step (TrainStep), ema (ModelEMA, optional): Take the state.

    Returns:
        Progress: Where the run goes on.

    Raises:
        UserError: A file is missing or cannot be read, or does not fit the model or the optimizer.
    """
    folder = Path(folder)
    for name in (_WEIGHTS, _OPTIMIZER):
        if not (folder / name).is_file():
            inside = checkpoints(folder)
            such = f" such as {inside[-1]}" if inside else ""
            raise UserError(f"--resume_model {folder} has no {name}; give an iter_N folder{such}.")
    progress = read_progress(folder)
    optimizer = type(step.optimizer).__name__
    if progress.optimizer not in ("", optimizer):
        raise UserError(
            f"--resume_model {folder} was trained with {progress.optimizer}, the config's "
            f"optimizer is {optimizer}. Keep the optimizer, or start anew from these weights with "
            "--opts model.pretrained=<folder>."
        )
    file = str(folder / _WEIGHTS)
    weights = read_weights(file)
    load_tensors(model, weights, file)
    saved = _load(folder / _OPTIMIZER)
    _check_loaded(saved, folder / _OPTIMIZER)
    try:
        saved = _renamed(saved, weights, model)
        _advance_schedule(step.optimizer, saved, progress.iteration)
        step.optimizer.set_state_dict(saved)
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
        return reader.load(path)
    except (UserError, OSError) as error:
        raise UserError(f"--resume_model: {error} Or take an earlier checkpoint.") from error


def _check_loaded(saved, path):
    tensors = _tensors(saved) if isinstance(saved, dict) else {}
    check_finite_weights(tensors, f"--resume_model: the tensors in {path}")


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
            # Paddle finds a master weight's velocity by the name that the tensor itself has.
            for name, tensor in value.items():
                tensor.name = new.get(name, name) + tensor.name[len(name) :]
            value = {new.get(name, name): tensor for name, tensor in value.items()}
        elif key != "LR_Scheduler":
            name = next((n for n in old if key.startswith(n + "_")), "")
            key = new.get(name, "") + key[len(name) :]
        out[key] = value
    return out


def _advance_schedule(optimizer, saved, iterations):
    """Puts this run's own schedule in the place of the saved one, where it has to be.

    The saved rate belongs to the saved run's number of iterations; a run that is now planned
    longer follows its own plan from the first iteration on.
    """
    scheduler = optimizer._learning_rate
    if not isinstance(scheduler, paddle.optimizer.lr.LRScheduler) or scheduler.last_epoch != 0:
        return
    verbose, scheduler.verbose = scheduler.verbose, False
    for _ in range(iterations):
        scheduler.step()
    scheduler.verbose = verbose
    saved["LR_Scheduler"] = {}  # Paddle then leaves the scheduler alone


def _resume_ema(folder, model, ema):
    if (folder / _EMA).is_file():
        saved = _load(folder / _EMA)
        _check_loaded(saved, folder / _EMA)
        ema.set_state_dict(saved)
        return
    logger.warning("%s holds no moving average (EMA): it starts at the weights.", folder)
    ema.set_state_dict({"average": model.state_dict(), "updates": 0})


def carry_best_model(folder: str | Path, save_dir: str | Path) -> None:
    """Copies the best model of the run that is resumed, where the new run has another folder."""
    best, target = Path(folder).parent / "best_model", Path(save_dir) / "best_model"
    files = [best / name for name in (_WEIGHTS, "model.safetensors") if (best / name).is_file()]
    if not files or target.exists():
        return
    if has_manifest(best):
        wrong = fault(best)
        if wrong is not None:
            logger.warning("The best model is not copied: %s.", wrong)
            return
    with writing(target) as temporary:
        shutil.copy(files[0], temporary / files[0].name)

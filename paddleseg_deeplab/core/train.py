# SPDX-License-Identifier: Apache-2.0
"""Training of objects that are already built."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer

from paddleseg_deeplab.core.dataset import AnyDataset, LabelledDataset
from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.training.data.batches import Share, training_batches
from paddleseg_deeplab.core.training.data.epochs import Sampler
from paddleseg_deeplab.core.training.data.reader import BatchReader
from paddleseg_deeplab.core.training.evaluation import Evaluation
from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.settings import (
    TrainSettings,
    check_given,
    from_keywords,
    warn_of_no_effect,
)
from paddleseg_deeplab.core.training.state.progress import Progress
from paddleseg_deeplab.core.training.state.run_folder import RunFolder
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.core.training.trainer import Trainer, TrainingState
from paddleseg_deeplab.core.training.watch.averages import Averages
from paddleseg_deeplab.core.training.watch.interrupt import StoppableDataset, StopRequest
from paddleseg_deeplab.core.training.watch.loggers import VisualDL, VisualDLWriter
from paddleseg_deeplab.core.training.watch.monitor import TrainMonitor
from paddleseg_deeplab.core.training.watch.preview import Preview
from paddleseg_deeplab.core.training.watch.watcher import Watcher
from paddleseg_deeplab.core.val import check_evaluation
from paddleseg_deeplab.datasets.base import require_labels
from paddleseg_deeplab.optimizers.ema import ModelEMA


def train(
    model: nn.Layer,
    train_dataset: AnyDataset,
    val_dataset: LabelledDataset | None = None,
    optimizer: Optimizer | None = None,
    save_dir: str | Path = "output",
    iters: int = 10000,
    batch_size: int = 2,
    early_stop_intervals: int | None = None,
    resume_model: str | Path | None = None,
    save_interval: int = 1000,
    log_iters: int = 10,
    num_workers: int = 0,
    use_vdl: bool = False,
    use_ema: bool = False,
    losses: Mapping[str, Any] | None = None,
    keep_checkpoint_max: int = 5,
    test_config: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    amp_level: str = "O1",
    profiler_options: str | None = None,
    to_static_training: bool = False,
    logger: logging.Logger | None = None,
    print_mem_info: bool = True,
    shuffle: bool = True,
    *,
    settings: TrainSettings | None = None,
    **older: Any,
) -> Progress:
    """Trains a model and keeps checkpoints in ``<save_dir>/iter_N`` and ``best_model``.

    Args:
        model (nn.Layer): Gives a list of logits.
        train_dataset: Samples with ``img`` float32 [C, H, W] and ``label`` int64 [H, W].
        val_dataset (optional): Evaluated every ``save_interval`` iterations and at the end.
        optimizer (paddle.optimizer.Optimizer): Over the model's parameters.
        save_dir (str): Made if missing.
        iters (int): Iterations; one is one update of the weights.
        batch_size (int): Images in one forward pass of one process; several processes (`join` of
            core.ranks) take ``batch_size`` each.
        early_stop_intervals (int, optional): Stops after so many evaluations without a better
            mIoU.
        resume_model (str, optional): An ``iter_N`` folder to go on from, or "auto" for the newest
            whole one in ``save_dir``; where there is none, training starts anew.
        save_interval (int): Iterations between checkpoints.
        log_iters (int): Iterations between log lines.
        num_workers (int): Processes that read data ahead.
        use_vdl (bool): Writes VisualDL records into ``save_dir``.
        use_ema (bool): Keeps a moving average of the weights; it is what is evaluated and kept as
            best model.
        losses (dict): ``types`` and ``coef``, as `SegBuilder.loss`.
        keep_checkpoint_max (int): ``iter_N`` folders kept; 0 keeps all.
        test_config (dict, optional): Keyword arguments of `evaluate`.
        precision (str): "fp32", or on a GPU "fp16", "bf16".
        amp_level (str): "O1" or "O2".
        profiler_options, logger, print_mem_info: PaddleSeg's; without effect, which a line says
            where they are given. Lines go to the package's logger and always tell the memory.
        to_static_training (bool): Trains the network as a compiled program; the same numbers up to
            rounding (see `TrainStep`).
        shuffle (bool): False trains in the set's order.
        settings (TrainSettings, optional): What PaddleSeg does not have: seed, gradient
            accumulation, watchers and others.
        **older: The fields of `TrainSettings` as keywords, for one release more.

    SIGTERM and SIGINT, where this runs in the main thread, end the iteration (or the evaluation),
    leave a checkpoint and raise `Interrupted`; a second signal ends the process at once.

    Returns:
        Progress: Where the run ended, with the best mIoU.

    Raises:
        UserError: A setting or a sample is wrong, the checkpoint is damaged or of another config,
            or the disk is full.
        Interrupted: A signal came; the checkpoint is written.
        NonFiniteLoss: A loss or a gradient is not finite; names the iteration and the batch's
            files. On a CPU the parameters are as before it. On a GPU losses are read when a line
            is logged or something is saved: they have moved then, and are not saved. Or a tensor
            that is to be saved is not finite.
        RunStopped: Another process of the run, or one that reads for this one, is gone.
    """
    settings = from_keywords(settings, older)
    optimizer, losses = check_given(optimizer, losses)
    how = _evaluation_settings(precision, amp_level, test_config)
    _check_sets(train_dataset, val_dataset, how)
    warn_of_no_effect(profiler_options, logger, print_mem_info)
    ranks = join()
    step = TrainStep(
        model, optimizer, losses, precision, amp_level, ranks=ranks, to_static=to_static_training
    )
    ema = ModelEMA(model, decay=settings.ema_decay) if use_ema else None
    rates = settings.image_rates
    sampler = None if rates is None else Sampler(rates, len(train_dataset))
    kept = {
        "batch_size": batch_size,
        "accumulation_steps": settings.accumulation_steps,
        "processes": ranks.size,
        "precision": precision,
        "amp_level": amp_level if precision != "fp32" else "",
        "use_ema": use_ema,
        "shuffle": shuffle,
        "training images": len(train_dataset),
        "sampling of images (checksum)": sampler.digest if sampler else "",
    }
    state = TrainingState(step, ema, Progress(seed=settings.seed or 0, settings=kept))
    schedule = Schedule(iters, save_interval, log_iters, early_stop_intervals)
    folder = RunFolder(save_dir, ranks, settings.config_text, keep_checkpoint_max)
    folder.begin(state, settings, resume_model)
    progress = state.progress
    if schedule.has_ended(progress, val_dataset is not None):
        return progress
    images_per_iter = batch_size * settings.accumulation_steps * ranks.size
    batches = training_batches(
        train_dataset,
        batch_size,
        range((iters - progress.iteration) * settings.accumulation_steps),
        seed=progress.seed,
        num_workers=num_workers,
        shuffle=shuffle,
        share=Share(ranks.rank, ranks.size, origin=progress.images),
        image_sampler=sampler,
    )
    reader = BatchReader(train_dataset, batches, settings.accumulation_steps)
    epoch = sampler.length if sampler else len(train_dataset)
    with StopRequest() as stop, contextlib.ExitStack() as stack:
        monitor = TrainMonitor(schedule, progress.iteration, images_per_iter, epoch)
        watchers: list[Watcher] = [monitor]
        evaluation, preview = None, None
        if val_dataset is not None:
            val_dataset = StoppableDataset(val_dataset, stop)
            evaluation = Evaluation(val_dataset, how, folder, settings.save_format, watchers)
            preview = Preview(model, val_dataset, how)
        with ranks.guard():
            if use_vdl and ranks.is_main:
                averages = Averages(schedule, images_per_iter)
                watchers.append(_curves(folder, settings, progress.iteration, averages, preview))
        watchers += settings.watchers if ranks.is_main else ()
        for watcher in watchers:
            stack.callback(watcher.close)
        Trainer(state, schedule, reader, folder, evaluation, stop, watchers).run()
    return progress


def _evaluation_settings(precision, amp_level, test_config):
    how = {"precision": precision, "amp_level": amp_level, "num_workers": None}
    return {**how, **(test_config or {})}


def _check_sets(train_dataset, val_dataset, how):
    """What would end the run at its first iteration, or at its first evaluation."""
    require_labels(train_dataset, "train_dataset")
    if val_dataset is not None:
        check_evaluation(val_dataset, how)


def _curves(folder, settings, iteration, averages, preview):
    """The run's VisualDL file, after what an earlier one held, with config and settings."""
    earlier = None if folder.resumed is None else folder.resumed.parent
    writer = VisualDLWriter(folder.path, iteration, earlier)
    writer.describe(settings.config_text, settings.hyper_parameters, iteration, preview is not None)
    return VisualDL(writer, averages, preview)

# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

import contextlib
import itertools
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import paddle

from paddleseg_deeplab.core import ranks as distributed
from paddleseg_deeplab.core.training.data.batches import sample_names, training_batches
from paddleseg_deeplab.core.training.data.epochs import Sampler
from paddleseg_deeplab.core.training.late_losses import Journal
from paddleseg_deeplab.core.training.state import checkpoint, folder
from paddleseg_deeplab.core.training.state.progress import Progress, warn_of_another_machine
from paddleseg_deeplab.core.training.state.same_run import CONFIG, check_same_run
from paddleseg_deeplab.core.training.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.core.training.trainer import Evaluation, Run, has_ended
from paddleseg_deeplab.core.training.watch.interrupt import (
    Interrupted,
    StoppableDataset,
    StopRequest,
)
from paddleseg_deeplab.core.training.watch.loggers import VisualDLWriter
from paddleseg_deeplab.core.training.watch.monitor import Stopwatch, TrainMonitor
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger


def seed_everything(seed):
    """Seeds Python, NumPy and Paddle; data order and augmentation have generators of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def train(
    model,
    train_dataset,
    val_dataset=None,
    optimizer=None,
    save_dir="output",
    iters=10000,
    batch_size=2,
    early_stop_intervals=None,
    resume_model=None,
    save_interval=1000,
    log_iters=10,
    num_workers=0,
    use_vdl=False,
    use_ema=False,
    losses=None,
    keep_checkpoint_max=5,
    test_config=None,
    precision="fp32",
    amp_level="O1",
    *,
    accumulation_steps=1,
    ema_decay=0.999,
    seed=None,
    shuffle=True,
    config_text="",
    hyper_parameters=None,
    resume_ignore_config=False,
    image_rates=None,
    save_format="pdparams",
    to_static_training=False,
):
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
        accumulation_steps (int): Batches whose gradients are averaged in one iteration.
        ema_decay (float): Share of the old average kept.
        seed (int, optional): Of order, augmentation and dropout; 0 by default, and a resumed run
            keeps its own.
        shuffle (bool): False trains in the set's order.
        config_text (str): The resolved config, YAML: shown in VisualDL, kept in each checkpoint,
            and compared with the one in the checkpoint that is resumed.
        hyper_parameters (dict, optional): Name to number or text, for VisualDL's table.
        resume_ignore_config (bool): Goes on from a checkpoint of another config, with a warning.
        image_rates (array, optional): float [images], how often an epoch holds each image on
            average (see `Sampler`); once by default.
        save_format (str): Suffix of the best model's file, "pdparams" or "safetensors".
        to_static_training (bool): Trains the network as a compiled program; the same numbers up to
            rounding (see `TrainStep`).

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
    ranks = distributed.join()
    _check_positive(accumulation_steps=accumulation_steps)
    how = {"ranks": ranks, "to_static": to_static_training}
    step = TrainStep(model, optimizer, losses, precision, amp_level, **how)
    ema = ModelEMA(model, decay=ema_decay) if use_ema else None
    sampler = None if image_rates is None else Sampler(image_rates, len(train_dataset))
    settings = {
        "batch_size": batch_size,
        "accumulation_steps": accumulation_steps,
        "processes": ranks.size,
        "precision": precision,
        "amp_level": amp_level if precision != "fp32" else "",
        "use_ema": use_ema,
        "shuffle": shuffle,
        "training images": len(train_dataset),
        "sampling of images (checksum)": sampler.digest if sampler else "",
    }
    resumed, progress = _begin(
        *(save_dir, resume_model, step, ema, settings, seed, config_text, resume_ignore_config)
    )
    if has_ended(progress, iters, val_dataset is not None, early_stop_intervals):
        return progress
    images_per_iter = batch_size * accumulation_steps * ranks.size
    if progress.images < 0:
        progress.images = progress.iteration * images_per_iter
    place = {"rank": ranks.rank, "ranks": ranks.size, "origin": progress.images}
    reading = {"num_workers": num_workers, "image_sampler": sampler, **place}
    batches = training_batches(
        *(train_dataset, batch_size, 0, (iters - progress.iteration) * accumulation_steps),
        seed=progress.seed,
        shuffle=shuffle,
        **reading,
    )
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        earlier = None if resumed is None else resumed.parent
        with ranks.guard():
            curves = use_vdl and ranks.is_main
            writer = VisualDLWriter(save_dir, curves, progress.iteration, earlier)
        stack.enter_context(contextlib.closing(writer))
        writer.describe(config_text, hyper_parameters, progress.iteration, val_dataset is not None)
        epoch = sampler.length if sampler else len(train_dataset)
        counts = (iters, progress.iteration, log_iters, images_per_iter, epoch)
        monitor = stack.enter_context(contextlib.closing(TrainMonitor(*counts, writer)))
        evaluation = None
        if val_dataset is not None:
            how = {"precision": precision, "amp_level": amp_level, "num_workers": None}
            how |= test_config or {}
            val_dataset = StoppableDataset(val_dataset, stop)
            places = (save_dir, writer, ranks, save_format)
            evaluation = Evaluation(model, val_dataset, losses, how, *places)
        kept = (keep_checkpoint_max, config_text, early_stop_intervals)
        run = Run(save_dir, step, progress, ema, evaluation, stop, *kept)
        with _told(run):
            if not run.make_up_evaluation(resumed, iters):
                one = partial(_iterate, run, batches, accumulation_steps, train_dataset)
                _loop(one, run, monitor, iters, save_interval)
    return progress


@contextlib.contextmanager
def _told(run):
    """Says where a run was interrupted, and in a line what Paddle means when a reading process is
    gone or memory has run out; the other ranks are told what this one alone raises."""
    try:
        yield
    except Interrupted as reason:
        logger.info("The run was %s at iteration %d.", reason, run.progress.iteration)
        raise
    except Exception as error:
        batch_size = run.progress.settings["batch_size"]
        told = run.step.explained(error, [], batch_size=batch_size)
        run.step.ranks.leave(told)
        raise told from (error.__cause__ if told is error else error)


def _check_positive(**numbers):
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} should be at least 1, not {value}.")


def _begin(save_dir, resume_model, step, ema, settings, seed, config_text, ignore):
    """Prepares the folder and loads what is resumed: the checkpoint or None, and the progress."""
    ranks, model = step.ranks, step.model
    with ranks.guard():
        if ranks.is_main:
            Path(save_dir).mkdir(parents=True, exist_ok=True)
            folder.clean(save_dir)
    progress = Progress(seed=seed or 0, settings=settings)
    with ranks.guard():
        resumed = checkpoint.find_checkpoint(resume_model, save_dir)
        if resumed is not None:
            progress = checkpoint.resume(resumed, model, step, ema)
            _keep_to_the_run(resumed, progress, config_text, settings, seed, ignore)
    _check_same_checkpoint(ranks, resumed)
    with ranks.guard():
        if ranks.is_main:
            _prepare_folder(save_dir, resumed, config_text)
    ranks.copy_first(model.state_dict().values())
    return resumed, progress


def _loop(one, run, monitor, iters, save_interval):
    """Iterates until the end; ``one`` makes an iteration and returns what `Journal.add` takes."""
    run.step.model.train()
    watch = Stopwatch()
    journal = Journal(monitor, watch)
    run.before_saving = journal.read
    progress, ended = run.progress, False
    while progress.iteration < iters and not ended:
        figures, *rest = one(watch)
        if run.ema is not None:
            run.ema.update()
        journal.add(progress.iteration, figures, *rest)
        last = progress.iteration == iters
        due = last or progress.iteration % save_interval == 0
        ended = run.after_iteration(due, last, figures.signal)
        if due:
            monitor.writer.flush()
            watch.lap()


def _check_same_checkpoint(ranks, resumed):
    names = ranks.gather(None if resumed is None else resumed.name)
    if len(set(names)) > 1:
        raise UserError(
            f"--resume_model: the processes found different checkpoints ({names}); --save_dir has "
            "to be the same folder for all of them, on storage that the machines share."
        )


def _prepare_folder(save_dir, resumed, config_text):
    """Puts beside the checkpoints what belongs there from the start."""
    if config_text:
        folder.write_text(Path(save_dir) / CONFIG, config_text)
    if resumed is not None:
        checkpoint.carry_best_model(resumed, save_dir)


def _keep_to_the_run(resumed, progress, config_text, settings, seed, ignore):
    """Checks that the run resumed is this one, and takes on what may differ."""
    seed = progress.seed if seed is None else seed
    saved = {**progress.settings, "seed": progress.seed}
    now = {**settings, "seed": seed}
    if saved.get("processes", now["processes"]) != now["processes"]:
        # Another number of processes is the same run as long as they read as many images.
        saved, now = _joined(saved), _joined(now)
    check_same_run(resumed, config_text, now, saved, ignore=ignore)
    warn_of_another_machine(progress)
    progress.seed, progress.settings = seed, settings


def _joined(settings):
    parts = ("batch_size", "accumulation_steps", "processes")
    rest = {key: value for key, value in settings.items() if key not in parts}
    return {"images an iteration": math.prod(settings[key] for key in parts), **rest}


def _iterate(run, batches, count, dataset, watch):
    """One update of the weights from the next ``count`` batches of each rank; counts it in the
    run's progress.

    Returns:
        tuple: `Figures`, the learning rate used, seconds for reading and computing.
    """
    step, progress = run.step, run.progress
    keys, taken, fault = [], [], None
    try:
        for _ in range(count):
            batch_keys, images, labels = next(batches)
            keys.extend(batch_keys)
            taken.append((images, labels))
    except Exception as error:
        fault = error
    reader_seconds = watch.lap()
    iteration = progress.iteration + 1
    # Dropout, and whatever else a network or a loss draws from the global states, then follows
    # from seed, iteration and rank alone, so that a resumed run repeats it.
    source = np.random.SeedSequence([progress.seed, iteration, step.ranks.rank])
    seed_everything(int(source.generate_state(1)[0]))
    rate = float(step.optimizer.get_lr())

    def explain(error, gather=lambda names: [names]):
        names = itertools.chain(*gather(sample_names(dataset, keys)))
        return NonFiniteLoss(
            f"Training stopped at iteration {iteration}: {error}. The batch was: "
            f"{', '.join(names)}. Lower the learning rate, clip gradients "
            "(optimizer.grad_clip_cfg), or look at these files."
        )

    figures = step.run(taken, explain, fault=fault, signal=lambda: run.stop.signal or 0)
    progress.iteration = iteration
    progress.images += len(keys) * step.ranks.size
    return figures, rate, reader_seconds, watch.lap()

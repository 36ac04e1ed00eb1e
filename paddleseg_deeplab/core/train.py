# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

import contextlib
import random
from pathlib import Path

import numpy as np
import paddle

from paddleseg_deeplab.core import state
from paddleseg_deeplab.core.forward import evaluation_mode
from paddleseg_deeplab.core.loader import sample_names, training_batches
from paddleseg_deeplab.core.monitor import Stopwatch, TrainMonitor
from paddleseg_deeplab.core.preview import prediction_picture
from paddleseg_deeplab.core.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.core.vdl import VisualDLWriter
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_PICTURES = 4  # validation images whose predictions are shown in VisualDL


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
):
    """Trains a model and keeps checkpoints in ``<save_dir>/iter_N`` and ``best_model``.

    Args:
        model (nn.Layer): Gives a list of logits.
        train_dataset: Samples with ``img`` float32 [C, H, W] and ``label`` int64 [H, W].
        val_dataset (optional): Evaluated every ``save_interval`` iterations and at the end.
        optimizer (paddle.optimizer.Optimizer): Over the model's parameters.
        save_dir (str): Made if missing.
        iters (int): Iterations; one is one update of the weights.
        batch_size (int): Images in one forward pass.
        early_stop_intervals (int, optional): Stops after so many evaluations without a better
            mIoU.
        resume_model (str, optional): An ``iter_N`` folder to go on from.
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
        config_text (str): The resolved config, YAML, shown in VisualDL.
        hyper_parameters (dict, optional): Name to number or text, for VisualDL's table.

    Returns:
        Progress: Where the run ended, with the best mIoU.

    Raises:
        UserError: A setting or a sample is wrong.
        NonFiniteLoss: Names the iteration and the batch's files; the parameters are as before it.
    """
    _refuse_ranks()
    if accumulation_steps < 1:
        raise UserError(f"accumulation_steps should be at least 1, not {accumulation_steps}.")
    step = TrainStep(model, optimizer, losses, precision, amp_level)
    ema = ModelEMA(model, decay=ema_decay) if use_ema else None
    progress, earlier = state.Progress(), None
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    if resume_model is not None:
        progress = state.resume(resume_model, model, step, ema)
        state.carry_best_model(resume_model, save_dir)
        earlier = Path(resume_model).parent
    if seed is not None:
        progress.seed = seed
    if progress.iteration >= iters:
        logger.warning("All %d iterations are done already; nothing is trained.", iters)
        return progress
    writer = VisualDLWriter(save_dir, use_vdl, progress.iteration, earlier)
    evaluation = None
    if val_dataset is not None:
        settings = {"precision": precision, "amp_level": amp_level, **(test_config or {})}
        evaluation = _Evaluation(model, val_dataset, losses, settings, save_dir, writer)
    images_per_iter = batch_size * accumulation_steps
    counts = (iters, progress.iteration, log_iters, images_per_iter, len(train_dataset))
    batches = training_batches(
        *(train_dataset, batch_size),
        *(progress.iteration * accumulation_steps, iters * accumulation_steps),
        seed=progress.seed,
        num_workers=num_workers,
        shuffle=shuffle,
    )
    with contextlib.closing(writer), contextlib.closing(TrainMonitor(*counts, writer)) as monitor:
        if config_text:
            writer.config(config_text, progress.iteration)
        metrics = ["Train/loss", *(["Evaluate/mIoU", "Evaluate/Acc"] if evaluation else [])]
        writer.hyper_parameters(hyper_parameters or {}, metrics)
        model.train()
        watch = Stopwatch()
        while progress.iteration < iters:
            figures = _iterate(step, batches, accumulation_steps, progress, train_dataset, watch)
            if ema is not None:
                ema.update()
            monitor.record(progress.iteration, *figures)
            if progress.iteration % save_interval and progress.iteration != iters:
                continue
            # Saved first: an evaluation that fails then costs no training.
            folder = state.save_checkpoint(
                save_dir, model, step, progress, ema, keep_checkpoint_max
            )
            logger.info("Saved %s.", folder)
            if evaluation is not None:
                evaluation.run(progress, ema)
                state.save_progress(folder, progress)
            writer.flush()
            if evaluation is not None and _stops_early(progress, early_stop_intervals):
                break
            watch.lap()
    return progress


def _refuse_ranks():
    if paddle.distributed.get_world_size() > 1:
        raise UserError(
            "Training with several processes is not supported yet: start train.py without "
            "paddle.distributed.launch."
        )


def _iterate(step, batches, count, progress, dataset, watch):
    """One update of the weights from the next ``count`` batches; counts it in ``progress``.

    Returns:
        tuple: Loss, its parts by name, the learning rate used, seconds for reading and computing.
    """
    keys, taken = [], []
    for _ in range(count):
        batch_keys, images, labels = next(batches)
        keys.extend(batch_keys)
        taken.append((images, labels))
    reader_seconds = watch.lap()
    iteration = progress.iteration + 1
    # Dropout then follows from seed and iteration alone, so that a resumed run repeats it.
    paddle.seed(int(np.random.SeedSequence([progress.seed, iteration]).generate_state(1)[0]))
    rate = float(step.optimizer.get_lr())
    try:
        loss, parts = step(taken)
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"Training stopped at iteration {iteration}: {error}. The batch was: "
            f"{', '.join(sample_names(dataset, keys))}. Lower the learning rate, clip gradients "
            "(optimizer.grad_clip_cfg), or look at these files."
        ) from None
    progress.iteration = iteration
    return loss, parts, rate, reader_seconds, watch.lap()


def _stops_early(progress, intervals):
    waited = progress.evaluations_without_gain
    if not intervals or waited < intervals:
        return False
    logger.info(
        "Early stop: no better mIoU in %d evaluations; the best was %.4f at iteration %d.",
        *(waited, progress.best_miou, progress.best_iteration),
    )
    return True


class _Evaluation:
    """Evaluates a model in training, shows the result and keeps the best weights."""

    def __init__(self, model, dataset, losses, settings, save_dir, writer):
        self.model = model
        self.dataset = dataset
        self.losses = losses
        self.settings = settings
        self.best_folder = Path(save_dir) / "best_model"
        self.writer = writer

    def run(self, progress, ema=None):
        """Evaluates the weights, or their average where there is one; updates ``progress``."""
        with ema.applied() if ema is not None else contextlib.nullcontext():
            result = evaluate(self.model, self.dataset, losses=self.losses, **self.settings)
            self._show(result, progress.iteration)
            if result.miou > progress.best_miou:
                progress.best_miou = float(result.miou)
                progress.best_iteration = progress.iteration
                progress.evaluations_without_gain = 0
                state.save_weights(self.model, self.best_folder)
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
        with evaluation_mode(self.model):
            for i in range(min(_PICTURES, len(self.dataset))):
                picture = prediction_picture(self.model, self.dataset, i, *precision)
                self.writer.image(f"Evaluate/truth_and_prediction_{i}", picture, iteration)

# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddleseg_deeplab.core.training.data.reader import BatchReader, IterationBatches
from paddleseg_deeplab.core.training.determinism import seed_everything
from paddleseg_deeplab.core.training.evaluation import Evaluation
from paddleseg_deeplab.core.training.late_losses import Iteration, Journal, Stopwatch
from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.state.progress import Progress
from paddleseg_deeplab.core.training.state.run_folder import RunFolder
from paddleseg_deeplab.core.training.step import NonFiniteLoss, TrainStep
from paddleseg_deeplab.core.training.watch.interrupt import Interrupted, StopRequest
from paddleseg_deeplab.core.training.watch.watcher import Watcher
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.logger import logger


@dataclasses.dataclass
class TrainingState:
    """What training changes, and what a checkpoint holds.

    Attributes:
        step (TrainStep): The network with its optimizer and loss scaler.
        ema (ModelEMA | None): The moving average of the weights.
        progress (Progress): Where the run stands.
    """

    step: TrainStep
    ema: ModelEMA | None
    progress: Progress


class Trainer:
    """Trains: reads, updates, logs, saves and evaluates, one iteration after another.

    Args:
        state (TrainingState): Where the run begins; is trained.
        schedule (Schedule): How long, and when it logs, saves and ends early.
        reader (BatchReader): Gives each iteration's batches.
        folder (RunFolder): Takes the checkpoints.
        evaluation (Evaluation | None): Run after each regular checkpoint.
        stop (StopRequest): Asked after each iteration and throughout evaluation.
        watchers (Sequence[Watcher]): Are told what happened.
    """

    def __init__(
        self,
        state: TrainingState,
        schedule: Schedule,
        reader: BatchReader,
        folder: RunFolder,
        evaluation: Evaluation | None,
        stop: StopRequest,
        watchers: Sequence[Watcher],
    ) -> None:
        self.state = state
        self.schedule = schedule
        self.reader = reader
        self.folder = folder
        self.evaluation = evaluation
        self.stop = stop
        self.watchers = watchers
        self.watch = Stopwatch()
        self.journal = Journal(watchers, schedule, self.watch)

    def run(self) -> None:
        """Trains from where the state is to the end of the schedule.

        Raises:
            Interrupted: A signal came; there is a checkpoint.
            Exception: As `core.train.train` says.
        """
        with self._end_explained():
            if self.finish_evaluation():
                return
            self.state.step.model.train()
            self.watch.lap()
            for number in range(self.state.progress.iteration + 1, self.schedule.iters + 1):
                batches = self.read()
                iteration = self.update(number, batches)
                del batches  # the next ones are not read beside them
                self.log(iteration)
                # Saved first: an evaluation that fails, or is cut off, then costs no training.
                saved = self.save(iteration)
                if saved is None:
                    continue
                self.evaluate(saved)
                if self.is_over():
                    break
                self.check_stop()
                self.watch.lap()

    def read(self) -> IterationBatches:
        """The next iteration's `IterationBatches`."""
        batches = self.reader.read()
        batches.seconds = self.watch.lap()
        return batches

    def update(self, number: int, batches: IterationBatches) -> Iteration:
        """One update of the weights; counts it in the run's progress.

        Args:
            number (int): Of the iteration, from 1.
            batches (IterationBatches): Of this process.

        Returns:
            Iteration: Its losses may be on the device still.
        """
        step, progress = self.state.step, self.state.progress
        # Dropout, and whatever else a network or a loss draws from the global states, then follows
        # from seed, iteration and rank alone, so that a resumed run repeats it.
        source = np.random.SeedSequence([progress.seed, number, step.ranks.rank])
        seed_everything(int(source.generate_state(1)[0]))
        learning_rate = float(step.optimizer.get_lr())
        keys = batches.keys  # not the batches: losses that are read late hold what explains them

        def explain(error, gather=lambda names: [names]):
            names = itertools.chain(*gather(self.reader.names(keys)))
            return NonFiniteLoss(
                f"Training stopped at iteration {number}: {error}. The batch was: "
                f"{', '.join(names)}. Lower the learning rate, clip gradients "
                "(optimizer.grad_clip_cfg), or look at these files."
            )

        result = step.run(
            batches.tensors, explain, fault=batches.fault, signal=lambda: self.stop.signal or 0
        )
        progress.iteration = number
        progress.images += len(keys) * step.ranks.size
        if self.state.ema is not None:
            self.state.ema.update()
        return Iteration(number, result, learning_rate, batches.seconds, self.watch.lap())

    def log(self, iteration: Iteration) -> None:
        """Tells the watchers of an iteration, at once or when its losses are read."""
        self.journal.add(iteration)

    def save(self, iteration: Iteration) -> Path | None:
        """Writes a checkpoint where one is due, or where a signal came; its folder, else None.

        A signal that came to any of the processes before they agreed in this iteration
        (`StepResult.signal`) stops all of them now. One that came since waits for the next
        iteration, as the others do not know of it (there are none to wait for where one process
        runs alone).
        """
        state, progress = self.state, self.state.progress
        signal = iteration.result.signal
        if state.step.ranks.size == 1:
            signal = self.stop.signal or 0
        self.stop.take_on(signal)
        due = self.schedule.saves_at(iteration.number)
        if not due and not signal:
            return None
        self.journal.read()  # raises where the weights are not fit to be kept
        progress.interrupted = not due
        progress.evaluation_due = due and self.evaluation is not None
        saved = self.folder.save_checkpoint(state)
        for watcher in self.watchers:
            watcher.after_saving(iteration.number, saved)
        return saved

    def evaluate(self, saved: Path | None) -> None:
        """Evaluates where that is due, and notes in the checkpoint that it is done.

        Args:
            saved (Path | None): The checkpoint of these weights; None notes it nowhere.
        """
        progress = self.state.progress
        if self.evaluation is None or not progress.evaluation_due:
            return
        self.check_stop()
        self.evaluation.run(self.state)
        progress.evaluation_due = False
        if saved is not None:
            self.folder.save_evaluation(saved, progress)

    def finish_evaluation(self) -> bool:
        """Makes the evaluation that was cut off after the checkpoint; True if it was the end."""
        progress = self.state.progress
        if self.evaluation is None or not progress.evaluation_due:
            return False
        logger.info("Evaluating iteration %d, which was cut off.", progress.iteration)
        self.evaluate(self.folder.resumed if self.folder.is_resumed_here() else None)
        if self.is_over():
            return True
        self.check_stop()
        return False

    def is_over(self) -> bool:
        """Whether the last iteration is done, or evaluations no longer gain."""
        return self.schedule.is_over(self.state.progress, self.evaluation is not None)

    def check_stop(self) -> None:
        """Raises `Interrupted` on all processes where a signal came to one of them."""
        with self.state.step.ranks.guard():
            self.stop.check()

    @contextlib.contextmanager
    def _end_explained(self):
        """Says where a run was interrupted, and in a line what Paddle means when a reading process
        is gone or memory has run out; the other ranks are told what this one alone raises."""
        step, progress = self.state.step, self.state.progress
        try:
            yield
        except Interrupted as reason:
            logger.info("The run was %s at iteration %d.", reason, progress.iteration)
            raise
        except Exception as error:
            step.raise_explained(error, [], batch_size=progress.settings["batch_size"])

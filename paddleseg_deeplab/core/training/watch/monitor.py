# SPDX-License-Identifier: Apache-2.0
"""What a training run tells: log lines, a progress bar, curves."""

import sys
import time

import paddle
from tqdm import tqdm

from paddleseg_deeplab.utils.logger import logger


def memory_in_mib():
    """Peak memory: of the GPU where one is used, else of this process; MiB, 0 if unknown."""
    if paddle.get_device() != "cpu" and paddle.device.is_compiled_with_cuda():
        return paddle.device.cuda.max_memory_allocated() // 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10


_LONG = 3600  # seconds of training on a CPU from which on there is advice


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


class TrainMonitor:
    """Averages over ``log_iters`` iterations and reports them.

    Args:
        iters (int): Iterations of the whole run.
        start (int): Iterations done before.
        log_iters (int): A line every so many.
        images_per_iter (int): Images in an iteration.
        dataset_size (int): Images in the training set, for the epoch.
        writer (VisualDLWriter): Takes the same numbers.
    """

    def __init__(self, iters, start, log_iters, images_per_iter, dataset_size, writer):
        self.iters = iters
        self.log_iters = log_iters
        self._on_cpu = paddle.get_device() == "cpu"
        self._is_first = True
        self.images_per_iter = images_per_iter
        self.dataset_size = dataset_size
        self.writer = writer
        # On a terminal only: in a file a bar is noise.
        self.bar = tqdm(
            total=iters,
            initial=start,
            unit="iter",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._reset()

    def _reset(self):
        self._count = 0
        self._sums = {}
        self._reader = 0.0
        self._step = 0.0

    def tells(self, iteration):
        """Whether a line is due at an iteration, counted from 1."""
        return iteration % self.log_iters == 0 or iteration == self.iters

    def record(self, iteration, loss, parts, learning_rate, reader_seconds, step_seconds):
        """Takes one iteration's figures; reports when a line is due.

        Args:
            iteration (int): Counted from 1.
            loss (float): Weighted sum of the parts.
            parts (dict[str, float]): Weighted parts by name.
            learning_rate (float): Used in this iteration.
            reader_seconds (float): Waited for data.
            step_seconds (float): Forward, backward and update.
        """
        self._count += 1
        self._reader += reader_seconds
        self._step += step_seconds
        for name, value in {"loss": loss, **parts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self.bar.update(1)
        if self._is_first and self._on_cpu and iteration < self.iters:
            self._tell_time_left(iteration, reader_seconds + step_seconds)
        self._is_first = False
        if self.tells(iteration):
            self._report(iteration, learning_rate)
            self._reset()

    def _tell_time_left(self, iteration, seconds):
        """On a CPU ten iterations, after which the first line comes, may take minutes. (On a GPU
        the first iteration says little: it is the one that builds the kernels.)"""
        left = (self.iters - iteration) * seconds
        logger.info(
            "The first iteration took %.1f s: the %d that are left will take about %s, without "
            "evaluations.",
            *(seconds, self.iters - iteration, _clock(left)),
        )
        if left > _LONG:
            logger.info(
                "That is long, since this is a CPU. To see a whole run in minutes: "
                "paddleseg-deeplab quickstart (or make quickstart). For your own data, a lighter "
                "recipe: configs/camvid/deeplabv3p_resnet18_os16_256x256.yml. To shorten this run: "
                "--iters. Or use a GPU."
            )

    def _report(self, iteration, learning_rate):
        means = {name: value / self._count for name, value in self._sums.items()}
        reader, step = self._reader / self._count, self._step / self._count
        batch = reader + step
        images_per_second = self.images_per_iter / batch if batch else 0.0
        loss = means.pop("loss")
        told = ", ".join(f"{name}: {value:.4f}" for name, value in means.items())
        memory = memory_in_mib()
        epoch = (iteration * self.images_per_iter - 1) // self.dataset_size + 1
        logger.info(
            "[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f (%s), lr: %.6g, batch_cost: %.4f, "
            "step_cost: %.4f, reader_cost: %.4f, ips: %.2f images/s, memory: %d MiB | ETA %s",
            *(epoch, iteration, self.iters, loss, told, learning_rate, batch, step, reader),
            *(images_per_second, memory, _clock((self.iters - iteration) * batch)),
        )
        self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.4g}")
        scalars = {
            "Train/loss": loss,
            "Train/lr": learning_rate,
            "Train/batch_cost": batch,
            "Train/step_cost": step,
            "Train/reader_cost": reader,
            "Train/images_per_second": images_per_second,
            "Train/memory_mib": memory,
        }
        scalars.update({f"Train/loss_{name}": value for name, value in means.items()})
        self.writer.scalars(scalars, iteration)

    def close(self):
        self.bar.close()


class Stopwatch:
    """Seconds since the last reading."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self):
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

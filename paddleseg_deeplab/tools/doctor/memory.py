# SPDX-License-Identifier: Apache-2.0
"""Whether a training step takes the memory that `inspect_model --memory` tells."""

import gc
from collections.abc import Callable, Sequence

import numpy as np
import paddle
from paddle.base import core as paddle_core

from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed, skipped
from paddleseg_deeplab.tools.inspect_model.memory import (
    GIB,
    TrainingMemory,
    crop_of,
    forget_class_weights,
    in_channels_of,
    moments_of,
)
from paddleseg_deeplab.utils.errors import UserError

NAME = "peak memory of a training step"
TOLERANCE = 0.2


class _Counter:
    """Paddle's count of what it has allocated, in bytes: on a GPU its memory, else the host's."""

    def __init__(self, device):
        kind, _, number = device.partition(":")
        self._place = int(number or 0)
        self._kind = "host" if kind == "cpu" else "device"

    def _call(self, what):
        return getattr(paddle_core, f"{self._kind}_memory_stat_{what}_value")(
            "Allocated", self._place
        )

    def now(self):
        return self._call("current")

    def peak(self):
        return self._call("peak")

    def forget_peak(self):
        self._call("reset_peak")


def peak_of_step(
    build: Callable[[], SegBuilder],
    batch_size: int,
    size: tuple[int, int],
    device: str,
    *,
    precision: str = "fp32",
    amp_level: str = "O1",
    channels: int = 3,
) -> int:
    """Runs two training steps on random images; the second one's peak.

    Args:
        build (callable): Gives an object with ``model``, ``optimizer`` and ``loss``, as a
            `SegBuilder` has them; called once the device is chosen.
        batch_size (int): Images.
        size (tuple[int, int]): (height, width) of the images.
        device (str): "cpu", "gpu" or "gpu:1".
        precision, amp_level (str): As `TrainStep` takes them.
        channels (int): Of the images.

    Returns:
        int: Bytes that Paddle allocated, model and optimizer counted, at most at one time.
    """
    paddle.set_device(device)
    gc.collect()
    counter = _Counter(device)
    before = counter.now()
    parts = build()
    parts.model.train()
    step = TrainStep(parts.model, parts.optimizer, parts.loss, precision, amp_level)
    random = np.random.default_rng(0)
    classes = getattr(parts.model, "num_classes", 2)
    images = random.standard_normal((batch_size, channels, *size), np.float32)
    labels = random.integers(0, classes, (batch_size, *size), np.int64)
    batch = (paddle.to_tensor(images), paddle.to_tensor(labels))
    step([batch])  # the first one makes the optimizer's state
    counter.forget_peak()
    step([batch])
    return counter.peak() - before


def check_memory(
    device: str,
    config: str,
    *,
    batch_size: int | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    amp_level: str = "O1",
    opts: Sequence[str] | None = None,
) -> Row:
    """Compares the measured peak of a recipe's training step with the estimate.

    Args:
        device (str): "cpu" or "gpu"; on a CPU only "fp32" runs.
        config (str): YAML file.
        batch_size (int, optional): Images; by default the config's.
        size (tuple[int, int], optional): (height, width); by default the config's crop.
        precision, amp_level (str): As `TrainStep` takes them.
        opts (list[str], optional): As `Config` takes them.

    Returns:
        Row: passed where they differ by at most 20 % of the estimate, skipped where the installed
            Paddle does not know the device.

    Raises:
        UserError: The config does not tell the size of the images.
    """
    if device != "cpu" and not paddle.is_compiled_with_cuda():
        return skipped(NAME, f"the installed Paddle has no kernels for {device}")
    recipe = Config(config, opts=opts)
    recipe.drop_pretrained()
    forget_class_weights(recipe.dic.get("loss", {}))
    # Random weights diverge at a recipe's rate where batch norm is frozen.
    recipe.dic["lr_scheduler"] = {"type": "PolynomialDecay", "learning_rate": 1e-8}
    batch_size = batch_size or recipe.batch_size
    size = size or crop_of(recipe.train_dataset_cfg)
    if size is None:
        raise UserError(
            f"{config}: the transforms of train_dataset do not tell the size of the images that "
            "are trained on; give the size (height, width)."
        )
    channels = in_channels_of(recipe.model_cfg)
    # The estimate's network is run on a CPU: four small images cost no time there, and no memory
    # of the device.
    paddle.set_device("cpu")
    builder = SegBuilder(recipe)
    builder.model.train()
    memory = TrainingMemory(
        *(builder.model, size, builder.loss),
        moments=moments_of(builder.optimizer),
        in_channels=channels,
        on_cpu=device == "cpu",
    )
    column = "fp32" if precision == "fp32" else amp_level
    estimate = memory.estimate(batch_size).peak[column]
    del builder, memory
    found = peak_of_step(
        *(lambda: SegBuilder(recipe), batch_size, size, device),
        precision=precision,
        amp_level=amp_level,
        channels=channels,
    )
    ratio = found / estimate
    text = (
        f"{found / GIB:.2f} GiB measured, {estimate / GIB:.2f} GiB estimated (ratio {ratio:.2f}) "
        f"for {batch_size} images of {size[1]}x{size[0]} in {column} on {device}"
    )
    return (passed if abs(ratio - 1) <= TOLERANCE else failed)(NAME, text)

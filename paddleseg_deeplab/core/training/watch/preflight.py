# SPDX-License-Identifier: Apache-2.0
"""What can be found out before a run makes its folder: parts that do not fit each other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.core.dataset import AnyDataset, LabelledDataset
from paddleseg_deeplab.core.training.data.batches import training_batches
from paddleseg_deeplab.core.training.data.shared_memory import check_shared_memory
from paddleseg_deeplab.core.val import check_evaluation
from paddleseg_deeplab.datasets.base import require_labels
from paddleseg_deeplab.models.forward import run_model
from paddleseg_deeplab.models.losses.total import compute_losses
from paddleseg_deeplab.utils.logger import logger

_IMAGES = 8  # of the first batch that are read
_SIDE = 128  # pixels of the first image that go through the network


def check_start(
    model: nn.Layer,
    train_dataset: AnyDataset,
    losses: Mapping[str, Any],
    batch_size: int,
    *,
    val_dataset: LabelledDataset | None = None,
    test_config: Mapping[str, Any] | None = None,
    num_workers: int = 0,
) -> None:
    """Reads some images of a first batch and a validation sample, and tries network and losses.

    Nothing is changed: batch norms get their running statistics back.

    Args:
        model (nn.Layer): In training mode.
        train_dataset: As `core.train.train` takes it.
        losses (dict): ``types`` and ``coef``, as `SegBuilder.loss`.
        batch_size (int): Images in a batch.
        val_dataset (optional): Where the run evaluates.
        test_config (dict, optional): Keyword arguments of `evaluate`.
        num_workers (int): Reading processes.

    Raises:
        UserError: A sample cannot be read or transformed, the images of a batch differ in size,
            the losses do not fit the network's outputs, the evaluation's settings are wrong, or
            the batches of the reading processes do not fit into shared memory.
    """
    require_labels(train_dataset, "train_dataset")
    if val_dataset is not None:
        check_evaluation(val_dataset, test_config or {})
        if len(val_dataset):
            val_dataset[0]
    count = min(batch_size, _IMAGES)
    _, images, labels = next(training_batches(train_dataset, count, range(1), seed=0))
    # Reading processes send labels in the smallest type that holds them.
    label_bytes = np.min_scalar_type(int(labels.max())).itemsize
    read = int(images.size) * images.element_size() + int(labels.size) * label_bytes
    check_shared_memory(read * batch_size // count, num_workers)
    warn_of_wide_rates(model, images.shape[-2:])
    _try(model, images[:1, :, :_SIDE, :_SIDE], labels[:1, :_SIDE, :_SIDE], losses)


def _try(model, images, labels, losses):
    # Running statistics are parameters without gradients in Paddle, other buffers have none either.
    states = [state for state in model.state_dict().values() if state.stop_gradient]
    before = [(state, state.clone()) for state in states]
    # Without their exchange: another process may have failed before it came here.
    synchronised = [
        layer
        for layer in model.sublayers()
        if isinstance(layer, nn.SyncBatchNorm) and layer.training
    ]
    for layer in synchronised:
        layer.eval()
    try:
        with paddle.no_grad():
            logits = run_model(model, images)
            compute_losses(logits, labels, losses, getattr(model, "data_format", "NCHW"))
    finally:
        for layer in synchronised:
            layer.train()
        for state, value in before:
            paddle.assign(value, output=state)


def warn_of_wide_rates(model: nn.Layer, size: Sequence[int]) -> list[int]:
    """Warns of atrous convolutions in the head that see nothing but padding around their middle.

    The V3 paper (section 3.3) describes it: as the rate comes near the map's side, a 3x3 kernel
    becomes a 1x1 one.

    Args:
        model (nn.Layer): With ``head`` and ``backbone.feat_strides``; else nothing is done.
        size (Sequence[int]): (height, width) of the training images.

    Returns:
        list[int]: The rates that are too wide.
    """
    head = getattr(model, "head", None)
    strides = getattr(getattr(model, "backbone", None), "feat_strides", None)
    if not isinstance(head, nn.Layer) or not strides:
        return []
    stride = max(strides)
    rows, columns = (math.ceil(side / stride) for side in size)
    convs = [layer for layer in head.sublayers() if isinstance(layer, nn.Conv2D)]
    rates = {max(conv._dilation) for conv in convs if max(conv._kernel_size) > 1}
    wide = sorted(rate for rate in rates if rate > 1 and rate >= min(rows, columns))
    if wide:
        logger.warning(
            "The training images are %dx%d (width x height), a map of %dx%d at output stride %d: "
            "of 3x3 kernels at rate %s, at least one side of which is no smaller, the outer taps "
            "meet only padding. Use larger crops or smaller rates (model.aspp_ratios).",
            size[1],
            size[0],
            columns,
            rows,
            stride,
            ", ".join(map(str, wide)),
        )
    return wide


def warn_of_update_size(
    images_per_update: int | None, batch_size: int, accumulation_steps: int = 1, processes: int = 1
) -> str:
    """Warns where an update of the weights reads another number of images than its recipe's.

    A recipe for four GPUs on one has a quarter of the images at the same learning rate, and ends
    with another mIoU.

    Args:
        images_per_update (int | None): What the recipe was meant for; None warns of nothing.
        batch_size (int): Images in a batch of one process.
        accumulation_steps (int): Batches whose gradients are averaged.
        processes (int): That train together.

    Returns:
        str: The line; empty where the numbers agree.
    """
    here = batch_size * accumulation_steps * processes
    if images_per_update is None or here == images_per_update:
        return ""
    line = (
        f"An update of the weights reads {here} image{'s' * (here > 1)} here (batch_size "
        f"{batch_size} x accumulation_steps {accumulation_steps} x {processes} "
        f"process{'es' * (processes > 1)}), and this recipe was meant for {images_per_update} "
        "(images_per_update): expect another mIoU. "
    )
    line += _how_to_read(images_per_update, batch_size, processes)
    line += (
        f" Without it, the usual remedy is a learning rate {here / images_per_update:.3g} times as "
        "high (linear scaling). Where the difference is meant, set images_per_update to it."
    )
    logger.warning(line)
    return line


def _how_to_read(images, batch_size, processes):
    """What gives so many images an update: the largest batch up to ``batch_size`` that does."""
    share, rest = divmod(images, processes)
    if rest:
        return f"No setting gives that on {processes} processes: {images} is no multiple of it."
    batch = max(b for b in range(1, min(batch_size, share) + 1) if share % b == 0)
    steps = f"accumulation_steps={share // batch}"
    if batch == batch_size:
        return f"--opts {steps} gives that; batch norm still sees {batch} at a time."
    return f"--batch_size {batch} --opts {steps} gives that."

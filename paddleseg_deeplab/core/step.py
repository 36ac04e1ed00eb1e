# SPDX-License-Identifier: Apache-2.0
"""One training iteration: forward, loss, backward, update."""

import math

import numpy as np
import paddle

from paddleseg_deeplab.core.distributed import Ranks
from paddleseg_deeplab.core.forward import (
    batch_weights,
    compute_losses,
    output_sizes,
    part_count,
    precision_context,
    run_model,
)
from paddleseg_deeplab.utils.errors import NonFiniteLoss

__all__ = ["NonFiniteLoss", "TrainStep"]


class TrainStep:
    """Runs iterations on one model and one optimizer.

    Args:
        model (nn.Layer): In training mode.
        optimizer (paddle.optimizer.Optimizer): Driven by an LRScheduler.
        losses (dict): ``types`` and ``coef`` as `SegBuilder.loss`.
        precision (str): "fp32", "fp16", "bf16"; the latter two on a GPU only.
        amp_level (str): "O1" or "O2".
        ranks (Ranks, optional): The processes that train together, each calling this at the same
            time with batches of its own.

    Raises:
        UserError: Mixed precision was asked for on a CPU.
    """

    def __init__(self, model, optimizer, losses, precision="fp32", amp_level="O1", *, ranks=None):
        precision_context(precision, amp_level)  # fails early where it cannot work
        self.losses = losses
        self.precision = precision
        self.amp_level = amp_level
        self.ranks = ranks or Ranks()
        # Only float16 needs loss scaling: bfloat16 has float32's exponent range.
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=1024.0)
        if precision != "fp32" and amp_level == "O2":
            dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
            model, optimizer = paddle.amp.decorate(
                models=model, optimizers=optimizer, level="O2", dtype=dtype, save_dtype="float32"
            )
        self.model = model
        self.optimizer = optimizer
        self._sizes = {}  # (height, width) of images -> those of the outputs

    def __call__(self, batches, explain=None):
        """Runs one iteration over the batches of all ranks as if they were one.

        A loss that is a mean over pixels (cross-entropy without top_k_percent_pixels, focal) or
        images (Dice) is the mean over those of all batches together, so neither the number of
        micro-batches nor that of ranks changes it, however the void pixels lie; of any other loss
        it is the mean of the batches' values. Batch norm sees a batch at a time.

        Args:
            batches (list[tuple[Tensor, Tensor]]): Images float32 [N, C, H, W] and labels int64
                [N, H, W]; more than one is gradient accumulation.
            explain (callable, optional): Takes this rank's `NonFiniteLoss`, returns the one to
                raise.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, over all batches.

        Raises:
            NonFiniteLoss: On any rank, before the weights are touched.
        """
        try:
            logits, shares = self._start(batches)
            value, parts, count = self._backward(batches, logits, shares, explain)
        except Exception:
            self.optimizer.clear_grad()
            raise
        self.ranks.sum_gradients(self._trained(), count)
        self._update()
        return value, parts

    def _trained(self):
        return [p for p in self.model.parameters() if not p.stop_gradient]

    def _logits(self, images):
        with precision_context(self.precision, self.amp_level):
            return run_model(self.model, images)

    def _layout(self):
        return getattr(self.model, "data_format", "NCHW")

    def _start(self, batches):
        """The first batch's logits, and the factor of each batch's loss parts or None for ones."""
        error, logits = None, None
        weights = np.zeros((len(batches), part_count(self.losses)))
        alone = self.ranks.size == 1 and len(batches) == 1
        try:
            logits = self._logits(batches[0][0])
            if not alone:
                weights = self._weights(batches, logits)
        except Exception as caught:
            error = caught
        total = self.ranks.agree(error, weights.sum(axis=0))
        if alone:
            return logits, None
        # Where nothing counts at all, every loss is 0 and so is any share of it.
        return logits, weights / np.where(total > 0, total, 1.0)

    def _weights(self, batches, logits):
        """How much each batch counts in each loss part, float64 [batches, parts]."""
        first = tuple(batches[0][0].shape[2:])
        self._sizes[first] = output_sizes(logits, self._layout())
        rows = []
        for images, labels in batches:
            size = tuple(images.shape[2:])
            # Of a size not seen yet the outputs are not known; they are as fine as the first's.
            sizes = self._sizes.get(size) or [
                tuple(-(-s * out // of) for s, of, out in zip(size, first, outputs))
                for outputs in self._sizes[first]
            ]
            rows.append(batch_weights(labels, sizes, self.losses))
        return np.asarray(rows, np.float64)

    def _backward(self, batches, logits, shares, explain):
        """Loss and parts over all ranks, and how many of them have each parameter's gradient."""
        error, sums = None, np.zeros(1 + part_count(self.losses))
        names, trained = [], self._trained()
        try:
            for i, (images, labels) in enumerate(batches):
                logits = self._logits(images) if i else logits
                # Losses compute in float32, outside autocast.
                loss, parts = compute_losses(
                    *(logits, labels, self.losses, self._layout()),
                    shares=None if shares is None else shares[i],
                )
                names, values = list(parts), [float(loss), *(float(p) for p in parts.values())]
                if not math.isfinite(values[0]):
                    told = ", ".join(f"{n} {value:g}" for n, value in zip(names, values[1:]))
                    raise NonFiniteLoss(f"the loss is {values[0]} ({told})")
                sums += values
                self.scaler.scale(loss).backward()
        except NonFiniteLoss as caught:
            error = explain(caught) if explain else caught
        except Exception as caught:
            error = caught
        present = [error is None and p.grad is not None for p in trained]
        sums = self.ranks.agree(error, [*sums, *present])
        count = len(names) + 1
        return float(sums[0]), dict(zip(names, map(float, sums[1:count]))), sums[count:]

    def _update(self):
        if self.scaler.is_enable():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.clear_grad()
        scheduler = self.optimizer._learning_rate
        if isinstance(scheduler, paddle.optimizer.lr.LRScheduler):
            scheduler.step()

# SPDX-License-Identifier: Apache-2.0
"""One training iteration: forward, loss, backward, update."""

from functools import partial

import numpy as np
import paddle

from paddleseg_deeplab.core.distributed import Ranks
from paddleseg_deeplab.core.figures import Figures, as_vector, check_finite
from paddleseg_deeplab.core.forward import (
    batch_weights,
    compute_losses,
    output_sizes,
    part_count,
    precision_context,
    run_model,
)
from paddleseg_deeplab.core.static_network import compiled
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError

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
        to_static (bool): Runs the network as a compiled program (`core.static_network`): the same
            numbers up to rounding, and less Python between the kernels.

    Raises:
        UserError: Mixed precision was asked for on a CPU, or compiling where it cannot work.
    """

    def __init__(
        self,
        model,
        optimizer,
        losses,
        precision="fp32",
        amp_level="O1",
        *,
        ranks=None,
        to_static=False,
    ):
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
        self._network = compiled(model) if to_static else partial(run_model, model)
        self._sizes = {}  # (height, width) of images -> those of the outputs
        self._updated = None  # which parameters the first update had gradients of

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
        return self.run(batches, explain).read()

    def run(self, batches, explain=None, *, wait=True):
        """What a call does, with the loss to be read when it is wanted.

        Args:
            batches, explain: As for a call.
            wait (bool): False does not wait for the device, so that a loss that is not finite has
                moved the weights when `Figures.read` raises for it. Several ranks have to agree
                at each iteration, and wait all the same.

        Returns:
            Figures: Its `read` gives what a call returns.

        Raises:
            NonFiniteLoss: As from a call, where it waits.
        """
        wait = wait or self.ranks.size > 1
        try:
            logits, shares = self._start(batches)
            figures, count = self._backward(batches, logits, shares, explain, wait)
        except Exception:
            self._forget_gradients()
            raise
        self.ranks.sum_gradients(self._trained(), count)
        self._check_order(count)
        self._update()
        return figures

    def _check_order(self, count):
        """Refuses what `use_multi_tensor` would silently do wrong: Paddle (3.3.1) pairs gradients
        and parameters by their places, and lists the parameters at the first update only."""
        if not getattr(self.optimizer, "_use_multi_tensor", False):
            return
        have = [bool(ranks) for ranks in count]
        if self._updated is None:
            self._updated = have
        if have != self._updated:
            raise UserError(
                "optimizer.use_multi_tensor: some parameters get gradients in some iterations "
                "only, which it cannot handle. Leave it out."
            )

    def _trained(self):
        return [p for p in self.model.parameters() if not p.stop_gradient]

    def _logits(self, images):
        with precision_context(self.precision, self.amp_level):
            return self._network(images)

    def _layout(self):
        return getattr(self.model, "data_format", "NCHW")

    def _start(self, batches):
        """The first batch's logits, and the factor of each batch's loss parts or None for ones."""
        error, logits = None, None
        alone = self.ranks.size == 1
        weights = np.zeros((len(batches), part_count(self.losses)))
        try:
            logits = self._logits(batches[0][0])
            if not alone or len(batches) > 1:
                weights = self._weights(batches, logits)
        except Exception as caught:
            error = caught
        if alone:
            self.ranks.agree(error)
            if len(batches) == 1:
                return logits, None
            total = weights.sum(axis=0)
            return logits, weights / paddle.where(total > 0, total, paddle.ones_like(total))
        weights = np.asarray(weights, np.float64)
        total = self.ranks.agree(error, weights.sum(axis=0))
        # Where nothing counts at all, every loss is 0 and so is any share of it.
        return logits, weights / np.where(total > 0, total, 1.0)

    def _weights(self, batches, logits):
        """How much each batch counts in each loss part, Tensor float64 [batches, parts]."""
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
        flat = [
            # A loss written for PaddleSeg may give [1].
            w.astype("float64").reshape([])
            if isinstance(w, paddle.Tensor)
            else paddle.full([], w, "float64")
            for row in rows
            for w in row
        ]
        return paddle.stack(flat).reshape([len(rows), -1])

    def _backward(self, batches, logits, shares, explain, wait):
        """The iteration's `Figures`, and how many ranks have each parameter's gradient."""
        error, vectors = None, []
        names, trained = [], self._trained()
        try:
            for i, (images, labels) in enumerate(batches):
                logits = self._logits(images) if i else logits
                # Losses compute in float32, outside autocast.
                loss, parts = compute_losses(
                    *(logits, labels, self.losses, self._layout()),
                    shares=None if shares is None else shares[i],
                )
                names = list(parts)
                vectors.append(as_vector(loss, parts.values()))
                if wait:
                    vectors[-1] = vectors[-1].numpy()
                    check_finite(names, vectors[-1])
                self.scaler.scale(loss).backward()
        except NonFiniteLoss as caught:
            error = explain(caught) if explain else caught
        except Exception as caught:
            error = caught
        present = [error is None and p.grad is not None for p in trained]
        if self.ranks.size == 1:
            self.ranks.agree(error)
            return Figures(names, vectors, explain), present
        sums = np.zeros(1 + part_count(self.losses))
        sums = self.ranks.agree(error, [*(sum(vectors) if vectors else sums), *present])
        count = len(names) + 1
        return Figures(names, [sums[:count]], explain), sums[count:]

    def _update(self):
        if self.scaler.is_enable():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self._forget_gradients()
        scheduler = self.optimizer._learning_rate
        if isinstance(scheduler, paddle.optimizer.lr.LRScheduler):
            scheduler.step()

    def _forget_gradients(self):
        # Released, not set to zero: the next backward pass then writes them instead of adding to
        # zeros, which costs two more passes over as much memory as the weights take. So a parameter
        # that gets no gradient in an iteration is left alone in it, as in PyTorch: no momentum, no
        # weight decay, no step of Adam's moments. With zeros they would act on it from its first
        # gradient on, but not after the run is resumed; released, a resumed run agrees.
        self.optimizer.clear_grad(set_to_zero=False)

# SPDX-License-Identifier: Apache-2.0
"""One training iteration: forward, loss, backward, update."""

import signal as signals
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from paddleseg_deeplab.core.ranks import Ranks
from paddleseg_deeplab.core.training.compiled import compiled
from paddleseg_deeplab.core.training.data.batches import reader_failure
from paddleseg_deeplab.core.training.gradients import GradientSum, square_sum
from paddleseg_deeplab.core.training.late_losses import StepResult, check_loss
from paddleseg_deeplab.core.training.loss_sum import Batches, LossSum
from paddleseg_deeplab.models.forward import precision_context, run_model
from paddleseg_deeplab.models.losses.total import part_count
from paddleseg_deeplab.utils import out_of_memory
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError

__all__ = ["NonFiniteLoss", "TrainStep"]

_SIGNALS = (signals.SIGTERM, signals.SIGINT)
_SHOWN = 3  # parameters in a message


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
        to_static (bool): Runs the network as a compiled program (`core.training.compiled`): the
            same numbers up to rounding, and less Python between the kernels.
        reads_at_once (bool, optional): Whether loss and gradient are looked at before the weights
            move. Default: on a CPU, where that waits for nothing. Else nothing is read from the
            device (several ranks: once, when they agree), and `StepResult.read` finds what is
            wrong.

    Raises:
        UserError: Mixed precision was asked for on a CPU, or compiling where it cannot work.
    """

    def __init__(
        self,
        model: nn.Layer,
        optimizer: Optimizer,
        losses: Mapping[str, Any],
        precision: str = "fp32",
        amp_level: str = "O1",
        *,
        ranks: Ranks | None = None,
        to_static: bool = False,
        reads_at_once: bool | None = None,
    ) -> None:
        precision_context(precision, amp_level)  # fails early where it cannot work
        self.losses = losses
        self.precision = precision
        self.amp_level = amp_level
        self.ranks = ranks or Ranks()
        on_cpu = paddle.get_device() == "cpu"
        self.reads_at_once = on_cpu if reads_at_once is None else reads_at_once
        # Only float16 needs loss scaling: bfloat16 has float32's exponent range.
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=1024.0)
        if precision != "fp32" and amp_level == "O2":
            dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
            # No save_dtype: it makes `state_dict` give copies, and what is loaded into them is
            # lost. `checkpoint.save_checkpoint` brings weights to float32.
            model, optimizer = paddle.amp.decorate(
                models=model, optimizers=optimizer, level="O2", dtype=dtype
            )
        self.model = model
        self.optimizer = optimizer
        self._network = compiled(model) if to_static else partial(run_model, model)
        # (height, width) of images -> those of the outputs.
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._trained = [p for p in model.parameters() if not p.stop_gradient]
        self._sum = GradientSum(self.ranks, self._trained)
        self._updated: list[bool] | None = (
            None  # which parameters the first update had gradients of
        )

    def __call__(
        self, batches: Batches, explain: Callable[..., NonFiniteLoss] | None = None
    ) -> tuple[float, dict[str, float]]:
        """Runs one iteration over the batches of all ranks as if they were one.

        A loss that is a mean over pixels (cross-entropy without top_k_percent_pixels, focal) or
        images (Dice) is the mean over those of all batches together, so neither the number of
        micro-batches nor that of ranks changes it, however the void pixels lie; of any other loss
        it is the mean of the batches' values. Batch norm sees a batch at a time.

        Args:
            batches (list[tuple[Tensor, Tensor]]): Images float32 [N, C, H, W] and labels int64
                [N, H, W]; more than one is gradient accumulation.
            explain (callable, optional): Takes this rank's `NonFiniteLoss`, returns the one to
                raise. On several ranks it is also called with ``gather``, which brings what each of
                them gives together, where the fault may be any rank's.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, over all batches.

        Raises:
            NonFiniteLoss: The loss or the gradient is not finite on any rank; on a CPU the weights
                are as before.
        """
        return self.run(batches, explain).read()

    def run(
        self,
        batches: Batches,
        explain: Callable[..., NonFiniteLoss] | None = None,
        *,
        fault: Exception | None = None,
        signal: Callable[[], int] = lambda: 0,
    ) -> StepResult:
        """What a call does, with the loss to be read when it is wanted.

        Args:
            batches, explain: As for a call.
            fault (Exception, optional): Why this rank has no batches. It is raised here, on every
                rank where they exchange through the host.
            signal (callable): Gives the signal by which this rank was asked to stop, 0 for none;
                called when the ranks agree.

        Returns:
            StepResult: Its `read` gives what a call returns.

        Raises:
            NonFiniteLoss: As from a call, where it reads at once.
        """
        try:
            result = self._gradients(batches, explain, fault, signal)
            self._check_order()
            self._update()
            return result
        except Exception as error:
            self.raise_explained(error, batches, "reading training images")
        finally:
            self._forget_gradients()

    def _gradients(self, batches, explain, fault, signal):
        """Leaves the iteration's gradients, summed over the ranks; its `StepResult`.

        Ranks exchange the batches' weights, the gradients, and what all have to know: faults, stop
        signals, losses. Through the host the last is done before the last backward pass, so that a
        rank at fault has no part in the exchange of gradients. Through a device it is done after,
        since reading it is the iteration's one wait; a rank at fault then ends by itself, as its
        network may have exchanges of its own (synchronised batch norm) that the others wait in.
        """
        ranks = self.ranks
        through_host = ranks.size > 1 and ranks.on_host
        losses = LossSum(batches, self.losses, ranks, self._layout(), self._sizes)
        loss, vector = None, None
        if fault is None:
            try:
                for images, labels in batches:
                    if loss is not None:  # the last batch's goes backward below
                        self.scaler.scale(loss).backward()
                    loss = losses.add(self._logits(images), labels)
                vector = losses.vector
                if self.reads_at_once:
                    vector = vector.numpy()
                    check_loss(losses.names, vector)
            except NonFiniteLoss as error:
                fault = explain(error) if explain else error
            except Exception as error:
                fault = self._explained(error, batches)
        if fault is not None:
            if not through_host:
                raise fault
            losses.give_up()
        number = signal()
        stops = [float(number == known) for known in _SIGNALS]
        if through_host:
            zeros = np.zeros(1 + part_count(self.losses))
            sums = ranks.agree(fault, [*stops, *(zeros if fault else vector)])
            stops, vector = sums[: len(stops)], sums[len(stops) :]
        self._sum.backward(self.scaler.scale(loss))
        return self._agreed(losses.names, vector, stops, explain)

    def raise_explained(
        self, error: Exception, batches: Batches, what: str = "training", batch_size: int = 1
    ) -> NoReturn:
        """Raises the error, or the line that says that memory ran out or a reading process is gone;
        before, the other ranks are told why this one stops, and the failed work is let go.

        Args:
            error (Exception): What came up.
            batches (list): Of the iteration; empty where they could not be read or it is over.
            what (str): What was being done where there are no batches.
            batch_size (int): Images in a batch, where there are none to look at.
        """
        raised = self._explained(error, batches, what, batch_size)
        self.ranks.leave(raised)
        raise raised from (error.__cause__ if raised is error else error)

    def _explained(self, error, batches, what="training", batch_size=1):
        """What `raise_explained` raises."""
        gone = reader_failure(error)  # Paddle raises it at any moment
        if gone is not None:
            return gone
        # What another rank has said may be about its memory.
        if getattr(error, "agreed", False) or not out_of_memory.is_out_of_memory(error):
            return error
        facts = {"what": what}
        if batches:
            batch_size, _, height, width = batches[0][0].shape
            facts = {"what": "training", "image_size": (width, height), "batch_size": batch_size}
            facts["precision"] = self.precision
        explained = out_of_memory.explain(
            error,
            settings=out_of_memory.training_settings(batch_size, self.precision),
            note=out_of_memory.CHECKPOINT_KEPT,
            **facts,
        )
        if explained is not error:
            out_of_memory.release(error)
        return explained

    def _agreed(self, names, vector, stops, explain):
        """The `StepResult` once gradients are there; see `_gradients`."""
        ranks, has = self.ranks, self._sum.present()

        def explained(error):
            # Of a sum nobody knows whose batch has spoilt it, so all ranks' are named.
            return explain(error) if ranks.size == 1 else explain(error, gather=ranks.gather)

        if ranks.size > 1 and ranks.on_host:
            self._sum.complete(ranks.sum(has))
        square = self._square()
        if ranks.on_host and (ranks.size > 1 or self.reads_at_once):
            vector = np.append(vector, float(square))
        elif ranks.size == 1:
            vector = paddle.concat([vector, square.astype("float64").reshape([1])])
        else:
            head = paddle.to_tensor(np.array([*stops, *has], np.float64))
            joined = [head, vector, square.astype("float64").reshape([1])]
            sums = ranks.agree(None, paddle.concat(joined))
            stops, counts = sums[: len(stops)], sums[len(stops) : len(head)]
            self._sum.complete(counts)
            vector = sums[len(head) :]
        signal = next((int(n) for n, count in zip(_SIGNALS, stops) if count), 0)
        result = StepResult(names, vector, explain and explained, signal)
        if not isinstance(vector, paddle.Tensor):  # it is in host memory
            try:
                result.read(self._not_finite)
            except NonFiniteLoss as error:
                raise (error if ranks.size == 1 else ranks.alike(error)) from None
        return result

    def _square(self):
        """`square_sum` of the gradients; 0 where the loss scaler looks at them."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        if self.scaler.is_enable() or not gradients:
            return paddle.zeros([])
        return square_sum(gradients)

    def _not_finite(self):
        """Names of the parameters whose gradients are not finite, as text."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        wrong = [p for p in self._trained if p.grad is not None and not _is_finite(p.grad)]
        shown = ", ".join(names.get(id(p), p.name) for p in wrong[:_SHOWN])
        return f"{shown} and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else shown

    def _check_order(self):
        """Refuses what `use_multi_tensor` would do wrong (paddle_quirks: multi_tensor_order)."""
        if not getattr(self.optimizer, "_use_multi_tensor", False):
            return
        have = [p.grad is not None for p in self._trained]
        if self._updated is None:
            self._updated = have
        if have != self._updated:
            raise UserError(
                "optimizer.use_multi_tensor: some parameters get gradients in some iterations "
                "only, which it cannot handle. Leave it out."
            )

    def _logits(self, images):
        with precision_context(self.precision, self.amp_level, self._layout()):
            return self._network(images)

    def _layout(self):
        return getattr(self.model, "data_format", "NCHW")

    def _update(self):
        if self.scaler.is_enable():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
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


def _is_finite(tensor):
    return bool(paddle.isfinite(tensor.astype("float32")).all())

# SPDX-License-Identifier: Apache-2.0
"""One training iteration: forward, loss, backward, update."""

import math

import paddle

from paddleseg_deeplab.core.forward import compute_losses, precision_context, run_model


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


class TrainStep:
    """Runs iterations on one model and one optimizer.

    Args:
        model (nn.Layer): In training mode.
        optimizer (paddle.optimizer.Optimizer): Driven by an LRScheduler.
        losses (dict): ``types`` and ``coef`` as `SegBuilder.loss`.
        precision (str): "fp32", "fp16", "bf16"; the latter two on a GPU only.
        amp_level (str): "O1" or "O2".

    Raises:
        UserError: Mixed precision was asked for on a CPU.
    """

    def __init__(self, model, optimizer, losses, precision="fp32", amp_level="O1"):
        precision_context(precision, amp_level)  # fails early where it cannot work
        self.losses = losses
        self.precision = precision
        self.amp_level = amp_level
        # Only float16 needs loss scaling: bfloat16 has float32's exponent range.
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=1024.0)
        if precision != "fp32" and amp_level == "O2":
            dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
            model, optimizer = paddle.amp.decorate(
                models=model, optimizers=optimizer, level="O2", dtype=dtype, save_dtype="float32"
            )
        self.model = model
        self.optimizer = optimizer

    def __call__(self, batches):
        """Runs one iteration over one or several batches whose gradients are averaged.

        Args:
            batches (list[tuple[Tensor, Tensor]]): Images float32 [N, C, H, W] and labels int64
                [N, H, W]; more than one is gradient accumulation.

        Returns:
            tuple[float, dict[str, float]]: The loss and its weighted parts, means over batches.

        Raises:
            NonFiniteLoss: Before the weights are touched.
        """
        share = 1.0 / len(batches)
        total, totals = 0.0, {}
        for images, labels in batches:
            with precision_context(self.precision, self.amp_level):
                logits = run_model(self.model, images)
            # Losses compute in float32, outside autocast.
            data_format = getattr(self.model, "data_format", "NCHW")
            loss, parts = compute_losses(logits, labels, self.losses, data_format)
            value = float(loss)
            if not math.isfinite(value):
                self.optimizer.clear_grad()
                told = ", ".join(f"{name} {float(part):g}" for name, part in parts.items())
                raise NonFiniteLoss(f"the loss is {value} ({told})")
            total += share * value
            for name, part in parts.items():
                totals[name] = totals.get(name, 0.0) + share * float(part)
            self.scaler.scale(loss * share if share != 1.0 else loss).backward()
        self._update()
        return total, totals

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

# SPDX-License-Identifier: Apache-2.0
"""The network as a compiled program for training."""

import contextlib
from collections.abc import Callable

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.models.forward import run_model
from paddleseg_deeplab.utils.errors import UserError


def compiled(model: nn.Layer) -> Callable[[Tensor], list[Tensor]]:
    """A function like `models.forward.run_model` that runs the network's traced program.

    The program shares the model's parameters and is of its training mode; the model itself stays
    as it is, for evaluation, checkpoints and export. Losses are not part of it: they look at
    values. Each size of images is traced once (seconds), so training images should have one size.

    Args:
        model (nn.Layer): In training mode when the function is called.

    Returns:
        callable: float32 [N, C, H, W] to a list of logits, with gradients.

    Raises:
        UserError: oneDNN is switched on on a CPU, where Paddle cannot train such programs
            (paddle_quirks: compiled_with_onednn); from the function: the network cannot be traced.
            What the network itself raises comes out as it is.
    """
    if paddle.get_device() == "cpu" and _uses_onednn():
        raise UserError(
            "to_static_training: Paddle cannot train a compiled network with oneDNN on a CPU. "
            "Remove FLAGS_use_mkldnn and FLAGS_use_onednn from the environment."
        )

    def forward(images):
        return run_model(model, images)

    # full_graph: the whole network or an error, not parts of it in silence.
    program, traced = paddle.jit.to_static(forward, full_graph=True), set()

    def run(images):
        size = tuple(images.shape)
        if size in traced:
            return program(images)
        # Those of the micro-batches before (paddle_quirks: tracing_drops_gradients).
        kept = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        try:
            logits = program(images)
        except Exception as error:
            # Only what does not go wrong without compiling is the compiler's.
            with paddle.no_grad():
                forward(images)
            last = (str(error).strip().splitlines() or [""])[-1].strip()
            raise UserError(
                f"to_static_training: {type(model).__name__} cannot be compiled for images of "
                f"{list(size)} ({type(error).__name__}: {last}). Leave to_static_training out."
            ) from error
        for parameter, gradient in kept:
            parameter.grad = gradient
        traced.add(size)
        return logits

    return run


def _uses_onednn():
    for name in ("FLAGS_use_mkldnn", "FLAGS_use_onednn"):  # the latter from Paddle 3.3 on
        with contextlib.suppress(ValueError):  # a flag that this Paddle does not know
            if paddle.get_flags(name)[name]:
                return True
    return False

# SPDX-License-Identifier: Apache-2.0
"""A `PyLayer` of Paddle's that acts as an operator where Paddle's own does not.

- A second backward pass through it ends the process (paddle_quirks: py_layer_second_pass). Here it
  is an error; Paddle's own SystemError where the graph was not kept (``retain_graph``).
- What a hook on its result returns is dropped (paddle_quirks: py_layer_hook_results). Here it
  counts, as at an operator.
- Nobody looks whether saved tensors were changed in place. `saved` does.

What is raised in a backward pass, here or in a user's hook, comes out of ``backward()`` and
``paddle.grad`` as Paddle hands it on: an OSError (of some Paddles a RuntimeError) whose text holds
ours.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paddle
    from paddle.autograd import PyLayer, PyLayerContext


def apply_once(layer: type[PyLayer], *arguments: object, again: str) -> paddle.Tensor:
    """``layer.apply`` of arguments, for one backward pass.

    Args:
        layer: Its ``forward`` gets a function as its last argument, to be called with the context;
            it gives one tensor.
        arguments: The others.
        again: What to say where a second backward pass comes, and what to do instead.
    """
    contexts: list[weakref.ref[PyLayerContext]] = []
    result = layer.apply(*arguments, lambda ctx: contexts.append(weakref.ref(ctx)))
    if result.stop_gradient:
        return result
    (context,) = contexts
    # Now, for `apply` counts a result that is an argument as one more change.
    ctx = context()
    assert ctx is not None  # the result holds it
    ctx.versions = [_version(t) for t in ctx.saved_tensor() or ()]
    del ctx

    def refuse_a_second_pass(_: paddle.Tensor) -> None:
        if context() is None:
            raise RuntimeError(again)

    result.register_hook(refuse_a_second_pass)  # runs before the layer's backward pass
    # One operator more, which copies no map: hooks of users are then its hooks. (A reshape to the
    # same numbers would be none.)
    return result.reshape([-1, *result.shape[1:]]) if result.ndim else result.clone()


def saved(ctx: PyLayerContext, changed: str) -> list[paddle.Tensor]:
    """What a layer saved for its backward pass.

    Args:
        ctx: Of a layer that `apply_once` ran.
        changed: What to say where one of them was changed in place since then.

    Raises:
        RuntimeError: One was, and the gradient would be wrong.
    """
    tensors = ctx.saved_tensor()
    if [_version(t) for t in tensors] != ctx.versions:
        raise RuntimeError(changed)
    return tensors


def _version(tensor):
    """How often a tensor was changed in place."""
    version = getattr(tensor, "inplace_version", 0)
    return version() if callable(version) else version

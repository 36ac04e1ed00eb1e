# SPDX-License-Identifier: Apache-2.0
"""Hooks on the results of the faster ways and of the losses act as on those of Paddle's operators.

The hooks here scale by powers of two, so that all gradients are exact.
"""

import numpy as np
import paddle
import pytest
from near import convolved, needs_library, random, rectified
from paddle.autograd import PyLayer

from paddleseg_deeplab import models
from paddleseg_deeplab.kernels import cpu_ops
from paddleseg_deeplab.models.losses.rmi import RMILoss
from paddleseg_deeplab.utils.py_layer import apply_once, saved

WRAPPED = (RuntimeError, OSError)  # Paddle hands an error of a backward pass on as OSError


class Double(PyLayer):
    @staticmethod
    def forward(ctx, x, seen=lambda ctx: None):
        seen(ctx)
        ctx.save_for_backward(x.detach())
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="paddle_quirks: py_layer_hook_results"
)
def test_fault_hooks_on_the_result_of_a_py_layer():
    x = random(3)
    y = Double.apply(x * 1)
    y.register_hook(lambda gradient: gradient * 0)
    y.sum().backward()
    assert (x.grad.numpy() == 0).all()


def double(x):
    return apply_once(Double, x * 1, again="twice")


def both(x):
    return cpu_ops.relu_(convolved(x))


def loss(kind):
    def function(x):
        label = np.random.default_rng(2).integers(0, 4, (x.shape[0], *x.shape[2:]))
        return kind(x, paddle.to_tensor(label))

    return function


OPERATORS = {
    "a layer": double,
    "convolution": convolved,
    "ReLU": rectified,
    "convolution and ReLU": both,
    "cross-entropy": loss(models.CrossEntropyLoss()),
    "Lovasz": loss(models.LovaszSoftmaxLoss()),
    "RMI": loss(RMILoss(num_classes=4, rmi_pool_size=1, rmi_pool_stride=1)),
}
needs = {"convolution": [needs_library], "ReLU": [needs_library]}
needs["convolution and ReLU"] = [needs_library]
each = pytest.mark.parametrize(
    "operator", [pytest.param(f, id=k, marks=needs.get(k, [])) for k, f in OPERATORS.items()]
)


def gradient(operator, hook=None):
    x = random(1, 4, 6, 6)
    y = operator(x)
    if hook is not None:
        hook(y)
    (y * 2).sum().backward()
    return x.grad.numpy()


def no_more(y):
    y.register_hook(lambda g: g * 0).remove()


def two_hooks(y):
    y.register_hook(lambda g: g * 2)
    y.register_hook(lambda g: g * 4)


HOOKS = {
    "zero": (lambda y: y.register_hook(lambda g: g * 0), 0),
    "twice": (lambda y: y.register_hook(lambda g: g * 2), 2),
    "negative": (lambda y: y.register_hook(lambda g: -g), -1),
    "another tensor": (lambda y: y.register_hook(lambda g: paddle.full_like(g, 8.0)), 4),
    "only looks": (lambda y: y.register_hook(lambda g: None), 1),
    "two": (two_hooks, 8),
    "removed": (no_more, 1),
}


@each
@pytest.mark.parametrize(("hook", "factor"), HOOKS.values(), ids=HOOKS)
def test_what_a_hook_returns_counts(operator, hook, factor):
    plain = gradient(operator)
    assert np.abs(plain).max() > 0
    np.testing.assert_array_equal(gradient(operator, hook), factor * plain)


@each
def test_the_gradient_of_a_result_is_kept(operator):
    """`retain_grads`, which comes before hooks in Paddle's operators."""
    x = random(1, 4, 6, 6)
    y = operator(x)
    y.retain_grads()
    (y * 2).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), np.full(y.shape, 2, "float32"))


@each
def test_an_error_in_a_hook_comes_out(operator):
    def fails(_):
        raise ValueError("my own words")

    y = operator(random(1, 4, 6, 6))
    y.register_hook(fails)
    with pytest.raises(WRAPPED, match="my own words"):
        y.sum().backward()


@each
@pytest.mark.parametrize("retain", [True, False])
def test_a_second_backward_is_an_error(operator, retain):
    """Ours where the graph was kept; else Paddle's own words, as of its operators."""
    y = operator(random(1, 4, 6, 6))
    first, second = (y * y).sum(), y.sum()
    first.backward(retain_graph=retain)
    said = r"twice|second backward\(\)" if retain else "without setting retain_graph=True"
    with pytest.raises((*WRAPPED, SystemError), match=said):
        second.backward()


def test_what_was_saved_and_changed_is_noticed():
    class Square(PyLayer):
        @staticmethod
        def forward(ctx, x, seen):
            seen(ctx)
            ctx.save_for_backward(x.detach())
            return x * x

        @staticmethod
        def backward(ctx, dy):
            (x,) = saved(ctx, "it was changed")
            return 2 * x * dy

    x = random(3)
    for changes in (False, True):
        h = x * 1
        y = apply_once(Square, h, again="")
        if not changes:
            y.sum().backward()
            np.testing.assert_array_equal(x.grad.numpy(), 2 * x.numpy())
            continue
        h.scale_(2.0)
        with pytest.raises(WRAPPED, match="it was changed"):
            y.sum().backward()


def test_without_gradients_there_is_nothing_to_watch():
    with paddle.no_grad():
        y = apply_once(Double, random(3), again="")
    assert y.stop_gradient

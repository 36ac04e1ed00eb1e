# SPDX-License-Identifier: Apache-2.0
"""The faster ways on a CPU equal Paddle's operators, in the result and in every gradient.

Tolerances, relative to the largest number: 2e-6 for sums of up to a few hundred float32 products
in another order (each is 6e-8 off, and they add up as their root); 2e-5 for weight gradients, sums
over every pixel of the batch.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from near import assert_near, needs_library, random
from paddle import nn

from paddleseg_deeplab.kernels import cpu_ops
from paddleseg_deeplab.models.layers import Conv2D, ConvBNReLU, ReLU, resize

SUM, LONG_SUM = 2e-6, 2e-5


def gradients(y, inputs):
    return paddle.grad(y, inputs, random(*y.shape, seed=9))


# [N, C, H, W], weight, stride, padding, dilation, groups
CONVOLUTIONS = {
    "stem": ((2, 3, 17, 22), (16, 3, 3, 3), 2, 1, 1, 1),
    "3x3": ((2, 20, 9, 13), (24, 20, 3, 3), 1, 1, 1, 1),
    "dilated": ((1, 8, 16, 11), (8, 8, 3, 3), 1, 4, 4, 1),
    "rate above the map": ((1, 8, 6, 9), (8, 8, 3, 3), 1, 12, 12, 1),
    "7x7 strided": ((1, 3, 30, 31), (8, 3, 7, 7), 2, 3, 1, 1),
    "1x3 with unequal numbers": ((1, 4, 9, 9), (4, 4, 1, 3), (1, 2), (0, 1), 1, 1),
    "depthwise": ((2, 20, 10, 12), (20, 1, 3, 3), 1, 1, 1, 20),
    "depthwise, strided": ((2, 16, 11, 12), (16, 1, 3, 3), 2, 1, 1, 16),
    "depthwise, no padding": ((1, 16, 11, 12), (16, 1, 3, 3), 1, 0, 1, 16),
    "depthwise, two for each": ((1, 8, 11, 12), (16, 1, 3, 3), 1, 1, 1, 8),
    "depthwise, rate 6": ((2, 16, 16, 16), (16, 1, 3, 3), 1, 6, 6, 16),
    "depthwise, rate 12, by taps": ((2, 70, 32, 33), (70, 1, 3, 3), 1, 12, 12, 70),
    "depthwise, rate 24, by taps": ((1, 5, 32, 40), (5, 1, 3, 3), 1, 24, 24, 5),
    "depthwise, rate above the map": ((1, 5, 32, 33), (5, 1, 3, 3), 1, 36, 36, 5),
}


@needs_library
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    x_shape, w_shape, *geometry = CONVOLUTIONS[name]
    x, weight = random(*x_shape), random(*w_shape, seed=1)
    plain = F.conv2d(x, weight, None, *geometry)
    ours = cpu_ops.conv2d(x, weight, *geometry)
    assert_near(ours, plain, SUM)
    pairs = zip(gradients(ours, [x, weight]), gradients(plain, [x, weight]))
    for (mine, other), tolerance in zip(pairs, (SUM, LONG_SUM)):
        assert_near(mine, other, tolerance)


@needs_library
def test_convolutions_in_several_threads():
    """The process would end: oneDNN's memory to work in belongs to a thread."""
    cases = list(CONVOLUTIONS.values())[:4]
    inputs = [(random(*x), random(*w, seed=1)) for x, w, *_ in cases]

    def results(_):
        pairs = zip(inputs, cases)
        with paddle.no_grad():
            return [cpu_ops.conv2d(x, w, *case[2:]) for (x, w), case in pairs]

    expected = results(0)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(results, range(6)))
    for each in [*found, results(0)]:
        for mine, first in zip(each, expected):
            assert_near(mine, first, SUM)  # a thread may add in another order


@needs_library
def test_convolution_of_views():
    x = random(2, 9, 9, 8)
    weight = random(8, 8, 3, 3)
    view = x.transpose([0, 3, 1, 2])[:, :, :, 1:]  # gaps in its memory
    y, plain = cpu_ops.conv2d(view, weight, 1, 1, 1, 1), F.conv2d(view, weight, padding=1)
    assert_near(y, plain, SUM)
    # The gradient that arrives is a view as well.
    pair = (paddle.grad(t.transpose([0, 2, 3, 1]), [x], random(2, 9, 8, 8)) for t in (y, plain))
    assert_near(*(grads[0] for grads in pair), SUM)


@needs_library
@pytest.mark.parametrize("wanted", ["x", "weight", "h", "both"])
def test_gradients_of_some_inputs(wanted):
    """`paddle.grad` by any choice of inputs."""
    x, weight = random(1, 4, 6, 6), random(4, 4, 3, 3)
    h = x * 2
    inputs = {"x": [x], "weight": [weight], "h": [h], "both": [weight, x]}[wanted]
    ours = gradients(cpu_ops.conv2d(h, weight, 1, 1, 1, 1), inputs)
    for mine, other in zip(ours, gradients(F.conv2d(h, weight, padding=1), inputs)):
        assert_near(mine, other, LONG_SUM)


@needs_library
@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_backward_with_something_frozen(frozen):
    x, weight = random(1, 4, 6, 6), random(4, 4, 3, 3)
    still, other = (x, weight) if frozen == "x" else (weight, x)
    still.stop_gradient = True
    cpu_ops.conv2d(x, weight, 1, 1, 1, 1).sum().backward()
    assert still.grad is None
    mine = other.grad.clone()
    other.clear_gradient()
    F.conv2d(x, weight, padding=1).sum().backward()
    assert_near(mine, other.grad, LONG_SUM)


@needs_library
def test_no_gradient_wanted():
    x, weight = random(1, 4, 6, 6), random(4, 4, 3, 3)
    with paddle.no_grad():
        y = cpu_ops.conv2d(x, weight, 1, 1, 1, 1)
    assert y.stop_gradient
    assert_near(y, F.conv2d(x, weight, padding=1), SUM)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding", "groups"),
    [
        ((1, 4, 5, 5), (4, 4, 1, 1), 0, 1),  # one matrix product already
        ((1, 4, 5, 5), (4, 2, 3, 3), 1, 2),  # groups that are neither one nor all
        ((1, 4, 5, 5), (4, 4, 3, 3), "SAME", 1),
        ((1, 4, 5, 5), (4, 4, 3, 3), [0, 1, 0, 1], 1),
        ((1, 0, 5, 5), (4, 0, 3, 3), 1, 1),
        ((4, 5, 5), (4, 4, 3, 3), 1, 1),
        ((1, 4, 5, 5), (4, 4, 3, 3), -1, 1),
        ((1, 3, 5, 5), (4, 4, 3, 3), 1, 1),  # channels that do not fit
        ((1, 8, 5, 5), (12, 1, 3, 3), 1, 8),
    ],
)
def test_what_is_left_to_paddle(x_shape, w_shape, padding, groups):
    x, weight = paddle.zeros(x_shape), paddle.zeros(w_shape)
    assert cpu_ops.conv2d(x, weight, 1, padding, 1, groups) is None


@pytest.mark.parametrize(("stride", "dilation"), [(0, 1), (1, 0), ([1, -1], 1)])
def test_numbers_that_make_no_sense_are_left_to_paddle(stride, dilation):
    x, weight = paddle.zeros([1, 4, 5, 5]), paddle.zeros([4, 4, 3, 3])
    assert cpu_ops.conv2d(x, weight, stride, 1, dilation, 1) is None


def test_resize_of_what_is_no_batch_of_maps_is_left_to_paddle():
    with pytest.raises(ValueError, match="4-D"):
        resize(paddle.zeros([2, 8, 8]), [4, 4])
    assert cpu_ops.resize(paddle.zeros([1, 1, 8, 8]), [4, 0], False, "NCHW") is None


def test_another_device_is_left_to_paddle(monkeypatch):
    """Results belong to the device that is chosen, also those of tensors in a CPU's memory."""
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    assert not cpu_ops.applies(paddle.zeros([2]))


def test_other_types_are_left_to_paddle():
    x, weight = paddle.zeros([1, 4, 5, 5], "float64"), paddle.zeros([4, 4, 3, 3], "float64")
    assert cpu_ops.conv2d(x, weight, 1, 1, 1, 1) is None
    assert cpu_ops.relu_(x) is None
    assert cpu_ops.resize(x, [10, 10], False, "NCHW") is None
    assert cpu_ops.resize(paddle.zeros([1, 5, 5, 4]), [10, 10], False, "NHWC") is None


def test_hooks_see_a_layer():
    """Hooks belong to a call of the layer, and see what its faster way gives."""
    conv = Conv2D(4, 4, 3, padding=1)
    seen = []
    handle = conv.register_forward_post_hook(lambda layer, inputs, output: seen.append(output))
    y = conv(random(1, 4, 6, 6))
    assert seen[0] is y
    handle.remove()
    assert_near(conv(random(1, 4, 6, 6)), y, SUM)
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["_conv", "_batch_norm"])
@pytest.mark.parametrize("trains", [True, False])
def test_hooks_within_a_block(name, trains):
    """Also where the bias of the convolution would be added to batch norm's mean."""
    block = ConvBNReLU(4, 4, 3)
    (block.train if trains else block.eval)()
    seen = []
    getattr(block, name).register_forward_pre_hook(lambda layer, inputs: seen.append(layer))
    with paddle.no_grad():
        block(random(1, 4, 6, 6))
    assert seen == [getattr(block, name)]


@pytest.mark.parametrize("kind", [nn.Conv2D, Conv2D])
def test_a_derived_convolution_is_called(kind):
    class Twice(kind):
        def forward(self, x):
            return 2 * super().forward(x)

    block = ConvBNReLU(4, 4, 3)
    twice = Twice(4, 4, 3, padding=1)
    x = random(1, 4, 6, 6)
    assert_near(twice(x), 2 * kind.forward(twice, x), SUM)
    block._conv = twice
    block._relu = nn.Identity()
    np.testing.assert_array_equal(block(x).numpy(), block._batch_norm(twice(x)).numpy())


@needs_library
@pytest.mark.parametrize("shape", [(2, 16, 9, 7), (5,), (1, 3, 1, 1)])
def test_relu(shape):
    x = random(*shape)
    plain, ours = F.relu(x * 1), cpu_ops.relu_(x * 1)
    np.testing.assert_array_equal(ours.numpy(), plain.numpy())
    pair = gradients(ours, [x]) + gradients(plain, [x])
    np.testing.assert_array_equal(*(grad.numpy() for grad in pair))


@needs_library
def test_relu_overwrites():
    y = random(3, 4) * 1
    assert ReLU()(y).data_ptr() == y.data_ptr()
    with paddle.no_grad():
        assert ReLU()(y).data_ptr() == y.data_ptr()


SIZES = [
    ((4, 5), (16, 20)),
    ((17, 33), (65, 129)),  # 8 k + 1
    ((33, 20), (9, 7)),  # down
    ((6, 5), (6, 13)),  # one axis alone
    ((5, 6), (13, 6)),
    ((1, 1), (7, 3)),
    ((1, 4), (5, 9)),
    ((7, 9), (1, 1)),
    ((97, 13), (769, 100)),
    ((129, 9), (1025, 20)),
    ((9, 129), (20, 1025)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_resize(size, target, align_corners):
    x = random(2, 3, *size)
    settings = {"mode": "bilinear", "align_corners": align_corners}
    plain = F.interpolate(x, list(target), **settings)
    ours = cpu_ops.resize(x, list(target), align_corners, "NCHW")
    # A position is a float32 number of up to `size`, which two ways of rounding give one unit in
    # the last place apart, size * 2**-23. A share is off by as much; it weighs the difference of
    # two neighbours, up to twice the largest number, on each of two axes.
    tolerance = SUM + 4 * max(size) * 2**-23
    assert_near(ours, plain, tolerance)
    assert_near(*gradients(ours, [x]), *gradients(plain, [x]), tolerance)


@pytest.mark.parametrize("shape", [(1, 2, 8, 6), (1, 2, 1, 1)])
def test_resize_to_the_same_size_shares_no_memory(shape):
    x = random(*shape)
    y = resize(x, list(shape[2:]))
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    assert y.data_ptr() != x.data_ptr()
    assert cpu_ops.resize(x, list(shape[2:]), False, "NCHW") is None


def test_resize_of_a_large_map_is_left_to_paddle():
    assert cpu_ops.resize(paddle.zeros([1, 1, 600, 600]), [700, 700], False, "NCHW") is None


def test_resize_keeps_a_constant():
    """The weights of each pixel add up to 1."""
    y = resize(paddle.full([1, 2, 13, 7], 3.0), [40, 29])
    np.testing.assert_allclose(y.numpy(), 3.0, rtol=1e-6)


@pytest.mark.parametrize("trains", [True, False])
def test_a_block_equals_the_plain_one(trains, monkeypatch):
    """Convolution with bias, batch norm and ReLU: result, gradients, running statistics."""
    results = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(cpu_ops, "applies", lambda *_: False)
        paddle.seed(0)
        block = ConvBNReLU(6, 8, 3, padding=2, dilation=2)
        (block.train if trains else block.eval)()
        x = random(3, 6, 12, 10)
        y = block(x)
        (y * random(*y.shape, seed=4)).sum().backward()
        grads = [x.grad, *(p.grad for p in block.parameters() if not p.stop_gradient)]
        results.append([y, *grads, block._batch_norm._mean, block._batch_norm._variance])
    for mine, other in zip(*results):
        assert_near(mine, other, LONG_SUM)


def test_tracing_uses_paddles_operators():
    """An exported program has nothing of this."""
    block = ConvBNReLU(3, 4, 3)
    block.eval()
    spec = [paddle.static.InputSpec([1, 3, 8, 8], "float32")]
    traced = paddle.jit.to_static(block, input_spec=spec, full_graph=True)
    text = str(traced.forward.concrete_program.main_program)
    assert "conv2d" in text
    assert "py_layer" not in text.lower()

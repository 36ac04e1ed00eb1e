# SPDX-License-Identifier: Apache-2.0
"""Structure and settings of aligned Xception; its numbers are in tests/parity."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models import (
    DeepLabV3P,
    Xception41_deeplab,
    Xception65_deeplab,
    Xception71_deeplab,
    XceptionDeeplab,
)
from paddleseg_deeplab.models.backbones.dilation import strides_and_rates
from paddleseg_deeplab.models.layers import batch_norms


def _image(n=1, c=3, h=65, w=49, seed=0):
    values = np.random.default_rng(seed).standard_normal((n, c, h, w)).astype(np.float32)
    return paddle.to_tensor(values)


@pytest.fixture(scope="module")
def nets():
    """41 layers at each output stride, with the weights of the first."""
    by_stride = {stride: Xception41_deeplab(output_stride=stride) for stride in (16, 8, 32)}
    state = _varied(by_stride[16].state_dict())
    for net in by_stride.values():
        missing, unexpected = net.set_state_dict(state)
        assert not missing
        assert not unexpected
        net.eval()
    return by_stride


def _varied(state):
    """Batch norm statistics that differ by channel: those of a new network are 0 and 1."""
    rng = np.random.default_rng(0)
    for name, tensor in state.items():
        if name.endswith("_variance"):
            tensor.set_value(rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32))
        elif name.endswith(("_mean", "_batch_norm.bias")):
            tensor.set_value(rng.normal(0, 0.1, tensor.shape).astype(np.float32))
    return state


def _features(net, x):
    with paddle.no_grad():
        return [y.numpy() for y in net(x)]


def _numbers(net):
    state = net.state_dict()
    return len(state), sum(int(np.prod(t.shape)) for t in state.values())


def _expected_numbers(entry, middle):
    """Tensors and numbers, counted from the figure: 5 tensors and 4 C more numbers per norm."""

    def conv(i, o, kernel=1, groups=1):
        return i * o * kernel**2 // groups + 4 * o

    def separable(i, o):
        return conv(i, i, 3, i) + conv(i, o)

    def block(i, outs, short):
        convs = sum(separable(a, b) for a, b in zip((i, *outs), outs))
        return convs + (conv(i, outs[-1]) if short else 0)

    numbers = conv(3, 32, 3) + conv(32, 64, 3)
    numbers += sum(block(i, (o,) * 3, True) for i, o in zip((64, *entry), entry))
    numbers += middle * block(728, (728,) * 3, False)
    numbers += block(728, (728, 1024, 1024), True) + block(1024, (1536, 1536, 2048), False)
    convs = 2 + 7 * len(entry) + 6 * middle + 7 + 6
    return 5 * convs, numbers


@pytest.mark.parametrize(
    ("build", "entry", "middle", "expected"),
    [
        (Xception41_deeplab, (128, 256, 728), 8, (420, 25_035_872)),
        (Xception65_deeplab, (128, 256, 728), 16, (660, 38_052_512)),
        (Xception71_deeplab, (128, 256, 256, 728, 728), 16, (730, 40_488_712)),
    ],
)
def test_state_counts(build, entry, middle, expected):
    assert _expected_numbers(entry, middle) == expected
    assert _numbers(build()) == expected
    assert registry.BACKBONES[build.__name__] is build


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (65, 33), (50, 71)])
def test_sizes(nets, stride, size):
    net = nets[stride]
    assert net.feat_channels == [256, 2048]
    assert net.feat_strides == [4, stride]
    features = _features(net, _image(h=size[0], w=size[1]))
    for y, channels, s in zip(features, net.feat_channels, net.feat_strides):
        assert y.shape == (1, channels, math.ceil(size[0] / s), math.ceil(size[1] / s))


def _depthwise(layer):
    """[(stride, rate)] of the depthwise convolutions in a layer, in their order."""
    convs = [x for x in layer.sublayers() if isinstance(x, nn.Conv2D) and x._groups > 1]
    assert all(c._padding == c._dilation[0] and c._kernel_size == [3, 3] for c in convs)
    return [(c._stride[0], c._dilation[0]) for c in convs]


@pytest.mark.parametrize(
    ("stride", "entry_strides", "middle_rate", "exit_step", "last_rate"),
    [
        (8, (2, 2, 1), 2, (1, 2), 4),
        (16, (2, 2, 2), 1, (1, 1), 2),
        (32, (2, 2, 2), 1, (2, 1), 1),
    ],
)
def test_strides_and_rates(nets, stride, entry_strides, middle_rate, exit_step, last_rate):
    net = nets[stride]
    for block, step in zip(net.entry_flow, entry_strides):
        assert _depthwise(block) == [(1, 1), (1, 1), (step, 1)]
        assert block.short._conv._stride == [step, step]
    for block in net.middle_flow:
        assert _depthwise(block) == [(1, middle_rate)] * 3
        assert block.short is None
    step, rate = exit_step
    assert _depthwise(net.exit_block) == [(1, rate), (1, rate), (step, rate)]
    assert net.exit_block.short._conv._stride == [step, step]
    assert _depthwise(net.exit_convs) == [(1, last_rate)] * 3


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (8, [(2, 1), (1, 1), (2, 1), (1, 1), (1, 2)]),
        (16, [(2, 1), (1, 1), (2, 1), (2, 1), (1, 1)]),
    ],
)
def test_strides_become_rates(stride, expected):
    assert strides_and_rates([2, 2, 1, 2, 2, 1], stride)[1:] == expected


def test_71_layers():
    """At 8; at 16 a golden file holds its features."""
    net = Xception71_deeplab(output_stride=8)
    assert [block.short._conv._stride[0] for block in net.entry_flow] == [2, 1, 2, 1, 1]
    assert [block.tap for block in net.entry_flow] == [False, False, True, False, False]


def test_epsilon_is_that_of_the_released_weights(nets):
    assert {norm._epsilon for norm in batch_norms(nets[16])} == {1e-3}
    assert {norm._momentum for norm in batch_norms(nets[16])} == {0.9}


def test_low_level_feature_is_before_relu(nets):
    """It has negative values, and what runs after it does not change it."""
    net, seen = nets[16], []

    def keep(layer, inputs, output):
        seen.append(output.numpy().copy())

    hook = net.entry_flow[1].conv2.pointwise.register_forward_post_hook(keep)
    low = _features(net, _image())[0]
    hook.remove()
    assert low.min() < -0.1 < 0.1 < low.max()
    np.testing.assert_array_equal(low, seen[0])


def test_shortcuts_are_not_activated(nets):
    """A block whose last batch norm gives 0 hands on its input, negative values too."""
    block = nets[16].middle_flow[0]
    norm = block.conv3.pointwise._batch_norm
    saved = norm.weight.numpy(), norm.bias.numpy()
    norm.weight.set_value(np.zeros(728, np.float32))
    norm.bias.set_value(np.zeros(728, np.float32))
    x = _image(c=728, h=5, w=4)
    before = x.numpy().copy()
    with paddle.no_grad():
        y = block(x)
    norm.weight.set_value(saved[0])
    norm.bias.set_value(saved[1])
    np.testing.assert_array_equal(x.numpy(), before)
    np.testing.assert_array_equal(y.numpy(), before)


@pytest.mark.parametrize("size", [(129, 65), (65, 81)])
@pytest.mark.parametrize(("dense", "strided"), [(8, 16), (16, 32), (8, 32)])
def test_atrous_property(nets, dense, strided, size):
    """The dense features contain the strided ones (same weights, evaluation).

    The same products are summed; 1e-5 of the largest value is for another order of the sums.
    """
    x = _image(h=size[0], w=size[1])
    a, b = _features(nets[dense], x), _features(nets[strided], x)
    np.testing.assert_array_equal(a[0], b[0])
    step = strided // dense
    assert np.abs(a[1][:, :, ::step, ::step] - b[1]).max() <= 1e-5 * np.abs(b[1]).max()


def test_layouts_agree(nets):
    """One state_dict, both layouts. Float32 sums in another order: 1e-4 of the largest value."""
    nhwc = Xception41_deeplab(data_format="NHWC", output_stride=8)
    nhwc.set_state_dict(nets[8].state_dict())
    nhwc.eval()
    x = _image(n=2)
    for a, b in zip(_features(nets[8], x), _features(nhwc, x.transpose([0, 2, 3, 1]))):
        assert np.abs(a - b.transpose(0, 3, 1, 2)).max() <= 1e-4 * np.abs(a).max()


def _activated(net):
    return sum(name.endswith("depthwise._relu") for name, _ in net.named_sublayers())


@pytest.mark.parametrize("relu_after_depthwise", [False, True])
def test_gradients_reach_every_parameter(relu_after_depthwise):
    """Also past the ReLUs that overwrite their input; 4 channels in."""
    net = Xception41_deeplab(in_channels=4, relu_after_depthwise=relu_after_depthwise)
    assert _activated(net) == (3 * (3 + 8 + 1) if relu_after_depthwise else 0) + 3
    low, last = net(_image(n=2, c=4, h=33, w=33))
    assert float(low.min()) < 0
    ((low * low).mean() + (last * last).mean()).backward()
    for name, p in net.named_parameters():
        if not p.stop_gradient:
            assert p.grad is not None, name
            assert bool(paddle.isfinite(p.grad).all()), name
            assert float(p.grad.abs().max()) > 0, name


def test_a_model_takes_it(nets):
    net = DeepLabV3P(5, nets[16], backbone_indices=(0, 1), aspp_out_channels=16)
    net.eval()
    with paddle.no_grad():
        assert net(_image())[0].shape == [1, 5, 65, 49]


def test_paddleseg_names(nets):
    """Every name has one of its own; a table of each kind."""
    net = nets[16]
    names = {name: net.paddleseg_name(name) for name in net.state_dict()}
    assert len(set(names.values())) == len(names)
    for ours, theirs in {
        "conv1._conv.weight": "_conv1._conv.weight",
        "conv2._batch_norm._mean": "_conv2._bn._mean",
        "entry_flow.0.conv3.depthwise._conv.weight": (
            "xception_41/entry_flow/block1._conv3._conv1.weight"
        ),
        "entry_flow.2.short._batch_norm.bias": "xception_41/entry_flow/block3._short._bn.bias",
        "middle_flow.7.conv2.pointwise._batch_norm._variance": (
            "xception_41/middle_flow/block8._conv2._bn2._variance"
        ),
        "exit_block.conv1.pointwise._conv.weight": "_exit_flow_1._conv1._conv2.weight",
        "exit_block.short._conv.weight": "_exit_flow_1._short._conv.weight",
        "exit_convs.2.depthwise._batch_norm.weight": "_exit_flow_2._conv3._bn1.weight",
    }.items():
        assert names[ours] == theirs


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: XceptionDeeplab("xception_39"), "xception_41"),
        (lambda: Xception65_deeplab(output_stride=4), "8, 16, 32"),
        (lambda: Xception65_deeplab(in_channels=0), "in_channels"),
        (lambda: Xception65_deeplab(data_format="CHWN"), "NCHW"),
    ],
)
def test_errors(build, text):
    with pytest.raises(ValueError, match=text):
        build()

# SPDX-License-Identifier: Apache-2.0
"""What computes in half precision under autocast, and where it is refused.

A CPU does not autocast in dygraph. But Paddle puts the same casts into a program that it traces,
by the same lists and rules (`GetAmpDestDtype`), also on a CPU, and there they can be counted: in
bfloat16, since its CPU build knows no float16 convolution, and without batch norm, which has no
half-precision kernel there either. On a GPU batch norm gives its input's type.
"""

from collections import Counter

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddleseg_deeplab import models
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.models import forward
from paddleseg_deeplab.models.layers import ConvBN, SyncBatchNorm, batch_norms
from paddleseg_deeplab.utils.errors import UserError

HALF = "paddle.bfloat16"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As on a GPU that takes every precision."""
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    forward._check_device.cache_clear()
    monkeypatch.setattr(forward, "_takes_effect", lambda precision: True)
    yield monkeypatch
    forward._check_device.cache_clear()


def operators(network, monkeypatch, data_format="NCHW", amp_level="O1"):
    """(name, dtype) -> count, of the program that is traced under `precision_context`."""
    monkeypatch.setattr(nn.BatchNorm2D, "forward", lambda self, x: x)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: x)
    monkeypatch.setattr(F, "batch_norm", lambda x, *args, **kwargs: x)
    shape = [1, 3, 65, 65] if data_format == "NCHW" else [1, 65, 65, 3]

    def run(x):
        with forward.precision_context("bf16", amp_level, data_format):
            return network(x)

    spec = [paddle.static.InputSpec(shape, "float32")]
    program = paddle.jit.to_static(run, input_spec=spec, full_graph=True)
    found = Counter()
    for operator in program.concrete_program.main_program.global_block().ops:
        name = operator.name().removeprefix("pd_op.")
        if name in ("conv2d", "depthwise_conv2d", "add", "relu", "concat", "bilinear_interp"):
            found[name, str(operator.result(0).dtype)] += 1
    return found


def resnet():
    return models.DeepLabV3P(3, models.ResNet50_vd(output_stride=8))


def xception():
    return models.DeepLabV3P(3, models.Xception65_deeplab(), backbone_indices=(0, 1))


def vgg():
    return models.DeepLabV1(3, models.VGG16_LargeFOV(), align_corners=True)


def sync_resnet(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(paddle, "get_device", lambda: "gpu:0")
        patch.setattr(paddle.distributed, "get_world_size", lambda: 2)
        network = resnet()
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(network))
    return network


# Convolutions, depthwise ones, and bilinear resizes: the latter in float32 by Paddle's black list.
@pytest.mark.parametrize(
    ("build", "convolutions", "depthwise", "resizes"),
    [(resnet, 65, 5, 3), (xception, 79, 68, 3), (vgg, 16, 0, 1)],
)
def test_only_resizes_and_the_classifier_s_bias_are_float32(
    build, convolutions, depthwise, resizes, on_a_gpu
):
    found = operators(build(), on_a_gpu)
    assert found["conv2d", HALF] == convolutions
    assert found["depthwise_conv2d", HALF] == depthwise
    wide = {name: count for (name, dtype), count in found.items() if dtype != HALF}
    assert wide == {"bilinear_interp": resizes, "add": 1}


def test_biases_stay_in_half_precision_before_a_batch_norm_over_ranks(on_a_gpu):
    network = sync_resnet(on_a_gpu)
    found = operators(network, on_a_gpu)
    assert found["add", "paddle.float32"] == 1  # the classifier's
    assert found["relu", "paddle.float32"] == 0


def test_logits_of_deeplab_v2_are_summed_in_float32(on_a_gpu):
    network = models.DeepLabV2(3, models.VGG16_LargeFOV(), align_corners=True)
    found = operators(network, on_a_gpu)
    assert found["conv2d", "paddle.float32"] == 0
    rates, scales = len(network.head.aspp), 3
    # A bias each, and their sum.
    assert found["add", "paddle.float32"] == scales * (2 * rates - 1)
    assert found["relu", "paddle.float32"] == 0


@pytest.mark.parametrize("amp_level", ["O1", "O2"])
def test_depthwise_in_bfloat16_and_nhwc_is_float32(amp_level, on_a_gpu):
    """Paddle's weight gradient of it writes to unaligned addresses."""
    backbone = models.ResNet18_vd(output_stride=16, data_format="NHWC")
    network = models.DeepLabV3P(3, backbone, data_format="NHWC")
    if amp_level == "O2":
        network.to(dtype="bfloat16")
    found = operators(network, on_a_gpu, "NHWC", amp_level)
    assert found["depthwise_conv2d", "paddle.float32"] == 5
    assert found["depthwise_conv2d", HALF] == 0
    assert found["conv2d", "paddle.float32"] == 0


def test_training_says_its_data_format(on_a_gpu):
    seen = []
    network = nn.Conv2D(3, 3, 1, data_format="NHWC")
    network.data_format = "NHWC"
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    step = TrainStep(network, optimizer, {}, precision="bf16")
    on_a_gpu.setattr(paddle.amp, "auto_cast", lambda **how: seen.append(how) or paddle.no_grad())
    step._logits(paddle.ones([1, 3, 2, 2]))
    assert seen[-1]["custom_black_list"] == {"depthwise_conv2d"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_biases_are_added_once(data_format, training):
    """The way of the layers against Paddle's, float32: equal up to rounding."""
    paddle.seed(1)
    layer = ConvBN(3, 4, 3, data_format=data_format)
    layer._conv.bias.set_value(paddle.arange(1.0, 5.0))
    norm = SyncBatchNorm(4, data_format=data_format)
    norm.set_state_dict(layer._batch_norm.state_dict())
    layer.train() if training else layer.eval()
    norm.train() if training else norm.eval()
    x = paddle.randn([2, 3, 7, 7] if data_format == "NCHW" else [2, 7, 7, 3])
    expected = norm(layer._conv(x)).numpy()
    assert abs(layer(x).numpy() - expected).max() <= 1e-5 * abs(expected).max()


@pytest.mark.parametrize("padding", ["SAME", "VALID", [1, 2], 1])
def test_padding_in_words_means_what_paddle_makes_of_it(padding):
    layer = ConvBN(2, 3, 3, padding=padding)
    x = paddle.randn([1, 2, 9, 8])
    assert layer(x).shape == layer._conv(x).shape


# -- where it is refused -----------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch):
    """Makes the process see an NVIDIA GPU; autocast works from the capabilities Paddle asks for."""

    def make(name, major, minor):
        least = {"fp16": (7, 0), "bf16": (8, 0)}
        asked = []
        monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: name)
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: (major, minor))

        def takes_effect(precision):
            asked.append(precision)
            return (major, minor) >= least[precision]

        monkeypatch.setattr(forward, "_takes_effect", takes_effect)
        return asked

    forward._check_device.cache_clear()
    yield make
    forward._check_device.cache_clear()


@pytest.mark.parametrize(
    ("name", "capability", "precision", "use"),
    [
        ("Tesla V100", (7, 0), "bf16", "--precision fp16 or fp32."),
        ("Tesla T4", (7, 5), "bf16", "--precision fp16 or fp32."),
        ("Tesla P100", (6, 0), "bf16", "--precision fp32."),
        ("Tesla P100", (6, 0), "fp16", "--precision fp32."),
        ("GTX 1080 Ti", (6, 1), "fp16", "--precision fp32."),
    ],
)
def test_a_gpu_that_is_too_old_is_refused(name, capability, precision, use, device):
    device(name, *capability)
    with pytest.raises(UserError) as caught:
        forward.precision_context(precision)
    text = str(caught.value)
    assert f"--precision {precision} has no effect on gpu:0 ({name}" in text
    assert "compute capability {}.{}".format(*capability) in text
    assert ("8.0" if precision == "bf16" else "7.0") in text
    assert text.endswith(use)
    with pytest.raises(UserError, match="has no effect"):
        TrainStep(nn.Conv2D(1, 1, 1), None, {}, precision=precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_gpu_that_can_is_asked_once(precision, device):
    asked = device("NVIDIA A100", 8, 0)
    for _ in range(3):
        forward.precision_context(precision)
    assert asked == [precision]


def test_fp32_asks_nothing(device):
    asked = device("Tesla K80", 3, 7)
    forward.precision_context("fp32")
    assert not asked


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_probe_sees_what_autocast_does(precision, monkeypatch):
    """On this CPU it has no effect; where products come out in half precision, it has."""
    assert not forward._takes_effect(precision)
    half = getattr(paddle, forward._DTYPES[precision])
    monkeypatch.setattr(paddle, "matmul", lambda x, y: paddle.zeros([1, 1]).astype(half))
    assert forward._takes_effect(precision)


def test_a_device_that_is_not_cuda_s_is_named(monkeypatch):
    monkeypatch.setattr(forward, "_takes_effect", lambda precision: False)
    monkeypatch.setattr(paddle, "get_device", lambda: "xpu:0")
    forward._check_device.cache_clear()
    with pytest.raises(UserError, match="has no effect on xpu:0: "):
        forward.precision_context("bf16")

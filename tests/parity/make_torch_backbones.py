# SPDX-License-Identifier: Apache-2.0
"""Writes torch_backbones.npz: features of aligned Xception and MobileNetV2, computed with torch.

The networks below were written from the papers' figures and tables for this purpose alone; strides
and rates stand in tables, one row per output stride. They share no code with the package. To make
the file again (needs torch, on the CPU, and NumPy)::

    python tests/parity/make_torch_backbones.py

Weights come from `make_paddleseg_logits.fill` by this project's names, so that the test can fill
this project's networks with the same ones. Torch is imported where it is used: the test imports
the tables of this file without it.
"""

from math import gcd
from pathlib import Path

import numpy as np
from make_paddleseg_logits import fill, image

FEATURES_FILE = Path(__file__).parent / "torch_backbones.npz"
KEPT = 96  # values of each feature

TINY = ((65, 49), (64, 64))
# (name of the builder, its arguments, output stride, sizes as (height, width)). The large sizes
# are there because on a tiny map the taps of large rates see nothing but padding.
CASES = (
    *(("Xception41_deeplab", {}, stride, (*TINY, (129, 113))) for stride in (8, 16, 32)),
    ("Xception41_deeplab", {"relu_after_depthwise": True}, 16, TINY),
    *(("Xception65_deeplab", {}, stride, TINY) for stride in (8, 16)),
    *(("Xception71_deeplab", {}, stride, TINY) for stride in (8, 16)),
    *(("MobileNetV2_x1_0", {}, stride, (*TINY, (193, 161))) for stride in (8, 16, 32)),
    ("MobileNetV2_x0_5", {}, 16, TINY),
    ("MobileNetV2_x0_75", {}, 16, TINY),
)

# Entry blocks: name of the network -> (channels, strides at output stride 8, at 16 and 32).
XCEPTION_ENTRY = {
    "Xception41_deeplab": ((128, 256, 728), (2, 2, 1), (2, 2, 2)),
    "Xception65_deeplab": ((128, 256, 728), (2, 2, 1), (2, 2, 2)),
    "Xception71_deeplab": ((128, 256, 256, 728, 728), (2, 1, 2, 1, 1), (2, 1, 2, 1, 2)),
}
XCEPTION_MIDDLE = {"Xception41_deeplab": 8, "Xception65_deeplab": 16, "Xception71_deeplab": 16}
XCEPTION_TAP = {"Xception41_deeplab": 1, "Xception65_deeplab": 1, "Xception71_deeplab": 2}
# Output stride: rate of the middle flow; stride and rate of the exit block; rate of the last three.
XCEPTION_RATES = {8: (2, (1, 2), 4), 16: (1, (1, 1), 2), 32: (1, (2, 1), 1)}

# Output stride: (stride, rate of the first block, rate of the others) of the seven stages.
MOBILENET_STEPS = {
    8: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 2), (1, 2, 4), (1, 4, 4)),
    16: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 2)),
    32: ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1)),
}
MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
# Builder: channels of the stem and of the seven stages, multiples of 8.
MOBILENET_CHANNELS = {
    "MobileNetV2_x1_0": (32, 16, 24, 32, 64, 96, 160, 320),
    "MobileNetV2_x0_75": (24, 16, 24, 24, 48, 72, 120, 240),
    "MobileNetV2_x0_5": (16, 8, 16, 16, 32, 48, 80, 160),
}


def case_name(builder, arguments, stride, size):
    return f"{builder}{''.join(f'_{key}' for key in arguments)}_os{stride}_{size[0]}x{size[1]}"


def kept(features):
    """KEPT values of each feature (NumPy, NCHW): float32 [features, KEPT].

    The step shares no factor with the number of values, so that it meets every row, column and
    many channels.
    """
    rows = []
    for feature in features:
        step = feature.size // KEPT
        while gcd(step, feature.size) > 1:
            step -= 1
        rows.append(feature.reshape(-1)[::step][:KEPT])
    return np.stack(rows).astype(np.float32)


def mobilenet_names():
    """{name in torchvision's layout: name in this project's}, buffers included."""
    norms = {"weight": "weight", "bias": "bias"}
    norms.update({"running_mean": "_mean", "running_var": "_variance"})
    convs = {("features.0.0", "features.0.1"): "stem"}
    for i in range(sum(MOBILENET_BLOCKS)):
        inner = f"features.{i + 1}.conv"
        parts = ["depthwise"] if i == 0 else ["expand", "depthwise"]
        for place, part in enumerate(parts):
            convs[f"{inner}.{place}.0", f"{inner}.{place}.1"] = f"blocks.{i}.{part}"
        last = len(parts)
        convs[f"{inner}.{last}", f"{inner}.{last + 1}"] = f"blocks.{i}.project"
    names = {}
    for (conv, norm), ours in convs.items():
        names[f"{conv}.weight"] = f"{ours}._conv.weight"
        names.update({f"{norm}.{a}": f"{ours}._batch_norm.{b}" for a, b in norms.items()})
    return names


def xception_features(builder, stride, x, relu_after_depthwise=False):
    """[low-level feature, last feature] of aligned Xception in evaluation, written as functions."""
    import torch
    from torch.nn.functional import batch_norm, conv2d, relu

    def conv_bn(x, name, channels, kernel, step=1, rate=1, depthwise=False):
        shape = (channels, 1 if depthwise else x.shape[1], kernel, kernel)
        weight = torch.from_numpy(fill(f"{name}._conv.weight", shape))
        groups = channels if depthwise else 1
        x = conv2d(x, weight, None, step, rate * (kernel // 2), rate, groups)
        gamma, beta, mean, var = (
            torch.from_numpy(fill(f"{name}._batch_norm.{key}", (channels,)))
            for key in ("weight", "bias", "_mean", "_variance")
        )
        return batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-3)

    def separable(x, name, channels, step, rate, between):
        x = conv_bn(x, f"{name}.depthwise", x.shape[1], 3, step, rate, depthwise=True)
        return conv_bn(relu(x) if between else x, f"{name}.pointwise", channels, 1)

    def block(x, name, channels, step, rate, shortcut):
        outputs = [x]
        for i, width in enumerate(channels, start=1):
            last_step = step if i == 3 else 1
            outputs.append(
                separable(
                    relu(outputs[-1]),
                    f"{name}.conv{i}",
                    width,
                    last_step,
                    rate,
                    relu_after_depthwise,
                )
            )
        skip = conv_bn(x, f"{name}.short", channels[-1], 1, step) if shortcut else x
        return outputs[3] + skip, outputs[2]

    channels, strides_8, strides_16 = XCEPTION_ENTRY[builder]
    middle_rate, (exit_stride, exit_rate), last_rate = XCEPTION_RATES[stride]
    x = relu(conv_bn(x, "conv1", 32, 3, 2))
    x = relu(conv_bn(x, "conv2", 64, 3))
    taps = []
    for i, (width, step) in enumerate(zip(channels, strides_8 if stride == 8 else strides_16)):
        x, second = block(x, f"entry_flow.{i}", [width] * 3, step, 1, True)
        taps.append(second)
    for i in range(XCEPTION_MIDDLE[builder]):
        x, _ = block(x, f"middle_flow.{i}", [728] * 3, 1, middle_rate, False)
    x, _ = block(x, "exit_block", [728, 1024, 1024], exit_stride, exit_rate, True)
    for i, width in enumerate((1536, 1536, 2048)):
        x = relu(separable(x, f"exit_convs.{i}", width, 1, last_rate, True))
    return [taps[XCEPTION_TAP[builder]], x]


def mobilenet(builder, stride):
    """MobileNetV2 as a torch module in torchvision's layout, filled and in evaluation."""
    import torch
    from torch import nn

    def conv_bn(i, o, kernel, step=1, rate=1, groups=1):
        padding = rate * (kernel // 2)
        conv = nn.Conv2d(i, o, kernel, step, padding, rate, groups, bias=False)
        return [conv, nn.BatchNorm2d(o)]

    class Block(nn.Module):
        def __init__(self, i, o, step, rate, factor, adds):
            super().__init__()
            wide = factor * i
            layers = [nn.Sequential(*conv_bn(i, wide, 1), nn.ReLU6())] if factor > 1 else []
            layers.append(nn.Sequential(*conv_bn(wide, wide, 3, step, rate, wide), nn.ReLU6()))
            self.conv = nn.Sequential(*layers, *conv_bn(wide, o, 1))
            self.adds = adds

        def forward(self, x):
            return self.conv(x) + x if self.adds else self.conv(x)

    stem, *widths = MOBILENET_CHANNELS[builder]
    layers = [nn.Sequential(*conv_bn(3, stem, 3, 2), nn.ReLU6())]
    before = stem
    for s, width in enumerate(widths):
        step, first_rate, rate = MOBILENET_STEPS[stride][s]
        factor = 6 if s else 1
        layers.append(Block(before, width, step, first_rate, factor, False))
        for _ in range(1, MOBILENET_BLOCKS[s]):
            layers.append(Block(width, width, 1, rate, factor, True))
        before = width
    net = nn.Module()
    net.features = nn.Sequential(*layers)
    net.eval()
    names = mobilenet_names()
    tensors = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(tensors) == set(names)
    for theirs, tensor in tensors.items():
        tensor.copy_(torch.from_numpy(fill(names[theirs], tuple(tensor.shape))))
    return net


def mobilenet_features(builder, stride, x):
    features = []
    for i, layer in enumerate(mobilenet(builder, stride).features):
        x = layer(x)
        if i in (3, 6, 13, 17):  # the last layers of 24, 32, 96 and 320 channels
            features.append(x)
    return features


def main():
    import torch

    arrays = {}
    with torch.no_grad():
        for builder, arguments, stride, sizes in CASES:
            compute = xception_features if "Xception" in builder else mobilenet_features
            for size in sizes:
                features = compute(builder, stride, torch.from_numpy(image(size)), **arguments)
                name = case_name(builder, arguments, stride, size)
                arrays[name] = kept([f.numpy() for f in features])
                print(name, [(tuple(f.shape), float(f.std())) for f in features])
    np.savez_compressed(FEATURES_FILE, **arrays)
    print(FEATURES_FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

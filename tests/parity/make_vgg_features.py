# SPDX-License-Identifier: Apache-2.0
"""Writes vgg_and_decoder.npz: VGG16_LargeFOV's features and V3+'s logits, computed with torch.

The functions below were written from the papers for this purpose alone and share no code with the
package: sizes, strides and rates stand in tables, and pads and crops are spelled out. To make the
file again (needs torch, on the CPU, and NumPy)::

    python tests/parity/make_vgg_features.py

Weights come from `make_paddleseg_logits.fill` by this project's names, so that the test can fill
this project's networks with the same ones. Torch is imported where it is used: the test imports
the tables of this file without it.
"""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
from make_paddleseg_logits import digest, fill, image

FILE = Path(__file__).parent / "vgg_and_decoder.npz"
KEPT = 80  # values of each array

# name: (arguments of VGG16_LargeFOV, sizes as (height, width)). On the large one the taps of rate
# 12 see the map; on the small ones mostly padding.
SMALL = ((65, 49), (64, 64))
VGG_CASES = {
    "plain_os8": ({"output_stride": 8}, (*SMALL, (161, 145))),
    "fused_os8": ({"output_stride": 8, "multi_scale_features": True}, SMALL),
    "fused_os16": ({"output_stride": 16, "multi_scale_features": True}, SMALL),
    "fused_os32": ({"output_stride": 32, "multi_scale_features": True}, SMALL),
    "averaged": ({"average_pool": True}, SMALL[:1]),
    "fov4_os8": ({"fov_kernel": 4, "fov_rate": 8, "fov_channels": 64}, (*SMALL, (161, 145))),
    "fov7_os16": (
        {"output_stride": 16, "fov_kernel": 7, "fov_rate": 4, "fov_channels": 32},
        SMALL[:1],
    ),
}
# Output stride: stride of each pool, rate of conv5.
VGG_POOLS = {8: ((2, 2, 2, 1, 1), 2), 16: ((2, 2, 2, 2, 1), 1), 32: ((2, 2, 2, 2, 2), 1)}

# The head on two features, of stride 4 and 16, or 4 and 8.
HEAD = {
    "num_classes": 5,
    "backbone_indices": (0, 1),
    "backbone_channels": (6, 10),
    "aspp_ratios": (1, 2, 3),
    "aspp_out_channels": 8,
}
HEAD_MORE = {"low_level_channels": 4, "decoder_channels": 12}
# Name: whether ASPP's branches, its projection, the decoder and the classifier have a bias.
BIASES = {
    "all": (True, True, True, True),
    "projection": (False, True, False, False),
    "classifier": (False, False, False, True),
}
# (head_bias, use_sep_conv, upsample, align_corners, output stride, (height, width))
HEAD_CASES = tuple(
    (bias, separable, upsample, align_corners, stride, size)
    for bias, separable, (upsample, align_corners) in itertools.product(
        BIASES, (True, False), (("bilinear", False), ("bilinear", True), ("deconv", False))
    )
    for stride, size in ((16, (65, 49)), (8, (64, 62)))
)


def head_name(bias, separable, upsample, align_corners, stride, size):
    convs = "separable" if separable else "plain"
    corners = "corners" if align_corners else "edges"
    return f"{bias}_{convs}_{upsample}_{corners}_os{stride}_{size[0]}x{size[1]}"


def head_features(stride, size):
    """The head's input for an image of a size: two float32 arrays [2, C, H, W]."""
    rng = np.random.Generator(np.random.PCG64(stride))
    return [
        rng.standard_normal((2, channels, -(-size[0] // s), -(-size[1] // s))).astype(np.float32)
        for s, channels in zip((4, stride), HEAD["backbone_channels"])
    ]


def read():
    """What the file holds: dict from a case's name to (digest, shapes, kept values)."""
    with np.load(FILE) as arrays:
        values, about = arrays["values"], json.loads(str(arrays["about"]))
    return {
        name: (x["digest"], x["shapes"], values[x["first"] : x["first"] + len(x["shapes"])])
        for name, x in about.items()
    }


def keep(name, array):
    """`KEPT` values of an array, at places drawn by its name: float32 [KEPT]."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return array.reshape(-1)[rng.integers(array.size, size=KEPT)].astype(np.float32)


class Weights:
    """Tensors from `fill`, and a list of what was asked for."""

    def __init__(self):
        self.asked = {}

    def __call__(self, name, *shape):
        import torch

        self.asked[name] = np.empty(shape, np.int8)
        return torch.from_numpy(fill(name, list(shape)))


def torch_vgg(x, get, output_stride=8, multi_scale_features=False, **fov):
    """VGG16_LargeFOV: pools 2, 3 and 4, and fc7."""
    import torch
    import torch.nn.functional as F

    kernel, rate = fov.get("fov_kernel", 3), fov.get("fov_rate", 12)
    width = fov.get("fov_channels", 1024)

    def conv(x, name, out, k, **kwargs):
        return F.relu(
            F.conv2d(
                x, get(f"{name}.weight", out, x.shape[1], k, k), get(f"{name}.bias", out), **kwargs
            )
        )

    pool_strides, rate5 = VGG_POOLS[output_stride]
    sources = [x]
    for block, (count, channels) in enumerate(
        ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1
    ):
        r = rate5 if block == 5 else 1
        for i in range(1, count + 1):
            x = conv(x, f"conv{block}_{i}", channels, 3, padding=r, dilation=r)
        x = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
        x = F.max_pool2d(x, 3, pool_strides[block - 1])
        sources.append(x)
    if fov.get("average_pool"):
        x = F.conv2d(x, torch.full((512, 1, 3, 3), 1 / 9), padding=1, groups=512)
    rate = rate * 8 // output_stride
    side = rate * (kernel - 1) // 2
    x = conv(F.pad(x, (side,) * 4), "fc6", width, kernel, dilation=rate)
    x = conv(x, "fc7", width, 1)
    if multi_scale_features:
        joined = [x]
        for i, source in enumerate(sources[:5]):
            # At every pixel, then those of fc7's grid alone.
            y = conv(source, f"fusion.{i}.0", 128, 3, padding=1)
            y = conv(y, f"fusion.{i}.1", 128, 1)
            reached = int(np.prod(pool_strides[:i]))
            joined.append(y[:, :, :: output_stride // reached, :: output_stride // reached])
        x = torch.cat(joined, 1)
    return [*sources[2:5], x]


def torch_head(low, high, get, bias, separable, upsample, align_corners, stride, size):
    """V3+'s head: [logits at the low-level feature's size, logits at the image's]."""
    import torch
    import torch.nn.functional as F

    branches, projection, decoder, classifier = BIASES[bias]
    channels, middle = HEAD["aspp_out_channels"], HEAD_MORE["decoder_channels"]

    def conv(x, name, out, k, with_bias, rate=1, groups=1, relu=True):
        weight = get(f"{name}._conv.weight", out, x.shape[1] // groups, k, k)
        b = get(f"{name}._conv.bias", out) if with_bias else None
        x = F.conv2d(x, weight, b, padding=rate * (k // 2), dilation=rate, groups=groups)
        mean, var, scale, shift = (
            get(f"{name}._batch_norm.{part}", out)
            for part in ("_mean", "_variance", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, scale, shift, eps=1e-5)
        return F.relu(x) if relu else x

    def conv3x3(x, name, out, with_bias, rate=1):
        if not separable:
            return conv(x, name, out, 3, with_bias, rate)
        n = x.shape[1]
        x = conv(x, f"{name}.depthwise_conv", n, 3, with_bias, rate, groups=n, relu=False)
        return conv(x, f"{name}.piontwise_conv", out, 1, with_bias)

    def enlarge(x, factor, name, target):
        if upsample == "bilinear":
            return F.interpolate(x, target, mode="bilinear", align_corners=align_corners)
        n, h, w = x.shape[1:]
        k = {2: 4, 4: 8}[factor]
        weight = get(f"{name}.deconv.weight", n, 1, k, k)
        x = F.conv_transpose2d(
            F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, stride=factor, groups=n
        )
        first = {2: 3, 4: 6}[factor]  # the edge pixel, and half of what the kernel overlaps
        x = x[:, :, first : first + factor * h, first : first + factor * w]
        top, left = (factor * h - target[0]) // 2, (factor * w - target[1]) // 2
        return x[:, :, top : top + target[0], left : left + target[1]]

    outputs = []
    for i, rate in enumerate(HEAD["aspp_ratios"]):
        name = f"aspp.aspp_blocks.{i}"
        if rate == 1:
            outputs.append(conv(high, name, channels, 1, branches))
        else:
            outputs.append(conv3x3(high, name, channels, branches, rate))
    pooled = conv(high.mean((2, 3), keepdim=True), "aspp.global_avg_pool.1", channels, 1, False)
    outputs.append(pooled.expand_as(outputs[0]))
    x = conv(torch.cat(outputs, 1), "aspp.conv_bn_relu", channels, 1, projection)
    low = conv(low, "decoder.conv_bn_relu1", HEAD_MORE["low_level_channels"], 1, decoder)
    x = torch.cat([enlarge(x, stride // 4, "decoder.deconv", low.shape[2:]), low], 1)
    x = conv3x3(x, "decoder.conv_bn_relu2", middle, decoder)
    x = conv3x3(x, "decoder.conv_bn_relu3", middle, decoder)
    classes = HEAD["num_classes"]
    weight = get("decoder.conv.weight", classes, middle, 1, 1)
    logits = F.conv2d(x, weight, get("decoder.conv.bias", classes) if classifier else None)
    return [logits, enlarge(logits, 4, "logits_deconv", size)]


def main():
    import torch

    values, about = [], {}

    def add(name, outputs, get):
        shapes = [list(output.shape) for output in outputs]
        about[name] = {"first": len(values), "shapes": shapes, "digest": digest(get.asked)}
        for i, output in enumerate(outputs):
            values.append(keep(f"{name}_{i}", output.numpy()))
        print(name, shapes, "largest", [float(np.abs(x).max()) for x in values[-len(shapes) :]])

    with torch.no_grad():
        for case, (settings, sizes) in VGG_CASES.items():
            for size in sizes:
                get = Weights()
                outputs = torch_vgg(torch.from_numpy(image(size)), get, **settings)
                add(f"{case}_{size[0]}x{size[1]}", outputs, get)
        for case in HEAD_CASES:
            get = Weights()
            features = [torch.from_numpy(x) for x in head_features(*case[-2:])]
            add(head_name(*case), torch_head(*features, get, *case), get)
    np.savez_compressed(FILE, values=np.stack(values), about=np.array(json.dumps(about)))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Writes torch_resnet.npz: ResNets, the V3 paper's cascade and its 59-class form, by torch.

Strides and rates are written out stage by stage, so that the package's rules for them are checked
against plain numbers; the networks are functions over a table of tensors and share no code with
the package. Torchvision's and kazuto1011's networks as they are distributed are in
make_torch_logits.py. To make the file again (torch 2 on the CPU, NumPy)::

    python tests/parity/make_torch_resnet.py

Weights come from `make_paddleseg_logits.fill` by this project's names.
"""

from pathlib import Path

import numpy as np
from make_paddleseg_logits import fill, image

RESNET_FILE = Path(__file__).parent / "torch_resnet.npz"
KEPT = 96  # values of each result
_DEPTHS = {"ResNet50": (3, 4, 6, 3), "ResNet101": (3, 4, 23, 3), "ResNet152": (3, 8, 36, 3)}

# name: (backbone, its arguments, stage by stage (stride, rate of each block or of the first and
# the others), (height, width)). On small maps large rates see nothing but padding, so those of
# the cascade are at a tall, narrow image.
BACKBONES = {
    "r50_os16_grid": (
        "ResNet50",
        {"output_stride": 16, "multi_grid": (1, 2, 4)},
        [(1, (1,)), (2, (1,)), (2, (1,)), (1, (1, 4, 8))],
        (97, 81),
    ),
    "r50_os32_even": (
        "ResNet50",
        {"output_stride": 32, "stride_in": "1x1"},
        [(1, (1,)), (2, (1,)), (2, (1,)), (2, (1,))],
        (64, 98),
    ),
    "r50_cascade_os16": (
        "ResNet50",
        {"output_stride": 16, "stride_in": "1x1", "multi_grid": (1, 2, 1), "extra_stages": 3},
        [(1, (1,)), (2, (1,)), (2, (1,)), *((1, (r, 2 * r, r)) for r in (2, 4, 8, 16))],
        (641, 33),
    ),
    "r50_cascade_os8_torch": (
        "ResNet50",
        {"output_stride": 8, "extra_stages": 2},
        [(1, (1,)), (2, (1,)), (1, (1, 2)), (1, (2, 4)), (1, (4, 8)), (1, (8, 16))],
        (297, 33),
    ),
    "r50_cascade_os256": (
        "ResNet50",
        {"output_stride": 256, "extra_stages": 3},
        [(1, (1,)), *(6 * [(2, (1,))])],
        (300, 270),
    ),
    "r101_os32": (
        "ResNet101",
        {"output_stride": 32},
        [(1, (1,)), (2, (1,)), (2, (1,)), (2, (1,))],
        (97, 65),
    ),
    "r152_os16": (
        "ResNet152",
        {"output_stride": 16},
        [(1, (1,)), (2, (1,)), (2, (1,)), (1, (1, 2))],
        (81, 65),
    ),
    "r152_os8_caffe": (
        "ResNet152",
        {"output_stride": 8, "stride_in": "1x1"},
        [(1, (1,)), (2, (1,)), (1, (2,)), (1, (4,))],
        (64, 49),
    ),
}
# name: (arguments of DeepLabV3, row of BACKBONES, classes, rates, with the 3x3 convolution).
MODELS = {
    "v3_cascade": ({"head": "cascade"}, "r50_cascade_os16", 7, None, False),
    "v3_cascade_aspp": (
        {"head": "conv3x3", "aspp_ratios": (1, 12, 24, 36)},
        "r50_cascade_os8_torch",
        59,
        (1, 12, 24, 36),
        True,
    ),
}


def kept(values):
    """Evenly spread values of an array, float32 [KEPT]."""
    flat = np.asarray(values).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, KEPT).astype(int)]


class _Network:
    """Layers as functions; a tensor is made when it is first asked for."""

    def __init__(self):
        import torch

        self.torch, self.functional = torch, torch.nn.functional

    def tensor(self, name, *shape):
        return self.torch.from_numpy(fill(name, list(shape)))

    def conv(self, x, name, out, kernel, stride=1, rate=1, bias=False):
        weight = self.tensor(f"{name}.weight", out, x.shape[1], kernel, kernel)
        offset = self.tensor(f"{name}.bias", out) if bias else None
        pad = rate * (kernel // 2)
        return self.functional.conv2d(x, weight, offset, stride, pad, rate)

    def unit(self, x, name, out, kernel, stride=1, rate=1, bias=False, relu=True):
        x = self.conv(x, f"{name}._conv", out, kernel, stride, rate, bias)
        parts = [
            self.tensor(f"{name}._batch_norm.{part}", out)
            for part in ("_mean", "_variance", "weight", "bias")
        ]
        x = self.functional.batch_norm(x, *parts, training=False, eps=1e-5)
        return self.functional.relu(x) if relu else x

    def backbone(self, x, row, prefix=""):
        name, settings, stages, _ = BACKBONES[row]
        caffe = settings.get("stride_in") == "1x1"
        x = self.unit(x, f"{prefix}conv1", 64, 7, 2)
        x = self.functional.max_pool2d(x, 3, 2, 1, ceil_mode=caffe)
        depths = _DEPTHS[name] + 3 * _DEPTHS[name][3:]
        widths = (64, 128, 256, 512, 512, 512, 512)
        for s, ((stride, rates), depth, width) in enumerate(zip(stages, depths, widths), 1):
            for b in range(depth):
                block, step = f"{prefix}layer{s}.{b}", stride if b == 0 else 1
                rate = rates[min(b, len(rates) - 1)]
                first, second = (step, 1) if caffe else (1, step)
                y = self.unit(x, f"{block}.conv1", width, 1, first)
                y = self.unit(y, f"{block}.conv2", width, 3, second, rate)
                y = self.unit(y, f"{block}.conv3", 4 * width, 1, relu=False)
                if b == 0:
                    x = self.unit(x, f"{block}.downsample", 4 * width, 1, step, relu=False)
                x = self.functional.relu(x + y)
        return x

    def model(self, x, name):
        _, row, classes, rates, conv3x3 = MODELS[name]
        y = self.backbone(x, row, "backbone.")
        if rates is not None:
            maps = [
                self.unit(y, f"head.aspp.aspp_blocks.{i}", 256, 1 if r == 1 else 3, 1, r, True)
                for i, r in enumerate(rates)
            ]
            pooled = y.mean((2, 3), keepdim=True)
            pooled = self.unit(pooled, "head.aspp.global_avg_pool.1", 256, 1)
            maps.append(pooled.expand_as(maps[0]))
            y = self.unit(self.torch.cat(maps, 1), "head.aspp.conv_bn_relu", 256, 1, bias=True)
        if conv3x3:
            y = self.unit(y, "head.conv", 256, 3, bias=True)
        y = self.conv(y, "head.cls", classes, 1, bias=True)
        size = x.shape[2:]
        return self.functional.interpolate(y, size, mode="bilinear", align_corners=False)


def main():
    network, arrays = _Network(), {}
    for name, (*_, size) in BACKBONES.items():
        y = network.backbone(network.torch.from_numpy(image(size)), name).numpy()
        arrays[name], arrays[f"{name}_shape"] = kept(y), np.array(y.shape)
        print(name, y.shape, "standard deviation", y.std())
    for name, (_, row, *_) in MODELS.items():
        size = BACKBONES[row][3]
        y = network.model(network.torch.from_numpy(image(size)), name).numpy()
        arrays[name], arrays[f"{name}_shape"] = kept(y), np.array(y.shape)
        print(name, y.shape, "standard deviation", y.std())
    np.savez_compressed(RESNET_FILE, **arrays)


if __name__ == "__main__":
    main()

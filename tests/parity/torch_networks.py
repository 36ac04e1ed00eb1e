# SPDX-License-Identifier: Apache-2.0
"""The networks of make_torch_logits.py in torch, with torchvision's and kazuto1011's names.

Written for these golden files alone; they share no code with the package. Only the script imports
this file, so that the tests do without torch.
"""

import torch
from torch import nn
from torch.nn import functional as F

_BILINEAR = {"mode": "bilinear", "align_corners": False}


def _conv(i, o, k, s=1, d=1):
    return nn.Conv2d(i, o, k, s, d * (k // 2), d, bias=False)


def _resized(y, x):
    return F.interpolate(y, x.shape[2:], **_BILINEAR)


# -- torchvision ----------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, i, width, s, d, project):
        super().__init__()
        o = 4 * width
        self.conv1, self.bn1 = _conv(i, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, s, d), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, o, 1), nn.BatchNorm2d(o)
        self.downsample = nn.Sequential(_conv(i, o, 1, s), nn.BatchNorm2d(o)) if project else None

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Backbone(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        i = 64
        # A dilated stage's first block still has the rate of the stage before.
        plan = zip(blocks, (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 1, 2), (1, 1, 2, 4))
        for stage, (count, width, stride, first, rate) in enumerate(plan, 1):
            layers = [_Block(i, width, stride, first, True)]
            i = 4 * width
            layers += [_Block(i, width, 1, rate, False) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer3(self.layer2(self.layer1(x)))
        return x, self.layer4(x)


def _branch(k, d=1, *before):
    return nn.Sequential(*before, _conv(2048, 256, k, 1, d), nn.BatchNorm2d(256))


class _ASPP(nn.Module):
    def __init__(self):
        super().__init__()
        rates = [_branch(3, d) for d in (12, 24, 36)]
        pooling = _branch(1, 1, nn.AdaptiveAvgPool2d(1))
        self.convs = nn.ModuleList([_branch(1), *rates, pooling])
        self.project = nn.Sequential(_conv(5 * 256, 256, 1), nn.BatchNorm2d(256))

    def forward(self, x):
        maps = [F.relu(branch(x)) for branch in self.convs]
        maps[-1] = maps[-1].expand_as(maps[0])  # bilinear resize of a single pixel
        return F.relu(self.project(torch.cat(maps, 1)))


class _DeepLabV3(nn.Module):
    def __init__(self, blocks, classes):
        super().__init__()
        self.backbone = _Backbone(blocks)
        last = [nn.Conv2d(256, classes, 1) for _ in range(2)]
        self.classifier = nn.Sequential(
            _ASPP(), _conv(256, 256, 3), nn.BatchNorm2d(256), nn.ReLU(), last[0]
        )
        self.aux_classifier = nn.Sequential(
            _conv(1024, 256, 3), nn.BatchNorm2d(256), nn.ReLU(), nn.Dropout(0.1), last[1]
        )

    def forward(self, x):
        middle, last = self.backbone(x)
        return [_resized(y, x) for y in (self.classifier(last), self.aux_classifier(middle))]


def torchvision(blocks, classes=21):
    """DeepLabV3 with the names of torchvision's deeplabv3_resnet50 and deeplabv3_resnet101."""
    return _DeepLabV3(blocks, classes)


# -- kazuto1011 -----------------------------------------------------------------------------------


class _Unit(nn.Module):
    def __init__(self, i, o, k, s=1, d=1, relu=True):
        super().__init__()
        self.conv, self.bn, self.relu = _conv(i, o, k, s, d), nn.BatchNorm2d(o), relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class _CaffeBlock(nn.Module):
    def __init__(self, i, o, s, d, project):
        super().__init__()
        self.reduce = _Unit(i, o // 4, 1, s)
        self.conv3x3 = _Unit(o // 4, o // 4, 3, 1, d)
        self.increase = _Unit(o // 4, o, 1, relu=False)
        self.shortcut = _Unit(i, o, 1, s, relu=False) if project else nn.Identity()

    def forward(self, x):
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


class _Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = _Unit(3, 64, 7, 2)

    def forward(self, x):
        return F.max_pool2d(self.conv1(x), 3, 2, 1, ceil_mode=True)


class _SumASPP(nn.Module):
    def __init__(self, classes):
        super().__init__()
        for n, r in enumerate((6, 12, 18, 24)):
            self.add_module(f"c{n}", nn.Conv2d(2048, classes, 3, 1, r, r))

    def forward(self, x):
        return sum(branch(x) for branch in self.children())


class _Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = _Unit(2048, 256, 1)

    def forward(self, x):
        return _resized(self.conv(x.mean((2, 3), keepdim=True)), x)


class _ConcatASPP(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Module()
        self.stages.c0 = _Unit(2048, 256, 1)
        for n, r in enumerate((6, 12, 18), 1):
            self.stages.add_module(f"c{n}", _Unit(2048, 256, 3, 1, r))
        self.stages.imagepool = _Pool()

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.stages.children()], 1)


def kazuto1011(version, blocks, classes=21):
    """DeepLab V1, V2 or V3 at stride 8 with kazuto1011's names; logits of stride 8."""
    network, i = nn.Sequential(), 64
    network.add_module("layer1", _Stem())
    plan = zip(blocks, (256, 512, 1024, 2048), (1, 2, 1, 1), (1, 1, 2, 4))
    for layer, (count, o, stride, rate) in enumerate(plan, 2):
        stage = nn.Sequential()
        units = (1, 2, 4) if version == 3 and layer == 5 else (1,) * count
        for n, unit in enumerate(units):
            block = _CaffeBlock(o if n else i, o, 1 if n else stride, rate * unit, not n)
            stage.add_module(f"block{n + 1}", block)
        network.add_module(f"layer{layer}", stage)
        i = o
    if version == 1:
        network.add_module("fc", nn.Conv2d(2048, classes, 1))
    elif version == 2:
        network.add_module("aspp", _SumASPP(classes))
    else:
        network.add_module("aspp", _ConcatASPP())
        network.add_module("fc1", _Unit(5 * 256, 256, 1))
        network.add_module("fc2", nn.Conv2d(256, classes, 1))
    return network


def _multi_scale(network, x):
    """Maximum over the scales 1, 0.75 and 0.5, on the grid of scale 1."""
    maps = [network(x)]
    for scale in (0.75, 0.5):
        y = network(F.interpolate(x, scale_factor=scale, **_BILINEAR))
        maps.append(_resized(y, maps[0]))
    return torch.stack(maps).amax(0)


def outputs_of(name, network, x):
    """{suffix of the array's name: logits of the input's size}."""
    if name.startswith("torchvision"):
        main, auxiliary = network(x)
        return {"": main, "_aux": auxiliary}
    outputs = {"": _resized(network(x), x)}
    if "deeplabv2" in name:
        outputs["_msc"] = _resized(_multi_scale(network, x), x)
    return outputs

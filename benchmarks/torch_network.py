# SPDX-License-Identifier: Apache-2.0
"""DeepLabV3+ on ResNet_vd, its loss and its training step as a user of torch would write them.

Attributes have the names of this project's, so that its weights load by name.
"""

import torch
import torch.nn.functional as F
from torch import nn

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# output stride: (stride, dilation) of the four stages, and ASPP's rates.
STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
}
RATES = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}
WIDTHS = (64, 128, 256, 512)
VOID = 255


class ConvBN(nn.Module):
    """Convolution, batch norm, and ReLU where `relu` is set."""

    def __init__(self, inputs, outputs, kernel, *, relu=True, bias=False, dilation=1, **kwargs):
        super().__init__()
        padding = dilation * (kernel // 2)
        self._conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias, **kwargs
        )
        self._batch_norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x):
        return self.relu(self._batch_norm(self._conv(x)))


class Separable(nn.Module):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.depthwise_conv = ConvBN(
            inputs, inputs, 3, relu=False, bias=True, dilation=dilation, groups=inputs
        )
        self.piontwise_conv = ConvBN(inputs, outputs, 1, bias=True)

    def forward(self, x):
        return self.piontwise_conv(self.depthwise_conv(x))


class Block(nn.Module):
    """Residual block: basic, or a bottleneck four times as wide."""

    def __init__(self, inputs, width, stride, dilation, projection, bottleneck):
        super().__init__()
        at = {"stride": stride, "dilation": dilation}
        outputs = width * (4 if bottleneck else 1)
        if bottleneck:
            self.conv0 = ConvBN(inputs, width, 1)
            self.conv1 = ConvBN(width, width, 3, **at)
            self.conv2 = ConvBN(width, outputs, 1, relu=False)
        else:
            self.conv0 = ConvBN(inputs, width, 3, **at)
            self.conv1 = ConvBN(width, width, 3, relu=False, dilation=dilation)
        self.short = ConvBN(inputs, outputs, 1, relu=False) if projection else None
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else nn.Identity()
        self.bottleneck = bottleneck

    def forward(self, x):
        y = self.conv1(self.conv0(x))
        if self.bottleneck:
            y = self.conv2(y)
        short = x if self.short is None else self.short(self.pool(x))
        return F.relu(y + short, inplace=True)


class Backbone(nn.Module):
    def __init__(self, layers, output_stride):
        super().__init__()
        self.conv1_1 = ConvBN(3, 32, 3, stride=2)
        self.conv1_2 = ConvBN(32, 32, 3)
        self.conv1_3 = ConvBN(32, 64, 3)
        bottleneck = layers >= 50
        self.names, channels = [], 64
        for s, (stride, dilation) in enumerate(STAGES[output_stride]):
            self.names.append([])
            for b in range(DEPTHS[layers][s]):
                first = b == 0
                name = f"bb_{s}_{b}"
                block = Block(
                    channels, WIDTHS[s], stride if first else 1, dilation, first, bottleneck
                )
                self.add_module(name, block)
                self.names[-1].append(name)
                channels = WIDTHS[s] * (4 if bottleneck else 1)
        self.channels = [width * (4 if bottleneck else 1) for width in WIDTHS]

    def forward(self, x):
        x = F.max_pool2d(self.conv1_3(self.conv1_2(self.conv1_1(x))), 3, 2, 1)
        features = []
        for stage in self.names:
            for name in stage:
                x = getattr(self, name)(x)
            features.append(x)
        return features


class ASPP(nn.Module):
    def __init__(self, inputs, rates):
        super().__init__()
        self.aspp_blocks = nn.ModuleList(
            ConvBN(inputs, 256, 1, bias=True) if rate == 1 else Separable(inputs, 256, rate)
            for rate in rates
        )
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBN(inputs, 256, 1))
        self.conv_bn_relu = ConvBN(256 * (len(rates) + 1), 256, 1, bias=True)

    def forward(self, x):
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        return self.conv_bn_relu(torch.cat([*(b(x) for b in self.aspp_blocks), mean], 1))


class Decoder(nn.Module):
    def __init__(self, classes, low):
        super().__init__()
        self.conv_bn_relu1 = ConvBN(low, 48, 1, bias=True)
        self.conv_bn_relu2 = Separable(256 + 48, 256)
        self.conv_bn_relu3 = Separable(256, 256)
        self.conv = nn.Conv2d(256, classes, 1)

    def forward(self, x, low):
        low = self.conv_bn_relu1(low)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat([x, low], 1)
        return self.conv(self.conv_bn_relu3(self.conv_bn_relu2(x)))


class DeepLabV3P(nn.Module):
    """DeepLabV3+ on ResNet18_vd or ResNet50_vd, without dropout.

    Args:
        classes (int): Channels of the logits.
        layers (int): 18 or 50.
        output_stride (int): 8 or 16.
    """

    def __init__(self, classes, layers, output_stride):
        super().__init__()
        self.backbone = Backbone(layers, output_stride)
        channels = self.backbone.channels
        self.head = nn.Module()
        self.head.aspp = ASPP(channels[3], RATES[output_stride])
        self.head.decoder = Decoder(classes, channels[0])

    def forward(self, x):
        features = self.backbone(x)
        y = self.head.decoder(self.head.aspp(features[3]), features[0])
        return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)

    def load(self, state):
        """Takes this project's weights: NumPy arrays by its names; strict."""
        state = {_theirs(name): torch.tensor(value) for name, value in state.items()}
        found = self.load_state_dict(state, strict=False)
        missing = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
        if missing or found.unexpected_keys:
            raise ValueError(f"Missing {missing}, unexpected {found.unexpected_keys}.")

    def weights(self):
        """NumPy arrays by this project's names."""
        state = self.state_dict().items()
        return {_ours(k): v.numpy() for k, v in state if not k.endswith("num_batches_tracked")}


def _theirs(name):
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


def _ours(name):
    return name.replace(".running_mean", "._mean").replace(".running_var", "._variance")


def lovasz_softmax(logits, label):
    """The usual implementation: a sort of all valid pixels for each class that occurs."""
    classes = logits.shape[1]
    probs = F.softmax(logits, 1).permute(0, 2, 3, 1).reshape(-1, classes)
    label = label.reshape(-1)
    valid = label != VOID
    probs, label = probs[valid], label[valid]
    losses = []
    for k in range(classes):
        truth = (label == k).float()
        if truth.sum() == 0:
            continue
        errors, order = torch.sort((truth - probs[:, k]).abs(), 0, descending=True)
        truth = truth[order]
        total = truth.sum()
        jaccard = 1.0 - (total - truth.cumsum(0)) / (total + (1.0 - truth).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
        losses.append(torch.dot(errors, jaccard))
    return sum(losses) / len(losses)


def make_step(network, weights, images, label, learning_rate, momentum, weight_decay):
    """A function that runs one training step and returns the loss.

    Args:
        network (DeepLabV3P): Is put into training mode.
        weights (tuple[float, float]): Of cross-entropy and Lovasz-Softmax.
        images (np.ndarray): float32 [N, 3, H, W].
        label (np.ndarray): int64 [N, H, W].
    """
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay
    )
    images, label = torch.tensor(images), torch.tensor(label)

    def step():
        logits = network(images)
        loss = weights[0] * F.cross_entropy(logits, label, ignore_index=VOID)
        loss = loss + weights[1] * lovasz_softmax(logits, label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step

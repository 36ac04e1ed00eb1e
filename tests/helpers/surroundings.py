# SPDX-License-Identifier: Apache-2.0
"""A network of one convolution, for tests of what windows and paddings change."""

import paddle
from paddle import nn


class Surroundings(nn.Layer):
    """Logits that depend on a pixel's surroundings, so that a part of an image gives others than
    the whole; and the sizes that came."""

    def __init__(self, num_classes=4, kernel=7):
        super().__init__()
        paddle.seed(3)
        self.num_classes = num_classes
        self.conv = nn.Conv2D(3, num_classes, kernel, padding=kernel // 2)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        return [self.conv(x)]

# SPDX-License-Identifier: Apache-2.0
"""A backbone of three convolutions, for tests in which the network does not matter."""

from paddle import nn


class StubBackbone(nn.Layer):
    """Features of strides 4, 8 and 8, of 4, 6 and 8 channels, with a batch norm."""

    def __init__(self, data_format="NCHW", strides=(4, 8, 8)):
        super().__init__()
        self.data_format = data_format
        self.feat_channels, self.feat_strides = [4, 6, 8], list(strides)
        kwargs = {"padding": 1, "data_format": data_format}
        self.a = nn.Conv2D(3, 4, 3, stride=4, **kwargs)
        self.b = nn.Conv2D(4, 6, 3, stride=strides[1] // 4, **kwargs)
        self.c = nn.Conv2D(6, 8, 3, stride=strides[2] // strides[1], **kwargs)
        self.norm = nn.BatchNorm2D(8, data_format=data_format)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return [a, b, nn.functional.relu(self.norm(self.c(b)))]

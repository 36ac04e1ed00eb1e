# SPDX-License-Identifier: Apache-2.0
"""A trained network and a set of images for the tests of engines."""

import numpy as np
import paddle
from PIL import Image
from stub_backbone import StubBackbone

from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.transforms import Compose, Normalize

# Float32 sums in another order, on logits of up to about 1 (see export_check, which allows ten
# times as much).
TOL = 1e-4


class Photos:
    """Blobs with labels of three classes, in two sizes."""

    num_classes, ignore_index, mode = 3, 255, "val"

    def __init__(self, transforms=(), count=6):
        rng = np.random.default_rng(0)
        self.transforms = Compose([*transforms, Normalize()])
        sizes = [(40, 56) if i % 3 else (33, 47) for i in range(count)]
        coarse = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in sizes]
        self.images = [
            np.asarray(Image.fromarray(c).resize(hw[::-1], Image.Resampling.BICUBIC))
            for c, hw in zip(coarse, sizes)
        ]
        self.labels = [image.argmax(-1) for image in self.images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        out = self.transforms({"img": self.images[i][..., ::-1]})
        return {"img": out["img"], "trans_info": out["trans_info"], "label": self.labels[i]}


def trained():
    """A network whose batch norm has seen the pictures, so that its logits differ."""
    paddle.seed(3)
    net = DeepLabV3P(3, StubBackbone(), (0, 2), (1, 2), 16)
    net.train()
    data = Photos()
    with paddle.no_grad():
        for _ in range(30):
            net(paddle.to_tensor(np.stack([data[1]["img"], data[2]["img"]])))
    net.eval()
    return net

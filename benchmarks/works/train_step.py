# SPDX-License-Identifier: Apache-2.0
"""A whole iteration of train.py: read, forward, MixedLoss, backward, momentum, log.

A lap lasts from the network's call to its next one.
"""

from functools import partial

import numpy as np
import paddle

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models import DeepLabV3P
from works.networks import CLASSES, command, fill, settings, write_config


class MadeSet(paddle.io.Dataset):
    """A batch of samples that stay in memory."""

    IMG_CHANNELS, ignore_index = 3, 255

    def __init__(self, count, side, num_classes=CLASSES, **_):
        self.num_classes, self.class_names = num_classes, None
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((count, 3, side, side), dtype=np.float32)
        areas = rng.integers(0, num_classes, (count, 16, 16))
        areas[rng.random(areas.shape) < 1 / 16] = self.ignore_index
        at = np.arange(side) * 16 // side
        self.labels = areas[:, at][:, :, at].astype(np.int64)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        index = key[0] if isinstance(key, tuple) else key
        return {"img": self.images[index], "label": self.labels[index], "trans_info": []}


def network_with_laps(name, lap):
    """Registers a DeepLabV3P under this name whose calls in training are laps."""

    def build(num_classes, backbone, **arguments):
        model = DeepLabV3P(num_classes, backbone, aspp_dropout=0.0, **arguments)
        fill(model)
        start = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        calls = []

        def moved():
            """The root mean square of all weights' change, running statistics apart."""
            total = size = 0
            for name, value in model.state_dict().items():
                if not name.endswith(("._mean", "._variance")):
                    change = value.numpy() - start[name]
                    total += np.square(change).sum(dtype=np.float64)
                    size += change.size
            return {"change of the weights": np.sqrt(total / size)}

        def before_forward(*_):
            calls.append(1)
            # One call may try the network out before the run; and the first iteration warms up.
            if len(calls) > 2:
                lap(moved)

        model.register_forward_pre_hook(before_forward)
        return model

    build.__name__ = name
    manager.MODELS.add_component(build)


def work(layers, output_stride, count, side, lap, folder, small):
    if small:
        count, side = 2, 64
    if MadeSet.__name__ not in manager.DATASETS.components_dict:
        manager.DATASETS.add_component(MadeSet)
    name = f"DeepLabV3P_{layers}_laps"
    network_with_laps(name, lap)
    model = {**settings(small, layers, output_stride), "type": name}
    dataset = {"type": "MadeSet", "count": count, "side": side, "num_classes": CLASSES}
    write_config(folder / "config.yml", model, dataset, iters=10**6, batch_size=count)
    run = ("--save_dir", folder / "run", "--save_interval", 10**6)
    command("train.py", "--config", folder / "config.yml", *run)


ROWS = {
    "ResNet18_vd stride 16, 4x256x256": partial(work, 18, 16, 4, 256),
    "ResNet50_vd stride 8, 2x192x192": partial(work, 50, 8, 2, 192),
}

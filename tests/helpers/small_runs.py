# SPDX-License-Identifier: Apache-2.0
"""Trainings of seconds, and whether two of them ended alike."""

import logging

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import train as command
from paddleseg_deeplab.utils.logger import logger

CONFIG = """
batch_size: 2
iters: 6
train_dataset:
  type: Shapes
  num_classes: 3
  image_size: [32, 24]
  num_samples: 5
  mode: train
  transforms:
    - {type: RandomPaddingCrop, crop_size: [24, 16]}
    - {type: RandomHorizontalFlip}
    - {type: RandomDistort, brightness_range: 0.4}
    - {type: Normalize}
val_dataset:
  type: Shapes
  num_classes: 3
  image_size: [32, 24]
  num_samples: 2
  mode: val
  transforms: [{type: Normalize}]
model: {type: DropoutNet, data_format: NCHW}
optimizer: {type: SGD, momentum: 0.9, weight_decay: 4.0e-5}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.05, end_lr: 0, power: 0.9}
loss:
  types:
    - type: MixedLoss
      losses: [{type: CrossEntropyLoss}, {type: LovaszSoftmaxLoss}]
      coef: [0.8, 0.2]
  coef: [1]
"""


class DropoutNet(nn.Layer):
    """Two convolutions with everything that a resumed run has to repeat."""

    def __init__(self, num_classes, data_format="NCHW"):
        super().__init__()
        self.num_classes = num_classes
        self.data_format = data_format
        layout = {"data_format": data_format}
        self.body = nn.Sequential(
            nn.Conv2D(3, 8, 3, padding=1, **layout),
            nn.BatchNorm2D(8, **layout),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv2D(8, num_classes, 1, **layout),
        )

    def forward(self, x):
        return [self.body(x)]


@pytest.fixture(autouse=True)
def registered():
    registry.MODELS.add_component(DropoutNet)
    yield
    del registry.MODELS.components_dict["DropoutNet"]
    # The commands' console handler belongs to the stderr of one test.
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run(config, save_dir, *flags):
    flags = [str(flag) for flag in flags]
    common = ["--config", str(config), "--save_dir", str(save_dir), "--device", "cpu"]
    return command.main([*common, "--log_iters", "1", *flags])


def arrays(path, skip=()):
    """Tensors of a saved file by name, nested tables included."""
    out = {}

    def put(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in skip:
                    put(f"{name}/{key}", inner)
        else:
            out[name] = np.asarray(value)

    put("", paddle.load(str(path)))
    return out


def assert_same(one, other, name):
    one, other = arrays(one / name), arrays(other / name)
    if name.endswith("pdopt"):  # its names count the layers of the process
        one, other = dict(enumerate(one.values())), dict(enumerate(other.values()))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=f"{name} {key}")

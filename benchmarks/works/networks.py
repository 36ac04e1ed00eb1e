# SPDX-License-Identifier: Apache-2.0
"""What the suites with a network share: configs, weights, commands."""

import json
import os
import runpy
import sys

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models import DeepLabV3P

CLASSES = 11


def fill(model):
    """Sets weights by their names alone: He's normal for kernels, 1 and 0 for batch norms."""
    filled = {}
    for number, name in enumerate(sorted(model.state_dict())):
        shape = model.state_dict()[name].shape
        if len(shape) > 1:
            spread = float(np.sqrt(2 / np.prod(shape[1:])))
            rng = np.random.default_rng(number)
            filled[name] = spread * rng.standard_normal(shape, dtype=np.float32)
        else:
            ones = name.endswith(("weight", "_variance"))
            filled[name] = np.full(shape, float(ones), np.float32)
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in filled.items()})


def settle(model, images):
    """Gives a network that is not trained the batch norm statistics of some images, and classes
    that seldom tie: each is put two standard deviations above the one before.

    Args:
        model (nn.Layer): With `CLASSES` classes; it is in eval mode afterwards.
        images (np.ndarray): float32 [N, 3, H, W].
    """
    model.eval()
    norms = [x for x in model.sublayers() if "BatchNorm" in type(x).__name__]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm._momentum = 0.0
    images = paddle.to_tensor(images)
    with paddle.no_grad():
        model(images)
        for norm, momentum in zip(norms, momenta):
            norm.eval()
            norm._momentum = momentum
        spread = float(model(images)[0].std())
    layers = [x for x in model.sublayers() if isinstance(x, nn.Conv2D)]
    bias = next(x.bias for x in layers[::-1] if x.weight.shape[0] == CLASSES)
    steps = np.arange(CLASSES) * 2 * spread
    bias.set_value(bias + paddle.to_tensor(steps.astype(np.float32)))


def settings(small, layers=18, output_stride=16):
    """The config's model."""
    backbone = {"type": f"ResNet{layers}_vd", "output_stride": output_stride}
    width = 16 if small else 256
    return {"type": "DeepLabV3P", "backbone": backbone, "aspp_out_channels": width}


def build(small):
    """The network of `settings`, with weights from `fill`."""
    model = settings(small)
    backbone = manager.BACKBONES[model["backbone"].pop("type")](**model["backbone"])
    network = DeepLabV3P(CLASSES, backbone, aspp_out_channels=model["aspp_out_channels"])
    fill(network)
    return network


def write_config(path, model, dataset, **more):
    """A YAML file (JSON is YAML) with one dataset for training and validation."""
    normalized = {**dataset, "transforms": [{"type": "Normalize"}]}
    config = {"model": model, "val_dataset": {**normalized, "mode": "val"}, **more}
    config["train_dataset"] = {**normalized, "mode": "train"}
    config["optimizer"] = {"type": "SGD", "momentum": 0.9, "weight_decay": 4e-5}
    config["lr_scheduler"] = {"type": "PolynomialDecay", "learning_rate": 0.01, "power": 0.9}
    config["loss"] = {
        "types": [
            {
                "type": "MixedLoss",
                "losses": [{"type": "CrossEntropyLoss"}, {"type": "LovaszSoftmaxLoss"}],
                "coef": [0.8, 0.2],
            }
        ],
        "coef": [1],
    }
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def files(folder):
    """The config of a set that `pictures.write_set` wrote."""
    lists = {"train_path": "list.txt", "val_path": "list.txt"}
    return {"type": "Dataset", "dataset_root": str(folder), "num_classes": CLASSES, **lists}


def command(script, *arguments):
    """Runs one of the repository's commands in this process.

    Raises:
        RuntimeError: Its exit status is not 0.
    """
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(os.path.abspath(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with status {stop.code}") from stop

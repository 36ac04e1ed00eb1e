# SPDX-License-Identifier: Apache-2.0
"""Runs that something happens to at a moment that the test chooses."""

import os
import random
import signal

import numpy as np
import paddle
import pytest
import yaml
from small_runs import CONFIG, DropoutNet, assert_same, config, run  # noqa: F401

from paddleseg_deeplab import registry
from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.folder import fault
from paddleseg_deeplab.core.training.state.progress import read_progress


class Scripted(DropoutNet):
    """Draws from every global random state, and runs ``at`` at chosen moments."""

    at = None  # called with "train" or "eval" and how often that came

    def __init__(self, num_classes, data_format="NCHW"):
        super().__init__(num_classes, data_format)
        self.seen = {"train": 0, "eval": 0}

    def forward(self, x):
        kind = "train" if self.training else "eval"
        # Without gradients it is tried before the run begins.
        self.seen[kind] += not self.training or paddle.is_grad_enabled()
        if Scripted.at is not None:
            Scripted.at(kind, self.seen[kind])
        if self.training:
            x = x * (1.0 + 0.1 * random.random() + 0.1 * float(np.random.rand()))
        return super().forward(x)


class GlobalNoise:
    """A transform written for PaddleSeg: its randomness is global."""

    def __call__(self, data):
        data["img"] = data["img"] + 9 * random.random() + 9 * np.random.rand()
        return data


@pytest.fixture(autouse=True)
def scripted(config):
    registry.MODELS.add_component(Scripted)
    registry.TRANSFORMS.add_component(GlobalNoise)
    content = yaml.safe_load(CONFIG)
    content["model"]["type"] = "Scripted"
    content["train_dataset"]["transforms"].insert(0, {"type": "GlobalNoise"})
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    yield
    Scripted.at = None
    del registry.MODELS.components_dict["Scripted"]
    del registry.TRANSFORMS.components_dict["GlobalNoise"]


def once(kind, number, act):
    """Makes the network do ``act`` the ``number``-th time it is used for ``kind``."""

    def at(now, count):
        if (now, count) == (kind, number):
            Scripted.at = None
            act()

    Scripted.at = at


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def assert_equal_runs(one, other, last=6, ema=True):
    for name in ("model.pdparams", "model.pdopt", *(["ema.pdparams"] if ema else [])):
        assert_same(one / f"iter_{last}", other / f"iter_{last}", name)
    assert_same(one, other, "best_model/model.pdparams")
    assert [p.name for p in checkpoint.checkpoints(one)] == [
        p.name for p in checkpoint.checkpoints(other)
    ]
    ends = [vars(read_progress(d / f"iter_{last}")) for d in (one, other)]
    assert ends[0] == ends[1]
    assert fault(other / "best_model") is None


FLAGS = ["--do_eval", "--use_ema", "--save_interval", 2, "--keep_checkpoint_max", 2]

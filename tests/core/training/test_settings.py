# SPDX-License-Identifier: Apache-2.0
"""`train` takes PaddleSeg's parameters, and what is ours in one settings object."""

import inspect
import logging

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import train
from paddleseg_deeplab.core.training.settings import TrainSettings
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.errors import UserError

# PaddleSeg release/2.9 (and later), paddleseg/core/train.py, in its order.
PADDLESEG = [
    *("model", "train_dataset", "val_dataset", "optimizer", "save_dir", "iters", "batch_size"),
    *("early_stop_intervals", "resume_model", "save_interval", "log_iters", "num_workers"),
    *("use_vdl", "use_ema", "losses", "keep_checkpoint_max", "test_config", "precision"),
    *("amp_level", "profiler_options", "to_static_training", "logger", "print_mem_info"),
    "shuffle",
]


def run(folder, **how):
    paddle.seed(0)
    model = nn.Sequential(nn.Conv2D(3, 3, 1))
    forward = model.forward
    model.forward = lambda x: [forward(x)]
    given = {
        "optimizer": paddle.optimizer.SGD(0.1, parameters=model.parameters()),
        "save_dir": str(folder),
        "losses": {"types": [CrossEntropyLoss()], "coef": [1.0]},
    }
    train(
        model,
        Shapes([Normalize()], image_size=(24, 16), num_samples=3, num_classes=3),
        **{**given, "iters": 2, "log_iters": 9, **how},
    )
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_paddleseg_s_parameters_in_its_order():
    parameters = list(inspect.signature(train).parameters)
    assert parameters[: len(PADDLESEG)] == PADDLESEG
    assert parameters[len(PADDLESEG) :] == ["settings", "older"]


def test_what_has_no_effect_is_named_in_one_line(tmp_path, caplog):
    plain = run(tmp_path / "plain")
    assert warnings(caplog) == []
    own = logging.getLogger("mine")
    same = run(tmp_path / "a", profiler_options="x", logger=own, print_mem_info=False)
    [line] = warnings(caplog)
    assert "profiler_options, logger, print_mem_info: no effect" in line
    caplog.clear()
    run(tmp_path / "b", logger=own, print_mem_info=True)
    [line] = warnings(caplog)
    assert "train(): logger: no effect" in line
    for name, value in plain.items():
        np.testing.assert_array_equal(same[name], value)


def test_keywords_of_before_work_and_say_that_they_go(tmp_path, caplog):
    plain = run(tmp_path / "plain", settings=TrainSettings(seed=5, accumulation_steps=2))
    assert warnings(caplog) == []
    older = run(tmp_path / "older", seed=5, accumulation_steps=2)
    [line] = warnings(caplog)
    assert "give seed, accumulation_steps in settings=TrainSettings(...)" in line
    other = run(tmp_path / "other", settings=TrainSettings(seed=6, accumulation_steps=2))
    for name, value in plain.items():
        np.testing.assert_array_equal(older[name], value)
        assert (other[name] != value).any()


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"settings": TrainSettings(), "seed": 1}, UserError, "settings and, beside them, seed"),
        ({"losses": None}, UserError, r"needs losses: give it by name \(losses=\.\.\.\)"),
        ({"optimizer": None}, UserError, "needs optimizer"),
        ({"sed": 1}, TypeError, "unexpected keyword argument 'sed'"),
        ({"accumulation_steps": 0}, UserError, "accumulation_steps should be at least 1, not 0"),
        (
            {"settings": TrainSettings(accumulation_steps=-1)},
            UserError,
            "accumulation_steps should be at least 1, not -1",
        ),
    ],
)
def test_what_is_refused(tmp_path, how, error, match):
    with pytest.raises(error, match=match):
        run(tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()

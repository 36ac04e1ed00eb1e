# SPDX-License-Identifier: Apache-2.0
"""Whole runs with the settings that are made for a GPU end as those without."""

import re

import pytest
import yaml

# Helpers and fixtures of the neighbours; pytest puts this folder on the path.
from interrupted_runs import (  # noqa: F401
    FLAGS,
    Scripted,
    assert_equal_runs,
    once,
    scripted,
    terminate,
)
from small_runs import CONFIG, assert_same, config, registered, run  # noqa: F401

from paddleseg_deeplab.core.training import step as step_module
from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.run_folder import differences

_LINE = re.compile(r"iter: (\d+)/\d+, loss: (\S+) \((.*?)\), lr: (\S+),")


def logged(folder):
    """Iteration, loss, parts and rate of each log line."""
    return _LINE.findall((folder / "train.log").read_text(encoding="utf-8"))


@pytest.fixture
def reads_late(monkeypatch):
    """A function that makes training steps leave their losses on the device, as on a GPU."""
    made = step_module.TrainStep.__init__

    def late(*args, **how):
        made(*args, **{**how, "reads_at_once": False})

    return lambda: monkeypatch.setattr(step_module.TrainStep, "__init__", late)


def test_a_run_that_reads_its_losses_late_is_the_same(config, tmp_path, reads_late):
    flags = [*FLAGS, "--save_interval", 4, "--log_iters", 3, "--opts", "accumulation_steps=2"]
    plain, late, parts = tmp_path / "plain", tmp_path / "late", tmp_path / "parts"
    assert run(config, plain, *flags) == 0
    reads_late()
    assert run(config, late, *flags) == 0
    assert_equal_runs(plain, late)
    assert logged(late) == logged(plain)
    assert [line[0] for line in logged(late)] == ["3", "6"]
    # A signal in between: what was not read yet is read before the checkpoint is written.
    flags = ["--resume_model", "auto", *flags]
    once("train", 3, terminate)  # iteration 2
    assert run(config, parts, *flags) == 143
    assert checkpoint.checkpoints(parts)[-1].name == "iter_2"
    assert run(config, parts, *flags) == 0
    assert_equal_runs(plain, parts)


@pytest.mark.parametrize("signalled", [False, True])
def test_a_bad_loss_leaves_no_checkpoint(
    config,
    tmp_path,
    capsys,
    signalled,
    reads_late,
):
    reads_late()
    content = yaml.safe_load(CONFIG)
    content["model"]["type"] = "Scripted"
    content["optimizer"]["grad_clip_cfg"] = {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0e30}
    content["lr_scheduler"]["learning_rate"] = 1.0e30  # the third loss is not finite
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    if signalled:
        once("train", 5, terminate)
    flags = ["--log_iters", 100, "--save_interval", 6]
    assert run(config, tmp_path / "out", *flags) == 1
    assert not checkpoint.checkpoints(tmp_path / "out")
    text = capsys.readouterr().err
    assert re.search(r"Training stopped at iteration [2345]: the (loss|gradient) is ", text)
    assert f"after iteration {5 if signalled else 6}: the weights have moved" in text


def test_a_compiled_run_is_resumed_like_any(config, tmp_path):
    content = yaml.safe_load(CONFIG)
    content["model"]["type"] = "DropoutNet"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    flags = [*FLAGS, "--to_static_training"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(config, whole, *flags) == 0
    flags = ["--resume_model", whole / "iter_4", *flags]
    assert run(config, again, *flags) == 0
    for name in ("model.pdparams", "model.pdopt", "ema.pdparams"):
        assert_same(whole / "iter_6", again / "iter_6", name)
    # A plain run may go on from it, and takes over each tensor: the names are the same.
    flags.remove("--to_static_training")
    assert run(config, tmp_path / "plain", *flags) == 0


def test_the_config_s_key_is_the_flag(config, tmp_path, monkeypatch):
    seen = []
    from paddleseg_deeplab.core.training import step as module

    def compiled(model):
        seen.append(type(model).__name__)
        return lambda images: module.run_model(model, images)

    monkeypatch.setattr(module, "compiled", compiled)
    assert run(config, tmp_path / "one", "--opts", "to_static_training=True") == 0
    assert run(config, tmp_path / "two", "--to_static_training") == 0
    assert run(config, tmp_path / "three") == 0
    assert seen == ["Scripted", "Scripted"]
    assert run(config, tmp_path / "four", "--opts", "to_static_training=1") == 2


def test_how_a_run_computes_may_change_when_it_goes_on():
    old = {"optimizer": {"type": "SGD", "momentum": 0.9}}
    new = {"optimizer": {**old["optimizer"], "use_multi_tensor": True}, "to_static_training": True}
    assert differences(old, new) == differences(new, old) == []

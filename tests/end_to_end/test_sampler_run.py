# SPDX-License-Identifier: Apache-2.0
"""`train.py` with a sampler: resumed at bit equality, told in the log, kept to."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import train as command

CONFIG = """
batch_size: 2
iters: 7
train_dataset:
  type: Shapes
  num_classes: 4
  image_size: [32, 24]
  num_samples: 5
  mode: train
  transforms:
    - {type: RandomPaddingCrop, crop_size: [16, 16]}
    - {type: Normalize}
sampler: {type: class_balanced, max_repeat: 3}
model: {type: SampledNet}
optimizer: {type: SGD, momentum: 0.9}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.05, end_lr: 0, power: 0.9}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
"""


class SampledNet(nn.Layer):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes, self.data_format = num_classes, "NCHW"
        self.body = nn.Sequential(nn.Conv2D(3, num_classes, 3, padding=1), nn.Dropout(0.2))

    def forward(self, x):
        return [self.body(x)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "home"))
    registry.MODELS.add_component(SampledNet)
    path = tmp_path / "sampled.yml"
    path.write_text(CONFIG, encoding="utf-8")

    def start(name, *flags):
        common = ["--config", path, "--save_dir", tmp_path / name, "--device", "cpu"]
        flags = [*common, "--save_interval", 2, "--log_iters", 1, *flags]
        return command.main([str(flag) for flag in flags]), tmp_path / name

    yield start
    del registry.MODELS.components_dict["SampledNet"]


def weights(folder):
    state = paddle.load(str(folder / "iter_7" / "model.pdparams"))
    return {name: np.asarray(value) for name, value in state.items()}


def test_a_resumed_run_sees_the_same_images(run, capsys):
    status, whole = run("whole")
    assert status == 0
    for number, workers in ((2, 0), (4, 2)):
        status, part = run(
            f"part{number}", "--resume_model", whole / f"iter_{number}", "--num_workers", workers
        )
        assert status == 0
        one, other = weights(whole), weights(part)
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
    log = (whole / "train.log").read_text(encoding="utf-8")
    assert "Sampler class_balanced: an epoch is 5 draws from 5 images" in log
    assert log.count("Counting the classes") == 0  # before the log's folder is made
    # With another sampler it is another run.
    capsys.readouterr()
    changed = ("--opts", "sampler.max_repeat=2")
    status, _ = run("changed", "--resume_model", whole / "iter_4", *changed)
    assert status == 2
    assert "sampler.max_repeat: 3 -> 2" in capsys.readouterr().err


def test_the_sampler_changes_what_is_learned(run):
    _, balanced = run("balanced")
    status, hard = run("hard", "--opts", "sampler={'type': 'repeat_hard', 'classes': [3]}")
    assert status == 0
    log = (hard / "train.log").read_text(encoding="utf-8")
    assert "Sampler repeat_hard: an epoch is " in log
    one, other = weights(balanced), weights(hard)
    assert any((one[name] != other[name]).any() for name in one)


def test_weights_that_changed_since_are_another_run(run, tmp_path, capsys):
    path = tmp_path / "weights.txt"
    flags = ("--opts", f"sampler={{'type': 'weighted', 'path': '{path.as_posix()}'}}", "--iters", 2)
    path.write_text("1\n2\n3\n4\n5\n", encoding="utf-8")
    status, first = run("first", *flags)
    assert status == 0
    path.write_text("1\n2\n3\n4\n6\n", encoding="utf-8")
    capsys.readouterr()
    status, _ = run("second", "--resume_model", first / "iter_2", *flags)
    assert status == 2
    assert "sampling of images (checksum): " in capsys.readouterr().err

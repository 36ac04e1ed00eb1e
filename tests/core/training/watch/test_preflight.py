# SPDX-License-Identifier: Apache-2.0
"""What training finds out before its first iteration, and that nothing is changed by it."""

import logging
import re

import numpy as np
import paddle
import pytest
import yaml
from bad_input import good_config
from paddle import nn
from PIL import Image
from places import ROOT

from paddleseg_deeplab.cli import infer, train
from paddleseg_deeplab.core.training.state.run_folder import differences
from paddleseg_deeplab.core.training.watch.preflight import (
    check_start,
    warn_of_update_size,
    warn_of_wide_rates,
)
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.datasets import Dataset, Shapes
from paddleseg_deeplab.deploy import inferer
from paddleseg_deeplab.transforms.reading.files import read_image
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError


def builder_of(folder, *opts):
    return SegBuilder(Config(good_config(folder), opts=list(opts)))


def test_the_model_is_left_as_it_was(tmp_path):
    builder = builder_of(tmp_path)
    before = {name: value.numpy().copy() for name, value in builder.model.state_dict().items()}
    check_start(builder.model, builder.train_dataset, builder.loss, 2)
    assert builder.model.training
    for name, value in builder.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], name)
    assert all(p.grad is None for p in builder.model.parameters())


class Exchanging(nn.SyncBatchNorm):
    """Notes its mode where Paddle's would exchange statistics."""

    modes = ()

    def forward(self, x):
        Exchanging.modes += (self.training,)
        return x


def test_nothing_is_exchanged_with_other_processes(tmp_path):
    builder = builder_of(tmp_path)
    layer = next(s for s in builder.model.sublayers() if hasattr(s, "_batch_norm"))
    layer._batch_norm = Exchanging(layer._batch_norm._num_features)
    check_start(builder.model, builder.train_dataset, builder.loss, 2)
    assert Exchanging.modes == (False,)
    assert layer._batch_norm.training


@pytest.mark.parametrize("section", ["train_dataset", "val_dataset"])
def test_sets_without_labels_are_refused(tmp_path, section):
    """Else the first iteration, or the first evaluation, ends in a KeyError."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "l.txt").write_text("a.png\n")
    alone = Dataset("test", str(tmp_path), [], 3, test_path="l.txt")
    sets = {"train_dataset": Shapes([], num_samples=1), "val_dataset": None, section: alone}
    with pytest.raises(UserError, match=f"{section}: 1 of 1 images have no label"):
        check_start(None, sets["train_dataset"], None, 1, val_dataset=sets["val_dataset"])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["loss.coef=[1,0.4]"], r"1 output\(s\) in training, .* 2 types"),
        (["loss.types.0.weight=[1,2]"], "weight has 2 numbers, .* 3 classes"),
        (["model={'type':'DeepLabV3','backbone':{'type':'ResNet18_vd'},'aux':True}"], "2 output"),
        (["train_dataset.transforms=[{'type':'RandomCenterCrop'}]"], "differ in size"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, opts, message):
    builder = builder_of(tmp_path, "train_dataset.image_size=[64,48]", *opts)
    with pytest.raises(UserError, match=message):
        check_start(builder.model, builder.train_dataset, builder.loss, 2)


@pytest.mark.parametrize(
    ("rates", "size", "wide"),
    [
        ((1, 6, 12, 18), (512, 512), []),  # a map of 32x32
        ((1, 6, 12, 18), (513, 304), []),  # 19 wide
        ((1, 6, 12, 18), (512, 288), [18]),  # 18 wide
        ((1, 6, 12, 18), (160, 512), [12, 18]),
        ((1, 12, 24, 36), (33, 33), [12, 24, 36]),
    ],
)
def test_rates_wider_than_the_map(tmp_path, caplog, rates, size, wide):
    builder = builder_of(tmp_path, f"model.aspp_ratios={list(rates)}")
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        model = builder.model
        caplog.clear()
        assert warn_of_wide_rates(model, size) == wide
    assert len(caplog.records) == bool(wide)
    if wide:
        assert "\n" not in caplog.text.strip()
        for words in (f"{size[1]}x{size[0]}", "rate " + ", ".join(map(str, wide)), "16"):
            assert words in caplog.text


def test_a_model_without_a_head_is_left_alone():
    assert warn_of_wide_rates(nn.Conv2D(3, 2, 3, dilation=9), (8, 8)) == []


@pytest.mark.parametrize("to_rgb", ["true", "false"])
def test_infer_shows_images_in_their_own_colours(tmp_path, monkeypatch, to_rgb):
    """Networks that take BGR are shown in RGB all the same."""
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    visualize.save_image(tmp_path / "a.png", image)
    (tmp_path / "deploy.yaml").write_text(
        "Deploy: {model: model.json, params: model.pdiparams}\n"
        f"DeepLab: {{num_classes: 2, to_rgb: {to_rgb}, palette: [[0, 0, 0], [9, 8, 7]]}}\n",
        encoding="utf-8",
    )
    for name in ("model.json", "model.pdiparams"):
        (tmp_path / name).touch()
    seen = []

    class Runtime:
        name, smallest_side = "a test", 1

        def outputs(self, batch, which):
            seen.append(batch)
            assert which == [0]
            return [(batch[:, 0] > 128).astype(np.int32)]

    monkeypatch.setattr(inferer, "open_runtime", lambda info, settings: Runtime())
    flags = ["--model_dir", tmp_path, "--image_path", tmp_path / "a.png", "--save_dir"]
    assert infer.main([*map(str, flags), str(tmp_path / "out"), "--device", "cpu"]) == 0
    first = 0 if to_rgb == "true" else 2
    np.testing.assert_array_equal(seen[0][0, 0], image[..., first])
    expected = visualize.overlay(image, image[..., first] > 128, [[0, 0, 0], [9, 8, 7]])
    shown = read_image(tmp_path / "out" / "added_prediction" / "a.png")
    np.testing.assert_array_equal(shown, expected.astype(np.float32))


def test_the_check_does_not_change_a_run(tmp_path):
    """Its forward pass draws dropout, its batch the augmentation: neither reaches the weights."""
    finals = []
    for check in (False, True):
        paddle.seed(5)
        builder = builder_of(tmp_path)
        model, optimizer = builder.model, builder.optimizer
        if check:
            check_start(model, builder.train_dataset, builder.loss, 2)
        from paddleseg_deeplab.core.train import train

        settings = {"iters": 2, "batch_size": 2, "losses": builder.loss, "seed": 3}
        train(model, builder.train_dataset, optimizer=optimizer, save_dir=tmp_path / f"{check}",
              **settings)  # fmt: skip
        finals.append([p.numpy() for p in model.parameters()])
    for plain, checked in zip(*finals):
        np.testing.assert_array_equal(plain, checked)


@pytest.mark.parametrize(
    ("meant", "batch", "steps", "processes", "expected"),
    [
        (None, 2, 1, 1, None),
        (8, 2, 1, 4, None),
        (8, 2, 4, 1, None),
        (8, 8, 1, 1, None),
        (8, 2, 1, 1, "reads 2 images here .*for 8 .*--opts accumulation_steps=4 gives that"),
        (8, 1, 1, 1, "reads 1 image here .*accumulation_steps=8 gives that; .* sees 1 at a time"),
        (8, 2, 1, 2, "2 x accumulation_steps 1 x 2 processes.*accumulation_steps=2 gives that"),
        (16, 6, 1, 1, "--batch_size 4 --opts accumulation_steps=4 gives that.*0.375 times"),
        (8, 4, 1, 4, "reads 16 images .*--batch_size 2 --opts accumulation_steps=1 .* 2 times"),
        (8, 2, 1, 3, "No setting gives that on 3 processes"),
        (8, 16, 1, 16, "No setting gives that on 16 processes"),
        (8, 2, 2, 1, "reads 4 images .*--opts accumulation_steps=4 gives that"),
    ],
)
def test_updates_of_another_size_than_meant(caplog, meant, batch, steps, processes, expected):
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        line = warn_of_update_size(meant, batch, steps, processes)
    assert len(caplog.records) == (expected is not None)
    if expected is None:
        assert line == ""
        return
    assert re.search(expected, line), line
    assert "\n" not in line
    given = re.search(r"(?:--batch_size (\d+) )?--opts accumulation_steps=(\d+)", line)
    if given:  # what is advised is right
        assert warn_of_update_size(meant, int(given[1] or batch), int(given[2]), processes) == ""


def test_recipes_of_several_gpus_say_what_an_update_reads():
    """The number is that of the recipe's own text; where it is the batch, nothing is told."""
    found = 0
    for path in (ROOT / "configs").rglob("*.yml"):
        recipe = re.search(r"\((\d+) GPUs of (\d+) images\)", path.read_text(encoding="utf-8"))
        config = Config(str(path))
        if recipe:
            found += 1
            assert config.images_per_update == int(recipe[1]) * int(recipe[2]), path
            assert config.batch_size == int(recipe[2]), path
        elif config.images_per_update is not None and "GPUs" not in _texts(path):
            assert config.images_per_update == config.batch_size, path
    assert found >= 9


def _texts(path):
    """A recipe's text with those of the recipes that it is based on."""
    text = path.read_text(encoding="utf-8")
    bases = yaml.safe_load(text).get("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return text + "".join(_texts(path.parent / base) for base in bases)


@pytest.mark.parametrize("value", ["0", "-8", "2.5", "true", "'8'", "null"])
def test_images_per_update_is_checked(tmp_path, value):
    with pytest.raises(UserError, match="images_per_update: should be"):
        Config(good_config(tmp_path), opts=[f"images_per_update={value}"])


def test_images_per_update_may_change_when_resuming():
    assert differences({"images_per_update": 8}, {}) == []


def test_training_tells_it_once(tmp_path):
    flags = ["--config", str(good_config(tmp_path)), "--save_dir", str(tmp_path / "out")]
    flags += ["--device", "cpu", "--iters", "1", "--batch_size", "2"]
    assert train.main([*flags, "--opts", "images_per_update=6"]) == 0
    log = (tmp_path / "out" / "train.log").read_text(encoding="utf-8").splitlines()
    lines = [line for line in log if "was meant for 6 (images_per_update)" in line]
    assert len(lines) == 1
    assert "accumulation_steps=3 gives that" in lines[0]

# SPDX-License-Identifier: Apache-2.0
"""What training finds out before its first iteration, and that nothing is changed by it."""

import logging

import numpy as np
import paddle
import pytest
from bad_input import good_config
from paddle import nn
from test_bad_flags import infer

from paddleseg_deeplab.core.preflight import check_start, warn_of_wide_rates
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.transforms.pipeline import read_image
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

    class Predictor:
        runtime, smallest_side = "a test", 1

        def run(self, batch):
            seen.append(batch)
            return (batch[:, 0] > 128).astype(np.int32)

    monkeypatch.setattr(infer, "open_predictor", lambda info, settings: Predictor())
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

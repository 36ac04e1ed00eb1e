# SPDX-License-Identifier: Apache-2.0
"""Sides that a number divides, around the network: `size_divisor` of evaluation, prediction and
exported networks."""

import argparse

import cv2
import numpy as np
import paddle
import pytest
from surroundings import Surroundings

from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.core import infer as inference
from paddleseg_deeplab.core import stream
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.stream import NetworkSettings
from paddleseg_deeplab.core.training.watch.preview import prediction_picture
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.cvlibs import Config
from paddleseg_deeplab.cvlibs.inference import inference_settings
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.transforms import Compose, PaddingByDivisor
from paddleseg_deeplab.utils.errors import UserError

SIZES = [(16, 32), (15, 31), (17, 33), (1, 1), (30, 16), (5, 47)]


def padded_by_hand(image, divisor):
    """[C, H, W] by rows and columns."""
    while image.shape[1] % divisor:
        image = np.concatenate([image, image[:, -1:]], axis=1)
    while image.shape[2] % divisor:
        image = np.concatenate([image, image[:, :, -1:]], axis=2)
    return image


def image_of(index):
    rng = np.random.default_rng(index)
    return rng.standard_normal((3, *SIZES[index])).astype(np.float32)


@pytest.mark.parametrize("divisor", [1, 2, 7, 16])
@pytest.mark.parametrize("index", range(len(SIZES)))
def test_the_step_is_undone(index, divisor):
    image, before = image_of(index), [("resize", (9, 9))]
    found, steps = restore.padded(image, before, divisor)
    np.testing.assert_array_equal(found, padded_by_hand(image, divisor))
    np.testing.assert_array_equal(restore.restore(found, steps[1:]), image)
    assert steps[:1] == before == [("resize", (9, 9))]
    assert (found is image) == (len(steps) == 1)
    batch, _ = restore.padded(np.stack([image, -image]), [], divisor)
    np.testing.assert_array_equal(batch, np.stack([found, -found]))


@pytest.mark.parametrize("divisor", [2, 16])
def test_the_transform_does_the_same(divisor):
    image = np.random.default_rng(0).integers(0, 255, (13, 21, 3)).astype(np.uint8)
    label = np.random.default_rng(1).integers(0, 3, (13, 21)).astype(np.uint8)
    given = {"img": image, "label": label, "gt_fields": ["label"]}
    plain, out = Compose([])(given), Compose([PaddingByDivisor(divisor)])(given)
    found, steps = restore.padded(plain["img"], [], divisor)
    np.testing.assert_array_equal(out["img"], found)
    assert out["trans_info"] == steps
    assert (out["label"][13:] == 255).all()
    assert (out["label"][:, 21:] == 255).all()
    np.testing.assert_array_equal(restore.labels_to_original(out["label"], steps), label)


def watched():
    return Surroundings(kernel=5)


class Mixed:
    """Images of all the sizes; the labels are the network's own classes of padded images."""

    num_classes, ignore_index, mode = 4, 255, "val"

    def __init__(self, divisor):
        self.labels, model = [], watched()
        for i, (height, width) in enumerate(SIZES):
            with paddle.no_grad():
                (logits,) = model(paddle.to_tensor(padded_by_hand(image_of(i), divisor)[None]))
            self.labels.append(logits.numpy()[0].argmax(0)[:height, :width])

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        image, label = image_of(index), self.labels[index]
        return {"img": image, "label": label, "trans_info": [], "index": index}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("with_loss", [True, False])
def test_evaluation(batch_size, with_loss):
    """All right by those labels, and only with the divisor; the loss does not see the padding."""
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]} if with_loss else None
    settings = {"losses": losses, "batch_size": batch_size, "progress": False}
    model, data = watched(), Mixed(16)
    result = evaluate(model, data, size_divisor=16, **settings)
    assert result.accuracy == 1
    assert all(side % 16 == 0 for size in model.sizes for side in size)
    assert evaluate(watched(), data, **settings).accuracy < 1
    if with_loss:
        each = []
        for i, label in enumerate(data.labels):
            height, width = SIZES[i]
            (logits,) = model(paddle.to_tensor(padded_by_hand(image_of(i), 16)[None]))
            own = logits[:, :, :height, :width]
            each.append(float(CrossEntropyLoss()(own, paddle.to_tensor(label[None]))))
        # float32 sums over other maps.
        assert result.loss == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {(32, 48)}),
        ({"aug_eval": True, "scales": [0.5, 1.0, 1.5]}, {(16, 32), (32, 48), (48, 80)}),
        ({"aug_eval": True, "scales": [0.1]}, {(16, 16)}),
        ({"is_slide": True, "crop_size": [20, 20], "stride": [20, 20]}, {(20, 20)}),
        ({"is_slide": True, "crop_size": [64, 64], "stride": [32, 32]}, {(32, 48)}),
        ({"slide_above": 2.0, "crop_size": [20, 20]}, {(20, 20)}),
    ],
)
def test_scales_and_windows(settings, expected):
    """The image is padded first. Its scaled sides are rounded to multiples, 0.5 * 48 = 24 up to 32
    and 1.5 * 48 = 72 up to 80; windows keep their size, and are as long as a shorter padded side.
    """

    class One(Mixed):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            image = np.ones((3, 17, 33), np.float32)
            return {"img": image, "label": np.zeros((17, 33), int), "trans_info": [], "index": 0}

    model = watched()
    evaluate(model, One(16), size_divisor=16, progress=False, **settings)
    assert set(model.sizes) == expected


def test_prediction(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (13, 21, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    results = []
    for compose, divisor in ((Compose([]), 16), (Compose([PaddingByDivisor(16)]), None)):
        model, out = watched(), tmp_path / str(divisor)
        how = {"outputs": ["raw"], "size_divisor": divisor, "progress": False}
        predict(model, None, compose, [str(tmp_path / "a.png")], save_dir=str(out), **how)
        assert model.sizes == [(16, 32)]
        results.append(cv2.imread(str(out / "raw_prediction" / "a.png"), cv2.IMREAD_UNCHANGED))
    assert results[0].shape[:2] == (13, 21)
    np.testing.assert_array_equal(*results)


def test_a_training_previews_what_evaluation_sees():
    model, data = watched(), Mixed(16)
    truth, predicted = np.split(prediction_picture(model, data, 1, size_divisor=16), 2, axis=1)
    assert model.sizes == [(16, 32)]
    np.testing.assert_array_equal(truth, predicted)


@pytest.mark.parametrize(
    ("size", "align_corners", "settings", "told"),
    [
        ((64, 64), False, {}, False),
        ((60, 64), False, {}, False),
        ((63, 64), False, {}, True),
        ((64, 63), False, {}, True),
        ((62, 64), False, {}, True),
        ((65, 65), True, {}, False),  # a network for sides of 8k + 1
        ((63, 63), None, {}, False),  # one of the user's own
        ((63, 63), False, {"size_divisor": 16}, False),
        ((63, 63), False, {"is_slide": True, "crop_size": 32, "stride": 32}, False),
    ],
)
def test_advice(size, align_corners, settings, told, monkeypatch, caplog):
    """One line a program, where a network for even sides gets others."""
    monkeypatch.setattr(stream, "_advised", [])
    monkeypatch.setattr(stream.logger, "propagate", True)
    caplog.set_level("INFO", stream.logger.name)
    model = watched()
    if align_corners is not None:
        model.align_corners = align_corners
    batch = ([{"index": 0, "trans_info": []}], np.zeros((1, 3, *size), np.float32))
    how = NetworkSettings(**settings)
    with paddle.no_grad():
        list(stream.predictions(model, [batch, batch], how))
    lines = [r.getMessage() for r in caplog.records if "--size_divisor" in r.getMessage()]
    assert len(lines) == told
    assert all(f"{size[1]}x{size[0]}" in line for line in lines)


@pytest.mark.parametrize("value", [0, -16, 1.5, True, "16", [16]])
def test_bad_values(value):
    with pytest.raises(UserError, match="size_divisor takes a positive whole number"):
        NetworkSettings(size_divisor=value).check()


@pytest.mark.parametrize("value", ["0", "-16", "1.5", "True", "many", "[16]"])
def test_bad_values_in_a_config(value, tmp_path):
    (tmp_path / "c.yml").write_text(f"test_config: {{size_divisor: {value}}}\n")
    with pytest.raises(UserError, match=r"c\.yml: test_config\.size_divisor"):
        Config(tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("", "", None),
        ("size_divisor: 8", "", 8),
        ("size_divisor: 8", "--size_divisor 16", 16),
        ("", "--size_divisor 4", 4),
        ("size_divisor: null", "", None),
    ],
)
def test_the_flag_goes_over_the_config(text, given, expected, tmp_path):
    (tmp_path / "c.yml").write_text(f"test_config: {{{text}}}\n")
    parser = argparse.ArgumentParser()
    add_inference_arguments(parser, "aug_eval")
    arguments = parser.parse_args(given.split())
    settings = inference_settings(Config(tmp_path / "c.yml"), arguments, "aug_eval")
    assert settings.get("size_divisor") == expected


def test_scaled_sides():
    assert [inference._scaled(48, scale, 16) for scale in (0.1, 0.5, 0.75, 1.0, 1.25)] == [
        *(16, 32, 32, 48, 64)
    ]
    assert inference._scaled(3, 0.1, 1) == 1

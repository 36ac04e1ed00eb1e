# SPDX-License-Identifier: Apache-2.0
"""Windows for large images only: each image takes its way, bit for bit as if it were alone."""

import argparse

import cv2
import numpy as np
import paddle
import pytest
from surroundings import Surroundings

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import val as val_command
from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.stream import NetworkSettings, predictions
from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.training.watch.preflight import check_start
from paddleseg_deeplab.core.training.watch.preview import prediction_picture
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.inference import inference_settings
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.prediction.batching import equal_size_batches
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils.errors import UserError

CROP, STRIDE = (16, 12), (11, 8)  # (width, height); two thirds of it, rounded
ABOVE = 2.0  # 384 pixels
SIZES = [(12, 16), (24, 32), (16, 24), (40, 13), (12, 33), (24, 32), (5, 77), (1, 400)]
LARGE = [False, True, False, True, True, True, True, True]  # 384 pixels are not more than 384


registry.MODELS.add_component(Surroundings)


class Mixed:
    """Images of all the sizes."""

    num_classes, ignore_index, mode = 4, 255, "val"

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, 4, SIZES[index])
        image = rng.standard_normal((3, *SIZES[index])).astype(np.float32)
        return {"img": image, "label": label, "trans_info": [], "index": index}


def results(settings, aug=False, batch_size=1):
    """Labels and probabilities of each image, in the set's order."""
    model, how = Surroundings(), NetworkSettings(aug=aug, **settings)
    model.eval()
    batches = equal_size_batches((Mixed()[i] for i in range(len(SIZES))), batch_size)
    with paddle.no_grad():
        found = list(predictions(model, batches, how, probabilities=True))
    found.sort(key=lambda item: item[0]["index"])
    return [(labels, probabilities) for _, labels, probabilities in found]


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("aug", [{}, {"scales": [1.0], "flip_horizontal": True}])
def test_each_image_takes_its_way(batch_size, aug):
    window = {"crop_size": CROP, "stride": STRIDE}
    how = {"aug": bool(aug), "batch_size": batch_size}
    mixed = results({"slide_above": ABOVE, "crop_size": CROP, **aug}, **how)
    whole = results(aug, **how)
    slid = results({"is_slide": True, **window, **aug}, **how)
    for i, large in enumerate(LARGE):
        for got, expected in zip(mixed[i], slid[i] if large else whole[i]):
            np.testing.assert_array_equal(got, expected)
        assert np.any(slid[i][1] != whole[i][1]) or not large  # it makes a difference


def test_each_scale_takes_its_way():
    model = Surroundings()
    model.eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 16)).astype(np.float32)
    with paddle.no_grad():
        slide = {"is_slide": True, "crop_size": CROP, "stride": STRIDE}
        parts = [
            infer.aug_probabilities(model, x, 1.0),
            infer.aug_probabilities(model, x, 2.0, window=slide),
        ]
        model.sizes.clear()
        got = infer.aug_probabilities(
            model, x, [1.0, 2.0], window={"crop_size": CROP, "slide_above": ABOVE}
        )
    assert set(model.sizes) == {(12, 16)}
    np.testing.assert_allclose(got, (parts[0] + parts[1]) / 2, atol=1e-6)


def test_evaluation_counts_the_same():
    def quiet(**settings):
        return evaluate(Surroundings(), Mixed(), print_detail=False, progress=False, **settings)

    how = {"slide_above": ABOVE, "crop_size": list(CROP)}
    mixed, whole = quiet(**how), quiet()
    slid = quiet(is_slide=True, crop_size=CROP, stride=STRIDE)
    for record, a, b, large in zip(mixed.records, whole.records, slid.records, LARGE):
        assert record == (b if large else a)
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
    assert quiet(losses=losses, **how).loss is None  # as with is_slide


def test_prediction_writes_the_same(tmp_path):
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    images = [str(tmp_path / f"{i}.png") for i in range(len(SIZES))]

    def run(name, **settings):
        how = {"outputs": ["prob"], "progress": False, "flip_horizontal": False, **settings}
        predict(Surroundings(), None, Compose([]), images, save_dir=str(tmp_path / name), **how)

    run("mixed", slide_above=ABOVE, crop_size=CROP)
    run("whole")
    run("slid", is_slide=True, crop_size=CROP, stride=STRIDE)
    for i, large in enumerate(LARGE):
        other = "slid" if large else "whole"
        one, two = (tmp_path / name / "probability" / f"{i}.npy" for name in ("mixed", other))
        assert one.read_bytes() == two.read_bytes()


def test_the_picture_in_training_takes_it_too():
    model, data = Surroundings(), Mixed()
    model.eval()
    prediction_picture(model, data, 1, window={"slide_above": ABOVE, "crop_size": CROP})
    assert set(model.sizes) == {(12, 16)}


@pytest.mark.parametrize(
    ("side", "stride"), [(512, 341), (513, 342), (769, 513), (2, 1), (1, 1), (3, 2)]
)
def test_default_stride(side, stride):
    size = (10 * side, 10 * side)
    window = infer.window_for(size, crop_size=side, slide_above=99)
    assert window == ((side, side), (stride, stride))
    assert infer.window_for(size, crop_size=side, slide_above=100) is None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"slide_above": 0.5, "crop_size": CROP}, "at least 1"),
        ({"slide_above": True, "crop_size": CROP}, "at least 1"),
        ({"slide_above": float("nan"), "crop_size": CROP}, "at least 1"),
        ({"slide_above": float("inf"), "crop_size": CROP}, "at least 1"),
        ({"slide_above": "4", "crop_size": CROP}, "at least 1"),
        ({"slide_above": 2}, "give crop_size|Give crop_size"),
        ({"slide_above": 2, "crop_size": (4, 0)}, "positive"),
        ({"slide_above": 2, "crop_size": CROP, "stride": (17, 3)}, "larger than the crop_size"),
        ({"slide_above": 2, "crop_size": CROP, "is_slide": True}, "exclude each other"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(tmp_path, settings, match):
    model, data = Surroundings(), Mixed()
    with pytest.raises(UserError, match=match):
        evaluate(model, data, **settings)
    with pytest.raises(UserError, match=match):
        predict(model, None, Compose([]), ["a.png"], save_dir=str(tmp_path), **settings)
    with pytest.raises(UserError, match=match):
        check_start(model, data, None, 1, val_dataset=data, test_config=settings)
    assert not model.sizes


# ------------------------------------------------------------------------------ config and commands

CONFIG = """
train_dataset:
  type: Shapes
  num_classes: 4
  image_size: [64, 48]
  num_samples: 2
  mode: train
  transforms:
  - {type: ResizeStepScaling}
  - {type: RandomPaddingCrop, crop_size: [16, 12]}
  - {type: Normalize}
val_dataset: {type: Shapes, num_classes: 4, image_size: [64, 48], num_samples: 2, mode: val,
  transforms: []}
model: {type: Surroundings}
test_config: {slide_above: 2}
"""


def config_of(folder, *replaced):
    text = CONFIG
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    (folder / "c.yml").write_text(text)
    return Config(folder / "c.yml")


DEFAULT = ("RandomPaddingCrop, crop_size: [16, 12]", "RandomPaddingCrop")
ONE_SIDE = ("crop_size: [16, 12]", "crop_size: 16")
NO_CROP = ("  - {type: RandomPaddingCrop, crop_size: [16, 12]}\n", "")
OWN = ("slide_above: 2", "slide_above: 2, crop_size: [8, 8], stride: [4, 4]")
OFF = ("slide_above: 2", "slide_above: null")


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        ([], [16, 12]),
        ([DEFAULT], [512, 512]),
        ([NO_CROP], None),
        ([OWN], [8, 8]),
        ([OFF], None),
    ],
)
def test_the_window_is_the_training_crop(tmp_path, replaced, expected):
    """What training's evaluations get, and what the commands' flags make of it."""
    config = config_of(tmp_path, *replaced)
    assert flags(config, "").get("crop_size") == expected  # before the builder fills it in
    SegBuilder(config)
    assert config.test_config.get("crop_size") == expected


def flags(config, text):
    parser = argparse.ArgumentParser()
    add_inference_arguments(parser, "aug_eval")
    settings = inference_settings(config, parser.parse_args(text.split()), "aug_eval")
    return {name: settings[name] for name in infer.WINDOW_SETTINGS if settings.get(name)}


@pytest.mark.parametrize(
    ("replaced", "text", "expected"),
    [
        ([], "", {"slide_above": 2, "crop_size": [16, 12]}),
        ([OFF], "", {}),
        ([OFF], "--slide_above 3", {"slide_above": 3.0, "crop_size": [16, 12]}),
        ([], "--slide_above 3 --crop_size 9 8", {"slide_above": 3.0, "crop_size": [9, 8]}),
        ([], "--crop_size 9 8", {"slide_above": 2, "crop_size": [9, 8]}),
        (
            [],
            "--is_slide --crop_size 9 8 --stride 3 4",
            {"is_slide": True, "crop_size": [9, 8], "stride": [3, 4]},
        ),
        (
            [("slide_above: 2", "is_slide: True, crop_size: [9, 8], stride: [3, 4]")],
            "--slide_above 5",
            {"slide_above": 5.0, "crop_size": [9, 8], "stride": [3, 4]},
        ),
    ],
)
def test_flags_go_over_the_config(tmp_path, replaced, text, expected):
    assert flags(config_of(tmp_path, *replaced), text) == expected


def test_both_flags_are_refused(tmp_path):
    with pytest.raises(UserError, match="--is_slide"):
        flags(config_of(tmp_path), "--is_slide --slide_above 2")


@pytest.mark.parametrize("value", ["0.9", "True", "many", "[2]", ".inf", ".nan", "-1"])
def test_bad_values_in_the_config(tmp_path, value):
    with pytest.raises(UserError, match=r"c\.yml: test_config\.slide_above"):
        config_of(tmp_path, ("slide_above: 2", f"slide_above: {value}"))


def test_both_in_the_config(tmp_path):
    with pytest.raises(UserError, match=r"test_config\.slide_above.*is_slide"):
        config_of(tmp_path, ("slide_above: 2", "slide_above: 2, is_slide: True"))


@pytest.mark.parametrize(
    ("replaced", "more", "status", "words"),
    [
        ([], [], 0, ""),
        ([NO_CROP], [], 2, "Give crop_size"),
        ([NO_CROP], ["--crop_size", "16", "12"], 0, ""),
        ([], ["--stride", "20", "20"], 2, "larger than the crop_size"),
        ([], ["--slide_above", "0"], 2, "at least 1"),
        ([ONE_SIDE], [], 0, ""),
    ],
)
def test_the_command(tmp_path, capsys, replaced, more, status, words):
    config_of(tmp_path, *replaced)
    arguments = ["--config", str(tmp_path / "c.yml"), "--device", "cpu", "--num_workers", "0"]
    assert val_command.main([*arguments, "--save_dir", str(tmp_path / "out"), *more]) == status
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(lines) == (status != 0)
    assert words in "".join(lines)


def test_evaluation_in_training_uses_the_window(tmp_path):
    builder = SegBuilder(config_of(tmp_path))
    model, sizes = builder.model, []
    model.register_forward_pre_hook(
        lambda layer, inputs: sizes.append((layer.training, tuple(inputs[0].shape[2:]))) and None
    )
    train(
        *(model, builder.train_dataset, builder.val_dataset),
        optimizer=paddle.optimizer.SGD(0.01, parameters=model.parameters()),
        losses={"types": [CrossEntropyLoss()], "coef": [1.0]},
        save_dir=str(tmp_path / "run"),
        iters=1,
        test_config=builder.config.test_config,
    )
    assert set(sizes) == {(True, (12, 16)), (False, (12, 16))}

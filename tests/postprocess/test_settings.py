# SPDX-License-Identifier: Apache-2.0
"""The dense CRF as a setting: of configs and flags, in evaluation and in prediction."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.inference import inference_settings
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.postprocess.dense_crf import DenseCRF
from paddleseg_deeplab.postprocess.settings import complete_settings, make_crf
from paddleseg_deeplab.prediction.crf import crf_image, refine, refined
from paddleseg_deeplab.transforms import Compose, Padding, Resize
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


class Recorder:
    """In a CRF's place: swaps the first two classes and remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, probabilities, image):
        self.calls.append((probabilities, image))
        return probabilities[[1, 0, 2]]


class Colors(nn.Layer):
    """The image's channels, over 50, as logits of three classes."""

    num_classes = 3

    def forward(self, x):
        return [x / 50]


class Scenes:
    """Images of two sizes whose class is their brightest channel."""

    num_classes, ignore_index, mode = 3, 255, "val"

    def __init__(self, transforms=()):
        rng = np.random.default_rng(0)
        sizes = [(12, 16), (9, 20), (12, 16)]
        self.transforms = Compose(list(transforms))
        self.images = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in sizes]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        # Compose takes arrays as BGR.
        out = self.transforms({"img": self.images[i][..., ::-1]})
        label = self.images[i].argmax(-1)
        return {"img": out["img"], "trans_info": out["trans_info"], "label": label}


class WithImages(Scenes):
    def load_image(self, i):
        return self.images[i].astype(np.float32)


# ------------------------------------------------------------------------------------- the setting


def test_what_makes_a_crf():
    assert make_crf(None) is None
    assert make_crf(False) is None
    assert isinstance(make_crf(True), DenseCRF)
    assert isinstance(make_crf({}), DenseCRF)
    assert make_crf({"bilateral_xy": 50, "iterations": 3}).bilateral_xy == 50
    recorder = Recorder()
    assert make_crf(recorder) is recorder


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bilateral_xz": 1}, r"here\.bilateral_xz.*Did you mean 'bilateral_xy'"),
        ({"zzz": 1}, r"here\.zzz.*Known: iterations"),
        ({"bilateral_xy": 0}, "here: .*bilateral_xy"),
        ({"bilateral_xy": "wide"}, "here: "),
        ({"iterations": -1}, "here: .*iterations"),
        (5, "True, False or a section"),
        ([1], "True, False or a section"),
    ],
)
def test_mistakes_name_their_place(settings, text):
    with pytest.raises(UserError, match=text):
        make_crf(settings, "here")


def test_defaults_are_written_out():
    assert complete_settings(None) is None
    assert complete_settings(False) is None
    full = complete_settings(True)
    assert set(full) == set(DenseCRF.PARAMETERS) - {"compatibility"}
    assert complete_settings({"bilateral_xy": 5}) == {**full, "bilateral_xy": 5}


def test_configs_are_checked_when_they_are_built(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("test_config: {crf: {bilateral_xy: 50}}\n")
    config = Config(str(path), opts=["test_config.crf.iterations=5"])
    SegBuilder(config)
    assert config.test_config["crf"] == {"bilateral_xy": 50, "iterations": 5}
    path.write_text("test_config: {crf: {bilateral_x: 50}}\n")
    with pytest.raises(UserError, match=r"c\.yml: test_config\.crf\.bilateral_x: .*bilateral_xy"):
        SegBuilder(Config(str(path)))
    (tmp_path / "best.yml").write_text("test_config:\n  crf: {bilateral_xy: 30}\n")
    (tmp_path / "both.yml").write_text("_base_: [best.yml, base.yml]\n")
    (tmp_path / "base.yml").write_text("batch_size: 2\ntest_config: {aug_eval: True, crf: True}\n")
    config = Config(str(tmp_path / "both.yml"))
    assert config.test_config == {"aug_eval": True, "crf": {"bilateral_xy": 30}}


@pytest.mark.parametrize(
    ("configured", "flags", "expected"),
    [
        (None, "", None),
        (False, "", None),
        (None, "--crf", {}),
        (True, "", {}),
        ({"iterations": 5}, "", {"iterations": 5}),
        ({"iterations": 5}, "--crf False", None),
        ({"iterations": 5}, "--crf --crf_params bilateral_xy=50.5", None),
        (None, "--crf true --crf_params iterations=2", {"iterations": 2}),
        (None, "--crf_params iterations=2", None),  # warns
    ],
)
def test_flags_over_the_config(configured, flags, expected, tmp_path):
    if "50.5" in flags:
        expected = {"iterations": 5, "bilateral_xy": 50.5}
    path = tmp_path / "c.yml"
    path.write_text("test_config: {}\n")
    config = Config(str(path))
    config.dic["test_config"]["crf"] = configured
    for aug_flag in ("aug_eval", "aug_pred"):
        parser = argparse.ArgumentParser()
        add_inference_arguments(parser, aug_flag)
        settings = inference_settings(config, parser.parse_args(flags.split()), aug_flag)
        assert settings.get("crf") == expected


@pytest.mark.parametrize("params", ["iterations", "iterations=many", "=3", "iterations=[1"])
def test_bad_parameters(params, tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("batch_size: 1\n")
    parser = argparse.ArgumentParser()
    add_inference_arguments(parser, "aug_eval")
    args = parser.parse_args(["--crf", "--crf_params", params])
    with pytest.raises(UserError, match="--crf_params"):
        inference_settings(Config(str(path)), args, "aug_eval")


def test_deploy_yaml_keeps_it(tmp_path):
    (tmp_path / "model.json").touch()
    (tmp_path / "model.pdiparams").touch()
    for crf in (None, complete_settings({"bilateral_xy": 41.5})):
        info = deploy_yaml.DeployInfo("pir", [None, 3, None, None], output_op="none", crf=crf)
        deploy_yaml.write(info, tmp_path / "deploy.yaml")
        assert deploy_yaml.read(tmp_path).crf == crf
    assert make_crf(crf).bilateral_xy == 41.5


# -------------------------------------------------------------------------------------- evaluation


def softmax(x):
    power = np.exp(x - x.max(axis=0))
    return power / power.sum(axis=0)


@pytest.mark.parametrize("transforms", [[], [Padding((32, 32))], [Resize((16, 16))]])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aug_eval": True, "scales": [0.5, 1.0], "flip_horizontal": True},
        {"is_slide": True, "crop_size": (8, 8), "stride": (5, 6)},
        {"num_workers": 3, "batch_size": 2},
        {"losses": {"types": [lambda logits, label: logits.mean()], "coef": [1]}},
    ],
)
def test_it_works_on_probabilities_at_the_original_size(transforms, settings):
    data, crf = WithImages(transforms), Recorder()
    result = evaluate(Colors(), data, print_detail=False, progress=False, crf=crf, **settings)
    assert len(crf.calls) == len(data)
    matrix = np.zeros((3, 3), np.int64)
    for probabilities, image in crf.calls:
        i = next(i for i, own in enumerate(data.images) if np.array_equal(own, image))
        assert image.dtype == np.uint8
        assert probabilities.dtype == np.float32
        assert probabilities.shape == (3, *image.shape[:2])
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        if not transforms and "aug_eval" not in settings:
            expected = softmax(image.transpose(2, 0, 1) / 50.0)
            # Float32 exponentials of numbers up to 5.1, and one more rounding in a window's mean.
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        refined = probabilities[[1, 0, 2]].argmax(0)
        np.add.at(matrix, (data.images[i].argmax(-1), refined), 1)
    np.testing.assert_array_equal(result.confusion.matrix, matrix)
    assert (result.loss is None) == ("losses" not in settings)


def test_a_real_crf_by_its_settings():
    """What training does with test_config: a dict reaches evaluate."""
    data = WithImages()
    results = [
        evaluate(Colors(), data, print_detail=False, progress=False, crf=crf, num_workers=workers)
        for crf, workers in ((None, 0), ({"iterations": 2}, 0), (DenseCRF(iterations=2), 2))
    ]
    matrices = [result.confusion.matrix for result in results]
    # Noise, whose class is the brightest channel pixel by pixel: smoothing has to cost.
    assert results[0].miou == 1
    assert results[1].miou < 1
    np.testing.assert_array_equal(matrices[1], matrices[2])


def test_images_come_from_files_too(tmp_path):
    data, crf = Scenes(), Recorder()
    with pytest.raises(UserError, match=r"Scenes a load_image\(index\), or its samples an im_path"):
        evaluate(Colors(), data, print_detail=False, progress=False, crf=crf)
    for i, image in enumerate(data.images):
        visualize.save_image(tmp_path / f"{i}.png", image)

    class Files(Scenes):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "im_path": str(tmp_path / f"{i}.png")}

    evaluate(Colors(), Files(), print_detail=False, progress=False, crf=crf)
    for (_, image), own in zip(crf.calls, data.images):
        np.testing.assert_array_equal(image, own)
    visualize.save_image(tmp_path / "1.png", data.images[0])
    with pytest.raises(UserError, match=r"1\.png: the prediction has size \(9, 20\).*\(12, 16\)"):
        evaluate(Colors(), Files(), print_detail=False, progress=False, crf=crf)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[[1, 2, 3]]], np.uint8), [1, 2, 3]),
        (np.array([[[1.4, 254.6, 300.0]]], np.float32), [1, 255, 255]),
        (np.array([[[-5.0, np.nan, 7.5]]], np.float32), [0, 0, 8]),
        (np.array([[9.0]], np.float32), [9]),
        (np.array([[[1, 2, 3, 4, 5]]], np.float32), [1, 2, 3, 4, 5]),
    ],
)
def test_images_as_the_crf_takes_them(image, expected):
    out = crf_image(image)
    assert out.dtype == np.uint8
    assert out.shape == (1, 1, len(expected))
    np.testing.assert_array_equal(out[0, 0], expected)
    flipped = expected[::-1] if len(expected) == 3 else expected
    np.testing.assert_array_equal(crf_image(image, to_rgb=False)[0, 0], flipped)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels):
    rng = np.random.default_rng(0)
    probabilities = softmax(rng.normal(size=(3, 12, 10))).astype(np.float32)
    image = rng.integers(0, 256, (12, 10, channels), dtype=np.uint8)
    labels, q = refine(DenseCRF(iterations=2), probabilities, image)
    assert labels.dtype == np.int32
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(labels, q.argmax(0))


def test_threads_keep_the_order():
    samples = [{"index": i} for i in range(20)]
    images = [np.full((2, 2, 3), i, np.uint8) for i in range(20)]

    def crf(probabilities, image):
        return probabilities + image[0, 0, 0]

    stream = ((s, None, np.zeros((1, 2, 2), np.float32)) for s in samples)
    found = list(refined(crf, stream, lambda s: images[s["index"]], num_workers=4))
    assert [s["index"] for s, _, _ in found] == list(range(20))
    assert [q[0, 0, 0] for _, _, q in found] == list(range(20))


# -------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("to_rgb", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_prediction_writes_what_the_crf_gives(tmp_path, to_rgb, num_workers):
    images = [
        np.random.default_rng(i).integers(0, 256, (9 + i, 12, 3), dtype=np.uint8) for i in range(3)
    ]
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, images):
        visualize.save_image(path, image)
    crf = Recorder()
    result = predict(
        Colors(),
        None,
        Compose([Padding((32, 32))], to_rgb=to_rgb),
        paths,
        save_dir=str(tmp_path / "out"),
        palette=PALETTE,
        outputs=["raw", "prob"],
        progress=False,
        num_workers=num_workers,
        crf=crf,
    )
    assert not result.failed
    for path, image in zip(paths, images):
        files = result.written[path]
        channels = image if to_rgb else image[..., ::-1]
        q = softmax(channels.transpose(2, 0, 1) / 50.0)[[1, 0, 2]]
        # Float32, exponents up to 5.1.
        np.testing.assert_allclose(np.load(files["prob"]), q, atol=1e-5)
        raw = np.asarray(Image.open(files["raw"]))
        np.testing.assert_array_equal(raw, np.load(files["prob"]).argmax(0))
    # RGB whatever the network's order is.
    given = sorted((image for _, image in crf.calls), key=len)
    for image, own in zip(given, images):
        np.testing.assert_array_equal(image, own)


def test_broken_images_do_not_stop_it(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no picture")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    result = predict(
        Colors(), None, Compose([]), paths, save_dir=str(tmp_path / "o"), progress=False, crf=True
    )
    assert list(result.written) == paths[:1]
    assert [Path(path).name for path, _ in result.failed] == ["b.png"]
    assert paddle.is_grad_enabled()

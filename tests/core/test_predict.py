# SPDX-License-Identifier: Apache-2.0
"""Prediction of files: names, sizes, contents, and images that cannot be read."""

from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image

from paddleseg_deeplab.core.predict import predict, report
from paddleseg_deeplab.prediction.outputs import collect_images
from paddleseg_deeplab.transforms import Compose, Padding, Resize
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError

PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


class Brightest(nn.Layer):
    """The image's channels, over 50, as logits of three classes."""

    num_classes = 3

    def forward(self, x):
        return [x / 50]


def write(path, size=(9, 12), seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    visualize.save_image(path, image)
    return image


def run(images, save_dir, transforms=(), **settings):
    settings = {"palette": PALETTE, "class_names": ["r", "g", "b"], "progress": False, **settings}
    compose = Compose(list(transforms))
    return predict(Brightest(), None, compose, images, save_dir=str(save_dir), **settings)


def test_all_outputs_hold_what_they_say(tmp_path):
    image = write(tmp_path / "in" / "größe 图.png")
    out = tmp_path / "out"
    every = ["overlay", "palette", "raw", "prob"]
    result = run([str(tmp_path / "in" / "größe 图.png")], out, outputs=every)
    assert not result.failed
    expected = image.argmax(-1)
    raw = np.asarray(Image.open(out / "raw_prediction" / "größe 图.png"))
    np.testing.assert_array_equal(raw, expected)
    with Image.open(out / "pseudo_color_prediction" / "größe 图.png") as colored:
        np.testing.assert_array_equal(np.asarray(colored), expected)
        np.testing.assert_array_equal(np.asarray(colored.convert("RGB")), PALETTE[expected])
    overlay = np.asarray(Image.open(out / "added_prediction" / "größe 图.png"))
    np.testing.assert_array_equal(overlay, visualize.overlay(image, expected, PALETTE))
    prob = np.load(out / "probability" / "größe 图.npy").astype(np.float64)
    power = np.exp(image.astype(np.float64) / 50).transpose(2, 0, 1)
    # Float32: a handful of roundings of values below 1, exponents up to 5 included.
    np.testing.assert_allclose(prob, power / power.sum(0), atol=2e-6)
    assert (out / "legend.png").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"aug_pred": True, "scales": [0.75, 1.0]},
        {"is_slide": True, "crop_size": (6, 6), "stride": (4, 4)},
    ],
)
@pytest.mark.parametrize("transforms", [[], [Padding((32, 32))], [Resize((16, 16))]])
def test_original_size_and_any_batch_size(tmp_path, transforms, settings):
    sizes = [(9, 12), (20, 8), (9, 12), (9, 12), (15, 15)]
    for i, size in enumerate(sizes):
        write(tmp_path / "in" / f"{i}.png", size, seed=i)
    paths, root = collect_images(str(tmp_path / "in"))
    got = []
    for batch_size in (1, 3):
        out = tmp_path / f"out{batch_size}"
        every = ("overlay", "raw", "prob")
        options = {"batch_size": batch_size, "num_workers": batch_size - 1, **settings}
        run(paths, out, transforms, image_dir=root, outputs=every, **options)
        raws = [np.asarray(Image.open(out / "raw_prediction" / f"{i}.png")) for i in range(5)]
        probs = [np.load(out / "probability" / f"{i}.npy") for i in range(5)]
        got.append((raws, probs))
        assert [r.shape for r in raws] == sizes
        assert [p.shape for p in probs] == [(3, *size) for size in sizes]
        for i, size in enumerate(sizes):
            assert Image.open(out / "added_prediction" / f"{i}.png").size == size[::-1]
    for one, three in zip(got[0][0], got[1][0]):
        np.testing.assert_array_equal(one, three)
    for one, three in zip(got[0][1], got[1][1]):
        np.testing.assert_allclose(one, three, atol=1e-5)


def test_names_never_collide(tmp_path):
    names = ["day/1.png", "night/1.png", "day/1.bmp", "2.png"]
    images = {name: write(tmp_path / "in" / name, seed=i) for i, name in enumerate(names)}
    paths, root = collect_images(str(tmp_path / "in"))
    result = run(paths, tmp_path / "out", image_dir=root, outputs=["raw"])
    files = {str(Path(p).relative_to(tmp_path / "in")): w["raw"] for p, w in result.written.items()}
    assert len(set(files.values())) == len(names)
    for name, image in images.items():
        raw = np.asarray(Image.open(files[str(Path(name))]))
        np.testing.assert_array_equal(raw, image.argmax(-1), err_msg=name)
    assert Path(files[str(Path("night/1.png"))]) == tmp_path / "out/raw_prediction/night/1.png"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_files_are_reported_and_the_rest_is_done(tmp_path, num_workers):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "d.jpg").write_bytes(b"")
    write(tmp_path / "e.png")
    paths = [str(tmp_path / n) for n in ("a.png", "b.png", "c.png", "d.jpg", "e.png")]
    result = run(paths, tmp_path / "out", num_workers=num_workers, batch_size=2)
    assert [Path(p).name for p, _ in result.failed] == ["b.png", "c.png", "d.jpg"]
    assert sorted(Path(p).name for p in result.written) == ["a.png", "e.png"]
    with pytest.raises(UserError, match=r"3 of 5 images could not be done.*b\.png"):
        report(result, 5, tmp_path / "out")
    report(run(paths[:1], tmp_path / "out"), 1, tmp_path / "out")  # nothing to raise


def test_custom_color_goes_over_the_palette(tmp_path):
    image = write(tmp_path / "a.png")
    run([str(tmp_path / "a.png")], tmp_path / "out", custom_color=[9, 8, 7], outputs=["palette"])
    picture = Image.open(tmp_path / "out/pseudo_color_prediction/a.png").convert("RGB")
    expected = np.concatenate([[[9, 8, 7]], PALETTE[1:]])[image.argmax(-1)]
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_bgr_preprocessing_shows_true_colours(tmp_path):
    image = write(tmp_path / "a.png")
    compose = Compose([], to_rgb=False)
    paths, out = [str(tmp_path / "a.png")], tmp_path / "out"
    predict(Brightest(), None, compose, paths, save_dir=str(out), palette=PALETTE, progress=False)
    shown = cv2.imread(str(out / "added_prediction/a.png"))[..., ::-1]
    labels = image[..., ::-1].argmax(-1)
    np.testing.assert_array_equal(shown, visualize.overlay(image, labels, PALETTE))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"outputs": ["masks"]}, "masks"),
        ({"aug_pred": True, "scales": []}, "scales"),
        ({"is_slide": True, "crop_size": (4, 4)}, "stride"),
        ({"custom_color": [1, 2]}, "custom_color"),
        ({"use_multilabel": True}, "use_multilabel"),
    ],
)
def test_bad_settings(tmp_path, settings, match):
    with pytest.raises(UserError, match=match):
        run([str(tmp_path / "a.png")], tmp_path / "out", **settings)


def test_weights_are_loaded(tmp_path):
    class Bias(nn.Layer):
        def __init__(self, best):
            super().__init__()
            self.bias = self.create_parameter([3])
            self.bias.set_value(np.eye(3, dtype="float32")[best])

        def forward(self, x):
            return [x * 0 + self.bias.reshape([1, 3, 1, 1])]

    paddle.save(Bias(2).state_dict(), str(tmp_path / "model.pdparams"))
    write(tmp_path / "a.png")
    weights, compose = str(tmp_path / "model.pdparams"), Compose([])
    paths = [str(tmp_path / "a.png")]
    result = predict(
        Bias(0), weights, compose, paths, save_dir=str(tmp_path), outputs=["raw"], progress=False
    )
    raw = np.asarray(Image.open(result.written[paths[0]]["raw"]))
    assert (raw == 2).all()

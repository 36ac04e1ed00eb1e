# SPDX-License-Identifier: Apache-2.0
"""Reading files, Compose, and the way back from a network's output to the image."""

import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.transforms.reading import exif, files
from paddleseg_deeplab.utils.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
LABEL = np.random.default_rng(1).integers(0, 20, (12, 17), dtype=np.uint8)


def save(path, array, mode=None, palette=None, **options):
    image = Image.fromarray(array)
    if palette is not None:
        image = Image.fromarray(array)
        image.putpalette(palette)
    if mode:
        image = image.convert(mode)
    image.save(path, **options)
    return path


# ------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("name", ["a.png", "with space.png", "图像_é.png", "a.bmp", "a.tif"])
def test_read_image_rgb(tmp_path, name):
    path = save(tmp_path / name, RGB)
    for where in (path, str(path)):
        img = files.read_image(where)
        assert img.dtype == np.float32
        np.testing.assert_array_equal(img, RGB)
    np.testing.assert_array_equal(files.read_image(path, to_rgb=False), RGB[:, :, ::-1])


def test_read_image_between_grey_and_colour(tmp_path):
    grey = save(tmp_path / "grey.png", LABEL)
    np.testing.assert_array_equal(files.read_image(grey), np.stack([LABEL] * 3, axis=2))
    assert files.read_image(grey, 1).shape == (12, 17, 1)
    color = files.read_image(save(tmp_path / "color.png", RGB), 1)[:, :, 0]
    np.testing.assert_allclose(color, RGB @ [0.299, 0.587, 0.114], atol=1)  # rounded to 8 bits


def test_read_image_with_alpha(tmp_path):
    rgba = np.concatenate([RGB, LABEL[:, :, None]], axis=2)
    path = save(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(files.read_image(path), RGB)
    np.testing.assert_array_equal(files.read_image(path, 4), rgba)
    bgra = files.read_image(path, 4, to_rgb=False)
    np.testing.assert_array_equal(bgra, rgba[:, :, [2, 1, 0, 3]])


def test_read_image_16_bit(tmp_path):
    wide = RGB.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), wide[:, :, ::-1])
    np.testing.assert_array_equal(files.read_image(tmp_path / "a.png"), RGB)
    four = np.concatenate([wide, wide[:, :, :1]], axis=2)
    cv2.imwrite(str(tmp_path / "b.png"), four)
    out = files.read_image(tmp_path / "b.png", 4, to_rgb=False)
    np.testing.assert_allclose(out, four / 257.0, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_read_image_npy(tmp_path, channels):
    array = np.random.default_rng(0).normal(size=(5, 6, channels))
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(
        files.read_image(tmp_path / "a.npy", channels), array.astype(np.float32)
    )
    np.save(tmp_path / "flat.npy", array[:, :, 0])
    assert files.read_image(tmp_path / "flat.npy", 1).shape == (5, 6, 1)


@pytest.mark.parametrize("orientation", range(10))
def test_read_image_obeys_exif_rotation(tmp_path, orientation):
    image = Image.fromarray(np.zeros((12, 17, 3), np.uint8))
    field = image.getexif()
    field[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=field)
    turned = orientation in (5, 6, 7, 8)  # 0 and 9 are no orientations
    expected = (17, 12, 3) if turned else (12, 17, 3)
    assert files.read_image(tmp_path / "a.jpg").shape == expected
    with Image.open(tmp_path / "a.jpg") as file:  # what the tools for data ask
        number = exif.orientation((tmp_path / "a.jpg").read_bytes(), file)
    assert exif.swaps_sides(number) == turned


def test_read_image_errors(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "chw.npy", np.zeros((4, 8, 9)))
    np.save(tmp_path / "low.npy", np.zeros((0, 8, 3)))
    np.save(tmp_path / "thin.npy", np.zeros((8, 0)))
    (tmp_path / "folder.png").mkdir()
    save(tmp_path / "three.png", RGB)
    table = [
        ("missing.png", 3, "does not exist"),
        ("missing.npy", 3, "does not exist"),
        ("broken.jpg", 3, "broken"),
        ("empty.png", 3, "broken"),
        ("broken.npy", 3, "cannot be read"),
        ("text.npy", 1, "expected numbers"),
        ("chw.npy", 4, "img_channels"),
        ("low.npy", 3, "is empty"),
        ("thin.npy", 1, "is empty"),
        ("three.png", 4, "img_channels"),
        ("folder.png", 3, "cannot be opened"),
    ]
    for name, channels, text in table:
        with pytest.raises(UserError, match=text) as caught:
            files.read_image(tmp_path / name, channels)
        assert name in str(caught.value)


# ------------------------------------------------------------------------------------------ labels


def test_read_label_formats(tmp_path):
    palette = np.random.default_rng(2).integers(0, 256, 768).tolist()
    colors = np.stack([LABEL] * 3, axis=2)
    alpha = np.full((12, 17, 1), 128, np.uint8)
    wide = LABEL.astype(np.uint16) * 100
    cases = {
        "palette.png": save(tmp_path / "palette.png", LABEL, palette=palette),
        "few_colours.png": save(tmp_path / "few_colours.png", LABEL, palette=palette, bits=8),
        "grey.png": save(tmp_path / "grey.png", LABEL),
        "grey.tif": save(tmp_path / "grey.tif", LABEL),
        "équal.png": save(tmp_path / "équal.png", colors),
        "rgba.png": save(tmp_path / "rgba.png", np.concatenate([colors, alpha], axis=2)),
    }
    for name, path in cases.items():
        label = files.read_label(path)
        assert label.dtype == np.uint8, name
        np.testing.assert_array_equal(label, LABEL, err_msg=name)
    label = files.read_label(save(tmp_path / "wide.png", wide))
    assert label.dtype.kind in "iu"
    np.testing.assert_array_equal(label, wide)
    np.testing.assert_array_equal(
        files.read_label(save(tmp_path / "bits.png", LABEL > 9)), LABEL > 9
    )
    np.save(tmp_path / "a.npy", LABEL.astype(">i4"))
    label = files.read_label(tmp_path / "a.npy")
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, LABEL)


def test_read_label_errors(tmp_path):
    save(tmp_path / "color.png", RGB)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    np.save(tmp_path / "float.npy", np.zeros((3, 3)))
    np.save(tmp_path / "three.npy", np.zeros((3, 3, 3), int))
    table = [
        ("missing.png", "does not exist"),
        ("color.png", "holds colours"),
        ("broken.png", "cannot be read"),
        ("float.npy", "whole"),
        ("three.npy", "whole"),
    ]
    for name, text in table:
        with pytest.raises(UserError, match=text) as caught:
            files.read_label(tmp_path / name)
        assert name in str(caught.value)


# ----------------------------------------------------------------------------------------- Compose


def test_compose_reads_files(tmp_path):
    data = {
        "img": str(save(tmp_path / "a.png", RGB)),
        "label": save(tmp_path / "b.png", LABEL),
        "gt_fields": ["label"],
        "extra": 5,
    }
    given_ = dict(data)
    out = T.Compose([T.RandomHorizontalFlip(1)])(data)
    assert data == given_
    assert out["img"].dtype == np.float32
    assert out["img"].flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(out["img"], RGB[:, ::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(out["label"], LABEL[:, ::-1])
    assert out["trans_info"] == []
    assert out["extra"] == 5
    assert out["im_path"] == data["img"]
    assert "rng" not in out


def test_compose_arrays_are_bgr_copies():
    out = T.Compose([])({"img": RGB[:, :, ::-1]})
    np.testing.assert_array_equal(out["img"], RGB.transpose(2, 0, 1))
    img = RGB.astype(np.float32)

    def spoil(data):  # a transform from elsewhere that writes into what it gets
        data["img"] += 1
        data["label"] += 1
        return data

    label = LABEL.copy()
    before = hashlib.sha256(img.tobytes()).digest()
    out = T.Compose([spoil], to_rgb=False)({"img": img, "label": label, "gt_fields": ["label"]})
    assert hashlib.sha256(img.tobytes()).digest() == before
    np.testing.assert_array_equal(label, LABEL)
    np.testing.assert_array_equal(out["label"], LABEL + 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_compose_channels(channels):
    img = np.zeros((8, 9, channels), np.float32)
    chain = [T.Resize((16, 12)), T.RandomRotation(), T.RandomDistort(), T.Normalize()]
    out = T.Compose(chain, img_channels=channels)({"img": img})
    assert out["img"].shape[0] == channels
    with pytest.raises(ValueError, match="img_channels is 4"):
        T.Compose(chain, img_channels=4)({"img": img})


def test_compose_is_reproducible_by_its_rng():
    chain = T.Compose([T.ResizeStepScaling(), T.RandomPaddingCrop((8, 8)), T.RandomDistort()])

    def run(seed):
        data = {"img": RGB, "label": LABEL, "gt_fields": ["label"]}
        return chain({**data, "rng": np.random.default_rng(seed)})["img"]

    np.testing.assert_array_equal(run(3), run(3))
    assert any((run(3) != run(seed)).any() for seed in range(4, 8))


def test_compose_errors(tmp_path):
    run = T.Compose([])
    with pytest.raises(ValueError, match="'img'"):
        run({})
    with pytest.raises(TypeError, match="path, bytes or an array"):
        run({"img": 5})
    with pytest.raises(ValueError, match="gt_fields"):
        run({"img": RGB, "gt_fields": ["label"]})
    path = save(tmp_path / "b.png", LABEL[:5])
    with pytest.raises(UserError, match=r"b\.png is 17x5 .* is 17x12"):
        run({"img": RGB, "label": path})
    with pytest.raises(TypeError, match="returned"):
        T.Compose([lambda data: None])({"img": RGB})
    path = save(tmp_path / "a.png", RGB)
    with pytest.raises(UserError, match=r"Normalize: mean has 4 values.*a\.png"):
        T.Compose([T.Normalize([0.5] * 4, [0.5] * 4)])({"img": path})

    def broken(data):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:  # someone else's keeps its traceback
        T.Compose([broken])({"img": RGB})
    assert not isinstance(caught.value, UserError)


# ------------------------------------------------------------------------------------ there & back

CHAINS = {
    "nothing": [],
    "padding": [T.Padding((40, 30))],
    "resize": [T.Resize((23, 19))],
    "long, padding": [T.ResizeByLong(32), T.Padding((32, 32))],
    "limit, ratio": [T.LimitLong(max_long=11), T.PaddingByAspectRatio(2)],
    "divisor": [T.PaddingByDivisor(16)],
    "resize, divisor": [T.Resize((23, 19)), T.PaddingByDivisor(8)],
    "short, padding, resize": [
        T.ResizeByShort(9, max_size=50),
        T.Padding((50, 51)),
        T.Resize((64, 48)),
    ],
    "scale padding": [T.ScalePadding((33, 33))],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_round_trip(chain, tmp_path):
    compose = T.Compose([*CHAINS[chain], T.Normalize()])
    for image in (save(tmp_path / "a.png", RGB), RGB[:, :, ::-1]):
        chw, trans_info, original = restore.preprocess(image, compose)
        np.testing.assert_array_equal(original, RGB)
        assert chw.dtype == np.float32
        scores = np.random.default_rng(0).normal(size=(4, *chw.shape[1:])).astype(np.float32)
        restored = restore.restore(scores, trans_info)
        assert restored.shape == (4, 12, 17)
        labels = restore.scores_to_labels(scores, trans_info)
        assert labels.shape == (12, 17)
        np.testing.assert_array_equal(labels, restored.argmax(axis=0))
        assert restore.labels_to_original(scores.argmax(axis=0), trans_info).shape == (12, 17)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    chain=st.sampled_from([*CHAINS, "enlarge", "enlarge, ratio"]),
)
@settings(max_examples=150, deadline=None)
def test_a_perfect_network_gives_the_mask_back(size, chain):
    # The "network" returns the mask it would be trained on. Where no step makes it smaller no pixel
    # may be lost on the way; where one does, only whole classes and the size can be asked for.
    enlarging = {
        "enlarge": [T.ResizeByLong(120)],
        "enlarge, ratio": [T.LimitLong(min_long=61), T.PaddingByAspectRatio(1.5)],
    }
    exact = chain in ("enlarge", "enlarge, ratio", "nothing", "padding", "divisor")
    if "padding" in chain:
        size = (min(size[0], 28), min(size[1], 28))
    label = np.random.default_rng(0).integers(0, 3, size, dtype=np.uint8)
    data = {"img": np.zeros((*size, 3), np.uint8), "label": label, "gt_fields": ["label"]}
    out = T.Compose({**CHAINS, **enlarging}[chain])(data)
    back = restore.labels_to_original(out["label"], out["trans_info"])
    assert back.dtype == np.uint8
    assert back.shape == size
    if exact:
        np.testing.assert_array_equal(back, label)
    else:
        # A class can vanish where the image shrinks to a pixel; none may appear.
        assert set(np.unique(back)) <= {0, 1, 2, 255}


def test_argmax_and_scores_agree_when_only_padded():
    info = [("padding", (12, 17)), ("padding", (20, 20))]
    scores = np.random.default_rng(0).normal(size=(5, 32, 40)).astype(np.float32)
    np.testing.assert_array_equal(
        restore.scores_to_labels(scores, info),
        restore.labels_to_original(scores.argmax(axis=0), info),
    )


@pytest.mark.parametrize("kinds", [(), ("padding",), ("resize",), ("resize", "padding")])
def test_labels_are_those_of_the_restored_scores(kinds):
    """Whichever way is taken: with the scores or without, before a crop or after it."""
    scores = np.random.default_rng(3).standard_normal((4, 20, 24)).astype(np.float32).round(1)
    steps = {"resize": ("resize", (31, 29)), "padding": ("padding", (17, 22), (1, 2))}
    info = [steps[kind] for kind in kinds]
    labels, restored = restore.labels_and_scores(scores, info, want_scores=True)
    np.testing.assert_array_equal(restored, restore.restore(scores, info))
    np.testing.assert_array_equal(labels, restored.argmax(0))
    alone, none = restore.labels_and_scores(scores, info)
    assert none is None
    np.testing.assert_array_equal(alone, labels)
    assert labels.dtype == alone.dtype == np.int32


def test_scores_to_labels_ties_and_input():
    scores = np.zeros((3, 4, 5), np.float32)
    scores[2, 0] = 1
    scores[1, 0] = 1
    before = scores.copy()
    labels = restore.scores_to_labels(scores, [("resize", (4, 5))])
    np.testing.assert_array_equal(labels, scores.argmax(axis=0))
    np.testing.assert_array_equal(scores, before)
    half = restore.scores_to_labels(scores.astype(np.float16), [("resize", (8, 10))])
    assert half.shape == (8, 10)


def test_restore_centre_padding():
    plane = np.arange(30).reshape(5, 6)
    out = restore.restore(plane, [("padding", (2, 3), (1, 2))], "nearest")
    np.testing.assert_array_equal(out, plane[1:3, 2:5])


@pytest.mark.parametrize(
    ("array", "info", "interp", "text"),
    [
        (np.zeros((3, 4)), [], "cubic", "interp"),
        (np.zeros((3, 4), int), [], "linear", "nearest"),
        (np.zeros(3), [], "linear", "shape"),
        (np.zeros((3, 4)), [("flip", (3, 4))], "linear", "flip"),
        (np.zeros((3, 4)), [("padding", (4, 4))], "linear", "another image"),
    ],
)
def test_restore_errors(array, info, interp, text):
    with pytest.raises(ValueError, match=text):
        restore.restore(array, info, interp)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis):
    logits = np.random.default_rng(0).normal(0, 300, (4, 5, 6))
    out = restore.softmax(logits, axis)
    assert out.dtype == np.float32
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=axis, keepdims=True))
    # Logits near 1000 in float32 are exact to 3e-5, and so are their exponentials.
    np.testing.assert_allclose(out, shifted / shifted.sum(axis=axis, keepdims=True), atol=2e-4)

# SPDX-License-Identifier: Apache-2.0
"""The transform classes: alignment of image and mask, purity, randomness, settings."""

import hashlib
import inspect
import random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab import registry
from paddleseg_deeplab.utils.errors import UserError

# name, parameters, what happens to pixels: "moved" (copied as they are), "sampled" (interpolated)
# or "recoloured" (the mask is untouched).
CASES = [
    ("Resize", {"target_size": (90, 70)}, "sampled"),
    ("Resize", {"target_size": (90, 70), "interp": "NEAREST"}, "moved"),
    ("Resize", {"target_size": (333, 70), "keep_ratio": True, "size_divisor": 32}, "sampled"),
    ("Resize", {"target_size": (201, 90), "interp": "RANDOM"}, "sampled"),
    ("Resize", {"target_size": (110, 90), "interp": "AREA"}, "sampled"),
    ("ResizeByLong", {"long_size": 97}, "sampled"),
    ("ResizeByShort", {"short_size": [50, 77, 131]}, "sampled"),
    ("ResizeByShort", {"short_size": 100, "max_size": 110}, "sampled"),
    ("LimitLong", {"max_long": 90}, "sampled"),
    ("LimitLong", {"min_long": 190}, "sampled"),
    ("ResizeRangeScaling", {"min_value": 60, "max_value": 250}, "sampled"),
    ("ResizeStepScaling", {"min_scale_factor": 0.5, "max_scale_factor": 2.0}, "sampled"),
    ("ResizeStepScaling", {"scale_step_size": 0}, "sampled"),
    ("RandomPaddingCrop", {"crop_size": (64, 48)}, "moved"),
    ("RandomPaddingCrop", {"crop_size": (64, 48), "category_max_ratio": 0.75}, "moved"),
    ("RandomPaddingCrop", {"crop_size": (200, 48)}, "moved"),
    ("RandomPaddingCrop", {"crop_size": (200, 190)}, "moved"),
    ("RandomCenterCrop", {}, "moved"),
    ("RandomCenterCrop", {"retain_ratio": (1, 0.3)}, "moved"),
    ("Padding", {"target_size": (150, 130)}, "moved"),
    ("PaddingByAspectRatio", {}, "moved"),
    ("PaddingByAspectRatio", {"aspect_ratio": 2.1}, "moved"),
    ("PaddingByDivisor", {}, "repeated"),
    ("PaddingByDivisor", {"size_divisor": 37}, "repeated"),
    ("ScalePadding", {"target_size": (100, 100)}, "sampled"),
    ("RandomHorizontalFlip", {"prob": 1}, "moved"),
    ("RandomVerticalFlip", {"prob": 1}, "moved"),
    ("RandomRotation", {}, "sampled"),
    ("RandomRotation", {"max_rotation": 180}, "sampled"),
    ("RandomScaleAspect", {}, "sampled"),
    ("RandomAffine", {"size": (120, 100), "translation_offset": 20}, "sampled"),
    ("RandomBlur", {"prob": 1, "blur_type": "random"}, "recoloured"),
    ("RandomBlur", {"prob": 1, "blur_type": "median"}, "recoloured"),
    ("RandomNoise", {"prob": 1}, "recoloured"),
    ("RandomDistort", {"sharpness_prob": 0.5}, "recoloured"),
    ("Normalize", {}, "recoloured"),
]
EVAL_STYLE = {
    "Resize": ["resize"],
    "ResizeByLong": ["resize"],
    "ResizeByShort": ["resize"],
    "LimitLong": ["resize"],
    "Padding": ["padding"],
    "PaddingByAspectRatio": ["padding"],
    "PaddingByDivisor": ["padding"],
    "ScalePadding": ["padding", "resize"],
}
IDS = [f"{name}-{'-'.join(map(str, kwargs.values()))}" for name, kwargs, _ in CASES]
# Image value of class 0, 1, 2; the padding value belongs to none of them.
VALUES = np.array([40, 120, 200], np.float32)


def make_sample(seed=0, channels=3, size=(96, 128), dtype=np.uint8):
    """Blobs of at least 8 x 8 pixels of three classes; the image is a function of the mask."""
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, 3, (size[0] // 8, size[1] // 8))
    label = np.kron(blobs, np.ones((8, 8), int)).astype(dtype)
    img = VALUES[label]
    if channels is not None:
        img = np.repeat(img[:, :, None], channels, axis=2)
    return {
        "img": img,
        "label": label,
        "gt_fields": ["label"],
        "trans_info": [],
        "rng": np.random.default_rng(seed + 100),
    }


def fingerprint(data):
    return [
        (
            key,
            hashlib.sha256(value.tobytes()).hexdigest()
            if isinstance(value, np.ndarray)
            else str(value),
        )
        for key, value in sorted(data.items())
        if key != "rng"
    ]


def test_cases_cover_every_transform():
    classes = {name for name in T.__all__ if inspect.isclass(getattr(T, name))}
    assert {name for name, _, _ in CASES} == classes - {"Compose"}
    assert all(registry.TRANSFORMS[name] is getattr(T, name) for name in classes)


@pytest.mark.parametrize("channels", [None, 1, 3, 5])
@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
def test_image_and_mask_stay_aligned(name, kwargs, kind, channels):
    transform = getattr(T, name)(**kwargs)
    for seed in range(3):
        sample = make_sample(seed, channels)
        out = transform(sample)
        img, label = out["img"], out["label"]
        assert img.ndim == sample["img"].ndim
        assert img.shape[2:] == sample["img"].shape[2:]
        assert img.dtype == np.float32
        assert label.dtype == np.uint8
        assert img.shape[:2] == label.shape
        assert set(np.unique(label)) <= {0, 1, 2, 255}
        if kind == "recoloured":
            np.testing.assert_array_equal(label, sample["label"])
            continue
        planes = img.reshape(*label.shape, -1)
        assert (np.ptp(planes, axis=2) < 1e-3).all()  # all channels take the same way
        valid = label != 255
        seen = np.abs(planes[:, :, :1] - VALUES).argmin(axis=2)
        if kind in ("moved", "repeated"):
            np.testing.assert_array_equal(planes[:, :, 0][valid], VALUES[label[valid]])
            padding = VALUES if kind == "repeated" else {"RandomAffine": 128}.get(name, 127.5)
            assert np.isin(planes[:, :, 0][~valid], padding).all()
        else:
            # Away from the mask's edges, where nothing is interpolated between classes.
            window = np.ones((5, 5), np.uint8)
            inner = cv2.erode(label, window) == cv2.dilate(label, window)
            inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False
            inner &= valid
            assert inner.sum() > 100
            np.testing.assert_array_equal(seen[inner], label[inner])


def test_masks_sit_closer_to_their_images_than_with_opencv_nearest():
    # The reason for functional.nearest_index, in figures.
    sample = make_sample(5, None)
    ours = theirs = 0
    for factor in (0.6, 0.75, 1.25, 1.75):
        out = T.ResizeStepScaling(factor, factor)(sample)
        size = out["label"].shape[::-1]
        seen = np.abs(out["img"][:, :, None] - VALUES).argmin(axis=2)
        ours += (seen != out["label"]).sum()
        theirs += (seen != cv2.resize(sample["label"], size, interpolation=cv2.INTER_NEAREST)).sum()
    assert ours < 0.75 * theirs


@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_label_dtypes_are_kept(name, kwargs, kind, dtype):
    out = getattr(T, name)(**kwargs)(make_sample(dtype=dtype))
    small = getattr(T, name)(**kwargs)(make_sample())
    assert out["label"].dtype == dtype
    np.testing.assert_array_equal(out["label"], small["label"])


@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
def test_sample_is_never_changed(name, kwargs, kind):
    sample = make_sample()
    before = fingerprint(sample)
    out = getattr(T, name)(**kwargs)(sample)
    assert out is not sample
    assert fingerprint(sample) == before


@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
def test_rng_alone_decides(name, kwargs, kind):
    transform = getattr(T, name)(**kwargs)
    before = str(np.random.get_state()), random.getstate()
    first = fingerprint(transform(make_sample()))
    assert fingerprint(transform(make_sample())) == first
    assert (str(np.random.get_state()), random.getstate()) == before
    fixed = kwargs.get("crop_size") == (200, 190) or name.endswith("Flip")
    if name.startswith("Random") and not fixed:
        rngs = [np.random.default_rng(seed) for seed in range(8)]
        others = [fingerprint(transform({**make_sample(), "rng": rng})) for rng in rngs]
        assert any(other != first for other in others)


@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
def test_trans_info(name, kwargs, kind):
    sample = make_sample(size=(96, 128))
    out = getattr(T, name)(**kwargs)({**sample, "trans_info": [("padding", (1, 2))]})
    kinds = EVAL_STYLE.get(name, [])
    assert out["trans_info"][0] == ("padding", (1, 2))
    assert [step[0] for step in out["trans_info"][1:]] == kinds
    if kinds:
        assert out["trans_info"][1][1] == (96, 128)


@pytest.mark.parametrize(("name", "kwargs", "kind"), CASES, ids=IDS)
def test_without_labels_or_rng(name, kwargs, kind):
    out = getattr(T, name)(**kwargs)({"img": make_sample()["img"]})
    assert "label" not in out


def test_padding_of_a_larger_image_names_it():
    with pytest.raises(UserError, match=r"image a\.png is 128x96 .* target_size 100x100"):
        T.Padding((100, 100))({**make_sample(), "im_path": "a.png"})


def test_resize_by_short_does_not_change_its_setting():
    transform = T.ResizeByShort(100, max_size=110)
    assert transform(make_sample())["img"].shape == (82, 109, 3)
    assert transform.short_size == 100
    assert transform({"img": np.zeros((50, 50, 3), np.float32)})["img"].shape == (100, 100, 3)


@pytest.mark.parametrize(
    ("args", "factors"),
    [
        ((0.5, 2.0, 0.25), np.arange(0.5, 2.01, 0.25)),
        ((0.5, 1.0, 0.1), np.arange(0.5, 1.01, 0.1)),  # truncated to 5 steps in floating point
        ((0.5, 1.0, 0.3), [0.5, 1.0]),
        ((0.5, 1.0, 9), [0.5]),
    ],
)
def test_step_scaling_draws_every_step(args, factors):
    transform = T.ResizeStepScaling(*args)
    rng = np.random.default_rng(0)
    img = np.zeros((100, 1), np.float32)
    seen = {transform({"img": img, "rng": rng})["img"].shape[0] for _ in range(200)}
    assert seen == {round(100 * f) for f in factors}


def test_category_max_ratio():
    # Left 90% class 0, right 10% class 1: a 20 x 20 crop is balanced only at the far right.
    label = np.zeros((20, 200), np.uint8)
    label[:, 180:] = 1
    label[:, 190:] = 255
    sample = {"img": np.zeros((20, 200, 1), np.float32), "label": label, "gt_fields": ["label"]}

    def shares(**kwargs):
        transform = T.RandomPaddingCrop((20, 20), **kwargs)
        rng, result = np.random.default_rng(0), []
        for _ in range(100):
            crop = transform({**sample, "rng": rng})["label"]
            counts = np.bincount(crop[crop != 255], minlength=2)
            result.append(counts.max() / counts.sum())
        return np.array(result)

    free = (shares() < 0.75).mean()
    once = (shares(category_max_ratio=0.75, loop_times=1) < 0.75).mean()
    often = shares(category_max_ratio=0.75, loop_times=200)
    assert free < once < 0.5
    assert (often < 0.75).all()  # a fair crop is found in 200 tries but for a chance of 1e-4


def test_category_max_ratio_needs_two_classes():
    sample = make_sample()
    sample["label"] = np.zeros_like(sample["label"])
    out = T.RandomPaddingCrop((32, 32), category_max_ratio=0.75)(sample)
    assert out["label"].shape == (32, 32)  # gives up after loop_times


def test_random_crop_reaches_every_corner():
    transform = T.RandomPaddingCrop((2, 2))
    label = np.arange(9, dtype=np.uint8).reshape(3, 3)
    rng = np.random.default_rng(0)
    data = {"img": np.zeros((3, 3, 1), np.float32), "label": label, "gt_fields": ["label"]}
    assert {int(transform({**data, "rng": rng})["label"][0, 0]) for _ in range(60)} == {0, 1, 3, 4}


def test_probabilities_are_met():
    img = make_sample()["img"][:8, :8]
    for transform in (
        T.RandomHorizontalFlip(0.3),
        T.RandomVerticalFlip(0.3),
        T.RandomNoise(0.3),
        T.RandomBlur(0.3),
    ):
        rng = np.random.default_rng(1)
        hits = sum(transform({"img": img, "rng": rng})["img"] is not img for _ in range(1000))
        assert abs(hits / 1000 - 0.3) < 0.06  # 4 standard deviations


def test_distort_without_colour_keeps_channels_independent_of_rgb():
    settings_ = {f"{n}_prob": 0 for n in ("brightness", "contrast", "sharpness")}
    sample = make_sample(channels=5)
    out = T.RandomDistort(**settings_, hue_prob=1, saturation_prob=1)(sample)
    np.testing.assert_array_equal(out["img"], sample["img"])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize(channels):
    mean, std = [0.1, 0.2, 0.3, 0.4][:channels], [0.5, 0.6, 0.7, 0.8][:channels]
    sample = make_sample(channels=channels)
    out = T.Normalize(mean, std)(sample)["img"]
    np.testing.assert_allclose(out, (sample["img"] / 255.0 - mean) / std, atol=1e-6)
    with pytest.raises(ValueError, match="7 values"):
        T.Normalize([0.5] * 7)(sample)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    case=st.sampled_from([c for c in CASES if c[0] != "Padding"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_any_size(height, width, case, seed):
    rng = np.random.default_rng(seed)
    data = {
        "img": rng.uniform(0, 255, (height, width, 3)).astype(np.float32),
        "label": rng.integers(0, 3, (height, width), dtype=np.uint8),
        "gt_fields": ["label"],
        "rng": rng,
    }
    out = getattr(T, case[0])(**case[1])(data)
    assert out["img"].shape[:2] == out["label"].shape
    assert min(out["label"].shape) >= 1
    assert np.isfinite(out["img"]).all()

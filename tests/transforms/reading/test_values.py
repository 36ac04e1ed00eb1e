# SPDX-License-Identifier: Apache-2.0
"""Images with NaN, infinite or huge values are refused wherever they are read: name and count."""

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.prediction.restore import preprocess
from paddleseg_deeplab.transforms.reading import source, tiff
from paddleseg_deeplab.transforms.reading.files import read_image, read_label
from paddleseg_deeplab.transforms.reading.values import check_input, describe_faults, nodata_mask
from paddleseg_deeplab.utils.errors import UserError

H, W = 20, 30
CROP = {"crop_size": (8, 6)}


def picture(channels=3, dtype=np.float32, faults=()):
    """Numbers in 0..200 with `faults`, (row, column, value), in the first channel."""
    image = np.random.default_rng(0).integers(0, 200, (H, W, channels)).astype(dtype)
    for row, column, value in faults:
        image[row, column, 0] = value
    return image


def write(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        assert cv2.imwrite(str(path), image)
    return str(path)


NAN, INF = float("nan"), float("inf")
BAD = [
    ([(1, 2, NAN)], "1 of {} values are NaN"),
    ([(1, 2, NAN), (1, 3, NAN), (H - 1, W - 1, -INF)], "2 of {} values are NaN, 1 infinite"),
    ([(0, 0, INF)], "1 of {} values are infinite"),
    ([(0, 0, -1e9), (5, 5, 1.5e6)], "2 of {} values are beyond 1e6 in magnitude"),
    ([(0, 0, -3.4028234663852886e38)], "set nodata: -3.4028234663852886e[+]38"),
]


@pytest.mark.parametrize(("faults", "told"), BAD)
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *((name, c) for name in ("a.npy", "a.tiff", "a64.npy", "a64.tiff") for c in (1, 3, 4)),
        ("a.npy", 6),
    ],
)
def test_files(tmp_path, name, channels, faults, told):
    dtype = np.float64 if "64" in name else np.float32
    path = write(tmp_path / name, picture(channels, dtype, faults))
    # Of `read_image`, of a whole sample, and of any part of it.
    for read in (
        lambda: read_image(path, channels),
        lambda: T.Compose([], img_channels=channels)({"img": path}),
        lambda: T.Compose([T.RandomPaddingCrop(**CROP)], img_channels=channels)({"img": path}),
        lambda: source.open_image(path, channels).window(10, 10, (2, 2)),
    ):
        with pytest.raises(UserError) as error:
            read()
        text = str(error.value)
        assert text.startswith(f"Image {path}: ")
        assert "\n" not in text
        assert re.search(told.format(H * W * channels), text), text


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint32, np.int64, ">f4"])
def test_other_types(tmp_path, dtype):
    wide = np.dtype(dtype).kind in "iu"
    fault = (0, 0, 10_000_001) if wide else (0, 0, NAN)
    path = write(tmp_path / "a.npy", picture(3, dtype, [fault]))
    with pytest.raises(UserError, match="beyond 1e6" if wide else "are NaN"):
        read_image(path)
    good = write(tmp_path / "b.npy", picture(3, dtype))
    np.testing.assert_array_equal(read_image(good), picture(3, dtype))


@pytest.mark.parametrize("suffix", ["pfm", "hdr"])
def test_float_formats_that_opencv_brings_to_8_bits(tmp_path, suffix):
    fault = NAN if suffix == "pfm" else 1e9  # what the format can hold
    path = write(tmp_path / f"a.{suffix}", picture(3, np.float32, [(1, 1, fault)]))
    with pytest.raises(UserError, match=r"1 of 1800 values are (NaN|beyond)"):
        read_image(path)
    assert read_image(write(tmp_path / f"b.{suffix}", picture())).shape == (H, W, 3)


def test_limit_is_a_million():
    assert describe_faults(np.float32([[1e6, -1e6]])) == ("", "")
    above = np.nextafter(np.float32(1e6), np.float32(2e6))
    assert describe_faults(np.float32([[above, 0]]))[0].startswith("1 of 2 values are beyond")


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_the_least_whole_number_is_counted(kind):
    """Its magnitude does not fit into its own type."""
    least = int(np.iinfo(kind).min)
    values = np.zeros((4, 5, 3), kind)
    values[0, :, 0] = least
    text, example = describe_faults(values)
    assert text == "5 of 60 values are beyond 1e6 in magnitude"
    assert float(example) == least
    assert nodata_mask(values, float(least)).sum() == 5


def test_arrays_given_to_compose():
    image = picture(3, np.float32, [(3, 3, NAN)])
    for extra, told in (({}, "Image given as an array"), ({"im_path": "x.png"}, "Image x.png")):
        with pytest.raises(UserError, match=f"{told}: 1 of 1800 values are NaN"):
            T.Compose([])({"img": image, **extra})
    with pytest.raises(UserError, match="NaN"):
        preprocess(image, T.Compose([]))


def test_float_tiff_is_read_as_it_is(tmp_path):
    """As .npy is; channels in OpenCV's order, as of every other picture."""
    for channels in (1, 3):
        image = picture(channels) * 1.5 - 20
        got = read_image(write(tmp_path / "a.tiff", image), channels, to_rgb=False)
        np.testing.assert_array_equal(got, image)
    rgb = read_image(write(tmp_path / "a.tiff", picture()))
    np.testing.assert_array_equal(rgb, picture()[..., ::-1])
    with pytest.raises(UserError, match=r"shape \(20, 30, 3\), expected .*1\]"):
        read_image(tmp_path / "a.tiff", 1)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(np.uint8, False), (np.uint16, False), (np.float32, True), (np.float64, True), (int, True)],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_width_of_a_tiff(tmp_path, dtype, channels, wide):
    dtype = np.int32 if dtype is int else dtype
    path = write(tmp_path / "a.tiff", picture(channels, dtype))
    content = Path(path).read_bytes()
    assert tiff.look(content).is_wide == wide
    for cut in range(len(content)):  # a damaged header is no reason to raise
        tiff.look(content[:cut])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_width_in_both_byte_orders_and_in_bigtiff(order, big):
    word, tag = ("Q", "HHQ") if big else ("I", "HHI")
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8))
    )
    for bits in (16, 32):
        body = struct.pack(order + ("Q" if big else "H"), 1)
        body += struct.pack(order + tag, 258, 3, 1) + struct.pack(order + "H", bits).ljust(
            struct.calcsize(word), b"\0"
        )
        assert tiff.look(head + body).is_wide == (bits == 32)


# -- what is not looked at again -------------------------------------------------------------------


def test_a_mapped_file_is_looked_at_once_and_again_when_it_changes(tmp_path, monkeypatch):
    looks = []
    real = source.check_values
    monkeypatch.setattr(source, "check_values", lambda *a: looks.append(a[1]) or real(*a))
    path = write(tmp_path / "a.npy", picture())
    for _ in range(3):
        source.open_image(path).window(0, 0, (4, 4))
    assert looks == [f"Image {path}"]
    write(tmp_path / "a.npy", np.concatenate([picture(), picture(3, np.float32, [(1, 1, NAN)])]))
    for _ in range(2):  # a bad file is never known to be good
        with pytest.raises(UserError, match="NaN"):
            source.open_image(path)


def test_8_and_16_bits_are_not_looked_at():
    class Untouchable(np.ndarray):
        def min(self, *_, **__):
            raise AssertionError("looked at")

    for dtype in (np.uint8, np.uint16, np.int16, np.bool_):
        assert describe_faults(np.zeros((4, 4), dtype).view(Untouchable)) == ("", "")
    with pytest.raises(AssertionError):
        describe_faults(np.zeros((4, 4), np.float32).view(Untouchable))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_counts_equal_a_plain_count(dtype, layout):
    rng = np.random.default_rng(1)
    values = rng.uniform(-2e6, 2e6, (700, 301, 3))  # several blocks
    values[rng.random(values.shape) < 0.9] = 7
    if np.dtype(dtype).kind == "f":
        values[rng.random(values.shape) < 0.01] = NAN
        values[rng.random(values.shape) < 0.01] = INF
    values = values.astype(dtype)
    values = {"C": values, "F": np.asfortranarray(values), "strided": values[::2, ::3]}[layout]
    for mask in (None, rng.random(values.shape[:2]) < 0.3):
        seen = values if mask is None else values[~mask]
        nan, inf = np.isnan(seen).sum(), np.isinf(seen).sum()
        beyond = (np.abs(np.where(np.isfinite(seen), seen, 0).astype(np.float64)) > 1e6).sum()
        parts = [(nan, "NaN"), (inf, "infinite"), (beyond, "beyond 1e6 in magnitude")]
        parts = [f"{count} {what}" for count, what in parts if count]
        first, _, what = parts[0].partition(" ")
        parts[0] = f"{first} of {values.size} values are {what}"
        assert describe_faults(values, mask)[0] == ", ".join(parts)


# -- labels, transforms, datasets ------------------------------------------------------------------


def test_labels_are_whole_numbers(tmp_path):
    with pytest.raises(UserError, match=r"float32.*expected whole numbers"):
        read_label(write(tmp_path / "a.npy", np.full((4, 4), NAN, np.float32)))


OURS = sorted(
    name
    for name, kind in registry.TRANSFORMS.components_dict.items()
    if kind.__module__.startswith("paddleseg_deeplab.") and name != "Compose"
)
TRANSFORMS = {
    "Resize": {"target_size": (20, 24)},
    "Padding": {"target_size": (60, 60)},
    "RandomPaddingCrop": {"crop_size": (20, 24)},
    "ResizeByLong": {"long_size": 30},
    "ResizeByShort": {"short_size": 30},
    "LimitLong": {"max_long": 30},
}


@pytest.mark.parametrize("name", OURS)
def test_our_transforms_keep_finite_values_finite(name):
    """So that a message about such values may blame those of others."""
    kind = registry.TRANSFORMS[name]
    settings = dict(TRANSFORMS.get(name, {}))
    if "prob" in kind.__init__.__code__.co_varnames[: kind.__init__.__code__.co_argcount]:
        settings["prob"] = 1.0
    compose = T.Compose([kind(**settings), T.Normalize()])
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image = rng.choice(np.float32([-1e6, 1e6, 0, 255, 3.3]), (31, 37, 3))
        sample = {"img": image, "label": np.zeros((31, 37), np.uint8), "gt_fields": ["label"]}
        assert np.isfinite(compose({**sample, "rng": rng})["img"]).all()


@pytest.mark.parametrize("make", [
    lambda: T.Normalize(std=[1e-40]),
    lambda: T.Normalize(mean=[1e38], std=[0.1]),
    lambda: T.RandomPaddingCrop((8, 8), im_padding_value=1e39),
])  # fmt: skip
def test_settings_that_make_infinities_are_refused(make):
    with pytest.raises(ValueError, match=r"infinite|im_padding_value"):
        make()


def test_input_of_a_network():
    check_input(np.full((3, 4, 4), 3e38, np.float32), "a.png")
    for value in (NAN, INF, -INF):
        image = np.zeros((3, 4, 4), np.float32)
        image[2, 3, 3] = value
        with pytest.raises(UserError, match=r"a\.png: the network's input is not finite: 1 of 48"):
            check_input(image, "a.png")


class Spoiling:
    """A transform of one's own that divides by zero."""

    effect = "colour"

    def __call__(self, data):
        with np.errstate(all="ignore"):
            return {**data, "img": data["img"] / np.float32(0)}


def make_set(folder, transforms, mode="val", **settings):
    write(folder / "a.png", picture(3, np.uint8))
    write(folder / "a_l.png", np.zeros((H, W), np.uint8))
    (folder / "list.txt").write_text("a.png a_l.png\n")
    return Dataset(
        mode, str(folder), transforms, 2, **{f"{mode}_path": "list.txt"}, **settings
    )  # fmt: skip


def test_a_transform_of_ones_own(tmp_path):
    """In training and evaluation."""
    from paddle import nn

    from paddleseg_deeplab.core import evaluate
    from paddleseg_deeplab.core.training.data.batches import training_batches

    zeros = (picture() == 0).sum()
    told = f"a.png: the network's input is not finite: {zeros} of 1800 values are NaN, "
    train_set = make_set(tmp_path, [Spoiling()], "train")
    with pytest.raises(UserError, match=told):
        next(training_batches(train_set, 1, range(1), seed=0))
    val_set = make_set(tmp_path, [Spoiling()])
    with pytest.raises(UserError, match=told):
        evaluate(nn.Conv2D(3, 2, 1), val_set, print_detail=False, progress=False)

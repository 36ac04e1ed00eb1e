# SPDX-License-Identifier: Apache-2.0
"""The fast ways of the training input give what the plain ones give: a crop before its resize, the
first rows of a PNG, and colour operations in OpenCV."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.kernels import png
from paddleseg_deeplab.transforms import functional as F
from paddleseg_deeplab.transforms import resize_crop
from paddleseg_deeplab.transforms.reading import source
from paddleseg_deeplab.transforms.reading.files import read_image, read_label
from paddleseg_deeplab.utils.errors import UserError

# Grey levels, reasons in the modules: where OpenCV's float32 coordinates put a pixel; and the last
# bits of float32 after up to five operations (an ulp of 255 is 1.5e-5; hue divides and multiplies).
RESIZE_TOLERANCE = 1 / 8
ROUNDING = 5e-3
RESIZES = (
    lambda: T.ResizeStepScaling(0.5, 2.0, 0.25),
    lambda: T.ResizeStepScaling(0.3, 2.5, 0),
    lambda: T.ResizeStepScaling(1, 1),
    lambda: T.ResizeRangeScaling(20, 260),
    None,
)


def make_sample(seed, height, width, channels=3):
    rng = np.random.default_rng(seed)
    img = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    label = rng.integers(0, 3, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)
    return {"img": img, "label": label[:height, :width].astype(np.uint8), "gt_fields": ["label"]}


# -- crop first ----------------------------------------------------------------------------------


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from((1, 3, 5)),
    st.sampled_from(range(len(RESIZES))),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from((1.0, 0.6)),
    st.integers(0, 2**31),
)
@settings(max_examples=120, deadline=None)
def test_crop_first_equals_one_by_one(height, width, channels, kind, crop, ratio, seed):
    sample = make_sample(seed, height, width, channels)
    steps = [T.RandomPaddingCrop(crop, category_max_ratio=ratio, loop_times=3)]
    if RESIZES[kind] is not None:
        steps.insert(0, RESIZES[kind]())
    compose = T.Compose([*steps, T.RandomVerticalFlip(0.5)], img_channels=channels)
    assert isinstance(compose._steps()[0], resize_crop.ResizeCrop)
    fast = compose({**sample, "rng": np.random.default_rng(seed)})
    plain = compose.apply(compose.read({**sample, "rng": np.random.default_rng(seed)}))
    np.testing.assert_array_equal(fast["label"], plain["label"])
    assert fast["label"].dtype == plain["label"].dtype
    np.testing.assert_allclose(fast["img"], plain["img"], rtol=0, atol=RESIZE_TOLERANCE)
    assert fast["rng"].random() == plain["rng"].random()


@pytest.mark.parametrize("step", range(7))
def test_crop_first_on_a_large_checkerboard(step):
    """The hardest edges at the largest coordinates, at every scale of the Cityscapes recipe."""
    img = (np.indices((256, 4096)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    factor = 0.5 + 0.25 * step
    compose = T.Compose(
        [T.ResizeStepScaling(factor, factor), T.RandomPaddingCrop((512, 64))], img_channels=1
    )
    for seed in range(4):
        given_ = {"img": img, "rng": np.random.default_rng(seed)}
        fast = compose(given_)["img"]
        given_ = {"img": img, "rng": np.random.default_rng(seed)}
        plain = compose.apply(compose.read(given_))["img"]
        np.testing.assert_allclose(fast, plain, rtol=0, atol=RESIZE_TOLERANCE)


@pytest.mark.parametrize(
    ("old", "new", "start", "length", "expected"),
    [
        (1024, 2048, 600, 512, (299, 258, 516, 2)),  # a pixel more on either side
        (1024, 2048, 0, 512, (0, 257, 514, 0)),
        (2048, 1536, 300, 1024, (400, 1368, 1026, 0)),  # four pixels become three
        (100, 100, 10, 20, (10, 21, 21, 0)),
        (683, 854, 300, 200, (0, 683, 854, 300)),  # no common divisor
    ],
)
def test_resize_window(old, new, start, length, expected):
    assert F.resize_window(old, new, start, length) == expected


class _Seen(source.ArraySource):
    def window(self, top, left, size):
        self.asked = (top, left, *size)
        return super().window(top, left, size)


def test_only_the_window_is_made():
    img = _Seen(np.zeros((1024, 2048, 3), np.uint8))
    data = {"img": img, "rng": np.random.default_rng(1), "gt_fields": []}
    step = resize_crop.ResizeCrop(T.ResizeStepScaling(2, 2), T.RandomPaddingCrop((1024, 512)))
    out = step(data)
    assert out["img"].shape == (512, 1024, 3)
    assert img.asked[2] <= 258
    assert img.asked[3] <= 514


class _Crop(T.RandomPaddingCrop):
    def __call__(self, data):
        return super().__call__(data)


class _Named(T.RandomPaddingCrop):
    pass


def test_what_is_matched():
    resize, crop = T.ResizeStepScaling(), T.RandomPaddingCrop((8, 8))
    named, last = _Named((8, 8)), T.Normalize()
    for listed, pair in (
        ([resize, crop, last], (resize, crop)),
        ([crop, last], (None, crop)),
        ([named, last], (None, named)),
    ):
        first, *rest = resize_crop.with_resize_crop(listed)
        assert (first.resize, first.crop) == pair
        assert rest == [last]
    for others in ([], [resize], [_Crop((8, 8))], [T.Normalize(), crop], [resize, resize, crop]):
        assert resize_crop.with_resize_crop(others) == others


def test_the_steps_are_chosen_once_and_anew_when_the_list_changes():
    resize, crop = T.ResizeStepScaling(2, 2), T.RandomPaddingCrop((8, 8))
    compose = T.Compose([resize, crop])
    first = compose._steps()
    assert compose._steps() is first
    assert len(first) == 1

    def shape():
        return compose(make_sample(0, 20, 30))["img"].shape

    assert shape() == (3, 8, 8)
    compose.transforms.append(T.Padding((9, 8)))
    assert shape() == (3, 8, 9)
    compose.transforms[1] = T.RandomPaddingCrop((5, 4))
    compose.transforms.pop()
    assert shape() == (3, 4, 5)
    compose.transforms.insert(1, lambda data: {**data, "img": data["img"][:2], "gt_fields": []})
    compose.transforms.pop()
    assert shape() == (3, 2, 60)
    compose.transforms = [T.Resize((7, 6))]
    assert shape() == (3, 6, 7)
    compose.transforms = []
    assert shape() == (3, 20, 30)
    compose.transforms = [resize, crop]
    assert shape() == (3, 8, 8)


class _Minimal(T.Compose):
    """With a constructor of its own, as PaddleSeg's users may write it."""

    def __init__(self, transforms):
        self.transforms, self.to_rgb, self.img_channels = transforms, True, 3


def test_a_compose_with_a_constructor_of_its_own():
    compose = _Minimal([T.ResizeStepScaling(2, 2), T.RandomPaddingCrop((8, 8))])
    assert compose(make_sample(0, 20, 30))["img"].shape == (3, 8, 8)
    compose.transforms = []
    assert compose(make_sample(0, 20, 30))["img"].shape == (3, 20, 30)


def test_custom_transforms_get_ordinary_arrays():
    seen = []

    def look(data):
        seen.append((type(data["img"]), data["img"].dtype, data["img"].shape))
        return {**data, "img": data["img"] + 1}

    first = [T.ResizeStepScaling(2, 2), T.RandomPaddingCrop((32, 16)), T.RandomHorizontalFlip(1)]
    for steps in (
        [look, *first],
        [first[0], look, *first[1:]],
        [*first[:2], look, first[2]],
        first,
    ):
        T.Compose([*steps, look, T.Normalize(), look])(make_sample(0, 20, 30))
    assert {each[:2] for each in seen} == {(np.ndarray, np.dtype(np.float32))}
    assert [each[2] for each in seen[:3]] == [(20, 30, 3), (16, 32, 3), (16, 32, 3)]


def test_errors_name_the_transform_and_the_sample_stays(monkeypatch):
    sample = make_sample(0, 20, 30)
    before = sample["img"].copy()
    with pytest.raises(UserError, match="RandomPaddingCrop: a padding value has 2 numbers"):
        T.Compose([T.RandomPaddingCrop((64, 64), im_padding_value=(1, 2))])(sample)
    T.Compose([T.ResizeStepScaling(1, 1), T.RandomPaddingCrop((30, 20)), T.RandomDistort()])(sample)
    np.testing.assert_array_equal(sample["img"], before)

    def draw(*_):
        raise F.Misfit("no size")

    monkeypatch.setattr(T.ResizeStepScaling, "draw", draw)
    with pytest.raises(UserError, match="ResizeStepScaling: no size"):
        T.Compose([T.ResizeStepScaling(), T.RandomPaddingCrop((30, 20))])(sample)


# -- PNG -----------------------------------------------------------------------------------------


def encode(array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", **options)
    return stream.getvalue()


def decode(content, flags=cv2.IMREAD_UNCHANGED):
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def picture(height=90, width=70, channels=3):
    return make_sample(0, height, width, channels)["img"]


def png_files():
    grey = picture(channels=1)[:, :, 0]
    smooth = (np.indices((90, 70)).sum(0)).astype(np.uint8)  # gets other row filters
    yield "RGB", encode(picture())
    yield "smooth", encode(np.stack([smooth] * 3, 2))
    yield "grey", encode(grey)
    yield "RGBA", encode(picture(channels=4))
    yield "16 bit", encode(grey.astype(np.uint16) * 200)
    yield "1 bit", encode(grey > 100)
    palette = Image.fromarray(grey % 7)
    palette.putpalette(list(range(21)))
    stream = io.BytesIO()
    palette.save(stream, format="PNG", bits=4)
    yield "palette of 4 bits", stream.getvalue()
    content = encode(picture())
    yield "text", content[:33] + chunk(b"tEXt", b"Title\0a") + content[33:]
    big = encode(np.zeros((200, 1200, 3), np.uint8))  # several stored blocks
    yield "large", big


@pytest.mark.parametrize(
    ("name", "content"), list(png_files()), ids=lambda v: v if type(v) is str else ""
)
@pytest.mark.parametrize("decompressor", [None, zlib])
def test_first_rows_of_a_png(name, content, decompressor, monkeypatch):
    if decompressor is not None:
        monkeypatch.setattr(png, "_zlib", decompressor)
    file = png.parse(content)
    whole = decode(content)
    assert file.size == whole.shape[:2]
    for rows in (1, 40, file.size[0]):
        np.testing.assert_array_equal(decode(file.first_rows(rows)), whole[:rows])


def test_what_is_left_to_the_decoder():
    content = encode(picture())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    interlaced = bytearray(content)
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    exif = content[:33] + chunk(b"eXIf", b"MM\0*") + content[33:]
    raw = content[:33] + chunk(b"tEXt", b"Raw profile type exif\0") + content[33:]
    late = content[:-12] + chunk(b"eXIf", b"MM\0*") + content[-12:]
    wrong = [bytes(flipped), bytes(interlaced), exif, raw, late, content[:-12], content[:-3]]
    for each in [*wrong, b"", content[:20], b"\xff\xd8" + content, content[:33] + content[-12:]]:
        assert png.parse(each) is None
    short = content[:33] + chunk(b"IDAT", zlib.compress(bytes(500))) + content[-12:]
    torn = content[:33] + chunk(b"IDAT", b"not a stream") + content[-12:]
    assert png.parse(short).first_rows(1) is not None
    assert png.parse(short).first_rows(90) is None
    assert png.parse(torn).first_rows(1) is None


@pytest.mark.parametrize("decompressor", [None, zlib])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_of_files(tmp_path, kind, channels, decompressor, monkeypatch):
    if decompressor is not None:
        monkeypatch.setattr(png, "_zlib", decompressor)
    path, img = tmp_path / f"image.{kind}", picture()
    if kind == "npy":
        np.save(path, img[:, :, :channels])
    else:
        Image.fromarray(img).save(path)
    for to_rgb in (True, False):
        whole = read_image(path, channels, to_rgb)
        opened = source.open_image(path, channels, to_rgb)
        assert opened.shape == whole.shape == (90, 70, channels)
        for top, left, size in ((0, 0, (90, 70)), (5, 7, (30, 20)), (89, 69, (1, 1))):
            window = opened.window(top, left, size)
            assert type(window) is np.ndarray
            assert window.dtype == np.float32
            assert window.flags.writeable
            expected = whole[top : top + size[0], left : left + size[1]]
            np.testing.assert_array_equal(window, expected)


def test_a_damaged_png_is_named_though_its_last_rows_are_not_used(tmp_path):
    path, content = tmp_path / "image.png", bytearray(encode(picture()))
    compose = T.Compose([T.ResizeStepScaling(1, 1), T.RandomPaddingCrop((10, 10))])
    for damage in (len(content) - 40, 60):
        bad = bytearray(content)
        bad[damage] ^= 255
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"image\.png"):
            compose({"img": str(path), "rng": np.random.default_rng(0)})
    path.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"image\.png"):
        compose({"img": str(path)})
    torn = content[:33] + chunk(b"IDAT", zlib.compress(bytes(5000))[:-40]) + content[-12:]
    path.write_bytes(torn)
    with pytest.raises(UserError, match=r"image\.png"):
        compose({"img": str(path), "rng": np.random.default_rng(0)})


def test_grey_labels_as_pillow_reads_them(tmp_path, monkeypatch):
    grey = picture(channels=1)[:, :, 0] % 5
    path = tmp_path / "label.png"
    path.write_bytes(encode(grey))
    np.testing.assert_array_equal(read_label(path), grey)
    path.write_bytes(encode(grey, transparency=3))
    np.testing.assert_array_equal(read_label(path), grey)
    monkeypatch.setenv("PADDLESEG_DEEPLAB_MAX_PIXELS", "1000")
    with pytest.raises(UserError, match="above the limit of 1000"):
        read_label(path)


# -- colours -------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from((1, 3, 4)), st.integers(1, 80), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_compose_equals_the_functions_one_by_one(seed, channels, height, width):
    img = make_sample(seed, height, width, channels)["img"]
    probabilities = dict.fromkeys(
        [f"{n}_prob" for n in ("brightness", "contrast", "saturation", "hue", "sharpness")], 0.7
    )
    distort = T.RandomDistort(**probabilities)
    steps = [T.RandomHorizontalFlip(), distort, T.Normalize([0.4], [0.3])]
    compose = T.Compose(steps, img_channels=channels, to_rgb=False)
    rng = np.random.default_rng(seed)
    expected = img.astype(np.float32)
    if rng.random() < 0.5:
        expected = expected[:, ::-1]
    names = ["brightness", "contrast", "sharpness", "saturation", "hue"]
    for name in rng.permutation(names[: 5 if channels == 3 else 3]):
        if rng.random() < 0.7:
            extent = 18 if name == "hue" else 0.5
            amount = rng.uniform(-extent, extent)
            amount = amount if name == "hue" else 1 + amount
            expected = getattr(F, name)(np.ascontiguousarray(expected), amount)
    expected = F.normalize(expected, [0.4], [0.3]).transpose(2, 0, 1)
    ours = np.random.default_rng(seed)
    out = compose({"img": img, "rng": ours})["img"]
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, expected, rtol=0, atol=ROUNDING / 255 / 0.3)
    assert ours.random() == rng.random()


def test_every_turn_of_the_hue_and_the_mean_in_closed_form():
    red = np.full((4, 5, 3), (200, 0, 0), np.float32)
    for turns in range(-512, 513, 16):
        angle = turns * 360 / 256 % 360
        sector, share = int(angle // 60) % 6, angle % 60 / 60
        rise, fall = 200 * share, 200 * (1 - share)
        table = ((200, rise, 0), (fall, 200, 0), (0, 200, rise), (0, fall, 200), (rise, 0, 200))
        expected = (*table, (200, 0, fall))[sector]
        np.testing.assert_allclose(F.hue(red, turns)[0, 0], expected, atol=ROUNDING)
    noise = make_sample(1, 50, 60)["img"].astype(np.float32)
    mean = (noise.astype(np.float64).mean((0, 1)) * (0.299, 0.587, 0.114)).sum()
    assert F.mean_grey(noise) == pytest.approx(mean, rel=1e-6)


def test_a_subclass_s_own_call_is_used():
    class Own(T.Normalize):
        def __call__(self, data):
            return {**data, "img": data["img"] * 0 + 7}

    out = T.Compose([T.RandomDistort(), Own()])(make_sample(0, 5, 6))
    np.testing.assert_array_equal(out["img"], np.full((3, 5, 6), 7, np.float32))


@pytest.mark.parametrize("array", [np.ones((5, 6), np.float32), np.ones((5, 6, 3), np.uint8)])
def test_images_that_custom_transforms_made_are_still_taken(array):
    compose = T.Compose([lambda data: {**data, "img": array}, T.Normalize()])
    out = compose(make_sample(0, 5, 6))["img"]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, np.full(out.shape, (1 / 255 - 0.5) / 0.5), rtol=1e-5)


# -- labels of a dataset -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings_", [{}, {"label_map": {0: 1, 1: 0, 2: 255}}, {"ignore_index": 7}]
)
def test_labels_by_look_up(tmp_path, settings_):
    void = settings_.get("ignore_index", 2 if settings_.get("label_map") else 255)
    label = np.array([[0, 1, void], [1, 1, 0]], np.uint8)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    (tmp_path / "list.txt").write_text("image.png label.png\n", encoding="utf-8")
    data = Dataset(
        "train", str(tmp_path), [], 2, train_path=str(tmp_path / "list.txt"), **settings_
    )
    swapped = [[1, 0, 255], [0, 0, 1]]
    plain = [[0, 1, 255], [1, 1, 0]]
    expected = swapped if settings_.get("label_map") else plain
    np.testing.assert_array_equal(data.load_label(0), np.array(expected, np.uint8))
    for value in (3, 254):
        label[1, 1] = value
        Image.fromarray(label).save(tmp_path / "label.png")
        with pytest.raises(UserError, match=f": {value}"):
            data.load_label(0)

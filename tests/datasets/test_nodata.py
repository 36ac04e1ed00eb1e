# SPDX-License-Identifier: Apache-2.0
"""Pixels without data: the same as 0 in the image and void in the label, prepared by hand."""

import math

import cv2
import numpy as np
import pytest
import yaml

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab import datasets, registry
from paddleseg_deeplab.datasets import Dataset, class_pixel_counts
from paddleseg_deeplab.datasets.label_counts import label_counts
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.prediction.restore import prepare
from paddleseg_deeplab.tools.check_dataset.check import check_datasets, quick_check
from paddleseg_deeplab.tools.check_dataset.report import as_dict, as_markdown
from paddleseg_deeplab.transforms.reading.files import read_image
from paddleseg_deeplab.transforms.reading.values import mark_void, nodata_mask, parse_nodata
from paddleseg_deeplab.utils.errors import UserError

H, W = 40, 50
NAN = float("nan")
CROPS = {
    "plain": [T.RandomPaddingCrop((16, 12))],
    "by the label": [T.RandomPaddingCrop((16, 12), category_max_ratio=0.6)],
    "resized": [T.ResizeStepScaling(0.5, 2, 0.25), T.RandomPaddingCrop((16, 12))],
    "resized by the label": [
        T.ResizeStepScaling(1, 1),
        T.RandomPaddingCrop((16, 12), category_max_ratio=0.6),
    ],
    "whole": [T.RandomHorizontalFlip()],
    "none": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "home"))


def write(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        assert cv2.imwrite(str(path), image)


def scene(dtype=np.float32, value=-9999):
    """(image with pixels without data, its mask, label 0..2)."""
    rng = np.random.default_rng(4)
    image = rng.integers(1, 200, (H, W, 3)).astype(dtype)
    label = rng.integers(0, 3, (H // 8 + 1, W // 8 + 1)).repeat(8, 0).repeat(8, 1)[:H, :W]
    mask = np.zeros((H, W), bool)
    mask[5:25, 8:30] = True  # large, so that a crop chosen by the label differs
    mask[39, 49] = True
    image[mask] = value
    image[5, 8, 1:] = 7  # one channel is enough
    return image, mask, label.astype(np.uint8)


def make_set(folder, name, image, label, transforms, mode="train", **settings):
    folder.mkdir(exist_ok=True)
    write(folder / name, image)
    write(folder / "label.png", label)
    (folder / "list.txt").write_text(f"{name} label.png\n")
    lists = {f"{mode}_path": "list.txt"}
    return Dataset(mode, str(folder), list(transforms), 3, **lists, **settings)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [
        ("a.npy", np.float32, NAN),
        ("a.npy", np.float64, -9999.0),
        ("a.npy", np.int32, -9999),
        ("a.tiff", np.float32, NAN),
        ("a.tiff", np.float32, -3.4028234663852886e38),
        ("a.tiff", np.float32, -math.inf),
        ("a.png", np.uint8, 0),
        ("a.bmp", np.uint8, 255),
    ],
)
def test_samples_equal_those_prepared_by_hand(tmp_path, name, dtype, value, crop):
    image, mask, label = scene(dtype, value)
    got = make_set(tmp_path / "a", name, image, label, CROPS[crop], nodata=value)
    by_hand = np.where(mask[..., None], 0, image).astype(dtype)
    void = np.where(mask, 255, label).astype(np.uint8)
    expected = make_set(tmp_path / "b", name, by_hand, void, CROPS[crop])
    for epoch in range(8):
        one, other = got[0, epoch], expected[0, epoch]
        np.testing.assert_array_equal(one["img"], other["img"])
        np.testing.assert_array_equal(one["label"], other["label"])
    np.testing.assert_array_equal(got.load_image(0), expected.load_image(0))
    np.testing.assert_array_equal(got.load_label(0), expected.load_label(0))
    assert (got.load_label(0) == void).all()


def test_evaluation_does_not_count_them(tmp_path):
    from paddle import nn

    from paddleseg_deeplab.core import evaluate

    class Network(nn.Layer):
        def forward(self, x):
            return [x]

    image, mask, label = scene()
    # 1 at ignore_index: the mark is the set's own value of void there.
    for ignore in (255, 1):
        dataset = make_set(
            *(tmp_path / "a", "a.npy", image, label, [], "val"), nodata=-9999, ignore_index=ignore
        )
        sample = dataset[0]
        assert (sample["label"][mask] == ignore).all()
        result = evaluate(Network(), dataset, print_detail=False, progress=False)
        counted = ~mask & (label != ignore)
        assert result.confusion.matrix.sum() == counted.sum()


def test_counts_of_classes(tmp_path):
    image, mask, label = scene()
    dataset = make_set(tmp_path / "a", "a.npy", image, label, [], nodata=-9999)
    expected = [np.count_nonzero((label == k) & ~mask) for k in range(3)]
    assert class_pixel_counts(dataset).tolist() == expected
    assert label_counts(dataset).tolist() == [expected]
    assert label_counts(dataset).tolist() == [expected]  # as it is remembered
    plain = make_set(tmp_path / "a", "a.npy", image, label, [])
    assert label_counts(plain).sum() == H * W
    # Another image under the old name: what was remembered does not hold.
    image[:10] = -9999
    write(tmp_path / "a" / "a.npy", np.concatenate([image, image[:1]])[:H])
    (tmp_path / "a" / "a.npy").touch()
    mask[:10] = True
    assert label_counts(dataset).sum() == (~mask).sum()


def test_without_nodata_no_image_is_read_for_the_counts(tmp_path):
    image, _, label = scene()
    dataset = make_set(tmp_path / "a", "a.npy", image, label, [])
    (tmp_path / "a" / "a.npy").write_bytes(b"")
    assert class_pixel_counts(dataset).sum() == H * W


def test_sizes_that_differ(tmp_path):
    image, _, label = scene()
    dataset = make_set(tmp_path / "a", "a.npy", image, label[:-1], [], nodata=-9999)
    for read in (lambda: dataset[0], lambda: dataset.load_label(0)):
        with pytest.raises(UserError, match=r"a\.npy"):
            read()


# -- the value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((None, None), (0, 0.0), (-9999, -9999.0), (2.5, 2.5), (np.float32(1), 1.0)),
        *((NAN, NAN), ("nan", NAN), ("NaN", NAN), ("inf", math.inf), ("-inf", -math.inf)),
    ],
)
def test_values(given, expected):
    np.testing.assert_equal(parse_nodata("Dataset", given), expected)


@pytest.mark.parametrize("given", ["none", "", "-9999x", True, [0], {}, 10**400, 1j])
def test_what_is_no_value(given, tmp_path):
    with pytest.raises(UserError, match="nodata must be a number"):
        parse_nodata("Dataset", given)
    with pytest.raises(UserError, match="Dataset: nodata must be a number"):
        make_set(tmp_path / "a", "a.npy", *scene()[::2], [], nodata=given)


@pytest.mark.parametrize(
    ("dtype", "nodata", "value", "is_marked"),
    [
        (np.uint8, 0.0, 0, True),
        (np.uint8, 255.0, 255, True),
        (np.uint8, -1.0, 255, False),
        (np.uint8, 256.0, 0, False),
        (np.uint8, 0.5, 0, False),
        (np.uint8, NAN, 0, False),
        (np.bool_, 1.0, 1, True),
        (np.int64, -9999.0, -9999, True),
        (np.float16, -9999.0, -9999, True),  # rounded to -10000 in both
        (np.float16, -1e9, -np.inf, False),
        (np.float16, -math.inf, -np.inf, True),
        (np.float32, 0.1, 0.1, True),
        (np.float32, 0.0, -0.0, True),
        (np.float64, 0.1, np.float32(0.1), False),
        (np.float32, math.inf, np.inf, True),
        (np.float32, math.inf, -np.inf, False),
    ],
)
def test_comparison_in_the_files_own_type(dtype, nodata, value, is_marked):
    image = np.full((3, 4, 2), 1 if value != 1 else 0, dtype)
    image[1, 2, 1] = value
    for one in (image, image[..., 1]):
        mask = nodata_mask(one, nodata)
        if not is_marked:
            assert mask is None
            continue
        assert np.argwhere(mask).tolist() == [[1, 2]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_compared_before_they_become_8(tmp_path, suffix, channels):
    """65535 and 65300 are both 255 then."""
    image = np.full((4, 5, channels), 65300, np.uint16)
    image[1, 2, 0] = 65535
    write(tmp_path / f"a.{suffix}", image)
    got = read_image(tmp_path / f"a.{suffix}", channels, nodata=65535)
    assert np.argwhere((got == 0).all(axis=2)).tolist() == [[1, 2]]
    # The others are what they are without a mark.
    plain = read_image(tmp_path / f"a.{suffix}", channels)
    plain[1, 2] = 0
    np.testing.assert_array_equal(got, plain)


def test_arrays_given_to_compose():
    image, mask, label = scene()
    sample = {"img": image, "label": label, "gt_fields": ["label"]}
    before = {key: np.copy(sample[key]) for key in ("img", "label")}
    out = T.Compose([], nodata="-inf")(sample)
    assert "nodata" not in out
    out = T.Compose([], nodata=-9999)(sample)
    assert (out["img"][:, mask] == 0).all()
    assert (out["label"] == np.where(mask, 255, label)).all()
    np.testing.assert_array_equal(out["nodata"], mask)
    for key, value in before.items():  # the caller's own arrays stay as they are
        np.testing.assert_array_equal(sample[key], value)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.int64])
def test_labels_of_any_type(dtype):
    marked = mark_void(np.ones((2, 2), dtype), np.array([[True, False], [False, False]]))
    assert marked.tolist() == [[255, 1], [1, 1]]


# -- datasets, check, deployment -------------------------------------------------------------------


def test_every_dataset_of_files_takes_it():
    import inspect

    kinds = [k for k in registry.DATASETS.components_dict.values() if k is not datasets.Shapes]
    ours = [k for k in kinds if k.__module__.startswith("paddleseg_deeplab.")]
    assert len(ours) >= 9
    for kind in ours:
        assert inspect.signature(kind).parameters["nodata"].default is None, kind


@pytest.mark.parametrize(
    ("train", "val", "warns"),
    [
        *((-9999, -9999.0, False), (NAN, "nan", False), (None, None, False)),
        *((-9999, None, True), (None, NAN, True), (-9999, -32768, True)),
    ],
)
def test_config_of_both_sets(tmp_path, caplog, train, val, warns):
    """Sets that differ are told: else val's -9999 would be data without a word."""
    from paddleseg_deeplab.cvlibs import Config, SegBuilder

    config = {}
    for mode, nodata in (("train", train), ("val", val)):
        config[f"{mode}_dataset"] = {"type": "Dataset", "dataset_root": ".", "num_classes": 3}
        config[f"{mode}_dataset"].update({f"{mode}_path": "x", "transforms": [], "mode": mode})
        if nodata is not None:
            config[f"{mode}_dataset"]["nodata"] = nodata
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump(config))
    SegBuilder(Config(str(path)))
    assert ("nodata differs: train_dataset" in caplog.text) == warns
    with pytest.raises(UserError, match=r"c\.yml: val_dataset: nodata must be a number.*'many'"):
        SegBuilder(Config(str(path), opts=["val_dataset.nodata=many"]))
    with pytest.raises(UserError, match=r"c\.yml: val_dataset\.no_data: .*'nodata'"):
        SegBuilder(Config(str(path), opts=["val_dataset.no_data=1"]))


def test_a_compose_of_its_own_follows_the_dataset(tmp_path):
    image, mask, label = scene()
    compose = T.Compose([])
    parts = (tmp_path / "a", "a.npy", image, label)
    dataset = make_set(*parts, [], nodata=-9999)
    dataset = Dataset("train", str(tmp_path / "a"), compose, 3, train_path="list.txt", nodata=-9999)
    assert (dataset[0]["label"][mask] == 255).all()
    assert compose.nodata is None  # it may serve another set
    marked = T.Compose([], nodata=-9999)
    dataset = Dataset("train", str(tmp_path / "a"), marked, 3, train_path="list.txt")
    assert dataset.nodata == -9999
    assert (dataset.load_label(0)[mask] == 255).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_check_counts_them(tmp_path, workers):
    image, mask, label = scene(value=NAN)
    dataset = make_set(tmp_path / "a", "a.npy", image, label, [], nodata=NAN)
    check = check_datasets({"train": dataset}, num_workers=workers)
    assert not check.errors
    one = check.sets["train"]
    assert one.nodata_pixels == mask.sum() == one.void
    assert one.counts.tolist() == [np.count_nonzero((label == k) & ~mask) for k in range(3)]
    assert as_dict(check, "c.yml")["sets"]["train"]["nodata_pixels"] == mask.sum()
    assert f"{mask.sum()} pixels have no data (nodata: nan)" in as_markdown(check, "c.yml")
    quick_check({"train_dataset": dataset}, "c.yml")


@pytest.mark.parametrize("name", ["a.npy", "a.tiff"])
def test_check_finds_the_values(tmp_path, name):
    image, _, label = scene(value=NAN)
    dataset = make_set(tmp_path / "a", name, image, label, [])
    found = {f.kind: f for f in check_datasets({"train": dataset}, num_workers=0).findings}
    values = found["image_values"]
    bad = np.isnan(image).sum()
    assert (values.level, values.count) == ("error", 1)
    assert values.files[0][1] == f"{bad} of {image.size} values are NaN"
    assert values.paste == ["nodata: .nan"]
    with pytest.raises(UserError, match=rf"a\.(npy|tiff) \({bad} of .*nodata: \.nan"):
        quick_check({"train_dataset": dataset}, "c.yml")
    # With another value set, the advice is no longer to set one.
    other = make_set(tmp_path / "a", name, image, label, [], nodata=-1)
    found = {f.kind: f for f in check_datasets({"train": other}, num_workers=0).findings}
    assert found["image_values"].paste == []


def test_prepared_for_prediction(tmp_path):
    image, mask, _ = scene()
    write(tmp_path / "a.npy", image)
    out = prepare(str(tmp_path / "a.npy"), T.Compose([T.Resize((20, 20))], nodata=-9999))
    np.testing.assert_array_equal(out["nodata"], mask)
    assert (out["original"][mask] == 0).all()
    assert out["img"].shape == (3, 20, 20)
    assert prepare(image[:3], T.Compose([], nodata=-9999))["nodata"] is None


@pytest.mark.parametrize("nodata", [None, -9999.0, NAN, -math.inf, -3.4028234663852886e38])
def test_deploy_yaml_keeps_it(tmp_path, nodata):
    for name in ("model.onnx",):
        (tmp_path / name).write_bytes(b"")
    info = deploy_yaml.DeployInfo("onnx", [None, 3, None, None], nodata=nodata)
    path = tmp_path / deploy_yaml.FILE_NAME
    deploy_yaml.write(info, str(path))
    assert ("nodata" in path.read_text()) == (nodata is not None)
    np.testing.assert_equal(deploy_yaml.read(str(path)).nodata, nodata)
    content = yaml.safe_load(path.read_text())
    assert "nodata" not in content["Deploy"]  # PaddleSeg's section
    content["DeepLab"]["nodata"] = "many"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"deploy\.yaml: DeepLab: nodata must be a number"):
        deploy_yaml.read(str(path))

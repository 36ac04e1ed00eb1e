# SPDX-License-Identifier: Apache-2.0
"""uint8 pictures into an exported network: what may go in, how it is fed, what is refused."""

from dataclasses import replace

import cv2
import numpy as np
import paddle
import pytest
import yaml
from exported_folder import FREE
from paddle import nn
from PIL import Image

from paddleseg_deeplab.deploy import deploy_yaml, graph_input, inferer
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.export import PictureInput
from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils.errors import UserError

NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
VALUES = {key: NORMALIZE[key] for key in ("mean", "std")}
RESIZE = {"type": "Resize", "target_size": [48, 40]}
PADDING = {"type": "Padding", "target_size": [64, 64], "im_padding_value": 127.5}
PICTURE = np.random.default_rng(0).integers(0, 256, (37, 41, 3), np.uint8)


def info_of(**facts):
    return DeployInfo("legacy", FREE, **{"folder": "f", "normalize": VALUES, **facts})


@pytest.mark.parametrize(
    ("items", "kept"),
    [([NORMALIZE], []), ([RESIZE, NORMALIZE], [RESIZE]), ([PADDING, NORMALIZE], [PADDING])],
)
def test_what_goes_in_and_what_stays_outside(items, kept):
    assert graph_input.split(items, "val_dataset.transforms") == (kept, VALUES)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has to be the last step of export.transforms, which has: nothing"),
        ([RESIZE], "which has: Resize"),
        ([NORMALIZE, PADDING], "which has: Normalize, Padding"),
        ([NORMALIZE, NORMALIZE], r"export.transforms.0: Normalize can neither"),
        ([{"type": "RandomDistort"}, NORMALIZE], r"export.transforms.0: RandomDistort can neither"),
        ([{"type": "RandomHorizontalFlip"}, NORMALIZE], "RandomHorizontalFlip can neither"),
        ([{**RESIZE, "interp": "RANDOM"}, NORMALIZE], "Resize can neither"),
        ([{"type": "Compose", "transforms": [NORMALIZE]}], "which has: Compose"),
    ],
)
def test_other_steps_are_refused_by_name(items, message):
    with pytest.raises(UserError, match=message):
        graph_input.split(items, "export.transforms")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_in_give_the_numbers_that_training_saw(channels):
    """Bit for bit: one multiplication and one addition in float32 on both sides."""
    values = {key: [VALUES[key][0]] * channels for key in VALUES}
    picture = np.random.default_rng(channels).integers(0, 256, (19, 23, channels), np.uint8)
    compose = Compose([Normalize(**values)], img_channels=channels, to_rgb=False)
    expected = restore.prepare(picture, compose)["img"][None]
    info = info_of(normalize=values, img_channels=channels)
    batch = picture.transpose(2, 0, 1)[None].astype(np.float32)
    np.testing.assert_array_equal(graph_input.as_trained(info, batch), expected)
    fed = graph_input.fed(info, batch)
    assert fed.dtype == np.uint8
    np.testing.assert_array_equal(fed, picture[None])
    layer = PictureInput(nn.Identity(), channels, values)
    np.testing.assert_array_equal(layer(paddle.to_tensor(fed)).numpy(), expected)


def test_the_usual_input_stays_as_it_is():
    batch = np.random.default_rng(0).standard_normal((2, 3, 5, 7), np.float32)
    info = info_of(normalize=None)
    assert graph_input.fed(info, batch) is graph_input.as_trained(info, batch) is batch


@pytest.mark.parametrize("shape", [FREE, [2, 3, 48, 64]])
def test_deploy_yaml_says_type_and_order(shape, tmp_path):
    info = replace(info_of(folder=str(tmp_path)), input_shape=shape)
    for name in (info.model, info.params):
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "deploy.yaml"
    deploy_yaml.write(info, str(path))
    content = yaml.safe_load(path.read_text())
    n, c, h, w = shape
    assert content["Deploy"]["input_shape"] == [n, h, w, c]
    ours = content["DeepLab"]
    assert (ours["input_dtype"], ours["input_layout"]) == ("uint8", "NHWC")
    assert ours["normalize"] == VALUES
    read = deploy_yaml.read(path)
    assert (read.input_shape, read.normalize) == (shape, VALUES)
    for key, value in [
        ("input_layout", "NCHW"),
        ("input_dtype", "float32"),
        ("input_dtype", "float16"),
        ("normalize", None),
        ("normalize", {"mean": [0.5]}),
        ("normalize", {"mean": [0.5], "std": ["x"]}),
        ("normalize", {"mean": [0.5], "std": [0]}),
    ]:
        path.write_text(yaml.safe_dump({**content, "DeepLab": {**ours, key: value}}))
        with pytest.raises(UserError, match=r"deploy\.yaml: (DeepLab|has a value)"):
            deploy_yaml.read(path)


@pytest.mark.parametrize("steps", [[], [RESIZE], [{**RESIZE, "interp": "CUBIC"}, PADDING]])
def test_infer_prepares_whole_numbers(steps):
    compose = inferer.build_compose(info_of(transforms=steps))
    plain = inferer.build_compose(info_of(transforms=[*steps, NORMALIZE], normalize=None))
    fed, usual = (restore.prepare(PICTURE, c) for c in (compose, plain))
    assert fed["trans_info"] == usual["trans_info"]
    assert (fed["img"] == np.rint(fed["img"])).all()
    assert fed["img"].min() >= 0
    assert fed["img"].max() <= 255
    # Half a grey level of 255, over the least std; CUBIC's overshoots are cut off besides.
    mean, std = (np.reshape(VALUES[k], (3, 1, 1)) for k in ("mean", "std"))
    grey = np.clip((usual["img"] * std + mean) * 255, 0, 255)
    assert np.abs(fed["img"] - grey).max() <= 0.5 + 1e-3


def test_values_beyond_bytes_are_refused(tmp_path):
    path = tmp_path / "heights.tif"
    Image.fromarray(np.linspace(-5, 900, 48, dtype=np.float32).reshape(6, 8)).save(path)
    compose = inferer.build_compose(info_of(img_channels=1))
    with pytest.raises(UserError, match=r"heights.tif: has values from -5 to 900"):
        restore.prepare(str(path), compose)


def test_pixels_without_data_are_the_network_s_zero(tmp_path):
    picture = PICTURE.copy()
    picture[3:5, 4:9] = (7, 200, 9)
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    sample = restore.prepare(
        str(tmp_path / "p.png"), inferer.build_compose(info_of(transforms=[], nodata=200))
    )
    lost = (picture == 200).any(-1)
    np.testing.assert_array_equal(sample["nodata"], lost)
    np.testing.assert_array_equal(
        sample["img"].transpose(1, 2, 0), np.where(lost[..., None], 0, picture[..., ::-1])
    )


def test_tensorrt_is_refused():
    with pytest.raises(UserError, match="Export again without --input uint8"):
        check_settings(RuntimeSettings(device="gpu:0", use_trt=True), info_of())

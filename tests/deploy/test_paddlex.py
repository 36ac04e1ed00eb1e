# SPDX-License-Identifier: Apache-2.0
"""The folder that PaddleX reads. A stand-in reads it as PaddleX 3.7 does; that one is not here."""

import numpy as np
import pytest
import yaml
from exported_folder import FREE

from paddleseg_deeplab.deploy import paddlex
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.utils.errors import UserError

NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RESIZE = {"type": "Resize", "target_size": [96, 64], "interp": "CUBIC"}


def info_of(form="pir", shape=FREE, **facts):
    return DeployInfo(form, shape, **{"transforms": [NORMALIZE], "program": "paddlex", **facts})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "onnx"}, "--format pir or legacy"),
        ({"output_op": "none"}, "--output_op argmax"),
        ({"normalize": {"mean": [0.5], "std": [0.5]}}, "leave --input uint8 out"),
        ({"img_channels": 4}, "reads three channels, and this network 4"),
        ({"to_rgb": False}, "reads RGB"),
        ({"nodata": -9999.0}, "pixels without data"),
        ({"size_divisor": 16}, "does not pad"),
        ({"crf": {"iterations": 5}}, "has no dense CRF"),
        ({"transforms": []}, "transforms has: nothing"),
        ({"transforms": [RESIZE]}, "transforms has: Resize"),
        ({"transforms": [NORMALIZE, RESIZE]}, "transforms has: Normalize, Resize"),
        (
            {"transforms": [{"type": "Padding", "target_size": [9, 9]}, NORMALIZE]},
            "transforms has: Padding, Normalize",
        ),
        ({"transforms": [{**RESIZE, "interp": "RANDOM"}, NORMALIZE]}, "knows the interp"),
    ],
)
def test_what_paddlex_lacks_is_refused(given, message):
    with pytest.raises(UserError, match=f"^--for paddlex: .*{message}"):
        paddlex.check(info_of(**given))


@pytest.mark.parametrize(("plus", "name"), [(True, "Deeplabv3_Plus-R50"), (False, "Deeplabv3-R50")])
@pytest.mark.parametrize(("form", "model"), [("pir", "json"), ("legacy", "pdmodel")])
def test_file_names_and_inference_yml(form, model, plus, name, tmp_path):
    info = info_of(form, transforms=[RESIZE, {"type": "Normalize"}], folder=str(tmp_path))
    for file in (info.model, info.params):
        (tmp_path / file).write_text(file)
    paddlex.check(info)
    paddlex.finish(info, plus)
    assert (info.model, info.params) == (f"inference.{model}", "inference.pdiparams")
    assert (tmp_path / info.model).read_text() == f"model.{model}"
    content = yaml.safe_load((tmp_path / "inference.yml").read_text())
    assert content["Global"]["model_name"] == name
    resize, normalize = content["Deploy"]["transforms"]
    # PaddleX's own defaults differ (keep_ratio, a divisor of 32), so all is said.
    assert resize == {
        "type": "Resize",
        "target_size": [96, 64],
        "keep_ratio": False,
        "size_divisor": None,
        "interp": "BICUBIC",
    }
    assert normalize == {"type": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3}


def test_paddlex_normalizes_as_we_do():
    """Its formula, written anew from its source: float32 x times alpha plus beta."""
    from paddleseg_deeplab.transforms import functional

    ours = paddlex._transforms(info_of())[-1]
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    planes = picture.astype(np.float32)
    for c in range(3):
        planes[..., c] *= (1.0 / 255) / ours["std"][c]
        planes[..., c] += -ours["mean"][c] / ours["std"][c]
    expected = functional.normalize(picture, NORMALIZE["mean"], NORMALIZE["std"])
    # float32 keeps 24 bits; the numbers are below 3.
    np.testing.assert_allclose(planes, expected, rtol=0, atol=1e-6)

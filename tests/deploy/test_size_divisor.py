# SPDX-License-Identifier: Apache-2.0
"""`size_divisor` of an exported network: written, read, overruled by the flag, done and undone."""

import cv2
import numpy as np
import pytest
from exported_folder import FREE, folder, infer  # noqa: F401 (a fixture)

from paddleseg_deeplab.deploy import deploy_yaml, inferer
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.utils.errors import UserError


class Rows:
    """A runtime whose class is a pixel's row, modulo 5, and which notes the sizes that came."""

    name, smallest_side = "rows", 1

    def __init__(self):
        self.sizes = []

    def outputs(self, batch, which):
        self.sizes.append(batch.shape[2:])
        rows = np.arange(batch.shape[2])[:, None] + np.zeros(batch.shape[3])
        return [np.repeat((rows % 5).astype(np.int32)[None], len(batch), axis=0)] * len(which)


@pytest.fixture
def runtime(monkeypatch):
    made = Rows()
    monkeypatch.setattr(inferer, "open_runtime", lambda info, settings: made)
    return made


def written(folder, **facts):
    info = DeployInfo("legacy", FREE, num_classes=5, folder=str(folder), **facts)
    deploy_yaml.write(info, str(folder / "deploy.yaml"))
    return deploy_yaml.read(str(folder))


@pytest.mark.parametrize("divisor", [None, 1, 16])
def test_it_is_written_and_read(folder, divisor):
    assert written(folder, size_divisor=divisor).size_divisor == divisor
    assert ("size_divisor" in (folder / "deploy.yaml").read_text()) == (divisor is not None)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "[16]"])
def test_bad_values_in_deploy_yaml(folder, value):
    written(folder, size_divisor=16)
    path = folder / "deploy.yaml"
    path.write_text(path.read_text().replace("size_divisor: 16", f"size_divisor: {value}"))
    with pytest.raises(UserError, match=r"deploy\.yaml: DeepLab\.size_divisor"):
        deploy_yaml.read(str(folder))


@pytest.mark.parametrize(
    ("facts", "flags", "size"),
    [
        ({}, [], (32, 33)),
        ({"size_divisor": 16}, [], (32, 48)),
        ({"size_divisor": 16}, ["--size_divisor", "10"], (40, 40)),
        ({}, ["--size_divisor", "7"], (35, 35)),
        ({"size_divisor": 16}, ["--size_divisor", "1"], (32, 33)),
    ],
)
def test_infer_pads_and_cuts(folder, runtime, facts, flags, size):
    written(folder, **facts)
    assert infer(folder, *flags) == 0
    assert runtime.sizes == [size]
    labels = cv2.imread(str(folder / "out/raw_prediction/image.png"), cv2.IMREAD_UNCHANGED)
    expected = np.repeat(np.arange(32)[:, None] % 5, 33, axis=1)
    np.testing.assert_array_equal(labels, expected)


def test_a_flag_that_is_no_size(folder, runtime, capsys):
    assert infer(folder, "--size_divisor", "0") == 2
    assert "--size_divisor should be at least 1, not 0" in capsys.readouterr().err

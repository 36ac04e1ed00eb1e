# SPDX-License-Identifier: Apache-2.0
"""An exported folder that the stand-ins of runtimes read, and infer.py on it."""

import cv2
import numpy as np
import pytest

from paddleseg_deeplab.cli import infer as cli_infer
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo

FREE = [None, 3, None, None]


@pytest.fixture
def folder(tmp_path):
    """An exported folder in which a stand-in reads no file, and an image."""
    info = DeployInfo("legacy", FREE, num_classes=5, transforms=[], folder=str(tmp_path))
    for name in (info.model, info.params):
        (tmp_path / name).write_bytes(b"")
    deploy_yaml.write(info, str(tmp_path / "deploy.yaml"))
    image = np.ones((32, 33, 3), np.uint8)  # of channels that add up to 3
    cv2.imwrite(str(tmp_path / "image.png"), image)
    return tmp_path


def infer(folder, *flags):
    given = ["--model_dir", str(folder), "--image_path", str(folder / "image.png")]
    return cli_infer.main([*given, "--save_dir", str(folder / "out"), "--outputs", "raw", *flags])

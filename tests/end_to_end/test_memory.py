# SPDX-License-Identifier: Apache-2.0
"""One of two ranks runs out of memory: all end with one line, and can go on in windows."""

import json
from pathlib import Path

import cv2
import memory_worker
import numpy as np
import pytest
from launching import finish, launcher, logs

CONFIG = """
val_dataset: {type: Shapes, num_classes: 3, image_size: [32, 24], num_samples: 4, mode: val,
  transforms: []}
model: {type: HungryOnOne}
"""


@pytest.mark.slow
def test_all_ranks_end_with_the_line_of_the_first_that_fails(tmp_path):
    (tmp_path / "c.yml").write_text(CONFIG)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abcd":
        cv2.imwrite(str(photos / f"{name}.png"), np.full((24, 32, 3), ord(name), np.uint8))
    worker = Path(memory_worker.__file__)
    output = finish(launcher(tmp_path, worker, tmp_path, tmp_path / "c.yml", photos), 120)
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    assert all(file.is_file() for file in files), output[-4000:] + logs(tmp_path)[1][-2000:]
    expected = {"val whole": 2, "predict whole": 2, "val windows": 0, "predict windows": 0}
    assert [json.loads(file.read_text()) for file in files] == [expected] * 2
    first, second = logs(tmp_path)
    lines = [line for line in first.splitlines() if line.startswith("error:")]
    assert len(lines) == 2  # one a command
    assert lines[0].startswith(
        "error: process 1 of 2: Out of memory on GPU 1 while the network ran"
    )
    # A prediction goes on with the others' images.
    assert lines[1].startswith("error: 2 of 4 images could not be done, the others are.")
    assert "The first: Out of memory on GPU 1 while the network ran on" in lines[1]
    for line in lines:
        assert "(1.5 GiB more asked for, 512.0 MiB free)" in line
        assert "of 32 x 24 pixels (width x height) in fp32. What helps: windows" in line
    assert "error:" not in second
    assert "Traceback" not in first + second
    assert (tmp_path / "windows" / "metrics.json").is_file()
    made = tmp_path / "windows" / "pseudo_color_prediction"
    assert {path.name for path in made.iterdir()} == {f"{name}.png" for name in "abcd"}

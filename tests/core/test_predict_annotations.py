# SPDX-License-Identifier: Apache-2.0
"""Predict and infer clean labels before they write anything, and write the same files.

Both get the same network: the image's channels, over 50, as logits of three classes. Infer gets it
from a stand-in for a runtime.
"""

import errno
import json
import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from paddle import nn
from PIL import Image

from paddleseg_deeplab.cli import infer as cli_infer
from paddleseg_deeplab.cli.common import Parser, add_output_arguments, cleanup_of
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.prediction import outputs
from paddleseg_deeplab.prediction.cleanup import Cleanup
from paddleseg_deeplab.prediction.outputs import OUTPUTS, RUN_OUTPUTS, collect_images
from paddleseg_deeplab.prediction.restore import softmax
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import voc_palette

NAMES = ["background", "road", "car"]
KINDS = [*OUTPUTS, *RUN_OUTPUTS]


class Brightest(nn.Layer):
    num_classes = 3

    def forward(self, x):
        return [x / 50]


@pytest.fixture
def photos(tmp_path):
    """Three pictures of smooth colours, which make regions, specks, holes and doubt."""
    for seed, size in enumerate([(40, 44), (40, 44), (48, 36)]):
        noise = np.random.default_rng(seed).random((*size, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 2)
        smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        path = tmp_path / "photos" / "day" / f"{seed}.png"
        visualize.save_image(path, np.rint(smooth * 255).astype(np.uint8))
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An exported folder; the runtime that reads it gives logits."""

    class Core:
        def read_model(self, *_):
            return None

        def compile_model(self, *_):
            return lambda inputs, share_outputs: [inputs[0] / 50]

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / describe(tmp_path / "net", "none").model).write_bytes(b"")
    return tmp_path / "net"


def describe(folder, output_op):
    facts = {"num_classes": 3, "class_names": NAMES, "palette": voc_palette(3)}
    size = [None, 3, None, None]
    info = DeployInfo("onnx", size, output_op=output_op, folder=str(folder), **facts)
    deploy_yaml.write(info, str(folder / "deploy.yaml"))
    return info


def infer(folder, photos, out, *flags):
    where = ["--model_dir", str(folder), "--image_path", str(photos), "--save_dir", str(out)]
    return cli_infer.main([*where, "--runtime", "openvino", *flags])


def run(photos, out, **settings):
    paths, root = collect_images(str(photos))
    settings = {"class_names": NAMES, "palette": voc_palette(3), "progress": False, **settings}
    where = {"image_dir": root, "save_dir": str(out)}
    return predict(Brightest(), None, Compose([]), paths, **where, **settings)


def files(out):
    found = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def expected(path, cleanup):
    """Labels by the rules, on probabilities in NumPy."""
    image = visualize.to_rgb(np.asarray(Image.open(path)))
    probabilities = softmax(image.astype(np.float32).transpose(2, 0, 1) / 50)
    return cleanup.apply(probabilities.argmax(0).astype(np.int32), probabilities)


def test_both_write_the_same_of_the_same_cleaned_labels(photos, folder, tmp_path):
    cleanup = Cleanup(min_area=9, fill_holes=30, threshold=0.5)
    run(photos, tmp_path / "one", outputs=KINDS, cleanup=cleanup)
    flags = ["--min_area", "9", "--fill_holes", "30", "--threshold", "0.5"]
    assert infer(folder, photos, tmp_path / "two", "--outputs", *KINDS, *flags) == 0
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two
    assert len(one) == 3 * len(OUTPUTS) + len(RUN_OUTPUTS) + 1  # the legend
    changed = 0
    for path in sorted(photos.rglob("*.png")):
        labels = expected(path, cleanup)
        changed += np.count_nonzero(labels != expected(path, Cleanup(threshold=0.5)))
        name = f"{path.stem}.png"
        raw = np.asarray(Image.open(tmp_path / "one" / "raw_prediction" / "day" / name))
        np.testing.assert_array_equal(raw, labels)
        palette = Image.open(tmp_path / "one" / "pseudo_color_prediction" / "day" / name)
        np.testing.assert_array_equal(np.asarray(palette), labels)
        image = np.asarray(Image.open(path))
        shown = np.asarray(Image.open(tmp_path / "one" / "added_prediction" / "day" / name))
        np.testing.assert_array_equal(shown, visualize.overlay(image, labels, voc_palette(3)))
        assert {0, 1, 2, 255} == set(np.unique(labels))
    assert changed > 10  # or the cleaning was not tried


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_files_of_a_run_do_not_depend_on_the_order_of_work(
    photos, tmp_path, num_workers, batch_size
):
    settings = {"outputs": ["raw", "coco", "areas"], "cleanup": Cleanup(threshold=0.5, min_area=4)}
    run(photos, tmp_path / "one", **settings)
    settings |= {"num_workers": num_workers, "batch_size": batch_size}
    run(photos, tmp_path / "two", **settings)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    content = json.loads((tmp_path / "two" / "coco.json").read_text(encoding="utf-8"))
    names = [image["file_name"] for image in content["images"]]
    assert names == ["day/0.png", "day/1.png", "day/2.png"]


def test_a_broken_image_is_in_no_file_of_the_run(photos, tmp_path):
    (photos / "day" / "1.png").write_bytes(b"no picture")
    result = run(photos, tmp_path / "out", outputs=["coco", "areas"])
    assert [os.path.basename(path) for path, _ in result.failed] == ["1.png"]
    content = json.loads((tmp_path / "out" / "coco.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in content["images"]] == [1, 2]
    table = (tmp_path / "out" / "areas.csv").read_text(encoding="utf-8")
    assert table.count("day/0.png") == table.count("day/2.png") == 3
    assert "day/1.png" not in table


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threshold", "0.6"], ["--threshold", "argmax", "--output_op none or softmax"]),
        (["--threshold", "60"], ["--threshold 60", "up to 1"]),
        (["--min_area", "0"], ["--min_area 0", "from 1"]),
        (["--min_area", "-5"], ["--min_area -5"]),
        (["--fill_holes", "-1"], ["--fill_holes -1"]),
        (["--unknown", "255"], ["--unknown", "--threshold"]),
        (["--threshold", "0.6", "--unknown", "999"], ["--unknown 999", "0 to 255"]),
        (["--outputs", "yolo"], ["labelme", "coco", "areas", "'yolo'"]),
    ],
)
def test_bad_flags_are_one_line(photos, folder, tmp_path, capsys, flags, words):
    describe(folder, "argmax")
    assert infer(folder, photos, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists()


def test_flags_left_out_clean_nothing():
    parser = Parser()
    add_output_arguments(parser, "out")
    assert cleanup_of(parser.parse_args([])) is None
    given = parser.parse_args(["--threshold", "0.25", "--unknown", "3", "--min_area", "7"])
    assert cleanup_of(given) == Cleanup(min_area=7, threshold=0.25, unknown=3)
    with pytest.raises(UserError, match="--threshold"):
        cleanup_of(parser.parse_args(["--unknown", "3"]))


def test_a_disk_that_fills_up_is_one_line_and_what_is_written_stays(
    photos, folder, tmp_path, monkeypatch, capsys
):
    write, done = outputs.write_outputs, []

    def fills_up(*args, **kwargs):
        if done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(write(*args, **kwargs))
        return done[0]

    monkeypatch.setattr(outputs, "write_outputs", fills_up)
    out = tmp_path / "out"
    flags = ["--outputs", "raw", "labelme", "coco", "--num_workers", "0"]
    assert infer(folder, photos, out, *flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if "error" in line] == error[-1:]
    assert "No space left" in error[-1]
    assert sorted(files(out)) == ["labelme/day/0.json", "raw_prediction/day/0.png"]

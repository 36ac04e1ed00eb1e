# SPDX-License-Identifier: Apache-2.0
"""Images of five bands of floats and of 16 bits: trained, evaluated, predicted, exported, inferred.

Two of three classes differ in one place alone: in the fifth band, or in the lower 8 bits of 16. A
reader that loses either cannot tell them apart.
"""

import json

import numpy as np
import pytest
import yaml
from picture_files import png, tiff

from paddleseg_deeplab.cli import main as console
from paddleseg_deeplab.transforms.reading.files import read_label

H = W = 32


def five_bands(rng, labels):
    """Floats in 0..255; classes 1 and 2 differ in the last band only."""
    image = rng.uniform(100, 120, (H, W, 5))
    image[..., 1] += 100 * (labels > 0)
    image[..., 4] += 100 * (labels == 2)
    return "a.tif", tiff(image.astype(np.float32))


def sixteen_bits(rng, labels):
    """12 bits in a file of 16: 4 of 8 bits would be left, in which classes 1 and 2 are the same."""
    image = rng.integers(1024, 1040, (H, W, 3))
    image[labels > 0] += 512
    image[labels == 2] += 160
    return "a.png", png(image.astype(np.uint16), 16, 2)


def scenes(folder, draw, count=8):
    rng = np.random.default_rng(0)
    lines = []
    for k in range(count):
        labels = np.zeros((H, W), np.uint8)
        for value in (1, 2):
            top, left = rng.integers(0, H - 12, 2)
            labels[top : top + 12, left : left + 12] = value
        name, content = draw(rng, labels)
        (folder / f"{k}{name}").write_bytes(content)
        (folder / f"{k}_l.png").write_bytes(png(labels, 2))
        lines.append(f"{k}{name} {k}_l.png")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return lines


def config(folder, channels, normalize):
    data = {
        "type": "Dataset",
        "dataset_root": str(folder),
        "num_classes": 3,
        "img_channels": channels,
        "transforms": [{"type": "Normalize", **normalize}],
    }
    dic = {
        "batch_size": 4,
        "iters": 60,
        "train_dataset": {**data, "mode": "train", "train_path": "list.txt"},
        "val_dataset": {**data, "mode": "val", "val_path": "list.txt"},
        "model": {"type": "DeepLabV3P", "backbone": {"type": "ResNet18_vd"}, "aspp_ratios": [1]},
        "optimizer": {"type": "AdamW", "weight_decay": 0.01},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.003, "power": 0.9},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
    }
    path = folder / "c.yml"
    path.write_text(yaml.safe_dump(dic), encoding="utf-8")
    return path


CASES = {
    "five bands of floats": (five_bands, 5, {"mean": [0.5], "std": [0.25]}),
    "16 bits": (sixteen_bits, 3, {"mean": [0.02], "std": [0.004]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_from_training_to_deployment(tmp_path, case):
    draw, channels, normalize = CASES[case]
    lines = scenes(tmp_path, draw)
    path = config(tmp_path, channels, normalize)

    def run(verb, *flags):
        assert console.main([verb, *map(str, [*flags, "--device", "cpu"])]) == 0

    out = tmp_path / "out"
    run("train", "--config", path, "--save_dir", out, "--save_interval", 60)
    weights = out / "iter_60/model.pdparams"
    run("val", "--config", path, "--model_path", weights, "--save_dir", out / "val")
    report = json.loads((out / "val/metrics.json").read_text(encoding="utf-8"))
    # The easiest of scenes, trained on: near 1 where the classes can be told apart, and at most
    # 1/3 + 2/3 * 1/2 where two of them are the same.
    assert report["mIoU"] > 0.8
    image = tmp_path / lines[0].split()[0]
    shared = ["--image_path", image, "--outputs", "raw"]
    run("predict", "--config", path, "--model_path", weights, "--save_dir", out / "a", *shared)
    export = ["--save_dir", out / "exported", "--input_shape", 1, channels, H, W]
    run("export", "--config", path, "--model_path", weights, *export)
    run("infer", "--config", out / "exported/deploy.yaml", "--save_dir", out / "b", *shared)
    found = [sorted((out / each / "raw_prediction").rglob("*.png")) for each in "ab"]
    assert [len(paths) for paths in found] == [1, 1]
    one, other = (read_label(paths[0]) for paths in found)
    np.testing.assert_array_equal(one, other)
    assert (one == read_label(tmp_path / "0_l.png")).mean() > 0.85

# SPDX-License-Identifier: Apache-2.0
"""Runs the whole job on embedded scenes: train, evaluate, export, deploy, and pictures of it."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.utils.device import select_device
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.installed import require_paddle

_DESCRIPTION = """The whole job in a few minutes, with no data and no download.

Trains the recipe quickstart.yml, evaluates it on scenes it never saw, exports it, predicts with the
export, and writes pictures of image, truth and prediction.
"""
_PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="quickstart.yml", help="default: quickstart.yml")
    parser.add_argument("--save_dir", default="output/quickstart")
    parser.add_argument(
        "--least_miou", type=float, default=0.85, help="below it the exit status is 1"
    )
    common.add_device_argument(parser)


def _verb(name, *flags):
    """Runs a command of this package in a process of its own, as a user would."""
    command = [sys.executable, "-m", "paddleseg_deeplab", name, *map(str, flags)]
    print(f"\n== paddleseg-deeplab {name}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        raise UserError(
            f"paddleseg-deeplab {name} ended with status {status}; its own message is above."
        )


def _write_scenes(config_path, folder):
    """Writes validation scenes as image files; returns (names, masks, class names, palette)."""
    from paddleseg_deeplab.cvlibs import Config, SegBuilder
    from paddleseg_deeplab.utils.visualize import save_image

    dataset = SegBuilder(Config(config_path)).val_dataset
    names, masks = [], []
    for i in range(min(_PICTURES, len(dataset))):
        name = f"scene_{i}"
        save_image(str(folder / f"{name}.png"), dataset.load_image(i).astype("uint8"))
        names.append(name)
        masks.append(dataset.load_label(i))
    return names, masks, dataset


def _write_pictures(scenes, results, folder, names, masks, dataset):
    from paddleseg_deeplab.transforms.reading.files import read_image, read_label
    from paddleseg_deeplab.utils.visualize import save_image, side_by_side

    for name, mask in zip(names, masks):
        image = read_image(str(scenes / f"{name}.png")).astype("uint8")
        predicted = read_label(str(results / "pseudo_color_prediction" / f"{name}.png"))
        shown = [_magnified(array) for array in (image, mask, predicted)]
        picture = side_by_side(*shown, dataset.palette, dataset.class_names)
        save_image(str(folder / f"{name}.png"), picture)


def _magnified(array, least=256):
    """Repeats pixels until the shorter side has ``least``; the scenes are small."""
    factor = -(-least // min(array.shape[:2]))
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def run(args: argparse.Namespace) -> int:
    """0 when every step worked and the mIoU is reached."""
    require_paddle()
    from paddleseg_deeplab.cvlibs.recipes import find_config
    from paddleseg_deeplab.prediction.outputs import check_save_dir

    check_save_dir(args.save_dir)
    out = Path(args.save_dir)
    device = ["--device", args.device] if args.device else []
    model = out / "best_model"
    find_config(args.config)
    select_device(args.device)  # here, where its message is the only one
    _verb(
        *("train", "--config", args.config, "--save_dir", out, "--overwrite", "--do_eval"),
        *("--use_vdl", "--save_interval", 250, "--log_iters", 50, *device),
    )
    _verb(
        *("val", "--config", args.config, "--model_path", model),
        *("--save_dir", out / "evaluation", *device),
    )
    _verb(
        *("export", "--config", args.config, "--model_path", model),
        *("--save_dir", out / "inference_model", *device),
    )
    scenes, results, pictures = out / "scenes", out / "predictions", out / "pictures"
    names, masks, dataset = _write_scenes(args.config, scenes)
    _verb(
        *("infer", "--model_dir", out / "inference_model", "--image_path", scenes),
        *("--save_dir", results, "--benchmark", *device),
    )
    _write_pictures(scenes, results, pictures, names, masks, dataset)
    with open(out / "evaluation" / "metrics.json", encoding="utf-8") as f:
        miou = json.load(f)["mIoU"]
    print(f"\nmIoU on scenes it never trained on: {miou:.4f} (wanted: {args.least_miou})")
    for what, path in (
        ("image, truth and prediction side by side", pictures),
        ("trained model", model / "model.pdparams"),
        ("evaluation report", out / "evaluation"),
        ("exported model", out / "inference_model"),
        ("predictions of the exported model", results),
        ("log and resolved config", out / "train.log"),
        (f"curves: visualdl --logdir {out}", out),
    ):
        print(f"  {what}: {path}")
    return 0 if miou >= args.least_miou else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="quickstart")


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Flags and settings that val and predict share."""

from __future__ import annotations

import argparse

from paddleseg_deeplab.cli.common import add_crf_arguments, add_divisor_argument
from paddleseg_deeplab.deploy.settings import ENGINES


def add_inference_arguments(
    parser: argparse.ArgumentParser, aug_flag: str, crf: bool = True
) -> None:
    """Adds the flags of scales, flips, sliding window, batches, engine, precision and the CRF.

    Args:
        parser (argparse.ArgumentParser): Takes them.
        aug_flag (str): "aug_eval" or "aug_pred", as PaddleSeg names the switch.
        crf (bool): Also those of the CRF. Default True.
    """
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--batch_size",
        type=int,
        help="images of equal size at once (default: 1, small ones together)",
    )
    add_divisor_argument(run, "the config's test_config.size_divisor")
    run.add_argument(
        "--num_workers",
        type=int,
        help="threads that read ahead, and that write (default: 2, or 1 on one processor; 0 with "
        "datasets or transforms of your own)",
    )
    run.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the network on a CPU: dygraph, or an export of it in Paddle Inference, "
        "ONNX Runtime or OpenVINO. auto (default): where there are enough images to pay for the "
        "export, OpenVINO if it is installed, else Paddle Inference",
    )
    run.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="fp16 and bf16: mixed precision on a GPU; bf16 with --engine openvino: on a CPU that "
        "has it (default: fp32)",
    )
    run.add_argument("--amp_level", choices=["O1", "O2"], default="O1", help="default: O1")
    aug = parser.add_argument_group("several scales and flips (probabilities are averaged)")
    aug.add_argument(f"--{aug_flag}", action="store_true", help="average scales and flips")
    aug.add_argument("--scales", nargs="+", type=float, help="such as 0.75 1.0 1.25 (default: 1.0)")
    aug.add_argument("--flip_horizontal", action="store_true", help="also the mirrored image")
    aug.add_argument("--flip_vertical", action="store_true", help="also the image upside down")
    window = parser.add_argument_group("sliding window")
    window.add_argument("--is_slide", action="store_true", help="go over the image in windows")
    window.add_argument(
        "--slide_above",
        type=float,
        metavar="FACTOR",
        help="windows for large images only: those of more than FACTOR times the pixels of "
        "--crop_size, here by default the training's crop",
    )
    window.add_argument(
        "--crop_size", nargs=2, type=int, metavar=("W", "H"), help="the window, such as 512 512"
    )
    window.add_argument(
        "--stride",
        nargs=2,
        type=int,
        metavar=("W", "H"),
        help="its steps, such as 341 341 (with --slide_above by default two thirds of the window)",
    )
    if crf:
        add_crf_arguments(parser, "the config's test_config.crf")

# SPDX-License-Identifier: Apache-2.0
"""Evaluates a model: mIoU and more, per class and in total; the report goes to --save_dir."""

import argparse
import sys
from collections.abc import Sequence

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.utils.device import select_device
from paddleseg_deeplab.utils.errors import UserError

_DESCRIPTION = """Evaluates a trained model on the config's validation set.

  python val.py --config configs/deeplabv3p_resnet50_os8.yml --model_path output/best_model

metrics.json, metrics.csv (classes), images.csv (images, the worst first) and confusion_matrix.png
go to --save_dir.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_config_arguments(parser)
    parser.add_argument("--model_path", help="trained weights: model.pdparams or its folder")
    parser.add_argument(
        "--save_dir", default="output/evaluation", help="for the report; default: output/evaluation"
    )
    parser.add_argument(
        "--worst", type=int, default=10, help="how many of the worst images to list (default: 10)"
    )
    add_inference_arguments(parser, "aug_eval")


def run(args: argparse.Namespace) -> int:
    """Evaluates as the flags say; 0 when done."""
    if args.worst < 0:
        raise UserError(f"--worst should be at least 0, not {args.worst}.")
    from paddleseg_deeplab.prediction.outputs import check_save_dir

    check_save_dir(args.save_dir)
    device = select_device(args.device)
    ranks = common.join_ranks(args.device)
    config = common.read_config(args, pretrained=args.model_path is None)
    from paddleseg_deeplab.core.report import write_report
    from paddleseg_deeplab.core.val import evaluate
    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.cvlibs.inference import inference_settings
    from paddleseg_deeplab.cvlibs.trained_config import warn_of_other_config
    from paddleseg_deeplab.utils.logger import logger
    from paddleseg_deeplab.utils.weights.load import load_entire_model

    settings = inference_settings(config, args, "aug_eval")
    with ranks.guard():
        builder = SegBuilder(config)
        dataset, model = builder.val_dataset, builder.model
        if ranks.is_main:
            warn_of_other_config(config, args.model_path, labels=True)
        load_entire_model(model, args.model_path)
    if args.model_path is None:
        logger.warning("No --model_path: the weights are the config's pretrained or random ones.")
    logger.info("Evaluating %d images on %s.", len(dataset), device)
    result = evaluate(model, dataset, worst=args.worst, **settings)
    with ranks.guard():
        if ranks.is_main:
            files = write_report(result, args.save_dir)
            logger.info("The report: %s", ", ".join(files))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="val.py")


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Exports a trained model for Paddle Inference or ONNX Runtime, and checks the export."""

import argparse
import os
import sys
from collections.abc import Sequence

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.utils.device import select_device
from paddleseg_deeplab.utils.errors import UserError

_DESCRIPTION = """Exports a trained model for deployment.

  python export.py --config configs/deeplabv3p_resnet50_os8.yml \\
      --model_path output/best_model --save_dir output/inference_model
  python deploy/python/infer.py --model_dir output/inference_model --image_path photos

--save_dir gets the network, its parameters and deploy.yaml, which holds all that infer.py has to
know. Before that the written network is run and compared with the trained one on a real image; the
exit status is 1 and nothing is kept where logits differ by more than 0.001 (times the largest
logit, where that is above 1) or the class of more than 0.01 % of the pixels.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from paddleseg_deeplab.deploy.settings import FORMATS, INPUTS, OUTPUT_OPS, PROGRAMS

    common.add_config_arguments(parser)
    parser.add_argument(
        "--model_path",
        help="trained weights: model.pdparams or its folder (default: the network as the config "
        "starts it)",
    )
    parser.add_argument(
        "--save_dir", default="output/inference_model", help="default: output/inference_model"
    )
    parser.add_argument(
        "--input_shape",
        nargs="+",
        type=int,
        metavar="N",
        help="N C H W, -1 where free, such as 1 3 1024 1024 (default: all but C free)",
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="float32",
        help="what the network takes: float32, preprocessed, N C H W (default); uint8: pictures as "
        "they are, N H W C, with Normalize in the network, for model servers and other languages",
    )
    parser.add_argument(
        "--output_op",
        choices=OUTPUT_OPS,
        help="one output only: classes, probabilities or logits (default: two, classes and logits)",
    )
    parser.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="pir: model.json; legacy: model.pdmodel, also for TensorRT; onnx: model.onnx; auto: "
        "pir or legacy, whichever is best on --target with this Paddle (default)",
    )
    parser.add_argument(
        "--for",
        dest="program",
        choices=PROGRAMS,
        help="another program that will read the folder too (default: none)",
    )
    parser.add_argument(
        "--target", choices=("cpu", "gpu"), help="what auto chooses for (default: the device here)"
    )
    parser.add_argument(
        "--image_path", help="image to compare on (default: the validation set's first)"
    )


def _nchw_unless_asked(config, args, form):
    """Sets NCHW: weights are the same, and only PIR carries an NHWC network (see deploy.export)."""
    parts = (config.model_cfg, config.model_cfg.get("backbone") or {})
    if not any(part.get("data_format") == "NHWC" for part in parts):
        return
    if args.data_format == "NHWC":
        if form != "pir":
            raise UserError(
                f"--data_format NHWC: the format {form} takes NCHW networks only. Leave the flag "
                "out (the weights serve both), or use --format pir."
            )
        return
    config.set_data_format("NCHW")


def _preprocessing(args, builder):
    """A `Compose`, its steps as `deploy.yaml` has them, and the network's own Normalize or None."""
    from paddleseg_deeplab.cvlibs.data_facts import compose_for
    from paddleseg_deeplab.deploy import graph_input

    section, dicts = builder.config.preprocessing("export", "val_dataset")
    compose = compose_for(builder, builder.export_transforms)
    if args.input != "uint8":
        return compose, dicts, None
    dicts, normalize = graph_input.split(dicts, f"{section}.transforms")
    compose.transforms = graph_input.outside(compose.transforms[:-1])
    return compose, dicts, normalize


def _sample(args, compose, dataset):
    """A preprocessed image, float32 [C, h, w]."""
    from paddleseg_deeplab.prediction.restore import preprocess
    from paddleseg_deeplab.utils.logger import logger

    if args.image_path:
        return preprocess(args.image_path, compose)[0]
    if dataset is not None:
        # The set reads, the export's own transforms work: they may differ from the validation's.
        theirs, dataset.transforms = dataset.transforms, compose
        try:
            return dataset[0]["img"]
        finally:
            dataset.transforms = theirs
    logger.warning("No --image_path and no validation set: comparing on a made-up picture.")
    return preprocess(_made_up_picture(compose.img_channels), compose)[0]


def _made_up_picture(channels):
    """Soft blobs and some noise, uint8 [360, 480, channels]."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (6, 8, channels)).astype(np.float32)
    picture = cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC)
    picture = picture.reshape(360, 480, channels) + rng.normal(0, 8, (360, 480, channels))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _warn_of_fixed_size(shape, sample):
    from paddleseg_deeplab.utils.logger import logger

    fixed = [(want, have) for want, have in zip(shape[2:], sample.shape[1:]) if want and want > 0]
    if any(want != have for want, have in fixed):
        logger.warning(
            "--input_shape fixes the size %s, but preprocessing gave %s for the image compared on; "
            "infer.py refuses such images. Put a Resize or Padding into export.transforms.",
            "x".join(map(str, shape[2:])),
            "x".join(map(str, sample.shape[1:])),
        )


def _load_weights(model, path):
    from paddleseg_deeplab.utils.logger import logger
    from paddleseg_deeplab.utils.weights.load import load_entire_model

    if path:
        load_entire_model(model, path)
    else:
        logger.warning("No --model_path: the exported weights are those that training starts from.")


def run(args: argparse.Namespace) -> int:
    """Exports as the flags say; 0, or 1 where the export differs from the trained network."""
    from paddleseg_deeplab.prediction.outputs import check_save_dir

    check_save_dir(args.save_dir)
    # For the comparison, see deploy.tf32; the exported network runs as its user's settings say.
    if "paddle" not in sys.modules:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    device = select_device("cpu" if args.device is None and args.target == "cpu" else args.device)
    target = args.target or ("cpu" if device == "cpu" else "gpu")

    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.cvlibs.data_facts import dataset_facts
    from paddleseg_deeplab.cvlibs.trained_config import warn_of_other_config
    from paddleseg_deeplab.deploy import export as exporting
    from paddleseg_deeplab.deploy.deploy_yaml import DeployFacts
    from paddleseg_deeplab.prediction.restore import padded
    from paddleseg_deeplab.utils.logger import logger

    form = exporting.resolve_format(args.format, target)
    config = common.read_config(args, pretrained=not args.model_path)
    _nchw_unless_asked(config, args, form)
    crf = exporting.check_crf(config.test_config.get("crf"), args.output_op)
    builder = SegBuilder(config)
    compose, dicts, normalize = _preprocessing(args, builder)
    warn_of_other_config(config, args.model_path, section="export")
    _load_weights(builder.model, args.model_path)
    dataset, names, palette = dataset_facts(builder)
    divisor = config.test_config.get("size_divisor")
    sample, _ = padded(_sample(args, compose, dataset), [], divisor)
    shape = exporting.check_input_shape(args.input_shape, sample.shape[0])
    _warn_of_fixed_size(shape, sample)
    facts = DeployFacts(
        transforms=dicts,
        to_rgb=compose.to_rgb,
        nodata=compose.nodata,
        class_names=names,
        palette=palette,
        crf=crf,
        size_divisor=divisor,
        normalize=normalize,
        program=args.program,
    )
    try:
        exporting.export(
            builder.model,
            args.save_dir,
            sample=sample,
            input_shape=shape,
            output_op=args.output_op,
            format=form,
            target=target,
            facts=facts,
        )
    except exporting.ExportMismatch as error:
        logger.error("%s", error)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="export.py")


if __name__ == "__main__":
    sys.exit(main())

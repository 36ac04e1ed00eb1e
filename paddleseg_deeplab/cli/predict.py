# SPDX-License-Identifier: Apache-2.0
"""Predicts images: overlays, palette PNGs, raw class ids, probabilities, annotations."""

import argparse
import sys
from collections.abc import Sequence

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.utils.device import select_device

_DESCRIPTION = """Predicts images with a trained model.

  python predict.py --config configs/deeplabv3p_resnet50_os8.yml \\
      --model_path output/best_model --image_path photos --save_dir output/result

Results have the images' sizes and go to sub folders of --save_dir: added_prediction (overlays),
pseudo_color_prediction (palette PNGs), raw_prediction (class numbers), probability (.npy), labelme
and labelme_polygons (.json); coco.json and areas.csv are for all images. Names are the images',
below the folder that was given; a.jpg and a.png give a_jpg and a_png. Images that cannot be read
are reported at the end, and the exit status is then 2.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_config_arguments(parser)
    parser.add_argument(
        "--model_path", required=True, help="trained weights: model.pdparams or its folder"
    )
    parser.add_argument(
        "--image_path",
        required=True,
        nargs="+",
        help="images, folders (searched recursively), list files, glob patterns",
    )
    common.add_output_arguments(parser, "output/result")
    parser.add_argument(
        "--custom_color",
        nargs="+",
        type=int,
        metavar="N",
        help="colours of the first classes: R G B R G B ... (default: the dataset's)",
    )
    add_inference_arguments(parser, "aug_pred")


def run(args: argparse.Namespace) -> int:
    """Predicts as the flags say; 0 when every image is done."""
    from paddleseg_deeplab.prediction.outputs import (
        check_save_dir,
        collect_images,
        parse_outputs,
    )

    outputs, cleanup = parse_outputs(" ".join(args.outputs)), common.cleanup_of(args)
    check_save_dir(args.save_dir)
    images, root = collect_images(common.image_paths(args), exclude=args.save_dir)
    device = select_device(args.device)
    ranks = common.join_ranks(args.device)
    config = common.read_config(args, pretrained=False)
    from paddleseg_deeplab.core.predict import predict, report
    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.cvlibs.data_facts import compose_of, dataset_facts
    from paddleseg_deeplab.cvlibs.inference import inference_settings
    from paddleseg_deeplab.cvlibs.trained_config import warn_of_other_config
    from paddleseg_deeplab.utils.logger import logger

    settings = inference_settings(config, args, "aug_pred")
    with ranks.guard():
        builder = SegBuilder(config)
        config.preprocessing("val_dataset", "export")  # refuses one that has none
        dataset, class_names, palette = dataset_facts(builder)
        transforms = compose_of(builder, dataset)
        model = builder.model
        if ranks.is_main:
            warn_of_other_config(config, args.model_path)
    logger.info("Predicting %d images on %s.", len(images), device)
    result = predict(
        model,
        args.model_path,
        transforms,
        images,
        image_dir=root,
        save_dir=args.save_dir,
        custom_color=args.custom_color,
        class_names=class_names,
        palette=palette,
        outputs=outputs,
        cleanup=cleanup,
        **settings,
    )
    report(result, len(images), args.save_dir)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="predict.py")


if __name__ == "__main__":
    sys.exit(main())

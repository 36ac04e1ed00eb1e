# SPDX-License-Identifier: Apache-2.0
"""Converts weights of torchvision, kazuto1011 or PaddleSeg for a config's network."""

import argparse

from paddleseg_deeplab.tools.convert_weights.rules import PARTS, SOURCES

DESCRIPTION = """Converts weights of another project for a config's network.

  paddleseg-deeplab convert_weights --source torchvision \\
      --config configs/compat/torchvision_deeplabv3_resnet50.yml \\
      --input deeplabv3_resnet50_coco.pth --output pretrained/deeplabv3_resnet50.pdparams

Every tensor of the network is filled and every tensor of the file used; those that cannot be are
named with the reason (--debug: every single one). Where anything else is left over, nothing is
written and the exit status is 2. docs/weights.md tells more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", required=True, choices=SOURCES, help="whose names the weights have"
    )
    parser.add_argument(
        "--config", required=True, help="YAML file of the network, such as configs/compat/....yml"
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        help="override anything in the config: model.aux=False",
    )
    parser.add_argument(
        "--input", required=True, help="weights: .pth, .pt, .bin, .safetensors, .npz or .pdparams"
    )
    parser.add_argument(
        "--output", required=True, help="the .pdparams or .safetensors file to write"
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="model",
        help="backbone: only that, for a backbone's `pretrained` (default: model)",
    )
    parser.set_defaults(data_format=None)  # one checkpoint serves both


def run(args: argparse.Namespace) -> int:
    """Converts as the flags say."""
    from paddleseg_deeplab.utils.device import select_device

    select_device("cpu")

    from paddleseg_deeplab.cvlibs import Config, SegBuilder
    from paddleseg_deeplab.tools.convert_weights.convert import check_output, convert_weights

    check_output(args.output, args.input)
    model = SegBuilder(
        Config(args.config, opts=args.opts, data_format=args.data_format, pretrained=False)
    ).model
    layer = model.backbone if args.part == "backbone" else model
    convert_weights(layer, args.input, args.output, source=args.source, part=args.part)
    return 0

# SPDX-License-Identifier: Apache-2.0
"""Shows a network's atrous kernels, receptive field, parameters and multiply-adds."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from paddleseg_deeplab.utils.errors import UserError

if TYPE_CHECKING:
    from paddleseg_deeplab.tools.inspect_model.memory import MemoryEstimate
    from paddleseg_deeplab.tools.inspect_model.network import NetworkFacts

DESCRIPTION = """Shows what a config's network costs and sees, without weights or data.

  paddleseg-deeplab inspect_model --config configs/deeplabv3p_resnet50_os8.yml --input_size 1024 512

Prints each atrous convolution with the share of its weights that meet the map rather than padding
(and how many of the kernel's taps do so most often, as a share of the positions), and each stage
with its receptive field (without image pooling), parameters and multiply-adds at each output
stride. The pictures and inspect.json go to --save_dir. Multiply-adds are those of convolutions and
linear layers for one image in evaluation, taps in padding counted.

With --memory also an estimate of what a training step takes at its peak on one device: maps that
are kept for the backward pass by stage, weights, gradients, optimizer, losses; with --memory 24 the
largest batch that fits into 24 GiB too. The images are the config's crops then.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file, such as configs/....yml")
    parser.add_argument(
        "--opts", nargs="+", metavar="KEY=VALUE", help="override anything in the config"
    )
    parser.add_argument(
        "--input_size",
        nargs=2,
        type=int,
        metavar=("W", "H"),
        help="of the image in pixels (default: 513 513; with --memory the config's crop)",
    )
    parser.add_argument(
        "--memory",
        nargs="?",
        type=float,
        const=0.0,
        metavar="GIB",
        help="estimate a training step's memory, and with a number the batch that fits into it",
    )
    parser.add_argument(
        "--batch_size", type=int, help="images on one device for --memory (default: the config's)"
    )
    parser.add_argument(
        "--output_strides",
        nargs="+",
        type=int,
        default=[8, 16, 32],
        metavar="N",
        help="to compare with the config's own; those that the backbone does not take are left "
        "out (default: 8 16 32)",
    )
    parser.add_argument("--save_dir", default="output/inspect", help="default: output/inspect")


def _config(args, stride=None, own_layout=False):
    """The config, at another output stride if one is given; without weights, NCHW."""
    from paddleseg_deeplab.cvlibs import Config

    opts = list(args.opts or [])
    if stride is not None:
        opts.append(f"model.backbone.output_stride={stride}")
    config = Config(args.config, opts=opts)
    config.drop_pretrained()
    if not own_layout:
        config.set_data_format("NCHW")  # costs and fields are the same in both
    return config


def _default_size(args):
    """(width, height) where --input_size is left out."""
    if args.memory is not None:
        from paddleseg_deeplab.tools.inspect_model.memory import crop_of

        crop = crop_of(_config(args).train_dataset_cfg)
        if crop is None:
            raise UserError(
                f"{args.config}: the transforms of train_dataset do not tell the size of the "
                "images that are trained on; give --input_size W H."
            )
        return [crop[1], crop[0]]
    return [513, 513]


def _facts(config, input_size):
    """(own output stride or None, `NetworkFacts`)."""
    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.tools.inspect_model.network import inspect_network

    strides = []

    def build():
        model = SegBuilder(config).model
        strides.extend(getattr(getattr(model, "backbone", None), "feat_strides", [])[-1:])
        return model

    channels = SegBuilder(config).config.model_cfg.get("backbone", {}).get("in_channels", 3)
    facts = inspect_network(build, (input_size[1], input_size[0]), channels)
    return (strides[0] if strides else None), facts


def inspect_config(
    args: argparse.Namespace,
) -> tuple[int | None, dict[int | None, NetworkFacts], dict[int, str]]:
    """What the flags ask for.

    Args:
        args: Parsed flags of `add_arguments`.

    Returns:
        tuple[int | None, dict[int | None, NetworkFacts], dict[int, str]]: The config's own output
            stride (None where the backbone does not tell), facts by stride in rising order, and
            the strides left out with the reasons.
    """
    own, own_facts = _facts(_config(args), args.input_size)
    facts, skipped = {own: own_facts}, {}
    for stride in sorted(set(args.output_strides) - {own}):
        try:
            found, other = _facts(_config(args, stride), args.input_size)
        except UserError as error:
            skipped[stride] = str(error)
            continue
        if found == stride:
            facts[stride] = other
        else:
            skipped[stride] = f"the backbone's features have stride {found} then"
    return own, dict(sorted(facts.items(), key=lambda item: item[0] or 0)), skipped


def training_memory(args: argparse.Namespace) -> tuple[MemoryEstimate, dict[str, int]]:
    """What a training step of the config takes.

    Args:
        args: Parsed flags of `add_arguments`, with ``input_size``.

    Returns:
        tuple[MemoryEstimate, dict[str, int]]: For the batch, and column to the largest batch that
            fits into ``args.memory`` GiB; empty where none are given.
    """
    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.tools.inspect_model import memory

    config = _config(args, own_layout=True)
    memory.forget_class_weights(config.dic.get("loss", {}))
    builder = SegBuilder(config)
    builder.model.train()
    known = memory.TrainingMemory(
        *(builder.model, args.input_size[::-1], builder.loss),
        moments=memory.moments_of(builder.optimizer),
        use_ema=bool(config.ema_cfg),
        in_channels=memory.in_channels_of(builder.config.model_cfg),
    )
    batches = {}
    if args.memory:
        batches = {c: known.largest_batch(args.memory, c) for c in memory.COLUMNS}
    return known.estimate(args.batch_size or config.batch_size), batches


def _check(args):
    if args.input_size and min(args.input_size) < 1:
        raise UserError(f"--input_size takes width and height, at least 1, not {args.input_size}.")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch_size should be at least 1, not {args.batch_size}.")
    if args.batch_size is not None and args.memory is None:
        raise UserError("--batch_size is for --memory; multiply-adds are those of one image.")
    if args.memory is not None and not 0 <= args.memory < math.inf:
        raise UserError(f"--memory takes the GiB of a device, such as 24, not {args.memory}.")
    if min(args.output_strides) < 1:
        raise UserError(f"--output_strides takes positive integers, not {args.output_strides}.")
    from paddleseg_deeplab.prediction.outputs import check_save_dir
    from paddleseg_deeplab.utils.installed import require_paddle

    require_paddle()
    check_save_dir(args.save_dir)


def run(args: argparse.Namespace) -> int:
    """Prints, draws and writes; 0 when done."""
    _check(args)
    from paddleseg_deeplab.utils.device import select_device

    select_device("cpu")
    args.input_size = args.input_size or _default_size(args)
    from paddleseg_deeplab.tools.inspect_model import report
    from paddleseg_deeplab.tools.inspect_model.draw import draw_all
    from paddleseg_deeplab.utils.visualize import save_image

    own, facts, skipped = inspect_config(args)
    mine, (width, height) = facts[own], args.input_size
    out = Path(args.save_dir)
    at = f"output stride {own}, image {width}x{height}"
    print(f"{args.config}, {at}")
    print(f"{mine.tensors} tensors with {mine.numbers:,} numbers in the state_dict, of these")
    print(f"{mine.parameters:,} trained parameters\n")
    print("\n".join([*report.atrous_table(mine.atrous), "", *report.stage_table(facts, own), ""]))
    for stride, reason in skipped.items():
        print(f"Output stride {stride} is left out: {reason}")
    memory = {}
    if args.memory is not None:
        estimate, batches = training_memory(args)
        print("\n".join([*report.memory_tables(estimate, args.memory, batches), ""]))
        memory = {"memory": {**report.as_plain(estimate), "largest_batch": batches}}
    content = {
        "config": Path(args.config).as_posix(),
        "input_size": [height, width],
        "output_stride": own,
        "skipped": {str(stride): reason for stride, reason in skipped.items()},
        "strides": {str(stride): report.as_json(f) for stride, f in facts.items()},
        **memory,
    }
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2)
    (out / "inspect.json").write_text(text + "\n", encoding="utf-8")
    files = ["inspect.json"]
    for name, picture in draw_all(mine.atrous, f"Output stride {own}, {width}x{height}").items():
        save_image(str(out / name), picture)
        files.append(name)
    print(f"Written to {out}: {', '.join(files)}")
    return 0

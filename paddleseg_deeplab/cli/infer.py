# SPDX-License-Identifier: Apache-2.0
"""Predicts images with an exported network, as deploy/python/infer.py does.

Needs the folder that export.py wrote; no config, no checkpoint, no training code. ONNX Runtime and
OpenVINO run it without Paddle.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.utils.errors import UserError

if TYPE_CHECKING:
    from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
    from paddleseg_deeplab.deploy.inferer import Inferer
    from paddleseg_deeplab.deploy.settings import RuntimeSettings

_DESCRIPTION = """Predicts images with an exported network.

  python deploy/python/infer.py --model_dir output/inference_model --image_path photos

Results have the images' sizes and the same names as predict.py's. Images that cannot be read, do
not fit or fail otherwise are reported at the end, and the exit status is then 2.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; PaddleSeg's names where they exist."""
    from paddleseg_deeplab.deploy.settings import PRECISIONS, RUNTIMES

    boolean: dict[str, Any] = {
        "type": common.parse_bool,
        "nargs": "?",
        "const": True,
        "metavar": "True|False",
    }
    add = parser.add_argument
    add("--model_dir", help="the folder that export.py wrote")
    add("--config", help="PaddleSeg's way to say it: the deploy.yaml in that folder")
    add(
        "--image_path",
        required=True,
        nargs="+",
        help="images, folders (searched recursively), list files, glob patterns",
    )
    common.add_output_arguments(parser, "output/infer")
    common.add_divisor_argument(parser, "deploy.yaml")
    add("--batch_size", type=int, default=1, help="images of equal size at once (default: 1)")
    add("--device", help="cpu, gpu or gpu:N (default: the GPU if there is one; with bf16 the CPU)")
    add(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="what runs the network; openvino reads the formats legacy and onnx (default: auto, "
        "Paddle Inference, or ONNX Runtime for onnx)",
    )
    precision = "bf16: a CPU; fp16: a GPU; int8: TensorRT (default: fp32)"
    add("--precision", choices=PRECISIONS, default="fp32", help=precision)
    add("--benchmark", default=False, **boolean, help="print times at the end")
    add("--print_detail", default=False, **boolean, help="show Paddle Inference's log")
    common.add_crf_arguments(parser, "deploy.yaml")
    workers = "threads that read ahead, write, and run the CRF (default: 2, or 1 on one processor; "
    add("--num_workers", type=int, help=workers + "with --benchmark 0: each part by itself)")
    cpu = parser.add_argument_group("on a CPU").add_argument
    cpu("--cpu_threads", type=int, help="default: all that this process may use")
    cpu("--enable_mkldnn", **boolean, help="oneDNN (default: on where Paddle can)")
    gpu = parser.add_argument_group("on a GPU").add_argument
    gpu("--use_trt", default=False, **boolean, help="TensorRT, for the format legacy")
    gpu("--min_subgraph_size", type=int, default=3, help="for TensorRT (default: 3)")
    tune = "learn TensorRT's shapes from images (default: where none are given or kept)"
    gpu("--enable_auto_tune", **boolean, help=tune)
    gpu("--auto_tuned_shape_file", help="where they are kept (default: beside the network)")
    for kind in ("min", "opt", "max"):
        gpu(f"--trt_{kind}_shape", nargs=4, type=int, metavar="N", help=f"{kind}imum, N C H W")


def settings_of(args: argparse.Namespace, info: DeployInfo) -> RuntimeSettings:
    """The `RuntimeSettings` that the flags describe.

    Raises:
        UserError: a flag's value is not allowed, or the device is not there.
    """
    from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings, choose_device

    for name in ("batch_size", "size_divisor", "cpu_threads", "min_subgraph_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} should be at least 1, not {value}.")
    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num_workers should be at least 0, not {args.num_workers}.")
    if args.enable_auto_tune and not args.use_trt:
        raise UserError("--enable_auto_tune learns shapes for TensorRT: add --use_trt True.")
    device = args.device or ("cpu" if args.precision == "bf16" else None)
    settings = RuntimeSettings(
        device=choose_device(device, info.format, args.runtime),
        cpu_threads=args.cpu_threads,
        mkldnn=args.enable_mkldnn,
        precision=args.precision,
        use_trt=args.use_trt,
        batch_size=args.batch_size,
        min_subgraph_size=args.min_subgraph_size,
        trt_min_shape=args.trt_min_shape,
        trt_opt_shape=args.trt_opt_shape,
        trt_max_shape=args.trt_max_shape,
        tuned_shape_file=args.auto_tuned_shape_file,
        print_detail=args.print_detail,
        runtime=args.runtime,
    )
    check_settings(settings, info)
    return settings


def report_times(inferer: Inferer, count: int, wall: float) -> None:
    """Prints medians of each part, per image, and images per second."""
    import numpy as np

    medians = {k: 1e3 * float(np.median(v)) for k, v in inferer.seconds.items() if v}
    text = ", ".join(f"{part} {value:.1f} ms" for part, value in medians.items())
    print(f"medians per image: {text}")
    rate = 1e3 / max(sum(medians.values()), 1e-9)
    print(f"{rate:.2f} images/s; with reading and writing files {count / wall:.2f} images/s")


def _opened(args):
    """What --model_dir holds, what is to be written, the CRF, and what is done to the labels.

    (DeployInfo, outputs, dict or None, Cleanup or None)
    """
    from paddleseg_deeplab.deploy import deploy_yaml
    from paddleseg_deeplab.deploy.inferer import check_probabilities
    from paddleseg_deeplab.postprocess.settings import crf_settings
    from paddleseg_deeplab.prediction.outputs import check_save_dir, parse_outputs

    if bool(args.model_dir) == bool(args.config):
        raise UserError("Give --model_dir with the exported folder (or --config deploy.yaml).")
    outputs, cleanup = parse_outputs(" ".join(args.outputs)), common.cleanup_of(args)
    check_save_dir(args.save_dir)
    info = deploy_yaml.read(args.model_dir or args.config)
    if args.size_divisor is not None:
        info.size_divisor = args.size_divisor
    crf = crf_settings(info.crf, args, f"{info.folder}/{deploy_yaml.FILE_NAME}: crf")
    wanting = {
        "The dense CRF": crf is not None,
        "--outputs prob": "prob" in outputs,
        "--threshold": cleanup is not None and cleanup.needs_probabilities,
    }
    for name, wants in wanting.items():
        if wants:
            check_probabilities(info, name)
    return info, outputs, crf, cleanup


def run(args: argparse.Namespace) -> int:
    """Predicts as the flags say; returns the exit status."""
    from tqdm import tqdm

    from paddleseg_deeplab.deploy import inferer, tensorrt
    from paddleseg_deeplab.postprocess.settings import make_crf
    from paddleseg_deeplab.prediction import batching, outputs, pictures
    from paddleseg_deeplab.prediction.annotations import Annotations
    from paddleseg_deeplab.prediction.cleanup import cleaned
    from paddleseg_deeplab.utils import visualize
    from paddleseg_deeplab.utils.logger import logger

    info, wanted, crf, cleanup = _opened(args)
    settings = settings_of(args, info)
    paths, root = outputs.collect_images(common.image_paths(args), exclude=args.save_dir)
    names = outputs.output_names(paths, root)
    palette = info.palette
    if palette is None:
        palette = visualize.default_palette(info.num_classes or 256)
    if tensorrt.choose_shapes(info, settings, args.enable_auto_tune):
        inferer.tune_shapes(info, settings, paths)
    network = inferer.Inferer(info, settings, crf is not None)
    where = f"{network.runtime.name} ({settings.precision}) on {settings.device}"
    logger.info("%s in %s: %d images.", info.model_path, where, len(paths))
    if args.benchmark:
        inferer.warm_up(network, paths)
    failures: pictures.Failures = []
    start, workers = time.perf_counter(), args.num_workers
    if workers is None:
        workers = 0 if args.benchmark else batching.automatic_workers()
    keep = "prob" in wanted
    scores = keep or (cleanup is not None and cleanup.needs_probabilities)
    found = inferer.results(
        network, paths, failures, scores, crf=make_crf(crf), num_workers=workers
    )
    if cleanup is not None:
        note = functools.partial(pictures.note_failure, failures)
        found = cleaned(cleanup, found, note, workers, keep)
    classes = info.class_names or info.num_classes or len(palette)
    annotations = Annotations(wanted, args.save_dir, classes, root)
    written = pictures.write_pictures(
        found,
        failures,
        workers,
        save_dir=args.save_dir,
        names=names,
        palette=palette,
        outputs=wanted,
        annotations=annotations,
    )
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        for done, _ in enumerate(written, 1):
            bar.update(done + len(failures) - bar.n)
    annotations.finish()
    if info.class_names and len(failures) < len(paths):
        legend = visualize.legend(palette, info.class_names)
        visualize.save_image(os.path.join(args.save_dir, "legend.png"), legend)
    status = outputs.report_failures(failures, len(paths), args.save_dir)
    if args.benchmark:
        report_times(network, len(paths) - len(failures), time.perf_counter() - start)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="infer.py")


if __name__ == "__main__":
    sys.exit(main())

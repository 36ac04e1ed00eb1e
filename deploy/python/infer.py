# SPDX-License-Identifier: Apache-2.0
"""Predicts images with an exported network: python deploy/python/infer.py --help

Needs the folder that export.py wrote and the installed package; no config, no checkpoint, no
training code. ONNX Runtime and OpenVINO run it without Paddle.
"""

import argparse
import logging
import os
import sys
import time
import warnings
from functools import partial

# First, so that the CPU environment is prepared before Paddle is imported.
import paddleseg_deeplab  # noqa: F401  isort: skip
from paddleseg_deeplab.cli.common import Parser, imports_of, status_of

with imports_of(__name__):
    import numpy as np
    from tqdm import tqdm

    from paddleseg_deeplab import registry, transforms
    from paddleseg_deeplab.deploy import deploy_yaml, tensorrt
    from paddleseg_deeplab.deploy.runtimes import (
        PRECISIONS,
        RUNTIMES,
        InferenceSettings,
        check_settings,
        choose_device,
        open_predictor,
    )
    from paddleseg_deeplab.postprocess.settings import (
        add_crf_arguments,
        crf_settings,
        make_crf,
        parse_bool,
    )
    from paddleseg_deeplab.prediction import batching, pictures, restore
    from paddleseg_deeplab.prediction import crf as refine
    from paddleseg_deeplab.prediction.outputs import (
        check_save_dir,
        collect_images,
        output_names,
        parse_outputs,
        report_failures,
    )
    from paddleseg_deeplab.prediction.scores import check_finite
    from paddleseg_deeplab.utils import visualize
    from paddleseg_deeplab.utils.errors import UserError
    from paddleseg_deeplab.utils.logger import logger, setup_console

_DESCRIPTION = """Predicts images with an exported network.

  python deploy/python/infer.py --model_dir output/inference_model --image_path photos

Results have the images' sizes and the same names as predict.py's. Images that cannot be read, do
not fit or fail otherwise are reported at the end, and the exit status is then 2.
"""
_WARM_UP_RUNS = 3
_TUNING_IMAGES = 10


def parse_args(argv=None):
    """The flags; PaddleSeg's names where they exist."""
    parser = Parser(
        prog="infer.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    boolean = {"type": parse_bool, "nargs": "?", "const": True, "metavar": "True|False"}
    add = parser.add_argument
    add("--model_dir", help="the folder that export.py wrote")
    add("--config", help="PaddleSeg's way to say it: the deploy.yaml in that folder")
    add(
        "--image_path",
        required=True,
        help="an image, a folder (searched recursively), a list file or a glob pattern",
    )
    add("--save_dir", default="output/infer", help="default: output/infer")
    add(
        "--outputs",
        nargs="+",
        default=["overlay", "palette"],
        help="of overlay, palette, raw, prob (default: overlay palette)",
    )
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
    add("--debug", action="store_true", help="show tracebacks and debug lines")
    add_crf_arguments(parser, "deploy.yaml")
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
    args = parser.parse_args(argv)
    if args.num_workers is None:
        args.num_workers = 0 if args.benchmark else batching.automatic_workers()
    return args


def settings_of(args, info):
    """The `InferenceSettings` that the flags describe.

    Raises:
        UserError: a flag's value is not allowed, or the device is not there.
    """
    for name in ("batch_size", "cpu_threads", "min_subgraph_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} should be at least 1, not {value}.")
    if args.num_workers < 0:
        raise UserError(f"--num_workers should be at least 0, not {args.num_workers}.")
    if args.enable_auto_tune and not args.use_trt:
        raise UserError("--enable_auto_tune learns shapes for TensorRT: add --use_trt True.")
    device = args.device or ("cpu" if args.precision == "bf16" else None)
    settings = InferenceSettings(
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


def build_compose(info):
    """The preprocessing that deploy.yaml describes."""
    steps = []
    for item in info.transforms:
        item = dict(item)
        try:
            steps.append(registry.TRANSFORMS[item.pop("type", None)](**item))
        except (KeyError, TypeError, ValueError) as e:
            text = e.args[0] if e.args else e
            raise UserError(f"{info.folder}/{deploy_yaml.FILE_NAME}: transforms: {text}") from e
    keys = {"to_rgb": info.to_rgb, "img_channels": info.img_channels, "nodata": info.nodata}
    return transforms.Compose(steps, **keys)


def postprocess(output, trans_info, output_op, want_probabilities=False):
    """One image's result at its original size, as predict.py makes it.

    Args:
        output (np.ndarray): What the network gives for one image: labels [h, w] for "argmax",
            else scores [num_classes, h, w].
        trans_info (list): Of the preprocessing.
        output_op (str): "argmax", "softmax" or "none".
        want_probabilities (bool): Not with "argmax".

    Returns:
        tuple: labels, integers [H, W]; probabilities, float32 [num_classes, H, W], or None.
    """
    if output_op == "argmax":
        return restore.labels_to_original(output, trans_info), None
    if not want_probabilities:
        return restore.scores_to_labels(output, trans_info), None
    scores = restore.restore(output, trans_info)
    labels = restore.scores_to_labels(scores, [])
    return labels, restore.softmax(scores) if output_op == "none" else scores


class Inferer:
    """An exported folder with its preprocessing; counts the seconds of each part.

    Args:
        info (DeployInfo): The folder.
        settings (InferenceSettings): How to run it.
        for_crf (bool): A dense CRF will need the images.
    """

    def __init__(self, info, settings, for_crf=False):
        self.info = info
        self.load = partial(pictures.load_picture, compose=build_compose(info), for_crf=for_crf)
        self.predictor = open_predictor(info, settings)
        fixed = info.input_shape[0]
        self.batch_size = min(settings.batch_size, fixed) if fixed else settings.batch_size
        self.seconds = {"preprocess": [], "inference": [], "postprocess": [], "CRF": []}

    def _timed(self, part, count, function, *args):
        start = time.perf_counter()
        result = function(*args)
        self.seconds[part].append((time.perf_counter() - start) / count)
        return result

    def prepare(self, path):
        """Reads an image into a sample, see `pictures.load_picture`.

        Raises:
            UserError: it cannot be read, or its size is not the one that the network takes.
        """
        sample = self._timed("preprocess", 1, self.load, path)
        chw = sample["img"]
        least = self.predictor.smallest_side
        if min(chw.shape[1:]) < least:
            why = f"gives an input {list(chw.shape)}, {self.predictor.runtime} takes sides from"
            raise UserError(f"{path}: {why} {least} pixels on. Use another --runtime.")
        for want, have in zip(self.info.input_shape[1:], chw.shape):
            if want and want != have:
                raise UserError(
                    f"{path}: gives an input {list(chw.shape)}, the exported network takes "
                    f"{self.info.input_shape[1:]} only. Export again with a free --input_shape, or "
                    "with a Resize or Padding in export.transforms."
                )
        return sample

    def infer(self, batch):
        """Outputs for inputs [N, C, h, w]."""
        count = len(batch)
        missing = (self.info.input_shape[0] or count) - count
        if missing > 0:  # a fixed batch is filled up with its last image
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        return self._timed("inference", count, self.predictor.run, batch)[:count]

    def finish(self, output, trans_info, want_probabilities):
        """See `postprocess`."""
        settings = (trans_info, self.info.output_op, want_probabilities)
        return self._timed("postprocess", 1, postprocess, output, *settings)


def batches(inferer, paths, failures, num_workers=0):
    """Yields (samples, float32 [N, C, h, w]) of one size each."""
    items = enumerate(paths)
    samples = pictures.read_pictures(items, inferer.prepare, failures, num_workers)
    return batching.equal_size_batches(samples, inferer.batch_size)


def results(inferer, paths, failures, want_probabilities, num_workers=0):
    """Yields (sample, labels, probabilities or None) of each image that can be used."""

    def run(samples, batch):
        outputs = inferer.infer(batch)
        check_finite(outputs, [sample["im_path"] for sample in samples])
        return zip(samples, outputs)

    def finish(samples, outputs):
        yield samples[0], *inferer.finish(outputs[0], samples[0]["trans_info"], want_probabilities)

    found = pictures.run_batches(run, batches(inferer, paths, failures, num_workers), failures)
    singles = (([sample], [output]) for sample, output in found)
    return pictures.run_batches(finish, singles, failures)


def _runs(inferer, paths, times=1):
    """Yields outputs of the batches that can be run, each `times` over."""

    def run(_, batch):
        return [inferer.infer(batch) for _ in range(times)]

    return pictures.run_batches(run, batches(inferer, paths, []), [])


def tune_shapes(info, settings, paths):
    """Runs some images without TensorRT, to learn the shapes inside the network."""
    with tensorrt.learning(settings):
        # The file is written when the predictor goes, and that is with this loop.
        for _ in _runs(Inferer(info, settings), paths[:_TUNING_IMAGES]):
            pass


def warm_up(inferer, paths):
    """First runs, which build kernels, so that they are not measured."""
    next(_runs(inferer, paths, _WARM_UP_RUNS), None)  # the first batch that works
    for values in inferer.seconds.values():
        values.clear()


def report_times(inferer, count, wall):
    """Prints medians of each part, per image, and images per second."""
    medians = {k: 1e3 * float(np.median(v)) for k, v in inferer.seconds.items() if v}
    text = ", ".join(f"{part} {value:.1f} ms" for part, value in medians.items())
    print(f"medians per image: {text}")
    rate = 1e3 / max(sum(medians.values()), 1e-9)
    print(f"{rate:.2f} images/s; with reading and writing files {count / wall:.2f} images/s")


def run(args):
    """Predicts as the flags say; returns the exit status."""
    if bool(args.model_dir) == bool(args.config):
        raise UserError("Give --model_dir with the exported folder (or --config deploy.yaml).")
    outputs = parse_outputs(" ".join(args.outputs))
    check_save_dir(args.save_dir)
    info = deploy_yaml.read(args.model_dir or args.config)
    crf = crf_settings(info.crf, args, f"{info.folder}/{deploy_yaml.FILE_NAME}: crf")
    want_probabilities = "prob" in outputs or crf is not None
    if want_probabilities and info.output_op == "argmax":
        raise UserError(
            f"{'--outputs prob' if crf is None else 'The dense CRF'}: {info.folder} was exported "
            "with argmax, which keeps no probabilities. Export again with --output_op none or "
            "softmax."
        )
    settings = settings_of(args, info)
    paths, root = collect_images(args.image_path, exclude=args.save_dir)
    names = output_names(paths, root)
    palette = info.palette
    if palette is None:
        palette = visualize.default_palette(info.num_classes or 256)
    if tensorrt.choose_shapes(info, settings, args.enable_auto_tune):
        tune_shapes(info, settings, paths)
    inferer = Inferer(info, settings, crf is not None)
    where = f"{inferer.predictor.runtime} ({settings.precision}) on {settings.device}"
    logger.info("%s in %s: %d images.", info.model_path, where, len(paths))
    if args.benchmark:
        warm_up(inferer, paths)
    failures, start, workers = [], time.perf_counter(), args.num_workers
    found = results(inferer, paths, failures, want_probabilities, workers)
    if crf is not None:
        settings = {"seconds": inferer.seconds["CRF"]}
        settings["on_error"] = partial(pictures.note_failure, failures)
        found = refine.refined(
            make_crf(crf), found, lambda sample: sample["crf_image"], workers, **settings
        )
    places = {"save_dir": args.save_dir, "names": names, "palette": palette, "outputs": outputs}
    written = pictures.write_pictures(found, failures, workers, **places)
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        for done, _ in enumerate(written, 1):
            bar.update(done + len(failures) - bar.n)
    if info.class_names and len(failures) < len(paths):
        legend = visualize.legend(palette, info.class_names)
        visualize.save_image(os.path.join(args.save_dir, "legend.png"), legend)
    status = report_failures(failures, len(paths), args.save_dir)
    if args.benchmark:
        report_times(inferer, len(paths) - len(failures), time.perf_counter() - start)
    return status


def main(argv=None):
    """The command; returns its exit status."""
    args = parse_args(argv)
    setup_console(logging.DEBUG if args.debug else logging.INFO)
    if not args.print_detail:
        # Paddle's own warnings, which no user can act upon.
        os.environ.setdefault("GLOG_minloglevel", "2")
        warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Searches the dense CRF's parameters on validation images; the best go to --save_dir."""

import argparse
import tempfile

from paddleseg_deeplab.utils.errors import UserError

DESCRIPTION = """Searches the dense CRF's parameters on the first images of the validation set.

  paddleseg-deeplab search_crf --config mine.yml --model_path output/best_model

The network runs once over the images; CRFs of a coarse grid, then of a finer one around its best
point, run on its probabilities. results.csv and best.yml (a config's test_config.crf) go to
--save_dir. The default grid is the DeepLab V2 paper's: 128 settings and some 20 more.
"""
_SEARCHED = {
    "bilateral_weight": "of the kernel of position and colour (default: 3 4 5 6)",
    "bilateral_xy": "its reach in pixels (default: 30 40 50 60 70 80 90 100)",
    "bilateral_rgb": "its reach in grey levels (default: 3 4 5 6)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model_path", required=True, help="trained weights: model.pdparams or its folder"
    )
    parser.add_argument(
        "--save_dir", default="output/crf_search", help="default: output/crf_search"
    )
    parser.add_argument(
        "--images", type=int, default=100, help="of the validation set, the first (default: 100)"
    )
    search = parser.add_argument_group("the search")
    for name, text in _SEARCHED.items():
        search.add_argument(f"--{name}", nargs="+", type=float, metavar="V", help=f"values {text}")
    search.add_argument(
        "--iterations", type=int, default=10, help="of the mean field (default: 10)"
    )
    search.add_argument(
        "--gaussian_weight", type=float, default=3.0, help="fixed: of the position's (default: 3)"
    )
    search.add_argument(
        "--gaussian_xy", type=float, default=3.0, help="fixed: its reach in pixels (default: 3)"
    )
    search.add_argument(
        "--processes", type=int, help="that run CRFs; 0: none beside this one (default: the cores)"
    )


def _check(args):
    from paddleseg_deeplab.prediction.outputs import check_save_dir
    from paddleseg_deeplab.tools.search_crf import search as crf_search

    if args.images < 1:
        raise UserError(f"--images should be at least 1, not {args.images}.")
    if args.iterations < 1:
        raise UserError(f"--iterations should be at least 1, not {args.iterations}.")
    if args.processes is not None and args.processes < 0:
        raise UserError(f"--processes should be at least 0, not {args.processes}.")
    check_save_dir(args.save_dir)
    grid = {name: getattr(args, name) or crf_search.COARSE_GRID[name] for name in _SEARCHED}
    fixed = {name: getattr(args, name) for name in crf_search.FIXED}
    settings = crf_search.grid_settings(grid, fixed)  # before the network runs
    return grid, fixed, len(settings)


def _progress(total, stage):
    """A progress bar on a terminal, else a line in the log at every tenth."""
    from tqdm import tqdm

    from paddleseg_deeplab.utils.logger import logger

    class Bar(tqdm):
        done = 0

        def update(self, n=1):
            before, self.done = self.done, self.done + n
            if self.disable and before * 10 // total != self.done * 10 // total:
                logger.info("%s: %d of %d CRFs", stage, self.done, total)
            return super().update(n)

    return Bar(total=total, desc=stage, unit="CRF", disable=None)


def run(args: argparse.Namespace) -> int:
    """Searches as the flags say; 0 when done."""
    grid, fixed, points = _check(args)
    from paddleseg_deeplab.core.stream import NetworkSettings
    from paddleseg_deeplab.cvlibs import Config, SegBuilder
    from paddleseg_deeplab.cvlibs.inference import inference_settings
    from paddleseg_deeplab.cvlibs.trained_config import warn_of_other_config
    from paddleseg_deeplab.utils.device import select_device

    device = select_device(args.device)
    config = Config(args.config, opts=args.opts, data_format=args.data_format, pretrained=False)
    settings = inference_settings(config, args, "aug_eval")
    num_workers, aug = settings.pop("num_workers"), settings.pop("aug_eval")
    how = NetworkSettings(aug=aug, **settings)

    from paddleseg_deeplab.tools.search_crf import search as crf_search
    from paddleseg_deeplab.tools.search_crf.probabilities import save_probabilities
    from paddleseg_deeplab.utils.cpu import thread_count
    from paddleseg_deeplab.utils.logger import logger
    from paddleseg_deeplab.utils.weights.load import load_entire_model

    builder = SegBuilder(config)
    dataset, model = builder.val_dataset, builder.model
    warn_of_other_config(config, args.model_path, labels=True)
    load_entire_model(model, args.model_path)
    workers = thread_count() if args.processes is None else args.processes
    with tempfile.TemporaryDirectory(prefix="crf_search_") as folder:
        logger.info("%d images at most through the network on %s.", args.images, device)
        count, before = save_probabilities(
            model, dataset, folder, args.images, how, num_workers=num_workers
        )
        logger.info("%d settings on %d images, then finer ones.", points, count)
        trials = crf_search.search(
            folder,
            count,
            dataset.num_classes,
            grid=grid,
            fixed=fixed,
            ignore_index=before.ignore_index,
            workers=workers,
            progress=_progress,
        )
    trials.insert(0, crf_search.Trial("none", {}, before))
    logger.info("The best of %d settings:\n%s", len(trials) - 1, crf_search.table(trials))
    best = crf_search.best_of(trials[1:])
    logger.info("mIoU %.4f without the CRF, %.4f with the best one.", before.mean_iou, best.miou)
    files = crf_search.write_results(trials, args.save_dir)
    logger.info("The results: %s", ", ".join(files))
    return 0

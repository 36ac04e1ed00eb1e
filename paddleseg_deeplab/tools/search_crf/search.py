# SPDX-License-Identifier: Apache-2.0
"""Searches the dense CRF's parameters on images whose class probabilities lie on disk.

As DeepLab V2 (section 4.1 of the paper) does: the smoothness kernel is fixed at w2 = 3 and
sigma_gamma = 3; w1, sigma_alpha and sigma_beta are searched on a coarse grid, then with half the
step around the best. No Paddle here: worker processes are started afresh and import little.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np
import yaml

from paddleseg_deeplab.postprocess.dense_crf import LatticeCache
from paddleseg_deeplab.postprocess.settings import make_crf
from paddleseg_deeplab.prediction.crf import refine
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.metrics import ConfusionMatrix
from paddleseg_deeplab.utils.out_of_memory import explained

if TYPE_CHECKING:
    from tqdm import tqdm

# What is searched, in the order of the results, and the paper's coarse grid of it.
COARSE_GRID = {
    "bilateral_weight": (3.0, 4.0, 5.0, 6.0),
    "bilateral_xy": (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0),
    "bilateral_rgb": (3.0, 4.0, 5.0, 6.0),
}
FIXED = {"iterations": 10, "gaussian_weight": 3.0, "gaussian_xy": 3.0}


@dataclasses.dataclass
class Trial:
    """One setting and what it gives.

    Attributes:
        stage (str): "none" (no CRF), "coarse" or "fine".
        settings (dict): Parameters of `DenseCRF`; empty for "none".
        confusion (ConfusionMatrix): Over all the images.
    """

    stage: str
    settings: dict[str, float]
    confusion: ConfusionMatrix

    @property
    def miou(self) -> float:
        return self.confusion.mean_iou


# ---------------------------------------------------------------------------------- images on disk


def save_image(
    folder: str, number: int, probabilities: np.ndarray, image: np.ndarray, label: np.ndarray
) -> None:
    """Keeps one image's data for the workers.

    Args:
        folder (str): A temporary folder.
        number (int): Of the image, from 0.
        probabilities (np.ndarray): float [K, H, W]; kept as float16, whose steps (at most 0.0005)
            are far below what moves an energy of several units.
        image (np.ndarray): uint8 [H, W, C].
        label (np.ndarray): Integers [H, W].
    """
    np.save(_file(folder, number, "prob"), probabilities.astype(np.float16))
    np.save(_file(folder, number, "image"), image)
    np.save(_file(folder, number, "label"), label.astype(np.int32))


def _file(folder, number, kind):
    return os.path.join(folder, f"{number:06d}_{kind}.npy")


def load_image(folder: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `save_image` kept; the probabilities as float32 that sum to 1 over K."""
    kinds = ("prob", "image", "label")
    probabilities, image, label = (np.load(_file(folder, number, kind)) for kind in kinds)
    # The smallest positive float16 stands for whatever was lost below it: no class is impossible.
    probabilities = np.maximum(probabilities.astype(np.float32), 6e-8)
    return probabilities / probabilities.sum(axis=0), image, label


def score_image(
    folder: str,
    number: int,
    settings: Sequence[Mapping[str, float]],
    ignore_index: int,
    threads: int | None = None,
) -> np.ndarray:
    """Runs several CRFs on one image.

    Those that differ in weights and iterations alone share their lattices, if they follow each
    other.

    Args:
        folder (str), number (int): As of `save_image`.
        settings (list[dict]): Parameters of `DenseCRF`, one dict a run.
        ignore_index (int): Label of pixels that never count.
        threads (int, optional): Of each CRF.

    Returns:
        np.ndarray: int64 [len(settings), K, K], a confusion matrix a run.
    """
    probabilities, image, label = load_image(folder, number)
    out, lattices = [], LatticeCache(2)  # one for each kernel
    for params in settings:
        crf = make_crf(params, threads=threads, lattices=lattices)
        assert crf is not None  # None stands for no CRF, and these are parameters
        labels, _ = refine(crf, probabilities, image)
        confusion = ConfusionMatrix(len(probabilities), ignore_index)
        confusion.update(labels, label)
        out.append(confusion.matrix)
    return np.stack(out)


# ------------------------------------------------------------------------------------------- grids


def grid_settings(
    grid: Mapping[str, Sequence[float]], fixed: Mapping[str, float]
) -> list[dict[str, float]]:
    """Every combination of a grid as a list of dicts, the last parameter varying fastest.

    Args:
        grid (dict[str, Sequence[float]]): Values of the searched parameters.
        fixed (dict): The other parameters.

    Raises:
        UserError: A value is not allowed, or a list is empty.
    """
    for name, values in grid.items():
        if not values:
            raise UserError(f"--{name}: give at least one value.")
    axes = [tuple(dict.fromkeys(float(v) for v in values)) for values in grid.values()]
    out = [{**fixed, **dict(zip(grid, row))} for row in itertools.product(*axes)]
    for settings in out:
        make_crf(settings, "search_crf")
    return out


def finer_grid(
    grid: Mapping[str, Sequence[float]], best: Mapping[str, float]
) -> dict[str, list[float]]:
    """A grid with half the step around the best point.

    Args:
        grid (dict[str, Sequence[float]]): The coarse one.
        best (dict): Values of its best point.

    Returns:
        dict[str, list[float]]: The best value of each parameter and the points half way to its
        neighbours; at an end of a list half a step beyond it too, if that is positive; a parameter
        with one value stays.
    """
    out = {}
    for name, values in grid.items():
        values = sorted({float(v) for v in values})
        i = values.index(float(best[name]))
        steps = [b - a for a, b in itertools.pairwise(values)]
        if not steps:
            out[name] = values
            continue
        below, above = steps[max(i - 1, 0)] / 2, steps[min(i, len(steps) - 1)] / 2
        around = (values[i] - below, values[i], values[i] + above)
        out[name] = [v for v in around if v > 0]
    return out


def best_of(trials: Iterable[Trial]) -> Trial:
    """The trial with the highest mIoU, of equal ones the first; NaN never wins."""
    return max(trials, key=lambda t: -1.0 if np.isnan(t.miou) else t.miou)


# ------------------------------------------------------------------------------------------ search


def _run(pool, folder, count, settings, stage, sizes, advance):
    """Trials of all the settings, over all the images; ``pool`` None: in this process."""
    num_classes, ignore_index = sizes
    totals = np.zeros((len(settings), num_classes, num_classes), np.int64)
    groups = {}  # settings with one lattice go together: the weights alone differ
    for i, params in enumerate(settings):
        groups.setdefault((params["bilateral_xy"], params["bilateral_rgb"]), []).append(i)
    jobs = [(number, indices) for number in range(count) for indices in groups.values()]

    def arguments(job):
        return folder, job[0], [settings[i] for i in job[1]], ignore_index

    if pool is None:
        done = ((job, score_image(*arguments(job))) for job in jobs)
    else:
        # A process an image: threads within one would only compete.
        futures = {pool.submit(score_image, *arguments(job), threads=1): job for job in jobs}
        done = ((futures[future], future.result()) for future in as_completed(futures))
    facts = {"what": "CRFs ran", "settings": ("fewer --processes",)}
    try:
        with explained(**facts):
            for (_, indices), matrices in done:
                totals[indices] += matrices  # integers: the order does not matter
                advance(len(indices))
    except BrokenProcessPool as error:
        raise UserError(
            "A process that ran CRFs is gone. Where memory ran out, the system ends such a process "
            "without a word: fewer --processes then help."
        ) from error
    return [
        Trial(stage, params, ConfusionMatrix.from_matrix(total, ignore_index))
        for params, total in zip(settings, totals)
    ]


def search(
    folder: str,
    count: int,
    num_classes: int,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    fixed: Mapping[str, float] | None = None,
    ignore_index: int = 255,
    workers: int = 0,
    progress: Callable[[int, str], tqdm] | None = None,
) -> list[Trial]:
    """Coarse grid, then a finer one around its best point.

    Args:
        folder (str): Where `save_image` put the data.
        count (int): Images there, numbered from 0.
        num_classes (int): K.
        grid (dict, optional): Values of the searched parameters; default `COARSE_GRID`.
        fixed (dict, optional): The other parameters; default `FIXED`.
        ignore_index (int): Label of pixels that never count.
        workers (int): Processes, started by "spawn" (a script of one's own then needs the usual
            ``if __name__ == "__main__":``); 0 works in this one. The result does not depend on it.
        progress (callable, optional): Makes a progress bar from (total, description), such as
            a `tqdm`; its ``update(n)`` counts CRFs.

    Returns:
        list[Trial]: Coarse ones, then fine ones, each in the order of its grid.

    Raises:
        UserError: A setting is not allowed.
    """
    grid = dict(COARSE_GRID if grid is None else grid)
    fixed = {**FIXED, **(fixed or {})}
    settings = grid_settings(grid, fixed)
    pool = None
    if workers > 0:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        trials = []
        for stage in ("coarse", "fine"):
            bar = progress(len(settings) * count, stage) if progress and settings else None
            advance = bar.update if bar is not None else lambda n: None
            sizes = (num_classes, ignore_index)
            trials += _run(pool, folder, count, settings, stage, sizes, advance)
            if bar is not None:
                bar.close()
            if stage == "coarse":
                finer = grid_settings(finer_grid(grid, best_of(trials).settings), fixed)
                settings = [params for params in finer if params not in settings]
        return trials
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


# ----------------------------------------------------------------------------------------- results


def table(trials: Sequence[Trial], most: int = 10) -> str:
    """The best trials, one a line, the one without a CRF first; text for a console."""
    names = [*COARSE_GRID, "mIoU", "accuracy"]
    lines = ["stage   " + "".join(f"{name:>18}" for name in names)]
    ranked = sorted(trials[1:], key=lambda t: -np.nan_to_num(t.miou))[:most]
    for trial in [*trials[:1], *ranked]:
        cells = [trial.settings.get(name) for name in COARSE_GRID]
        text = "".join(f"{'-' if cell is None else f'{cell:g}':>18}" for cell in cells)
        figures = f"{trial.miou:>18.4f}{trial.confusion.accuracy:>18.4f}"
        lines.append(f"{trial.stage:<8}{text}{figures}")
    return "\n".join(lines)


def write_results(trials: Sequence[Trial], save_dir: str) -> list[str]:
    """Writes results.csv (every trial) and best.yml (the best one, as a config).

    Args:
        trials (list[Trial]): The one without a CRF first.
        save_dir (str): Made if missing.

    Returns:
        list[str]: The files.
    """
    os.makedirs(save_dir, exist_ok=True)
    best = best_of(trials[1:])
    names = list(best.settings)
    files = [os.path.join(save_dir, name) for name in ("results.csv", "best.yml")]
    with open(files[0], "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["stage", *names, "mIoU", "accuracy"])
        for trial in trials:
            cells = [trial.settings.get(name, "") for name in names]
            writer.writerow([trial.stage, *cells, trial.miou, trial.confusion.accuracy])
    text = yaml.safe_dump({"test_config": {"crf": best.settings}}, sort_keys=False)
    before, after = trials[0].miou, best.miou
    with open(files[1], "w", encoding="utf-8") as f:
        f.write(
            f"# mIoU {before:.4f} without the CRF, {after:.4f} with it, on the images searched."
        )
        f.write(f"\n# Over a config: _base_: [{os.path.basename(files[1])}, config.yml]\n{text}")
    if not after > before:
        logger.warning("No setting improves the mIoU: these results are best used without a CRF.")
    return files

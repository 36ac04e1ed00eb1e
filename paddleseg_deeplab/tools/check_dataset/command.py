# SPDX-License-Identifier: Apache-2.0
"""Checks the files of a config's datasets, and writes a report; needs no Paddle."""

import argparse
import inspect

from paddleseg_deeplab.utils.errors import UserError

DESCRIPTION = """Checks all images and labels that a config's train_dataset and val_dataset name.

  paddleseg-deeplab check_dataset --config configs/camvid/deeplabv3p_resnet18_os16_256x256.yml

report.md (for reading), report.json and pictures go to --save_dir.
Exit status: 0 no errors (warnings and hints do not count), 1 errors in the data, 2 a mistake in
the flags or the config.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file, such as configs/....yml")
    parser.add_argument(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        help="override anything in the config: dataset_root=data/x",
    )
    parser.add_argument(
        "--save_dir",
        default="output/dataset_report",
        help="for the report; default: output/dataset_report",
    )
    parser.add_argument(
        "--num_workers", type=int, help="reading threads (default: one a processor, at most 8)"
    )
    parser.add_argument(
        "--max_samples", type=int, help="read so many pairs of each set at most (default: all)"
    )


def _check_keys(config, section, component, cfg):
    """As SegBuilder does for the whole config; that one needs Paddle."""
    for key in cfg:
        config.check_parameter(section, key, component)
    for key, parameter in inspect.signature(component).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and key not in (*cfg, "transforms"):
            config.fail(section, f"{component.__name__} needs {key}.")


def _open(config, name):
    """(dataset without its transforms, faults of its lists) of a section of the config."""
    from paddleseg_deeplab import registry
    from paddleseg_deeplab.datasets.base import BaseDataset

    section = f"{name}_dataset"
    cfg = getattr(config, f"{section}_cfg")
    try:
        component = registry.DATASETS[cfg.pop("type")]
    except KeyError as error:
        config.fail(f"{section}.type", str(error.args[0]))
    _check_keys(config, section, component, cfg)
    cfg["transforms"] = []  # files are checked as they are
    try:
        # One that is no BaseDataset cannot tell all: its first fault is an error.
        tells = isinstance(component, type) and issubclass(component, BaseDataset)
        dataset = component.with_faults(**cfg) if tells else component(**cfg)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{config.path}: {section}: {error}") from error
    if not hasattr(dataset, "file_list"):
        config.fail(section, f"{component.__name__} has no file_list: its files are not known.")
    return dataset, dataset.faults if tells else ()


def _crop_size(config):
    """(width, height) of the crop in the training transforms, or None."""
    for step in config.train_dataset_cfg.get("transforms") or []:
        size = step.get("crop_size") if isinstance(step, dict) else None
        if isinstance(size, (list, tuple)) and [type(side) for side in size] == [int, int]:
            return tuple(size)
    return None


def _check_flags(args):
    from paddleseg_deeplab.prediction.outputs import check_save_dir

    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num_workers should be at least 0, not {args.num_workers}.")
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max_samples should be at least 1, not {args.max_samples}.")
    check_save_dir(args.save_dir)


def run(args: argparse.Namespace) -> int:
    """Checks as the flags say; 0 without errors in the data, 1 with."""
    _check_flags(args)
    from tqdm import tqdm

    import paddleseg_deeplab.datasets  # noqa: F401  for its registrations
    from paddleseg_deeplab.cvlibs import Config
    from paddleseg_deeplab.tools.check_dataset.check import check_datasets, largest_std
    from paddleseg_deeplab.tools.check_dataset.report import summary, write_report
    from paddleseg_deeplab.utils.logger import logger

    config = Config(args.config, opts=args.opts)
    present = [name for name in ("train", "val") if getattr(config, f"{name}_dataset_cfg")]
    if not present:
        config.fail("train_dataset", "is missing, and val_dataset too: nothing to check.")
    # Looked at before `_open`, which takes the section apart.
    stds = {n: largest_std(getattr(config, f"{n}_dataset_cfg").get("transforms")) for n in present}
    opened = {name: _open(config, name) for name in present}
    crop_size = _crop_size(config)
    check = check_datasets(
        {name: dataset for name, (dataset, _) in opened.items()},
        faults={name: faults for name, (_, faults) in opened.items()},
        num_workers=args.num_workers,
        max_samples=args.max_samples,
        crop_size=crop_size,
        stds=stds,
        progress=lambda total: tqdm(total=total, desc="check", unit="pair", disable=None),
    )
    try:
        files = write_report(check, args.save_dir, args.config, crop_size)
    except OSError as error:
        raise UserError(f"--save_dir {args.save_dir} cannot be written: {error}.") from error
    tell = {"error": logger.error, "warning": logger.warning, "hint": logger.info}
    for found in check.findings:
        first, detail = found.files[0] if found.files else ("", "")
        text = f"{found.where}: {found.title}; first: {first}" + (f" ({detail})" if detail else "")
        tell[found.level]("%s", text)
        for paste in found.paste[:1]:
            tell[found.level]("    %s", paste)
    pairs = sum(one.checked for one in check.sets.values())
    logger.info("%s in %d pairs, %.1f s.", summary(check).capitalize(), pairs, check.seconds)
    logger.info("The report: %s", ", ".join(files))
    return 1 if check.errors else 0

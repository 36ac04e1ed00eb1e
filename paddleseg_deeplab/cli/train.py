# SPDX-License-Identifier: Apache-2.0
"""Trains a model from a config; checkpoints, log and curves go to --save_dir."""

import argparse
import contextlib
import errno
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.utils.device import select_device
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.installed import require_paddle

_DESCRIPTION = """Trains a model.

  python train.py --config configs/deeplabv3p_resnet50_os8.yml --do_eval --use_vdl

exit status:
  0    done
  1    the loss, its gradient or a tensor to be saved was not finite; or another process of the run
       is gone: a reading process (--num_workers) or another rank. Checkpoints are kept
  2    a mistake in flags, config or data, a damaged checkpoint, a full disk, or memory that ran
       out; one line says which
  130  SIGINT (Ctrl-C)   the iteration or evaluation was ended and a checkpoint left; a second
  143  SIGTERM           signal stops at once

--resume_model auto goes on from the newest whole checkpoint in --save_dir, or starts anew where
there is none; so one command serves for the start and for every restart.
"""


_GO_ON = "Make room, and go on with --resume_model auto."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_config_arguments(parser)
    run = parser.add_argument_group("the run")
    run.add_argument("--iters", type=int, help="iterations (default: the config's)")
    run.add_argument(
        "--batch_size", type=int, help="images a step and process (default: the config's)"
    )
    run.add_argument("--learning_rate", type=float, help="start value (default: the config's)")
    run.add_argument("--seed", type=int, help="of order, augmentation, dropout (default: 0)")
    run.add_argument("--num_workers", type=int, default=0, help="reading processes (default: 0)")
    run.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="mixed precision, on a GPU only (default: fp32)",
    )
    run.add_argument(
        "--deterministic", action="store_true", help="make a GPU repeat a run; slower there"
    )
    run.add_argument("--amp_level", choices=["O1", "O2"], default="O1", help="default: O1")
    run.add_argument(
        "--to_static_training",
        action="store_true",
        help="train the network as a compiled program; needs images of one size",
    )
    run.add_argument("--use_ema", action="store_true", help="evaluate a moving average of weights")
    keep = parser.add_argument_group("checkpoints and evaluation")
    keep.add_argument("--save_dir", default="output", help="default: output")
    keep.add_argument("--save_interval", type=int, default=1000, help="iterations; default: 1000")
    keep.add_argument("--keep_checkpoint_max", type=int, default=5, help="default: 5; 0 keeps all")
    keep.add_argument(
        "--resume_model", help="an iter_N folder to go on from, or auto: the newest in --save_dir"
    )
    keep.add_argument(
        "--resume_ignore_config",
        action="store_true",
        help="go on from a checkpoint of another config, which is else refused",
    )
    keep.add_argument(
        "--overwrite", action="store_true", help="remove an earlier run's checkpoints in --save_dir"
    )
    keep.add_argument("--do_eval", action="store_true", help="evaluate every --save_interval")
    keep.add_argument(
        "--early_stop_intervals", type=int, help="stop after so many evaluations without gain"
    )
    keep.add_argument(
        "--save_format",
        choices=["pdparams", "safetensors"],
        default="pdparams",
        help="of best_model/model.*; default: pdparams. Checkpoints to go on from are pdparams",
    )
    keep.add_argument("--log_iters", type=int, default=10, help="iterations a line; default: 10")
    keep.add_argument("--use_vdl", action="store_true", help="write VisualDL curves")


def _check(args):
    for name in ("iters", "batch_size", "save_interval", "log_iters", "early_stop_intervals"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} should be at least 1, not {value}.")
    for name in ("num_workers", "keep_checkpoint_max", "seed"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise UserError(f"--{name} should be at least 0, not {value}.")
    if args.seed is not None and args.seed >= 2**64:
        raise UserError(f"--seed should be below 2^64, not {args.seed}.")
    if args.early_stop_intervals and not args.do_eval:
        raise UserError("--early_stop_intervals needs --do_eval.")


def _earlier_run(args):
    """The checkpoint to go on from, and those in --save_dir that are not to be mixed with this
    run's.

    Returns:
        tuple[Path | None, list[Path]]

    Raises:
        UserError: There are some, and the flags do not say what to do with them.
    """
    from paddleseg_deeplab.core.training.state import checkpoint

    save_dir = Path(args.save_dir)
    if save_dir.exists() and not save_dir.is_dir():
        raise UserError(f"--save_dir {save_dir} is a file; give a folder.")
    named = args.resume_model if args.resume_model != "auto" else None
    if named and not (Path(named) / "model.pdparams").is_file():
        raise UserError(f"--resume_model {named} has no model.pdparams; give an iter_N folder.")
    found = checkpoint.find_checkpoint(args.resume_model, save_dir)
    args.resume_model = found and str(found)  # the log shows what auto means
    old = [] if found else checkpoint.checkpoints(save_dir)
    if old and not args.overwrite:
        raise UserError(
            f"--save_dir {save_dir} holds an earlier run ({old[-1].name}). Go on with "
            f"--resume_model {old[-1]}, choose another --save_dir, or remove the earlier "
            "checkpoints with --overwrite."
        )
    return found, old


def _prepare_folder(args, old, config):
    """Makes --save_dir, removes what --overwrite means; returns the log."""
    from paddleseg_deeplab.utils.logger import add_file

    save_dir = Path(args.save_dir)
    try:
        if old:
            for folder in [*old, save_dir / "best_model"]:
                shutil.rmtree(folder, ignore_errors=True)
            for record in save_dir.glob("vdlrecords.*.log"):
                record.unlink()
        save_dir.mkdir(parents=True, exist_ok=True)
        return add_file(save_dir / "train.log")
    except OSError as error:
        raise UserError(f"--save_dir {save_dir} cannot be written: {error}.") from error


def _forget_unbegun(save_dir, new):
    """Removes what `_prepare_folder` made for a run that was refused before it began.

    A run that begins puts config.yml there first.
    """
    if not (save_dir / "config.yml").exists():
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir() if path == save_dir else path.unlink()


def _log_environment(device):
    import platform

    import cv2
    import numpy
    import paddle

    from paddleseg_deeplab import __version__
    from paddleseg_deeplab.utils.cpu import environment_report
    from paddleseg_deeplab.utils.logger import logger

    logger.info(
        "paddleseg_deeplab %s, Paddle %s, NumPy %s, OpenCV %s, Python %s, device %s",
        __version__,
        paddle.__version__,
        numpy.__version__,
        cv2.__version__,
        platform.python_version(),
        device,
    )
    logger.info(environment_report())


def _hyper_parameters(config, args, ranks):
    optimizer, rate = config.optimizer_cfg, config.lr_scheduler_cfg
    return {
        "model": config.model_cfg.get("type", ""),
        "backbone": str(config.model_cfg.get("backbone", {}).get("type", "")),
        "optimizer": optimizer.get("type", ""),
        "learning_rate": float(rate.get("learning_rate", 0.0)),
        "weight_decay": float(optimizer.get("weight_decay") or 0.0),
        "batch_size": config.batch_size * config.accumulation_steps * ranks,
        "iters": config.iters,
        "precision": args.precision,
    }


def _build(config, seed, do_eval, num_workers):
    """A `SegBuilder` whose parts are built, the cheap and fallible ones first."""
    from paddleseg_deeplab.core.training.determinism import seed_everything
    from paddleseg_deeplab.core.training.watch.preflight import check_start
    from paddleseg_deeplab.cvlibs import SegBuilder
    from paddleseg_deeplab.tools.check_dataset.check import quick_check

    builder = SegBuilder(config)
    seed_everything(seed)  # before the weights are drawn
    sections = ("train_dataset", "val_dataset") if do_eval else ("train_dataset",)
    for name in ("lr_scheduler", *sections):
        getattr(builder, name)
    quick_check({name: getattr(builder, name) for name in sections}, config.path)
    for name in ("sampler", "loss", "model", "optimizer"):
        getattr(builder, name)
    try:
        check_start(
            builder.model,
            builder.train_dataset,
            builder.loss,
            config.batch_size,
            val_dataset=builder.val_dataset if do_eval else None,
            test_config=config.test_config if do_eval else None,
            num_workers=num_workers,
        )
    except UserError as error:
        raise UserError(f"{config.path}: {error}") from error
    return builder


def _train(args, config, builder, ranks, found):
    from paddleseg_deeplab.core.train import train
    from paddleseg_deeplab.core.training.settings import TrainSettings
    from paddleseg_deeplab.core.training.watch.preflight import warn_of_update_size

    warn_of_update_size(
        config.images_per_update, config.batch_size, config.accumulation_steps, ranks.size
    )
    settings = TrainSettings(
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_cfg.get("decay", 0.999),
        seed=args.seed,
        config_text=str(config),
        hyper_parameters=_hyper_parameters(config, args, ranks.size),
        checkpoint=found,
        resume_ignore_config=args.resume_ignore_config,
        image_rates=builder.sampler.rates if builder.sampler else None,
        save_format=args.save_format,
    )
    train(
        builder.model,
        builder.train_dataset,
        val_dataset=builder.val_dataset if args.do_eval else None,
        optimizer=builder.optimizer,
        save_dir=args.save_dir,
        iters=config.iters,
        batch_size=config.batch_size,
        early_stop_intervals=args.early_stop_intervals,
        save_interval=args.save_interval,
        log_iters=args.log_iters,
        num_workers=args.num_workers,
        use_vdl=args.use_vdl,
        use_ema=args.use_ema or bool(config.ema_cfg),
        losses=builder.loss,
        keep_checkpoint_max=args.keep_checkpoint_max,
        test_config=config.test_config,
        precision=args.precision,
        amp_level=args.amp_level,
        settings=settings,
        to_static_training=args.to_static_training or config.to_static_training,
    )


def _no_room(save_dir, error):
    failure = UserError(f"--save_dir {save_dir}: {error.strerror}. {_GO_ON}")
    failure.unagreed = getattr(error, "unagreed", False)
    return failure


def run(args: argparse.Namespace) -> int:
    """Trains as the flags say; returns the exit status."""
    _check(args)
    require_paddle()
    config = common.read_config(
        args,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        iters=args.iters,
    )
    from paddleseg_deeplab.core.training.determinism import make_deterministic
    from paddleseg_deeplab.models.forward import precision_context
    from paddleseg_deeplab.utils.cpu import keep_freed_memory

    if args.deterministic:
        make_deterministic(False if args.device == "cpu" else None)
    device = select_device(args.device)
    if device == "cpu":
        keep_freed_memory()
    precision_context(args.precision, args.amp_level)  # refuses what this device cannot do
    ranks = common.join_ranks(args.device)
    from paddleseg_deeplab.core.training.step import NonFiniteLoss
    from paddleseg_deeplab.core.training.watch.interrupt import Interrupted
    from paddleseg_deeplab.utils.logger import logger, remove_file

    with ranks.guard():
        found, old = _earlier_run(args)
        if found:
            # A resumed run brings its own weights: pretrained ones would be loaded for nothing.
            config.drop_pretrained()
        builder = _build(config, args.seed or 0, args.do_eval, args.num_workers)
    save_dir = Path(args.save_dir)
    new = [path for path in (save_dir / "train.log", save_dir) if not path.exists()]
    with ranks.guard():
        handler = _prepare_folder(args, old, config) if ranks.is_main else None
    try:
        _log_environment(device)
        if ranks.size > 1:
            logger.info("%d processes, each with batches of its own.", ranks.size)
        logger.info("Flags: %s", {k: v for k, v in vars(args).items() if v is not None})
        logger.info("The resolved config, kept in %s/config.yml:\n%s", args.save_dir, config)
        if builder.sampler:
            logger.info(builder.sampler.summary)
        _train(args, config, builder, ranks, found)
    except Interrupted as reason:
        return reason.status
    except OSError as error:
        # Saving names its own; this is a log or a curve that no longer fits on the disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _no_room(args.save_dir, error) from error
    except NonFiniteLoss as error:
        if not getattr(error, "silent", False):
            logger.error(str(error))
        return 1
    finally:
        if handler is not None:
            remove_file(handler)
            _forget_unbegun(save_dir, new)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return common.main_of(add_arguments, run, _DESCRIPTION, argv, prog="train.py")


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The config's ``test_config`` with flags over it: how val, predict and search_crf infer."""

import argparse
from typing import Any

from paddleseg_deeplab.cvlibs.config import Config
from paddleseg_deeplab.postprocess.settings import crf_settings
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_AUG_KEYS = ("scales", "flip_horizontal", "flip_vertical")
_WINDOW_KEYS = ("crop_size", "stride")


def inference_settings(config: Config, args: argparse.Namespace, aug_flag: str) -> dict[str, Any]:
    """The config's ``test_config`` with the flags over it, as in PaddleSeg.

    Args:
        config (Config): Of the run.
        args: Parsed flags of `add_inference_arguments`.
        aug_flag (str): "aug_eval" or "aug_pred".

    Returns:
        dict: Keyword arguments of `evaluate` or `predict`.

    Raises:
        UserError: A flag's value is not allowed.
    """
    for name, least in (("batch_size", 1), ("num_workers", 0), ("size_divisor", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name} should be at least {least}, not {getattr(args, name)}.")
    settings = config.test_config
    crf = settings.pop("crf", None)
    if hasattr(args, "crf"):
        crf = crf_settings(crf, args, f"{config.path}: test_config.crf")
        if crf is not None:
            settings["crf"] = crf
    # As in PaddleSeg test_config's switch is the evaluation's: prediction asks with its own flag.
    switched_on = bool(settings.pop("aug_eval", False)) and aug_flag == "aug_eval"
    if getattr(args, aug_flag):
        switched_on = True
        settings["scales"] = 1.0 if args.scales is None else args.scales
        settings["flip_horizontal"] = args.flip_horizontal
        settings["flip_vertical"] = args.flip_vertical
    else:
        _warn_of_idle_flags(args, _AUG_KEYS, aug_flag)
    if switched_on:
        # Unset means off, though `predict` as PaddleSeg's flips horizontally by default.
        settings = {"scales": 1.0, "flip_horizontal": False, "flip_vertical": False, **settings}
    settings[aug_flag] = switched_on
    if args.size_divisor is not None:
        settings["size_divisor"] = args.size_divisor
    _set_window(settings, config, args)
    for key in ("batch_size", "num_workers", "engine", "precision", "amp_level"):
        settings[key] = getattr(args, key)
    return settings


def _set_window(settings, config, args):
    """Puts the flags of the sliding window over the config's settings of it."""
    if args.is_slide and args.slide_above is not None:
        raise UserError("--is_slide puts every image into windows, --slide_above large ones only.")
    if args.is_slide:
        settings["is_slide"] = True
        settings.pop("slide_above", None)
    if args.slide_above is not None:
        settings["slide_above"] = args.slide_above
        settings.pop("is_slide", None)
    by_size = settings.get("slide_above") is not None
    if args.is_slide or by_size:
        # A part that no flag gives is the config's.
        for key in _WINDOW_KEYS:
            settings[key] = getattr(args, key) or settings.get(key)
    elif not settings.get("is_slide"):
        _warn_of_idle_flags(args, _WINDOW_KEYS, "is_slide")
    if by_size and settings["crop_size"] is None:
        from paddleseg_deeplab.cvlibs.builder import training_crop

        settings["crop_size"] = training_crop(config)


def _warn_of_idle_flags(args, names, switch):
    idle = [f"--{name}" for name in names if getattr(args, name)]
    if idle:
        logger.warning("%s: no effect without --%s.", " ".join(idle), switch)

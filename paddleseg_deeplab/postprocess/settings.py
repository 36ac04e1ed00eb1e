# SPDX-License-Identifier: Apache-2.0
"""The dense CRF as a setting: of a config, of flags, of deploy.yaml. No Paddle here."""

import argparse
import inspect
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paddleseg_deeplab.utils.errors import UserError, nearest
from paddleseg_deeplab.utils.logger import logger

if TYPE_CHECKING:
    from paddleseg_deeplab.postprocess.dense_crf import LatticeCache

# Takes probabilities, float32 [K, H, W], and image, uint8 [H, W, C]; gives Q, float32 [K, H, W].
Crf = Callable[[np.ndarray, np.ndarray], np.ndarray]
CrfSetting = bool | Mapping[str, Any] | Crf | None


def make_crf(
    settings: CrfSetting,
    place: str = "crf",
    threads: int | None = None,
    lattices: "LatticeCache | None" = None,
) -> Crf | None:
    """The CRF that a setting describes.

    Args:
        settings: None or False: no CRF. True or {}: one with the defaults. A dict: parameters of
            `DenseCRF`. A CRF (anything callable): itself.
        place (str): Where the setting stands, for messages.
        threads (int, optional): Of the new CRF; its own default otherwise.
        lattices (LatticeCache, optional): Of the new CRF; shared by several on one image.

    Returns:
        DenseCRF | None: To be called with probabilities, float32 [K, H, W], and the image, uint8
        [H, W, C].

    Raises:
        UserError: An unknown parameter or a value that is not allowed; it names the place.
    """
    if settings is None or settings is False:
        return None
    if callable(settings):
        return settings
    from paddleseg_deeplab.postprocess.dense_crf import DenseCRF

    settings = {} if settings is True else settings
    if not isinstance(settings, Mapping):
        raise UserError(f"{place} should be True, False or a section, not {settings!r}.")
    for key in settings:
        if key not in DenseCRF.PARAMETERS:
            raise UserError(
                f"{place}.{key}: the dense CRF has no such parameter. "
                f"{nearest(key, DenseCRF.PARAMETERS)}"
            )
    try:
        return DenseCRF(**settings, threads=threads, lattices=lattices)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: {error}") from error


def complete_settings(settings: bool | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """All parameters as a dict, defaults written out, so that later defaults change nothing.

    Args:
        settings: As of `make_crf`, less a CRF itself.

    Returns:
        dict | None: None where there is no CRF; parameters that are None are left out.
    """
    if make_crf(settings) is None:
        return None
    from paddleseg_deeplab.postprocess.dense_crf import DenseCRF

    parameters = inspect.signature(DenseCRF).parameters
    out = {name: parameters[name].default for name in DenseCRF.PARAMETERS}
    out.update(settings if isinstance(settings, Mapping) else {})
    return {name: value for name, value in out.items() if value is not None}


def parse_crf_params(items: Iterable[str] | None) -> dict[str, Any]:
    """``["bilateral_xy=50", ...]`` as a dict."""
    out = {}
    for item in items or ():
        key, sign, text = item.partition("=")
        try:
            if not sign:
                raise ValueError(item)
            out[key.strip()] = literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise UserError(
                f"--crf_params takes KEY=VALUE with numbers, such as bilateral_xy=50, not {item!r}."
            ) from error
    return out


def crf_settings(
    configured: bool | Mapping[str, Any] | None, args: argparse.Namespace, place: str
) -> dict[str, Any] | None:
    """The setting with the flags over it.

    Args:
        configured: The setting of the config or of deploy.yaml, as of `make_crf`.
        args: Parsed flags of `add_crf_arguments`.
        place (str): Where `configured` stands, for messages.

    Returns:
        dict | None: Parameters of `DenseCRF`, checked; None for no CRF.
    """
    params = parse_crf_params(args.crf_params)
    off = configured is None or configured is False
    if args.crf is False or (args.crf is None and off):
        if params:
            logger.warning("--crf_params: no effect without --crf.")
        return None
    make_crf(configured, place)
    settings = {**(configured if isinstance(configured, dict) else {}), **params}
    make_crf(settings, "--crf_params" if params else place)
    return settings

# SPDX-License-Identifier: Apache-2.0
"""DeepLab for PaddlePaddle. Import this package before Paddle: see utils/cpu.py for the reason."""

import importlib
import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 10):  # noqa: UP036  (a line in place of a SyntaxError)
    version = sys.version.split()[0]
    raise ImportError(
        f"paddleseg_deeplab needs Python 3.10 or newer; {sys.executable} is {version}."
    )

from paddleseg_deeplab.utils.cpu import prepare_environment
from paddleseg_deeplab.utils.installed import guard_imports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from paddleseg_deeplab.predictor import Predictor as Predictor

_PARTS = ("core", "cvlibs", "datasets", "models", "optimizers", "transforms", "utils")

prepare_environment()
guard_imports()


def __getattr__(name):
    # As with PaddleSeg, one import is enough to write paddleseg_deeplab.models.DeepLabV3P.
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "Predictor":
        return importlib.import_module(f"{__name__}.predictor").Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

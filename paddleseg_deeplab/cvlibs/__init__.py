# SPDX-License-Identifier: Apache-2.0
"""Config, registries and builder. Paddle is imported when `SegBuilder` is first asked for."""

import importlib
from typing import TYPE_CHECKING, Any

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.cvlibs.config import Config

if TYPE_CHECKING:
    from paddleseg_deeplab.cvlibs.builder import SegBuilder

__all__ = ["Config", "SegBuilder", "manager"]


def __getattr__(name: str) -> Any:
    if name == "SegBuilder":
        from paddleseg_deeplab.cvlibs.builder import SegBuilder

        return SegBuilder
    if name == "param_init":
        return importlib.import_module(f"{__name__}.param_init")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

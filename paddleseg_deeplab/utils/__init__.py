# SPDX-License-Identifier: Apache-2.0
"""One job a file. What PaddleSeg's own models take from its utils is found here by its names."""

import importlib

_FROM_CHECKPOINT = ("load_entire_model", "load_pretrained_model")
_MODULES = ("download", "logger", "metrics", "utils", "visualize")


def __getattr__(name):
    # On demand: reading weights needs Paddle, the rest does without.
    if name in _FROM_CHECKPOINT:
        return getattr(importlib.import_module(f"{__name__}.weights.load"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

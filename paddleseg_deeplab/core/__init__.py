# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation, prediction and export of objects that are already built.

As in PaddleSeg, ``from paddleseg_deeplab.core import train, evaluate, predict`` gives functions,
here imported when they are asked for: the deployment uses parts of this package without Paddle.
"""

import importlib
import sys
import types

from paddleseg_deeplab.utils.installed import require_paddle

_MODULE_OF = {
    "train": "paddleseg_deeplab.core.train",
    "evaluate": "paddleseg_deeplab.core.val",
    "predict": "paddleseg_deeplab.core.predict",
    "export": "paddleseg_deeplab.deploy.export",
}

__all__ = ["evaluate", "export", "predict", "train"]


def __getattr__(name):
    if name in _MODULE_OF:
        require_paddle()
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Core(types.ModuleType):
    """Keeps the function where Python would put the module of the same name.

    ``core.train`` is both; importing the module stores it as an attribute of this package.
    """

    def __setattr__(self, name, value):
        if name in _MODULE_OF and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Core

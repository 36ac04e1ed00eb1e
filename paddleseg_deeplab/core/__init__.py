# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation, prediction and export of objects that are already built.

As in PaddleSeg, ``from paddleseg_deeplab.core import train, evaluate, predict, export`` gives
functions and ``infer`` a module. All of it needs Paddle.
"""

import paddleseg_deeplab.utils.needs_paddle  # noqa: F401  isort: skip
from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.predict import predict
from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.deploy.export import export

__all__ = ["evaluate", "export", "infer", "predict", "train"]

# SPDX-License-Identifier: Apache-2.0
"""Models, backbones and losses under PaddleSeg's names; importing this registers them all."""

import paddleseg_deeplab.utils.needs_paddle  # noqa: F401  isort: skip
from paddleseg_deeplab.models import backbones, losses
from paddleseg_deeplab.models.backbones import *  # noqa: F403  (its __all__)
from paddleseg_deeplab.models.deeplab_v1 import DeepLabV1
from paddleseg_deeplab.models.deeplab_v2 import DeepLabV2
from paddleseg_deeplab.models.deeplab_v3 import DeepLabV3, DeepLabV3Head
from paddleseg_deeplab.models.deeplab_v3p import Decoder, DeepLabV3P, DeepLabV3PHead
from paddleseg_deeplab.models.losses import *  # noqa: F403  (its __all__)

__all__ = [
    "Decoder",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Head",
    "DeepLabV3P",
    "DeepLabV3PHead",
]
__all__ += backbones.__all__
__all__ += losses.__all__

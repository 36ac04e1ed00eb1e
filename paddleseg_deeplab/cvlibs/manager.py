# SPDX-License-Identifier: Apache-2.0
"""PaddleSeg's name for `paddleseg_deeplab.registry`: the same objects."""

from paddleseg_deeplab.registry import *  # noqa: F403

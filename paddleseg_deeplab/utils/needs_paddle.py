# SPDX-License-Identifier: Apache-2.0
"""Imported first by packages that stand on Paddle: says how to install it where it is missing."""

from paddleseg_deeplab.utils.errors import require_paddle

require_paddle()

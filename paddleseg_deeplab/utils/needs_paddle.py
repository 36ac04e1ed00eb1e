# SPDX-License-Identifier: Apache-2.0
"""Imported first by packages that stand on Paddle: says what to do where it is not right."""

from paddleseg_deeplab.utils.installed import require_paddle

require_paddle()

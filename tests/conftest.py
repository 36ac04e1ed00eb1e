# SPDX-License-Identifier: Apache-2.0
"""Imports the package first, so that the CPU environment is prepared before any Paddle import."""

import paddleseg_deeplab  # noqa: F401

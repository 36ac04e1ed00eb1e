# SPDX-License-Identifier: Apache-2.0
"""Imports the package first, so that the CPU environment is prepared before any Paddle import."""

import pytest

import paddleseg_deeplab  # noqa: F401
from paddleseg_deeplab.utils.logger import logger


@pytest.fixture(autouse=True)
def logger_as_before():
    """Commands set up the package's logger for their process; here many share one."""
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:] = handlers
    logger.propagate = propagate
    logger.setLevel(level)

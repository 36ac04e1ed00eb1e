# SPDX-License-Identifier: Apache-2.0
"""Imports the package first, so that the CPU environment is prepared before any Paddle import."""

import os

import pytest

# Several pytest processes (-n 2) share the cores: Paddle's threads, which wait in a loop, would
# take them from each other.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("MKL_NUM_THREADS", "1")

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

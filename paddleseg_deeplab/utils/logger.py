# SPDX-License-Identifier: Apache-2.0
"""One logger for the package: lines on stderr, and in ``<save_dir>/train.log`` while training."""

import contextlib
import logging
import sys
from pathlib import Path

_FORMAT = "%(asctime)s [%(levelname)s] %(message)s"

logger = logging.getLogger("paddleseg_deeplab")
# As in PaddleSeg, whose logger is a module: `from paddleseg_deeplab.utils import logger`.
debug, info, warning, error = logger.debug, logger.info, logger.warning, logger.error


class _ConsoleHandler(logging.StreamHandler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record):
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)  # else none is running
        (bars.write if bars else print)(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Drops lines that a full disk does not take: the run's own error says so once."""

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def setup_console(level: int = logging.INFO) -> None:
    """Sends the package's log lines to stderr; a second call only changes the level."""
    if not any(isinstance(h, _ConsoleHandler) for h in logger.handlers):
        handler = _ConsoleHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)


def add_file(path: str | Path) -> logging.FileHandler:
    """Appends the log lines to the file ``path`` too; returns the handler for `remove_file`."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return handler


def remove_file(handler: logging.FileHandler) -> None:
    """Ends what `add_file` began."""
    logger.removeHandler(handler)
    with contextlib.suppress(OSError):  # of lines that were dropped
        handler.close()

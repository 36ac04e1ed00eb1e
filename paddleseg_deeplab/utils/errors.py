# SPDX-License-Identifier: Apache-2.0
"""Exceptions whose text is meant for the person at the keyboard."""

import importlib.util

_PADDLE_MISSING = (
    "PaddlePaddle is not installed: for a CPU run pip install 'paddleseg-deeplab[cpu]', for a GPU "
    "run pip install paddlepaddle-gpu with the index address that the installation guide "
    "https://www.paddlepaddle.org.cn/en/install/quick gives."
)


class UserError(ValueError):
    """A mistake the user can mend.

    The text is one sentence or two: what came, what is allowed, what to do, with the file
    and value named. Commands print it without a traceback and exit with status 2.
    """


class MissingPaddle(UserError, ImportError):
    """Paddle is not installed."""


def require_paddle():
    """Raises `MissingPaddle`, with both install commands, where Paddle is missing."""
    if importlib.util.find_spec("paddle") is None:
        raise MissingPaddle(_PADDLE_MISSING)

# SPDX-License-Identifier: Apache-2.0
"""The one exception type whose text is meant for the person at the keyboard."""


class UserError(ValueError):
    """A mistake the user can mend.

    The text is one sentence or two: what came, what is allowed, what to do, with the file
    and value named. Commands print it without a traceback and exit with status 2.
    """

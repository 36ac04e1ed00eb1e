# SPDX-License-Identifier: Apache-2.0
"""Words of messages."""

import pytest

from paddleseg_deeplab.utils.errors import first_few


@pytest.mark.parametrize(
    ("count", "settings", "text"),
    [
        (30, (), "0, 1, 2, 3, 4 and 25 more"),
        (6, (), "0, 1, 2, 3, 4 and 1 more"),
        (5, (), "0, 1, 2, 3, 4"),
        (3, (2, ", ..."), "0, 1, ..."),
        (2, (2, ", ..."), "0, 1"),
        (0, (), ""),
    ],
)
def test_names_in_messages_are_few(count, settings, text):
    assert first_few([str(i) for i in range(count)], *settings) == text
    assert first_few(list(range(count)), *settings) == text

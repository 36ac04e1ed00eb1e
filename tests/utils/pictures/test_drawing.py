# SPDX-License-Identifier: Apache-2.0
"""Text and patches of charts lie where they are asked for."""

import numpy as np
import pytest

from paddleseg_deeplab.utils.pictures.drawing import INK, blank, put_legend, put_text, text_width


def inked(canvas):
    """First and last row, first and last column that are not white."""
    rows, columns = (np.flatnonzero((canvas < 255).any(axis=axis)) for axis in ((1, 2), (0, 2)))
    return (rows[0], rows[-1]), (columns[0], columns[-1])


@pytest.mark.parametrize(
    ("align", "share"), [("left", 0), ("middle", 0.5), ("right", 1)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("scale", [0.38, 0.6])
def test_text_is_aligned(align, share, scale):
    canvas = blank(40.4, 300)
    assert canvas.shape == (40, 300, 3)
    put_text(canvas, "HHHH", 150, 30, scale, align=align)
    (_, bottom), (left, right) = inked(canvas)
    width = text_width("HHHH", scale)
    assert abs(left - (150 - share * width)) <= 3  # the font leaves a little room
    assert abs(right - (150 + (1 - share) * width)) <= 3
    assert abs(bottom - 30) <= 1
    assert min(INK) <= canvas.min() < 100  # thin lines are smoothed


def test_a_legend_has_a_patch_and_a_text_each():
    canvas = blank(40, 400)
    entries = [("one", (10, 200, 30)), ("another", (40, 50, 250))]
    put_legend(canvas, entries, 20, 30, gap=24)
    second = 20 + 20 + text_width("one") + 24
    for x, (text, color) in zip((20, second), entries):
        assert (canvas[19:33, x : x + 15] == color).all()
        assert (canvas[:, x + 20 : x + 20 + text_width(text)] < 255).any()
    assert inked(canvas)[1][0] == 20
    assert (canvas[:, second - 22 : second] == 255).all()

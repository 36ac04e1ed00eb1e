# SPDX-License-Identifier: Apache-2.0
"""Text and patches on pictures, as charts need them. Pictures are RGB uint8 [H, W, 3]."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

INK, GREY = (25, 25, 25), (120, 120, 120)
_FONT = cv2.FONT_HERSHEY_SIMPLEX  # ASCII only


def blank(height: float, width: float) -> np.ndarray:
    """A white picture of so many pixels, rounded to whole ones."""
    return np.full((round(height), round(width), 3), 255, np.uint8)


def text_width(text: str, scale: float = 0.5) -> int:
    """Pixels that the text takes from left to right."""
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]


def put_text(
    canvas: np.ndarray,
    text: str,
    x: float,
    y: float,
    scale: float = 0.5,
    color: Sequence[int] = INK,
    align: str = "left",
) -> None:
    """Writes a line of text into the picture.

    Args:
        canvas (np.ndarray): The picture; changed.
        text (str): ASCII.
        x (float): Pixel of its left end, middle or right end, as `align` says.
        y (float): Pixel of its baseline.
        scale (float): Size of the font; 0.5 is about 11 pixels high.
        color (tuple): R, G, B, 0 to 255.
        align (str): "left", "middle" or "right".
    """
    x -= {"left": 0, "middle": 0.5, "right": 1}[align] * text_width(text, scale)
    cv2.putText(canvas, text, (round(x), round(y)), _FONT, scale, color, 1, cv2.LINE_AA)


def put_legend(
    canvas: np.ndarray,
    entries: Iterable[tuple[str, Sequence[int]]],
    x: int,
    y: int,
    scale: float = 0.5,
    gap: int = 24,
) -> None:
    """Patches with their texts in one row, which starts at x; y is the texts' baseline.

    Args:
        canvas (np.ndarray): The picture; changed.
        entries (Iterable[tuple]): Of (text, (R, G, B)).
        x, y (int): Pixels.
        scale (float): See `put_text`.
        gap (int): Pixels between a text and the next patch.
    """
    for text, color in entries:
        cv2.rectangle(canvas, (x, y - 11), (x + 14, y + 2), color, -1)
        put_text(canvas, text, x + 20, y, scale)
        x += 20 + text_width(text, scale) + gap

# SPDX-License-Identifier: Apache-2.0
"""Pictures of a data check: sizes, aspect ratios and classes. RGB, uint8."""

from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from paddleseg_deeplab.utils.pictures.drawing import (
    GREY,
    INK,
    blank,
    put_legend,
    put_text,
    text_width,
)

_PALE = (230, 230, 230)
_COLORS = {"train": (40, 105, 180), "val": (235, 130, 45)}
_MOST_BARS = 200  # classes that are drawn


def _legend(canvas, names, x, y):
    put_legend(canvas, [(name, _COLORS[name]) for name in names], x, y)


def _step(span, ticks):
    """A round distance of marks: 1, 2 or 5 times a power of ten."""
    rough = max(span / ticks, 1e-9)
    power = 10.0 ** np.floor(np.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def draw_sizes(
    sets: Mapping[str, Counter[tuple[int, int]]], crop_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Width against height of all images, one disk for each size, larger for more images.

    Args:
        sets (dict): Set: Counter of (width, height).
        crop_size (tuple): (width, height) of training's crop, drawn as a rectangle.

    Returns:
        numpy.ndarray: RGB uint8 [H, W, 3].
    """
    every = [size for sizes in sets.values() for size in sizes]
    span = 1.08 * max(max(size) for size in [*every, crop_size or (1, 1)])
    left, top, side = 76, 46, 520
    canvas = blank(top + side + 62, left + side + 170)
    put_text(canvas, "Image sizes in pixels", left, 26, 0.6)

    def at(width, height):
        return round(left + side * width / span), round(top + side * (1 - height / span))

    step = _step(span, 6)
    for mark in np.arange(0, span, step):
        x, y = at(mark, mark)
        cv2.line(canvas, (x, top), (x, top + side), _PALE)
        cv2.line(canvas, (left, y), (left + side, y), _PALE)
        put_text(canvas, f"{mark:g}", x, top + side + 18, 0.42, GREY, "middle")
        put_text(canvas, f"{mark:g}", left - 8, y + 4, 0.42, GREY, "right")
    cv2.rectangle(canvas, (left, top), (left + side, top + side), GREY)
    put_text(canvas, "width", left + side / 2, top + side + 42, 0.5, INK, "middle")
    put_text(canvas, "height", left - 8, top - 10, 0.5, INK, "right")
    most = max(max(sizes.values(), default=1) for sizes in sets.values())
    # The set drawn first has the larger disks, so that none hides another.
    for shrink, (name, sizes) in zip((1.0, 0.6), sets.items()):
        for size, count in sizes.items():
            radius = max(3, round(shrink * 16 * (count / most) ** 0.5))
            cv2.circle(canvas, at(*size), radius, _COLORS[name], -1, cv2.LINE_AA)
    if crop_size:
        cv2.rectangle(canvas, at(0, 0), at(*crop_size), INK, 1)
        put_text(canvas, "crop {}x{}".format(*crop_size), left + 6, at(*crop_size)[1] + 16, 0.42)
    y = top + 12
    for name, sizes in sets.items():
        _legend(canvas, [name], left + side + 14, y)
        for (width, height), count in sizes.most_common(8):
            y += 20
            put_text(canvas, f"{width}x{height}: {count}", left + side + 14, y, 0.42, GREY)
        if len(sizes) > 8:
            y += 20
            put_text(canvas, f"{len(sizes) - 8} more sizes", left + side + 14, y, 0.42, GREY)
        y += 34
    return canvas


def draw_aspects(sets: Mapping[str, Counter[tuple[int, int]]]) -> np.ndarray:
    """Histogram of width / height of the images of each set.

    Each bar covers an eighth of an octave, 9 %, and bears the mean ratio of its images; the first
    and last also hold whatever is narrower than 1:4 or wider than 4:1.

    Args:
        sets (dict): Set: Counter of (width, height).

    Returns:
        numpy.ndarray: RGB uint8 [H, W, 3].
    """
    counts = {name: np.zeros(33, np.int64) for name in sets}
    sums = np.zeros(33)
    for name, sizes in sets.items():
        for (width, height), count in sizes.items():
            place = int(np.clip(np.rint(8 * np.log2(width / height)) + 16, 0, 32))
            counts[name][place] += count
            sums[place] += count * width / height
    total = sum(counts.values(), start=np.zeros(33, np.int64))
    first, *_, last = np.flatnonzero(total).tolist() * 2
    left, top, height, bar = 70, 62, 300, 36
    canvas = blank(top + height + 36, max(left + bar * (last - first + 1) + 30, 420))
    put_text(canvas, "Aspect ratio (width / height), images", left, 24, 0.6)
    _legend(canvas, counts, left, 46)
    most = max(each.max() for each in counts.values())
    for mark in np.arange(0, most + 1, max(_step(most, 5), 1)):
        y = round(top + height * (1 - mark / most))
        cv2.line(canvas, (left, y), (canvas.shape[1] - 20, y), _PALE)
        put_text(canvas, f"{mark:g}", left - 8, y + 4, 0.42, GREY, "right")
    each = (bar - 4) // len(counts)
    for k in np.flatnonzero(total).tolist():
        x = left + (k - first) * bar + 2
        for j, (name, images) in enumerate(counts.items()):
            if images[k]:
                y = min(round(top + height * (1 - images[k] / most)), top + height - 2)
                low = (x + j * each, top + height)
                cv2.rectangle(canvas, low, (x + (j + 1) * each - 1, y), _COLORS[name], -1)
        mean = f"{sums[k] / total[k]:.2f}"
        put_text(canvas, mean, x + bar / 2 - 2, top + height + 20, 0.4, GREY, "middle")
    cv2.line(canvas, (left, top + height), (canvas.shape[1] - 20, top + height), GREY)
    return canvas


def draw_classes(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share of the labelled pixels that each class has, on a logarithmic scale.

    Args:
        class_names (list[str]): Names; those outside ASCII are shown by number.
        counts (dict): Set: pixels of each class.

    Returns:
        numpy.ndarray: RGB uint8 [H, W, 3].
    """
    names = [
        f"{k} {name}" if name.isascii() and name.isprintable() else f"{k}"
        for k, name in enumerate(map(str, class_names[:_MOST_BARS]))
    ]
    names = [name if len(name) <= 32 else name[:30] + ".." for name in names]
    shares = {name: np.asarray(c) / max(np.sum(c), 1) for name, c in counts.items()}
    row = 14 * len(counts) + 8
    left, top, length = max(map(text_width, names)) + 24, 74, 420
    canvas = blank(top + row * len(names) + 16, left + length + 84)
    put_text(canvas, "Share of the labelled pixels, %", 12, 24, 0.6)
    _legend(canvas, counts, 12, 48)
    lowest = -5  # a thousandth of a per cent
    for power in range(lowest, 1):
        x = round(left + length * (power - lowest) / -lowest)
        cv2.line(canvas, (x, top - 4), (x, canvas.shape[0] - 12), _PALE)
        put_text(canvas, f"{100 * 10.0**power:g}", x, top - 10, 0.42, GREY, "middle")
    for k, name in enumerate(names):
        y = top + k * row
        put_text(canvas, name, left - 10, y + row / 2 + 2, 0.5, INK, "right")
        for j, (which, share) in enumerate(shares.items()):
            value, low = share[k], y + 14 * j
            text = "never" if value == 0 else f"{100 * value:.3g}"
            x = left
            if value:
                x += max(2, round(length * (np.log10(value) - lowest) / -lowest))
                cv2.rectangle(canvas, (left, low), (x, low + 11), _COLORS[which], -1)
            color = (190, 30, 30) if value == 0 else GREY
            put_text(canvas, text, x + 6, low + 10, 0.42, color)
    return canvas

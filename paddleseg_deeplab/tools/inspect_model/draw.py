# SPDX-License-Identifier: Apache-2.0
"""Pictures of what `inspect_network` found about dilated convolutions. RGB, uint8; no Paddle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from paddleseg_deeplab.tools.inspect_model.valid_taps import curves
from paddleseg_deeplab.utils.pictures.drawing import (
    GREY,
    INK,
    blank,
    put_legend,
    put_text,
    text_width,
)

if TYPE_CHECKING:
    from paddleseg_deeplab.tools.inspect_model.network import AtrousLayer

# Kernels are drawn in full up to so many times the largest map.
_ROOM = 1.4
_PALE = (228, 228, 228)
# Share of the taps that are valid -> colour: few taps are warm, all of them dark blue.
_SCALE = (
    (0.0, (150, 20, 40)),
    (0.12, (205, 60, 50)),
    (0.23, (240, 140, 65)),
    (0.34, (250, 205, 120)),
    (0.45, (165, 205, 230)),
    (0.67, (85, 150, 205)),
    (1.0, (20, 70, 145)),
)


def _color(share):
    places, colors = zip(*_SCALE)
    return tuple(int(np.interp(share, places, channel)) for channel in zip(*colors))


def _fit(text, width, scale=0.5):
    """The text, cut at its beginning where it is too long."""
    if text_width(text, scale) <= width:
        return text
    while text and text_width("..." + text, scale) > width:
        text = text[1:]
    return "..." + text


def _legend(canvas, entries, x, y):
    put_legend(canvas, entries, x, y, 0.45, 22)


def merge_alike(layers: Iterable[AtrousLayer]) -> list[tuple[AtrousLayer, int]]:
    """Layers of one stage, kernel, rate and map size in a row, as [(first layer, how many)]."""
    merged: list[list[Any]] = []
    for layer in layers:
        stage = re.sub(r"_\d+$", "", ".".join(layer.name.split(".")[:2]))
        key = (stage, layer.kernel, layer.rate, layer.size)
        if merged and merged[-1][0] == key:
            merged[-1][2] += 1
        else:
            merged.append([key, layer, 1])
    return [(layer, count) for _, layer, count in merged]


def short_name(layer: AtrousLayer, count: int = 1) -> str:
    """``backbone.bb_2_0.conv1 and 22 alike``."""
    name = layer.name[: -len("._conv")] if layer.name.endswith("._conv") else layer.name
    return name if count == 1 else f"{name} and {count - 1} alike"


def draw_layers(layers: Sequence[AtrousLayer], title: str) -> np.ndarray:
    """A bar for each atrous layer: what share of positions has how many valid taps.

    Args:
        layers (list[AtrousLayer]): Not empty. Equal ones in a row share a bar.
        title (str): First line.

    Returns:
        np.ndarray: uint8 [H, W, 3].
    """
    rows = merge_alike(layers)
    left, bar, right, step, top = 430, 420, 90, 30, 112
    canvas = blank(top + step * len(rows) + 20, left + bar + right)
    put_text(canvas, title, 16, 28, 0.6)
    put_text(
        canvas, "Share of output positions by taps on the map; the others lie in padding.", 16, 52
    )
    taps = sorted({(n, layer.kernel) for layer, _ in rows for n in layer.counts})
    total = {kernel: kernel[0] * kernel[1] for _, kernel in taps}
    shares = sorted({n / total[kernel]: n for n, kernel in taps}.items())
    _legend(canvas, [(f"{n} taps" if n > 1 else "1 tap", _color(s)) for s, n in shares], 16, 78)
    put_text(canvas, "layer", 16, top - 10, 0.45, GREY)
    put_text(canvas, "rate", left - 96, top - 10, 0.45, GREY, "right")
    put_text(canvas, "map", left - 14, top - 10, 0.45, GREY, "right")
    put_text(canvas, "valid", left + bar + 16, top - 10, 0.45, GREY)
    for i, (layer, count) in enumerate(rows):
        y = top + i * step
        base = y + 16
        put_text(canvas, _fit(short_name(layer, count), left - 160, 0.45), 16, base, 0.45)
        put_text(canvas, _both(layer.rate), left - 96, base, 0.45, align="right")
        put_text(canvas, "{1}x{0}".format(*layer.size), left - 14, base, 0.45, align="right")
        start = 0.0
        for n, share in sorted(layer.counts.items(), reverse=True):
            x0, x1 = round(left + bar * start), round(left + bar * (start + share))
            color = _color(n / total[layer.kernel])
            canvas[y + 2 : y + step - 6, x0:x1] = color
            start += share
        put_text(canvas, f"{100 * layer.share:.1f} %", left + bar + 16, base, 0.45)
    return canvas


def _both(pair):
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}, {pair[1]}"


def draw_curves(size: tuple[int, int], rates: Sequence[int], title: str) -> np.ndarray:
    """Figure 4 of the V3 paper for one map: valid taps of a 3x3 kernel against its rate.

    Args:
        size (tuple[int, int]): (height, width) of the map.
        rates (Sequence[int]): To be marked: the network's.
        title (str): First line.

    Returns:
        np.ndarray: uint8 [H, W, 3].
    """
    last = max(*size, *rates) + 4
    shares, mean = curves(size, range(1, last + 1))
    left, top, wide, high = 76, 140, 720, 330
    canvas = blank(top + high + 62, left + wide + 30)
    put_text(canvas, title, 16, 28, 0.6)
    put_text(canvas, "Share of positions where so many taps of a 3x3 kernel are valid;", 16, 52)
    put_text(canvas, "dashed grey: share of valid weights; marks: rates of this network.", 16, 72)

    def place(rate, share):
        return round(left + wide * (rate - 1) / (last - 1)), round(top + high * (1 - share))

    for percent in range(0, 101, 20):
        x, y = place(1, percent / 100)
        cv2.line(canvas, (left, y), (left + wide, y), _PALE, 1)
        put_text(canvas, f"{percent} %", left - 10, y + 5, 0.45, align="right")
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 500) if last / s <= 16)
    for rate in [1, *range(step, last + 1, step)]:
        if rate > 1 or step > 1:
            x, _ = place(rate, 0)
            cv2.line(canvas, (x, top + high), (x, top + high + 5), INK, 1)
            put_text(canvas, str(rate), x, top + high + 22, 0.45, align="middle")
    put_text(canvas, "rate", left + wide / 2, top + high + 46, 0.5, align="middle")
    _mark_rates(canvas, sorted(set(rates)), place, top, high)
    cv2.rectangle(canvas, (left, top), (left + wide, top + high), INK, 1)
    points = [place(r, s) for r, s in zip(range(1, last + 1), mean)]
    for a, b in zip(points[::2], points[1::2]):
        cv2.line(canvas, a, b, GREY, 1, cv2.LINE_AA)
    for n, values in shares.items():
        points = [place(r, s) for r, s in zip(range(1, last + 1), values)]
        thick = 2 if n in (1, 4, 9) else 1  # the paper's three curves
        cv2.polylines(canvas, [np.array(points)], False, _color(n / 9), thick, cv2.LINE_AA)
    entries = [(f"{n} valid" if n > 1 else "1 valid", _color(n / 9)) for n in sorted(shares)]
    _legend(canvas, entries, 16, 98)
    return canvas


def _mark_rates(canvas, rates, place, top, high):
    """A thin line at each rate; numbers above the chart where they have room."""
    free = -1000
    for rate in rates:
        x, _ = place(rate, 0)
        cv2.line(canvas, (x, top), (x, top + high), (190, 190, 190), 1)
        text = str(rate)
        if x - text_width(text, 0.45) / 2 > free:
            put_text(canvas, text, x, top - 8, 0.45, align="middle")
            free = x + text_width(text, 0.45) / 2 + 4


def draw_kernels(layers: Sequence[AtrousLayer], title: str, columns: int = 4) -> np.ndarray:
    """The taps of each distinct kernel, at the middle of its map, all at one scale.

    Args:
        layers (list[AtrousLayer]): Not empty.
        title (str): First line.
        columns (int): Panels in a row.

    Returns:
        np.ndarray: uint8 [H, W, 3].
    """
    distinct: dict[tuple, AtrousLayer] = {}
    for layer in layers:
        distinct.setdefault((layer.kernel, layer.rate, layer.size), layer)
    panels = sorted(distinct.values(), key=lambda layer: (layer.effective, layer.size))
    side, gap, head, foot = 214, 16, 70, 58
    most = [_ROOM * max(layer.size[i] for layer in panels) for i in (0, 1)]
    reach = [max(max(p.size[i], min(p.effective[i], most[i])) + 2 for p in panels) for i in (0, 1)]
    unit = side / max(reach)  # pixels of the picture for a pixel of the map
    tall, wide = (max(60, round(r * unit)) for r in reach)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = max(gap + columns * (side + gap), 16 + text_width(title, 0.6) + 16, 620)
    canvas = blank(head + rows * (tall + foot) + 6, width)
    put_text(canvas, title, 16, 28, 0.6)
    caption = "Grey: the map. Squares: taps around its middle pixel; red: in padding"
    far = any(e > m for p in panels for e, m in zip(p.effective, most))
    put_text(canvas, caption + (", hollow: further out." if far else "."), 16, 52)
    for i, layer in enumerate(panels):
        x, y = gap + (i % columns) * (side + gap), head + (i // columns) * (tall + foot)
        shift = x + (side - wide) // 2
        _draw_kernel(canvas[y : y + tall, shift : shift + wide], layer, unit)
        taps = "x".join(map(str, reversed(layer.kernel)))
        spans = "{1}x{0}".format(*layer.effective)
        lines = (
            f"{taps} rate {_both(layer.rate)} spans {spans}",
            "{1}x{0} map: ".format(*layer.size) + f"{100 * layer.share:.1f} % valid",
        )
        for line, text in enumerate(lines):
            put_text(canvas, text, x + side / 2, y + tall + 17 + 18 * line, 0.43, align="middle")
    return canvas


def _draw_kernel(panel, layer, unit):
    """One map in the panel's middle and the taps around the map's middle pixel."""
    start = [(p - s * unit) / 2 for p, s in zip(panel.shape, layer.size)]
    (top, bottom), (left, right) = (
        (round(a), round(a + s * unit)) for a, s in zip(start, layer.size)
    )
    panel[top:bottom, left:right] = (240, 240, 240)
    cv2.rectangle(panel, (left, top), (right - 1, bottom - 1), (170, 170, 170), 1)
    # A tap is a pixel of the map, drawn larger where that is too small to see and there is room.
    half = int(max(unit / 2, min(2.5, 0.36 * unit * min(layer.rate))))
    for row in range(layer.kernel[0]):
        for column in range(layer.kernel[1]):
            taps = zip((row, column), layer.kernel, layer.rate, layer.size)
            # The middle pixel, and from there to the tap.
            place = [(s - 1) // 2 + (t - (k - 1) // 2) * r for t, k, r, s in taps]
            inside = all(0 <= p < s for p, s in zip(place, layer.size))
            exact = [a + (p + 0.5) * unit for a, p in zip(start, place)]
            shown = [min(max(e, half), n - 1 - half) for e, n in zip(exact, panel.shape)]
            far = any(abs(e - s) > unit for e, s in zip(exact, shown))
            corners = [[round(c) + d for c in reversed(shown)] for d in (-half, half)]
            color = _color(1.0) if inside else _color(0.1)
            cv2.rectangle(panel, *corners, color, 1 if far else -1)


def draw_all(layers: Sequence[AtrousLayer], title: str) -> dict[str, np.ndarray]:
    """Every picture, by file name.

    Args:
        layers (list[AtrousLayer]): Of one network.
        title (str): What network; the pictures' first lines begin with it.

    Returns:
        dict[str, np.ndarray]: empty where there are no atrous layers.
    """
    if not layers:
        return {}
    pictures = {
        "valid_weights.png": draw_layers(layers, f"{title}: atrous convolutions"),
        "kernels.png": draw_kernels(layers, f"{title}: effective kernels"),
    }
    widest = max(layers, key=lambda layer: layer.rate)
    rates = sorted({layer.rate[0] for layer in layers if layer.size == widest.size})
    name = "{1}x{0} map".format(*widest.size)
    pictures["valid_weights_by_rate.png"] = draw_curves(widest.size, rates, f"{title}: {name}")
    return pictures

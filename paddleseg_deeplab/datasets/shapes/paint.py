# SPDX-License-Identifier: Apache-2.0
"""How an embedded scene looks: materials, light, shadow, distractors, blur and sensor noise.

Nothing here knows a shape's class: colours and textures are drawn from one distribution for
the background and for every shape, so neither can give the class away.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from paddleseg_deeplab.datasets.shapes.geometry import Placed, signed_distance

_LOW, _HIGH = 35.0, 220.0  # range of base colours; texture and light move pixels beyond it


def noise_field(
    rng: np.random.Generator, height: int, width: int, period: float, octaves: int = 4
) -> np.ndarray:
    """Multi-octave value noise.

    Args:
        rng (numpy.random.Generator): Source.
        height, width (int): Size in pixels.
        period (float): Length in pixels of the slowest octave; each next one halves it and has
            0.55 of its weight.
        octaves (int): Most octaves; those under two pixels are left out.

    Returns:
        float32 [height, width], roughly in 0..1 with mean 0.5.
    """
    total = np.zeros((height, width), np.float32)
    weight, weights = 1.0, 0.0
    for _ in range(octaves):
        if period < 2 and weights > 0:
            break
        grid = rng.random((int(height / period) + 2, int(width / period) + 2), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        weights += weight
        weight *= 0.55
        period /= 2
    total /= weights
    # The sum of octaves bunches around the middle; stretch it back over 0..1.
    return np.clip((total - 0.5) * 1.8 + 0.5, 0, 1, out=total)


def texture_field(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """One of five textures, as a mixing weight in 0..1: float32 [height, width].

    `unit` is the image's shorter side in pixels; it sets the scale of the pattern.
    """
    kind = rng.integers(5)
    if kind == 0:
        return noise_field(rng, height, width, max(unit * rng.uniform(0.06, 0.3), 2.0))
    # Python floats everywhere: a NumPy float64 scalar would turn whole planes to float64.
    angle, phase = rng.uniform(0, 2 * math.pi, 2).tolist()
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == 1:  # linear gradient
        low, high = float(along.min()), float(along.max())
        return (along - low) / max(high - low, 1.0)
    wave = 2 * math.pi / max(unit * 0.03 * 4 ** rng.random(), 5.0)
    if kind == 2:  # stripes, from soft to crisp
        return 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * np.sin(along * wave + phase))
    across = math.cos(angle) * y - math.sin(angle) * x
    if kind == 3:  # dots or checks
        bumps = np.sin(along * wave + phase) * np.sin(across * wave)
        return 0.5 + 0.5 * np.tanh(rng.uniform(1, 5) * bumps)
    # Wood: stripes bent by noise.
    bend = noise_field(rng, height, width, max(unit * 0.2, 2.0), octaves=2)
    return 0.5 + 0.5 * np.sin(along * wave + 9 * bend + phase)


def pick_colour(
    rng: np.random.Generator, channels: int, others: Sequence[np.ndarray], candidates: int = 6
) -> np.ndarray:
    """A random base colour, the most distant from `others` among a few candidates.

    Returns:
        float32 [channels] in about 35..220.
    """
    choice = rng.uniform(_LOW, _HIGH, (candidates, channels)).astype(np.float32)
    if not others:
        return choice[0]
    gaps = np.linalg.norm(choice[:, None] - np.stack(others)[None], axis=2).min(axis=1)
    return choice[int(gaps.argmax())]


def paint_material(
    rng: np.random.Generator,
    height: int,
    width: int,
    unit: float,
    colour: np.ndarray,
    difficulty: float,
) -> np.ndarray:
    """Pixels of one material: float32 [channels, height, width], mean near `colour`."""
    channels = len(colour)
    colour = colour[:, None, None]
    if difficulty <= 0:
        return np.broadcast_to(colour, (channels, height, width))
    # Mostly lightness, partly hue: what real surfaces do.
    swing: np.ndarray = rng.uniform(-45, 45) + rng.uniform(-25, 25, channels)
    field = texture_field(rng, height, width, unit) - 0.5
    swing = (swing * (2 * difficulty)).astype(np.float32)[:, None, None]
    paint = field[None] * swing
    paint += colour
    return paint


def _blend(canvas, paint, weight):
    """canvas <- canvas + weight * (paint - canvas), in place on our own canvas.

    canvas [channels, h, w]; paint the same or one colour [channels, 1, 1]; weight [h, w].
    """
    change = paint - canvas
    change *= weight
    canvas += change


def paint_background(
    rng: np.random.Generator,
    height: int,
    width: int,
    channels: int,
    difficulty: float,
    twins: Sequence[np.ndarray],
) -> np.ndarray:
    """Background with distractors: other materials in irregular patches, bands and thin lines.

    Args:
        twins: Colours of the scene's shapes; distractors wear near copies of them, so that
            "this colour means a shape" is never true.

    Returns:
        float32 [channels, height, width].
    """
    unit = min(height, width)
    colour = pick_colour(rng, channels, twins)
    canvas = np.array(paint_material(rng, height, width, unit, colour, difficulty), np.float32)
    if difficulty <= 0:
        return canvas

    def twin():
        base = twins[int(rng.integers(len(twins)))]
        step = rng.normal(size=channels)
        return np.float32(np.clip(base + 30 * step / np.linalg.norm(step), 0, 255))

    if rng.random() < difficulty + 0.3:  # patches with a hard, irregular edge
        field = noise_field(rng, height, width, unit * rng.uniform(0.25, 0.6), octaves=3)
        edge = np.clip((field - rng.uniform(0.6, 0.75)) * (0.25 * unit), 0, 1)
        _blend(canvas, paint_material(rng, height, width, unit, twin(), difficulty), edge)
    if rng.random() < difficulty:  # a straight border, as a horizon or a wall makes
        angle = rng.uniform(0, 2 * math.pi)
        x = np.arange(width, dtype=np.float32)[None, :] - rng.uniform(0.2, 0.8) * width
        y = np.arange(height, dtype=np.float32)[:, None] - rng.uniform(0.2, 0.8) * height
        edge = np.clip(math.cos(angle) * x + math.sin(angle) * y, 0, 1)
        _blend(canvas, paint_material(rng, height, width, unit, twin(), difficulty), edge)
    lines = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(0, 1 + round(12 * difficulty)))):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * [width, height] * 16
        thickness = max(1, round(unit * rng.uniform(0.002, 0.012)))
        start, end = (tuple(int(v) for v in point) for point in ends)
        cv2.line(lines, start, end, int(rng.integers(120, 256)), thickness, cv2.LINE_AA, 4)
    if lines.any():
        _blend(canvas, twin()[:, None, None], lines.astype(np.float32) / 255)
    return canvas


def _shade(rng, canvas, window, distance, unit, difficulty):
    """A soft shadow of the shape on what lies under it."""
    rows, columns, _ = window
    softness = unit * rng.uniform(0.01, 0.04) + 1
    dx, dy = (round(unit * v) for v in rng.uniform(-0.02, 0.02, 2).tolist())
    dark = np.clip(0.5 - distance / softness, 0, 1) * np.float32(0.5 * difficulty + 0.1)
    height, width = canvas.shape[1:]
    top, left = rows.start + dy, columns.start + dx
    cut_t, cut_l = max(0, -top), max(0, -left)
    bottom, right = min(top + dark.shape[0], height), min(left + dark.shape[1], width)
    if bottom > top + cut_t and right > left + cut_l:
        dark = dark[cut_t : bottom - top, cut_l : right - left]
        canvas[:, top + cut_t : bottom, left + cut_l : right] *= 1 - dark


def paint_scene(
    rng: np.random.Generator,
    placed: Sequence[Placed],
    height: int,
    width: int,
    channels: int = 3,
    difficulty: float = 0.5,
) -> np.ndarray:
    """Paints a planned scene.

    Args:
        rng (numpy.random.Generator): Source of appearance; geometry does not draw from it.
        placed (list[Placed]): The shapes, lowest first.
        height, width (int): Size in pixels.
        channels (int): Number of channels, each independently coloured.
        difficulty (float): 0 paints every region flat, without light, blur or noise; 0.5 is
            the default look; 1 has the strongest textures, shadows and noise.

    Returns:
        uint8 [height, width, channels]; RGB where there are three channels.
    """
    unit = min(height, width)
    colours: list[np.ndarray] = []
    for _ in placed:
        colours.append(pick_colour(rng, channels, colours, candidates=3))
    twins = colours or [pick_colour(rng, channels, [])]
    canvas = paint_background(rng, height, width, channels, difficulty, twins)
    for shape, colour in zip(placed, colours):
        window = signed_distance(shape, height, width)
        if window is None:
            continue
        rows, columns, distance = window
        if difficulty > 0 and rng.random() < 0.6:
            _shade(rng, canvas, window, distance, unit, difficulty)
        high, wide = distance.shape
        paint = paint_material(rng, high, wide, unit, colour, difficulty)
        _blend(canvas[:, rows, columns], paint, np.clip(0.5 - distance, 0, 1))
    if difficulty > 0:
        canvas = _photograph(rng, canvas, unit, difficulty)
    canvas += 0.5
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _photograph(rng, canvas, unit, difficulty):
    """Uneven light, blur of the lens, and noise of the sensor; [channels, height, width]."""
    _, height, width = canvas.shape
    light = noise_field(rng, height, width, unit * 0.7, octaves=1) - 0.5
    light += np.linspace(*rng.uniform(-0.5, 0.5, 2), width, dtype=np.float32)[None, :]
    light += np.linspace(*rng.uniform(-0.5, 0.5, 2), height, dtype=np.float32)[:, None]
    canvas *= 1 + 0.7 * difficulty * light
    sigma = rng.uniform(0, 1.6 * difficulty)
    if sigma > 0.3:
        canvas = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in canvas])
    level = rng.uniform(2, 26) * difficulty
    # The sum of two bytes: nearly as round as a normal distribution, at a quarter of its cost.
    raw = np.frombuffer(rng.bytes(2 * canvas.size), np.uint8).reshape(2, *canvas.shape)
    noise = raw[0].astype(np.float32)
    noise += raw[1]
    noise -= 255.0
    noise *= level / 104.5  # 104.5 is the deviation of that sum
    canvas += noise
    return canvas

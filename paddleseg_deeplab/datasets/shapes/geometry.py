# SPDX-License-Identifier: Apache-2.0
"""Where the shapes of an embedded scene lie, and how far each pixel is from their edges.

Everything is drawn in units of the image's shorter side, so one (seed, split, index) is the
same scene at every resolution of one aspect ratio. The mask depends on this file alone.

The mask rule: a pixel belongs to the topmost shape that contains the pixel's centre (signed
distance <= 0). The image blends across the same edge over one pixel (coverage =
clip(0.5 - distance, 0, 1)), so coverage >= 0.5 and mask membership are the same statement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Class k + 1 is SHAPES[k]; the number is the circumradius at which a shape of nominal size 1
# is drawn, chosen so that all classes cover about the same area (no class is rare by size).
SHAPES = (
    ("disk", 1.00),
    ("star", 1.42),
    ("square", 1.25),
    ("ring", 1.12),
    ("triangle", 1.45),
    ("cross", 1.30),
    ("crescent", 1.40),
)


@dataclass(frozen=True)
class Placed:
    """One shape of a scene; lengths in units of the image's shorter side.

    `kind` indexes SHAPES; `x`, `y` centre; `radius` circumradius; `angle` radians;
    `stretch` the ratio of its axes; `detail` in 0..1, the kind's own parameter (how deep a
    star's notches are, how thick a ring is, ...).
    """

    kind: int
    x: float
    y: float
    radius: float
    angle: float
    stretch: float
    detail: float


def plan_scene(
    rng: np.random.Generator,
    aspect: Sequence[float],
    kinds: int,
    objects: Sequence[int] = (4, 9),
    sizes: Sequence[float] = (0.065, 0.19),
) -> list[Placed]:
    """Chooses the shapes of one scene, in painting order (later ones lie on top).

    Args:
        rng (numpy.random.Generator): Source of all choices.
        aspect (tuple[float, float]): (height, width) in units of the shorter side.
        kinds (int): The first `kinds` entries of SHAPES are used, all equally likely.
        objects (tuple[int, int]): Fewest and most shapes on a square image; elongated images
            get proportionally more.
        sizes (tuple[float, float]): Least and greatest nominal radius, in units of the shorter
            side.

    Returns:
        list[Placed]: Shapes overlap, but never so far that the lower one cannot be told.
    """
    height, width = aspect
    count = round(int(rng.integers(objects[0], objects[1] + 1)) * height * width)
    placed: list[Placed] = []
    for _ in range(max(count, 1)):
        kind = int(rng.integers(kinds))
        # Log-uniform, so that small and large shapes get the same share of scenes.
        size = sizes[0] * (sizes[1] / sizes[0]) ** rng.random()
        radius = size * SHAPES[kind][1]
        angle = rng.uniform(0, 2 * np.pi)
        stretch = 1.35 ** rng.uniform(-1, 1)
        detail = rng.random()
        for _ in range(12):
            x = rng.uniform(0.45 * size, width - 0.45 * size)
            y = rng.uniform(0.45 * size, height - 0.45 * size)
            # 0.72: touching is 1.0; the lower of two equal disks keeps at least 2/3 of itself.
            if all(
                np.hypot(x - p.x, y - p.y) >= 0.72 * (size + p.radius / SHAPES[p.kind][1])
                for p in placed
            ):
                placed.append(Placed(kind, x, y, radius, angle, stretch, detail))
                break
    return placed


def _ellipse(u, v, radius):
    """Signed distance to a circle of `radius` in the shape's own frame."""
    return np.hypot(u, v) - radius


def _polygon(u, v, corners):
    """Signed distance [h, w] to a closed polygon, negative inside (even-odd rule).

    Args:
        u, v: float32 coordinates, broadcastable to [h, w].
        corners: float [n, 2], in order.
    """
    nearest = None
    inside = None
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        ex, ey = bx - ax, by - ay
        wu, wv = u - ax, v - ay
        t = np.clip((wu * ex + wv * ey) / (ex * ex + ey * ey), 0, 1)
        squared = (wu - t * ex) ** 2 + (wv - t * ey) ** 2
        # A ray to +u crosses the edge if the ends lie on different sides and it hits right of p.
        crosses = (ay > v) != (by > v)
        if ey != 0:
            crosses = crosses & (wu < wv * (ex / ey))
        nearest = squared if nearest is None else np.minimum(nearest, squared)
        inside = crosses if inside is None else inside ^ crosses
    distance = np.sqrt(nearest)
    return np.negative(distance, out=distance, where=inside)


def _regular(n, radii):
    angles = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.resize(radii, n)[:, None]


def _corners(kind_name, detail):
    """The corners [n, 2] of a polygonal kind with circumradius 1."""
    if kind_name == "star":
        points = 5 if detail < 0.7 else 6
        return _regular(2 * points, [1.0, 0.40 + 0.12 * detail])
    if kind_name == "square":
        return _regular(4, [1.0])
    if kind_name == "triangle":
        return _regular(3, [1.0])
    arm = 0.24 + 0.10 * detail  # half the width of a cross's arm
    reach = np.sqrt(1 - arm * arm)
    quarter = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter] + [quarter @ turn for turn in turns])


def signed_distance(
    shape: Placed, height: int, width: int
) -> tuple[slice, slice, np.ndarray] | None:
    """Distance of each pixel centre from the edge of one shape, negative inside, in pixels.

    Args:
        shape (Placed): The shape.
        height, width (int): Size of the image in pixels.

    Returns:
        tuple: (rows slice, columns slice, float32 distances of that window), or None where
        the shape does not reach into the image. The sign is exact; the size of distances is
        exact for unstretched shapes and within the stretch factor (at most 1.35) otherwise.
    """
    unit = min(height, width)
    radius = shape.radius * unit
    cx, cy = shape.x * unit, shape.y * unit
    # A stretched shape reaches sqrt(stretch) further along its long axis; 2 px for the edge.
    reach = radius * max(shape.stretch, 1 / shape.stretch) ** 0.5 + 2
    top, bottom = max(int(cy - reach), 0), min(int(cy + reach) + 1, height)
    left, right = max(int(cx - reach), 0), min(int(cx + reach) + 1, width)
    if top >= bottom or left >= right:
        return None
    # Pixel (row, column) has its centre at (column + 0.5, row + 0.5).
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - cx)[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - cy)[:, None]
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    squeeze = shape.stretch**0.5
    u, v = (cos * x + sin * y) / squeeze, (cos * y - sin * x) * squeeze
    name = SHAPES[shape.kind][0]
    if name == "disk":
        distance = _ellipse(u, v, radius)
    elif name == "ring":
        hole = radius * (0.45 + 0.2 * shape.detail)
        distance = np.maximum(_ellipse(u, v, radius), -_ellipse(u, v, hole))
    elif name == "crescent":
        bite = radius * (0.50 + 0.15 * shape.detail)
        distance = np.maximum(_ellipse(u, v, radius), -_ellipse(u - bite, v, 0.85 * radius))
    else:
        corners = np.float32(_corners(name, shape.detail) * radius)
        distance = _polygon(u, v, corners)
    return slice(top, bottom), slice(left, right), distance


def draw_mask(placed: Sequence[Placed], height: int, width: int) -> np.ndarray:
    """The exact mask of a scene: uint8 [height, width], 0 background, k the k-th of SHAPES."""
    mask = np.zeros((height, width), np.uint8)
    for shape in placed:
        window = signed_distance(shape, height, width)
        if window is not None:
            rows, columns, distance = window
            mask[rows, columns][distance <= 0] = shape.kind + 1
    return mask

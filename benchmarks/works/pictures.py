# SPDX-License-Identifier: Apache-2.0
"""Pictures and labels like Cityscapes', made of random numbers alone."""

import cv2
import numpy as np
from PIL import Image

CLASSES = 19


def make_picture(size, seed=0):
    """Smooth shades down to a fine grain: uint8 RGB [H, W, 3].

    At 1024x2048 a PNG of it is 2.3 MB, which is the average of Cityscapes' files.
    """
    rng, (height, width) = np.random.default_rng(seed), size
    picture = np.full((height, width, 3), 110, np.float32)
    n = 2
    while n < height:
        coarse = rng.standard_normal((n, 2 * n, 1)) + 0.3 * rng.standard_normal((n, 2 * n, 3))
        fine = cv2.resize(coarse.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
        picture += fine * (100 / n)
        n *= 2
    picture += rng.standard_normal(picture.shape, dtype=np.float32)
    return picture.clip(0, 255).round().astype(np.uint8)


def make_label(size, seed=1):
    """Polygons, as annotators draw them: uint8 [H, W]."""
    rng, (height, width) = np.random.default_rng(seed), size
    label = np.zeros(size, np.uint8)
    for _ in range(60):
        centre, radius = rng.random(2) * (width, height), (0.03 + 0.2 * rng.random()) * height
        angles = np.sort(rng.random(12)) * 2 * np.pi
        ring = np.stack([np.cos(angles), np.sin(angles)], 1) * (0.5 + rng.random((12, 1)))
        points = (centre + radius * ring).round().astype(np.int32)
        cv2.fillPoly(label, [points], int(rng.integers(CLASSES)))
    return label


def make_files(folder, size):
    """label.png, and the picture as image.png, image.jpg and image.npy."""
    picture = make_picture(size)
    Image.fromarray(picture).save(folder / "image.png")
    Image.fromarray(picture).save(folder / "image.jpg", quality=95)
    np.save(folder / "image.npy", picture)
    Image.fromarray(make_label(size)).save(folder / "label.png")


def write_set(folder, count, size, classes=CLASSES):
    """Writes `count` JPEG files with labels in PNG, and list.txt with one line for each."""
    lines = []
    for i in range(count):
        Image.fromarray(make_picture(size, i)).save(folder / f"{i}.jpg", quality=95)
        Image.fromarray(make_label(size, i) % classes).save(folder / f"{i}.png")
        lines.append(f"{i}.jpg {i}.png\n")
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""The embedded dataset: scenes made on the fly, whose classes are shapes and never colours."""

import numbers
from collections.abc import Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets.base import BaseDataset, Transforms
from paddleseg_deeplab.datasets.shapes.geometry import SHAPES, draw_mask, plan_scene
from paddleseg_deeplab.datasets.shapes.paint import paint_scene
from paddleseg_deeplab.utils.errors import UserError

_SPLITS = {"train": 0, "val": 1, "test": 2}
# Scenes cost nothing to store, so an epoch of training may be long.
_SAMPLES = {"train": 4000, "val": 100, "test": 100}
# Keeps the scenes' random streams apart from those of the transforms, which use the same seed.
_STREAM = 0x5348504E
_GEOMETRY, _LOOK = 0, 1
_PALETTE = (
    (0, 0, 0),
    (230, 60, 60),
    (250, 200, 40),
    (60, 160, 230),
    (80, 200, 100),
    (200, 90, 220),
    (255, 140, 40),
    (150, 240, 240),
)


@registry.DATASETS.add_component
class Shapes(BaseDataset):
    """Overlapping shapes on cluttered backgrounds, with exact masks; no files, no download.

    Class 0 is the background; classes 1 to 7 are disk, star, square, ring, triangle, cross and
    crescent, turned, stretched and cut by the border. A ring's hole belongs to what lies under
    it. Colour, texture, light and shadow are drawn alike for all of them, and the background
    holds patches, borders and lines in the shapes' colours, so only the outline gives the class.

    A scene follows from (seed, mode, index) alone: the same index is the same scene in every
    epoch, process and order, and with the same aspect ratio the same scene at every size.
    Modes never share a scene. Two seeds are two datasets.

    Args:
        transforms (list): Transforms of a sample.
        mode (str): "train", "val" or "test".
        num_classes (int): Background and the first num_classes - 1 shapes; 2 to 8.
        image_size (tuple[int, int]): (width, height) in pixels, each at least 16.
        num_samples (int): Number of scenes; default 4000 to train, 100 else.
        seed (int): Seed of the scenes and of the random transforms; 0 to 2**32 - 1.
        img_channels (int): Channels, each independently coloured; 3 are RGB.
        ignore_index (int): The void label; scenes have no void pixels, padding makes some.
        difficulty (float): 0 flat colours without light, blur and noise; 0.5 the usual look;
            1 the strongest textures, shadows, blur and noise. Masks do not depend on it.
        objects (tuple[int, int]): Fewest and most shapes on a square scene.
        sizes (tuple[float, float]): Least and greatest radius of a shape in units of the shorter
            side, above 0 and below 0.5.

    Raises:
        UserError: a setting outside its range.
    """

    thread_safe = draws_from_rng = True
    image_size: tuple[int, ...]
    objects: tuple[int, ...]
    sizes: tuple[float, ...]
    difficulty: float

    def __init__(
        self,
        transforms: Transforms = (),
        mode: str = "train",
        num_classes: int = 3,
        image_size: Sequence[int] = (512, 512),
        num_samples: int | None = None,
        seed: int = 0,
        img_channels: int = 3,
        ignore_index: int = 255,
        *,
        difficulty: float = 0.5,
        objects: Sequence[int] = (4, 9),
        sizes: Sequence[float] = (0.065, 0.19),
    ) -> None:
        most = len(_PALETTE)
        if not isinstance(num_classes, numbers.Integral) or not 2 <= num_classes <= most:
            raise UserError(f"Shapes: num_classes must be 2 to {most}, not {num_classes!r}.")
        self._set_up_classes(
            num_classes,
            ignore_index=ignore_index,
            class_names=["background", *(name for name, _ in SHAPES[: num_classes - 1])],
            palette=_PALETTE[:num_classes],
        )
        self._set_up_samples(mode, tuple(_SPLITS), transforms, img_channels=img_channels, seed=seed)
        if not _is_pair(image_size, 16):
            raise UserError(
                "Shapes: image_size must be (width, height), each at least 16 pixels, "
                f"not {image_size!r}."
            )
        if not _is_pair(objects, 1) or objects[0] > objects[1]:
            raise UserError(f"Shapes: objects must be (fewest, most) from 1 on, not {objects!r}.")
        if not _is_range(sizes):
            raise UserError(f"Shapes: sizes must be (least, greatest) in 0 to 0.5, not {sizes!r}.")
        if not isinstance(difficulty, numbers.Real) or not 0 <= difficulty <= 1:
            raise UserError(f"Shapes: difficulty must be 0 to 1, not {difficulty!r}.")
        count = _SAMPLES[self.mode] if num_samples is None else num_samples
        if not isinstance(count, numbers.Integral) or not 1 <= count < 2**32:
            raise UserError(f"Shapes: num_samples must be at least 1, not {num_samples!r}.")
        self.image_size = tuple(int(side) for side in image_size)
        self.objects = tuple(int(number) for number in objects)
        self.sizes = tuple(float(size) for size in sizes)
        self.difficulty = float(difficulty)
        # Names, not files: what logs and tables call the scenes.
        self.file_list = [[f"shapes_{self.mode}_{i:06d}.png", None] for i in range(count)]

    def _rng(self, index, stream):
        # Five numbers below 2**32, always: tuples of one length never give equal streams.
        return np.random.default_rng([_STREAM, self.seed, _SPLITS[self.mode], index, stream])

    def _plan(self, index):
        width, height = self.image_size
        unit = min(width, height)
        rng = self._rng(index, _GEOMETRY)
        aspect = (height / unit, width / unit)
        return plan_scene(rng, aspect, self.num_classes - 1, self.objects, self.sizes)

    def load_image(self, index: int) -> np.ndarray:
        """The untransformed image of a scene: float32 [H, W, C], 0..255 in whole steps, RGB."""
        width, height = self.image_size
        index = self._index(index)
        rng, plan = self._rng(index, _LOOK), self._plan(index)
        image = paint_scene(rng, plan, height, width, self.img_channels, self.difficulty)
        return image.astype(np.float32)

    def load_label(self, index: int) -> np.ndarray:
        """The exact mask of a scene: uint8 [H, W]; its rule is in geometry.py."""
        width, height = self.image_size
        return draw_mask(self._plan(self._index(index)), height, width)

    def _read(self, index):
        sample = {"img": self.load_image(index), "label": self.load_label(index)}
        return {**sample, "trans_info": [], "im_path": self.file_list[index][0]}

    def _transform(self, sample):
        return self.transforms.apply(sample)  # there is nothing to read


def _is_pair(value, low):
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(v, numbers.Integral) and v >= low for v in value)
    )


def _is_range(value):
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(v, numbers.Real) for v in value)
        and 0 < value[0] <= value[1] < 0.5
    )

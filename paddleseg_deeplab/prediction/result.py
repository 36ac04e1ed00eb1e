# SPDX-License-Identifier: Apache-2.0
"""What a network says of one picture, for Python programs and notebooks. No Paddle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from paddleseg_deeplab.prediction import outputs as prediction_files
from paddleseg_deeplab.prediction import regions
from paddleseg_deeplab.prediction.annotations import SHAPES, Annotations
from paddleseg_deeplab.prediction.regions import ClassArea, Polygon
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import UserError


class Result:
    """The classes of one picture's pixels.

    Args:
        name (str): The picture's path, or "image", or "image_3" of many.
        image (np.ndarray): The picture, uint8 RGB [H, W, 3].
        mask (np.ndarray): int32 [H, W]: the class of each pixel, 0 to K - 1; 255 where the picture
            has no data (`nodata` of the export).
        palette (np.ndarray): uint8 RGB [K, 3].
        class_names (Sequence[str]): K names, or none where they are not known.
        probabilities (Callable): Gives them, see the property; or a str, the reason why there are
            none.

    Attributes: ``name``, ``image``, ``mask``, ``palette``, ``class_names``, as above.
    """

    def __init__(
        self,
        name: str,
        image: np.ndarray,
        mask: np.ndarray,
        palette: np.ndarray,
        class_names: Sequence[str],
        probabilities: Callable[[], np.ndarray] | str,
    ) -> None:
        self.name, self.image, self.mask = name, image, mask
        self.palette, self.class_names = palette, tuple(class_names)
        self._probabilities = probabilities

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [K, H, W], 0 to 1, which add up to 1 in each pixel; made when first asked for.

        Raises:
            UserError: The export keeps none, or the call left them out.
        """
        if isinstance(self._probabilities, str):
            raise UserError(f"{self.name}: {self._probabilities}")
        found, self._probabilities = self._probabilities(), "they are made"
        return found

    def areas(self) -> list[ClassArea]:
        """Pixels and share of the picture of each class, see `regions.class_areas`."""
        return regions.class_areas(self.mask, self.class_names or len(self.palette))

    def polygons(self, classes: Sequence[int] | None = None) -> dict[int, list[Polygon]]:
        """The outlines of each class's regions, in corners of pixels, see `regions.polygons`."""
        return regions.polygons(self.mask, classes)

    def overlay(self, weight: float = 0.6) -> np.ndarray:
        """The picture with the classes' colours over it, uint8 RGB [H, W, 3].

        Args:
            weight (float): Share of the picture, 0 to 1; the colours have the rest.
        """
        return visualize.overlay(self.image, self.mask, self.palette, weight)

    def save(
        self,
        save_dir: str | os.PathLike[str],
        outputs: str | Iterable[str] = ("overlay", "palette"),
        name: str | None = None,
    ) -> dict[str, str]:
        """Writes files, the same as the command ``infer`` writes.

        Args:
            save_dir (str): Their folder; each kind has one of its own in it.
            outputs (Sequence[str]): Of "overlay", "palette", "raw" (class numbers), "prob",
                "labelme", "labelme_polygons".
            name (str, optional): Of the files, without extension; by default that of the picture's
                file. An older file of that name is replaced.

        Returns:
            dict[str, str]: Kind to file.

        Raises:
            UserError: A kind is unknown or is one file for many pictures, there are no
                probabilities, or nothing can be written there. OSError: The disk is full or gone.
        """
        kinds, folder = prediction_files.parse_outputs(outputs), os.fspath(save_dir)
        for kind in kinds:
            if kind in prediction_files.RUN_OUTPUTS:
                raise UserError(
                    f"save: {kind} is one file for many pictures, which the commands infer and "
                    "predict write. Of one picture, areas() and polygons() give the same."
                )
        prediction_files.check_save_dir(folder, "save_dir")
        name = name or os.path.splitext(os.path.basename(self.name))[0]
        written = prediction_files.write_outputs(
            folder,
            name,
            image=self.image,
            labels=self.mask,
            palette=self.palette,
            probabilities=self.probabilities if "prob" in kinds else None,
            outputs=[kind for kind in kinds if kind not in SHAPES],
        )
        classes = self.class_names or len(self.palette)
        written.update(Annotations(kinds, folder, classes, "").add(0, self.name, name, self.mask))
        return {kind: written[kind] for kind in kinds}

    def __getstate__(self) -> dict[str, Any]:
        """For `pickle`: the runtime's own output stays; what was made of it goes along."""
        left = "it was copied to another process before its probabilities were made."
        made = isinstance(self._probabilities, str)
        return {**self.__dict__, "_probabilities": self._probabilities if made else left}

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = np.unique(self.mask).tolist()
        names = [self.class_names[i] if i < len(self.class_names) else str(i) for i in found]
        return f"Result({self.name!r}, {width}x{height}: {', '.join(names)})"

    def _repr_png_(self) -> bytes:
        """The overlay, as notebooks show it."""
        return cv2.imencode(".png", np.ascontiguousarray(self.overlay()[..., ::-1]))[1].tobytes()

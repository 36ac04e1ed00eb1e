# SPDX-License-Identifier: Apache-2.0
"""Compose: reads a sample's files, runs the transforms, and hands out what a batch needs."""

import os

import cv2
import numpy as np

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.transforms.base import check_int, image_size
from paddleseg_deeplab.transforms.pipeline import read_image, read_label
from paddleseg_deeplab.utils.errors import UserError


def _as_image(array, img_channels, to_rgb):
    """A float32 [H, W, C] copy of an array that holds an image as OpenCV reads it (BGR)."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] != img_channels:
        raise ValueError(
            f"img has the shape {array.shape}; expected [H, W, {img_channels}], since "
            f"img_channels is {img_channels}."
        )
    img = array.astype(np.float32)
    if to_rgb and img_channels == 3:
        img = cv2.cvtColor(img, cv2.COLOR_BGR2RGB)
    return img


@manager.TRANSFORMS.add_component
class Compose:
    """Runs a list of transforms on a sample.

    Args:
        transforms (list): Callables that take a sample and return it; may be empty.
        to_rgb (bool): Images of three channels are handed to the transforms as RGB, else as BGR.
        img_channels (int): Number of channels of the images.

    Raises:
        TypeError: `transforms` is not a list of callables.
    """

    def __init__(self, transforms, to_rgb=True, img_channels=3):
        if not isinstance(transforms, (list, tuple)):
            raise TypeError(f"Compose: transforms must be a list, but it is {transforms!r}.")
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"Compose: {transform!r} in transforms is not callable.")
        self.transforms = list(transforms)
        self.to_rgb = to_rgb
        self.img_channels = check_int("Compose", "img_channels", img_channels)

    def __call__(self, data):
        """Reads and transforms one sample.

        Args:
            data (dict): ``img``: a path, or an array [H, W] or [H, W, C] in 0..255 that counts as
                BGR when it has three channels (as in PaddleSeg: what cv2.imread returns).
                Optional: ``label``, a path or an array [H, W]; ``gt_fields``, the keys that are
                transformed with the image, usually ["label"]; ``rng``; anything else is passed on.
                The dict and its arrays stay as they are.

        Returns:
            dict: ``img`` float32 [C, H, W]; ``label`` as read or transformed, [H, W];
            ``trans_info`` [("resize" | "padding", (height, width) before the step), ...].

        Raises:
            UserError: A file is missing or broken, or image and label differ in size.
        """
        return self.apply(self.read(data))

    def read(self, data):
        """The first half of a call: a new sample whose img and label are arrays.

        Returns:
            dict: ``img`` float32 [H, W, C] in 0..255, a copy that transforms may keep.
        """
        if data.get("img") is None:
            raise ValueError("Compose: the sample has no 'img'; give a path or an array.")
        out = dict(data)
        source = data["img"]
        if isinstance(source, (str, os.PathLike)):
            out["img"] = read_image(source, self.img_channels, self.to_rgb)
            out.setdefault("im_path", str(source))
        elif isinstance(source, np.ndarray):
            out["img"] = _as_image(source, self.img_channels, self.to_rgb)
        else:
            raise TypeError(f"Compose: 'img' must be a path or an array, not {type(source)}.")
        label = data.get("label")
        if isinstance(label, (str, os.PathLike)):
            out["label"] = read_label(label)
            out.setdefault("label_path", str(label))
        elif isinstance(label, np.ndarray):
            out["label"] = label.copy()
        out["gt_fields"] = list(data.get("gt_fields", ()))
        out["trans_info"] = list(data.get("trans_info", ()))
        self._check_sizes(out)
        return out

    def _check_sizes(self, data):
        size = image_size(data)
        keys = [*data["gt_fields"], *(["label"] if data.get("label") is not None else [])]
        for key in keys:
            if not isinstance(data.get(key), np.ndarray):
                raise ValueError(f"Compose: {key!r} is in gt_fields, but the sample has none.")
            if data[key].shape[:2] != size:
                height, width = data[key].shape[:2]
                raise UserError(
                    f"{key} {data.get('label_path', '')} is {width}x{height} (width x height), its "
                    f"image {data.get('im_path', '')} is {size[1]}x{size[0]}. Make them equal; if "
                    "sides are swapped, the image carries an EXIF rotation, which is obeyed."
                )

    def apply(self, data):
        """The second half of a call: runs the transforms on what `read` returned."""
        out = dict(data)
        own_rng = out.get("rng") is None
        if own_rng:
            out["rng"] = np.random.default_rng()
        for transform in self.transforms:
            out = self._apply(transform, out)
            if not isinstance(out, dict):
                raise TypeError(
                    f"Compose: {transform!r} returned {type(out)}; a transform returns the sample."
                )
        if own_rng:
            out = {key: value for key, value in out.items() if key != "rng"}
        return self._finish(out)

    def _apply(self, transform, data):
        try:
            return transform(data)
        except UserError:
            raise
        except ValueError as error:
            # Our own say what does not fit, such as three means for four channels.
            if not type(transform).__module__.startswith("paddleseg_deeplab."):
                raise
            path = f" Image: {data['im_path']}." if "im_path" in data else ""
            name = type(transform).__name__
            raise UserError(f"{name}: {str(error).rstrip('.')}.{path}") from error

    @staticmethod
    def _finish(out):
        """Puts img to float32 [C, H, W]."""
        img = out["img"]
        planes = img[None] if img.ndim == 2 else img.transpose(2, 0, 1)
        out["img"] = np.ascontiguousarray(planes, dtype=np.float32)
        label = out.get("label")
        if isinstance(label, np.ndarray) and label.ndim == 3:
            out["label"] = label.transpose(2, 0, 1)
        return out

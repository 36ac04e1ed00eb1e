# SPDX-License-Identifier: Apache-2.0
"""Compose: reads a sample's files, runs the transforms, and hands out what a batch needs."""

import os

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional, resize_crop
from paddleseg_deeplab.transforms.checks import check_int, image_size
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.source import array_source, open_image
from paddleseg_deeplab.transforms.reading.values import mark_void, parse_nodata
from paddleseg_deeplab.utils.errors import UserError


def _as_source(array, img_channels, to_rgb, nodata, name):
    """An array that holds an image as OpenCV reads it (BGR)."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] != img_channels:
        raise ValueError(
            f"img has the shape {array.shape}; expected [H, W, {img_channels}], since "
            f"img_channels is {img_channels}."
        )
    swap = to_rgb and img_channels == 3
    return array_source(array, f"Image {name}", swap, nodata=nodata)


@registry.TRANSFORMS.add_component
class Compose:
    """Runs a list of transforms on a sample.

    Args:
        transforms (list): Callables that take a sample and return it; may be empty.
        to_rgb (bool): Images of three channels are handed to the transforms as RGB, else as BGR.
        img_channels (int): Number of channels of the images.
        nodata (float, optional): Pixels of which a channel has this value (NaN and infinity are
            allowed, also as text) have no data: before the transforms they become 0 in the image
            and 255, void, in the label. Compared with the values as the file holds them.

    Raises:
        TypeError: `transforms` is not a list of callables. UserError: `nodata` is no number.
    """

    nodata = None  # of a subclass with a constructor of its own

    def __init__(self, transforms, to_rgb=True, img_channels=3, *, nodata=None):
        if not isinstance(transforms, (list, tuple)):
            raise TypeError(f"Compose: transforms must be a list, but it is {transforms!r}.")
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"Compose: {transform!r} in transforms is not callable.")
        self.transforms = list(transforms)
        self.to_rgb = to_rgb
        self.img_channels = check_int("Compose", "img_channels", img_channels)
        self.nodata = parse_nodata("Compose", nodata)

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
            ``trans_info`` [("resize" | "padding", (height, width) before the step), ...];
            ``nodata`` bool [H, W] where the image has pixels without data.

        Raises:
            UserError: A file is missing or broken, image and label differ in size, or values are
                NaN, infinite or beyond 1e6 in magnitude in what was read.
        """
        return self.apply(self.read_lazily(data))

    def read(self, data):
        """The first half of a call: a new sample whose img and label are arrays.

        Args:
            data (dict): As for a call.

        Returns:
            dict: ``img`` float32 [H, W, C] in 0..255, a copy that transforms may keep.
        """
        out = self._open(data, whole=True)
        out["img"] = out["img"].whole()
        return out

    def read_lazily(self, data):
        """`read` for `apply`: ``img`` may be a source (see `transforms.reading.source`), of which
        `apply` makes the part alone that a first random crop takes.

        A subclass with a `read` or an `apply` of its own gets and gives arrays.
        """
        kind = type(self)
        if kind.read is not Compose.read or kind.apply is not Compose.apply:
            return self.read(data)
        return self._open(data, whole=resize_crop.match(self.transforms) is None)

    def _open(self, data, whole):
        """A new sample whose img is a source and whose label is an array."""
        if data.get("img") is None:
            raise ValueError("Compose: the sample has no 'img'; give a path or an array.")
        out = dict(data)
        source = data["img"]
        if isinstance(source, (str, os.PathLike)):
            nodata = self.nodata
            out["img"] = open_image(source, self.img_channels, self.to_rgb, whole, nodata)
            out.setdefault("im_path", str(source))
        elif isinstance(source, np.ndarray):
            name = str(data.get("im_path", "given as an array"))
            out["img"] = _as_source(source, self.img_channels, self.to_rgb, self.nodata, name)
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
        if out["img"].void is not None:
            out["nodata"] = out["img"].void
            if isinstance(out.get("label"), np.ndarray):
                out["label"] = mark_void(out["label"], out["nodata"])
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
        transforms = self.transforms
        if not isinstance(out["img"], np.ndarray):
            out, transforms = self._materialize(out)
        for transform in transforms:
            out = self._apply(transform, out)
            if not isinstance(out, dict):
                raise TypeError(
                    f"Compose: {transform!r} returned {type(out)}; a transform returns the sample."
                )
        out = {key: value for key, value in out.items() if key != "rng" or not own_rng}
        return self._finish(out)

    def _materialize(self, data):
        """(sample whose img is an array, transforms that are left to do) of a lazy one."""
        pair = resize_crop.match(self.transforms)
        if pair is None:
            return {**data, "img": data["img"].whole()}, self.transforms
        resize, crop = pair
        scaled, remaining = image_size(data), self.transforms[1:]
        if resize is not None:
            remaining = remaining[1:]
            scaled = self._apply(resize, data, lambda sample: resize.draw(scaled, sample["rng"]))
        out = self._apply(crop, data, lambda sample: resize_crop.run(sample, scaled, crop))
        return out, remaining

    def _apply(self, transform, data, run=None):
        try:
            return (run or transform)(data)
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
        """Puts the image to float32 [C, H, W]."""
        out["img"] = functional.to_planes(out["img"])
        label = out.get("label")
        if isinstance(label, np.ndarray) and label.ndim == 3:
            out["label"] = label.transpose(2, 0, 1)
        return out


def is_ours(dataset):
    """Whether a dataset, its `Compose` and all transforms in it are classes of this package.

    Those leave the global random states alone and may be read from several threads at a time; of
    what else there is neither is known. What a dataset of ours wraps (``wrapped``) counts as well.
    """
    if not _all_ours([dataset]):
        return False
    if hasattr(dataset, "wrapped"):
        return is_ours(dataset.wrapped)
    compose = getattr(dataset, "transforms", None)
    return isinstance(compose, Compose) and _all_ours([compose])


def _all_ours(parts):
    return all(
        all(kind.__module__.startswith("paddleseg_deeplab.") for kind in type(part).__mro__[:-1])
        and (not isinstance(part, Compose) or _all_ours(part.transforms))
        for part in parts
    )

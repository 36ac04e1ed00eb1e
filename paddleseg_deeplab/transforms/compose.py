# SPDX-License-Identifier: Apache-2.0
"""Compose: reads a sample's files, runs the transforms, and hands out what a batch needs."""

import os
from collections.abc import Sequence

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import Sample, Transform, check_int, image_size, naming
from paddleseg_deeplab.transforms.reading.files import read_label
from paddleseg_deeplab.transforms.reading.source import array_source, open_content, open_image
from paddleseg_deeplab.transforms.reading.values import mark_void, parse_nodata
from paddleseg_deeplab.transforms.resize_crop import ResizeCrop, with_resize_crop
from paddleseg_deeplab.utils.errors import UserError


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

    Attributes:
        transforms (list): The same; it may be changed or replaced at any time.
    """

    thread_safe = draws_from_rng = True
    # Of a subclass with a constructor of its own.
    nodata: float | None = None
    _chosen: tuple[Sequence[Transform], list[Transform]] = ((), [])

    def __init__(
        self,
        transforms: Sequence[Transform],
        to_rgb: bool = True,
        img_channels: int = 3,
        *,
        nodata: float | str | None = None,
    ) -> None:
        if not isinstance(transforms, (list, tuple)):
            raise TypeError(f"Compose: transforms must be a list, but it is {transforms!r}.")
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"Compose: {transform!r} in transforms is not callable.")
        self.transforms = list(transforms)
        self.to_rgb = to_rgb
        self.img_channels = check_int("Compose", "img_channels", img_channels)
        self.nodata = parse_nodata("Compose", nodata)

    def __call__(self, data: Sample) -> Sample:
        """Reads and transforms one sample: all that happens from a path to a network's input.

        Args:
            data (dict): ``img``: a path, the bytes of an image file, or an array [H, W] or
                [H, W, C] in 0..255 that counts as BGR when it has three channels (as in PaddleSeg:
                what cv2.imread returns).
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
        if type(self).read is not Compose.read or type(self).apply is not Compose.apply:
            return self.apply({**data, **self.read(data)})  # a subclass's: between them are arrays
        steps = self._steps()
        by_parts = bool(steps) and isinstance(steps[0], ResizeCrop)
        sample = self._open_image(data, whole=not by_parts)  # checks its values
        _read_label(sample)
        _check_sizes(sample)
        _mark_nodata(sample)
        if not by_parts:  # else the first step makes what it crops
            sample["img"] = sample["img"].whole()
        sample = _transform(sample, steps)
        return _to_planes(sample)

    def read(self, data: Sample) -> Sample:
        """The first half of a call: a new sample whose img and label are arrays.

        Args:
            data (dict): As for a call.

        Returns:
            dict: ``img`` float32 [H, W, C] in 0..255, a copy that transforms may keep.
        """
        sample = self._open_image(data, whole=True)
        _read_label(sample)
        _check_sizes(sample)
        _mark_nodata(sample)
        sample["img"] = sample["img"].whole()
        return sample

    def apply(self, data: Sample) -> Sample:
        """The second half of a call: runs the transforms on what `read` returned."""
        return _to_planes(_transform(data, self.transforms))

    def _steps(self):
        """`transforms` as a call runs them: a random resize and crop at their start are one step.

        Chosen once, and anew when somebody has changed the list.
        """
        listed, steps = self._chosen
        if [*map(id, listed)] != [*map(id, self.transforms)]:
            listed, steps = list(self.transforms), with_resize_crop(self.transforms)
            self._chosen = listed, steps
        return steps

    def _open_image(self, data, whole):
        """A new sample whose img is a source (see `transforms.reading.source`): of a file, or of an
        array."""
        image = data.get("img")
        if image is None:
            raise ValueError("Compose: the sample has no 'img'; give a path or an array.")
        sample = dict(data)
        sample["gt_fields"] = list(data.get("gt_fields", ()))
        sample["trans_info"] = list(data.get("trans_info", ()))
        if isinstance(image, (str, os.PathLike)):
            sample["img"] = open_image(image, self.img_channels, self.to_rgb, whole, self.nodata)
            sample.setdefault("im_path", str(image))
        elif isinstance(image, bytes):
            name = str(data.get("im_path", "given as bytes"))
            channels, swap = self.img_channels, self.to_rgb
            sample["img"] = open_content(image, name, channels, swap, whole, self.nodata)
        elif isinstance(image, np.ndarray):
            name = str(data.get("im_path", "given as an array"))
            sample["img"] = _as_source(image, self.img_channels, self.to_rgb, self.nodata, name)
        else:
            raise TypeError(f"Compose: 'img' must be a path, bytes or an array, not {type(image)}.")
        return sample


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


def _read_label(sample):
    """Makes the label, a path or an array, an array that is the sample's own."""
    label = sample.get("label")
    if isinstance(label, (str, os.PathLike)):
        sample["label"] = read_label(label)
        sample.setdefault("label_path", str(label))
    elif isinstance(label, np.ndarray):
        sample["label"] = label.copy()


def _check_sizes(sample):
    size = image_size(sample)
    keys = [*sample["gt_fields"], *(["label"] if sample.get("label") is not None else [])]
    for key in keys:
        if not isinstance(sample.get(key), np.ndarray):
            raise ValueError(f"Compose: {key!r} is in gt_fields, but the sample has none.")
        if sample[key].shape[:2] != size:
            height, width = sample[key].shape[:2]
            raise UserError(
                f"{key} {sample.get('label_path', '')} is {width}x{height} (width x height), its "
                f"image {sample.get('im_path', '')} is {size[1]}x{size[0]}. Make them equal; if "
                "sides are swapped, one of them carries an EXIF rotation, which is obeyed."
            )


def _mark_nodata(sample):
    """Makes the label void where the image has no data."""
    if sample["img"].void is not None:
        sample["nodata"] = sample["img"].void
        if isinstance(sample.get("label"), np.ndarray):
            sample["label"] = mark_void(sample["label"], sample["nodata"])


def _transform(data, steps):
    """The sample after all steps; one without ``rng`` gets a fresh one for them."""
    own_rng = data.get("rng") is None
    out = {**data, "rng": np.random.default_rng()} if own_rng else dict(data)
    for step in steps:
        with naming(step, out):
            out = step(out)
        if not isinstance(out, dict):
            raise TypeError(
                f"Compose: {step!r} returned {type(out)}; a transform returns the sample."
            )
    return {key: value for key, value in out.items() if key != "rng" or not own_rng}


def _to_planes(sample):
    """The sample with img as float32 [C, H, W], and a label [H, W, C] as [C, H, W]."""
    out = {**sample, "img": functional.to_planes(sample["img"])}
    label = out.get("label")
    if isinstance(label, np.ndarray) and label.ndim == 3:
        out["label"] = label.transpose(2, 0, 1)
    return out

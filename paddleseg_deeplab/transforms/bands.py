# SPDX-License-Identifier: Apache-2.0
"""Several operations on an image, a band of rows after the other, so that it stays in the cache.

A transform that changes pixels one by one, or moves them within their row, has a method
``bandwise(data)`` beside its ``__call__``. It draws what the transform draws and returns the sample
with everything done but the image, and the steps of the image. `Compose` collects the steps of
neighbouring transforms and runs them together. Values are equal to those of one step after the
other on the whole image, but for the last bits of float32: OpenCV's vector code, and its code for
what is left over at an end, round differently.
"""

import cv2
import numpy as np

_BAND_BYTES = 300_000  # a few of them fit into a core's cache of the second level


class Step:
    """A piece of work on an image float32 [H, W, C] that keeps its shape.

    Args:
        work (callable): Takes an image, or a band of rows of it, and what `measure` gave, if any;
            returns the new one and leaves the given one alone.
        measure (callable, optional): Takes the whole image first.
        whole (bool): `work` needs the whole image.
    """

    def __init__(self, work, measure=None, whole=False):
        self.work, self.measure, self.whole = work, measure, whole


class Affine:
    """The step ``img * scale + shift``, which can write planes.

    Args:
        scale (np.ndarray): float32 [C].
        shift (np.ndarray): float32 [C].
    """

    measure, whole = None, False

    def __init__(self, scale, shift):
        self.scale, self.shift = scale, shift

    def work(self, img):
        out = img * self.scale
        out += self.shift
        return out


def bandwise_of(transform):
    """The transform's method `bandwise`; None where it has none, or another class's `__call__`."""
    for kind in type(transform).__mro__:
        if "bandwise" in vars(kind):
            return transform.bandwise
        if "__call__" in vars(kind):
            return None
    return None


def run(img, steps, planes=False):
    """Does the steps.

    Args:
        img (np.ndarray): [H, W, C] or [H, W]; only float32 of three axes is worked on in bands.
        steps (list[Step | Affine]): In order.
        planes (bool): Give [C, H, W], in memory too; [1, H, W] for [H, W].

    Returns:
        np.ndarray: `img` itself where there is nothing to do.
    """
    if not steps and not planes:
        return img
    group = []
    for step in steps:
        if step.whole or step.measure:
            img, group = _run_bands(img, group), []
            if step.whole:
                img = step.work(img)
                continue
            step = _measured(step, img)
        group.append(step)
    if not planes:
        return _run_bands(img, group)
    if img.ndim == 3 and img.dtype == np.float32:
        return _run_bands(img, group, planes=True)
    img = _run_bands(img, group)
    out = img[None] if img.ndim == 2 else img.transpose(2, 0, 1)
    return np.ascontiguousarray(out, dtype=np.float32)


def _measured(step, img):
    found = step.measure(img)
    return Step(lambda part: step.work(part, found))


def _run_bands(img, steps, planes=False):
    if not steps and not planes:
        return img
    if img.ndim != 3 or img.dtype != np.float32:
        for step in steps:
            img = step.work(img)
        return img
    height, width, channels = img.shape
    last = steps[-1] if planes and steps and isinstance(steps[-1], Affine) else None
    body = steps[:-1] if last else steps
    out = np.empty((channels, height, width) if planes else img.shape, np.float32)
    count = max(1, _BAND_BYTES // max(1, 4 * width * channels))
    for top in range(0, height, count):
        part = img[top : top + count]
        for step in body:
            part = step.work(part)
        if planes:
            _to_planes(part, out[:, top : top + count], last)
        else:
            out[top : top + count] = part
    return out


def _to_planes(part, planes, affine):
    """Writes [b, W, C] into [C, b, W], in memory a part of [C, H, W]."""
    for c, plane in enumerate(planes):
        if part.shape[2] == 3:
            cv2.extractChannel(part, c, dst=plane)
        else:
            np.copyto(plane, part[:, :, c])
        if affine is not None:
            plane *= affine.scale[c]
            plane += affine.shift[c]

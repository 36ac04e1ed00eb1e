# SPDX-License-Identifier: Apache-2.0
"""An exported network that takes pictures as they are: uint8 [N, H, W, C], `Normalize` inside.

Model servers and programs in other languages then need no arithmetic of their own. Steps that move
pixels back afterwards, such as Resize and Padding, stay outside; what they give is rounded to whole
numbers. No Paddle here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.transforms.checks import Sample, Transform
from paddleseg_deeplab.transforms.color import Normalize
from paddleseg_deeplab.transforms.preprocessing import steps_of
from paddleseg_deeplab.utils.errors import UserError


def split(
    items: Sequence[dict[str, Any]], place: str
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """What of a preprocessing stays outside of the network, and what goes into it.

    Args:
        items (Sequence[dict]): The steps, each with its ``type``.
        place (str): Where they stand, such as "val_dataset.transforms", for messages.

    Returns:
        tuple: The steps before Normalize; its ``mean`` and ``std``, lists of one number or of one
        for each channel.

    Raises:
        UserError: Normalize is not the last step, or another one cannot stay outside.
    """
    steps = steps_of(items, place)
    types = [item["type"] for item in items]
    if not steps or steps[-1].component is not Normalize or [s.name for s in steps] != types:
        names = ", ".join(types) or "nothing"
        raise UserError(
            f"--input uint8 puts Normalize into the network, so it has to be the last step of "
            f"{place}, which has: {names}. Put it last, or leave the flag out."
        )
    for step in steps[:-1]:
        if step.effect != "undone" or step.is_random:
            raise UserError(
                f"--input uint8: {step.place}: {step.name} can neither go into the network nor "
                "stay outside; Resize, Padding and the like can, before Normalize. Take it out, or "
                "leave the flag out."
            )
    last = Normalize(**{key: value for key, value in items[-1].items() if key != "type"})
    return list(items[:-1]), {"mean": last.mean.tolist(), "std": last.std.tolist()}


class BytesOnly:
    """Refuses images with values beyond 0 to 255, which a byte cannot hold."""

    effect = "colour"
    thread_safe = draws_from_rng = True

    def __call__(self, data: Sample) -> Sample:
        low, high = float(data["img"].min()), float(data["img"].max())
        if low < 0 or high > 255:
            raise UserError(
                f"{data.get('im_path', 'The image')}: has values from {low:g} to {high:g}, and the "
                "exported network takes 0 to 255 (uint8). Export again without --input uint8."
            )
        return data


class WholeNumbers:
    """Rounds an image to 0, 1, ... 255, as a uint8 input holds it."""

    effect = "colour"
    thread_safe = draws_from_rng = True

    def __call__(self, data: Sample) -> Sample:
        return {**data, "img": rounded(data["img"])}


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 whole numbers 0 to 255; halves go to the even one, and beyond 0 and 255 to these."""
    return np.clip(np.rint(values, dtype=np.float32), 0, 255)


def outside(transforms: Sequence[Transform]) -> list[Transform]:
    """The steps that prepare an image for a uint8 input, from those before Normalize."""
    return [BytesOnly(), *transforms, WholeNumbers()]


def fed(info: DeployInfo, batch: np.ndarray) -> np.ndarray:
    """A batch as the exported network takes it.

    Args:
        info (DeployInfo): The export.
        batch (np.ndarray): [N, C, H, W]; for a uint8 input whole numbers 0 to 255.

    Returns:
        np.ndarray: float32 [N, C, H, W], or uint8 [N, H, W, C].
    """
    if info.normalize is None:
        return np.ascontiguousarray(batch, np.float32)
    return np.ascontiguousarray(batch.astype(np.uint8).transpose(0, 2, 3, 1))


def as_trained(info: DeployInfo, batch: np.ndarray) -> np.ndarray:
    """A batch as the trained network takes it, from one as `fed` takes it.

    Returns:
        np.ndarray: float32 [N, C, H, W].
    """
    if info.normalize is None:
        return batch
    pictures = (picture.transpose(1, 2, 0) for picture in batch)
    return np.stack(
        [functional.to_planes(functional.normalize(p, **info.normalize)) for p in pictures]
    )

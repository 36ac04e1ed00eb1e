# SPDX-License-Identifier: Apache-2.0
"""COCO's run lengths: column by column, runs of 0 and 1 in turn, beginning with 0."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def decode_counts(text: str) -> list[int]:
    """Run lengths from COCO's text form.

    Each number is written in groups of 5 bits, lowest first, as characters from "0" (48) on; 32
    says that a group follows, and the sign is that of the last group's highest bit (16). From the
    fourth number on it is the difference to the number two places before.

    Args:
        text (str): The "counts" of a compressed run-length mask.

    Returns:
        list[int]: The run lengths.

    Raises:
        ValueError: Not such a text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 35:
            raise ValueError(f"the run lengths hold {character!r} where none is possible")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return counts


def decode_mask(segmentation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask from {"size": [height, width], "counts": text or list}.

    Args:
        segmentation (dict): As it stands in the JSON.
        size (tuple): (height, width) of the image, which the mask has to have.

    Returns:
        numpy.ndarray: bool [height, width].

    Raises:
        ValueError: Another size, or run lengths that do not fill it.
    """
    stated_size = segmentation.get("size")
    if not isinstance(stated_size, list) or tuple(stated_size) != tuple(size):
        swapped = isinstance(stated_size, list) and stated_size == list(size)[::-1]
        raise ValueError(
            f"its run lengths are of the size {stated_size}, the image of {list(size)}"
            + (": height and width are swapped; write it anew" if swapped else "")
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    elif not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise ValueError("its run lengths are neither text nor a list of whole numbers")
    if any(count < 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"its run lengths add up to {sum(counts)} pixels, the image has {size[0] * size[1]}"
        )
    runs = np.zeros(len(counts), bool)
    runs[1::2] = True
    return np.repeat(runs, counts).reshape(size[1], size[0]).T

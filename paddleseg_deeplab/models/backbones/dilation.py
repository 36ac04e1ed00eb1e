# SPDX-License-Identifier: Apache-2.0
"""Strides that become rates once the output stride is reached."""

from collections.abc import Sequence

OUTPUT_STRIDES = (8, 16, 32)


def strides_and_rates(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
    """The stride and the rate of each layer of a chain, for one output stride.

    Layers stride until the output stride is reached. From then on a layer of stride s keeps its
    input's rate and strides no more, and the layers after it have s times that rate. So the
    features contain those of a larger output stride, with the same weights: every s-th pixel is
    equal (V3 paper, section 3.1; the released DeepLab code for Xception and MobileNetV2).

    Args:
        strides (Sequence[int]): Of the layers in their order, as in the classification network.
        output_stride (int): One of `OUTPUT_STRIDES`.

    Returns:
        list[tuple[int, int]]: (stride, rate) of each layer.

    Raises:
        ValueError: any other output_stride.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride!r}; give one of {list(OUTPUT_STRIDES)}.")
    reached, rate, result = 1, 1, []
    for stride in strides:
        if reached < output_stride:
            reached *= stride
            result.append((stride, 1))
        else:
            result.append((1, rate))
            rate *= stride
    return result

# SPDX-License-Identifier: Apache-2.0
"""How much of a dilated kernel lies on the map, and how much in its padding. No Paddle.

The V3 paper's section 3.3 and figure 4: on a 65x65 map a 3x3 kernel of a large rate has eight of
its nine taps in the zeros around the map, and degenerates to 1x1.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Padding = int | tuple[int, int] | None  # of one axis, see `valid_taps`


def effective_kernel(kernel: int, rate: int) -> int:
    """Pixels that a kernel of ``kernel`` taps spans on one axis: k + (k - 1)(r - 1)."""
    return kernel + (kernel - 1) * (rate - 1)


def valid_taps(
    size: int, kernel: int, rate: int, stride: int = 1, padding: Padding = None
) -> np.ndarray:
    """On one axis, how many taps lie on the map, for each output position.

    Args:
        size (int): Pixels of the map.
        kernel (int): Taps.
        rate (int): Pixels from one tap to the next.
        stride (int): Of the convolution.
        padding (int | tuple[int, int]): Zeros before and after the map; None keeps the size at
            stride 1.

    Returns:
        np.ndarray: int64 [outputs], each 0..kernel; empty where the kernel does not fit.

    Raises:
        ValueError: a number out of range.
    """
    if min(size, kernel, rate, stride) < 1:
        raise ValueError(
            f"size {size}, kernel {kernel}, rate {rate} and stride {stride} should be at least 1."
        )
    span = effective_kernel(kernel, rate)
    padding = (span - 1) // 2 if padding is None else padding
    before, after = (padding, padding) if isinstance(padding, int) else padding
    outputs = max(0, (size + before + after - span) // stride + 1)
    first = np.arange(outputs)[:, None] * stride - before
    places = first + np.arange(kernel) * rate  # [outputs, kernel]
    return ((places >= 0) & (places < size)).sum(axis=1)


def valid_share(
    sizes: Sequence[int],
    kernels: Sequence[int],
    rates: Sequence[int],
    strides: Sequence[int] = (1, 1),
    paddings: Sequence[Padding] = (None, None),
) -> float:
    """Share of a kernel's weights that meet the map, in the mean over output positions.

    The axes are independent, so it is the product of each axis' share; for a 3-tap kernel of rate
    r that keeps a size of n pixels the latter is 1 - 2 min(r, n) / 3n.

    Args:
        sizes, kernels, rates, strides, paddings: (height, width), see `valid_taps`.

    Returns:
        float: 0..1.
    """
    share = 1.0
    for axis in zip(sizes, kernels, rates, strides, paddings):
        counts = valid_taps(*axis)
        share *= float(counts.mean()) / axis[1] if counts.size else 0.0
    return share


def valid_counts(
    sizes: Sequence[int],
    kernels: Sequence[int],
    rates: Sequence[int],
    strides: Sequence[int] = (1, 1),
    paddings: Sequence[Padding] = (None, None),
) -> dict[int, float]:
    """Normalised counts: the share of output positions that have so many taps on the map.

    Args:
        sizes, kernels, rates, strides, paddings: (height, width), see `valid_taps`.

    Returns:
        dict[int, float]: number of taps, such as 1, 2, 3, 4, 6 and 9 of a 3x3 kernel, to the share
            of positions; in rising order, the shares sum to 1.
    """
    axes = [Counter(valid_taps(*a).tolist()) for a in zip(sizes, kernels, rates, strides, paddings)]
    total: Counter[int] = Counter()
    for rows, row_positions in axes[0].items():
        for columns, column_positions in axes[1].items():
            total[rows * columns] += row_positions * column_positions
    positions = sum(total.values())
    return {taps: total[taps] / positions for taps in sorted(total)}


def curves(
    sizes: Sequence[int], rates: Iterable[int], kernel: int = 3
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Figure 4 of the V3 paper for a map of one's own.

    Args:
        sizes (tuple[int, int]): (height, width) of the map.
        rates (Sequence[int]): Where to sample.
        kernel (int): Taps on each axis.

    Returns:
        tuple[dict[int, np.ndarray], np.ndarray]: number of valid taps to the share of positions
            that have them, and the mean share of valid weights; float64 [rates] each.
    """
    found = [valid_counts(sizes, (kernel, kernel), (rate, rate)) for rate in rates]
    taps = sorted(set().union(*found))
    shares = {n: np.array([counts.get(n, 0.0) for counts in found]) for n in taps}
    mean = np.sum([n * shares[n] for n in taps], axis=0) / kernel**2
    return shares, mean

# SPDX-License-Identifier: Apache-2.0
"""What a dataset has to offer: those of `datasets` do, and any other object may."""

from typing import Any, Protocol


class AnyDataset(Protocol):
    """Samples by their numbers, each with ``img`` float32 [C, H, W] and ``label`` [H, W]."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int, /) -> dict[str, Any]: ...


class LabelledDataset(AnyDataset, Protocol):
    """One in mode "val", to be evaluated."""

    num_classes: int

# SPDX-License-Identifier: Apache-2.0
"""What an iteration reads: the next batches of the stream, or why they could not be read."""

import dataclasses
from collections.abc import Iterator, Sequence

from paddle import Tensor

from paddleseg_deeplab.core.dataset import AnyDataset
from paddleseg_deeplab.core.training.data.batches import Key, sample_names


@dataclasses.dataclass
class IterationBatches:
    """What one process reads for one update of the weights.

    Attributes:
        keys (list): (index, epoch) of each sample.
        tensors (list[tuple[Tensor, Tensor]]): Images float32 [N, C, H, W], labels int64 [N, H, W].
        fault (Exception | None): Why they are not all there. It is kept, not raised: several
            processes have to learn of it together.
        seconds (float): That reading took.
    """

    keys: list[Key] = dataclasses.field(default_factory=list)
    tensors: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    fault: Exception | None = None
    seconds: float = 0.0


class BatchReader:
    """Takes the batches of one iteration after another from a stream.

    Args:
        dataset: Its files' names are for messages.
        batches (Iterator): As `training_batches` gives them.
        count (int): Batches an iteration.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        batches: Iterator[tuple[list[Key], Tensor, Tensor]],
        count: int = 1,
    ) -> None:
        self._dataset = dataset
        self._batches = batches
        self._count = count

    def read(self) -> IterationBatches:
        """The next `IterationBatches`."""
        out = IterationBatches()
        try:
            for _ in range(self._count):
                keys, images, labels = next(self._batches)
                out.keys.extend(keys)
                out.tensors.append((images, labels))
        except Exception as error:
            out.fault = error
        return out

    def names(self, keys: Sequence[Key]) -> list[str]:
        """What to call samples in a message, list[str]."""
        return sample_names(self._dataset, keys)

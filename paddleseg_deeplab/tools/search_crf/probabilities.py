# SPDX-License-Identifier: Apache-2.0
"""A network's class probabilities on disk, for the search of the dense CRF's parameters."""

import os
import shutil
from itertools import islice

import paddle
from paddle import nn
from tqdm import tqdm

from paddleseg_deeplab.core.report import count_image
from paddleseg_deeplab.core.stream import NetworkSettings, engine_for, predictions
from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.prediction.batching import equal_size_batches, read_ahead, workers_for
from paddleseg_deeplab.prediction.crf import image_of_sample
from paddleseg_deeplab.tools.search_crf import search
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import ConfusionMatrix


def save_probabilities(
    model: nn.Layer,
    dataset: BaseDataset,
    folder: str,
    images: int = 100,
    how: NetworkSettings | None = None,
    *,
    num_workers: int | None = 0,
    progress: bool = True,
) -> tuple[int, ConfusionMatrix]:
    """Runs the network over the first images of a set and keeps what the search needs.

    Args:
        model (nn.Layer): Its layers have their modes back afterwards.
        dataset: As of `core.val.evaluate`, with a way to the images themselves.
        folder (str): An empty, temporary folder.
        images (int): How many; all where the set has fewer.
        how (NetworkSettings, optional): How the network runs; whole images by default.
        num_workers, progress: As of `evaluate`.

    Returns:
        tuple[int, ConfusionMatrix]: Images kept; the counts without a CRF, those of `evaluate`.

    Raises:
        UserError: An image or a setting is wrong, or the disk would be full.
    """
    how = how or NetworkSettings()
    how.check()
    count = min(images, len(dataset))
    confusion = ConfusionMatrix(dataset.num_classes, getattr(dataset, "ignore_index", 255))
    num_workers = workers_for(dataset, num_workers)
    samples = read_ahead(lambda i: dict(dataset[i], index=i), range(count), num_workers)
    bar = tqdm(total=count, desc="network", unit="image", disable=None if progress else True)
    opened = engine_for(model, samples, count, how)
    with bar, evaluation_mode(model), paddle.no_grad(), opened as (network, samples):
        batches = equal_size_batches(samples, how.batch_size)
        found = predictions(network, batches, how, probabilities=True)
        for number, (sample, labels, probabilities) in enumerate(islice(found, count)):
            assert probabilities is not None  # they were asked for
            if number == 0:
                _check_disk(folder, probabilities.size * 2, count)
            count_image(confusion, sample, labels)
            label = sample["label"].reshape(labels.shape)
            image = image_of_sample(dataset, sample)
            search.save_image(folder, sample["index"], probabilities, image, label)
            bar.update(1)
    return count, confusion


def _check_disk(folder, size, count):
    free = shutil.disk_usage(folder).free
    if size * count * 1.2 > free:
        raise UserError(
            f"The probabilities of {count} images take about {size * count / 2**30:.1f} GiB, and "
            f"{os.path.dirname(folder)} has {free / 2**30:.1f} GiB free. Use fewer --images, or "
            "set TMPDIR to a folder on a larger disk."
        )

# SPDX-License-Identifier: Apache-2.0
"""A network's class probabilities on disk, for the search of the dense CRF's parameters."""

import os
import shutil
from contextlib import ExitStack
from itertools import islice

import paddle
from tqdm import tqdm

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.val import count_image, engine_for, predictions
from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.prediction.batching import equal_size_batches, read_ahead, workers_for
from paddleseg_deeplab.prediction.crf import image_of_sample
from paddleseg_deeplab.tools.search_crf import search
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import ConfusionMatrix


def save_probabilities(
    model,
    dataset,
    folder,
    images=100,
    *,
    aug_eval=False,
    batch_size=1,
    num_workers=0,
    precision="fp32",
    amp_level="O1",
    progress=True,
    engine="dygraph",
    **settings,
):
    """Runs the network over the first images of a set and keeps what the search needs.

    Args:
        model (nn.Layer): Its layers have their modes back afterwards.
        dataset: As of `core.val.evaluate`, with a way to the images themselves.
        folder (str): An empty, temporary folder.
        images (int): How many; all where the set has fewer.
        aug_eval, batch_size, num_workers, precision, amp_level, progress, engine: As of
            `evaluate`.
        **settings: ``scales``, ``is_slide`` and the like, as of `evaluate`.

    Returns:
        tuple[int, ConfusionMatrix]: Images kept; the counts without a CRF, those of `evaluate`.

    Raises:
        UserError: An image or a setting is wrong, or the disk would be full.
    """
    infer.window_for((0, 0), **{name: settings.get(name) for name in infer.WINDOW_SETTINGS})
    count = min(images, len(dataset))
    ignore_index = getattr(dataset, "ignore_index", 255)
    confusion = ConfusionMatrix(dataset.num_classes, ignore_index)
    num_workers = workers_for(dataset, num_workers)
    samples = read_ahead(lambda i: dict(dataset[i], index=i), range(count), num_workers)
    bar = tqdm(total=count, desc="network", unit="image", disable=None if progress else True)
    with bar, evaluation_mode(model), paddle.no_grad(), ExitStack() as stack:
        network, samples = stack.enter_context(
            engine_for(model, samples, count, engine, precision, aug_eval, settings)
        )
        found = predictions(
            network,
            equal_size_batches(samples, batch_size),
            aug_eval,
            settings,
            precision=(precision, amp_level),
            probabilities=True,
        )
        for number, (sample, labels, probabilities) in enumerate(islice(found, count)):
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

# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions while a model is in training."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.core.dataset import LabelledDataset
from paddleseg_deeplab.core.infer import WINDOW_SETTINGS, inference
from paddleseg_deeplab.models.forward import evaluation_mode, precision_context
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.visualize import default_palette, overlay

_SIDE = 512  # the longer side of a picture is not more


def _stretched(image):
    """float32 [C, H, W] of any range -> uint8 [H, W, 3], stretched to its own extremes."""
    image = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = float(image.min()), float(image.max())
    stretched = (image - low) * (255.0 / max(high - low, 1e-6))
    return np.ascontiguousarray(stretched.transpose(1, 2, 0).astype(np.uint8))


def _shrunk(image, labels):
    """Image and label maps of one size, with the longer side at most `_SIDE`."""
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return image, labels
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    labels = [functional.resize(label, size, cv2.INTER_NEAREST) for label in labels]
    return functional.resize(image, size, cv2.INTER_AREA), labels


@dataclasses.dataclass
class Preview:
    """Pictures of what a network in training predicts.

    Attributes:
        model (nn.Layer), dataset: As of `prediction_picture`.
        settings (dict): Keyword arguments of `core.val.evaluate`: precision, window and
            size_divisor are used.
    """

    model: nn.Layer
    dataset: LabelledDataset
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def pictures(self, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (index, picture) of the first `count` samples, in eval mode.

        A picture that cannot be made is left out with a warning: it is no reason to end a training.
        """
        precision = self.settings.get("precision", "fp32")
        amp_level = self.settings.get("amp_level", "O1")
        window = {name: self.settings.get(name) for name in WINDOW_SETTINGS}
        divisor = self.settings.get("size_divisor")
        with evaluation_mode(self.model):
            for index in range(min(count, len(self.dataset))):
                try:
                    picture = prediction_picture(
                        self.model, self.dataset, index, precision, amp_level, window, divisor
                    )
                except Exception as error:  # a dataset of one's own may give anything
                    text = " ".join(str(error).split()) or type(error).__name__
                    logger.warning("No preview of the validation image number %d: %s", index, text)
                    continue
                yield index, picture


def prediction_picture(
    model: nn.Layer,
    dataset: LabelledDataset,
    index: int,
    precision: str = "fp32",
    amp_level: str = "O1",
    window: Mapping[str, Any] | None = None,
    size_divisor: int | None = None,
) -> np.ndarray:
    """A sample as overlays side by side: its truth on the left, the prediction on the right.

    Args:
        model (nn.Layer): In eval mode.
        dataset: In mode "val". With ``load_image(index)`` the picture has the image's own colours
            and size; without, it shows the network's input, its colours stretched.
        index (int): The sample.
        precision (str), amp_level (str): As in training.
        window (dict, optional): ``is_slide`` and the other settings of `infer.inference` that say
            how a large image goes through the network.
        size_divisor (int, optional): As of `core.val.evaluate`.

    Returns:
        np.ndarray: RGB uint8 [h, w, 3]; h and half of w are at most 512.
    """
    sample = dataset[index]
    load_image = getattr(dataset, "load_image", None)
    steps = sample.get("trans_info", []) if load_image is not None else []
    padded, steps = restore.padded(sample["img"], steps, size_divisor)
    with paddle.no_grad(), precision_context(precision, amp_level):
        batch = paddle.to_tensor(padded[None])
        predicted = inference(model, batch, [steps], **(window or {}))[0][0]
    image = _stretched(sample["img"]) if load_image is None else load_image(index)
    labels = [predicted]
    if sample.get("label") is not None:
        truth = np.asarray(sample["label"])
        truth = truth.reshape(truth.shape[-2:])
        if truth.shape == predicted.shape:
            void = (truth < 0) | (truth > 255)
            labels.insert(0, np.where(void, 255, truth))
    image, labels = _shrunk(image, labels)
    palette = getattr(dataset, "palette", None)
    if palette is None:
        palette = default_palette(dataset.num_classes)
    return np.concatenate([overlay(image, label, palette) for label in labels], axis=1)

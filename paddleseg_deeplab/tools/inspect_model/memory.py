# SPDX-License-Identifier: Apache-2.0
"""An estimate of the memory that a training step takes at its peak.

Maps that are kept for the backward pass are counted (`saved`), weights and what belongs to
them too; the losses' temporaries come from a table. What libraries take for themselves is not in
it: a device's context, work space of convolutions, and gaps in the allocator's blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import nn

from paddleseg_deeplab.tools.inspect_model.saved import BETWEEN, saved_maps

GIB = 2**30
COLUMNS = ("fp32", "O1", "O2")
# What a device's context and the work space of convolutions take beside Paddle's own allocations
# (`FLAGS_conv_workspace_size_limit` is 512 MB, a CUDA context about as much).
RESERVED = GIB


@dataclass(frozen=True)
class LossBytes:
    """A loss's own memory beside the logits: bytes for each class of a pixel, and each pixel.

    Attributes:
        peak, peak_pixel (float): At most, the gradient of the logits counted.
        kept, kept_pixel (float): From its forward pass to its backward pass.
    """

    peak: float
    peak_pixel: float
    kept: float
    kept_pixel: float

    def at_peak(self, classes: int, pixels: int) -> float:
        return pixels * (self.peak * classes + self.peak_pixel)

    def at_rest(self, classes: int, pixels: int) -> float:
        return pixels * (self.kept * classes + self.kept_pixel)


# In the forms that a GPU takes, by Paddle's count of its allocations, on 2x192x192 pixels with 4,
# 19 and 75 classes.
CROSS_ENTROPY = LossBytes(8, 33, 0, 17)
SMOOTHED_CROSS_ENTROPY = LossBytes(13, 21, 0, 17)
LOVASZ_ON_A_DEVICE = LossBytes(5, 221, 4, 0)  # in groups of four classes
# In NumPy (`kernels.lovasz`): probabilities, slopes and gradient, and one class's sorting.
LOVASZ_ON_A_CPU = LossBytes(12, 35, 4, 0)
_LOSSES = {
    "CrossEntropyLoss": CROSS_ENTROPY,
    "OhemCrossEntropyLoss": LossBytes(8, 33, 0, 25),
    "MultiClassFocalLoss": LossBytes(8, 33, 0, 45),
    "FocalLoss": LossBytes(44, 0, 36, 8),
    "DiceLoss": LossBytes(12, 4, 8, 4),
    "RMILoss": LossBytes(28, 5, 12.5, 4),
}
# Copies of the weights' size in float32 that an optimizer keeps.
_MOMENTS = {"SGD": 0, "Momentum": 1, "Adam": 2, "AdamW": 2, "_GroupedAdamW": 2}
# Maps of a stage's largest size that its backward pass has at once: the gradients of an
# operator's result and input, and the one that waits on a residual path.
_GRADIENTS_AT_ONCE = 3
_LABEL_BYTES = 8


@dataclass
class MemoryEstimate:
    """Bytes of a training step; each column is fp32, O1 or O2 precision.

    O1 is meant with depthwise convolutions in half precision.

    Attributes:
        batch_size (int): Images on one device.
        input_size (tuple[int, int]): (height, width).
        data_format (str): "NCHW" or "NHWC".
        stages (dict[str, dict[str, int]]): Stage to column to the maps kept for its backward pass.
        parts (dict[str, dict[str, int]]): What the memory is for, to column to bytes.
        peak (dict[str, int]): Column to the largest sum at one moment: gradients of weights come
            as maps go, so it is less than the parts' sum.
        unknown_losses (list[str]): Counted as cross-entropy.
    """

    batch_size: int
    input_size: tuple[int, int]
    data_format: str
    stages: dict[str, dict[str, int]] = field(default_factory=dict)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    unknown_losses: list[str] = field(default_factory=list)


def _single(loss):
    """The losses in one that mixes some."""
    return [part for inner in getattr(loss, "losses", None) or [] for part in _single(inner)] or [
        loss
    ]


def _loss_bytes(loss, on_cpu):
    """`LossBytes` of a loss, None where it is of a kind that was not measured."""
    name = type(loss).__name__
    if name == "LovaszSoftmaxLoss":
        return LOVASZ_ON_A_CPU if on_cpu else LOVASZ_ON_A_DEVICE
    if getattr(loss, "label_smoothing", 0):
        return SMOOTHED_CROSS_ENTROPY
    return _LOSSES.get(name)


class TrainingMemory:
    """What is known of a network's training step, for batches of any size.

    Args:
        model (nn.Layer): In training mode, as it is to be trained; its running statistics change.
        size (tuple[int, int]): (height, width) of the images.
        losses (dict): ``types`` as `SegBuilder.loss`.
        moments (int): Copies of the weights' size that the optimizer keeps, see `moments_of`.
        use_ema (bool): Whether an average of the weights is kept.
        in_channels (int): Of the images.
        on_cpu (bool): Whether losses take their ways for a CPU.
    """

    def __init__(
        self,
        model: nn.Layer,
        size: Sequence[int],
        losses: Mapping[str, Any],
        *,
        moments: int = 1,
        use_ema: bool = False,
        in_channels: int = 3,
        on_cpu: bool = False,
    ) -> None:
        self.size = (size[0], size[1])
        self.data_format = getattr(model, "data_format", "NCHW")
        self.forward = saved_maps(model, size, in_channels)
        self.image = in_channels * size[0] * size[1] * 4
        tensors = {id(t): t for t in model.state_dict().values()}.values()
        numbers = [(t, int(t.size)) for t in tensors]
        self.numbers = sum(n for _, n in numbers)
        # Kernels run in half precision; batch norm's numbers and biases stay in float32 in O1.
        self.kernels = sum(n for t, n in numbers if t.ndim > 1)
        self.trained = sum(self.forward.parameters.values())
        self.moments, self.use_ema = moments, use_ema
        self.losses: list[tuple[LossBytes, int]] = []  # and the pixels that each is of
        self.unknown_losses: list[str] = []
        for loss, (height, width) in zip(losses["types"], self.forward.outputs):
            for part in _single(loss):
                found = _loss_bytes(part, on_cpu)
                if found is None:
                    self.unknown_losses.append(type(part).__name__)
                self.losses.append((found or CROSS_ENTROPY, height * width))

    def _weights(self, column):
        """(weights, gradients) in bytes. O1 keeps kernels in both precisions until the backward
        pass, O2 a float32 copy of what it trains in half."""
        if column == "fp32":
            return 4 * self.numbers, 4
        if column == "O1":
            return 4 * self.numbers + 2 * self.kernels, 4
        return 6 * self.kernels + 4 * (self.numbers - self.kernels), 2

    def _loss(self, batch_size):
        classes = self.forward.classes
        rows = [(kind, classes, pixels * batch_size) for kind, pixels in self.losses]
        rest = sum(kind.at_rest(*of) for kind, *of in rows)
        return int(rest + max(kind.at_peak(*of) - kind.at_rest(*of) for kind, *of in rows))

    def _maps(self, batch_size, half):
        """Stage -> (bytes of its maps, bytes of the largest), in the order of the run."""
        out = dict.fromkeys(self.forward.stages, (0, 0))
        for saved in self.forward.maps:
            size, (total, largest) = batch_size * saved.size(half), out.get(saved.stage, (0, 0))
            out[saved.stage] = (total + size, max(largest, size))
        return out

    def estimate(self, batch_size: int) -> MemoryEstimate:
        """The `MemoryEstimate` of a batch of so many images."""
        out = MemoryEstimate(batch_size, self.size, self.data_format)
        out.unknown_losses = list(dict.fromkeys(self.unknown_losses))
        pixels = batch_size * self.size[0] * self.size[1]
        logits = sum(4 * self.forward.classes * h * w * batch_size for h, w in self.forward.outputs)
        for column in COLUMNS:
            maps = self._maps(batch_size, column != "fp32")
            weights, gradient = self._weights(column)
            parts = {
                "weights": weights,
                "optimizer": 4 * self.moments * self.trained,
                "average of weights": 4 * self.numbers * self.use_ema,
                "batch": batch_size * self.image + _LABEL_BYTES * pixels,
                "activations": sum(total for total, _ in maps.values()),
                "logits": logits,
                "losses": self._loss(batch_size),
                "gradients of weights": gradient * self.trained,
            }
            for stage, (total, _) in maps.items():
                out.stages.setdefault(stage, {})[column] = total
            for name, size in parts.items():
                out.parts.setdefault(name, {})[column] = size
            out.peak[column] = self._peak(parts, maps, gradient)
        return out

    def _peak(self, parts, maps, gradient):
        """The largest of three kinds of moments: in the losses, where all maps are there; in the
        backward pass of each stage; and in the update, where all gradients are."""
        always = ("weights", "optimizer", "average of weights", "batch")
        resting = sum(parts[name] for name in always) + parts["logits"]
        moments = [parts["activations"] + parts["losses"], parts["gradients of weights"]]
        # Where a map between the stages lies is not known; they count until the end.
        maps = dict(maps)
        held, _ = maps.pop(BETWEEN, (0, 0))
        later = parts["gradients of weights"]
        for stage, (total, largest) in maps.items():
            held += total
            later -= gradient * self.forward.parameters.get(stage, 0)
            moments.append(held + _GRADIENTS_AT_ONCE * largest + later)
        return resting + max(moments)

    def largest_batch(self, gib: float, column: str) -> int:
        """How many images fit into so many GiB of a device, `RESERVED` left free; 0 for none."""
        low, high = 0, 1
        room = gib * GIB - RESERVED
        while self.estimate(high).peak[column] <= room and high < 2**20:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.estimate(middle).peak[column] <= room
            low, high = (middle, high) if fits else (low, middle)
        return low


def moments_of(optimizer: paddle.optimizer.Optimizer) -> int:
    """How many copies of the weights' size a Paddle optimizer keeps; 2 for one not known."""
    return _MOMENTS.get(type(optimizer).__name__, 2)


# -- from a config -----------------------------------------------------------------------------

# Transforms after which all images have one size -> (key, its default), (width, height).
_SIZED = {
    "Resize": ("target_size", (512, 512)),
    "Padding": ("target_size", None),
    "RandomPaddingCrop": ("crop_size", (512, 512)),
}


def crop_of(dataset_cfg: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of a training set's images as a config tells it; None where it does not.

    Args:
        dataset_cfg (dict): ``transforms``, and ``image_size`` of a set that makes its images.
    """
    size = dataset_cfg.get("image_size")
    for transform in dataset_cfg.get("transforms") or []:
        if transform.get("type") in _SIZED:
            key, default = _SIZED[transform["type"]]
            size = transform.get(key, default)
    if isinstance(size, int):
        size = (size, size)
    return None if size is None else (int(size[1]), int(size[0]))


def in_channels_of(model_cfg: Mapping[str, Any]) -> int:
    """Channels of the images that a config's network takes."""
    return model_cfg.get("backbone", {}).get("in_channels", 3)


def forget_class_weights(loss_cfg: Mapping[str, Any]) -> None:
    """Takes ``weight: auto`` out of a config's losses, in place: it would need the labels."""
    for part in loss_cfg.get("types") or loss_cfg.get("losses") or []:
        if part.get("weight") == "auto":
            del part["weight"]
        forget_class_weights(part)

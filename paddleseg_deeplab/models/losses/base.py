# SPDX-License-Identifier: Apache-2.0
"""What every loss needs: checked inputs in float32, class weights, means, NumPy on a CPU.

A loss never reads a tensor's values on the host where the device is a GPU: that would stop the
device at each step. Values may be looked at where `in_numpy` says so.
"""

import contextlib
import numbers
from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypeGuard

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from paddle.base import core

from paddleseg_deeplab.utils import py_layer
from paddleseg_deeplab.utils.errors import UserError

# A factor for each class.
ClassWeights: TypeAlias = Sequence[float] | np.ndarray | Tensor

_FORMATS = ("NCHW", "NHWC")
# False makes a CPU take the operators that a GPU takes; for tests.
NUMPY_ON_CPU = True


class SegmentationLoss(nn.Layer):
    """Checks and converts the inputs, then calls the subclass's ``compute``.

    A subclass sets ``layout`` to the channel order it wants to see (None: ``data_format``'s), and
    computes in float32 whatever precision the network ran in. Rules kept by all losses: pixels
    labelled ``ignore_index`` never count, a batch of such pixels alone gives 0 with zero gradients,
    the label tensor is never changed.

    Args:
        ignore_index (int): Label of the pixels that do not count.
        weight (sequence of float, "auto" or None): One factor per class; ``"auto"`` is a
            placeholder that :meth:`set_class_weights` must fill before the first call.
        data_format (str): Channel order of the logits, "NCHW" or "NHWC".

    Raises:
        TypeError, ValueError: a setting of the wrong type or range.
    """

    layout: str | None = "NCHW"

    def __init__(
        self,
        ignore_index: int = 255,
        weight: ClassWeights | str | None = None,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__()
        if not is_integer(ignore_index):
            raise TypeError(f"ignore_index must be an integer, not {ignore_index!r}.")
        if data_format not in _FORMATS:
            raise ValueError(f"data_format must be 'NCHW' or 'NHWC', not {data_format!r}.")
        self.ignore_index = int(ignore_index)
        self.data_format = data_format
        self.weight: Tensor | str | None = None
        if isinstance(weight, str):
            if weight != "auto":
                raise ValueError(f"weight must be a list of numbers or 'auto', not {weight!r}.")
            self.weight = weight
        elif weight is not None:
            self.set_class_weights(weight)

    @property
    def needs_class_weights(self) -> bool:
        """bool: True while the weights are still the placeholder ``"auto"``."""
        return isinstance(self.weight, str)

    def set_class_weights(self, weight: ClassWeights) -> None:
        """Sets one non-negative factor per class (a sequence, array or Tensor of floats)."""
        values = weight.numpy() if isinstance(weight, paddle.Tensor) else weight
        try:
            values = np.asarray(values, dtype="float64")
        except (TypeError, ValueError) as error:
            raise TypeError(f"weight must be a list of numbers, not {weight!r}.") from error
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"weight must be a flat list, one number per class, not {weight!r}.")
        if not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ValueError(f"weight must hold finite numbers >= 0, not all 0: {weight!r}.")
        if hasattr(self, "weight"):
            delattr(self, "weight")
        # Not persistable: the loss adds nothing to a checkpoint.
        tensor = paddle.to_tensor(values.astype("float32"))
        self.register_buffer("weight", tensor, persistable=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits (Tensor): float16, bfloat16 or float32, [N, C, H, W] ([N, H, W, C] with
                data_format "NHWC"), unbounded.
            label (Tensor): integer, [N, H, W] or [N, 1, H, W], classes 0..C-1 or ignore_index.

        Returns:
            Tensor: float32 scalar.

        Raises:
            UserError: shapes that do not belong together, labels that are no class, or unresolved
                ``"auto"`` weights.
        """
        return self._checked_and_computed(logits, label)

    def _checked_and_computed(self, logits, label, **extra):
        """What `forward` gives; `extra` goes to ``compute``."""
        # Under O1/O2 autocasting, products and sums over a million pixels would run in half
        # precision, where they overflow at 65504.
        with paddle.amp.auto_cast(enable=False), exact_products():
            logits, label, valid = self._prepare(logits, label)
            return self.compute(logits, label, valid, **extra)

    def compute(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Computes the loss of checked inputs: logits float32 in ``layout``, label int64 [N, H, W],
        valid bool [N, H, W]."""
        raise NotImplementedError

    def _prepare(self, logits, label):
        name = type(self).__name__
        if logits.ndim != 4:
            raise UserError(
                f"{name}: logits must have 4 dimensions, not shape {list(logits.shape)}."
            )
        if self.needs_class_weights:
            raise UserError(
                f"{name}: weight='auto' has not been resolved. Build the loss from a config, or "
                "call set_class_weights(class_weights_from_counts(pixel_counts)) first."
            )
        if label.dtype not in (paddle.int64, paddle.int32, paddle.int16, paddle.uint8, paddle.int8):
            raise TypeError(f"{name}: label must hold integers, not {label.dtype}.")
        shape = list(logits.shape)
        n, c, h, w = shape if self.data_format == "NCHW" else _nchw(shape)
        if label.ndim == 4 and label.shape[1] == 1:
            label = label.squeeze(1)
        if list(label.shape) != [n, h, w]:
            raise UserError(
                f"{name}: the label has shape {list(label.shape)} but the logits {shape} "
                f"({self.data_format}) need [{n}, {h}, {w}]. Resize the logits to the label's "
                "size first, and check data_format."
            )
        if self.weight is not None and len(self.weight) != c:
            raise UserError(
                f"{name}: weight has {len(self.weight)} numbers, but the logits have {c} classes."
            )
        label = label.detach()
        valid = is_valid(label, self.ignore_index)
        check_label_range(label, c, self.ignore_index, name)
        label = label.astype("int64")  # no copy where it is int64 already
        logits = logits.astype("float32")
        if self.layout not in (None, self.data_format):
            logits = logits.transpose([0, 2, 3, 1] if self.layout == "NHWC" else [0, 3, 1, 2])
        return logits, label, valid

    def batch_weight(self, label: Tensor) -> float | Tensor:
        """How much a batch counts where the means of several (micro-batches, ranks) are joined.

        A loss that is a mean over pixels or images gives how many there are, so that the joined
        mean is that of all of them; any other loss gives 1.0, the mean of the batches' values.

        Args:
            label (Tensor): integer [N, H, W], on the logits' grid.

        Returns:
            float | Tensor: a scalar of at least 0; only the ratio between batches matters.
        """
        return 1.0

    def pixel_weights(self, label: Tensor, valid: Tensor) -> Tensor:
        """Class weight of each pixel, float32 [N, H, W]; 0 where not valid, 1 without weights."""
        mask = valid.astype("float32")
        if self.weight is None:
            return mask
        # The clamp only touches ignored pixels, which the mask zeroes.
        known = paddle.where(valid, label, paddle.zeros_like(label))
        return paddle.gather(self.weight, known.flatten()).reshape(label.shape) * mask


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, NumPy's included; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, NumPy's included; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _nchw(shape):
    n, h, w, c = shape
    return n, c, h, w


def check_label_range(label: Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Raises UserError for labels that are neither a class nor ignore_index.

    Only on the CPU: on a GPU the look at the values would stop the device at each step; there
    the data pipeline's own check is the guard.
    """
    if not in_numpy(label):
        return
    values = as_numpy(label)
    bad = (values < 0) | (values >= num_classes)
    bad &= values != ignore_index
    if bad.any():
        found = np.unique(values[bad])
        shown = ", ".join(str(v) for v in found[:8]) + (", ..." if found.size > 8 else "")
        raise UserError(
            f"{name}: the label holds {shown}; allowed are 0 to {num_classes - 1} and "
            f"ignore_index {ignore_index}. Check num_classes, or map the values with the "
            "dataset's label_map."
        )


def is_valid(label: Tensor, ignore_index: int) -> Tensor:
    """bool Tensor: where a label counts. A narrow label is never compared with a number that its
    type cannot hold, which Paddle would wrap around."""
    limits = paddle.iinfo(label.dtype)
    if not limits.min <= ignore_index <= limits.max:
        return paddle.ones_like(label, dtype="bool")
    return label != ignore_index


def valid_pixels(label: Tensor, ignore_index: int) -> Tensor:
    """Tensor: how many pixels of a label count, float64; not read, since that would wait for it."""
    return is_valid(label, ignore_index).sum().astype("float64")


def one_hot(label: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """float32 [N, H, W, C]; all zero at pixels that are not valid."""
    known = paddle.where(valid, label, paddle.zeros_like(label))
    return paddle.nn.functional.one_hot(known, num_classes) * valid.unsqueeze(-1).astype("float32")


def mean_over(values: Tensor, denominator: Tensor) -> Tensor:
    """Sum of values / denominator, float32; 0 with zero gradients where the denominator is 0.

    The sum is taken in float64: that of many large losses would pass float32's largest number.
    """
    total = values.astype("float64").sum()
    return (total / paddle.clip(denominator.astype("float64"), min=1e-12)).astype("float32")


def in_numpy(tensor: Tensor) -> bool:
    """bool: whether a loss may look at this tensor's values and compute in NumPy."""
    return NUMPY_ON_CPU and tensor.place.is_cpu_place()


def as_numpy(tensor: Tensor) -> np.ndarray:
    """NumPy array of a CPU or GPU tensor; of a CPU tensor without a copy where Paddle can."""
    if tensor.place.is_cpu_place():
        try:
            return np.from_dlpack(tensor.detach())
        except (AttributeError, BufferError, RuntimeError, TypeError):
            pass  # older pairs of Paddle and NumPy: copy
    return tensor.detach().numpy()


def writable(shape: Sequence[int]) -> tuple[Tensor, np.ndarray]:
    """A new float32 CPU tensor, and an array to write its numbers to, before :func:`written`."""
    tensor = paddle.empty(shape, dtype="float32")
    array = as_numpy(tensor)
    if not array.flags.writeable:  # NumPy before 2.1 takes foreign memory to read only
        array = np.empty(array.shape, "float32")
    return tensor, array


def written(tensor: Tensor, array: np.ndarray) -> Tensor:
    """The tensor with the numbers of its array, see :func:`writable`."""
    # A copy, see as_numpy, does not reach the tensor.
    return tensor if np.shares_memory(array, as_numpy(tensor)) else paddle.to_tensor(array)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Inside, matrix products of float32 keep float32's digits on a GPU.

    Some Paddles take TF32 by default (paddle_quirks: products_in_tf32).
    """
    if not hasattr(core, "set_cublas_switch"):  # a Paddle for CPUs
        yield
        return
    allowed = core.get_cublas_switch()
    core.set_cublas_switch(False)
    try:
        yield
    finally:
        core.set_cublas_switch(allowed)


def apply_once(layer: type[PyLayer], *arguments: object) -> Tensor:
    """A loss's `PyLayer`, see `utils.py_layer.apply_once`."""
    return py_layer.apply_once(
        layer,
        *arguments,
        again="a second backward() through one loss, which a PyLayer of Paddle does not survive: "
        "add the losses up and call backward() once, or compute the loss again",
    )

# SPDX-License-Identifier: Apache-2.0
"""What a forward pass keeps for the backward pass, for images of any size.

Paddle tells of each tensor that an operator keeps (`saved_tensors_hooks`), so nothing has to be
known of the operators: inputs of convolutions and batch norms, results of ReLUs that overwrote
them, masks of dropout. A tensor that two of them keep is counted once, by its place in memory.

An image of the real size would take the memory that is to be told. So four small images are run,
two heights by two widths that differ by `_STEP` and leave the real size's rest by it. Along such
sizes the sides of every map grow linearly (all strides divide `_STEP`), so the number of elements
of a map is a + b h + c w + d h w, which four images determine exactly.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import nn
from paddle.autograd import saved_tensors_hooks

from paddleseg_deeplab.models.forward import run_model
from paddleseg_deeplab.tools.inspect_model.stages import stage_names, units_of
from paddleseg_deeplab.utils.errors import UserError

_STEP = 64
BETWEEN = "between the stages"


@dataclass(frozen=True)
class SavedMap:
    """A map of one image that is kept for the backward pass.

    Attributes:
        stage (str): Where it was kept first, named as by `inspect_network`.
        elements (int): Of one image.
        bytes_each (int): Of an element in fp32.
        is_float (bool): Whether it takes 2 bytes an element in half precision.
    """

    stage: str
    elements: int
    bytes_each: int
    is_float: bool

    def size(self, half: bool = False) -> int:
        """Bytes for one image."""
        return self.elements * (2 if half and self.is_float else self.bytes_each)


@dataclass
class ForwardPass:
    """What `saved_maps` found for one image.

    Attributes:
        maps (list[SavedMap]): In the order of the run; the image itself is not among them.
        stages (list[str]): In the order of the run.
        outputs (list[tuple[int, int]]): Of each output, (height, width).
        classes (int): Channels of the outputs.
        parameters (dict[str, int]): Stage to the numbers that are trained in it.
    """

    maps: list[SavedMap]
    stages: list[str]
    outputs: list[tuple[int, int]]
    classes: int
    parameters: dict[str, int]


class _Recorder:
    """Takes down, in order, the tensors that operators keep, and in which unit."""

    def __init__(self, model):
        # Weights and running statistics are there anyway.
        self._known = {t.data_ptr() for t in model.state_dict().values()}
        self._kept = []  # alive until the end, or their memory would be given out again
        self._units = []
        self.rows = []  # (unit, elements, bytes an element, whether a float)
        self.channels = {}  # unit -> of its output

    def keep(self, tensor):
        # Vectors and matrices: batch norm's statistics and the weights of a bilinear resize.
        if tensor.ndim > 2 and tensor.data_ptr() not in self._known:
            self._known.add(tensor.data_ptr())
            self._kept.append(tensor)
            unit = self._units[-1] if self._units else BETWEEN
            row = (int(tensor.size), tensor.element_size(), tensor.is_floating_point())
            self.rows.append((unit, *row))
        return tensor

    @contextlib.contextmanager
    def watching(self, units, image, layout):
        """Takes down what is kept inside, but the image."""
        self._known.add(image.data_ptr())

        def enter(name):
            return lambda _layer, _inputs: self._units.append(name)

        def leave(name):
            def hook(_layer, _inputs, output):
                self._units.pop()
                while isinstance(output, (list, tuple)):
                    output = output[0]
                if output.ndim == 4:
                    self.channels[name] = output.shape[1 if layout == "NCHW" else 3]

            return hook

        handles = [layer.register_forward_pre_hook(enter(name)) for name, layer in units]
        handles += [layer.register_forward_post_hook(leave(name)) for name, layer in units]
        try:
            with saved_tensors_hooks(self.keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()


def _record(model, units, size, in_channels):
    """A small image through the network: the recorder, and the outputs' (sizes, channels)."""
    layout = getattr(model, "data_format", "NCHW")
    image = paddle.zeros([1, in_channels, *size])
    recorder = _Recorder(model)
    with recorder.watching(units, image, layout), paddle.enable_grad():
        outputs = run_model(model, image)
    first = 2 if layout == "NCHW" else 1
    sizes = [tuple(y.shape[first : first + 2]) for y in outputs]
    return recorder, sizes, outputs[0].shape[1 if layout == "NCHW" else 3]


def _bilinear(corners, shares):
    """The value at ``shares`` of the way from the first corner to the second, on both axes.

    Args:
        corners (Sequence[int]): At (0, 0), (0, 1), (1, 0) and (1, 1).
        shares (tuple[int, int]): Whole numbers, so that the result is exact.
    """
    a, b, c, d = corners
    u, v = shares
    return a + u * (c - a) + v * (b - a) + u * v * (a - b - c + d)


def saved_maps(model: nn.Layer, size: Sequence[int], in_channels: int = 3) -> ForwardPass:
    """What the network keeps of one image in training.

    Args:
        model (nn.Layer): Float32, on a CPU; in training mode, as it is to be trained. Its running
            statistics change.
        size (tuple[int, int]): (height, width) of the image.
        in_channels (int): Of the image.

    Returns:
        ForwardPass: exact for networks whose maps' sides grow linearly by steps of 64 pixels.

    Raises:
        UserError: the network does not take an image.
    """
    units = units_of(model)
    base = [_STEP + side % _STEP for side in size]
    shares = tuple((side - b) // _STEP for side, b in zip(size, base))
    corners = []
    try:
        for i in (0, 1):
            for j in (0, 1):
                small = (base[0] + i * _STEP, base[1] + j * _STEP)
                corners.append(_record(model, units, small, in_channels))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The network does not take an image: {str(error).strip()}") from error
    rows = [recorder.rows for recorder, _, _ in corners]
    if len({len(r) for r in rows}) > 1:
        raise UserError(
            "The network keeps other tensors for images of another size, so its memory cannot be "
            "told from small images."
        )
    recorder, sizes, classes = corners[0]
    run = list(recorder.channels)
    names = stage_names(run, recorder.channels)
    maps = [
        SavedMap(names.get(at[0][0], at[0][0]), _bilinear([r[1] for r in at], shares), *at[0][2:])
        for at in zip(*rows)
    ]
    outputs = [
        tuple(_bilinear([c[1][k][axis] for c in corners], shares) for axis in (0, 1))
        for k in range(len(sizes))
    ]
    stages = list(dict.fromkeys(names[u] for u in run))
    return ForwardPass(maps, stages, outputs, classes, _trained(model, units, names))


def _trained(model, units, names):
    seen, found = set(), {}
    for unit, layer in [*units, (BETWEEN, model)]:
        for parameter in layer.parameters():
            if id(parameter) not in seen and not parameter.stop_gradient:
                stage = names.get(unit, unit)
                found[stage] = found.get(stage, 0) + int(parameter.size)
            seen.add(id(parameter))
    return found

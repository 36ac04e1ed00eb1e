# SPDX-License-Identifier: Apache-2.0
"""Parameters, multiply-adds, atrous layers and receptive fields of a network, by stage."""

from collections.abc import Callable
from dataclasses import dataclass

import paddle
from paddle import nn

from paddleseg_deeplab.models.forward import evaluation_mode
from paddleseg_deeplab.tools.inspect_model.stages import stage_names, units_of
from paddleseg_deeplab.tools.inspect_model.thin import (
    CONVS,
    NotThin,
    hooks,
    make_thin,
    receptive_fields,
)
from paddleseg_deeplab.tools.inspect_model.valid_taps import (
    effective_kernel,
    valid_counts,
    valid_share,
)
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_STATISTICS = ("_mean", "_variance")


@dataclass
class Stage:
    """A part of the network, in the order of its run.

    Attributes:
        name (str): As in the state_dict: ``backbone.layer1``, ``backbone.blocks.3-5``.
        parameters (int): Trained numbers: weights, biases, batch norm's scales and shifts.
        multiply_adds (int): Of convolutions and linear layers, for one image.
        channels (int | None): Of the output; None where no convolution tells.
        size (tuple[int, ...] | None): (height, width) of the output; empty where that is no map;
            None where evaluation does not run it.
        stride (int | None): Input pixels per output pixel.
        receptive_field (int | None): Input pixels on each axis, image pooling left out; None
            where it is the whole image or was not measured.
    """

    name: str
    parameters: int
    multiply_adds: int
    channels: int | None
    size: tuple[int, ...] | None
    stride: int | None = None
    receptive_field: int | None = None


@dataclass
class AtrousLayer:
    """A dilated convolution at one input size.

    Attributes:
        name (str): As in the state_dict.
        kernel, rate (tuple[int, int]): (height, width).
        effective (tuple[int, int]): Pixels that the kernel spans, (height, width).
        size (tuple[int, int]): (height, width) of its input map.
        share (float): Of its weights that meet the map, mean over positions, see `valid_share`.
        counts (dict[int, float]): Valid taps to share of positions, see `valid_counts`.
    """

    name: str
    kernel: tuple[int, int]
    rate: tuple[int, int]
    effective: tuple[int, int]
    size: tuple[int, int]
    share: float
    counts: dict[int, float]


@dataclass
class NetworkFacts:
    """What `inspect_network` found.

    Attributes:
        tensors, numbers (int): In the state_dict, running statistics counted.
        parameters (int): Trained numbers.
        multiply_adds (int): For one image, everything that evaluation runs.
        stages (list[Stage]): In the order of the run; parts that evaluation does not run (an
            auxiliary head) come last, without size.
        atrous (list[AtrousLayer]): In the order of the run.
        receptive_fields (bool): Whether they were measured.
    """

    tensors: int
    numbers: int
    parameters: int
    multiply_adds: int
    stages: list[Stage]
    atrous: list[AtrousLayer]
    receptive_fields: bool


# -- costs -------------------------------------------------------------------------------------


@dataclass
class _Layer:
    """A convolution or linear layer, its numbers as they were before the network was made thin."""

    name: str
    layer: nn.Layer
    weights: int  # of one output position (transposed: of one input position), bias left out
    channels: int  # of the output
    calls: list[tuple]  # (input size, output size) or, of a linear layer, (positions,)


def _counted_layers(model):
    """The layers that multiply-adds are counted on."""
    found = []
    for name, layer in model.named_sublayers():
        if isinstance(layer, (*CONVS, nn.Linear)):
            shape = layer.weight.shape
            out = shape[1] * layer._groups if isinstance(layer, CONVS[1]) else shape[0]
            out = shape[1] if isinstance(layer, nn.Linear) else out
            found.append(_Layer(name, layer, _product(shape), out, []))
    return found


def _product(numbers):
    product = 1
    for number in numbers:
        product *= int(number)
    return product


def _multiply_adds(record):
    total = 0
    for call in record.calls:
        if isinstance(record.layer, nn.Linear):
            positions = call[0]
        else:
            positions = _product(call[0 if isinstance(record.layer, CONVS[1]) else 1])
        total += positions * record.weights
    return total


def _run(model, size, in_channels, counted, units, dtype, layout="NCHW"):
    """Runs the network once; fills the records' calls. Returns unit -> output size, in order."""
    sizes = {}

    def spatial(x):
        return tuple(x.shape[2:4] if layout == "NCHW" else x.shape[1:3])

    def count(record):
        def hook(layer, inputs, output):
            if isinstance(layer, nn.Linear):
                record.calls.append((_product(output.shape[:-1]),))
            else:
                record.calls.append((spatial(inputs[0]), spatial(output)))

        return hook

    def measure(name):
        def hook(_layer, _inputs, output):
            while isinstance(output, (list, tuple)):
                output = output[0]
            sizes.setdefault(name, spatial(output) if output.ndim == 4 else ())

        return hook

    pairs = [(record.layer, count(record)) for record in counted]
    pairs += [(layer, measure(name)) for name, layer in units]
    shape = [1, in_channels, *size] if layout == "NCHW" else [1, *size, in_channels]
    # With gradients on, `ConvBN` calls its parts as layers, which hooks see.
    with evaluation_mode(model), hooks(pairs), paddle.enable_grad():
        model(paddle.zeros(shape, dtype))
    return sizes


def _pair(value):
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _paddings(layer):
    """((top, bottom), (left, right)); None for an axis that keeps its size."""
    padding = layer._padding
    if isinstance(padding, str):
        return ((0, 0), (0, 0)) if padding.upper() == "VALID" else (None, None)
    padding = _pair(padding)
    if len(padding) == 2:
        return tuple((p, p) for p in padding)
    return tuple(padding[:2]), tuple(padding[2:])


def _atrous_layers(counted):
    """Those of the first scale, then those of the second, and so on."""
    found = []
    for record in counted:
        layer = record.layer
        if not isinstance(layer, nn.Conv2D):
            continue
        kernel, rate = _pair(layer._kernel_size), _pair(layer._dilation)
        if not any(k > 1 and r > 1 for k, r in zip(kernel, rate)):
            continue
        for scale, size in enumerate(dict.fromkeys(call[0] for call in record.calls)):
            axes = (size, kernel, rate, _pair(layer._stride), _paddings(layer))
            effective = tuple(effective_kernel(k, r) for k, r in zip(kernel, rate))
            share, counts = valid_share(*axes), valid_counts(*axes)
            atrous = AtrousLayer(record.name, kernel, rate, effective, size, share, counts)
            found.append((scale, atrous))
    return [atrous for _, atrous in sorted(found, key=lambda pair: pair[0])]


def inspect_network(
    build: Callable[[], nn.Layer], input_size: tuple[int, int], in_channels: int = 3
) -> NetworkFacts:
    """Finds a network's costs, atrous layers and receptive fields.

    Args:
        build (callable): Gives a fresh network; called up to three times. Its weights do not
            matter.
        input_size (tuple[int, int]): (height, width) of the image.
        in_channels (int): Of the image.

    Returns:
        NetworkFacts: Multiply-adds are those of ``nn.Conv2D``, ``nn.Conv2DTranspose`` and
            ``nn.Linear``, taps in the padding counted, for one image in evaluation. A network that
            sees the image at several scales is counted with all of them.

    Raises:
        UserError: the network does not take an image of this size.
    """
    model = _fresh(build)
    tensors = model.state_dict()
    totals = (len(tensors), sum(_product(t.shape) for t in tensors.values()))
    units, counted = units_of(model), _counted_layers(model)
    parameters = _parameters(model, units)
    fields = {}
    try:
        if getattr(model, "data_format", "NCHW") != "NCHW":
            raise NotThin("its data_format is NHWC")
        make_thin(model)
        sizes = _run(model, input_size, in_channels, counted, units, "float64")
        fields = receptive_fields(model, dict(units), in_channels)
    except Exception as error:  # layers of any kind may be in it
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        logger.warning("Running the whole network, without receptive fields: %s", reason)
        model = build()
        units, counted = units_of(model), _counted_layers(model)
        sizes = _run_real(model, input_size, in_channels, counted, units)
    stages = _stages(units, counted, sizes, parameters, fields)
    return NetworkFacts(
        *totals,
        sum(parameters.values()),
        sum(map(_multiply_adds, counted)),
        stages,
        _atrous_layers(counted),
        bool(fields),
    )


def _fresh(build):
    try:
        with paddle.LazyGuard():  # no random numbers are drawn
            return build()
    except Exception:  # a network that reads its own weights; or a mistake, which comes again
        return build()


def _run_real(model, input_size, in_channels, counted, units):
    layout = getattr(model, "data_format", "NCHW")
    try:
        return _run(model, input_size, in_channels, counted, units, "float32", layout)
    except (ValueError, RuntimeError) as error:
        height, width = input_size
        raise UserError(
            f"The network does not take an image of {width}x{height}: {str(error).strip()}"
        ) from error


def _parameters(model, units):
    """Unit -> trained numbers in it; "other" for those in none; shared ones count once."""
    seen, found = set(), {}

    def add(name, layer):
        for key, parameter in layer.named_parameters():
            if id(parameter) not in seen and not key.endswith(_STATISTICS):
                seen.add(id(parameter))
                found[name] = found.get(name, 0) + _product(parameter.shape)

    for name, layer in units:
        add(name, layer)
    add("other", model)
    return found


def _stages(units, counted, sizes, parameters, fields):
    def inside(unit):
        return [r for r in counted if r.name == unit or r.name.startswith(f"{unit}.")]

    own = {name: inside(name) for name, _ in units}
    channels = {name: own[name][-1].channels for name in own if own[name]}
    order = [*sizes, *(name for name, _ in units if name not in sizes)]
    names, stages = stage_names(order, channels), {}
    for unit in [*order, *(["other"] if "other" in parameters else [])]:
        name = names.get(unit, unit)
        if name not in stages:
            stages[name] = Stage(name, 0, 0, None, None)
        stage = stages[name]
        stage.parameters += parameters.get(unit, 0)
        stage.multiply_adds += sum(map(_multiply_adds, own.get(unit, [])))
        if unit in sizes:
            stage.channels, stage.size = channels.get(unit), sizes[unit]
            stage.stride, stage.receptive_field = fields.get(unit, (None, None))
    return list(stages.values())

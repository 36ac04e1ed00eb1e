# SPDX-License-Identifier: Apache-2.0
"""One training step on the CPU, forward, MixedLoss, backward and momentum, beside torch.

The peer is the same network in torch, eager (`torch_network.py`), from the same weights, on the
same images, with the usual Lovasz loop. Before anything is timed, a step of both must give the same
loss and the same weights.
"""

import numpy as np
import paddle
from children import memory_of
from harness import Missing, Unequal, assert_close, compare, peer

from paddleseg_deeplab import registry
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.losses import CrossEntropyLoss, LovaszSoftmaxLoss, MixedLoss
from paddleseg_deeplab.tools.inspect_model.network import inspect_network
from paddleseg_deeplab.utils.cpu import keep_freed_memory, thread_count

PEER = "torch, eager"
CLASSES = 19
WEIGHTS = (0.8, 0.2)
SETTINGS = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 4e-5}
# layers, output stride, images, side
CASES = ((50, 8, 2, 256), (18, 16, 8, 256))
SMALL = ((18, 16, 2, 64),)
# Set beforehand, for one step from equal weights (a second one would start from what rounding has
# made of them, which batch norm of small maps amplifies): the loss to 1e-5; each tensor of weights
# to 5 % of what the step has changed in it, as root mean squares, since a ReLU at 0 falls either
# way. What is smaller than 1e-5 is rounding: a bias that batch norm takes off again has a gradient
# of 0 here, and of rounding errors in torch.
LOSS_TOLERANCE = 1e-5
WEIGHT_SHARE = 5e-2
ROUNDING = 1e-5


def make_inputs(count, side):
    """Images float32 [N, 3, H, W] and labels int64 [N, H, W] in areas, some of them void."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 3, side, side), dtype=np.float32)
    areas = rng.integers(0, CLASSES, (count, 16, 16))
    areas[rng.random(areas.shape) < 1 / 16] = 255
    at = np.arange(side) * 16 // side
    return images, areas[:, at][:, :, at].astype(np.int64)


def our_network(layers, output_stride):
    paddle.seed(0)
    backbone = registry.BACKBONES[f"ResNet{layers}_vd"](output_stride=output_stride)
    return DeepLabV3P(CLASSES, backbone, aspp_dropout=0.0)


def our_step(network, images, label):
    """A function that runs a training step and returns the loss."""
    network.train()
    settings = {**SETTINGS, "parameters": network.parameters()}
    loss = MixedLoss([CrossEntropyLoss(), LovaszSoftmaxLoss()], list(WEIGHTS))
    step = TrainStep(
        network, paddle.optimizer.Momentum(**settings), {"types": [loss], "coef": [1.0]}
    )
    batch = [(paddle.to_tensor(images), paddle.to_tensor(label))]
    return lambda: step(batch)[0]


def their_step(weights, layers, output_stride, images, label):
    """The peer's step from our weights, and its network."""
    import torch
    import torch_network

    torch.set_num_threads(thread_count())
    network = torch_network.DeepLabV3P(CLASSES, layers, output_stride)
    network.load(weights)
    return torch_network.make_step(network, WEIGHTS, images, label, **SETTINGS), network


def numbers(network):
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


def check_steps(step, network, theirs, their_network):
    """A step of both sides; raises `Unequal` unless the losses and the weights agree."""
    before = numbers(network)
    assert_close("loss", step(), theirs(), LOSS_TOLERANCE)
    after, other = numbers(network), their_network.weights()
    for name, start in before.items():
        if name.endswith("._variance"):
            continue  # of n values the running one is divided by n here, by n - 1 in torch
        moved, gap = (rms(other[name] - array) for array in (start, after[name]))
        if not gap <= WEIGHT_SHARE * moved + ROUNDING:
            raise Unequal(f"{name}: differs by {gap:.3g} where the step changed {moved:.3g}.")


def rms(array):
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def multiply_adds(layers, output_stride, side):
    """Of the convolutions of a forward pass, for one image."""
    return inspect_network(lambda: our_network(layers, output_stride), (side, side)).multiply_adds


def memory_work(name, layers, output_stride, count, side):
    """For `children.peak_memory`: a step of ours (name None) or the peer's, after a first one."""
    paddle.set_device("cpu")
    network, inputs = our_network(layers, output_stride), make_inputs(count, side)
    if name is None:
        keep_freed_memory()
        return our_step(network, *inputs)
    return their_step(numbers(network), layers, output_stride, *inputs)[0]


def case(options, layers, output_stride, count, side):
    """The row of one network and batch."""
    network, inputs = our_network(layers, output_stride), make_inputs(count, side)
    # Forward, gradient of the map, gradient of the weights; a multiply-add is two operations.
    work = 3 * 2 * count * multiply_adds(layers, output_stride, side)
    theirs = peer(lambda: their_step(numbers(network), layers, output_stride, *inputs))
    step = our_step(network, *inputs)
    if not isinstance(theirs, Missing):
        check_steps(step, network, *theirs)
        theirs = theirs[0]
    here, which = ("suites.train_step", "memory_work"), (layers, output_stride, count, side)
    return compare(
        f"training step, ResNet{layers}_vd stride {output_stride}, {count}x{side}x{side}",
        step,
        {PEER: theirs},
        lambda *_: None,  # checked above: every call changes the weights
        options,
        goals={PEER: "1"},
        floor=options.rates.floor(operations=work),
        memory=lambda name: memory_of(options, *here, name, *which),
    )


def rows(options):
    keep_freed_memory()  # as training does; the peer profits too
    for numbers_of_case in SMALL if options.small else CASES:
        yield from case(options, *numbers_of_case)

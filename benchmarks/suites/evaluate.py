# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a validation set from files to mIoU, as val.py does it by default.

The peer is val.py without engines: one image at a time, read in between, through dygraph with
Paddle's own operators, on as many threads. The set has the size of CamVid's validation set:
101 pictures of 480x360, made from the embedded dataset, or the one of CAMVID (a folder with
val.txt), and DeepLabV3+ on ResNet18_vd at stride 16 with 11 classes.
"""

import atexit
import contextlib
import os
import tempfile

import atrous_property
import cv2
import numpy as np
import paddle
from children import memory_of
from harness import Row, Unequal, put_ratio, take_turns

from paddleseg_deeplab import registry
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.datasets.shapes import Shapes
from paddleseg_deeplab.deploy import engine as engine_module
from paddleseg_deeplab.deploy.engine import open_engine
from paddleseg_deeplab.kernels import cpu_ops
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.tools.inspect_model.network import inspect_network
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError

CLASSES = 11
COUNT, SIZE = 101, (480, 360)  # (width, height)
SMALL_COUNT, SMALL_SIZE = 3, (64, 48)
DEFAULT = "val.py's defaults"
BF16 = "--engine openvino --precision bf16"
PLAIN = "dygraph, batch 1"
# As in suites/export.py: engines add up in different orders, so pixels whose two best classes tie
# may go either way. Of a trained network on CamVid it was one pixel in eight million.
MOVED = 1e-4
# bfloat16 keeps eight bits; it is asked for, and its row says how many pixels move.
MOVED_BF16 = 5e-2


def write_set(folder, count, size):
    """Pictures of the embedded dataset as JPEG, their labels as PNG, and val.txt."""
    made = Shapes(transforms=[], mode="val", image_size=size, num_samples=count)
    with open(f"{folder}/val.txt", "w", encoding="utf-8") as lines:
        for i in range(count):
            sample = made[i]
            picture = sample["img"].transpose(1, 2, 0).round().astype(np.uint8)
            cv2.imwrite(f"{folder}/{i}.jpg", picture[..., ::-1])
            cv2.imwrite(f"{folder}/{i}.png", sample["label"].astype(np.uint8))
            lines.write(f"{i}.jpg {i}.png\n")


def open_set(folder, small):
    """The validation set in CAMVID, or one that is written into `folder`."""
    given = os.environ.get("CAMVID")
    if given is None or small:
        given = folder
        write_set(folder, SMALL_COUNT if small else COUNT, SMALL_SIZE if small else SIZE)
    return Dataset("val", given, [Normalize()], CLASSES, val_path="val.txt")


def new_network(classes, small):
    paddle.seed(0)
    backbone = registry.BACKBONES["ResNet18_vd"](output_stride=16)
    return DeepLabV3P(classes, backbone, aspp_out_channels=16 if small else 256)


def network(classes, small, images):
    """DeepLabV3+ on ResNet18_vd with new weights and the batch norm of `images`, float32 [N, ...].

    Untrained scores tie in many pixels, so each class is put two standard deviations above the one
    before, as in suites/export.py.
    """
    model = new_network(classes, small)
    images = paddle.to_tensor(np.ascontiguousarray(images))
    atrous_property.take_statistics(model, images)
    with paddle.no_grad():
        spread = float(infer_logits(model, images[:1]).std())
    layers = [x for x in model.sublayers() if isinstance(x, paddle.nn.Conv2D)]
    bias = next(x.bias for x in layers[::-1] if x.weight.shape[0] == classes)
    steps = np.arange(classes) * 2 * spread
    bias.set_value(bias + paddle.to_tensor(steps.astype(np.float32)))
    return model


def build(small, dataset):
    """`network` for the pictures of the set."""
    return network(CLASSES, small, np.stack([dataset[i]["img"] for i in range(2)]))


@contextlib.contextmanager
def plain_paddle():
    """Paddle's own operators in dygraph, without the faster ones of kernels/cpu_ops.py."""
    applies, cpu_ops.applies = cpu_ops.applies, lambda *_: False
    try:
        yield
    finally:
        cpu_ops.applies = applies


def work_of(name, model, dataset):
    """A function that evaluates: as val.py does by default, or in another way by its name."""
    settings = {"print_detail": False, "progress": False}
    if name == PLAIN:

        def plain():
            with plain_paddle():
                return evaluate(model, dataset, batch_size=1, num_workers=0, **settings)

        return plain
    engine, precision = {DEFAULT: ("auto", "fp32"), BF16: ("openvino", "bf16")}[name]
    settings.update(engine=engine, precision=precision)
    workers = min(thread_count(), 2)
    return lambda: evaluate(model, dataset, batch_size=None, num_workers=workers, **settings)


def moved(mine, theirs):
    """Share of the counted pixels that have another class."""
    gap = np.abs(mine.confusion.matrix - theirs.confusion.matrix).sum() / 2
    return gap / mine.confusion.total


def memory_work(name, small):
    """For `children.peak_memory`: a few images, an image's memory being the set's."""
    paddle.set_device("cpu")
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    dataset = open_set(folder.name, small)
    model = build(small, dataset)
    dataset.file_list = dataset.file_list[:4]
    work = work_of(name, model, dataset)
    if name == DEFAULT:  # which exports for larger sets only
        engine_module.EXPORT_PIXELS = 0
    return work


def ways(model, dataset):
    """The ways that work here, by name, the plain one last, each with its tolerance."""
    found = {DEFAULT: MOVED}
    bf16 = open_engine(model, dataset[0]["img"], "openvino", precision="bf16")
    with contextlib.suppress(UserError), bf16:  # OpenVINO is missing, or the processor has no bf16
        found[BF16] = MOVED_BF16
    return found


def rows(options):
    """One turn, since it takes a minute; all ways take theirs beside the plain one."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_set(folder, options.small)
        model = build(options.small, dataset)
        size = dataset[0]["img"].shape[1:]
        works = {name: work_of(name, model, dataset) for name in (DEFAULT, BF16, PLAIN)}
        limits = {DEFAULT: MOVED} if options.small else ways(model, dataset)
        expected, shares = works[PLAIN](), {}
        for name, limit in limits.items():
            shares[name] = moved(works[name](), expected)
            if not shares[name] <= limit:
                raise Unequal(f"{name}: {shares[name]:.2g} of the pixels moved, not {limit:g}.")
        turning = {name: works[name] for name in (*limits, PLAIN)}
        seconds = take_turns(turning, 1, options.settle)
        made = inspect_network(lambda: new_network(CLASSES, options.small), size)
        work = len(dataset) * made.multiply_adds
        floor = options.rates.floor(operations=2 * work)
        for name in limits:
            row = Row(f"{len(dataset)} images {size[1]}x{size[0]}, {name}", PLAIN, goal="4")
            row.ours, row.our_seconds = float(np.median(seconds[name])), seconds[name]
            put_ratio(row, seconds[PLAIN])
            row.floor = floor if name == DEFAULT else None
            row.note = f"{shares[name]:.2g} of the pixels have another class"
            row.our_memory, row.their_memory = (
                memory_of(options, "suites.evaluate", "memory_work", who, options.small)
                for who in (name, PLAIN)
            )
            yield row

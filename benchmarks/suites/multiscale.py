# SPDX-License-Identifier: Apache-2.0
"""Six scales with flips, and sliding windows, beside the straightforward loops.

The peers follow PaddleSeg: every pass by itself through Paddle's dygraph, logits resized whole with
F.interpolate, softmax over the whole map; windows one at a time, added to a tensor, beside a count
map. They have Paddle's own convolutions and as many threads. Ours export the network first, as
predict.py and val.py do for sets of images; the export is not in the figures, evaluate.py's has it.
"""

import contextlib

import dense_crf
import numpy as np
import paddle
import paddle.nn.functional as F
from children import memory_of
from harness import assert_close, compare

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.deploy.engine import open_engine
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.tools.inspect_model.network import inspect_network
from suites.evaluate import network, new_network, plain_paddle

PEER = "plain loop"
CLASSES = 19
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
WINDOW, STRIDE = (769, 769), (513, 513)
# (height, width): the scales of a smaller picture, since one pass over the large one at scale 1.75
# would take most of a minute.
AUGMENTED, SLID, SMALL = (360, 480), (1024, 2048), (48, 64)
# Probabilities; logits of up to 20 in float32 in another order, through a softmax.
TOLERANCE = 1e-3


def picture(size):
    """float32 [1, 3, H, W], normalised."""
    image = dense_crf.load_image(None, size).astype(np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None] / 127.5 - 1)


def plain_scales(model, image):
    total = None
    for scale in SCALES:
        size = [int(side * scale + 0.5) for side in image.shape[2:]]
        scaled = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        for flip in (False, True):
            logits = infer_logits(model, paddle.flip(scaled, [3]) if flip else scaled)
            logits = paddle.flip(logits, [3]) if flip else logits
            logits = F.interpolate(
                logits, size=image.shape[2:], mode="bilinear", align_corners=False
            )
            probabilities = F.softmax(logits, axis=1)
            total = probabilities if total is None else total + probabilities
    return total / (2 * len(SCALES))


def plain_windows(model, image, crop, stride):
    height, width = image.shape[2:]
    rows = infer.window_starts(height, crop[1], stride[1])
    columns = infer.window_starts(width, crop[0], stride[0])
    total = paddle.zeros([1, CLASSES, height, width])
    count = paddle.zeros([1, 1, height, width])
    for y in rows:
        for x in columns:
            place = slice(y, y + crop[1]), slice(x, x + crop[0])
            window = image[:, :, place[0], place[1]]
            total[:, :, place[0], place[1]] += infer_logits(model, window)
            count[:, :, place[0], place[1]] += 1
    return total / count


def labelled(scores):
    """The labels, int32 [H, W], and the scores, float32 [K, H, W]."""
    if isinstance(scores, paddle.Tensor):
        return paddle.argmax(scores, axis=1, dtype="int32").numpy()[0], scores.numpy()[0]
    return infer.labels_and_scores(scores, [])[0][0], scores[0]


def work_of(kind, name, model, engine, image, crop, stride):
    """The piece of work: `kind` "scales" or "windows", ours (None) or the peer's."""

    def run():
        with paddle.no_grad():
            if name is None and kind == "scales":
                return labelled(infer.aug_probabilities(engine, image, SCALES, True))
            if name is None:
                return labelled(infer.slide_logits(engine, image, crop, stride))
            with plain_paddle():
                tensor = paddle.to_tensor(image)
                if kind == "scales":
                    return labelled(plain_scales(model, tensor))
                return labelled(plain_windows(model, tensor, crop, stride))

    return run


@contextlib.contextmanager
def prepared(kind, small):
    """Model, engine, image, crop and stride."""
    size = SMALL if small else {"scales": AUGMENTED, "windows": SLID}[kind]
    crop, stride = ((32, 32), (24, 24)) if small else (WINDOW, STRIDE)
    image = picture(size)
    model = network(CLASSES, small, np.concatenate([image, -image])[:, :, :256, :256])
    with open_engine(model, image[0], "paddle") as engine:
        yield model, engine, image, crop, stride


def memory_work(kind, name, small):
    """For `children.peak_memory`."""
    paddle.set_device("cpu")
    stack = contextlib.ExitStack()  # left open until the process ends
    return work_of(kind, name, *stack.enter_context(prepared(kind, small)))


def passes(kind, image, crop, stride):
    """[(height, width), ...] of what goes through the network."""
    height, width = image.shape[2:]
    if kind == "scales":
        sizes = [(int(height * s + 0.5), int(width * s + 0.5)) for s in SCALES]
        return sizes * 2
    rows = infer.window_starts(height, crop[1], stride[1])
    return [crop[::-1]] * len(rows) * len(infer.window_starts(width, crop[0], stride[0]))


def check(mine, theirs, name):
    assert_close(f"scores, {name}", mine[1], theirs[1], TOLERANCE * max(1, np.abs(mine[1]).max()))
    second, best = np.partition(mine[1], -2, axis=0)[-2:]
    clear = best - second > 2 * TOLERANCE * max(1, np.abs(mine[1]).max())
    assert_close(f"classes, {name}", mine[0][clear], theirs[0][clear], 0)


def rows(options):
    """Two turns at most, since one takes half a minute."""
    options = type(options)(min(options.runs, 2), options.small, options.rates)
    for kind, text in (("scales", "six scales, flips"), ("windows", "windows")):
        with prepared(kind, options.small) as (model, engine, image, crop, stride):
            height, width = image.shape[2:]
            work = sum(
                inspect_network(lambda: new_network(CLASSES, options.small), size).multiply_adds
                for size in passes(kind, image, crop, stride)
            )
            arguments = model, engine, image, crop, stride
            yield from compare(
                f"{width}x{height}, {text}",
                work_of(kind, None, *arguments),
                {PEER: work_of(kind, PEER, *arguments)},
                check,
                options,
                goals={PEER: "1.5"},
                floor=options.rates.floor(operations=2 * work),
                # With --small it would be a third export.
                memory=None
                if options.small
                else lambda name, kind=kind: memory_of(
                    options, "suites.multiscale", "memory_work", kind, name, False
                ),
            )

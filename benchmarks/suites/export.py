# SPDX-License-Identifier: Apache-2.0
"""An exported network from image file to mask file, beside other runtimes and plain dygraph.

DeepLabV3+ on ResNet50_vd at stride 8, 19 classes, with the class of each pixel taken in the
network. All go through this package's reading, preprocessing and writing. Weights do not matter,
but batch norm's statistics are the picture's, so that every layer has values of order one.
"""

import functools
import tempfile

import atrous_property
import cv2
import dense_crf
import numpy as np
import paddle
from children import Worker
from harness import Unequal, compare, peer

from paddleseg_deeplab.core.export import export
from paddleseg_deeplab.core.forward import infer_logits
from paddleseg_deeplab.core.inspect_network import inspect_network
from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.transforms import Compose, Normalize, pipeline
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.predictors import InferenceSettings, open_predictor

CLASSES = 19
SIZES = ((512, 512), (1024, 512))  # (width, height)
SMALL = ((64, 48),)
ORT, OPENVINO, DYGRAPH = "ONNX Runtime", "OpenVINO", "dygraph, Paddle's defaults"
GOALS = {ORT: "1 (the faster)", OPENVINO: "1 (the faster)", DYGRAPH: "12"}
# A pixel's class may differ only where the trained network's two best scores are
# nearer than this share of its largest score. Runtimes add up in different orders: of random
# weights the exported network's scores were off by up to 6e-5 of the largest.
NEAR = 2e-4


def build(small):
    """The network with new weights."""
    name, stride, width = ("ResNet18_vd", 16, 16) if small else ("ResNet50_vd", 8, 256)
    backbone = manager.BACKBONES[name](output_stride=stride, multi_grid=[1, 2, 4])
    return DeepLabV3P(CLASSES, backbone, aspp_out_channels=width)


def prepare(model, sample):
    """Gives every layer values of order one, and the classes scores that seldom tie.

    Untrained scores tie in more pixels than export.py's check of classes allows for rounding, so
    each class is put two standard deviations above the one before.

    Returns:
        tuple: the scores, float32 [K, H, W], and how near two of them may be to tie.
    """

    def scores():
        with paddle.no_grad():
            return infer_logits(model, paddle.to_tensor(sample[None]))[0].numpy()

    # Two pictures: the pooled branch has one value of each.
    atrous_property.take_statistics(model, paddle.to_tensor(np.stack([sample, -sample])))
    plain = scores()
    layers = [x for x in model.sublayers() if isinstance(x, paddle.nn.Conv2D)]
    bias = next(x.bias for x in layers[::-1] if x.weight.shape[0] == CLASSES)
    steps = 2 * plain.std() * np.arange(CLASSES, dtype=np.float32)
    bias.set_value(bias + paddle.to_tensor(steps))
    return scores(), NEAR * float(np.abs(plain).max())


def compose():
    return Compose([Normalize()])


def file_to_file(run, image, mask):
    """A function that reads `image`, has `run` label the batch, writes `mask`, returns its path.

    Args:
        run (callable): float32 [1, 3, H, W] to integers [1, H, W].
    """
    steps = compose()

    def work():
        array, trans_info, _ = pipeline.preprocess(image, steps)
        labels = pipeline.labels_to_original(run(array[None])[0], trans_info)
        if not cv2.imwrite(mask, labels.astype(np.uint8)):
            raise OSError(f"{mask} cannot be written.")
        return mask

    return work


def dygraph(model):
    def run(batch):
        with paddle.no_grad():
            logits = infer_logits(model, paddle.to_tensor(batch))
            return paddle.argmax(logits, axis=1, dtype="int32").numpy()

    return run


def dygraph_work(small, weights, image, mask):
    """For `children.Worker`: the trained network in a process of its own."""
    paddle.set_device("cpu")
    model = build(small)
    model.set_state_dict(paddle.load(weights))
    model.eval()
    return file_to_file(dygraph(model), image, mask)


def openvino(path):
    """`run` of OpenVINO for an ONNX file, in float32, on as many threads."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": thread_count(), "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda batch: model([batch])[0]


def checker(scores, near):
    """Compares two mask files where the best of `scores`, float32 [K, H, W], is above by `near`."""
    second, best = np.partition(scores, -2, axis=0)[-2:]

    def check(mine, theirs, name):
        masks = [cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in (mine, theirs)]
        if masks[0].shape != best.shape or masks[1].shape != best.shape:
            raise Unequal(f"mask, {name}: sizes {masks[0].shape}, {masks[1].shape}, {best.shape}.")
        wrong = (masks[0] != masks[1]) & (best - second > near)
        if wrong.any():
            raise Unequal(f"mask, {name}: {wrong.sum()} pixels have another class.")

    return check


def make_peers(model, form, folder, sample, image):
    """(our format, ours, {name: function or `Missing`}); `form` as export.py's --format."""
    settings = InferenceSettings(cpu_threads=thread_count())
    info = export(model, f"{folder}/paddle", sample=sample, format=form)
    predictor = open_predictor(info, settings)

    @functools.lru_cache  # converted once
    def onnx():
        return export(model, f"{folder}/onnx", sample=sample, format="onnx")

    def ort():
        return file_to_file(open_predictor(onnx(), settings).run, image, f"{folder}/ort.png")

    def vino():
        return file_to_file(openvino(onnx().model_path), image, f"{folder}/openvino.png")

    ours = file_to_file(predictor.run, image, f"{folder}/ours.png")
    return info.format, ours, {ORT: peer(ort), OPENVINO: peer(vino)}


def rows(options):
    for width, height in SMALL if options.small else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            image, weights = f"{folder}/image.png", f"{folder}/model.pdparams"
            cv2.imwrite(image, dense_crf.load_image(None, (height, width))[..., ::-1])
            sample = pipeline.preprocess(image, compose())[0]
            paddle.seed(0)
            model = build(options.small)
            scores, near = prepare(model, sample)
            paddle.save(model.state_dict(), weights)
            # "auto" tries Paddle out in a child process.
            form = "legacy" if options.small else "auto"
            form, ours, peers = make_peers(model, form, folder, sample, image)
            work = inspect_network(lambda: build(options.small), (height, width)).multiply_adds
            arguments = options.small, weights, image, f"{folder}/dygraph.png"
            with Worker("suites.export", "dygraph_work", *arguments) as worker:
                yield from compare(
                    f"{width}x{height}, file to file, {form}",
                    ours,
                    {**peers, DYGRAPH: worker},
                    checker(scores, near),
                    options,
                    goals=GOALS,
                    floor=options.rates.floor(operations=2 * work),
                )

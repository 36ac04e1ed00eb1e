# SPDX-License-Identifier: Apache-2.0
"""An exported network from image file to mask file, beside other runtimes and plain dygraph.

DeepLabV3+ on ResNet50_vd at stride 8, 19 classes, with the class of each pixel taken in the
network. All go through this package's reading, preprocessing and writing. Weights do not matter,
but batch norm's statistics are the picture's, so that every layer has values of order one. Ours is
what export.py writes and infer.py runs, with its default settings and with those that a row names;
the peers run the same network converted to ONNX, with their own settings for float32 or bfloat16.
"""

import functools
import tempfile

import atrous_property
import cv2
import dense_crf
import numpy as np
import paddle
from children import Worker
from harness import Missing, Row, Unequal, peer, put_ratio, take_turns, timed

from paddleseg_deeplab import registry
from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.prediction import restore
from paddleseg_deeplab.tools.inspect_model.network import inspect_network
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.errors import UserError

CLASSES = 19
SIZES = ((512, 512), (1024, 512))  # (width, height)
SMALL = ((64, 48),)
ORT, OPENVINO, DYGRAPH = "ONNX Runtime", "OpenVINO", "dygraph, Paddle's defaults"
OPENVINO_BF16 = "OpenVINO, bf16"
# infer.py's flags: (runtime, precision).
OURS = {
    "": ("auto", "fp32"),
    "--runtime openvino": ("openvino", "fp32"),
    "--precision bf16": ("auto", "bf16"),
    "--runtime openvino --precision bf16": ("openvino", "bf16"),
}
PEERS = {"fp32": (ORT, OPENVINO, DYGRAPH), "bf16": (OPENVINO_BF16, DYGRAPH)}
GOALS = {ORT: "1 (the faster)", OPENVINO: "1 (the faster)", DYGRAPH: "12"}
# A pixel's class may differ only where the trained network's two best scores are
# nearer than this share of its largest score. Runtimes add up in different orders: of random
# weights the exported network's scores were off by up to 6e-5 of the largest. bfloat16 keeps 8 bits
# of a number: a layer rounds by up to 0.2 %, and 60 of them, untrained, moved a score by up to 11 %
# of the largest, so that two of them come up to 22 % nearer.
NEAR = {"fp32": 2e-4, "bf16": 0.3}


def build(small):
    """The network with new weights."""
    name, stride, width = ("ResNet18_vd", 16, 16) if small else ("ResNet50_vd", 8, 256)
    backbone = registry.BACKBONES[name](output_stride=stride, multi_grid=[1, 2, 4])
    return DeepLabV3P(CLASSES, backbone, aspp_out_channels=width)


def prepare(model, sample):
    """Gives every layer values of order one, and the classes scores that seldom tie.

    Untrained scores tie in more pixels than export.py's check of classes allows for rounding, so
    each class is put a fifth of a standard deviation above the one before.

    Returns:
        np.ndarray: the scores, float32 [K, H, W].
    """

    def scores():
        with paddle.no_grad():
            return infer_logits(model, paddle.to_tensor(sample[None]))[0].numpy()

    # Most units pass their ReLU. At a shift of 0 a random network of 60 layers is chaotic: it makes
    # another picture of bfloat16's rounding, which a trained one does not.
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer.bias.set_value(paddle.ones_like(layer.bias))
    # Two pictures: the pooled branch has one value of each.
    atrous_property.take_statistics(model, paddle.to_tensor(np.stack([sample, -sample])))
    plain = scores()
    layers = [x for x in model.sublayers() if isinstance(x, paddle.nn.Conv2D)]
    bias = next(x.bias for x in layers[::-1] if x.weight.shape[0] == CLASSES)
    steps = 0.2 * plain.std() * np.arange(CLASSES, dtype=np.float32)
    bias.set_value(bias + paddle.to_tensor(steps))
    return scores()


def compose():
    return Compose([Normalize()])


def file_to_file(run, image, mask):
    """A function that reads `image`, has `run` label the batch, writes `mask`, returns its path.

    Args:
        run (callable): float32 [1, 3, H, W] to integers [1, H, W].
    """
    steps = compose()

    def work():
        array, trans_info, _ = restore.preprocess(image, steps)
        labels = restore.labels_to_original(run(array[None])[0], trans_info)
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


def openvino(path, precision):
    """`run` of OpenVINO for an ONNX file, on as many threads; ``precision`` as it calls it."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": thread_count(), "INFERENCE_PRECISION_HINT": precision}
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


def make_ours(model, form, folder, sample, image):
    """(our format, {flags: function or `Missing`}); `form` as export.py's --format."""
    info = export(model, f"{folder}/paddle", sample=sample, format=form)

    def ours(number, runtime, precision):
        settings = RuntimeSettings(cpu_threads=thread_count(), runtime=runtime, precision=precision)
        runtime = open_runtime(info, settings)
        return file_to_file(runtime.run, image, f"{folder}/ours{number}.png")

    functions = {}
    for number, (flags, (runtime, precision)) in enumerate(OURS.items()):
        try:
            functions[flags] = ours(number, runtime, precision)
        except UserError as error:  # not installed, or a processor without bf16
            if not flags:
                raise
            functions[flags] = Missing(str(error))
    return info.format, functions


def make_peers(model, folder, sample, image, bf16):
    """{name: function or `Missing`}; ``bf16``: whether the processor has it."""

    @functools.lru_cache  # converted once
    def onnx():
        # One output: OpenVINO called from here copies all that there are.
        return export(model, f"{folder}/onnx", sample=sample, format="onnx", output_op="argmax")

    def ort():
        settings = RuntimeSettings(cpu_threads=thread_count(), runtime="onnxruntime")
        return file_to_file(open_runtime(onnx(), settings).run, image, f"{folder}/ort.png")

    def vino(precision):
        run = openvino(onnx().model_path, precision)
        return file_to_file(run, image, f"{folder}/openvino-{precision}.png")

    peers = {ORT: peer(ort), OPENVINO: peer(lambda: vino("f32"))}
    none = Missing("the processor has no bfloat16")
    peers[OPENVINO_BF16] = peer(lambda: vino("bf16")) if bf16 else none
    return peers


def check_all(functions, scores):
    """Runs each of {(name, precision): function} once; raises `Unequal` where masks differ."""
    largest = float(np.abs(scores).max())
    (_, first), *_ = functions.items()
    expected = timed(first)[1]
    for (name, precision), run in functions.items():
        checker(scores, NEAR[precision] * largest)(expected, timed(run)[1], name)


def compare_all(work, ours, peers, scores, options, floor):
    """A row for each of our settings that can run here and each of its peers, all in turn.

    Args:
        work (str): For the rows.
        ours, peers (dict[str, callable | Missing]): By flags, by name.
        scores (np.ndarray): Of the trained network, float32 [K, H, W].
        options (Options): How often.
        floor (float): Seconds, in float32.
    """
    ours = {flags: run for flags, run in ours.items() if not isinstance(run, Missing)}
    present = {name: run for name, run in peers.items() if not isinstance(run, Missing)}
    functions = {(flags, OURS[flags][1]): run for flags, run in ours.items()}
    for name, run in present.items():
        functions[name, "bf16" if name == OPENVINO_BF16 else "fp32"] = run
    check_all(functions, scores)
    seconds = take_turns(functions, options.runs, options.settle)
    seconds = {name: values for (name, _), values in seconds.items()}
    for flags in ours:
        precision = OURS[flags][1]
        for name in PEERS[precision]:
            row = Row(work + (f", {flags}" if flags else ""), name, our_seconds=seconds[flags])
            row.ours, row.goal = float(np.median(seconds[flags])), GOALS.get(name, "")
            row.floor = floor if precision == "fp32" else None
            if name in present:
                put_ratio(row, seconds[name])
            else:
                row.note = f"not measured: {peers[name].why}"
            yield row


def rows(options):
    for width, height in SMALL if options.small else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            image, weights = f"{folder}/image.png", f"{folder}/model.pdparams"
            cv2.imwrite(image, dense_crf.load_image(None, (height, width))[..., ::-1])
            sample = restore.preprocess(image, compose())[0]
            paddle.seed(0)
            model = build(options.small)
            scores = prepare(model, sample)
            paddle.save(model.state_dict(), weights)
            form = "legacy" if options.small else "auto"
            form, ours = make_ours(model, form, folder, sample, image)
            bf16 = not isinstance(ours["--precision bf16"], Missing)
            peers = make_peers(model, folder, sample, image, bf16)
            work = inspect_network(lambda: build(options.small), (height, width)).multiply_adds
            arguments = options.small, weights, image, f"{folder}/dygraph.png"
            with Worker("suites.export", "dygraph_work", *arguments) as worker:
                yield from compare_all(
                    f"{width}x{height}, file to file, {form}",
                    ours,
                    {**peers, DYGRAPH: worker},
                    scores,
                    options,
                    options.rates.floor(operations=2 * work),
                )

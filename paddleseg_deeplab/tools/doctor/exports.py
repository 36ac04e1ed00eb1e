# SPDX-License-Identifier: Apache-2.0
"""A small network exported in each format, and run in each way, against dygraph on a device."""

import importlib.util
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddleseg_deeplab.deploy import tensorrt
from paddleseg_deeplab.deploy.compare import compare_outputs
from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import FORMATS, RuntimeSettings
from paddleseg_deeplab.deploy.tf32 import without_tf32
from paddleseg_deeplab.models import DeepLabV3P
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.models.layers import ConvBNReLU
from paddleseg_deeplab.tools.doctor.device import is_cpu, using
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed, skipped

LIMIT = 1e-4  # of the largest logit: float32 sums in another order give about 1e-6
# Shares of pixels of another class: float16 keeps 11 bits, TensorRT picks kernels that sum in other
# orders, int8 keeps 8 bits.
HALF_SHARE, TENSORRT_SHARE, INT8_SHARE = 2e-3, 1e-3, 2e-2
_ONNX = ("paddle2onnx", "onnx", "onnxruntime")
_SIZE = (96, 128)
_FREE = [None, 3, None, None]
_LONGEST = 300  # characters of an error


class _Backbone(nn.Layer):
    """Features of strides 4 and 8, with a dilated convolution."""

    def __init__(self):
        super().__init__()
        self.data_format = "NCHW"
        self.feat_channels, self.feat_strides = [8, 16], [4, 8]
        self.stem = ConvBNReLU(3, 8, 3, stride=2)
        self.low = ConvBNReLU(8, 8, 3, stride=2)
        self.high = ConvBNReLU(8, 16, 3, stride=2)
        self.dilated = ConvBNReLU(16, 16, 3, dilation=2)

    def forward(self, x):
        low = F.max_pool2d(self.low(self.stem(x)), 3, stride=1, padding=1)
        return [low, self.dilated(self.high(low))]


def small_network() -> DeepLabV3P:
    """DeepLabV3+ with 5 classes on a small backbone, on the current device, in evaluation mode.

    Weights and statistics are drawn from a seed, so that batch norms do something and every machine
    has the same.
    """
    network = DeepLabV3P(5, _Backbone(), (0, 1), aspp_out_channels=32)
    rng = np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        shape = tensor.shape
        if name.endswith("_variance"):
            values = rng.uniform(0.3, 2.0, shape)
        elif len(shape) == 4:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        tensor.set_value(values.astype("float32"))
    network.eval()
    return network


def sample() -> np.ndarray:
    """A picture, float32 [3, 96, 128]: soft blobs and noise."""
    rng = np.random.default_rng(1)
    coarse = rng.standard_normal((3, 6, 8), np.float32).repeat(16, 1).repeat(16, 2)
    return coarse + 0.3 * rng.standard_normal((3, *_SIZE), np.float32)


def check_exports(device: str = "cpu", formats: Sequence[str] = FORMATS) -> list[Row]:
    """A row for each format: the exported network's logits on the device against dygraph's.

    Args:
        device (str): "cpu", "gpu" or "gpu:N"; ONNX files are compared on the CPU.
        formats (Sequence[str]): Of "pir", "legacy", "onnx".

    Returns:
        list[Row]: PASS where no logit differs by more than `LIMIT` times the largest.
    """
    with using(device):
        return [_export_row(small_network(), form, device) for form in formats]


def check_runtimes(device: str = "cpu") -> list[Row]:
    """A row for each way to run an exported network on the device, against dygraph in float32.

    Args:
        device (str): "cpu", "gpu" or "gpu:N".

    Returns:
        list[Row]: float32 by `LIMIT`, the others by their share of pixels of another class; SKIP
            for what the device or the machine lacks.
    """
    on_cpu = is_cpu(device)
    rows = []
    with using(device):
        network = small_network()
        for name, form, runtime, packages in (
            ("Paddle Inference, fp32", "legacy", "paddle", ()),
            ("ONNX Runtime, fp32", "onnx", "onnxruntime", _ONNX),
            ("OpenVINO, fp32", "legacy", "openvino", ("openvino",)),
        ):
            missing = _missing(packages)
            # Rows of the processor, whatever the device is.
            settings = RuntimeSettings(device=device if form == "legacy" else "cpu")
            settings.runtime = runtime
            if missing:
                rows.append(skipped(name, f"{missing} is not installed"))
            elif runtime == "openvino" and not on_cpu:
                rows.append(skipped(name, "runs on a CPU only"))
            else:
                rows.append(run_row(name, network, settings, form=form))
        rows += _gpu_rows(network, device)
    return rows


def _gpu_rows(network, device):
    names = {
        "Paddle Inference, fp16": ({"precision": "fp16"}, _FREE, HALF_SHARE),
        "TensorRT, fp32, fixed size": ({"use_trt": True}, [1, 3, *_SIZE], TENSORRT_SHARE),
        "TensorRT, fp32, free sizes": ({"use_trt": True}, _FREE, TENSORRT_SHARE),
        "TensorRT, fp16, free sizes": (
            {"use_trt": True, "precision": "fp16"},
            _FREE,
            HALF_SHARE + TENSORRT_SHARE,
        ),
        "TensorRT, int8, free sizes": (
            {"use_trt": True, "precision": "int8"},
            _FREE,
            INT8_SHARE,
        ),
    }
    if is_cpu(device):
        return [skipped(name, "needs a GPU") for name in names]
    rows = []
    for name, (settings, shape, share) in names.items():
        settings = RuntimeSettings(device=device, batch_size=2, **settings)
        rows.append(run_row(name, network, settings, shape=shape, share=share))
    return rows


def run_row(
    name: str,
    network: nn.Layer,
    settings: RuntimeSettings,
    *,
    form: str = "legacy",
    shape: Sequence[int | None] | None = None,
    share: float | None = None,
) -> Row:
    """Exports the network, runs the export as the settings say, and compares.

    Args:
        name (str): Of the row.
        network (nn.Layer): In evaluation mode, on the current device.
        settings (RuntimeSettings): How to run it.
        form (str): Format of the export.
        shape (list): Its input shape; sizes are free by default.
        share (float | None): Pixels of another class that are allowed, 0 to 1; None: `LIMIT` on the
            logits instead.

    Returns:
        Row: FAIL also where anything raises, with what it said.
    """
    shape = shape or _FREE
    batches = _batches(shape)
    try:
        with tempfile.TemporaryDirectory() as folder, without_tf32(), paddle.no_grad():
            target = "cpu" if is_cpu(settings.device) else "gpu"
            info = export(
                network,
                os.path.join(folder, "exported"),
                sample=sample(),
                input_shape=shape,
                output_op="none",
                format=form,
                target=target,
            )
            outputs = _run(info, settings, batches)
            logits = [infer_logits(network, paddle.to_tensor(b)).numpy() for b in batches]
        found = [compare_outputs(a, np.asarray(b), "none") for a, b in zip(logits, outputs)]
    except Exception as error:  # each runtime has its own exceptions
        return failed(name, _reason(error))
    if share is None:
        return _logits_row(name, found)
    worst = max(f["argmax_pixels_differing"] for f in found)
    finite = all(np.isfinite(f["max_abs_logits_difference"]) for f in found)
    row = passed if finite and worst <= share else failed
    return row(name, f"{worst:.2%} of the pixels have another class, {share:.2%} are allowed")


def _run(info, settings, batches):
    """Outputs for the batches; TensorRT's shapes, where sizes are free, and its table for int8 are
    made before."""
    if tensorrt.choose_shapes(info, settings, None in info.input_shape):
        with tensorrt.learning(settings):
            _outputs(info, settings, batches)
    if settings.precision == "int8":
        _outputs(info, settings, batches)  # collects, and writes the table when it goes
        if not tensorrt.tell_of_calibration(info):
            raise RuntimeError("the first run has written no calibration table")
    return _outputs(info, settings, batches)


def _outputs(info, settings, batches):
    runtime = open_runtime(info, settings)
    return [runtime.run(batch) for batch in batches]


def _batches(shape):
    """One batch of a fixed size, or two of different ones; float32 [N, 3, H, W]."""
    picture = sample()
    first = picture[None]
    if None not in shape:
        return [first]
    return [first, np.stack([picture, picture[:, :, ::-1]])[:, :, :65, :97]]


def _export_row(network, form, device):
    name = f"export, {form}"
    missing = _missing(_ONNX) if form == "onnx" else None
    if missing:
        return skipped(name, f"{missing} is not installed")
    target = "cpu" if is_cpu(device) else "gpu"
    try:
        with tempfile.TemporaryDirectory() as folder:
            checks = export(
                network,
                os.path.join(folder, "exported"),
                sample=sample(),
                output_op="none",
                format=form,
                target=target,
            ).checks
    except Exception as error:  # Paddle's and paddle2onnx' own among them
        return failed(name, _reason(error))
    return _logits_row(name, [checks])


def _logits_row(name, found):
    difference = max(f["max_abs_logits_difference"] for f in found)
    share = difference / max(f["largest_logit"] for f in found)
    row = passed if share <= LIMIT else failed  # a NaN is beyond every limit
    return row(name, f"a logit differs by {share:.1e} of the largest, {LIMIT:.0e} is allowed")


def _missing(packages):
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def _reason(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."

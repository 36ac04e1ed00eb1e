# SPDX-License-Identifier: Apache-2.0
"""Compares an exported network with the trained one on a real input."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.graph_input import as_trained, rounded
from paddleseg_deeplab.deploy.runtimes import Runtime, open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.deploy.tf32 import without_tf32
from paddleseg_deeplab.models.forward import evaluation_mode, infer_logits
from paddleseg_deeplab.utils.logger import logger

# Of logits up to 1, and of larger ones in proportion: float32 keeps about seven digits whatever
# the size of a number, so that two orders of the same sums differ by a share of it.
MAX_LOGIT_DIFFERENCE = 1e-3
MAX_LABEL_SHARE = 1e-4  # of pixels whose argmax differs
# Where the size is free, the comparison takes at most a picture of this side: enough to compare,
# and the trained network is slow on a CPU.
_LARGEST_SIDE = 512


class ExportMismatch(RuntimeError):
    """The exported network does not give what the trained one gives.

    Args:
        reason (str): What differs.
        advice (str): What to do; for `export` itself, whose caller has files and formats.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason} {advice}".rstrip())
        self.reason = reason


def sample_batches(sample: np.ndarray, input_shape: Sequence[int | None]) -> list[np.ndarray]:
    """Inputs to compare with, made from one picture.

    Args:
        sample (np.ndarray): float32 [C, H, W].
        input_shape (list[int | None]): [N, C, H, W]; None where free.

    Returns:
        list[np.ndarray]: float32 [N, C, H, W] in the shapes that the export takes: the fixed one;
        or the picture (its middle, if large), and, where something is free, a second batch of an
        odd size and two pictures, the second one mirrored.
    """
    n, _, h, w = input_shape
    first = _fit(sample, h or min(sample.shape[1], _LARGEST_SIDE), w, w is None)
    batches = [_stack(first, n or 1)]
    if None in (n, h, w):
        # Smaller: the trained network's passes are most of an export's time on a CPU.
        height = h or max(first.shape[1] // 2, 32) | 1
        width = w or max(first.shape[2] * 2 // 5, 32) | 1
        batches.append(_stack(_fit(first, height, width, False), n or 2))
    return batches


def _fit(chw, height, width, free_width):
    width = min(chw.shape[2], _LARGEST_SIDE) if free_width else width
    h, w = chw.shape[1:]
    if h >= height and w >= width:  # the middle keeps the picture's own texture
        top, left = (h - height) // 2, (w - width) // 2
        return chw[:, top : top + height, left : left + width]
    planes = [cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in chw]
    return np.stack(planes)


def _stack(chw, n):
    return np.stack([chw if i % 2 == 0 else chw[:, :, ::-1] for i in range(n)]).astype(np.float32)


def compare_export(
    model: nn.Layer, info: DeployInfo, sample: np.ndarray, device: str = "cpu"
) -> dict[str, Any]:
    """Runs both networks and raises where they differ too much.

    Both compute in full float32, on a GPU too: see `deploy.tf32`. In TF32 the class of 3 to 5 of
    10,000 pixels would differ, since the exported network has batch norms in its convolutions.

    Args:
        model (nn.Layer): The trained network, in eval mode.
        info (DeployInfo): The exported folder.
        sample (np.ndarray): float32 [C, H, W].
        device (str): Where the exported network runs; an ONNX file runs on the CPU.

    Returns:
        dict: ``max_abs_logits_difference`` (of logits) or ``max_abs_probability_difference``
        ("softmax"), ``argmax_pixels_differing`` (a share, 0 to 1), ``largest_logit`` (of the
        trained network, as an absolute value) and ``inputs`` (shapes).

    Raises:
        ExportMismatch: a logit differs by more than `MAX_LOGIT_DIFFERENCE` times the largest logit
            (or times 1, if that is more), a probability by what that makes of it, or the class of
            more than `MAX_LABEL_SHARE` of the pixels (and of more than one).
    """
    settings = RuntimeSettings(device=device, runtime="paddle")
    if info.format == "onnx":
        settings = RuntimeSettings(runtime="onnxruntime")
    with without_tf32():
        runtime = open_runtime(info, settings)
        checks = differences(model, runtime, info, sample)
    text = ", ".join(f"{k} {v:.3g}" for k, v in checks.items() if k != "inputs")
    onednn = " with oneDNN" if runtime.mkldnn else ""
    logger.info(
        "%s%s against the trained model, on %s: %s",
        runtime.name,
        onednn,
        checks["inputs"],
        text,
    )
    judge(checks, info)
    return checks


def differences(
    model: nn.Layer, runtime: Runtime, info: DeployInfo, sample: np.ndarray
) -> dict[str, Any]:
    """Runs both networks on `sample_batches`.

    Args:
        model, info, sample: As of `compare_export`; the model may be in any mode.
        runtime: Of `deploy.runtimes`, which runs the export.

    Returns:
        dict: As of `compare_export`.

    Raises:
        ExportMismatch: The output has another shape or type than ``info.output_op`` promises.
    """
    batches = sample_batches(sample, info.input_shape)
    if info.normalize is not None:
        batches = [rounded(batch) for batch in batches]
    with evaluation_mode(model), paddle.no_grad():
        results = [
            found
            for batch in batches
            for found in _differences_of(
                infer_logits(model, paddle.to_tensor(as_trained(info, batch))).numpy(),
                runtime,
                info,
                batch,
            )
        ]
    checks: dict[str, Any] = {"inputs": [list(b.shape) for b in batches]}
    for key in dict.fromkeys(key for found in results for key in found):
        checks[key] = float(np.max([found[key] for found in results if key in found]))
    return checks


def _differences_of(logits, runtime, info, batch):
    """`compare_outputs` of each output."""
    if not info.with_logits:
        return [compare_outputs(logits, np.asarray(runtime.run(batch)), info.output_op)]
    pairs = zip(runtime.outputs(batch, (0, 1)), ("argmax", "none"))
    return [compare_outputs(logits, np.asarray(output), op) for output, op in pairs]


def judge(checks: Mapping[str, Any], info: DeployInfo) -> None:
    """Raises the `ExportMismatch` that `compare_export` tells of, where `differences` are large."""
    # Of a picture below 10,000 pixels one may differ: its two classes tie but for rounding, else
    # the margin tells.
    pixels = min((n * h * w for n, _, h, w in checks.get("inputs", [])), default=float("inf"))
    label_limit = max(MAX_LABEL_SHARE, 1 / pixels)
    largest = checks.get("largest_logit", 1.0)
    scale = max(1.0, largest) if np.isfinite(largest) else 1.0
    logit_limit = MAX_LOGIT_DIFFERENCE * scale
    # Logits that differ by d each move a probability by d / 2 at most.
    probability_limit = MAX_LOGIT_DIFFERENCE * max(1.0, scale / 2)
    problems = [
        f"{key} is {checks[key]:.3g}, at most {limit:g} is allowed"
        for key, limit in (
            ("max_abs_logits_difference", logit_limit),
            ("max_abs_probability_difference", probability_limit),
            ("max_margin_of_differing_pixels", 2 * logit_limit),
            ("argmax_pixels_differing", label_limit),
        )
        # Not "greater than": a NaN is beyond every limit.
        if key in checks and not checks[key] <= limit
    ]
    if problems:
        raise ExportMismatch(
            f"The exported network ({info.format}) differs from the trained one: "
            f"{'; '.join(problems)}.",
            f"Nothing was written. {_hint(checks)}",
        )


def _hint(checks):
    if checks.get("argmax_pixels_differing") == 0:
        return (
            "No pixel's class differs: where classes are all you need, give --output_op argmax; "
            "else try another --format."
        )
    return "Try another --format."


def compare_outputs(logits: np.ndarray, output: np.ndarray, output_op: str) -> dict[str, float]:
    """Differences between the trained network's logits and the exported network's output.

    Args:
        logits (np.ndarray): float32 [N, num_classes, H, W].
        output (np.ndarray): As ``output_op`` says.
        output_op (str): "argmax", "softmax" or "none".

    Returns:
        dict[str, float]: See `compare_export`; for "argmax" also
        ``max_margin_of_differing_pixels``: how far apart, at most, the trained network's logits of
        the two classes are where the labels differ. Logits that agree within d swap two classes
        only where these are within 2 d.

    Raises:
        ExportMismatch: another shape or type than ``output_op`` promises.
    """
    n, _, h, w = logits.shape
    expected = ((n, h, w), "int32") if output_op == "argmax" else (logits.shape, "float32")
    if (output.shape, output.dtype.name) != expected:
        raise ExportMismatch(
            f"The exported network gives {output.dtype.name} {output.shape}, not {expected}."
        )
    labels = logits.argmax(axis=1)
    theirs = output if output_op == "argmax" else output.argmax(axis=1)
    differing = labels != theirs
    found = {}
    if output_op == "none":
        found["max_abs_logits_difference"] = float(np.abs(output - logits).max())
    elif output_op == "softmax":
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        found["max_abs_probability_difference"] = float(np.abs(output - probabilities).max())
    else:
        chosen = np.take_along_axis(logits, theirs[:, None].astype(np.int64), axis=1)[:, 0]
        margin = (logits.max(axis=1) - chosen)[differing]
        found["max_margin_of_differing_pixels"] = float(margin.max()) if margin.size else 0.0
    found["argmax_pixels_differing"] = float(differing.mean())
    found["largest_logit"] = float(np.abs(logits).max())
    return found

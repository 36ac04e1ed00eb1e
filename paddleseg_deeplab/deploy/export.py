# SPDX-License-Identifier: Apache-2.0
"""Writes a trained network for deployment, loads what was written, and compares the two.

What is written is a rearranged copy, see `deploy.fold`.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddleseg_deeplab import __version__
from paddleseg_deeplab.deploy import deploy_yaml, paddlex
from paddleseg_deeplab.deploy.compare import ExportMismatch, compare_export
from paddleseg_deeplab.deploy.deploy_yaml import MODEL_FILES, OUTPUT_OPS, DeployFacts, DeployInfo
from paddleseg_deeplab.deploy.fold import folded_copy
from paddleseg_deeplab.deploy.tensorrt import CACHE_FOLDER, SHAPE_FILE
from paddleseg_deeplab.models.forward import evaluation_mode, run_model
from paddleseg_deeplab.postprocess.settings import complete_settings
from paddleseg_deeplab.prediction.outputs import check_save_dir
from paddleseg_deeplab.transforms import functional
from paddleseg_deeplab.utils.errors import UserError, import_extra
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights.load import check_finite_weights

__all__ = ["ExportMismatch", "export", "resolve_format"]

FORMAT_CHOICES = ("auto", *deploy_yaml.FORMATS)
TARGETS = ("cpu", "gpu")
# The first opset with every operator of these networks that TensorRT 8 reads as well.
_ONNX_OPSET = 13
_INT32 = 2  # framework.proto's number of the type, which the old arg_max operator takes


class ExportedModel(nn.Layer):
    """The network as it is deployed: NCHW in, one or two tensors out, with the output operator.

    Args:
        model (nn.Layer): The trained network; of an NHWC one input and output are transposed once.
        output_op (str): "argmax", "softmax" or "none".
        with_logits (bool): Give the logits after the labels of "argmax".
    """

    def __init__(self, model: nn.Layer, output_op: str, with_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        self.output_op, self.with_logits = output_op, with_logits
        self.is_nhwc = getattr(model, "data_format", "NCHW") == "NHWC"

    # Paddle's to_static counts on the name `self` for a method's first parameter.
    def forward(self, x: paddle.Tensor) -> paddle.Tensor | tuple[paddle.Tensor, ...]:
        """float32 [N, C, H, W] to int32 [N, H, W] or float32 [N, num_classes, H, W], or both."""
        logits = run_model(self.model, x)[0]
        if self.is_nhwc:
            logits = logits.transpose((0, 3, 1, 2))
        if self.output_op == "argmax":
            labels = _argmax(logits)
            return (labels, logits) if self.with_logits else labels
        if self.output_op == "softmax":
            return F.softmax(logits, axis=1)
        return logits


class PictureInput(nn.Layer):
    """An `ExportedModel` that takes pictures as they are: uint8 [N, H, W, C].

    Args:
        network (ExportedModel): Takes float32 [N, C, H, W].
        channels (int): Of a picture.
        normalize (dict): ``mean`` and ``std`` of the Normalize that it does, the numbers of
            `functional.normalize` in the same order: one multiplication and one addition.
    """

    def __init__(self, network: nn.Layer, channels: int, normalize: dict[str, list[float]]) -> None:
        super().__init__()
        self.network = network
        scale, shift = functional.normalization(channels, **normalize)
        self.register_buffer("scale", paddle.to_tensor(scale.reshape(1, -1, 1, 1)))
        self.register_buffer("shift", paddle.to_tensor(shift.reshape(1, -1, 1, 1)))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """uint8 [N, H, W, C] to what the network gives."""
        planes = x.astype("float32").transpose((0, 3, 1, 2))
        return self.network(planes * self.scale + self.shift)


@paddle.jit.not_to_static
def _argmax(logits):
    """int32 [N, H, W] from [N, C, H, W].

    An operator added by hand for the legacy format (paddle_quirks: argmax_in_the_legacy_format).
    """
    try:
        return paddle.argmax(logits, axis=1, dtype="int32")
    except TypeError:
        from paddle.base.layer_helper import LayerHelper

        helper = LayerHelper("arg_max")
        out = helper.create_variable_for_type_inference("int32")
        attrs = {"axis": 1, "keepdims": False, "flatten": False, "dtype": _INT32}
        helper.append_op(type="arg_max", inputs={"X": logits}, outputs={"Out": out}, attrs=attrs)
        return out


def resolve_format(form: str = "auto", target: str = "cpu") -> str:
    """The format to write: "pir", "legacy" or "onnx".

    Args:
        form (str): One of these, or "auto": on a CPU legacy, where this Paddle can write it, since
            PIR takes several times as long (paddle_quirks: pir_with_onednn); else PIR, where it
            has that.
        target (str): "cpu" or "gpu"; read for "auto" only.

    Raises:
        UserError: an unknown name, or PIR asked of a Paddle without it.
    """
    if form not in FORMAT_CHOICES:
        raise UserError(f"--format {form}: use one of {', '.join(FORMAT_CHOICES)}.")
    if target not in TARGETS:
        raise UserError(f"--target {target}: use one of {', '.join(TARGETS)}.")
    if form == "pir" and not _has_pir():
        raise UserError("--format pir: this Paddle has no PIR (from 3.0 on). Use --format legacy.")
    if form != "auto":
        return form
    if not _has_pir():
        chosen, reason = "legacy", "this Paddle has no PIR"
    elif target == "gpu":
        chosen, reason = "pir", "Paddle's current format, for a GPU"
    elif _guard_class("legacy") is None:
        chosen, reason = "pir", f"Paddle {paddle.__version__} does not write legacy here"
    else:
        chosen, reason = "legacy", "with oneDNN the fastest on a CPU"
    logger.info("Format %s: %s.", chosen, reason)
    return chosen


def _has_pir():
    return hasattr(paddle, "pir_utils") and hasattr(paddle, "pir")


def _guard_class(form):
    """The class of the context in which `paddle.jit.save` writes ``form``; None where none can.

    The documented switch, FLAGS_enable_pir_api, is read once while Paddle is imported, so it would
    need a process of its own; Paddle's own guards switch within one (3.0 to 3.3).
    """
    if not _has_pir() or (form == "pir") == bool(paddle.framework.use_pir_api()):
        return contextlib.nullcontext
    name = "DygraphPirGuard" if form == "pir" else "DygraphOldIrGuard"
    return getattr(paddle.pir_utils, name, None)


def _ir_guard(form):
    """Makes `paddle.jit.save` write ``form``."""
    guard = _guard_class(form)
    if guard is not None:
        return guard()
    flag = int(form == "pir")
    raise UserError(
        f"--format {form}: this Paddle ({paddle.__version__}) cannot switch formats while it "
        f"runs; set FLAGS_enable_pir_api={flag} in the environment and export again."
    )


def write_network(model: nn.Layer, info: DeployInfo, target: str = "cpu") -> None:
    """Writes a rearranged copy of the network into ``info.folder``; nobody has compared it yet.

    Args:
        model (nn.Layer): The trained network.
        info (DeployInfo): Its folder, format, output operator and input shape count.
        target (str): As of `export`.
    """
    # Widened for oneDNN: ONNX's runtimes and GPUs have no need of it.
    widen = info.format != "onnx" and target == "cpu"
    with evaluation_mode(model), paddle.no_grad():
        wrapper = ExportedModel(folded_copy(model, widen), info.output_op, info.with_logits)
        if info.normalize is not None:
            wrapper = PictureInput(wrapper, info.img_channels, info.normalize)
        wrapper.eval()
        # A copy: InputSpec writes -1 into the list that it is given.
        spec = paddle.static.InputSpec(list(info.fed_shape), info.input_dtype, name="x")
        if info.format == "onnx":
            _save_onnx(wrapper, info.folder, spec)
        else:
            _save_paddle(wrapper, info.folder, info.format, spec)


def _save_paddle(model, folder, form, spec):
    with _ir_guard(form):
        # The wrapper is made for this: to_static leaves its mark on the layer that it is given.
        static = paddle.jit.to_static(model, input_spec=[spec], full_graph=True)
        paddle.jit.save(static, os.path.join(folder, "model"))
    wanted = MODEL_FILES[form][0]
    if not os.path.isfile(os.path.join(folder, wanted)):
        written = ", ".join(sorted(os.listdir(folder)))
        raise RuntimeError(f"Paddle {paddle.__version__} wrote {written}, not {wanted}.")
    for name in os.listdir(folder):
        if name not in MODEL_FILES[form]:  # model.pdiparams.info, for training on
            os.remove(os.path.join(folder, name))


def _save_onnx(model, folder, spec):
    paddle2onnx = import_extra("paddle2onnx")
    onnx = import_extra("onnx")
    import_extra("onnxruntime")
    target = os.path.join(folder, MODEL_FILES["onnx"][0])
    # From the legacy format first, since its conversion keeps the link between the sizes of input
    # and output; from PIR they are four sizes that look unrelated. A batch norm that runs more
    # than once (DeepLabV2's scales) is lost in the former, not in the latter (paddle2onnx 2.1.0).
    for form in ("legacy", "pir") if _has_pir() else ("legacy",):
        with tempfile.TemporaryDirectory() as temporary:
            _save_paddle(model, temporary, form, spec)
            files = [os.path.join(temporary, name) for name in MODEL_FILES[form]]
            # paddle2onnx prints its progress.
            with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
                paddle2onnx.export(*files, target, opset_version=_ONNX_OPSET)
        if not os.path.isfile(target):
            raise RuntimeError("paddle2onnx wrote no file and gave no reason.")
        try:
            onnx.checker.check_model(target)
            return
        except onnx.checker.ValidationError as error:
            fault = error
    raise RuntimeError(f"paddle2onnx wrote an invalid file: {fault}")


def check_input_shape(input_shape: Sequence[int | None] | None, channels: int) -> list[int | None]:
    """[N, C, H, W] with None where free, from flags; -1 and 0 mean free too.

    Raises:
        UserError: not four numbers, or another number of channels.
    """
    if input_shape is None:
        return [None, channels, None, None]
    shape = [v if v is not None and v > 0 else None for v in input_shape]
    if len(shape) != 4 or any(v is not None and v < -1 for v in input_shape):
        raise UserError(
            f"--input_shape takes N C H W, four numbers, -1 where free; got {list(input_shape)}."
        )
    shape[1] = shape[1] or channels
    if shape[1] != channels:
        raise UserError(
            f"--input_shape has {shape[1]} channels, the network takes images of {channels}."
        )
    return shape


def check_crf(crf: Mapping[str, Any] | bool | None, output_op: str | None) -> dict[str, Any] | None:
    """All parameters of the CRF, or None for none; a `UserError` where "argmax" leaves it nothing.

    Args:
        crf: Settings as `postprocess.settings.make_crf` takes them, less a CRF itself.
        output_op (str | None): What is exported; None: labels and logits.
    """
    complete = complete_settings(crf)
    if complete is not None and output_op == "argmax":
        raise UserError(
            "--output_op argmax keeps no probabilities, which the dense CRF (test_config.crf) "
            "needs: leave the flag out, use none or softmax, or --opts test_config.crf=False."
        )
    return complete


def export(
    model: nn.Layer,
    save_dir: str,
    *,
    sample: np.ndarray,
    input_shape: Sequence[int | None] | None = None,
    output_op: str | None = None,
    format: str = "auto",
    target: str = "cpu",
    facts: DeployFacts | None = None,
) -> DeployInfo:
    """Exports ``model``, checks the export against it, and only then puts it in its place.

    The check runs on a CPU where ``target`` is "cpu", and for an ONNX file; else on the device that
    Paddle uses.

    Args:
        model (nn.Layer): `forward` gives a list of logits, the main one first.
        save_dir (str): Folder to write. Files of an earlier export in it are replaced, others
            stay.
        sample (np.ndarray): A real input, preprocessed, float32 [C, H, W]; what is compared is
            this picture in the sizes that the export takes. Where ``facts`` has a ``normalize``:
            before that step, values 0 to 255.
        input_shape (list[int | None] | None): [N, C, H, W], None or -1 where free; None: only C
            is fixed.
        output_op (str | None): One output: "argmax": int32 [N, H, W]; "softmax": float32
            [N, num_classes, H, W]; "none": logits, float32 [N, num_classes, H, W]. None: two
            outputs, that of "argmax" and then that of "none".
        format (str): "pir" (model.json), "legacy" (model.pdmodel), "onnx" or "auto", see
            `resolve_format`.
        target (str): "cpu" or "gpu", what "auto" chooses for and what the network is arranged for.
        facts (DeployFacts, optional): What infer.py has to know of the data, for deploy.yaml. A CRF
            in it does not go with "argmax".

    Returns:
        DeployInfo: What was written; ``checks`` holds the measured differences.

    Raises:
        UserError: an argument is wrong, weights are not finite, or something for ONNX is missing.
        ExportMismatch: the exported network differs from the trained one; nothing is written.
    """
    if output_op not in (None, *OUTPUT_OPS):
        raise UserError(f"--output_op {output_op}: use one of {', '.join(OUTPUT_OPS)}.")
    facts = DeployFacts() if facts is None else facts
    facts = replace(facts, crf=check_crf(facts.crf, output_op))
    if facts.program == "paddlex":
        output_op = output_op or "argmax"
    if getattr(sample, "ndim", 0) != 3:
        raise ValueError(f"sample should be [C, H, W], not {getattr(sample, 'shape', sample)}.")
    check_finite_weights(model, f"The weights of this {type(model).__name__}")
    form = resolve_format(format, target)
    _check_layout(model, form)
    save_dir = os.path.abspath(save_dir)
    check_save_dir(save_dir)
    os.makedirs(os.path.dirname(save_dir), exist_ok=True)
    info = DeployInfo(
        format=form,
        input_shape=check_input_shape(input_shape, sample.shape[0]),
        output_op=output_op or "argmax",
        with_logits=output_op is None,
        img_channels=sample.shape[0],
        num_classes=getattr(model, "num_classes", None),
        versions={"paddleseg_deeplab": __version__, "paddle": paddle.__version__},
        **vars(facts),
    )
    if info.program == "paddlex":
        paddlex.check(info)
    temporary = tempfile.mkdtemp(prefix=".export-", dir=os.path.dirname(save_dir))
    try:
        info.folder = temporary
        write_network(model, info, target)
        if info.program == "paddlex":
            paddlex.finish(info, plus=type(model).__name__ == "DeepLabV3P")
        device = "cpu" if target == "cpu" else paddle.get_device()
        info.checks = compare_export(model, info, sample, device)
        deploy_yaml.write(info, os.path.join(temporary, deploy_yaml.FILE_NAME))
        _move_into_place(temporary, save_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    info.folder = save_dir
    logger.info("Exported to %s (%s: %s)", save_dir, info.model, ", ".join(info.outputs))
    return info


def _check_layout(model, form):
    if form != "pir" and getattr(model, "data_format", "NCHW") == "NHWC":
        # It would be folded wrongly (paddle_quirks: nhwc_fold).
        raise UserError(
            f"--format {form} needs a network of data_format NCHW. The weights serve both: build "
            "it with NCHW and load them, or use --format pir."
        )


def _move_into_place(temporary, save_dir):
    """A new folder appears whole; in an old one deploy.yaml goes first and comes last."""
    os.chmod(temporary, 0o777 & ~_umask())
    if not os.path.exists(save_dir):
        os.rename(temporary, save_dir)
        return
    last = deploy_yaml.FILE_NAME
    # What TensorRT learned of the network before does not hold for this one.
    shutil.rmtree(os.path.join(save_dir, CACHE_FOLDER), ignore_errors=True)
    old = {
        last,
        SHAPE_FILE,
        "model.pdiparams.info",
        *paddlex.FILES,
        *(n for names in MODEL_FILES.values() for n in names),
    }
    for name in sorted(old, key=lambda n: n != last):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(save_dir, name))
    for name in sorted(os.listdir(temporary), key=lambda n: n == last):
        os.replace(os.path.join(temporary, name), os.path.join(save_dir, name))


def _umask():
    """The process's umask; mkdtemp makes folders that only their owner can read."""
    value = os.umask(0)
    os.umask(value)
    return value

# SPDX-License-Identifier: Apache-2.0
"""Training of a small network on a device against the CPU and against itself."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.training.determinism import GPU_FLAGS
from paddleseg_deeplab.core.training.step import TrainStep
from paddleseg_deeplab.deploy.tf32 import tf32
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.models.forward import precision_context
from paddleseg_deeplab.models.layers import (
    ConvBNReLU,
    SeparableConvBNReLU,
    resize,
    spatial_size,
)
from paddleseg_deeplab.tools.doctor.device import difference, is_cpu, using
from paddleseg_deeplab.tools.doctor.rows import Row, failed, passed, skipped
from paddleseg_deeplab.utils.errors import UserError

CLASSES, SIZE, BATCH = 3, 32, 4
FIRST, TWENTIETH = 1e-5, 1e-2  # rounding, and what twenty updates make of it
HALF_FIRST = 0.02
COMPILED = 1e-4  # five steps; the compiler joins operators
RESUMED = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 2e-2}  # the type's last digit, a few times
HALVES = (("fp16", "O1"), ("fp16", "O2"), ("bf16", "O1"), ("bf16", "O2"))
_DTYPES = {"fp16": paddle.float16, "bf16": paddle.bfloat16}


class SmallNet(nn.Layer):
    """What a DeepLab has: strided, separable and dilated convolutions, batch norm, a resize.

    Args:
        data_format (str): "NCHW" or "NHWC".
        resized (bool): Logits of the image's size, or of half of it.
    """

    def __init__(self, data_format: str = "NCHW", resized: bool = True) -> None:
        super().__init__()
        self.data_format = data_format
        self.num_classes = CLASSES
        how = {"data_format": data_format}
        self.stem = ConvBNReLU(3, 16, 3, stride=2, **how)
        self.body = SeparableConvBNReLU(16, 16, 3, padding=2, dilation=2, **how)
        self.classifier = nn.Conv2D(16, CLASSES, 1, **how)
        self.resized = resized
        # The same on every device, whose random numbers differ.
        rng = np.random.default_rng(0)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                spread = (2 / np.prod(parameter.shape[1:])) ** 0.5
                parameter.set_value(rng.normal(0, spread, parameter.shape).astype("float32"))

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        logits = self.classifier(self.body(self.stem(x)))
        if self.resized:
            logits = resize(logits, spatial_size(x, self.data_format), False, self.data_format)
        return [logits]


class Samples:
    """Images of 4x4 squares in random colours; the class of a pixel is its strongest channel."""

    num_classes, img_channels, ignore_index, mode = CLASSES, 3, 255, "train"

    def __len__(self) -> int:
        return 5 * BATCH

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[0] if isinstance(key, tuple) else key
        squares = (3, SIZE // 4, SIZE // 4)
        colours = np.random.default_rng(index).standard_normal(squares, np.float32)
        image = colours.repeat(4, axis=1).repeat(4, axis=2)
        label = image.argmax(axis=0).astype("int64")
        return {"img": image, "label": label, "im_path": f"sample {index}", "trans_info": []}


def optimizer_of(network: nn.Layer) -> paddle.optimizer.Optimizer:
    rate = paddle.optimizer.lr.PolynomialDecay(0.05, 100)
    return paddle.optimizer.Momentum(rate, 0.9, parameters=network.parameters())


def losses() -> dict[str, Any]:
    return {"types": [CrossEntropyLoss()], "coef": [1.0]}


def run_steps(
    device: str, count: int, *, data_format: str = "NCHW", resized: bool = True, **how: Any
) -> tuple[list[float], float]:
    """Trains `SmallNet`.

    Args:
        device (str): Where.
        count (int): Iterations.
        data_format, resized: Of `SmallNet`.
        **how: What `TrainStep` takes: precision, amp_level, to_static.

    Returns:
        tuple: The losses, and the loss scale (1.0 where there is none).
    """
    samples = Samples()
    with using(device), tf32(False):
        network = SmallNet(data_format, resized)
        step = TrainStep(network, optimizer_of(network), losses(), **how)
        step.model.train()
        found = []
        for i in range(count):
            batch = [samples[(i * BATCH + k) % len(samples)] for k in range(BATCH)]
            images, labels = (
                paddle.to_tensor(np.stack([s[key] for s in batch])) for key in ("img", "label")
            )
            found.append(float(step([(images, labels)])[0]))
        scale = float(np.asarray(step.scaler.state_dict().get("scale", 1.0)).reshape(-1)[0])
    return found, scale


def _falls(found):
    """Whether the last pass through the samples, five batches, is better than the first."""
    return np.mean(found[-5:]) < np.mean(found[:5])


def twenty_steps(device: str, data_format: str = "NCHW") -> Row:
    """fp32 against the CPU, TF32 off."""
    name = f"20 steps, fp32, {data_format}"
    expected = run_steps("cpu", 20)[0]
    found = run_steps(device, 20, data_format=data_format)[0]
    first = difference(found[0], expected[0])
    last = difference(found[-1], expected[-1])
    detail = (
        f"loss {found[0]:.6f} to {found[-1]:.6f}; differs from the CPU's by {first:.1e} at the "
        f"first (limit {FIRST:.0e}), {last:.1e} at the 20th (limit {TWENTIETH:.0e})"
    )
    good = first <= FIRST and last <= TWENTIETH and _falls(found)
    return (passed if good else failed)(name, detail)


def twenty_steps_nhwc(device: str) -> Row:
    """The same with channels last, against the CPU with channels first."""
    return twenty_steps(device, "NHWC")


def _cannot(device, precision, amp_level="O1"):
    """Why a precision cannot be tried on a device; None where it can."""
    with using(device):
        try:
            precision_context(precision, amp_level)
        except UserError as error:
            return str(error)
    return None


def half_precision(device: str, precision: str, amp_level: str) -> Row:
    """The first loss is fp32's, 50 steps lower it, and the loss scale stays useful."""
    name = f"50 steps, {precision} {amp_level}"
    reason = _cannot(device, precision, amp_level)
    if reason:
        return skipped(name, reason)
    expected = run_steps(device, 1)[0][0]
    found, scale = run_steps(device, 50, precision=precision, amp_level=amp_level)
    first = difference(found[0], expected)
    good = first <= HALF_FIRST and np.isfinite(found).all() and scale >= 1
    good = good and _falls(found)
    detail = (
        f"loss {found[0]:.4f} to {found[-1]:.4f}; the first differs from fp32's by {first:.1e} "
        f"(limit {HALF_FIRST}); loss scale {scale:g}"
    )
    return (passed if good else failed)(name, detail)


def fp16_o1(device: str) -> Row:
    return half_precision(device, "fp16", "O1")


def fp16_o2(device: str) -> Row:
    return half_precision(device, "fp16", "O2")


def bf16_o1(device: str) -> Row:
    return half_precision(device, "bf16", "O1")


def bf16_o2(device: str) -> Row:
    return half_precision(device, "bf16", "O2")


def depthwise_type(device: str) -> Row:
    """A depthwise convolution computes in half precision under O1, and so do maps behind it."""
    name = "depthwise convolution in O1"
    able = [p for p in _DTYPES if _cannot(device, p) is None]
    if not able:
        return skipped(name, _cannot(device, "fp16"))
    types_found, good = [], True
    with using(device):
        network = SmallNet()
        x = paddle.ones([2, 3, SIZE, SIZE])
        for precision in able:
            with paddle.no_grad(), precision_context(precision):
                y = network.stem(x)
                maps = [y, network.body.depthwise_conv._conv(y), network.body(y)]
            types = [str(m.dtype).rpartition(".")[2] for m in maps]
            good = good and all(m.dtype == _DTYPES[precision] for m in maps)
            types_found.append(f"{precision}: {', '.join(types)}")
    return (passed if good else failed)(name, f"{'; '.join(types_found)} (map, depthwise, map)")


def place_of_batch(device: str) -> Row:
    """The images that training gives to the network lie on the device."""
    name, seen = "place of a batch's images", []

    class Looking(SmallNet):
        def forward(self, x):
            seen.append(x.place)
            return super().forward(x)

    with using(device), tempfile.TemporaryDirectory() as folder:
        network = Looking()
        train(
            network,
            Samples(),
            optimizer=optimizer_of(network),
            losses=losses(),
            save_dir=folder,
            iters=2,
            batch_size=BATCH,
            save_interval=2,
        )
    good = all(p.is_cpu_place() if is_cpu(device) else p.is_gpu_place() for p in seen)
    row = passed if good and seen else failed
    return row(name, f"on {device} they lie in {', '.join(sorted({str(p) for p in seen}))}")


def repeated(device: str) -> Row:
    """Ten steps twice with the switches of --deterministic: equal bit for bit but for the resize,
    whose gradient a GPU adds in no fixed order."""
    name = "deterministic mode twice"
    if not is_cpu(device):
        before = paddle.get_flags(list(GPU_FLAGS))
        paddle.set_flags(GPU_FLAGS)
    try:
        plain, resize = (
            [run_steps(device, 10, resized=resized)[0] for _ in range(2)]
            for resized in (False, True)
        )
    finally:
        if not is_cpu(device):
            paddle.set_flags(before)
    gap = difference(*resize)
    good = plain[0] == plain[1] and gap <= (0 if is_cpu(device) else 1e-3)
    without = "equal" if plain[0] == plain[1] else f"{difference(*plain):.1e} apart"
    detail = f"without a resize {without}; with it {gap:.1e} apart"
    return (passed if good else failed)(name, detail)


def compiled(device: str) -> Row:
    """A compiled network trains as the plain one does."""
    name = "compiled training"
    expected = run_steps(device, 5)[0]
    try:
        found = run_steps(device, 5, to_static=True)[0]
    except UserError as error:
        return failed(name, str(error))
    gap = difference(found, expected)
    detail = f"5 losses differ from dygraph's by {gap:.1e} (limit {COMPILED:.0e})"
    return (passed if gap <= COMPILED else failed)(name, detail)


def _trained(folder, precision, amp_level, *ends):
    """Files of the last checkpoint after training to each of `ends`, resumed in between."""
    for end in ends:
        network = SmallNet()
        train(
            network,
            Samples(),
            optimizer=optimizer_of(network),
            losses=losses(),
            save_dir=folder,
            iters=end,
            batch_size=BATCH,
            save_interval=10,
            resume_model="auto",
            use_ema=True,
            precision=precision,
            amp_level=amp_level,
        )
    last = Path(folder) / f"iter_{ends[-1]}"
    weights = paddle.load(str(last / "model.pdparams"))
    average = paddle.load(str(last / "ema.pdparams"))["average"]
    joined = {**weights, **{f"average of {name}": value for name, value in average.items()}}
    arrays = {n: v for n, v in joined.items() if isinstance(v, paddle.Tensor)}
    return {name: value.astype("float32").numpy() for name, value in arrays.items()}


def resumed(device: str, precision: str = "fp32", amp_level: str = "O1") -> Row:
    """A run that stops at 10 and goes on to 20 ends where one without a stop does."""
    name = f"resume at 10 of 20, {precision}" + ("" if precision == "fp32" else f" {amp_level}")
    reason = None if precision == "fp32" else _cannot(device, precision, amp_level)
    if reason:
        return skipped(name, reason)
    with using(device), tf32(False):
        found = []
        for ends in ((20,), (10, 20)):
            with tempfile.TemporaryDirectory() as folder:
                found.append(_trained(folder, precision, amp_level, *ends))
    gaps = {n: difference(found[1][n], value) for n, value in found[0].items()}
    worst = max(gaps, key=gaps.__getitem__)
    detail = f"weights and averages differ by {gaps[worst]:.1e} at most ({worst})"
    return (passed if gaps[worst] <= RESUMED[precision] else failed)(name, detail)


def resumed_fp16_o1(device: str) -> Row:
    return resumed(device, "fp16", "O1")


def resumed_fp16_o2(device: str) -> Row:
    return resumed(device, "fp16", "O2")


ROWS = (
    twenty_steps,
    twenty_steps_nhwc,
    fp16_o1,
    fp16_o2,
    bf16_o1,
    bf16_o2,
    depthwise_type,
    place_of_batch,
    repeated,
    compiled,
    resumed,
    resumed_fp16_o1,
    resumed_fp16_o2,
)

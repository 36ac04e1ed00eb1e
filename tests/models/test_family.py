# SPDX-License-Identifier: Apache-2.0
"""Every registered backbone and model, each from a config through the same checks.

Built by SegBuilder; one training step lowers the loss; a saved state loads strictly; NHWC equals
NCHW; the exported network equals the one in memory.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddle import nn

from paddleseg_deeplab.cvlibs import Config, SegBuilder, manager
from paddleseg_deeplab.deploy import compare
from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.models import backbones
from paddleseg_deeplab.models.forward import infer_logits, run_model
from paddleseg_deeplab.models.losses.total import compute_losses

CLASSES, HEIGHT, WIDTH = 3, 33, 49


def ours(registry):
    """Names of what the package itself registers; others may be a test's own."""
    parts = registry.components_dict.items()
    return sorted(n for n, part in parts if part.__module__.startswith("paddleseg_deeplab."))


BACKBONES, MODELS = ours(manager.BACKBONES), ours(manager.MODELS)
OUTPUTS = {"DeepLabV2": 4}  # in training; one in the others


def config_of(folder, model, outputs=1):
    """A config for one of our models on small scenes, without dropout's noise."""
    data = {"type": "Shapes", "num_classes": CLASSES, "image_size": [WIDTH, HEIGHT]}
    data.update(num_samples=2, transforms=[{"type": "Normalize"}])
    content = {
        "batch_size": 2,
        "iters": 1,
        "train_dataset": {**data, "mode": "train"},
        "val_dataset": {**data, "mode": "val"},
        # Running statistics are the last batch's: without them deep random networks overflow.
        "model": {"bn_momentum": 0.0, **model},
        "optimizer": {"type": "SGD"},
        "lr_scheduler": {"type": "ConstantLR", "learning_rate": 1.0},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1] * outputs},
    }
    path = folder / "family.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Config(str(path))


def batch(builder):
    samples = [builder.train_dataset[i] for i in range(2)]
    return [paddle.to_tensor(np.stack([s[key] for s in samples])) for key in ("img", "label")]


def prepare(model):
    """No dropout, and batch norm shifted to 1, so that most units pass their ReLU.

    At a shift of 0 a random network of 150 layers is chaotic: rounding alone, in an exported one
    that folds batch norm into the convolutions, moves its logits by up to 0.6 %.
    """
    for layer in model.sublayers():
        if isinstance(layer, (nn.Dropout, nn.Dropout2D)):
            layer.p = 0.0
        elif isinstance(layer, nn.BatchNorm2D):
            layer.bias.set_value(paddle.ones_like(layer.bias))


def trained(builder, outputs):
    """One step of gradient descent, so long that the loss should fall by 2 %; it has to fall."""
    model, (images, labels) = builder.model, batch(builder)
    model.train()

    def loss():
        logits = run_model(model, images)
        assert len(logits) == outputs
        assert all(y.shape == [2, CLASSES, HEIGHT, WIDTH] for y in logits)
        return compute_losses(logits, labels, builder.loss)[0]

    first = loss()
    first.backward()
    # Deep networks with random weights have gradients of all sizes; by the length of the
    # gradient, lr |g|^2 = 0.02 loss, one rule serves all of them.
    squares = 0.0
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is not None, f"{name} has no gradient"
            gradient = parameter.grad.numpy().ravel()
            square = float(np.dot(gradient, gradient))
            assert np.isfinite(square), name
            squares += square
    rate = 0.02 * float(first) / squares
    trainable = [p for p in model.parameters() if not p.stop_gradient]
    step = paddle.optimizer.SGD(rate, parameters=trainable)
    step.step()
    step.clear_grad()
    assert float(loss()) < float(first)
    return images


def logits_of(model, images):
    model.eval()
    with paddle.no_grad():
        return infer_logits(model, images).numpy()


def check(folder, patch, model, form, outputs=1):
    """All that the first lines of this file promise, of one network built once per layout."""
    paddle.seed(1)
    builder = SegBuilder(config_of(folder, model, outputs))
    prepare(builder.model)
    images = trained(builder, outputs)
    expected = logits_of(builder.model, images)
    largest = np.abs(expected).max()
    assert np.isfinite(largest)
    assert expected.std() > 1e-3 * largest, "a network this flat proves nothing"
    # Strict reload into a fresh network of the other layout.
    file = folder / "model.pdparams"
    paddle.save(builder.model.state_dict(), str(file))
    config = config_of(folder, {**model, "pretrained": str(file)}, outputs)
    config.set_data_format("NHWC")
    # No weights but the file's: random ones, drawn to be replaced, would take a second a network.
    with paddle.LazyGuard():
        again = SegBuilder(config).model
    assert again.data_format == again.backbone.data_format == "NHWC"
    # Float32 sums in another order: 1e-3 of the largest logit after 150 layers.
    assert np.abs(logits_of(again, images) - expected).max() <= 1e-3 * largest
    # The export compares both networks at two sizes. Its limits are for trained ones; with random
    # weights logits may be large, and pixels whose classes tie are many.
    patch.setattr(compare, "MAX_LOGIT_DIFFERENCE", 1e-3 * largest)
    patch.setattr(compare, "MAX_LABEL_SHARE", 1.0)
    sample, out = images[0].numpy(), str(folder / "exported")
    info = export(builder.model, out, sample=sample, format=form, output_op="none")
    assert info.checks["max_abs_logits_difference"] <= 1e-3 * largest
    assert len(info.checks["inputs"]) == 2


# One of each kind of block, and the model that most people use; the others take longer.
QUICK = ("ResNet18_vd", "ResNet50", "MobileNetV2_x0_25", "VGG16_LargeFOV", "DeepLabV3P")


def _quick_first(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", _quick_first(BACKBONES))
def test_backbone(name, tmp_path, monkeypatch):
    model = {
        "type": "DeepLabV3",
        "backbone": {"type": name},
        "backbone_indices": [-1],
        "aspp_ratios": [1, 2],
        "aspp_out_channels": 8,
        # A mean over so few images leaves batch norm next to nothing to divide by.
        "image_pooling": False,
    }
    # Legacy is what `--format auto` chooses on a CPU; Paddle Inference runs it with oneDNN.
    check(tmp_path, monkeypatch, model, "legacy")


@pytest.mark.parametrize("name", _quick_first(MODELS))
def test_model(name, tmp_path, monkeypatch):
    model = {"type": name, "backbone": {"type": "ResNet18_vd", "output_stride": 8}}
    if name == "DeepLabV2":
        model["freeze_bn"] = False
    check(tmp_path, monkeypatch, model, "pir", OUTPUTS.get(name, 1))


def test_backbones_ask_for_no_sizes():
    """Else they may not be traced as they are, see the end of models/backbones/__init__.py."""
    files = backbones._TRACED_AS_THEY_ARE
    assert len(files) > 5
    for module in files:
        text = inspect.getsource(module)
        assert not re.search(r"\.shape\b|\bspatial_size\(|\bresize\(|interpolate\(", text), module


def test_every_backbone_is_traced_as_it_is():
    """One that is left out of the list is traced all the same, and takes three times as long."""
    listed = {Path(module.__file__).stem for module in backbones._TRACED_AS_THEY_ARE}
    files = Path(backbones.__file__).parent.glob("*.py")
    assert {f.stem for f in files if "def forward(" in f.read_text("utf-8")} == listed - {"conv"}

# SPDX-License-Identifier: Apache-2.0
"""Batch norm over ranks as it is built on several GPUs. A CPU has no kernel for it, so what runs
here without a double does not call Paddle's operator."""

import numpy as np
import paddle
import pytest
from paddle import nn
from places import ROOT

from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.deploy.fold import folded_copy
from paddleseg_deeplab.models import DeepLabV3, ResNet18_vd
from paddleseg_deeplab.models.layers import SyncBatchNorm, batch_norms

CONFIGS = ROOT / "configs"
# All that freeze their batch norms: `freeze_bn: True`, or DeepLabV2's default.
FROZEN = (
    "pascal_voc12/deeplabv1_resnet101_os8_voc12aug_321x321_20k.yml",
    "pascal_voc12/deeplabv2_resnet101_os8_voc12aug_321x321_20k.yml",
    "pascal_voc12/deeplabv3_resnet50_os8_voc12_513x513_30k.yml",
    "pascal_voc12/deeplabv3_resnet101_os8_voc12_513x513_30k.yml",
    "cityscapes/deeplabv2_resnet101_os8_513x513_20k.yml",
    "compat/kazuto1011_deeplabv1_resnet101.yml",
    "compat/kazuto1011_deeplabv2_resnet101.yml",
    "compat/kazuto1011_deeplabv2_resnet101_msc.yml",
)


@pytest.fixture
def on_two_gpus(monkeypatch):
    """Calls a function that builds a network as on two GPUs."""

    def build(make):
        with monkeypatch.context() as patch:
            patch.setattr(paddle, "get_device", lambda: "gpu:0")
            patch.setattr(paddle.distributed, "get_world_size", lambda: 2)
            return make()

    return build


def network(freeze_bn=True):
    paddle.seed(3)
    backbone = ResNet18_vd(output_stride=16)
    model = DeepLabV3(3, backbone, aspp_out_channels=8, freeze_bn=freeze_bn, aspp_dropout=0.0)
    rng = np.random.default_rng(0)
    for norm in batch_norms(model):
        norm._mean.set_value(rng.normal(0, 0.1, norm._mean.shape).astype("float32"))
        norm._variance.set_value(rng.uniform(0.5, 2, norm._mean.shape).astype("float32"))
    return model


def gradients(model, n=2):
    values = np.random.default_rng(1).standard_normal((n, 3, 33, 33), np.float32)
    model.train()
    loss = sum(logits.square().mean() for logits in model(paddle.to_tensor(values)))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if not p.stop_gradient}


def test_frozen_it_has_the_gradient_of_one_rank(on_two_gpus):
    model = on_two_gpus(network)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(model))
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    found, expected = gradients(model), gradients(network())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = np.abs(gradient.numpy()).max()
        assert largest > 0, name
        # The same operators in the same order but for a bias before a batch norm.
        assert np.abs(found[name].numpy() - gradient.numpy()).max() <= 1e-5 * largest, name
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize("recipe", FROZEN)
def test_frozen_recipes_train_on_two_gpus(recipe, on_two_gpus):
    config = Config(str(CONFIGS / recipe))
    config.drop_pretrained()
    # A smaller network of the family, in the recipe's own settings (each was run as it is, too).
    backbone = config.dic["model"]["backbone"]
    backbone["type"] = {"ResNet101": "ResNet50"}.get(backbone["type"], "ResNet18_vd")
    model = on_two_gpus(lambda: SegBuilder(config).model)
    norms = list(batch_norms(model))
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    found = gradients(model, 1)
    assert found
    for name, gradient in found.items():
        assert gradient is not None, name
        assert np.isfinite(gradient.numpy()).all(), name


def test_every_frozen_recipe_is_tried():
    """By the text: a recipe that freezes, and DeepLabV2 on a network with batch norms."""
    found = set()
    for path in CONFIGS.rglob("*.yml"):
        text = path.read_text(encoding="utf-8")
        if "freeze_bn: True" in text or ("DeepLabV2" in text and "VGG" not in text):
            found.add(path.relative_to(CONFIGS).as_posix())
    assert found <= set(FROZEN)


def test_an_unfrozen_one_calls_paddle_s_operator(on_two_gpus, monkeypatch):
    layer, calls = on_two_gpus(lambda: SyncBatchNorm(4)), []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: calls.append(x) or x)
    x = paddle.ones([1, 4, 2, 2])
    layer(x)
    assert len(calls) == 1
    layer.eval()
    layer(x)
    assert len(calls) == 1


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
def test_its_state_and_numbers_are_those_of_the_other_kinds(data_format, on_two_gpus):
    arguments = {"momentum": 0.7, "epsilon": 1e-3, "data_format": data_format}
    layer = on_two_gpus(lambda: SyncBatchNorm(4, **arguments))
    other = SyncBatchNorm(4, **arguments)
    assert layer.state_dict().keys() == other.state_dict().keys()
    assert layer.state_dict().keys() == nn.SyncBatchNorm(4, **arguments).state_dict().keys()
    for norm in (layer, other):
        norm._mean.set_value(np.arange(4, dtype="float32"))
        norm.eval()
    x = paddle.randn([2, 4, 3, 5] if data_format == "NCHW" else [2, 3, 5, 4])
    np.testing.assert_array_equal(layer(x).numpy(), other(x).numpy())


def test_what_paddle_converts_trains_frozen_too():
    """PaddleSeg's users convert networks by nn.SyncBatchNorm.convert_sync_batchnorm."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(model))
    found, expected = gradients(model), gradients(network())
    for name, gradient in expected.items():
        largest = np.abs(gradient.numpy()).max()
        assert np.abs(found[name].numpy() - gradient.numpy()).max() <= 1e-5 * largest, name


def test_the_export_folds_it(on_two_gpus):
    model = on_two_gpus(network)
    twin = network()
    model.set_state_dict(twin.state_dict())
    folded, expected = folded_copy(model), folded_copy(twin)
    assert [n for n, _ in folded.named_parameters()] == [n for n, _ in expected.named_parameters()]
    biases = [n for n, _ in model.named_parameters() if n.endswith("_conv.bias")]
    assert biases
    assert not [n for n, _ in folded.named_parameters() if n.endswith("_conv.bias")]


def test_mixed_precision_keeps_it_in_float32(on_two_gpus):
    """By class, as Paddle's O2 chooses what stays float32."""
    layer = on_two_gpus(lambda: SyncBatchNorm(4))
    decorated = paddle.amp.decorate(models=nn.Sequential(layer), level="O2", dtype="bfloat16")
    assert all(p.dtype == paddle.float32 for p in decorated.parameters())

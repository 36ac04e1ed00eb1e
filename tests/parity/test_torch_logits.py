# SPDX-License-Identifier: Apache-2.0
"""convert_weights against networks in torch, whose logits make_torch_logits.py wrote."""

import json
from functools import partial

import numpy as np
import paddle
import pytest
from make_paddleseg_logits import image
from make_torch_logits import (
    KEYS_FILE,
    LOGITS_FILE,
    NETWORKS,
    expand,
    sizes_of,
    source_state,
)
from safetensors.numpy import save_file

from paddleseg_deeplab.cli import main as cli
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.models.layers import resize
from paddleseg_deeplab.utils.weights.load import load_entire_model

# Largest difference over largest logit: a hundred float32 layers differ by about 1e-6; a wrong
# rate, stride, epsilon, resize or order of channels by 1e-2 and more.
TOLERANCE = 1e-4
ROOT = KEYS_FILE.parents[2]
# State tensors of the sources, torch's counters included, as their own code has them.
COUNTS = {
    "torchvision_deeplabv3_resnet50": 370,
    "kazuto1011_deeplabv1_resnet50": 320,
    "kazuto1011_deeplabv2_resnet50": 326,
    "kazuto1011_deeplabv3_resnet50": 356,
}
# torchvision publishes the numbers of parameters of its two.
PARAMETERS = {
    "torchvision_deeplabv3_resnet50": 42_004_074,
    "torchvision_deeplabv3_resnet101": 60_996_202,
}


@pytest.fixture(scope="module")
def keys():
    return json.loads(KEYS_FILE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True, scope="module")
def zeros_to_start_with():
    """Nothing is left to chance that a conversion should fill; and zeros are quickly drawn."""
    paddle.nn.initializer.set_global_initializer(paddle.nn.initializer.Constant(0.0))
    yield
    paddle.nn.initializer.set_global_initializer(None)


def _build(network):
    return SegBuilder(Config(str(ROOT / "configs" / "compat" / f"{network}.yml"))).model


def _compare(outputs_of, names, sizes):
    with np.load(LOGITS_FILE) as golden:
        for (height, width), step in sizes.items():
            x = paddle.to_tensor(image((height, width)))
            for name, output in zip(names, outputs_of(x)):
                expected = golden[f"{name}_{height}x{width}"]
                got = output.numpy()[:, :, ::step, ::step]
                assert got.shape == expected.shape
                error = np.abs(got - expected).max() / np.abs(expected).max()
                print(f"{name} {height}x{width}: {error:.1e}")
                assert error <= TOLERANCE, (name, height, width, error)


def _with_auxiliary(model, x):
    """Main and auxiliary logits in evaluation, which has only the main ones."""
    features = model.backbone(x)
    auxiliary = model.head.aux(features)[0]
    return [model(x)[0], resize(auxiliary, x.shape[2:])]


@pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=pytest.mark.slow) if "101" in n else n for n in NETWORKS],
)
def test_logits(network, keys, tmp_path):
    source, family, depth = network.split("_")
    state = source_state(keys["networks"][network])
    tensors, numbers, _ = keys["digests"][network]
    assert (len(state), sum(v.size for v in state.values())) == (tensors, numbers)
    file = tmp_path / ("w.npz" if depth == "resnet50" else "w.safetensors")
    if family == "deeplabv2" and depth == "resnet101":  # as the multi-scale network saves them
        state = {f"base.{name}": value for name, value in state.items()}
    np.savez(file, **state) if file.suffix == ".npz" else save_file(state, str(file))
    config, output = ROOT / "configs" / "compat" / f"{network}.yml", tmp_path / "w.pdparams"
    command = ["convert_weights", "--source", source, "--config", str(config)]
    assert cli.main([*command, "--input", str(file), "--output", str(output)]) == 0
    file.unlink()

    model = _build(network)
    report = load_entire_model(model, str(output))
    counters = sum(name.endswith("num_batches_tracked") for name in state)
    assert len(report.loaded) == len(state) - counters
    model.eval()
    names, outputs_of = [network], model
    if source == "torchvision" and depth == "resnet50":
        names, outputs_of = [network, f"{network}_aux"], partial(_with_auxiliary, model)
    with paddle.no_grad():
        _compare(outputs_of, names, sizes_of(network))
        if family == "deeplabv2" and depth == "resnet101":  # the same weights on three scales
            model = _build(f"{network}_msc")
            load_entire_model(model, str(output))
            model.eval()
            _compare(model, [f"{network}_msc"], sizes_of(network))
    output.unlink()


def test_names_and_numbers(keys):
    assert {n: keys["digests"][n][0] for n in COUNTS} == COUNTS
    for network, expected in PARAMETERS.items():
        shapes = expand(keys["networks"][network])
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        ours = sum(int(np.prod(s)) for n, s in shapes.items() if not n.endswith(buffers))
        assert ours == expected

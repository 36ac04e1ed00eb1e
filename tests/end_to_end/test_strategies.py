# SPDX-License-Identifier: Apache-2.0
"""Ways to train and evaluate: another output stride, two phases, several losses, small batches."""

import json

import numpy as np
import paddle
import pytest
import yaml

from paddleseg_deeplab.cli import main as console
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.models import DeepLabV3P, ResNet18_vd
from paddleseg_deeplab.models.forward import infer_logits, run_model
from paddleseg_deeplab.models.losses.total import compute_losses
from paddleseg_deeplab.utils.weights.load import load_entire_model

DATA = {"type": "Shapes", "num_classes": 3, "num_samples": 4}
NORMALIZE = [{"type": "Normalize"}]
SIZE = (97, 81)
V3P = {
    "type": "DeepLabV3P",
    "backbone": {"type": "ResNet18_vd", "output_stride": 16},
    "aspp_out_channels": 16,
    "decoder_channels": 16,
}


def write(folder, model=V3P, outputs=1, coef=None, name="tiny.yml", size=(65, 49), **more):
    data = {**DATA, "image_size": list(size), "transforms": NORMALIZE}
    content = {
        "batch_size": 2,
        "iters": 2,
        "train_dataset": {**data, "mode": "train"},
        "val_dataset": {**data, "mode": "val"},
        "model": model,
        "optimizer": {"type": "SGD", "momentum": 0.9},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.1},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": coef or [1] * outputs},
        **more,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(verb, config, save_dir, *flags):
    shared = ["--config", config, "--save_dir", save_dir, "--device", "cpu"]
    return console.main([verb, *map(str, [*shared, *flags])])


@pytest.fixture(scope="module")
def phase_one(tmp_path_factory):
    """(config, folder) of a run at stride 16 with trained batch norm."""
    folder = tmp_path_factory.mktemp("phase_one")
    # Large enough for ASPP's rates to matter; running statistics of the last batch, so that four
    # iterations give a network whose classes differ.
    config = write(folder, {**V3P, "bn_momentum": 0.0}, size=SIZE, iters=4)
    assert run("train", config, folder / "out", "--do_eval") == 0
    return config, folder / "out"


def at_stride_8(weights, rates=(1, 12, 24, 36)):
    model = DeepLabV3P(
        3,
        ResNet18_vd(output_stride=8),
        aspp_ratios=rates,
        aspp_out_channels=16,
        decoder_channels=16,
    )
    load_entire_model(model, str(weights))
    model.eval()
    return model


def confusion(model, dataset):
    """Rows: truth; columns: prediction; void left out."""
    total = np.zeros((3, 3), np.int64)
    for i in range(len(dataset)):
        sample = dataset[i]
        with paddle.no_grad():
            logits = infer_logits(model, paddle.to_tensor(sample["img"][None])).numpy()[0]
        truth, found = sample["label"].ravel(), logits.argmax(0).ravel()
        kept = truth != 255
        np.add.at(total, (truth[kept], found[kept]), 1)
    return total


def moved(one, other):
    """Pixels that would have to change their class to make two confusion matrices equal."""
    return np.abs(one - other).sum() / 2


# Rounding may turn a pixel whose classes tie; another network turns hundreds of these 30,000.
FEW, MANY = 5, 300


def evaluated(config, out, folder, *opts):
    flags = ["--model_path", out / "best_model", *(["--opts", *opts] if opts else [])]
    assert run("val", config, folder, *flags) == 0
    return np.array(json.loads((folder / "metrics.json").read_text())["confusion_matrix"])


def test_val_at_another_output_stride(phase_one, tmp_path):
    config, out = phase_one
    found = evaluated(config, out, tmp_path / "8", "model.backbone.output_stride=8")
    dataset = SegBuilder(Config(str(config))).val_dataset
    assert moved(found, confusion(at_stride_8(out / "best_model"), dataset)) <= FEW
    # Neither a network at 8 that keeps the rates of 16, nor the one at 16.
    kept_rates = at_stride_8(out / "best_model", (1, 6, 12, 18))
    assert moved(found, confusion(kept_rates, dataset)) > MANY
    assert moved(found, evaluated(config, out, tmp_path / "16")) > MANY


def test_given_rates_stay_and_the_warning_says_what_to_do(phase_one, tmp_path, capsys):
    _, out = phase_one
    given = write(tmp_path, {**V3P, "aspp_ratios": [1, 6, 12, 18]}, size=SIZE)
    opts = ["model.backbone.output_stride=8"]
    kept = evaluated(given, out, tmp_path / "kept", *opts)
    assert "model.aspp_ratios=null" in capsys.readouterr().err
    followed = evaluated(given, out, tmp_path / "followed", *opts, "model.aspp_ratios=null")
    assert "rates for output stride" not in capsys.readouterr().err
    dataset = SegBuilder(Config(str(given))).val_dataset
    kept_rates = at_stride_8(out / "best_model", (1, 6, 12, 18))
    assert moved(kept, confusion(kept_rates, dataset)) <= FEW
    assert moved(followed, confusion(at_stride_8(out / "best_model"), dataset)) <= FEW


def test_export_at_another_output_stride(phase_one, tmp_path):
    config, out = phase_one
    flags = ["--model_path", out / "best_model", "--output_op", "none", "--format", "legacy"]
    assert run("export", config, tmp_path, *flags, "--opts", "model.backbone.output_stride=8") == 0
    x = np.random.default_rng(0).standard_normal((1, 3, *SIZE[::-1]), np.float32)
    output = open_runtime(deploy_yaml.read(str(tmp_path)), RuntimeSettings()).run(x)
    with paddle.no_grad():
        expected, kept_rates = (
            infer_logits(at_stride_8(out / "best_model", rates), paddle.to_tensor(x)).numpy()
            for rates in ((1, 12, 24, 36), (1, 6, 12, 18))
        )
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-3)  # the export's own limit
    assert np.abs(output - kept_rates).max() > 0.1


def state(folder):
    return {k: np.asarray(v) for k, v in paddle.load(str(folder / "model.pdparams")).items()}


def test_two_phases(phase_one, tmp_path):
    """Phase 2 starts from phase 1's best model, at stride 8, with batch norm frozen to the bit."""
    config, out = phase_one
    second = {
        **V3P,
        "backbone": {"type": "ResNet18_vd", "output_stride": 8},
        "pretrained": str(out / "best_model" / "model.pdparams"),
        "freeze_bn": True,
    }
    path = write(tmp_path, second, name="two.yml", size=SIZE)
    # Frozen statistics of one small batch: a larger rate diverges.
    assert run("train", path, tmp_path / "two", "--learning_rate", "0.0001", "--do_eval") == 0
    before, after = state(out / "best_model"), state(tmp_path / "two" / "iter_2")
    assert before.keys() == after.keys()
    norms = [name for name in before if "_batch_norm" in name]
    assert {name.rsplit(".", 1)[1] for name in norms} == {"weight", "bias", "_mean", "_variance"}
    for name, value in before.items():
        same = np.array_equal(value, after[name])
        if "_batch_norm" in name:
            assert same, f"{name} moved"
        elif name.endswith("weight"):
            assert not same, f"{name} was not trained"
    # Phase 1 did train them.
    fresh = SegBuilder(Config(str(config))).model.state_dict()
    first = state(out / "iter_4")
    assert all((first[n] != fresh[n].numpy()).any() for n in norms if not n.endswith("bias"))


def one_batch(builder):
    samples = [builder.train_dataset[i] for i in range(2)]
    return [np.stack([sample[key] for sample in samples]) for key in ("img", "label")]


def cross_entropy(logits, labels):
    """Mean over what is not void; float64, from the definition."""
    z = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    kept = labels != 255
    picked = np.take_along_axis(log_p, np.where(kept, labels, 0)[:, None], 1)[:, 0]
    return -picked[kept].mean()


def losses_of(folder, model, **more):
    """(logits of the training mode, the loss, its parts, labels) of one batch of two."""
    builder = SegBuilder(Config(str(write(folder, model, **more))))
    images, labels = one_batch(builder)
    builder.model.train()
    logits = run_model(builder.model, paddle.to_tensor(images))
    loss, parts = compute_losses(logits, paddle.to_tensor(labels), builder.loss)
    loss.backward()
    for name, parameter in builder.model.named_parameters():
        assert parameter.stop_gradient or parameter.grad is not None, name
    return [y.numpy() for y in logits], float(loss), list(map(float, parts.values())), labels


def on_grid(labels, height, width):
    """Nearest, by the pixels' centres."""
    rows = ((np.arange(height) + 0.5) * labels.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[2] / width).astype(int)
    return labels[:, rows][:, :, columns]


@pytest.mark.parametrize(("size", "grid"), [("input", (49, 65)), ("stride", (13, 17))])
def test_labels_at_full_size_or_at_the_logits(tmp_path, size, grid):
    [logits], loss, parts, labels = losses_of(tmp_path, {**V3P, "logits_size": size})
    assert logits.shape == (2, 3, *grid)
    assert parts == [loss]
    # Float32 against float64: 1e-5 of a loss near 1.
    assert loss == pytest.approx(cross_entropy(logits, on_grid(labels, *grid)), abs=1e-5)


def test_v2_has_a_loss_on_each_scale_and_on_the_maximum(tmp_path):
    model = {
        "type": "DeepLabV2",
        "backbone": {"type": "ResNet18_vd", "output_stride": 8},
        "backbone_indices": [3],
        "logits_size": "stride",
    }
    logits, loss, parts, labels = losses_of(tmp_path, model, outputs=4)
    grid = (7, 9)  # 49 and 65 at stride 8
    assert logits[0].shape == logits[1].shape == (2, 3, *grid)
    assert parts == pytest.approx(
        [cross_entropy(y, on_grid(labels, *y.shape[2:])) for y in logits], abs=1e-5
    )
    assert loss == pytest.approx(sum(parts), abs=1e-5)
    assert (logits[0] >= logits[1]).all()
    assert (logits[0] > logits[1]).any()


def test_auxiliary_head(tmp_path):
    model = {
        "type": "DeepLabV3",
        "backbone": {"type": "ResNet18_vd", "output_stride": 16},
        "aspp_out_channels": 16,
        "aux": True,
    }
    logits, loss, parts, labels = losses_of(tmp_path, model, coef=[1, 0.4])
    assert [y.shape for y in logits] == [(2, 3, 49, 65)] * 2
    main, aux = (cross_entropy(y, labels) for y in logits)
    assert parts == pytest.approx([main, 0.4 * aux], abs=1e-5)
    assert loss == pytest.approx(main + 0.4 * aux, abs=1e-5)


@pytest.mark.parametrize("opts", [[], ["--data_format", "NHWC"]], ids=["NCHW", "NHWC"])
def test_batch_of_one(tmp_path, opts):
    config = write(tmp_path)
    assert run("train", config, tmp_path / "out", "--batch_size", 1, *opts) == 0
    for name, value in state(tmp_path / "out" / "iter_2").items():
        assert np.isfinite(value).all(), name


def test_losses_that_do_not_fit_the_outputs_are_told(tmp_path, capsys):
    config = write(tmp_path, coef=[1, 0.4])
    assert run("train", config, tmp_path / "out") == 2
    assert "gives 1 output(s) in training, but the config's loss has 2" in capsys.readouterr().err

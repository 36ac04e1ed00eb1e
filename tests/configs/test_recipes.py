# SPDX-License-Identifier: Apache-2.0
"""Every recipe builds all its parts without data; of each kind one training step runs, small."""

import re

import numpy as np
import paddle
import pytest
from places import ROOT

from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.models.forward import run_model
from paddleseg_deeplab.models.losses.total import compute_losses

CONFIGS = ROOT / "configs"
RECIPES = sorted(p for p in CONFIGS.rglob("*.yml") if p.parent.name != "_base_")
VOC, CITY, CONTEXT = (CONFIGS / name for name in ("pascal_voc12", "cityscapes", "pascal_context"))
# Recipes like these name a file that the user makes first, or weights on the net.
SMALL = {"type": "Shapes", "num_classes": 3, "num_samples": 2, "image_size": [49, 33]}
V2 = "deeplabv2_resnet101_os8_voc12aug_321x321_20k"
PHASES = [
    (f"deeplabv3_resnet{n}_os16_voc12aug_513x513_30k", f"deeplabv3_resnet{n}_os8_voc12_513x513_30k")
    for n in (50, 101)
]


def read(path, *opts):
    config = Config(str(path), opts=opts)
    config.drop_pretrained()
    return config


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_all_parts_are_built(path):
    builder = SegBuilder(read(path))
    with paddle.LazyGuard():  # no random numbers for weights that nobody runs
        model = builder.model
    assert model.num_classes == builder.config.model_cfg["num_classes"]
    assert builder.optimizer is not None
    assert builder.val_transforms
    assert builder._transforms("train_dataset", builder.config.train_dataset_cfg)
    assert len(builder.loss["types"]) == len(builder.loss["coef"])


# One of each kind, with its backbone at a smaller depth where depth changes nothing else.
R50 = "model.backbone.type=ResNet50"
KINDS = {
    "V1 VGG16": (VOC / "deeplabv1_vgg16_os8_voc12aug_321x321_6k", 1, []),
    "V1 VGG16 multi-scale features": (VOC / "deeplabv1_vgg16_msc_os8_voc12aug_321x321_6k", 1, []),
    "V1 ResNet": (VOC / "deeplabv1_resnet101_os8_voc12aug_321x321_20k", 1, [R50]),
    "V2 ResNet": (VOC / V2, 4, [R50]),
    "V2 VGG16": (VOC / "deeplabv2_vgg16_os8_voc12aug_321x321_20k", 1, []),
    "V3 phase 1": (VOC / PHASES[0][0], 1, []),
    "V3 phase 2": (VOC / PHASES[0][1], 1, []),
    "V3 cascade": (VOC / "deeplabv3_cascade_resnet101_os16_voc12aug_513x513_30k", 1, [R50]),
    "V3 cascade and ASPP": (CONTEXT / "deeplabv3_cascade_aspp_resnet50_os8_520x520_40k", 1, []),
    "V3+ ResNet": (VOC / "deeplabv3p_resnet101_os16_voc12aug_513x513_30k", 1, [R50]),
    "V3+ Xception": (CITY / "deeplabv3p_xception71_os16_769x769_90k", 1, []),
    "V3+ MobileNetV2": (CITY / "deeplabv3p_mobilenetv2_os16_769x769_90k", 1, []),
}


QUICK = ("V1 VGG16", "V2 VGG16", "V3 phase 1", "V3+ MobileNetV2")


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_one_step_of_each_kind(kind):
    path, outputs, opts = KINDS[kind]
    steps = [{"type": "RandomHorizontalFlip"}, {"type": "Normalize"}]
    train = {**SMALL, "mode": "train", "transforms": steps}
    val = {**SMALL, "mode": "val", "transforms": steps[1:]}
    config = read(f"{path}.yml", *opts, f"train_dataset={train}", f"val_dataset={val}")
    builder = SegBuilder(config)
    samples = [builder.train_dataset[i] for i in range(2)]
    images, labels = (
        paddle.to_tensor(np.stack([sample[key] for sample in samples])) for key in ("img", "label")
    )
    model, optimizer = builder.model, builder.optimizer
    model.train()
    logits = run_model(model, images)
    assert len(logits) == outputs
    full = config.model_cfg.get("logits_size", "input") == "input"
    assert (logits[0].shape[2:] == [33, 49]) is full
    loss, parts = compute_losses(logits, labels, builder.loss)
    assert len(parts) == outputs
    loss.backward()
    # A copy of what moves fastest: the head's tensors have the largest factor.
    before = {name: p.numpy().copy() for name, p in model.head.named_parameters()}
    optimizer.step()
    moved = [n for n, p in model.head.named_parameters() if (p.numpy() != before[n]).any()]
    assert moved
    assert all(bool(paddle.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("stem", [V2, "deeplabv1_resnet101_os8_voc12aug_321x321_20k"])
def test_three_groups_of_parameters(stem):
    builder = SegBuilder(read(VOC / f"{stem}.yml"))
    with paddle.LazyGuard():
        model = builder.model
    assert builder.optimizer is not None
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:  # frozen batch norm
            assert "_batch_norm" in name
            continue
        kind = (name.split(".")[0], name.split(".")[-1])
        rate = parameter.optimize_attr["learning_rate"]
        found.setdefault(kind, set()).add((rate, parameter.regularizer._coeff))
    assert found == {
        ("backbone", "weight"): {(1.0, 5e-4)},
        ("head", "weight"): {(10.0, 5e-4)},
        ("head", "bias"): {(20.0, 0.0)},
    }


@pytest.mark.parametrize(("first", "second"), PHASES, ids=["R50", "R101"])
def test_phase_two_starts_where_phase_one_ends(first, second):
    text = (VOC / f"{first}.yml").read_text(encoding="utf-8")
    [folder] = re.findall(r"--save_dir (\S+)", text)
    one, two = Config(str(VOC / f"{first}.yml")), Config(str(VOC / f"{second}.yml"))
    assert two.model_cfg["pretrained"] == f"{folder}/best_model/model.pdparams"
    assert two.model_cfg["backbone"]["pretrained"] is None
    assert (one.model_cfg["backbone"]["output_stride"], one.batch_size, one.iters) == (
        16,
        16,
        30000,
    )
    assert (two.model_cfg["backbone"]["output_stride"], two.batch_size, two.iters) == (8, 16, 30000)
    assert one.lr_scheduler_cfg["learning_rate"] == 0.007
    assert two.lr_scheduler_cfg["learning_rate"] == 0.001
    assert one.train_dataset_cfg["mode"] == "trainaug"
    assert two.train_dataset_cfg["mode"] == "train"
    assert two.model_cfg["freeze_bn"] is True


def test_papers_recipes_leave_the_rates_to_the_stride():
    papers = [p for p in RECIPES if re.search(r"(513x513|769x769)_[39]0k", p.stem)]
    assert len(papers) >= 13
    for path in papers:
        model = Config(str(path)).model_cfg
        assert model.get("aspp_ratios") is None
        assert model["align_corners"] is True  # crops of 8k + 1

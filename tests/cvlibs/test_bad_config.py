# SPDX-License-Identifier: Apache-2.0
"""Configs with mistakes: train says in one line which file, key and value, and writes nothing."""

import pytest
import yaml
from bad_input import GOOD, good_config, refuses

from paddleseg_deeplab.cli import train

# What the file holds, as bytes or text, and words of the message.
FILES = [
    ("", ["is empty"]),
    ("# only a comment\n", ["is empty"]),
    ("- a\n- b\n", ["keys and values", "list"]),
    ("just words\n", ["keys and values", "str"]),
    ("7\n", ["keys and values", "int"]),
    ("a: [1\n", ["not valid YAML"]),
    ("a: b: c\n", ["not valid YAML"]),
    ("\titers: 1\n", ["not valid YAML"]),
    ("iters: 1\niters: 2\n", ["'iters' is given twice"]),
    ("model: {type: A, type: B}\n", ["'type' is given twice"]),
    ("? [1, 2]\n: 3\n", ["plain word"]),
    ("iters: *missing\n", ["not valid YAML", "missing"]),
    ("x: &x {y: *x}\n", ["not valid YAML"]),
    ("a: !!python/object/apply:os.system [ls]\n", ["not valid YAML"]),
    ("a: !!python/name:os.system\n", ["not valid YAML"]),
    ("a: !env HOME\n", ["not valid YAML"]),
    ("--- {a: 1}\n--- {b: 2}\n", ["not valid YAML"]),
    ("iters: 2026-13-45\n", ["c.yml"]),
    (b"\xff\xfe\x00\x01iters", ["not valid YAML"]),
    (b"iters: 1\x00\n", ["not valid YAML"]),
    ("[" * 3000, ["not valid YAML"]),
    ("{a: " * 3000, ["not valid YAML"]),
    ("<<: 3\n", ["not valid YAML"]),
    ("<<: [1, 2]\niters: 1\n", ["not valid YAML"]),
    ("_base_: none.yml\n", ["none.yml", "does not exist"]),
    ("_base_: c.yml\n", ["circle"]),
    ("_base_: [c.yml]\n", ["circle"]),
    ("_base_: 5\n", ["_base_", "5"]),
    ("_base_: {a: b}\n", ["_base_"]),
    ("_base_: ''\n", ["_base_"]),
    ("_base_: .\n", ["_base_"]),
    ('"a\\nb": 2\n', ["unknown key"]),
    ("1: 2\n", ["1: unknown key"]),
    ("null: 2\n", ["None: unknown key"]),
    ("true: 2\n", ["True: unknown key"]),
]


@pytest.mark.parametrize(("content", "words"), FILES)
def test_files(tmp_path, monkeypatch, capsys, content, words):
    monkeypatch.chdir(tmp_path)
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "c.yml").write_bytes(raw)
    refuses(train.main, ["--config", "c.yml"], ["c.yml", *words], capsys, tmp_path)


# One setting on top of a good config (--opts), and words of the message.
SETTINGS = [
    # unknown keys at every level, with the nearest name
    ("itres=5", ["itres", "'iters'"]),
    ("batchsize=5", ["batchsize", "'batch_size'"]),
    ("optimiser={}", ["optimiser", "'optimizer'"]),
    ("loss.coefs=[1]", ["loss.coefs", "'coef'"]),
    ("loss.types.0.avg_no_ignore=True", ["loss.types.0.avg_no_ignore", "avg_non_ignore"]),
    ("model.asp_ratios=[1]", ["model.asp_ratios", "'aspp_ratios'"]),
    ("model.backbone.outputstride=8", ["model.backbone.outputstride", "'output_stride'"]),
    ("train_dataset.num_class=3", ["train_dataset.num_class", "'num_classes'"]),
    ("val_dataset.imagesize=[9,9]", ["val_dataset.imagesize", "'image_size'"]),
    ("train_dataset.transforms.0.cropsize=[9,9]", ["transforms.0.cropsize", "'crop_size'"]),
    ("optimizer.momentm=0.9", ["optimizer.momentm", "'momentum'"]),
    ("lr_scheduler.pwer=1", ["lr_scheduler", "'power'"]),
    ("lr_scheduler.warmup_iter=1", ["lr_scheduler", "warmup_iter"]),
    ("test_config.is_slid=True", ["test_config.is_slid", "'is_slide'"]),
    ("ema.decy=0.9", ["ema.decy", "decay"]),
    ("export.transform=[]", ["export.transform", "'transforms'"]),
    ("export={'transforms': [{'type': 'Normalise'}]}", ["export.transforms.0", "'Normalize'"]),
    ("optimizer.grad_clip_cfg={'name': 'ClipGradByNrm'}", ["grad_clip_cfg", "ClipGradByNorm"]),
    ("optimizer.custom_cfg=[{'name': 'backbonx', 'lr_mult': 2}]", ["backbonx", "backbone"]),
    ("optimizer.custom_cfg=[{'name': 'head', 'lr_mul': 2}]", ["custom_cfg", "lr_mul"]),
    # names of components
    ("model.type=DeepLabV4", ["model.type", "DeepLabV4", "DeepLabV3"]),
    ("model.backbone.type=ResNet51_vd", ["model.backbone.type", "ResNet51_vd", "ResNet50_vd"]),
    ("loss.types.0.type=CrossEntropy", ["loss.types.0.type", "CrossEntropyLoss"]),
    ("optimizer.type=SGDD", ["optimizer.type", "SGD"]),
    ("lr_scheduler.type=PolynomDecay", ["lr_scheduler", "PolynomialDecay"]),
    ("train_dataset.type=Shape", ["train_dataset.type", "Shapes"]),
    ("val_dataset.type=cityscapes", ["val_dataset.type", "Cityscapes"]),
    ("train_dataset.transforms.0.type=RandomCrop", ["transforms.0.type", "RandomCrop"]),
    ("model.type=os.system", ["model.type", "os.system"]),
    ("lr_scheduler.type=__class__", ["lr_scheduler", "__class__"]),
    ("lr_scheduler.type=LRScheduler", ["lr_scheduler", "LRScheduler"]),
    # wrong types
    ("iters=ten", ["iters", "'ten'"]),
    ("iters=1.5", ["iters", "1.5"]),
    ("iters=True", ["iters", "True"]),
    ("iters=None", ["iters", "None"]),
    ("iters=-3", ["iters", "-3"]),
    ("batch_size=0", ["batch_size", "0"]),
    ("batch_size=[2]", ["batch_size", "[2]"]),
    ("accumulation_steps=0", ["accumulation_steps", "0"]),
    ("dataset_root=5", ["dataset_root", "5"]),
    ("model=DeepLabV3P", ["model", "'DeepLabV3P'"]),
    ("model=None", ["model", "None"]),
    ("model.type=[1]", ["model", "`type`"]),
    ("model.backbone=ResNet18_vd", ["model.backbone", "'ResNet18_vd'"]),
    ("model.backbone=None", ["model.backbone", "None"]),
    ("model.aspp_out_channels=many", ["model", "aspp_out_channels", "'many'"]),
    ("model.aspp_out_channels=0", ["model", "aspp_out_channels", "0"]),
    ("model.aspp_out_channels=-4", ["model", "aspp_out_channels", "-4"]),
    ("model.aspp_ratios=6", ["model", "aspp_ratios", "6"]),
    ("model.aspp_ratios=[]", ["model", "aspp_ratios", "[]"]),
    ("model.aspp_ratios=[0,6]", ["model", "aspp_ratios", "[0, 6]"]),
    ("model.aspp_ratios=[1.5]", ["model", "aspp_ratios", "1.5"]),
    ("model.data_format=NCWH", ["model", "data_format", "NCWH"]),
    ("model.backbone.data_format=NHWC", ["data_format", "NHWC"]),
    ("model.align_corners=maybe", ["model", "align_corners", "maybe"]),
    ("model.pretrained=none.pdparams", ["model", "none.pdparams"]),
    ("model.pretrained=5", ["model", "pretrained", "5"]),
    ("model.backbone.pretrained=none.pdparams", ["model.backbone", "none.pdparams"]),
    ("model.backbone.output_stride=12", ["model.backbone", "output_stride", "12"]),
    ("model.backbone.output_stride=sixteen", ["model.backbone", "output_stride", "sixteen"]),
    ("model.backbone.multi_grid=[1,2,4,8]", ["model.backbone", "multi_grid", "[1, 2, 4, 8]"]),
    ("model.backbone.multi_grid=4", ["model.backbone", "multi_grid", "4"]),
    ("model.backbone.in_channels=zero", ["in_channels", "zero"]),
    ("train_dataset=Shapes", ["train_dataset", "'Shapes'"]),
    ("train_dataset.transforms=None", ["train_dataset.transforms", "None"]),
    ("train_dataset.transforms=Normalize", ["train_dataset.transforms", "'Normalize'"]),
    ("train_dataset.transforms.0=Normalize", ["train_dataset.transforms.0", "'Normalize'"]),
    ("train_dataset.transforms.0=None", ["train_dataset.transforms.0", "None"]),
    ("train_dataset.transforms.0.crop_size=32", ["transforms.0", "crop_size", "32"]),
    ("train_dataset.transforms.0.crop_size=[32]", ["transforms.0", "crop_size", "[32]"]),
    ("train_dataset.transforms.0.crop_size=[32,-1]", ["transforms.0", "crop_size", "-1"]),
    ("train_dataset.transforms.0.crop_size=[32,32.5]", ["transforms.0", "crop_size", "32.5"]),
    ("train_dataset.transforms.0.label_padding_value=x", ["label_padding_value", "'x'"]),
    ("train_dataset.transforms.0.ignore_index=x", ["transforms.0", "ignore_index", "'x'"]),
    ("train_dataset.transforms.1.mean=0.5", ["transforms.1", "mean", "0.5"]),
    ("train_dataset.transforms.1.std=[0,0,0]", ["transforms.1", "std", "0"]),
    ("train_dataset.transforms.1.mean=[a,b,c]", ["transforms.1", "mean", "'a'"]),
    ("train_dataset.transforms.1.mean=[0.5,0.5]", ["mean", "2", "3"]),
    ("train_dataset.mode=trian", ["train_dataset", "mode", "'trian'"]),
    ("train_dataset.mode=None", ["train_dataset", "mode", "None"]),
    ("train_dataset.num_samples=0", ["train_dataset", "num_samples", "0"]),
    ("train_dataset.num_samples=x", ["train_dataset", "num_samples", "'x'"]),
    ("train_dataset.image_size=[1,1]", ["train_dataset", "image_size", "[1, 1]"]),
    ("train_dataset.seed=-1", ["train_dataset", "seed", "-1"]),
    ("train_dataset.seed=x", ["train_dataset", "seed", "'x'"]),
    ("loss=CrossEntropyLoss", ["loss", "'CrossEntropyLoss'"]),
    ("loss.types=CrossEntropyLoss", ["loss.types", "list"]),
    ("loss.types=[]", ["loss.types", "list"]),
    ("loss.types.0=CrossEntropyLoss", ["loss.types.0", "'CrossEntropyLoss'"]),
    ("loss.coef=1", ["loss.coef", "1"]),
    ("loss.coef=[one]", ["loss.coef", "'one'"]),
    ("loss.coef=[]", ["loss", "coef"]),
    ("loss.coef=[.nan]", ["loss.coef", "nan"]),
    ("loss.coef=[.inf]", ["loss.coef", "inf"]),
    ("loss.coef=[-1]", ["loss.coef", "-1"]),
    ("loss.types.0.weight=[1,2]", ["CrossEntropyLoss", "weight", "2", "3"]),
    ("loss.types.0.weight=heavy", ["loss.types.0", "weight", "heavy"]),
    ("loss.types.0.top_k_percent_pixels=3", ["loss.types.0", "top_k_percent_pixels", "3"]),
    ("loss.types.0={'type':'MixedLoss','losses':5,'coef':[1]}", ["losses", "5"]),
    ("loss.types.0={'type':'MixedLoss','losses':[],'coef':[]}", ["loss.types.0", "losses"]),
    ("loss.types.0={'type':'MixedLoss','losses':['x'],'coef':[1]}", ["losses.0", "'x'"]),
    ("ema=0.9", ["ema", "0.9"]),
    ("ema.decay=2", ["ema", "decay", "2"]),
    ("ema.decay=x", ["ema", "decay", "'x'"]),
    ("test_config=5", ["test_config", "5"]),
    ("test_config.crf=5", ["test_config.crf", "5"]),
    ("test_config.crf={'bilateral_xi':5}", ["test_config.crf", "bilateral_xy"]),
    ("test_config.crf={'iterations':-1}", ["test_config.crf", "iterations", "-1"]),
    ("test_config.aug_eval=perhaps", ["test_config.aug_eval", "perhaps"]),
    ("test_config.scales=big", ["test_config.scales", "big"]),
    ("test_config.scales=[0]", ["test_config.scales", "0"]),
    ("test_config.scales=[]", ["test_config.scales"]),
    ("test_config.flip_horizontal=2", ["test_config.flip_horizontal", "2"]),
    ("export=5", ["export", "5"]),
    ("export={'transforms': 5}", ["export.transforms", "5"]),
    ("export={'transforms': [5]}", ["export.transforms.0", "5"]),
    # optimizer and learning rate
    ("optimizer=SGD", ["optimizer", "'SGD'"]),
    ("optimizer.momentum=1.5", ["optimizer", "momentum", "1.5"]),
    ("optimizer.momentum=x", ["optimizer", "momentum", "'x'"]),
    ("optimizer.weight_decay=-1", ["optimizer", "weight_decay", "-1"]),
    ("optimizer.weight_decay=.nan", ["optimizer", "weight_decay", "nan"]),
    ("optimizer.weight_decay=x", ["optimizer", "weight_decay", "'x'"]),
    ("optimizer.custom_cfg=5", ["optimizer", "custom_cfg", "5"]),
    ("optimizer.custom_cfg=[5]", ["optimizer", "custom_cfg", "5"]),
    ("optimizer.grad_clip_cfg=5", ["optimizer", "grad_clip_cfg", "5"]),
    ("optimizer.grad_clip_cfg={'name':'ClipGradByNorm'}", ["optimizer", "clip_norm"]),
    ("optimizer={'type':'AdamW','beta1':2}", ["optimizer", "beta1", "2"]),
    ("lr_scheduler=0.1", ["lr_scheduler", "0.1"]),
    ("lr_scheduler.learning_rate=fast", ["lr_scheduler", "learning_rate", "'fast'"]),
    ("lr_scheduler.learning_rate=-0.1", ["lr_scheduler", "learning_rate", "-0.1"]),
    ("lr_scheduler.learning_rate=None", ["lr_scheduler", "learning_rate", "None"]),
    ("lr_scheduler.learning_rate=.nan", ["lr_scheduler", "learning_rate", "nan"]),
    ("lr_scheduler.learning_rate=.inf", ["lr_scheduler", "learning_rate", "inf"]),
    ("lr_scheduler.end_lr=x", ["lr_scheduler", "end_lr", "'x'"]),
    ("lr_scheduler.power=x", ["lr_scheduler", "power", "'x'"]),
    ("lr_scheduler.power=-1", ["lr_scheduler", "power", "-1"]),
    ("lr_scheduler.decay_steps=0", ["lr_scheduler", "decay_steps", "0"]),
    ("lr_scheduler.decay_steps=x", ["lr_scheduler", "decay_steps", "'x'"]),
    ("lr_scheduler.warmup_iters=-1", ["lr_scheduler", "warmup_iters", "-1"]),
    ("lr_scheduler.warmup_iters=2.5", ["lr_scheduler", "warmup_iters", "2.5"]),
    ("lr_scheduler={'type':'StepDecay','learning_rate':0.1}", ["lr_scheduler", "step_size"]),
    ("lr_scheduler={'type':'StepDecay','learning_rate':0.1,'step_size':x}", ["lr_scheduler"]),
    ("lr_scheduler={'type':'CosineAnnealingDecay'}", ["lr_scheduler", "learning_rate"]),
    ("lr_scheduler={'type':'CosineAnnealingDecay','learning_rate':1,'T_max':0}", ["T_max", "0"]),
    ("lr_scheduler={'type':'PiecewiseDecay','boundaries':[1],'values':[1]}", ["PiecewiseDecay"]),
    ("lr_scheduler={'type':'PiecewiseDecay','boundaries':5,'values':[1]}", ["PiecewiseDecay"]),
    # combinations that cannot be
    ("model.num_classes=7", ["model.num_classes", "7", "3"]),
    ("val_dataset.num_classes=4", ["num_classes", "train_dataset 3", "val_dataset 4"]),
    ("train_dataset.num_classes=1", ["num_classes", "1"]),
    ("train_dataset.num_classes=300", ["num_classes", "300"]),
    ("val_dataset.img_channels=4", ["img_channels", "3", "4"]),
    ("model.backbone.in_channels=1", ["model.backbone.in_channels", "1", "3"]),
    ("model.backbone_indices=[3,0]", ["model", "backbone_indices", "order"]),
    ("model.backbone_indices=[0]", ["model", "backbone_indices", "[0]"]),
    ("model.backbone_indices=[0,9]", ["model", "backbone_indices", "9"]),
    ("model.backbone_indices=3", ["model", "backbone_indices", "3"]),
    ("model.backbone_indices=[a,b]", ["model", "backbone_indices", "'a'"]),
    ("loss.types.0.ignore_index=0", ["loss.types.0.ignore_index", "0", "255"]),
    ("loss.coef=[1,0.4]", ["loss", "1 output", "2"]),
    ("loss.types=[{'type':'CrossEntropyLoss'},{'type':'DiceLoss'}]", ["loss", "2 types"]),
    ("lr_scheduler={'type':'PolynomialDecay','learning_rate':0,'warmup_iters':1}", ["first rate"]),
    ("test_config={'is_slide':True}", ["test_config", "crop_size"]),
    ("test_config={'is_slide':True,'crop_size':[8,8],'stride':[9,9]}", ["stride", "9", "8"]),
    ("test_config={'is_slide':True,'crop_size':[8],'stride':[8,8]}", ["crop_size", "[8]"]),
    ("test_config={'is_slide':True,'crop_size':'ab','stride':[8,8]}", ["crop_size", "'ab'"]),
    # --opts themselves
    ("iters", ["key=value", "'iters'"]),
    ("=5", ["key=value"]),
    ("model.backbon.depth=5", ["model.backbon", "'backbone'"]),
    ("iters.x=1", ["iters.x", "plain value"]),
    ("loss.types.7.type=DiceLoss", ["loss.types.7", "index below 1"]),
    ("loss.types.x=5", ["loss.types.x", "index below 1"]),
    ("loss.types.-1=5", ["loss.types.-1", "index below 1"]),
    ("loss.types.²=5", ["loss.types.²", "index below 1"]),
    (".=5", ["key=value"]),
    ("it\ners=5", ["key=value"]),
    ("model..type=5", ["key=value"]),
]
# Read before the first batch only if --do_eval is given.
_EVALUATION = ("test_config", "val_dataset")


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=[s for s, _ in SETTINGS])
def test_settings(tmp_path, monkeypatch, capsys, setting, words):
    monkeypatch.chdir(tmp_path)
    flags = ["--config", good_config(tmp_path), "--device", "cpu", "--opts", setting]
    flags += ["--do_eval"] if setting.startswith(_EVALUATION) else []
    line = refuses(train.main, flags, words, capsys, tmp_path)
    assert "c.yml: " in line or "error: --opts " in line


SECTIONS = ["train_dataset", "model", "optimizer", "lr_scheduler", "loss", "iters"]


@pytest.mark.parametrize("name", SECTIONS)
def test_missing_sections(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    config = good_config(tmp_path, **{name: None})
    refuses(train.main, ["--config", config], ["c.yml", name], capsys, tmp_path)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("model", "type"),
        ("model", "backbone"),
        ("optimizer", "type"),
        ("lr_scheduler", "type"),
        ("lr_scheduler", "learning_rate"),
        ("train_dataset", "type"),
        ("loss", "types"),
    ],
)
def test_missing_keys(tmp_path, monkeypatch, capsys, section, key):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(GOOD)
    del content[section][key]
    (tmp_path / "c.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    refuses(train.main, ["--config", "c.yml"], ["c.yml", section, key], capsys, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Code written for PaddleSeg, with the package's name changed."""

import random
import subprocess
import sys
import types

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from places import ROOT

import paddleseg_deeplab
from paddleseg_deeplab.cvlibs import Config, SegBuilder, manager, param_init
from paddleseg_deeplab.models import layers
from paddleseg_deeplab.transforms import Compose
from paddleseg_deeplab.utils import logger, utils
from paddleseg_deeplab.utils.errors import PackageError, UserError
from paddleseg_deeplab.utils.installed import require_paddle


def in_a_new_process(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "",
        # Importing the modules puts them into the package under the functions' names.
        "import paddleseg_deeplab.core.train, paddleseg_deeplab.core.predict\n",
        "from paddleseg_deeplab.core.train import train as t\n",
    ],
)
def test_core_gives_functions(first):
    code = (
        f"{first}from paddleseg_deeplab.core import train, evaluate, predict, export\n"
        "import paddleseg_deeplab.core as core\n"
        "import paddleseg_deeplab.core.train, paddleseg_deeplab.deploy.export\n"
        "assert core.train is train and core.export is export\n"
        "from paddleseg_deeplab.core import infer\n"
        "assert callable(infer.inference) and core.infer is infer\n"
        "print(*(f.__name__ for f in (train, evaluate, predict, export)))"
    )
    assert in_a_new_process(code) == "train evaluate predict export"


def test_the_package_imports_little():
    code = (
        "import sys, paddleseg_deeplab as p\n"
        "assert 'paddle' not in sys.modules\n"
        "print(p.transforms.Normalize.__name__, p.models.DeepLabV3P.__name__)"
    )
    assert in_a_new_process(code) == "Normalize DeepLabV3P"
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        _ = paddleseg_deeplab.modles


@pytest.mark.parametrize(
    "statement",
    [
        "import paddleseg_deeplab.models",
        "from paddleseg_deeplab.cvlibs import SegBuilder",
        "from paddleseg_deeplab.core import train",
        "import paddleseg_deeplab.core",
        "import paddleseg_deeplab.optimizers",
    ],
)
def test_without_paddle_both_install_commands_are_named(statement):
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        f"try:\n    {statement}\n"
        "except ImportError as error:\n    print(error)"
    )
    told = in_a_new_process(code)
    assert "pip install 'paddlepaddle>=3.0'" in told
    assert "paddlepaddle-gpu" in told
    assert "\n" not in told


def test_missing_paddle_is_both_kinds_of_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(PackageError) as caught:
        require_paddle()
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ImportError)


class TinyNet(nn.Layer):
    """A backbone with bare keyword arguments, initialised as PaddleSeg's are."""

    def __init__(self, **kwargs):
        super().__init__()
        self.given = kwargs
        channels = kwargs.get("in_channels", 3)
        self.add = layers.Add()
        self.a = layers.ConvBNReLU(channels, 8, 3, stride=4, padding=1)
        self.b = layers.ConvBNReLU(8, 16, 3, stride=4, padding=1)
        self.feat_channels = [8, 16]
        for layer in self.sublayers():
            if isinstance(layer, nn.Conv2D):
                param_init.kaiming_normal_init(layer.weight)
            elif isinstance(layer, nn.BatchNorm2D):
                param_init.constant_init(layer.weight, value=0.5)
        if kwargs.get("pretrained") is not None:
            utils.load_pretrained_model(self, kwargs["pretrained"])

    def forward(self, x):
        a = self.a(x)
        return [self.add(a, a), self.b(a)]


class OwnFlip:
    """A transform without `rng` that changes the sample in place."""

    def __init__(self, prob=0.5):
        self.prob = prob

    def __call__(self, data):
        if random.random() < self.prob:
            data["img"] = data["img"][:, ::-1]
            for key in data.get("gt_fields", []):
                data[key] = data[key][:, ::-1]
        return data


class OwnLoss(nn.Layer):
    """A loss that knows NCHW logits only."""

    def __init__(self, ignore_index=255):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logit, label):
        logit = logit.transpose([0, 2, 3, 1])
        return F.cross_entropy(logit, label, ignore_index=self.ignore_index)


class OwnData(paddle.io.Dataset):
    """Samples of a plain index; the label [1, H, W] outside training."""

    NUM_CLASSES = 2
    IMG_CHANNELS = 3
    IGNORE_INDEX = 255

    def __init__(self, transforms, dataset_root=None, mode="train", edge=False):
        self.transforms = Compose(transforms)
        self.mode = mode
        self.num_classes = self.NUM_CLASSES
        self.ignore_index = 255
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 2, (3, 40, 48), dtype=np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, idx):
        data = {"trans_info": [], "img": self.images[idx], "label": self.labels[idx]}
        data["gt_fields"] = [] if self.mode == "val" else ["label"]
        data = self.transforms(data)
        if self.mode == "val":
            data["label"] = data["label"][np.newaxis, :, :]
        return data


class FourChannels(OwnData):
    IMG_CHANNELS = 4


RECIPE = """
batch_size: 2
iters: 1
train_dataset:
  type: OwnData
  transforms:
    - type: OwnFlip
    - {type: RandomPaddingCrop, crop_size: [32, 32]}
    - type: Normalize
val_dataset: {type: OwnData, mode: val, transforms: [{type: Normalize}]}
model:
  type: DeepLabV3P
  backbone: {type: TinyNet, anything: 1}
  backbone_indices: [0, 1]
  aspp_ratios: [1, 2]
  aspp_out_channels: 8
loss:
  types:
    - type: MixedLoss
      losses: [{type: OwnLoss}, {type: CrossEntropyLoss}]
      coef: [0.5, 0.5]
  coef: [1]
optimizer: {type: SGD, momentum: 0.9, weight_decay: 4.0e-5}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.01}
"""


@pytest.fixture
def recipe(tmp_path):
    own = [
        (manager.BACKBONES, TinyNet),
        (manager.TRANSFORMS, OwnFlip),
        (manager.LOSSES, OwnLoss),
        (manager.DATASETS, OwnData),
        (manager.DATASETS, FourChannels),
    ]
    for registry, component in own:
        registry.add_component(component)
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE, encoding="utf-8")
    yield path
    for registry, component in own:
        del registry.components_dict[component.__name__]


def test_components_of_one_s_own_train_and_evaluate(recipe, tmp_path):
    from paddleseg_deeplab.core import evaluate, train

    builder = SegBuilder(Config(str(recipe)))
    before = builder.train_dataset.images.copy()
    assert (builder.model.backbone.a._batch_norm.weight.numpy() == 0.5).all()
    train(
        builder.model,
        builder.train_dataset,
        val_dataset=builder.val_dataset,
        optimizer=builder.optimizer,
        save_dir=str(tmp_path / "out"),
        iters=1,
        batch_size=2,
        losses=builder.loss,
    )
    assert np.array_equal(builder.train_dataset.images, before)
    assert (tmp_path / "out/best_model/model.pdparams").is_file()
    miou, accuracy, class_iou, class_precision, kappa = evaluate(
        builder.model, builder.val_dataset, print_detail=False
    )
    assert 0 <= miou <= accuracy <= 1
    assert len(class_iou) == len(class_precision) == 2
    assert -1 <= kappa <= 1
    assert isinstance(logger, types.ModuleType)
    logger.info("PaddleSeg's logger is a module with functions.")


def test_keyword_arguments_get_what_they_cannot_guess(recipe):
    assert SegBuilder(Config(str(recipe))).model.backbone.given == {"anything": 1}
    opts = ["train_dataset.type=FourChannels", "val_dataset.type=FourChannels"]
    backbone = SegBuilder(Config(str(recipe), opts=opts)).model.backbone
    assert backbone.given == {"anything": 1, "in_channels": 4}


@pytest.mark.parametrize(
    ("first", "layouts"),
    [
        # One loss of the mix knows NCHW only: both get that.
        ("OwnLoss", [None, None]),
        ("DiceLoss", ["NHWC", "NHWC"]),
    ],
)
def test_losses_follow_the_model_s_layout_where_they_can(recipe, first, layouts):
    from paddleseg_deeplab.models.losses.total import compute_losses

    config = Config(str(recipe), opts=[f"loss.types.0.losses.0.type={first}"])
    config.set_data_format("NHWC")
    builder = SegBuilder(config)
    given = [part.get("data_format") for part in builder.config.loss_cfg["types"][0]["losses"]]
    assert given == layouts
    logits = paddle.randn([2, 5, 6, 2])
    label = paddle.randint(0, 2, [2, 5, 6])
    total, _ = compute_losses([logits], label, builder.loss, "NHWC")
    plain = SegBuilder(Config(str(recipe), opts=[f"loss.types.0.losses.0.type={first}"]))
    expected, _ = compute_losses([logits.transpose([0, 3, 1, 2])], label, plain.loss)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)

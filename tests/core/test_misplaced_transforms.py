# SPDX-License-Identifier: Apache-2.0
"""Transforms that move pixels for good are refused from Python too, where masks are predicted."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import evaluate, predict, train
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models.losses import CrossEntropyLoss
from paddleseg_deeplab.transforms import Compose, Normalize, RandomHorizontalFlip, Resize
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import save_image


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        return [self.conv(x)]


class Mine:
    def __call__(self, data):
        return data


def shapes(*steps, mode="val"):
    return Shapes(list(steps), mode, image_size=(32, 24), num_samples=2)


@pytest.mark.parametrize("step", [RandomHorizontalFlip(), Mine()])
def test_evaluate(step):
    with pytest.raises(UserError, match=f"evaluate: transforms: {type(step).__name__} "):
        evaluate(Net(), shapes(Normalize(), step), print_detail=False, progress=False)


def test_train_says_so_before_it_begins(tmp_path):
    model = Net()
    with pytest.raises(UserError, match="evaluate: transforms: RandomHorizontalFlip "):
        train(
            *(model, shapes(Normalize(), mode="train"), shapes(RandomHorizontalFlip())),
            optimizer=paddle.optimizer.SGD(0.01, parameters=model.parameters()),
            losses={"types": [CrossEntropyLoss()], "coef": [1.0]},
            save_dir=str(tmp_path),
            iters=9,
        )
    assert not [*tmp_path.glob("iter_*")]


def test_evaluate_where_labels_move_along():
    """In mode "train" they do, so their scores are right."""
    data = shapes(RandomHorizontalFlip(), Normalize(), mode="train")
    result = evaluate(Net(), data, print_detail=False, progress=False)
    assert result.confusion.label_area.sum() == 2 * 32 * 24


def test_evaluate_with_steps_that_are_undone():
    data = shapes(Resize((48, 40)), Normalize())
    result = evaluate(Net(), data, print_detail=False, progress=False)
    assert result.confusion.label_area.sum() == 2 * 32 * 24


@pytest.mark.parametrize("step", [RandomHorizontalFlip(), Mine()])
def test_predict(step, tmp_path):
    path = str(tmp_path / "a.png")
    save_image(path, np.zeros((24, 32, 3), np.uint8))
    compose = Compose([step, Normalize()])
    with pytest.raises(UserError, match=f"predict: transforms: {type(step).__name__} "):
        predict(Net(), None, compose, [path], save_dir=str(tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()

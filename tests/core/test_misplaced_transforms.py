# SPDX-License-Identifier: Apache-2.0
"""Transforms that move pixels for good are refused from Python too, where masks are predicted."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import evaluate, predict, train
from paddleseg_deeplab.datasets import Dataset, Shapes
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


def unlabelled(folder):
    save_image(folder / "a.png", np.zeros((24, 32, 3), np.uint8))
    (folder / "list.txt").write_text("a.png\n")
    return Dataset("test", str(folder), [Normalize()], 3, test_path="list.txt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda _: {"val": shapes(RandomHorizontalFlip())}, "evaluate: transforms: RandomHoriz"),
        (lambda folder: {"val": unlabelled(folder)}, "val_dataset: 1 of 1 images have no label"),
        (lambda folder: {"train": unlabelled(folder)}, "train_dataset: 1 of 1 images have no"),
        (lambda _: {"test_config": {"size_divisor": 0}}, "size_divisor takes a positive whole"),
        (lambda _: {"test_config": {"is_slide": True}}, "crop_size"),
        (lambda _: {"test_config": {"aug_eval": True, "scales": [0]}}, "scales takes positive"),
    ],
)
def test_train_says_so_before_it_begins(wrong, message, tmp_path):
    """What else would end it at the first evaluation, or at the first iteration."""
    model, out = Net(), tmp_path / "out"
    given = {"train": shapes(Normalize(), mode="train"), "val": shapes(Normalize())}
    given |= wrong(tmp_path)
    with pytest.raises(UserError, match=message):
        train(
            *(model, given["train"], given["val"]),
            optimizer=paddle.optimizer.SGD(0.01, parameters=model.parameters()),
            losses={"types": [CrossEntropyLoss()], "coef": [1.0]},
            test_config=given.get("test_config"),
            save_dir=str(out),
            iters=9,
        )
    assert not out.exists()


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

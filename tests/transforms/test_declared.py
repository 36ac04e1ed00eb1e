# SPDX-License-Identifier: Apache-2.0
"""Who may be read from threads, and whose randomness follows from the sample."""

import random
import re

import numpy as np
import pytest
from places import ROOT

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab import datasets, registry
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.prediction.batching import automatic_workers, workers_for
from paddleseg_deeplab.transforms.declared import declares

NAMES = ("thread_safe", "draws_from_rng")
PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")


def said(dataset):
    return tuple(declares(dataset, name) for name in NAMES)


def shapes(*transforms, kind=Shapes):
    return kind(list(transforms), image_size=(32, 24), num_samples=2)


class Silent(T.Normalize):
    """Says nothing; what runs is a parent's code."""


class Other(T.Normalize):
    """Another call than its parent's, which is the one that declares."""

    def __call__(self, data):
        return {**data, "img": data["img"] + np.random.rand()}


class Both(T.Normalize):
    thread_safe = draws_from_rng = True


class Threads(T.Normalize):
    thread_safe = True


class Draws(T.Normalize):
    thread_safe, draws_from_rng = False, True


class Truthy(T.Normalize):
    thread_safe = draws_from_rng = "yes"


class Wrapper:
    """A user's wrapper says nothing for what it wraps, and hides what it does."""

    def __init__(self, wrapped):
        self.wrapped = wrapped


class OpenWrapper(Wrapper):
    thread_safe = draws_from_rng = True


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (shapes(T.Normalize(), T.RandomNoise()), (True, True)),
        (shapes(Silent()), (False, False)),
        (shapes(Other()), (False, False)),
        (shapes(T.RandomNoise(), Both()), (True, True)),
        (shapes(Threads()), (True, False)),
        (shapes(Draws()), (False, True)),
        (shapes(Threads(), Draws()), (False, False)),
        (shapes(Truthy()), (False, False)),
        (shapes(T.Compose([Both()])), (True, True)),
        (shapes(T.Compose([Both(), Silent()])), (False, False)),
        (Wrapper(shapes()), (False, False)),
        (OpenWrapper(shapes()), (True, True)),
        (OpenWrapper(shapes(Draws())), (False, True)),
        (OpenWrapper(Wrapper(shapes())), (False, False)),
        (object(), (False, False)),
    ],
)
def test_each_class_speaks_for_itself(dataset, expected):
    assert said(dataset) == expected
    assert workers_for(dataset) == (automatic_workers() if expected[0] else 0)
    assert workers_for(dataset, 3) == 3


def test_a_subclass_of_a_dataset_speaks_for_itself():
    class Reads(Shapes):
        def load_image(self, index):
            return super().load_image(index) + np.random.rand()

    assert said(shapes(kind=Reads)) == (False, False)

    class Says(Reads):
        thread_safe = True

    assert said(shapes(kind=Says)) == (True, False)


def test_ours_say_so():
    ours = [getattr(T, name) for name in T.__all__ if name in registry.TRANSFORMS.components_dict]
    ours += [
        getattr(datasets, name)
        for name in datasets.__all__
        if name in registry.DATASETS.components_dict
    ]
    assert len(ours) > 30
    for kind in ours:
        assert [vars(kind).get(name) for name in NAMES] == [True, True], kind


def test_the_example_of_the_page(monkeypatch):
    monkeypatch.setattr(
        registry.TRANSFORMS, "_components_dict", dict(registry.TRANSFORMS.components_dict)
    )
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "datasets.md", "exec"), {"__name__": "mine"})
    transform = registry.TRANSFORMS["RandomGamma"](most=2)
    dataset = shapes(transform, T.Normalize())
    assert said(dataset) == (True, True)
    before = random.getstate(), np.random.get_state()[1].copy()
    first, again, other = dataset[0, 0], dataset[0, 0], dataset[0, 1]
    np.testing.assert_array_equal(first["img"], again["img"])
    assert (first["img"] != other["img"]).any()
    assert np.isfinite(first["img"]).all()
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    for name in NAMES:
        assert f"| `{name}` |" in PAGE

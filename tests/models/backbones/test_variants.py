# SPDX-License-Identifier: Apache-2.0
"""The named sizes of the backbones: each its network with one parameter settled."""

import inspect
import pickle

import pytest

from paddleseg_deeplab import registry
from paddleseg_deeplab.models import backbones
from paddleseg_deeplab.models.backbones.variants import variant

VARIANTS = [name for name in backbones.__all__ if inspect.isfunction(getattr(backbones, name))]


def network_of(name):
    """The class whose size `name` says."""
    if name.startswith("ResNet"):
        return backbones.ResNet_vd if name.endswith("_vd") else backbones.ResNet
    return backbones.XceptionDeeplab if name.startswith("Xcep") else backbones.MobileNetV2


@pytest.mark.parametrize("name", VARIANTS)
def test_takes_all_of_its_network_but_the_size(name):
    """What a config's keys are checked against, and where pickle and messages look for it."""
    build, network = getattr(backbones, name), network_of(name)
    _, *others = inspect.signature(network).parameters.values()
    assert list(inspect.signature(build).parameters.values()) == others
    assert registry.BACKBONES[name] is build
    assert pickle.loads(pickle.dumps(build)) is build
    assert build.__module__ == network.__module__
    assert build.__doc__.startswith(f"Builds `{network.__name__}` of ")


def test_all_are_there():
    assert len(VARIANTS) == 17


def test_passes_arguments_on(monkeypatch):
    monkeypatch.setattr(registry.BACKBONES, "_components_dict", {})

    class Network:
        def __init__(self, width, depth=3, *, rate=1):
            self.given = width, depth, rate

    build = variant("Wide", Network, 8, "width 8")
    assert str(inspect.signature(build)) == "(depth=3, *, rate=1)"
    assert build().given == (8, 3, 1)
    assert build(5, rate=2).given == (8, 5, 2)
    assert registry.BACKBONES["Wide"] is build
    for wrong in ({"width": 9}, {"rat": 2}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            build(**wrong)

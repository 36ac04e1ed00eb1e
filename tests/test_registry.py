# SPDX-License-Identifier: Apache-2.0
import pytest

from paddleseg_deeplab.cvlibs.manager import ComponentManager


def _registry():
    registry = ComponentManager("shapes")

    @registry.add_component
    class Circle:
        pass

    return registry, Circle


def test_decorator_registers_and_returns_the_class():
    registry, circle = _registry()
    assert registry["Circle"] is circle
    assert "Circle" in registry
    assert len(registry) == 1


def test_a_list_of_classes_and_functions():
    registry, _ = _registry()

    def square():
        pass

    class Star:
        pass

    assert registry.add_component([square, Star]) == [square, Star]
    assert sorted(registry.components_dict) == ["Circle", "Star", "square"]


def test_a_miss_lists_the_known_names_and_the_nearest():
    registry, _ = _registry()
    with pytest.raises(KeyError, match=r"'Circel'.*shapes: Circle\..*Did you mean 'Circle'"):
        registry["Circel"]
    with pytest.raises(KeyError, match="Did you mean 'Circle'"):
        registry["CIRCLE"]


def test_a_duplicate_is_refused():
    registry, circle = _registry()
    with pytest.raises(KeyError, match="already registered"):
        registry.add_component(circle)


@pytest.mark.parametrize("thing", [1, "Circle", object()])
def test_only_classes_and_functions(thing):
    registry, _ = _registry()
    with pytest.raises(TypeError, match="class or a function"):
        registry.add_component([thing])

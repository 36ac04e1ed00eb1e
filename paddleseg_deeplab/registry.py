# SPDX-License-Identifier: Apache-2.0
"""Registries: the names that a YAML file can use, and the classes or functions behind them."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

# One class or function, or a sequence of them.
_Given = TypeVar("_Given", bound=Callable[..., Any] | Sequence[Callable[..., Any]])


class ComponentManager:
    """Maps a component's name to the class or function of that name.

    Use it as a decorator, as in PaddleSeg::

        @manager.BACKBONES.add_component
        class MyBackbone(nn.Layer): ...

    Args:
        name (str): What the registry holds, in the plural; used in messages.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name or "components"
        self._components_dict: dict[str, Callable[..., Any]] = {}

    def __len__(self) -> int:
        return len(self._components_dict)

    def __contains__(self, name: object) -> bool:
        return name in self._components_dict

    def __repr__(self) -> str:
        return f"{self._name}: {sorted(self._components_dict)}"

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Returns the component; KeyError names the known ones and the nearest."""
        if name not in self._components_dict:
            names = {known.lower(): known for known in self._components_dict}
            near = difflib.get_close_matches(str(name).lower(), names, n=1)
            hint = f" Did you mean {names[near[0]]!r}?" if near else ""
            known = ", ".join(sorted(self._components_dict))
            raise KeyError(f"{name!r} is not among the registered {self._name}: {known}.{hint}")
        return self._components_dict[name]

    @property
    def components_dict(self) -> dict[str, Callable[..., Any]]:
        return self._components_dict

    @property
    def name(self) -> str:
        return self._name

    def _add_single_component(self, component: Callable[..., Any]) -> None:
        if not (inspect.isclass(component) or inspect.isfunction(component)):
            raise TypeError(f"{self._name} takes a class or a function, not {type(component)}.")
        name = component.__name__
        # PaddleSeg warns and replaces: a second component of the same name is a hidden fault.
        if name in self._components_dict:
            raise KeyError(
                f"{name!r} is already registered in {self._name} "
                f"by {self._components_dict[name].__module__}; choose another name."
            )
        self._components_dict[name] = component

    def add_component(self, components: _Given) -> _Given:
        """Registers one class or function, or a sequence of them, and returns what it was given.

        Raises:
            TypeError: something other than a class or a function.
            KeyError: the name is taken.
        """
        for component in components if isinstance(components, Sequence) else [components]:
            self._add_single_component(component)
        return components


MODELS = ComponentManager("models")
BACKBONES = ComponentManager("backbones")
DATASETS = ComponentManager("datasets")
TRANSFORMS = ComponentManager("transforms")
LOSSES = ComponentManager("losses")
OPTIMIZERS = ComponentManager("optimizers")
LR_SCHEDULERS = ComponentManager("lr_schedulers")
SAMPLERS = ComponentManager("samplers")

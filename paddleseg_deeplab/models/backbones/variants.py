# SPDX-License-Identifier: Apache-2.0
"""Functions that build a backbone of one size: ``ResNet50(...)`` is ``ResNet(50, ...)``."""

import inspect
from collections.abc import Callable

from paddle import nn

from paddleseg_deeplab import registry


def variant(
    name: str, network: type[nn.Layer], size: float | str, words: str
) -> Callable[..., nn.Layer]:
    """Registers the function that builds one size of a network.

    Args:
        name (str): Of the function, as configs give it.
        network (type): The class. Its first parameter is the size.
        size: Value of that parameter.
        words (str): What the function builds of the network, for its docstring.

    Returns:
        callable: Takes the network's other parameters, by the same names, order and defaults. Its
            signature says so, which the keys of a config are checked against.
    """
    others = list(inspect.signature(network).parameters.values())[1:]

    def build(*args, **kwargs):
        return network(size, *args, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__module__ = network.__module__
    build.__doc__ = f"Builds `{network.__name__}` of {words}; its other arguments, same defaults."
    # `inspect` reads it, but the types of functions know no such attribute.
    build.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
    return registry.BACKBONES.add_component(build)

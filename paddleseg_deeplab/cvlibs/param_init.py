# SPDX-License-Identifier: Apache-2.0
"""Initialises a parameter in place, under PaddleSeg's names, for components of one's own.

Each function takes the parameter and the keyword arguments of Paddle's initialiser, such as
``constant_init(layer.weight, value=1.0)``.
"""

from collections.abc import Callable

from paddle.nn import initializer


def _function(name: str, kind: type[initializer.Initializer]) -> Callable[..., None]:
    def init(param, **kwargs):
        kind(**kwargs)(param, param.block)

    init.__name__ = init.__qualname__ = name
    init.__doc__ = f"Fills the parameter by `paddle.nn.initializer.{kind.__name__}`."
    return init


constant_init = _function("constant_init", initializer.Constant)
normal_init = _function("normal_init", initializer.Normal)
uniform_init = _function("uniform_init", initializer.Uniform)
trunc_normal_init = _function("trunc_normal_init", initializer.TruncatedNormal)
kaiming_normal_init = _function("kaiming_normal_init", initializer.KaimingNormal)
kaiming_uniform = _function("kaiming_uniform", initializer.KaimingUniform)
xavier_uniform = _function("xavier_uniform", initializer.XavierUniform)

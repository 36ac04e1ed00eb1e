# SPDX-License-Identifier: Apache-2.0
"""What classes of datasets and transforms declare of themselves.

- ``thread_safe = True``: several threads may call one object at the same time, and what it returns
  does not depend on which comes first.
- ``draws_from_rng = True``: what is random is drawn from the sample's ``rng`` (in a dataset: from a
  generator that follows from the key). The global states of `random` and `numpy.random` are left
  alone.

Of a transform also:

- ``effect``, what it does to an image: "colour", it changes values and moves nothing; "undone", it
  moves pixels and notes in ``trans_info`` how to move them back; "geometry", it moves them for
  good.
- ``random = True``: an image comes out different each time. Said of those that change colours.

A class without an attribute counts as False, and one without ``effect`` as "geometry". A class
speaks for itself alone: what its parent declares does not count, since it may run other code.
"""

from collections.abc import Callable

from paddleseg_deeplab.transforms.compose import Compose

EFFECTS = ("colour", "undone", "geometry")


def effect_of(component: Callable) -> str | None:
    """What a transform's class declares as its ``effect``; None where it says nothing."""
    effect = vars(component).get("effect") if hasattr(component, "__dict__") else None
    return effect if effect in EFFECTS else None


def declares(dataset: object, name: str) -> bool:
    """Whether a dataset, its `Compose` and all transforms in it declare an attribute.

    Args:
        dataset: With ``transforms``, a `Compose`, or with ``wrapped``, a dataset that it hands out.
        name (str): "thread_safe" or "draws_from_rng".
    """
    if not _own(dataset, name):
        return False
    if hasattr(dataset, "wrapped"):
        return declares(dataset.wrapped, name)
    compose = getattr(dataset, "transforms", None)
    return isinstance(compose, Compose) and _with_parts(compose, name)


def _with_parts(transform, name):
    parts = transform.transforms if isinstance(transform, Compose) else ()
    return _own(transform, name) and all(_with_parts(part, name) for part in parts)


def _own(part, name):
    return vars(type(part)).get(name) is True

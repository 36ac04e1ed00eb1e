# SPDX-License-Identifier: Apache-2.0
"""What a list of transforms does to an image, as a config or a ``deploy.yaml`` tells it.

Told before an image is read: steps that cannot stand where masks are predicted, steps in an order
that gives wrong values, and the colours that a network gets to see.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paddleseg_deeplab import registry
from paddleseg_deeplab.transforms.color import Normalize
from paddleseg_deeplab.transforms.compose import Compose
from paddleseg_deeplab.transforms.declared import effect_of
from paddleseg_deeplab.utils.errors import UserError

# Steps that are undone, and draw at random with such a value of a parameter.
_DRAWS = {
    "Resize": ("interp", lambda value: value == "RANDOM"),
    "ResizeByShort": (
        "short_size",
        lambda value: isinstance(value, (list, tuple)) and len(set(map(str, value))) > 1,
    ),
}
_PER_CHANNEL = ("mean", "std", "im_padding_value")
# Of the range of colours; padding values are typed with few digits.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Step:
    """One transform of a list.

    Attributes:
        place (str): Where it stands, such as "val_dataset.transforms.0".
        name (str): Its type.
        component (Callable): The class of that name.
        settings (dict): Its parameters, the defaults where none are given.
    """

    place: str
    name: str
    component: Callable
    settings: dict

    @property
    def effect(self) -> str | None:
        return effect_of(self.component)

    @property
    def is_random(self) -> bool:
        if self.name in _DRAWS:
            key, draws = _DRAWS[self.name]
            return bool(draws(self.settings.get(key)))
        return vars(self.component).get("random") is True

    @property
    def text(self) -> str:
        """Type and parameters, such as "Normalize(mean=0.5, std=0.5)"; equal steps read equal."""
        told = (
            f"{key}={_plain(value, key in _PER_CHANNEL)}"
            for key, value in self.settings.items()
            if key != "label_padding_value"  # of masks, which are not resized in evaluation
        )
        return f"{self.name}({', '.join(told)})"


def steps_of(items: Sequence, place: str) -> list[Step]:
    """The steps of a list of sections with a ``type``, those within a section one by one.

    Args:
        items (Sequence[dict]): As in a config, of registered types.
        place (str): Where the list stands, such as "val_dataset.transforms".
    """
    steps = []
    for i, item in enumerate(items):
        inner = item.get("transforms")
        if item["type"] != Compose.__name__:
            component = registry.TRANSFORMS[item["type"]]
            steps.append(Step(f"{place}.{i}", item["type"], component, _settings(component, item)))
        if isinstance(inner, list):
            steps += steps_of(inner, f"{place}.{i}.transforms")
    return steps


def misplaced(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """Steps that move pixels for good: (place, what is wrong), for where masks are predicted."""
    for step in steps:
        reason = _moves(step.component, step.name)
        if reason:
            yield step.place, reason


def refuse_misplaced(transforms: object, owner: str) -> None:
    """`misplaced` for a `Compose` that is built; anything else is taken as it is.

    Args:
        transforms (object): Of whoever predicts masks.
        owner (str): Who that is, for the message.

    Raises:
        UserError: A step moves pixels for good.
    """
    for part in transforms.transforms if isinstance(transforms, Compose) else ():
        if isinstance(part, Compose):
            refuse_misplaced(part, owner)
            continue
        component = part if inspect.isfunction(part) else type(part)
        reason = _moves(component, component.__name__)
        if reason:
            raise UserError(f"{owner}: {reason}")


def _moves(component, name):
    effect = effect_of(component)
    if effect == "geometry":
        return (
            f"{name} moves pixels and nothing moves them back, so the masks would not fit their "
            "images. Use it in train_dataset only."
        )
    if effect is None:
        return (
            f"{name} does not say what it does to an image, so it counts as a step that moves "
            'pixels for good. If it changes values only, write effect = "colour" into its class; '
            'if it notes in trans_info how to move pixels back, effect = "undone". If not, use it '
            "in train_dataset only."
        )
    return None


def random_steps(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """(place, message) of steps that make each prediction another one."""
    for step in steps:
        if step.effect in ("colour", "undone") and step.is_random:
            yield (
                step.place,
                f"{step.name} changes images at random here, so the results change from run to "
                "run. Random steps belong in train_dataset only.",
            )


def disorder(steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """(place, message) of steps that come in an order that gives wrong values."""
    normalize = None
    for step in steps:
        if normalize is None:
            normalize = step if step.component is Normalize else None
        elif step.component is Normalize:
            yield step.place, "Normalize comes a second time: values are divided by 255 twice."
        elif step.effect == "colour" and step.is_random:
            yield (
                step.place,
                f"{step.name} stands behind Normalize and is made for values of 0 to 255. Put it "
                "before Normalize.",
            )
        elif message := _strange_padding(step, normalize):
            yield step.place, message


def _strange_padding(step, normalize):
    """What is wrong with a padding behind Normalize, or None."""
    value = step.settings.get("im_padding_value")
    try:
        mean, std, colour = (
            np.asarray(each, np.float64)
            for each in (normalize.settings["mean"], normalize.settings["std"], value)
        )
        with np.errstate(all="ignore"):
            low, high = np.sort([(0 - mean) / std, (1 - mean) / std], axis=0)
            # 0 is the mean colour, whatever range the images have.
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            least = _ROUNDING * (high - low)
            strange = (colour < low - least) | (colour > high + least)
    except (TypeError, ValueError, KeyError):
        return None  # not numbers, which the transform's own check refuses
    if value is None or not strange.any():
        return None
    return (
        f"{step.name} pads with {_plain(value, True)} (im_padding_value) behind Normalize, where "
        f"colours lie in {low.min():.4g} to {high.max():.4g}. Put it before Normalize, or set "
        "im_padding_value to 0, which is the mean colour there."
    )


def lasting_steps(steps: Sequence[Step], *, colours_only: bool = False) -> list[str]:
    """Texts of the steps that are the same for each image.

    Args:
        steps (Sequence[Step]): A list of any section; what is random in it is left out.
        colours_only (bool): Leave out steps that move pixels.
    """
    wanted = ("colour",) if colours_only else ("colour", "undone")
    return [step.text for step in steps if step.effect in wanted and not step.is_random]


def _settings(component, item):
    """The values of a component's parameters, in their order; others behind them."""
    parameters = inspect.signature(component).parameters.values()
    given = {key: value for key, value in sorted(item.items()) if key != "type"}
    known = {p.name: given.get(p.name, p.default) for p in parameters}
    known = {name: value for name, value in known.items() if value is not inspect.Parameter.empty}
    return {**known, **given}


def _plain(value, one_for_all=False):
    """A value as text. One number for each channel reads as one for all where they are equal."""
    if isinstance(value, (list, tuple)):
        values = [_plain(each) for each in value]
        one = one_for_all and len(set(values)) == 1
        return values[0] if one else f"[{', '.join(values)}]"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)

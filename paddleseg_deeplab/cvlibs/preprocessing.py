# SPDX-License-Identifier: Apache-2.0
"""Whether the sections of a config prepare images as a network needs them, and all alike."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs.config import Config
from paddleseg_deeplab.transforms import preprocessing
from paddleseg_deeplab.utils.logger import logger

_SECTIONS = ("train_dataset", "val_dataset", "export")


def check_preprocessing(config: Config) -> None:
    """Refuses steps that give wrong masks, and warns of what gives wrong values.

    Args:
        config (Config): Its keys and types are checked already.

    Raises:
        UserError: A step of val_dataset or export moves pixels for good.
    """
    for section in _SECTIONS:
        found = steps_of_section(config.dic, section) or []
        doubts = [*preprocessing.disorder(found)]
        if section != "train_dataset":
            for place, message in preprocessing.misplaced(found):
                config.fail(place, message)
            doubts += preprocessing.random_steps(found)
        for place, message in doubts:
            logger.warning("%s: %s: %s", config.path, place, message)
    _warn_of_unlike_sections(config)


def steps_of_section(dic: dict, section: str) -> list[preprocessing.Step] | None:
    """The steps of a section's ``transforms``.

    Args:
        dic (dict): A config's content.
        section (str): "train_dataset", "val_dataset" or "export".

    Returns:
        list[Step] | None: None where the section does not tell them.
    """
    cfg = dic.get(section) or {}
    items = cfg.get("transforms")
    if items is None and cfg.get("type") in registry.DATASETS:
        parameters = inspect.signature(registry.DATASETS[cfg["type"]]).parameters
        default = parameters["transforms"].default if "transforms" in parameters else None
        items = [] if default in ((), []) else None
    if not isinstance(items, list):
        return None
    return preprocessing.steps_of(items, f"{section}.transforms")


def parameters_of(components: registry.ComponentManager, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a component: as its section gives them, else its own defaults.

    Args:
        components (ComponentManager): Where its ``type`` is looked up; one that is not there, as
            with an empty section, has no defaults.
        cfg (Mapping): The section.

    Returns:
        dict[str, Any]: Lists in place of tuples, as YAML has them.
    """
    known = {}
    if cfg.get("type") in components:
        parameters = inspect.signature(components[cfg["type"]]).parameters.values()
        known = {p.name: p.default for p in parameters if p.default is not p.empty}
    values = {**known, **cfg}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def colours_of_section(dic: dict, section: str) -> str | None:
    """What colours a network gets to see, such as "RGB, Normalize(mean=0.5, std=0.5)".

    Args:
        dic (dict): A config's content.
        section (str): As for `steps_of_section`.

    Returns:
        str | None: None where the section does not tell it.
    """
    steps = steps_of_section(dic, section)
    if steps is None:
        return None
    reads = dic.get("val_dataset" if section == "export" else section) or {}
    texts = preprocessing.lasting_steps(steps, colours_only=True) or ["no Normalize"]
    return ", ".join([*channel_order(reads), *texts])


def channel_order(dataset: dict) -> Sequence[str]:
    """["RGB"] or ["BGR"]; [] where images have not three channels.

    Args:
        dataset (dict): The section of a dataset.
    """
    parameters = parameters_of(registry.DATASETS, dataset)
    if parameters.get("img_channels", 3) != 3:
        return []
    return ["RGB" if parameters.get("to_rgb", True) else "BGR"]


def _warn_of_unlike_sections(config):
    found = {section: colours_of_section(config.dic, section) for section in _SECTIONS}
    found = {section: colours for section, colours in found.items() if colours is not None}
    if len(set(found.values())) > 1:
        told = "; ".join(f"{section}: {colours}" for section, colours in found.items())
        logger.warning(
            "%s: the sections prepare colours in different ways. %s. Make their transforms and "
            "to_rgb equal: a network is right only for values like those that it was trained on.",
            config.path,
            told,
        )

# SPDX-License-Identifier: Apache-2.0
"""The ``config.yml`` that training keeps beside its weights, held against the config in use."""

import os
from collections.abc import Iterator
from pathlib import Path

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs import preprocessing
from paddleseg_deeplab.cvlibs.config import Config, read_yaml, section_with_transforms
from paddleseg_deeplab.cvlibs.preprocessing import parameters_of
from paddleseg_deeplab.models.layers import DEFAULT_ASPP_RATIOS
from paddleseg_deeplab.transforms.preprocessing import lasting_steps
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files import written
from paddleseg_deeplab.utils.logger import logger

_NAME, _BEST = "config.yml", "best_model"
# Parameters of networks that change nothing once the weights are there and training is over; and
# two without which the weights do not fit, which loading refuses.
_IDLE = (
    *("type", "backbone", "pretrained", "pretrained_skip", "data_format", "freeze_bn"),
    *("num_classes", "in_channels"),
)
_IDLE_ENDS = ("dropout", "bn_momentum")
_MEANING = ("label_map", "ignore_index")  # of the values of masks


def warn_of_other_config(
    config: Config, model_path: str | None, *, section: str = "val_dataset", labels: bool = False
) -> list[str]:
    """One warning that lists what the weights were trained with and this run does otherwise.

    Told is what changes results: the network, how images are prepared, and the order of classes.
    Weights without a ``config.yml`` have nothing to compare.

    Args:
        config (Config): Of this run, after `SegBuilder` filled it in.
        model_path (str | None): The weights, as for `load_entire_model`.
        section (str): "val_dataset" or "export": whose transforms this run uses.
        labels (bool): The run reads masks, so how they are read counts too.

    Returns:
        list[str]: What differs.
    """
    path = config_beside(model_path)
    if path is None:
        return []
    try:
        trained = read_yaml(path)
        found = list(_differences(trained, config.dic, section, labels))
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s cannot be compared with %s: %s", path, config.path, error)
        return []
    if found:
        logger.warning(
            "The weights %s were trained with %s. %s differs from it, so results will differ:%s",
            model_path,
            path,
            config.path,
            "".join(f"\n  {line}" for line in found),
        )
    return found


def config_beside(model_path: str | None) -> Path | None:
    """The ``config.yml`` of a training's weights, a file or its folder; None where there is none.

    That of ``best_model`` lies beside it, that of a checkpoint in it.
    """
    if not isinstance(model_path, (str, os.PathLike)):
        return None
    folder = Path(model_path)
    folder = folder if folder.is_dir() else folder.parent
    folders = [folder, folder.parent] if folder.resolve().name == _BEST else [folder]
    paths = [each / _NAME for each in folders]
    return next((path for path in paths if path.is_file()), None)


def _differences(trained, now, section, labels):
    """Yields "key: value in training, value here"."""
    yield from _of_networks(trained.get("model") or {}, now.get("model") or {})
    other = "val_dataset" if section == "export" else "export"
    source = section_with_transforms(now, (section, other)) or "val_dataset"
    before = section_with_transforms(trained, ("val_dataset", "export")) or "val_dataset"
    # An export may bring images to another size on purpose.
    colours_only = section == source == "export"
    there = _preparation(trained, before, colours_only)
    here = _preparation(now, source, colours_only)
    if None not in (there, here) and there != here:
        yield f"how images are prepared: {there} in training, {here} here"
    sections = [dic.get("val_dataset") or {} for dic in (trained, now)]
    yield from _of_classes(*map(_class_names, sections))
    for key in _MEANING if labels else ():
        one, other = (parameters_of(registry.DATASETS, each).get(key) for each in sections)
        if one != other:
            yield f"val_dataset.{key}: {one} in training, {other} here"


def _of_networks(there, here):
    for place, registered, one, other in (
        ("model", registry.MODELS, there, here),
        (
            "model.backbone",
            registry.BACKBONES,
            there.get("backbone") or {},
            here.get("backbone") or {},
        ),
    ):
        if one.get("type") != other.get("type"):
            yield f"{place}.type: {one.get('type')} in training, {other.get('type')} here"
            continue
        before, after = parameters_of(registered, one), parameters_of(registered, other)
        for key in [*before, *(key for key in after if key not in before)]:
            if key in _IDLE or key.endswith(_IDLE_ENDS):
                continue
            values = before.get(key), after.get(key)
            if key == "aspp_ratios" and None in values and values != (None, None):
                values = tuple(_rates(*each) for each in zip(values, (there, here)))
            if values[0] != values[1]:
                allowed = " (the weights fit both)" if key == "output_stride" else ""
                yield f"{place}.{key}: {values[0]} in training, {values[1]} here{allowed}"


def _rates(value, model):
    """ASPP's rates; left out they follow the output stride."""
    if value is not None:
        return value
    stride = parameters_of(registry.BACKBONES, model.get("backbone") or {}).get("output_stride")
    return list(DEFAULT_ASPP_RATIOS.get(stride, ())) or None


def _preparation(dic, section, colours_only):
    """How a section prepares images, in words; None where it does not tell."""
    steps = preprocessing.steps_of_section(dic, section)
    if steps is None or any(step.effect is None for step in steps):
        return None
    dataset = dic.get("val_dataset") or {}
    nodata = parameters_of(registry.DATASETS, dataset).get("nodata")
    words = [
        *preprocessing.channel_order(dataset),
        *([] if nodata is None else [f"nodata={nodata}"]),
        *(lasting_steps(steps, colours_only=colours_only) or ["no transforms"]),
    ]
    return ", ".join(words)


def _class_names(dataset):
    """The classes' names in their order; None where the section does not tell them."""
    component = registry.DATASETS.components_dict.get(str(dataset.get("type")))
    names = dataset.get("class_names", getattr(component, "CLASS_NAMES", None))
    if isinstance(names, str):
        root = str(dataset.get("dataset_root", ""))
        found = names if os.path.isfile(names) else (written.find(names, root) or [None])[0]
        try:
            text = written.read_text(found) if found else ""
        except UserError:  # whoever opens the dataset tells
            text = ""
        names = [line for line in text.splitlines() if line.strip()]
    return [str(name).strip().lower() for name in names] if names else None


def _of_classes(there, here) -> Iterator[str]:
    if there is None or here is None or len(there) != len(here):
        return  # of another number of classes the weights do not fit
    for i, (one, other) in enumerate(zip(there, here)):
        if one != other:
            yield f"class {i}: {one!r} in training, {other!r} here"

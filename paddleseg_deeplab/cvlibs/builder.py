# SPDX-License-Identifier: Apache-2.0
"""Builds model, loss, optimizer and datasets from a `Config`.

The only file that knows all component packages.
"""

import paddleseg_deeplab.utils.needs_paddle  # noqa: F401  isort: skip
import copy
import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from paddle import nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler

# Imported for their registrations.
from paddleseg_deeplab import datasets, models, optimizers, transforms  # noqa: F401
from paddleseg_deeplab import registry as manager
from paddleseg_deeplab.cvlibs.config import Config
from paddleseg_deeplab.cvlibs.preprocessing import check_preprocessing
from paddleseg_deeplab.datasets.base import BaseDataset
from paddleseg_deeplab.datasets.sampling import Sampling
from paddleseg_deeplab.optimizers.lr import build_lr_scheduler
from paddleseg_deeplab.postprocess.settings import make_crf
from paddleseg_deeplab.transforms.checks import Transform
from paddleseg_deeplab.transforms.reading.values import parse_nodata
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts
from paddleseg_deeplab.utils.errors import MissingData, UserError
from paddleseg_deeplab.utils.logger import logger

# Which registry a `type` at this place is looked up in; deeper keys come first.
_REGISTRY_OF = {
    "backbone": manager.BACKBONES,
    "transforms": manager.TRANSFORMS,
    "losses": manager.LOSSES,
    "types": manager.LOSSES,
    "model": manager.MODELS,
    "optimizer": manager.OPTIMIZERS,
    "train_dataset": manager.DATASETS,
    "val_dataset": manager.DATASETS,
    "sampler": manager.SAMPLERS,
}
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What components assume that are not told.
_USUAL = {"in_channels": 3, "ignore_index": 255}
_COUNTED_SAMPLES = 500  # training images that class weights are counted on


def _plain_losses(items, place="loss.types"):
    """(place in the config, settings) of every loss, those inside a MixedLoss one by one."""
    for i, item in enumerate(items):
        if "losses" in item:
            yield from _plain_losses(item["losses"], f"{place}.{i}.losses")
        else:
            yield f"{place}.{i}", item


def training_crop(config: Config) -> list[int] | int | None:
    """The size that training images are cropped to, the window of ``test_config.slide_above``.

    Args:
        config (Config): Its train_dataset is looked at, which need not be there.

    Returns:
        list[int] | int | None: ``crop_size`` of the last transform that has such a parameter, as
        given or by default.
    """
    found = None
    items = config.train_dataset_cfg.get("transforms")
    for item in items if isinstance(items, list) else []:
        name = item.get("type") if isinstance(item, dict) else None
        component = manager.TRANSFORMS.components_dict.get(str(name))
        if component is None:
            continue  # which the builder refuses
        parameter = inspect.signature(component).parameters.get("crop_size")
        if parameter is not None:
            found = item.get("crop_size", parameter.default)
    return list(found) if isinstance(found, (list, tuple)) else found


class SegBuilder:
    """Builds components lazily, each once.

    Everything the config names is looked up, and every key is checked against the component's own
    parameters, when the builder is made: a misspelt key fails here, before data or weights are
    touched.

    Args:
        config (Config): What to build.

    Raises:
        UserError: A component or a parameter is unknown, or parts contradict each other; the
            message names the file and the key.
    """

    def __init__(self, config: Config) -> None:
        if not isinstance(config, Config):
            raise TypeError(f"SegBuilder takes a Config, not {type(config).__name__}.")
        self.config = config
        for section in ("model", "optimizer", "train_dataset", "val_dataset", "sampler"):
            if section in config.dic:
                self._check(section, config.dic[section], _REGISTRY_OF[section])
        for i, item in enumerate(config.loss_cfg.get("types", [])):
            self._check(f"loss.types.{i}", item, manager.LOSSES)
        for i, item in enumerate(config.export_cfg.get("transforms", [])):
            self._check(f"export.transforms.{i}", item, manager.TRANSFORMS)
        # Made only to be checked: a misspelt key is found now, not at the first evaluation.
        make_crf(config.test_config.get("crf"), f"{config.path}: test_config.crf")
        if "sampler" in config.dic:
            self.build("sampler", config.sampler_cfg, manager.SAMPLERS)
        self._check_nodata()
        self._synchronise()
        check_preprocessing(config)

    # -- checking -------------------------------------------------------------------------------

    def _look_up(self, place, cfg, registry):
        if not isinstance(cfg, dict) or not isinstance(cfg.get("type"), str):
            self.config.fail(place, f"should be a section with a `type`, not {cfg!r}.")
        try:
            return registry[cfg["type"]]
        except KeyError as error:
            raise UserError(f"{self.config.path}: {place}.type: {error.args[0]}") from error

    def _check(self, place, cfg, registry):
        component = self._look_up(place, cfg, registry)
        parameters = inspect.signature(component).parameters
        for key, value in cfg.items():
            if key == "type":
                continue
            self.config.check_parameter(place, key, component)
            default = parameters[key].default if key in parameters else None
            if isinstance(default, bool) and not isinstance(value, bool):
                self.config.fail(f"{place}.{key}", f"should be True or False, not {value!r}.")
            if key in ("transforms", "losses"):
                if not isinstance(value, list):
                    self.config.fail(f"{place}.{key}", f"should be a list, not {value!r}.")
                for i, item in enumerate(value):
                    self._check(f"{place}.{key}.{i}", item, _REGISTRY_OF[key])
            elif key == "backbone":
                self._check(f"{place}.{key}", value, _REGISTRY_OF[key])

    def _check_nodata(self):
        """Refuses what is no number, and warns where one set alone knows of pixels without data."""
        found = {
            section: parse_nodata(f"{self.config.path}: {section}", cfg.get("nodata"))
            for section, cfg in self.config.dic.items()
            if section in ("train_dataset", "val_dataset")
        }
        if len(set(map(repr, found.values()))) > 1:  # of the text, since NaN equals nothing
            listed = ", ".join(f"{section} {value}" for section, value in found.items())
            logger.warning(
                "nodata differs: %s. Evaluation, prediction and export follow val_dataset.", listed
            )

    def _dataset_fact(self, name, class_attribute):
        """What the datasets say of ``num_classes`` and the like: their key, class or default."""
        facts = {}
        for section in ("train_dataset", "val_dataset"):
            cfg = self.config.dic.get(section)
            if cfg is None:
                continue
            component = manager.DATASETS[cfg["type"]]
            parameter = inspect.signature(component).parameters.get(name)
            value = cfg.get(name, getattr(component, class_attribute, None))
            if value is None and parameter is not None and parameter.default is not parameter.empty:
                value = parameter.default
            if value is not None:
                facts[section] = value
        if any(value != next(iter(facts.values())) for value in facts.values()):
            listed = ", ".join(f"{section} {value}" for section, value in facts.items())
            self.config.fail(name, f"the datasets disagree: {listed}.")
        return next(iter(facts.values()), None)

    def _synchronise(self):
        """Fills in what follows from the dataset, and refuses contradictions (as PaddleSeg)."""
        model = self.config.dic.get("model")
        if model is not None:
            fact = ("num_classes", "num_classes", "NUM_CLASSES")
            self._agree("model", model, manager.MODELS, *fact)
            if isinstance(model.get("backbone"), dict):
                fact = ("in_channels", "img_channels", "IMG_CHANNELS")
                self._agree("model.backbone", model["backbone"], manager.BACKBONES, *fact)
        for place, part in _plain_losses(self.config.dic.get("loss", {}).get("types", [])):
            for name in ("ignore_index", "num_classes"):
                self._agree(place, part, manager.LOSSES, name, name, name.upper())

        val, export = (self.config.dic.get(name) or {} for name in ("val_dataset", "export"))
        if "transforms" in export and val and "transforms" not in val:
            parameters = inspect.signature(manager.DATASETS[val["type"]]).parameters
            if "transforms" in parameters:
                val["transforms"] = copy.deepcopy(export["transforms"])

        test = self.config.dic.get("test_config", {})
        if test.get("slide_above") is not None and test.get("crop_size") is None:
            test["crop_size"] = training_crop(self.config)  # None: an error where it is used

        for i, item in enumerate(self.config.dic.get("loss", {}).get("types", [])):
            self._share_layout([part for _, part in _plain_losses([item])], f"loss.types.{i}")

    def _share_layout(self, losses, place):
        """Gives losses of one output the model's data_format, unless one of them takes none.

        They then get NCHW logits, see `models.losses.total.compute_losses`.
        """
        layout = self.config.model_cfg.get("data_format", "NCHW")
        if layout == "NCHW":  # their default
            return
        classes = [self._look_up(place, loss, manager.LOSSES) for loss in losses]
        if all("data_format" in inspect.signature(c).parameters for c in classes):
            for loss in losses:
                loss.setdefault("data_format", layout)

    def _agree(self, place, cfg, registry, key, dataset_key, class_attribute):
        fact = self._dataset_fact(dataset_key, class_attribute)
        # A component without such a parameter (a loss of one's own, say) does not get it.
        parameters = inspect.signature(self._look_up(place, cfg, registry)).parameters
        if fact is None:
            return
        if key not in parameters and key not in cfg:
            # Behind **kwargs may be anything: it gets what it could not guess (in PaddleSeg, all).
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            if not takes_any or fact == _USUAL.get(key):
                return
        if cfg.get(key, fact) != fact:
            self.config.fail(
                f"{place}.{key}", f"is {cfg[key]}, but the dataset's {dataset_key} is {fact}."
            )
        cfg[key] = fact

    # -- building -------------------------------------------------------------------------------

    def build(self, place: str, cfg: Mapping[str, Any], registry: manager.ComponentManager) -> Any:
        """Builds one component and what is nested in it.

        Raises:
            UserError: The component refused its parameters; the message names the place.
        """
        component = self._look_up(place, cfg, registry)
        params = {}
        for key, value in cfg.items():
            if key == "type":
                continue
            if key in ("transforms", "losses"):
                params[key] = [
                    self.build(f"{place}.{key}.{i}", item, _REGISTRY_OF[key])
                    for i, item in enumerate(value)
                ]
            elif key == "backbone":
                params[key] = self.build(f"{place}.{key}", value, _REGISTRY_OF[key])
            else:
                params[key] = value
        parameters = inspect.signature(component).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIABLE]
        missing = [name for name in required if name not in params]
        if missing:
            kind = MissingData if missing == ["dataset_root"] else UserError
            text = f"{self.config.path}: {place}: {cfg['type']} needs {', '.join(missing)}."
            raise kind(text)
        try:
            return component(**params)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise self._told(place, error, f" ({cfg['type']})") from error

    def _told(self, place, error, of=""):
        """A `UserError` that puts file and place before a component's own words."""
        kind = MissingData if isinstance(error, (MissingData, FileNotFoundError)) else UserError
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        text = text[len(place) + 2 :] if text.startswith(f"{place}: ") else text
        return kind(f"{self.config.path}: {place}{of}: {text}")

    def _section(self, name):
        cfg = getattr(self.config, f"{name}_cfg")
        if not cfg:
            self.config.fail(name, "this section is needed here and is missing.")
        return cfg

    @cached_property
    def model(self) -> nn.Layer:
        """The network (`nn.Layer`)."""
        return self.build("model", self._section("model"), manager.MODELS)

    @cached_property
    def train_dataset(self) -> BaseDataset:
        return self._dataset("train_dataset")

    @cached_property
    def sampler(self) -> Sampling | None:
        """How often an epoch holds each training image (`Sampling`), or None: once each."""
        if "sampler" not in self.config.dic:
            return None
        sampling = self.build("sampler", self.config.sampler_cfg, manager.SAMPLERS)
        try:
            return sampling(self.train_dataset)
        except (ValueError, TypeError, OSError) as error:
            raise self._told("sampler", error) from error

    @cached_property
    def val_dataset(self) -> BaseDataset:
        return self._dataset("val_dataset")

    def _dataset(self, section):
        dataset = self.build(section, self._section(section), manager.DATASETS)
        if len(dataset) == 0:
            self.config.fail(section, "has no samples; check its list file and root.")
        return dataset

    @cached_property
    def val_transforms(self) -> list[Transform]:
        """The validation set's transforms as a list, without opening the set itself; the export's
        where it has none."""
        return self._preprocessing("val_dataset", "export")

    @cached_property
    def export_transforms(self) -> list[Transform]:
        """Preprocessing that belongs to an exported model: ``export.transforms`` or val's."""
        return self._preprocessing("export", "val_dataset")

    def _preprocessing(self, *sections):
        section, items = self.config.preprocessing(*sections)
        if not items:
            text = "%s: %s.transforms is empty: images go into the network as they are, 0 to 255."
            logger.info(text, self.config.path, section)
        return self._transforms(section, {"transforms": items})

    def _transforms(self, place, cfg):
        return [
            self.build(f"{place}.transforms.{i}", item, manager.TRANSFORMS)
            for i, item in enumerate(cfg.get("transforms", []))
        ]

    @cached_property
    def loss(self) -> dict[str, Any]:
        """``{"types": [loss, ...], "coef": [number, ...]}``, one entry an output of the network."""
        cfg = self._section("loss")
        self._resolve_auto_weights(cfg)
        types = [
            self.build(f"loss.types.{i}", item, manager.LOSSES)
            for i, item in enumerate(cfg["types"])
        ]
        return {"types": types, "coef": cfg["coef"]}

    def _resolve_auto_weights(self, cfg):
        parts = [p for _, p in _plain_losses(cfg["types"]) if p.get("weight") == "auto"]
        if not parts:
            return
        dataset = self.train_dataset
        if not hasattr(dataset, "load_label"):
            self.config.fail("loss", "weight: auto needs a dataset with load_label(index).")
        # Hundreds of images give the shares of the classes; all of a large set would take minutes.
        counts = datasets.class_pixel_counts(dataset, max_samples=_COUNTED_SAMPLES)
        try:
            weights = class_weights_from_counts(counts)
        except ValueError as error:
            raise UserError(f"{self.config.path}: loss: weight: auto: {error}") from error
        logger.info(
            "Class weights (weight: auto) from the pixels of %d of %d training images: %s",
            *(min(len(dataset), _COUNTED_SAMPLES), len(dataset)),
            ", ".join(f"{weight:.4g}" for weight in weights),
        )
        for part in parts:
            part["weight"] = list(weights)

    @cached_property
    def lr_scheduler(self) -> LRScheduler:
        try:
            return build_lr_scheduler(self._section("lr_scheduler"), self.config.iters)
        except (ValueError, TypeError, KeyError) as error:
            raise self._told("lr_scheduler", error) from error

    @cached_property
    def optimizer(self) -> Optimizer:
        """A Paddle optimizer over `model`, driven by `lr_scheduler`."""
        factory = self.build("optimizer", self._section("optimizer"), manager.OPTIMIZERS)
        try:
            return factory(self.model, self.lr_scheduler)
        except (ValueError, TypeError, KeyError) as error:
            raise self._told("optimizer", error) from error

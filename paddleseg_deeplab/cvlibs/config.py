# SPDX-License-Identifier: Apache-2.0
"""YAML file + ``_base_`` files + ``--opts`` -> a `Config` whose shape has been checked.

What a component's own parameters may be is checked by `SegBuilder`, which knows the registries.
"""

import copy
import inspect
import re
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from paddleseg_deeplab.cvlibs.config_values import value_faults
from paddleseg_deeplab.cvlibs.recipes import find_config, recipe_named
from paddleseg_deeplab.utils import safe_yaml
from paddleseg_deeplab.utils.errors import UserError, nearest
from paddleseg_deeplab.utils.logger import logger

# Key: (allowed types, what it is). A section is a dict with a `type`, unless named in _PLAIN.
_TOP_LEVEL = {
    "batch_size": (int, "images in one step on one device"),
    "iters": (int, "training iterations"),
    "accumulation_steps": (int, "batches whose gradients are averaged in one iteration"),
    "images_per_update": (int, "images that one update of the weights was meant to read"),
    "dataset_root": (str, "root folder of the datasets that have none of their own"),
    "train_dataset": (dict, "the training set"),
    "val_dataset": (dict, "the validation set"),
    "model": (dict, "the network"),
    "loss": (dict, "`types` and `coef`, one entry an output of the network"),
    "optimizer": (dict, "the optimizer"),
    "lr_scheduler": (dict, "the learning rate"),
    "sampler": (dict, "how often an epoch of training holds each image"),
    "ema": (dict, "exponential moving average of the weights: `decay`"),
    "test_config": (dict, "settings of evaluation: `aug_eval`, `scales`, `is_slide`, ..."),
    "to_static_training": (bool, "whether training runs the network as a compiled program"),
    "export": (dict, "settings of export: `transforms` in place of the validation set's"),
}
_MOST_IMAGES = 65536  # in one step; a slip of the hand would fill the memory for minutes
_POSITIVE = ("batch_size", "iters", "accumulation_steps", "images_per_update")
_TYPED_SECTIONS = ("train_dataset", "val_dataset", "model", "optimizer", "lr_scheduler", "sampler")
_OLD_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}  # PaddleSeg's older files
_SECTION_KEYS = {
    "loss": ("types", "coef"),
    "ema": ("decay",),
    "test_config": (
        *("aug_eval", "scales", "flip_horizontal", "flip_vertical"),
        *("is_slide", "crop_size", "stride", "slide_above", "size_divisor", "crf"),
    ),
    "export": ("transforms",),
}


class _Loader(safe_yaml.BoundedLoader):
    """Safe YAML that refuses a repeated key and reads 4e-5 as a number (PyYAML reads a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice in full, so that the file stays plain to read."""

    def ignore_aliases(self, data):
        return True


def _mapping_without_repeats(loader, node):
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be a plain word", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads one YAML file into a dict.

    Raises:
        UserError: The file is missing, not YAML, or does not hold a mapping.
    """
    path = find_config(path)
    if path.suffix not in (".yml", ".yaml"):
        raise UserError(f"The config file {path} should end in .yml or .yaml.")
    try:
        dic = safe_yaml.load(safe_yaml.read_text(path), _Loader)
    except yaml.YAMLError as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not valid YAML: {text}") from error
    if dic is None:
        raise UserError(f"The config file {path} is empty.")
    if not isinstance(dic, dict):
        raise UserError(f"{path} should hold keys and values, not a {type(dic).__name__}.")
    return dic


def load_with_bases(path: str | Path, _open_files: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a file and merges it over its ``_base_`` file or files (the first named wins).

    A base is a path, from the file's folder on, or the name of a recipe.
    """
    path = find_config(path)
    chain = (*_open_files, path.resolve())
    if path.resolve() in _open_files:
        raise UserError(f"_base_ goes in a circle: {' -> '.join(str(p) for p in chain)}")
    dic = read_yaml(path)
    bases = dic.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: _base_ should be a file or a list of files, not {bases!r}.")
    for base in bases:
        beside = path.parent / base
        base_path = beside if beside.is_file() else recipe_named(base)
        if base_path is None:
            raise UserError(
                f"{path}: the _base_ file {beside} does not exist, and no recipe has that name."
            )
        dic = _merge(dic, load_with_bases(base_path, chain))
    return dic


def _merge(dic, base):
    """Puts ``dic`` over ``base``; a section with ``_inherited_: False`` replaces the base's."""
    if not dic.get("_inherited_", True):
        return {k: v for k, v in dic.items() if k != "_inherited_"}
    merged = dict(base)
    for key, value in dic.items():
        if key == "_inherited_":
            continue
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(value, merged[key])
        else:
            merged[key] = value
    return merged


def parse_opts(opts: Sequence[str] | None) -> list[tuple[list[str], Any]]:
    """Turns ``["a.b=1", ...]`` into ``[(["a", "b"], 1), ...]``."""
    pairs = []
    for item in opts or []:
        key, sign, text = item.partition("=")
        if not sign or not key.isprintable() or not all(p.strip() for p in key.split(".")):
            raise UserError(f"--opts takes key=value, such as batch_size=4, not {item!r}.")
        try:
            value = literal_eval(text)
            value = list(value) if isinstance(value, tuple) else value
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            try:
                value = safe_yaml.load(text, _Loader)
            except yaml.YAMLError:
                value = text
        pairs.append((key.strip().split("."), value))
    return pairs


def _set_path(dic, keys, value, where):
    """Sets ``dic[a][b][c]``; the last key may be new, the ones before it must exist."""
    node = dic
    for depth, key in enumerate(keys):
        place = ".".join(keys[: depth + 1])
        if isinstance(node, list):
            if not (key.isascii() and key.isdigit()) or int(key) >= len(node):
                raise UserError(
                    f"--opts {where}: {place} should be an index below {len(node)} of a list."
                )
            key = int(key)
        elif not isinstance(node, dict):
            raise UserError(f"--opts {where}: {place} lies below a plain value.")
        if depth == len(keys) - 1:
            node[key] = value
        elif isinstance(node, dict) and key not in node:
            if depth == 0 and (key in _SECTION_KEYS or key == "sampler"):
                node[key] = {}
            else:
                whole = ".".join(keys[: depth + 1]) + '="{' + keys[depth + 1] + ': ...}"'
                hint = nearest(key, node) if node else f"Give it as a whole: {whole}."
                raise UserError(f"--opts {where}: there is no {place} in the config. {hint}")
        if depth < len(keys) - 1:
            node = node[key]


def _is_given(pairs, *keys):
    """Whether ``--opts`` sets this place, by its own name or within a whole section."""
    for path, value in pairs:
        rest = keys[len(path) :]
        while rest and isinstance(value, dict) and rest[0] in value:
            value, rest = value[rest[0]], rest[1:]
        if tuple(path) == keys[: len(path)] and not rest:
            return True
    return False


def section_with_transforms(dic: Mapping[str, Any], sections: Sequence[str]) -> str | None:
    """The first of some sections of a config that says how images are prepared; None: no one."""
    for section in sections:
        if (dic.get(section) or {}).get("transforms") is not None:
            return section
    return None


class Config:
    """A checked configuration.

    Args:
        path (str): YAML file, or the name of a recipe (`cvlibs.recipes`).
        learning_rate (float, optional): Overrides ``lr_scheduler.learning_rate`` of the file.
        batch_size (int, optional): Overrides ``batch_size`` of the file.
        iters (int, optional): Overrides ``iters`` of the file.
        opts (list[str], optional): ``key=value`` pairs that override anything, with dots for depth
            and numbers for places in a list: ``loss.types.0.type=DiceLoss``. Of two for the same
            place the last wins.
        data_format (str, optional): As for `set_data_format`.
        pretrained (bool): False as `drop_pretrained`, for when a whole trained model is loaded.

    Attributes:
        path (str): The file it came from.
        dic (dict): The resolved content.

    Raises:
        UserError: The file, a key or a value is wrong; the message names the place.
    """

    def __init__(
        self,
        path: str | Path,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        iters: int | None = None,
        opts: Sequence[str] | None = None,
        *,
        data_format: str | None = None,
        pretrained: bool = True,
    ) -> None:
        path = find_config(path)
        self.path = str(path)
        dic = copy.deepcopy(load_with_bases(path))
        for name, value in (("batch_size", batch_size), ("iters", iters)):
            if value is not None:
                dic[name] = value
        pairs = parse_opts(opts)
        for keys, value in pairs:
            _set_path(dic, keys, value, ".".join(keys))
        if learning_rate is not None and not _is_given(pairs, "lr_scheduler", "learning_rate"):
            if not isinstance(dic.get("lr_scheduler"), dict):
                raise UserError(f"{path}: --learning_rate needs an lr_scheduler section.")
            dic["lr_scheduler"]["learning_rate"] = learning_rate
        optimizer = dic.get("optimizer")
        if isinstance(optimizer, dict) and isinstance(optimizer.get("type"), str):
            optimizer["type"] = _OLD_OPTIMIZERS.get(optimizer["type"], optimizer["type"])
        self.dic = dic
        self._check()
        self._share_root(pairs)
        if data_format:
            self.set_data_format(data_format)
        if not pretrained:
            self.drop_pretrained()

    def _share_root(self, pairs):
        """Moves the general ``dataset_root`` into the sections that it is meant for."""
        root = self.dic.pop("dataset_root", None)
        sections = [name for name in ("train_dataset", "val_dataset") if name in self.dic]
        if root is None or not sections:
            return
        # The special one wins over the general one; what is typed now, over what a file says.
        typed = _is_given(pairs, "dataset_root")
        others = [
            name
            for name in sections
            if "dataset_root" not in self.dic[name]
            or (typed and not _is_given(pairs, name, "dataset_root"))
        ]
        for name in others:
            self.dic[name]["dataset_root"] = root
        if not others and any(self.dic[name]["dataset_root"] != root for name in sections):
            message = "%s: dataset_root %s has no effect beside those of %s."
            logger.warning(message, self.path, root, " and ".join(sections))

    def fail(self, place: str, message: str) -> NoReturn:
        """Raises a `UserError` that names the file and the place in it."""
        place = str(place)
        place = place if place.isprintable() else ascii(place)  # a message is one line
        raise UserError(f"{self.path}: {place}: {message}")

    def check_parameter(self, place: str, key: str, component: Callable[..., Any]) -> None:
        """Refuses a key of a section whose component, a class or function, takes no such one."""
        parameters = inspect.signature(component).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if key not in parameters and not takes_any:
            text = f"{component.__name__} has no such parameter. {nearest(key, parameters)}"
            self.fail(f"{place}.{key}", text)

    def _check(self):
        for key, value in self.dic.items():
            if key not in _TOP_LEVEL:
                self.fail(key, f"unknown key. {nearest(key, _TOP_LEVEL)}")
            allowed, what = _TOP_LEVEL[key]
            if not isinstance(value, allowed) or isinstance(value, bool) != (allowed is bool):
                self.fail(key, f"should be {allowed.__name__} ({what}), not {value!r}.")
            if key in _POSITIVE and value < 1:
                self.fail(key, f"should be at least 1 ({what}), not {value}.")
            if key == "batch_size" and value > _MOST_IMAGES:
                self.fail(key, f"should be at most {_MOST_IMAGES} ({what}), not {value}.")
        for key in _TYPED_SECTIONS:
            if key in self.dic and not isinstance(self.dic[key].get("type"), str):
                self.fail(key, "needs a `type`, the name of a registered component.")
        for section, keys in _SECTION_KEYS.items():
            for key in self.dic.get(section, {}):
                if key not in keys:
                    self.fail(f"{section}.{key}", f"unknown key. {nearest(key, keys)}")
        self._check_loss()
        for place, message in value_faults(self.dic):
            self.fail(place, message)

    def _check_loss(self):
        loss = self.dic.get("loss")
        if loss is None:
            return
        types = loss.get("types")
        if not isinstance(types, list) or not types:
            self.fail("loss.types", "should be a list of losses, each with a `type`.")
        for i, item in enumerate(types):
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                self.fail(f"loss.types.{i}", f"should have a `type`, not be {item!r}.")
        coef = loss.setdefault("coef", [1] * len(types))
        if not isinstance(coef, list) or not all(
            isinstance(c, (int, float)) and not isinstance(c, bool) for c in coef
        ):
            self.fail("loss.coef", f"should be a list of numbers, not {coef!r}.")
        # As PaddleSeg: one loss type serves all the network's outputs.
        if len(types) == 1 and len(coef) > 1:
            loss["types"] = types = [copy.deepcopy(types[0]) for _ in coef]
        if len(types) != len(coef):
            self.fail("loss", f"has {len(types)} types but {len(coef)} coefficients.")

    def _section(self, name):
        return copy.deepcopy(self.dic.get(name, {}))

    @property
    def batch_size(self) -> int:
        return self.dic.get("batch_size", 1)

    @property
    def iters(self) -> int:
        if "iters" not in self.dic:
            self.fail("iters", "is missing; give it here or with --iters.")
        return self.dic["iters"]

    @property
    def to_static_training(self) -> bool:
        return self.dic.get("to_static_training", False)

    @property
    def accumulation_steps(self) -> int:
        return self.dic.get("accumulation_steps", 1)

    @property
    def images_per_update(self) -> int | None:
        return self.dic.get("images_per_update")

    @property
    def model_cfg(self) -> dict[str, Any]:
        return self._section("model")

    @property
    def loss_cfg(self) -> dict[str, Any]:
        return self._section("loss")

    @property
    def optimizer_cfg(self) -> dict[str, Any]:
        return self._section("optimizer")

    @property
    def lr_scheduler_cfg(self) -> dict[str, Any]:
        return self._section("lr_scheduler")

    @property
    def train_dataset_cfg(self) -> dict[str, Any]:
        return self._section("train_dataset")

    @property
    def val_dataset_cfg(self) -> dict[str, Any]:
        return self._section("val_dataset")

    @property
    def test_config(self) -> dict[str, Any]:
        return self._section("test_config")

    @property
    def export_cfg(self) -> dict[str, Any]:
        return self._section("export")

    @property
    def sampler_cfg(self) -> dict[str, Any]:
        return self._section("sampler")

    @property
    def ema_cfg(self) -> dict[str, Any]:
        return self._section("ema")

    def preprocessing(self, *sections: str) -> tuple[str, list]:
        """How images are prepared for the network.

        Args:
            *sections (str): "val_dataset" and "export", in the order in which they count.

        Returns:
            tuple[str, list]: The first of them with ``transforms``, and these, which may be empty.

        Raises:
            UserError: None of them has ``transforms``.
        """
        section = section_with_transforms(self.dic, sections)
        if section is not None:
            return section, copy.deepcopy(self.dic[section]["transforms"])
        places = " nor ".join(f"{section}.transforms" for section in sections)
        return self.fail(
            "transforms",
            f"neither {places} is given, so it is not known how images are prepared. Give the "
            "steps that the network was trained with, such as transforms: [{type: Normalize}], or "
            "transforms: [] where images go into it as they are.",
        )

    def set_data_format(self, data_format: str) -> None:
        """Sets "NCHW" or "NHWC" on the model and its backbone; the losses follow (`SegBuilder`)."""
        model = self.dic.get("model", {})
        for part in (model, model.get("backbone")):
            if isinstance(part, dict):
                part["data_format"] = data_format

    def drop_pretrained(self) -> None:
        """Forgets pretrained weights, for when a whole trained model is loaded anyway."""
        model = self.dic.get("model", {})
        for part in (model, model.get("backbone")):
            if isinstance(part, dict) and "pretrained" in part:
                part["pretrained"] = None

    def __str__(self) -> str:
        return yaml.dump(self.dic, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

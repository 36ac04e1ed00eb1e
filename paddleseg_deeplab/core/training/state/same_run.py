# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint belongs to the run that wants to go on from it."""

from pathlib import Path

import yaml

from paddleseg_deeplab.utils import safe_yaml
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

CONFIG = "config.yml"
# Not part of what is learned: how long, how it is evaluated and exported, how it is run. What an
# iteration reads is compared as a setting, since processes share it.
_FREE = (
    "batch_size",
    "accumulation_steps",
    "images_per_update",
    "iters",
    "val_dataset",
    "test_config",
    "export",
    "dataset_root",
    "to_static_training",
)
# Where files lie; weights that the checkpoint's own replace; how an update is computed.
_FREE_ANYWHERE = (
    *("dataset_root", "train_path", "val_path", "test_path", "pretrained"),
    "use_multi_tensor",
)
_ABSENT = "(absent)"


def differences(old, new):
    """What differs between two configs beyond what a resumed run may change.

    ``batch_size`` and ``accumulation_steps`` are left to the settings of `check_same_run`. Free
    to differ are ``images_per_update`` (which is only told), ``iters``, ``val_dataset``,
    ``test_config``, ``export``, ``to_static_training`` and ``use_multi_tensor``, folders and list
    files of the training set, and pretrained weights, which the checkpoint's replace.

    Args:
        old, new (dict): Resolved configs.

    Returns:
        list[str]: ``key: old -> new``, keys with dots and list places as ``--opts`` takes them.
    """
    one, other = (
        dict(_flat({k: v for k, v in config.items() if k not in _FREE})) for config in (old, new)
    )
    lines = []
    for key in [*one, *(key for key in other if key not in one)]:
        before, after = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines


def check_same_run(folder, config_text, settings=None, saved_settings=None, *, ignore=False):
    """Refuses to go on from another run's checkpoint.

    Args:
        folder (str): The checkpoint; one without ``config.yml`` has nothing to compare.
        config_text (str): This run's resolved config, YAML; "" compares none.
        settings, saved_settings (dict, optional): What the config does not tell, of this run and
            of the checkpoint; what only one has is not compared.
        ignore (bool): Warn, and go on.

    Raises:
        UserError: There are differences; they are listed, one a line.
    """
    lines = []
    path = Path(folder) / CONFIG
    if config_text and path.is_file():
        lines += differences(_read(path), yaml.safe_load(config_text) or {})
    for key, value in (settings or {}).items():
        saved = (saved_settings or {}).get(key, value)
        if saved != value:
            lines.append(f"{key}: {saved} -> {value}")
    lines = list(dict.fromkeys(lines))
    if not lines:
        return
    told = "".join(f"\n  {line}" for line in lines)
    if ignore:
        logger.warning("%s is from another run; going on as told in spite of:%s", folder, told)
        return
    raise UserError(
        f"--resume_model {folder} is from another run. Go on with its settings, or take what "
        f"differs into account with --resume_ignore_config:{told}"
    )


def _read(path):
    try:
        content = safe_yaml.load(safe_yaml.read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--resume_model: {path} is damaged ({error}).") from error
    return content if isinstance(content, dict) else {}


def _flat(value, place=""):
    """Yields (key with dots, plain value); an empty section or list counts as a value."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        yield place, value
        return
    for key, inner in items:
        if key not in _FREE_ANYWHERE and key != "pretrained_skip":
            yield from _flat(inner, f"{place}.{key}" if place else str(key))

# SPDX-License-Identifier: Apache-2.0
"""YAML from anybody: no objects of Python, and no text of a few lines that unfolds without end."""

import os
from typing import Any

import yaml

# Aliases (*name) stand for what they name, aliases within it included, so ten lines can mean
# 10**9 values. The largest files here, deploy.yaml with a palette, hold under 2,000.
MAX_VALUES = 100_000
MAX_BYTES = 1 << 20


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses what unfolds to more than MAX_VALUES values."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node


def _check_size(root):
    sizes = {}  # of finished nodes; None while a node is being counted

    def size_of(node):
        if id(node) in sizes:
            size = sizes[id(node)]
            if size is None:
                raise yaml.composer.ComposerError(
                    None, None, "a value contains itself", node.start_mark
                )
            return size
        sizes[id(node)] = None
        size = 1
        if isinstance(node, yaml.MappingNode):
            size += sum(size_of(key) + size_of(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(map(size_of, node.value))
        if size > MAX_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"its aliases unfold to more than {MAX_VALUES} values", node.start_mark
            )
        sizes[id(node)] = size
        return size

    size_of(root)


def read_text(path: str | os.PathLike[str]) -> str:
    """A YAML file's text.

    Raises:
        yaml.YAMLError: it is longer than MAX_BYTES, or no UTF-8.
        OSError: it cannot be read.
    """
    with open(os.fspath(path), "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise yaml.YAMLError(f"it is longer than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(str(error)) from error


def load(text: str, loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """What YAML text holds: dicts, lists, text, numbers, dates.

    Args:
        text (str): The YAML.
        loader (type): A `BoundedLoader`.

    Raises:
        yaml.YAMLError: whatever is wrong with the text.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except Exception as error:  # PyYAML lets anything through over values such as `!!bool x`
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error

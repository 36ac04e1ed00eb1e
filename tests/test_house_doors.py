# SPDX-License-Identifier: Apache-2.0
"""Models read as the papers do: what is Paddle's or a processor's stands behind a few doors."""

import ast
import re
from pathlib import Path

import pytest
from house import imported

PACKAGE = Path(__file__).parents[1] / "paddleseg_deeplab"
KERNELS = "paddleseg_deeplab.kernels"

# Who may ask `kernels`.
DOORS = (
    "models/layers/conv.py",
    "models/layers/resize.py",
    "models/losses/",
    "transforms/reading/",
    "models/backbones/__init__.py",  # tells tracing to leave it alone
)
# Which files of models/ may know what no name of Paddle's tells: its layers' insides, the device,
# whether a program is traced. What each needs it for stands beside it.
PRIVATE = re.compile(
    r"\._(mean|variance|momentum|epsilon|use_global_stats|stride|padding_mode|padding_algorithm|"
    r"updated_padding|dilation|groups|data_format|parameters|sub_layers|buffers|"
    r"forward_pre_hooks|forward_post_hooks)\b"
)
DEVICE = re.compile(r"\b(in_dynamic_mode|in_dynamic_or_pir_mode|is_cpu_place|get_device)\b")
MAY = {
    "models/layers/conv.py": (PRIVATE, DEVICE),  # Conv2D, ReLU
    "models/layers/norm.py": (PRIVATE, DEVICE),  # Paddle's numbers, repaired; which batch norm
    "models/layers/upsample.py": (DEVICE,),  # a check of sizes that a traced program has not
    "models/segmenter.py": (DEVICE,),  # likewise
    "models/losses/base.py": (DEVICE,),  # NumPy on a CPU
    "models/forward.py": (DEVICE,),  # refuses precisions that a device has not
}


def files(*rooms):
    return [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]


def place(path):
    return path.relative_to(PACKAGE).as_posix()


def code(path):
    """A file's code without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if hasattr(node, "body") and isinstance(node.body, list) and ast_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def ast_docstring(node):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


@pytest.mark.parametrize("path", files("."), ids=place)
def test_who_asks_the_kernels(path):
    if place(path).startswith("kernels/"):
        return
    asked = [name for name in imported(path) if name == KERNELS or name.startswith(KERNELS + ".")]
    # The door itself, never a file behind it.
    assert asked == [] or (place(path).startswith(DOORS) and asked == [KERNELS]), asked


def test_the_door_needs_nothing():
    """It works where all else in its folder is gone, and where Paddle is not installed."""
    needed = set(imported(PACKAGE / "kernels" / "__init__.py"))
    for_types = {"__future__.annotations", "typing.TYPE_CHECKING"}
    assert needed - for_types == {"functools", "importlib", "paddleseg_deeplab.utils.cpu"}


@pytest.mark.parametrize("path", files("models"), ids=place)
def test_models_know_no_device_and_nothing_private(path):
    text, allowed = code(path), MAY.get(place(path), ())
    for pattern in (PRIVATE, DEVICE):
        found = [m[0] for m in pattern.finditer(text) if pattern not in allowed]
        assert found == [], f"{place(path)}: {found}; models ask layers and kernels for that"


@pytest.mark.parametrize("path", files("models"), ids=place)
def test_convolutions_are_called(path):
    """`conv(x)`, of the class that asks the kernels."""
    text = code(path)
    assert "convolve(" not in text
    if place(path) != "models/layers/conv.py":
        assert not re.search(r"\bnn\.Conv2D\(|F\.conv2d\(", text)


def test_convolution_and_batch_norm_are_one_line():
    tree = ast.parse((PACKAGE / "models" / "layers" / "conv.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name in ("ConvBN", "ConvBNReLU", "SeparableConvBNReLU"):
        body = {f.name: f.body for f in classes[name].body if isinstance(f, ast.FunctionDef)}
        assert body.keys() == {"__init__", "forward"}
        (statement,) = body["forward"]
        assert isinstance(statement, ast.Return)

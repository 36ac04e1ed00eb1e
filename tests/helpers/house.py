# SPDX-License-Identifier: Apache-2.0
"""The order of the package's rooms, and what a file imports."""

import ast

# The upper floors first. A room imports what lies on lower floors, and itself; of its own floor
# nothing else.
FLOORS = [
    ("cli",),
    ("tools",),
    ("core",),
    ("deploy", "cvlibs"),
    ("datasets", "prediction", "models"),
    ("transforms", "optimizers", "postprocess"),
    ("kernels",),
    ("utils", "registry"),
]


def _is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(path, *, top_level_only=False, for_types=False):
    """What a file imports: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``.

    Args:
        path (Path): The file.
        top_level_only (bool): Leave out imports inside functions, classes and ifs.
        for_types (bool): Count what is under ``if TYPE_CHECKING:``, which no run imports.
    """
    left = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif _is_for_types(node) and not for_types:
            left += node.orelse
        elif isinstance(node, ast.Module) or not top_level_only:
            left += ast.iter_child_nodes(node)

# SPDX-License-Identifier: Apache-2.0
"""Everything public says its types: what it takes and what it gives."""

import ast

import pytest
from places import ROOT

PACKAGE = ROOT / "paddleseg_deeplab"
PUBLIC_ANYWAY = ("__init__", "__call__")


def files():
    return sorted(PACKAGE.rglob("*.py"))


def place(path):
    return path.relative_to(PACKAGE).as_posix()


def public_functions(node, prefix=""):
    """(name, function, whether it has self or cls), methods too; none inside a function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from public_functions(child, prefix)  # such as an if around it
        elif child.name.startswith("_") and child.name not in PUBLIC_ANYWAY:
            continue
        elif isinstance(child, ast.ClassDef):
            yield from public_functions(child, f"{prefix}{child.name}.")
        else:
            static = any(getattr(d, "id", "") == "staticmethod" for d in child.decorator_list)
            yield prefix + child.name, child, isinstance(node, ast.ClassDef) and not static


def without_hints(code):
    """The parameters of public functions, and "return", that say no type."""
    found = []
    for name, function, has_self in public_functions(ast.parse(code)):
        given = function.args
        arguments = [*given.posonlyargs, *given.args][has_self:] + given.kwonlyargs
        arguments += [each for each in (given.vararg, given.kwarg) if each is not None]
        found += [f"{name}({each.arg})" for each in arguments if each.annotation is None]
        if function.returns is None:
            found.append(f"{name} -> ?")
    return found


@pytest.mark.parametrize("path", files(), ids=place)
def test_public_functions_say_their_types(path):
    assert without_hints(path.read_text(encoding="utf-8")) == []


CODE = """
def good(a: int, /, b: str = "", *c: int, d: int = 0, **e: int) -> None:
    def inner(x): ...

def _private(a): ...

def bad(a, b: int, *c, d, **e): ...

class Open:
    def __init__(self, a): ...
    def __call__(self, a: int) -> int: ...
    def __len__(self): ...
    @staticmethod
    def made(a): ...
    @classmethod
    def of(cls, a: int) -> "Open": ...
    class Inner:
        def method(self) -> None: ...
        @property
        def value(self): ...

class _Closed:
    def method(self, a): ...

if True:
    def late(a: int): ...

try:
    pass
except ImportError:
    def later(a) -> int: ...
"""


def test_what_is_missing_is_found():
    assert without_hints(CODE) == [
        *("bad(a)", "bad(d)", "bad(c)", "bad(e)", "bad -> ?"),
        *("Open.__init__(a)", "Open.__init__ -> ?", "Open.made(a)", "Open.made -> ?"),
        *("Open.Inner.value -> ?", "late -> ?", "later(a)"),
    ]

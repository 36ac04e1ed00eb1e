# SPDX-License-Identifier: Apache-2.0
"""The house rules about imports: they go down only, and Paddle comes when it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "paddleseg_deeplab"
NAME = "paddleseg_deeplab"

# First matching row decides; a module may import what starts with one of these, and itself.
ALLOWED = [
    ("cvlibs/manager.py", ()),
    (
        "cvlibs/builder.py",
        ("cvlibs", "datasets", "models", "optimizers", "postprocess", "transforms", "utils"),
    ),
    ("cvlibs/", ("cvlibs", "utils")),
    ("transforms/functional.py", ()),
    ("transforms/", ("transforms", "cvlibs.manager", "utils")),
    ("datasets/", ("datasets", "transforms", "cvlibs.manager", "utils")),
    ("models/layers/", ("models.layers", "utils")),
    ("models/losses/", ("models.losses", "cvlibs.manager", "utils")),
    ("models/backbones/", ("models.backbones", "models.layers", "cvlibs.manager", "utils")),
    ("models/__init__.py", ("models", "utils.needs_paddle")),
    # A model file never imports a backbone.
    ("models/", ("models.layers", "models.segmenter", "cvlibs.manager", "utils")),
    ("optimizers/", ("optimizers", "cvlibs.manager", "utils")),
    ("postprocess/", ("postprocess", "utils")),
    ("core/", ("core", "optimizers", "transforms", "postprocess", "utils")),
    ("utils/", ("utils",)),
    ("tools/", tuple(path.name for path in PACKAGE.iterdir() if path.name != "cli")),
    ("cli/", ("",)),
    ("__init__.py", ("utils.cpu", "utils.installed")),
]
# Imported without Paddle: the deployment script and --help stand on these.
PADDLE_FREE = [
    *("utils/pickle_machine.py", "utils/pickle_words.py", "utils/safe_yaml.py"),
    *("utils/image_limit.py", "utils/installed.py", "utils/finite.py"),
    *("__init__.py", "utils/cpu.py", "utils/errors.py", "utils/logger.py", "utils/download.py"),
    *("utils/metrics.py", "utils/visualize.py", "utils/prediction_files.py"),
    *("cvlibs/__init__.py", "cvlibs/manager.py", "cvlibs/config.py"),
    *("core/__init__.py", "core/feed.py", "core/refine.py", "core/crf_search.py"),
    "core/pictures.py",
    *("utils/__init__.py", "utils/class_weights.py"),
    *("transforms/", "datasets/", "postprocess/", "cli/"),
]


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path, top_level_only=False):
    """What a file imports: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    place = path.relative_to(PACKAGE).as_posix()
    allowed = next(targets for prefix, targets in ALLOWED if place.startswith(prefix))
    for name in _imports(path):
        if name != NAME and not name.startswith(NAME + "."):
            continue
        if name == f"{NAME}.__version__":
            continue
        target = name[len(NAME) + 1 :]
        assert any(
            not prefix or target == prefix or target.startswith(prefix + ".") for prefix in allowed
        ), f"{place} imports {name}; it may import {allowed}"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_paddle_is_imported_when_it_is_needed(path):
    place = path.relative_to(PACKAGE).as_posix()
    if not place.startswith(tuple(PADDLE_FREE)):
        return
    top_level_only = place.startswith("cli/")
    names = list(_imports(path, top_level_only))
    assert not [n for n in names if n.split(".")[0] == "paddle"], place
    if top_level_only:
        heavy = ("core", "models", "cvlibs.builder", "optimizers", "datasets", "transforms")
        for prefix in heavy:
            assert not [n for n in names if n.startswith(f"{NAME}.{prefix}")], place


def test_deployment_and_help_need_no_paddle():
    """Imports what the deployment and the commands import, with Paddle made unimportable."""
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        "import paddleseg_deeplab.transforms, paddleseg_deeplab.datasets\n"
        "import paddleseg_deeplab.transforms.pipeline, paddleseg_deeplab.utils.prediction_files\n"
        "from paddleseg_deeplab.cli import main, train, val, predict, export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_file_and_function_sizes():
    """No file past 400 lines, no function past 60 without its docstring."""
    for path in [*_modules(), *(ROOT / "deploy").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1
                # The signature and docstring of a public function are documentation.
                body = lines - (len(doc.splitlines()) if doc else 0)
                body -= node.body[0].lineno - node.lineno
                assert body <= 60, f"{path}: {node.name} has {body} lines"

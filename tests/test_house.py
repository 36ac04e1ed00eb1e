# SPDX-License-Identifier: Apache-2.0
"""The house's rules: imports go down only, and Paddle comes when it is needed."""

import ast
import subprocess
import sys

import pytest
from house import FLOORS, imported
from places import ROOT

PACKAGE = ROOT / "paddleseg_deeplab"
NAME = "paddleseg_deeplab"

# Parts of a room that may import less; the first row that matches decides.
NARROWER = [
    ("registry.py", ()),
    ("cvlibs/manager.py", ("registry",)),
    ("transforms/functional.py", ()),
    # A model file never imports a backbone.
    ("models/deeplab", ("models.layers", "models.segmenter", "registry", "utils")),
    ("__init__.py", ("utils.cpu", "utils.installed", "predictor", "__version__")),
    # Python's own way in stands above all but the commands.
    ("predictor.py", tuple(room for rooms in FLOORS[2:] for room in rooms)),
    ("__main__.py", ("cli.main",)),
]
_FULLEST = 16  # files in one folder
# Parameters that PaddleSeg or a config gives.
PADDLESEG_SIGNATURES = {
    "core/train.py:train",
    "core/val.py:evaluate",
    "core/predict.py:predict",
    "core/infer.py:inference",
    "core/infer.py:aug_inference",
}
# Rooms whose constructors take what a config gives.
COMPONENTS = ("datasets/", "models/", "optimizers/", "postprocess/", "transforms/")
# A tool that checks what another one states.
USES = {"doctor": {"inspect_model"}}
# What works without Paddle does not import it at the top of a file.
PADDLE_FREE = (
    *("__init__.py", "registry.py", "cvlibs/__init__.py", "cvlibs/config.py"),
    *("cli/", "transforms/", "datasets/", "prediction/", "postprocess/"),
    *("tools/check_dataset/", "tools/prepare_dataset/", "tools/search_crf/search.py"),
    *("deploy/deploy_yaml.py", "deploy/runtimes.py", "deploy/settings.py"),
    *(f"utils/{name}.py" for name in ("__init__", "archive", "class_weights", "cpu", "download")),
    *(f"utils/{name}.py" for name in ("errors", "installed", "logger", "metrics")),
    *(
        "utils/files/",
        "utils/pictures/",
        "utils/safe_yaml.py",
        "utils/visualize.py",
        "utils/weights/finite.py",
    ),
    *("utils/safe_pickle/machine.py", "utils/safe_pickle/names.py"),
)


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def _place(path):
    return path.relative_to(PACKAGE).as_posix()


def _ours(path, **which):
    """What a file imports of the package, without the package's name."""
    for name in imported(path, **which):
        if name == NAME or name.startswith(NAME + "."):
            yield name[len(NAME) + 1 :]


def _allowed(place):
    for prefix, targets in NARROWER:
        if place.startswith(prefix):
            return targets
    room = place.split("/")[0]
    floor = next(i for i, rooms in enumerate(FLOORS) if room in rooms)
    return (room, *(name for rooms in FLOORS[floor + 1 :] for name in rooms), "__version__")


@pytest.mark.parametrize("path", _modules(), ids=_place)
def test_imports_go_down(path):
    place, allowed = _place(path), _allowed(_place(path))
    banned = "cvlibs" if place.startswith("core/") else "nothing"  # objects come built
    for target in _ours(path, for_types=True):
        assert target.split(".")[0] != banned, f"{place} imports {target}"
        assert any(target == room or target.startswith(room + ".") for room in allowed), (
            f"{place} imports {target}; it may import {allowed}"
        )


@pytest.mark.parametrize("path", _modules(), ids=_place)
def test_paddle_is_imported_when_it_is_needed(path):
    place = _place(path)
    if not place.startswith(PADDLE_FREE):
        return
    top_level_only = place.startswith(("cli/", "tools/"))
    names = list(imported(path, top_level_only=top_level_only))
    assert not [n for n in names if n.split(".")[0] == "paddle"], place
    # `core/__init__` imports all of core, and with it Paddle.
    assert not [n for n in names if n.startswith(f"{NAME}.core")], place
    if place.startswith("cli/"):
        heavy = ("core", "models", "cvlibs.builder", "optimizers", "datasets", "transforms")
        for prefix in heavy:
            assert not [n for n in names if n.startswith(f"{NAME}.{prefix}")], place


def test_deployment_and_help_need_no_paddle():
    """Imports what the deployment and the commands import, with Paddle made unimportable."""
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        "import paddleseg_deeplab.transforms, paddleseg_deeplab.datasets\n"
        "import paddleseg_deeplab.prediction.restore, paddleseg_deeplab.prediction.outputs\n"
        "from paddleseg_deeplab.cli import main, train, val, predict, export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_no_circles():
    """No module needs, over any number of imports, itself; imports inside functions count."""
    modules = {}
    for path in _modules():
        name = _place(path)[: -len(".py")].replace("/", ".")
        modules[name.removesuffix(".__init__").removesuffix("__init__")] = path
    needs = {}
    for name, path in modules.items():
        found = set()
        for target in _ours(path):
            while target and target not in modules:
                target = target.rpartition(".")[0]
            found.add(target)
        needs[name] = found - {name, ""}
    left = dict(needs)
    while left:
        free = [name for name, found in left.items() if not found & left.keys()]
        assert free, f"among these there is a circle: {sorted(left)}"
        for name in free:
            del left[name]


def test_a_tool_uses_no_other_tool():
    for path in _modules():
        place = _place(path)
        if place.startswith("tools/"):
            name = place.split("/")[1]
            others = {t.split(".")[1] for t in _ours(path) if t.startswith("tools.")}
            assert others <= {name, *USES.get(name, ())}, place


def test_folders_can_be_looked_over():
    """About a dozen files in a folder; more want sub-folders."""
    for folder in {path.parent for path in _modules()}:
        count = len(list(folder.glob("*.py")))
        assert count <= _FULLEST, f"{folder} holds {count} files"


def _functions():
    """(path, function, whether it is a method) of all functions."""
    for path in [*_modules(), *(ROOT / "deploy").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        methods = {
            id(each)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for each in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield path, node, id(node) in methods


def test_functions_are_short():
    """No function past 60 lines, its signature and docstring apart."""
    for path, node, _ in _functions():
        doc = ast.get_docstring(node, clean=False)
        body = node.end_lineno - node.body[0].lineno + 1 - (len(doc.splitlines()) if doc else 0)
        assert body <= 60, f"{path}: {node.name} has {body} lines"


def test_functions_take_few_parameters():
    """No more than 8; where PaddleSeg or a config gives the parameters, as many as those need."""
    for path, node, is_method in _functions():
        if PACKAGE not in path.parents:
            continue
        place, arguments = _place(path), node.args
        if f"{place}:{node.name}" in PADDLESEG_SIGNATURES:
            continue
        if node.name == "__init__" and place.startswith(COMPONENTS):
            continue
        count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
        static = any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
        count -= is_method and not static
        assert count <= 8, f"{place}: {node.name} takes {count} parameters"


def test_files_say_their_licence():
    for path in [*_modules(), *(ROOT / "deploy").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path

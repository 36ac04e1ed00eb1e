# SPDX-License-Identifier: Apache-2.0
"""What the package says of itself: pyproject.toml, CITATION.cff and the hooks of a commit."""

import ast
import importlib
import re

import pytest
import yaml
from places import ROOT

import paddleseg_deeplab


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("extra", ["test", "bench"])
def test_extras_that_hold_others(project, extra):
    """They list what the others hold, since an extra that names extras needs a new pip."""
    extras = project["project"]["optional-dependencies"]
    for part in ("onnx", "crf", "openvino"):
        assert set(extras[part]) <= set(extras[extra]), part


def test_no_paddle_comes_unasked(project):
    extras = project["project"]["optional-dependencies"]
    paddle = {
        name for name, needs in extras.items() if any("paddlepaddle" in need for need in needs)
    }
    assert paddle == {"cpu"}
    assert not any("paddlepaddle" in need for need in project["project"]["dependencies"])


def test_the_command_is_there(project):
    for target in project["project"]["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_version_is_read_without_an_import(project):
    """A build has no NumPy or OpenCV: setuptools reads the version only where it stands plainly."""
    assert "version" in project["project"]["dynamic"]
    where = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    module, name = where.rsplit(".", 1)
    tree = ast.parse((ROOT / module / "__init__.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == name
    ]
    assert ast.literal_eval(value) == paddleseg_deeplab.__version__


def test_the_papers_can_be_cited():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors", "references"} <= set(cited)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = set(re.findall(r"arxiv\.org/abs/([\d.]+)", readme))
    assert len(papers) == 4
    assert {each["url"].rsplit("/", 1)[1] for each in cited["references"]} == papers
    for each in cited["references"]:
        assert each["identifiers"][0]["value"] == "arXiv:" + each["url"].rsplit("/", 1)[1]


def test_a_commit_is_checked_as_make_test_does():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [repo] = hooks["repos"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test test-all:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    assert entries == re.findall(r"\$\(BIN\)/(ruff .+) \.", recipe)

# SPDX-License-Identifier: Apache-2.0
"""The door to the faster ways. What is computed without: end_to_end/test_without_kernels.py."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddleseg_deeplab import kernels

FILES = {path.stem for path in Path(kernels.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("question", kernels._WAYS)
def test_every_question_has_its_way(question):
    """A way that was renamed would be missed in silence: the plain one is taken."""
    assert kernels.has(question)


def test_questions_are_the_functions():
    functions = {
        name
        for name, value in vars(kernels).items()
        if inspect.isfunction(value) and not name.startswith("_") and name != "has"
    }
    assert functions == set(kernels._WAYS)
    # A file of this name would take the function's place when it is imported.
    assert not functions & FILES


def test_a_missing_way_answers_none(monkeypatch):
    monkeypatch.setitem(kernels._WAYS, "relu_", ("cpu_ops", "not_there"))
    kernels._way.cache_clear()
    try:
        assert kernels.relu_(None) is None
        assert not kernels.has("relu_")
    finally:
        kernels._way.cache_clear()


@pytest.mark.parametrize(
    ("value", "off"), [("0", True), ("1", False), ("", False), ("false", True)]
)
def test_the_switch(value, off):
    """It is read at the import, and asks for no Paddle."""
    code = (
        "import sys\n"
        "from paddleseg_deeplab import kernels\n"
        "print([n for n in kernels._WAYS if 'png' in n and kernels.has(n)])\n"
        "assert 'paddle' not in sys.modules\n"
    )
    environment = {**os.environ, kernels.SWITCH: value}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    expected = [] if off else ["parse_png", "reads_png_fast"]
    assert done.stdout.strip() == str(expected)

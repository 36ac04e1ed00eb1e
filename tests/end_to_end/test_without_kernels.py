# SPDX-License-Identifier: Apache-2.0
"""The faster ways on a CPU may be missing: everything works without them, only slower."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import paddleseg_deeplab
from paddleseg_deeplab import kernels

PACKAGE = Path(paddleseg_deeplab.__file__).parent
WORKER = Path(__file__).parents[1] / "helpers" / "kernels_worker.py"
# Largest difference over largest number: sums in another order.
TOLERANCES = {"logits": 1e-5, "loss": 1e-6, "gradient": 1e-6}
# Norm of the difference over norm, of what a training step makes of them: a ReLU whose input is 0
# up to rounding passes its whole gradient or none (0.006 found; a wrong gradient is 1 off).
STEP = {"step": 3e-2, "statistics": 1e-3}

pytestmark = pytest.mark.slow


def computed(path, out, **environment):
    """What the worker finds with the package in the folder `path`."""
    environment = {**os.environ, "PYTHONPATH": str(path), **environment}
    subprocess.run(
        [sys.executable, str(WORKER), str(out)], env=environment, check=True, timeout=300
    )
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope="module")
def with_kernels(tmp_path_factory):
    found = computed(PACKAGE.parent, tmp_path_factory.mktemp("with") / "found.npz")
    assert set(found["ways"]) == set(kernels._WAYS)
    return found


def assert_same(found, expected):
    assert list(found["ways"]) == []
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"package", "ways"}:
        kind, difference = name.split()[0], found[name] - expected[name]
        if kind in STEP:
            share = np.linalg.norm(difference) / max(np.linalg.norm(expected[name]), 1e-3)
            assert share <= STEP[kind], name
        else:
            share = np.abs(difference).max() / np.abs(expected[name]).max()
            assert share <= TOLERANCES.get(kind, 0), name


def test_emptied_files(with_kernels, tmp_path):
    """Every file of kernels/ but its door has zero bytes."""
    ignore = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignore)
    emptied = [path for path in (copy / "kernels").glob("*.py") if path.name != "__init__.py"]
    assert len(emptied) >= 6
    for path in emptied:
        path.write_text("", encoding="utf-8")
    found = computed(tmp_path, tmp_path / "found.npz")
    assert str(found["package"]) == str(copy / "__init__.py")
    assert_same(found, with_kernels)


def test_the_switch(with_kernels, tmp_path):
    switched_off = {kernels.SWITCH: "0"}
    assert_same(computed(PACKAGE.parent, tmp_path / "found.npz", **switched_off), with_kernels)

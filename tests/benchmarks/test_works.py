# SPDX-License-Identifier: Apache-2.0
"""benchmarks/works/: what `benchmarks/run.py --compare` measures runs, in small, and calls only
what users call."""

import ast
import sys

import numpy as np
import pytest
from places import ROOT

FOLDER = ROOT / "benchmarks"
SUITES = (
    *("confusion", "crf", "evaluate", "export", "input", "loss", "multiscale", "start"),
    "train_step",
)


@pytest.fixture
def works(load):
    """A suite's rows by its name."""
    return lambda suite: load(f"works.{suite}").ROWS


def test_works_call_what_users_call():
    """No module inside the package: those move, and the commit on the other side has them
    elsewhere."""
    allowed = {"core.evaluate", "cvlibs.manager", "datasets.Dataset", "transforms"}
    allowed |= {"transforms.Normalize", "models.DeepLabV3P", "postprocess.dense_crf.DenseCRF"}
    allowed |= {"utils.metrics.ConfusionMatrix"}
    allowed |= {f"models.losses.{n}Loss" for n in ("CrossEntropy", "LovaszSoftmax", "Mixed")}
    used = set()
    for path in (FOLDER / "works").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
    name = "paddleseg_deeplab."
    assert {n[len(name) :] for n in used if n.startswith(name)} == allowed


class Enough(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_in_small(works, suite, tmp_path, monkeypatch):
    """Each row works until its first lap, whose output can be compared."""
    import cv2

    import paddleseg_deeplab.datasets
    import paddleseg_deeplab.models  # noqa: F401 (both fill the registries)
    from paddleseg_deeplab.cvlibs import manager

    for registry in (manager.DATASETS, manager.MODELS):  # what a work registers goes again
        monkeypatch.setattr(registry, "_components_dict", dict(registry.components_dict))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = []

    def lap(output):
        outputs.append(output())
        raise Enough

    rows = works(suite)
    threads = cv2.getNumThreads()
    for number, work in enumerate(rows.values()):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(Enough):
            work(lap, tmp_path / str(number), True)
    cv2.setNumThreads(threads)
    assert len(outputs) == len(rows) > 0
    for output in outputs:
        assert bool(output) == (suite != "start")
        assert np.isfinite([float(value) for value in output.values()]).all(), output

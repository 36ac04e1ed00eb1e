# SPDX-License-Identifier: Apache-2.0
import importlib
import sys

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def load():
    """Imports modules of benchmarks/ by name; they find each other as scripts do."""
    folder = str(ROOT / "benchmarks")
    before = set(sys.modules)
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
        if folder in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]

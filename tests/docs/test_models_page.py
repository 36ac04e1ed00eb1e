# SPDX-License-Identifier: Apache-2.0
"""docs/models.md: its counts, and that no registered network is left out.

Multiply-adds take longer: `python benchmarks/models_table.py docs/models.md --check`.
"""

import importlib.util
import logging
import re

import paddle
import pytest
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.utils.logger import logger

PAGE = ROOT / "docs" / "models.md"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "models_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_counts(table):
    """Tensors and numbers of every row, of networks without weights."""
    logger.setLevel(logging.ERROR)
    wrong, rows = [], list(table.rows_of(PAGE.read_text(encoding="utf-8").split("\n")))
    assert len(rows) > 40
    for i, cells, columns, about in rows:
        with paddle.LazyGuard():
            tensors = table.Row(about, PAGE).build(None).state_dict()
        numbers = sum(tensor.size for tensor in tensors.values())
        shown = {column: cell for cell, column in zip(cells, columns)}
        if (shown["tensors"], shown["numbers"]) != (str(len(tensors)), f"{numbers:,}"):
            wrong.append(f"line {i + 1}: {len(tensors)} tensors, {numbers:,} numbers")
    assert not wrong


@pytest.mark.parametrize("kind", ["MODELS", "BACKBONES"])
def test_every_network_has_a_row(kind):
    text = PAGE.read_text(encoding="utf-8")
    for name, part in getattr(registry, kind).components_dict.items():
        # Width multipliers are settings of one network; others may be a test's own.
        if not part.__module__.startswith("paddleseg_deeplab.") or re.search(r"_x\d", name):
            continue
        assert re.search(rf"^\|.*\b{name}\b", text, re.MULTILINE), name

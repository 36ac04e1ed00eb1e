# SPDX-License-Identifier: Apache-2.0
"""What a training run tells about its time."""

import logging
import re

import paddle
import pytest
from places import ROOT

from paddleseg_deeplab.core.training.watch.loggers import VisualDLWriter
from paddleseg_deeplab.core.training.watch.monitor import TrainMonitor
from paddleseg_deeplab.utils.logger import logger


@pytest.fixture
def told(caplog):
    """Messages of the package's logger with their levels."""
    logger.propagate = True
    caplog.set_level(logging.INFO, logger=logger.name)
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records]


def monitor(tmp_path, iters, start=0, log_iters=10):
    return TrainMonitor(iters, start, log_iters, 4, 100, VisualDLWriter(str(tmp_path), False, 0))


def test_after_the_first_iteration_the_time_left_is_told_once(tmp_path, told):
    one = monitor(tmp_path, 101)
    for iteration in range(1, 4):
        one.record(iteration, 1.0, {}, 0.1, 2.0, 10.0)
    assert told() == [
        (
            "INFO",
            "The first iteration took 12.0 s: the 100 that are left will take about 00:20:00, "
            "without evaluations.",
        )
    ]


@pytest.mark.parametrize(("iters", "long"), [(301, False), (302, True), (2000, True)])
def test_more_than_an_hour_on_a_cpu_names_what_is_quicker(tmp_path, told, iters, long):
    monitor(tmp_path, iters).record(1, 1.0, {}, 0.1, 2.0, 10.0)
    lines = told()
    assert len(lines) == 1 + long
    if long:
        level, text = lines[1]
        assert level == "INFO"
        for word in ("quickstart", "--iters", "deeplabv3p_resnet18_os16_256x256.yml"):
            assert word in text


def test_a_resumed_run_counts_from_where_it_goes_on(tmp_path, told):
    monitor(tmp_path, 1000, start=990).record(991, 1.0, {}, 0.1, 2.0, 500.0)
    assert [level for level, _ in told()] == ["INFO", "INFO"]
    assert "the 9 that are left will take about 01:15:18" in told()[0][1]


def test_where_nothing_is_left_nothing_is_told(tmp_path, told):
    monitor(tmp_path, 100, start=99).record(100, 1.0, {}, 0.1, 2.0, 10.0)
    assert len(told()) == 1  # the line of the last iteration
    assert "[TRAIN]" in told()[0][1]


def test_a_gpu_s_first_iteration_says_little(tmp_path, told, monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monitor(tmp_path, 100000).record(1, 1.0, {}, 0.1, 2.0, 10.0)
    assert told() == []


def test_the_recipe_that_is_named_exists():
    import inspect

    [name] = set(re.findall(r"configs/\S+?\.yml", inspect.getsource(TrainMonitor)))
    assert (ROOT / name).is_file()

# SPDX-License-Identifier: Apache-2.0
"""What a training run tells about its time."""

import logging
import re

import paddle
import pytest
from places import ROOT

from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.watch.monitor import TrainMonitor
from paddleseg_deeplab.core.training.watch.watcher import IterationReport
from paddleseg_deeplab.utils.logger import logger


@pytest.fixture
def logged(caplog):
    """Messages of the package's logger with their levels."""
    logger.propagate = True
    caplog.set_level(logging.INFO, logger=logger.name)
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records]


def monitor(iters, start=0):
    return TrainMonitor(Schedule(iters, log_iters=10), start, 4, 100)


def report(iteration, reader_seconds=2.0, step_seconds=10.0):
    return IterationReport(iteration, 1.0, {}, 0.1, reader_seconds, step_seconds)


def test_after_the_first_iteration_the_time_left_is_told_once(logged):
    one = monitor(101)
    for iteration in range(1, 4):
        one.after_iteration(report(iteration))
    assert logged() == [
        (
            "INFO",
            "The first iteration took 12.0 s: the 100 that are left will take about 00:20:00, "
            "without evaluations.",
        )
    ]


@pytest.mark.parametrize(("iters", "long"), [(301, False), (302, True), (2000, True)])
def test_more_than_an_hour_on_a_cpu_names_what_is_quicker(logged, iters, long):
    monitor(iters).after_iteration(report(1))
    lines = logged()
    assert len(lines) == 1 + long
    if long:
        level, text = lines[1]
        assert level == "INFO"
        for word in ("quickstart", "--iters", "deeplabv3p_resnet18_os16_256x256.yml"):
            assert word in text


def test_a_resumed_run_counts_from_where_it_goes_on(logged):
    monitor(1000, start=990).after_iteration(report(991, 2.0, 500.0))
    assert [level for level, _ in logged()] == ["INFO", "INFO"]
    assert "the 9 that are left will take about 01:15:18" in logged()[0][1]


def test_where_nothing_is_left_nothing_is_told(logged):
    monitor(100, start=99).after_iteration(report(100))
    assert len(logged()) == 1  # the line of the last iteration
    assert "[TRAIN]" in logged()[0][1]


def test_a_gpu_s_first_iteration_says_little(logged, monkeypatch):
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monitor(100000).after_iteration(report(1))
    assert logged() == []


def test_the_recipe_that_is_named_exists():
    import inspect

    [name] = set(re.findall(r"configs/\S+?\.yml", inspect.getsource(TrainMonitor)))
    assert (ROOT / name).is_file()

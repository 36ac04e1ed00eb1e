# SPDX-License-Identifier: Apache-2.0
"""What looks on at a run is told everything, in order, and closed in any case."""

import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from places import ROOT

from paddleseg_deeplab.core import train
from paddleseg_deeplab.core.training.schedule import Schedule
from paddleseg_deeplab.core.training.settings import TrainSettings
from paddleseg_deeplab.core.training.watch.averages import Averages
from paddleseg_deeplab.core.training.watch.watcher import IterationReport, Watcher
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.errors import UserError


class Net(nn.Layer):
    num_classes = 3

    def __init__(self):
        super().__init__()
        paddle.seed(0)
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        return [self.conv(x)]


def parts():
    """model, training set, validation set, optimizer, losses."""
    model = Net()
    optimizer = paddle.optimizer.SGD(
        paddle.optimizer.lr.StepDecay(0.1, 2, 0.5), parameters=model.parameters()
    )
    data = {"image_size": (24, 16), "num_samples": 3, "num_classes": 3}
    sets = [Shapes([Normalize()], mode=mode, **data) for mode in ("train", "val")]
    return model, *sets, optimizer, {"types": [CrossEntropyLoss()], "coef": [1.0]}


def run(folder, *watchers, evaluates=True, **how):
    model, train_set, val_set, optimizer, losses = parts()
    return train(
        model,
        train_set,
        val_set if evaluates else None,
        optimizer,
        str(folder),
        losses=losses,
        settings=TrainSettings(watchers=watchers),
        **{"iters": 4, "save_interval": 2, "log_iters": 3, "test_config": {}, **how},
    )


class Seen(Watcher):
    def __init__(self, fails_at=None):
        self.calls = []
        self.reports = []
        self.fails_at = fails_at

    def after_iteration(self, report):
        self.reports.append(report)
        self.calls.append(("iteration", report.iteration))
        if report.iteration == self.fails_at:
            raise RuntimeError("the disk of the curves is full")

    def after_saving(self, iteration, folder):
        assert (Path(folder) / "model.pdparams").is_file()
        assert Path(folder).name == f"iter_{iteration}"
        self.calls.append(("saving", iteration))

    def after_evaluation(self, iteration, result):
        assert 0 <= result.miou <= 1
        self.calls.append(("evaluation", iteration))

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_watcher_is_told_all_in_order(tmp_path, evaluates):
    one, other = Seen(), Seen()
    progress = run(tmp_path, one, other, evaluates=evaluates)
    evaluated = {n: [("evaluation", n)] if evaluates else [] for n in (2, 4)}
    assert one.calls == [
        *(("iteration", 1), ("iteration", 2), ("saving", 2), *evaluated[2]),
        *(("iteration", 3), ("iteration", 4), ("saving", 4), *evaluated[4]),
        "close",
    ]
    assert other.calls == one.calls
    assert progress.iteration == 4
    for report in one.reports:
        assert report.parts == {"CrossEntropyLoss": report.loss}
        assert report.reader_seconds >= 0
        assert report.step_seconds > 0
    rates = [report.learning_rate for report in one.reports]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_what_a_watcher_raises_ends_the_run_and_all_are_closed(tmp_path):
    one, other = Seen(fails_at=3), Seen()
    with pytest.raises(RuntimeError, match="the disk of the curves is full"):
        run(tmp_path, one, other)
    assert one.calls[-1] == other.calls[-1] == "close"
    assert ("saving", 4) not in one.calls
    assert (tmp_path / "iter_2").is_dir()


def test_watchers_change_no_number(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "watched", Seen())
    one, other = (
        paddle.load(str(tmp_path / n / "iter_4/model.pdparams")) for n in ("plain", "watched")
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_what_is_no_watcher_is_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match="str is no Watcher"):
        run(tmp_path / "out", "wandb")
    assert not (tmp_path / "out").exists()


def test_means_are_those_between_two_lines():
    averages = Averages(Schedule(iters=7, log_iters=3), images_per_iter=6)
    found = {}
    for i in range(1, 8):
        report = IterationReport(i, 2.0 * i, {"a": 1.5 * i, "b": 0.5 * i}, 0.1 / i, 0.25, 0.5 * i)
        means = averages.add(report)
        if means is not None:
            found[i] = means
    assert list(found) == [3, 6, 7]  # each third, and the last
    assert found[6].loss == 10
    assert found[6].parts == {"a": 7.5, "b": 2.5}
    assert found[6].learning_rate == 0.1 / 6  # of the last, no mean
    assert (found[6].reader_seconds, found[6].step_seconds) == (0.25, 2.5)
    assert found[6].batch_seconds == 2.75
    assert found[6].images_per_second == pytest.approx(6 / 2.75)
    assert found[7].loss == 14


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text.partition("## From Python")[2], re.DOTALL)
    names = ("model", "train_dataset", "val_dataset", "optimizer", "losses")
    monkeypatch.chdir(tmp_path)
    exec(code, dict(zip(names, parts())))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0].isdigit()] == [
        "1",
        "2",
        "2",
        "3",
        "4",
        "4",
    ]
    assert (tmp_path / "output/mine/best_model/model.pdparams").is_file()

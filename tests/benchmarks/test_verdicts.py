# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/run.py --compare`: its turns and statistics, on made-up times."""

import types

import numpy as np
import pytest
from places import ROOT

FOLDER = ROOT / "benchmarks"
MODULES = ("compare", "processes", "trees", "run", "printing", "side")


@pytest.fixture
def bench(load):
    """The modules of benchmarks/ that compare two commits."""
    return types.SimpleNamespace(**{name: load(name) for name in MODULES})


# -- statistics ------------------------------------------------------------------------------------


def test_quartiles_are_numpy_s_percentiles(bench):
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 12, 40):
        ratios = rng.lognormal(0, 0.1, count)
        expected = np.percentile(ratios, 25), np.median(ratios), np.percentile(ratios, 75)
        assert bench.compare.quartiles(ratios) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0] * 4, "within the noise"),
        ([1.04, 1.05, 1.06, 1.05], "faster"),
        ([0.96, 0.95, 0.94, 0.95], "slower"),
        ([0.80, 0.82, 0.84, 0.82], "slower"),
        ([1.02, 1.02, 1.02, 1.02], "within the noise"),  # all above 1, but by less than the noise
        ([0.98, 0.98, 0.98, 0.98], "within the noise"),
        ([0.99, 0.99, 1.05, 1.05, 1.05], "within the noise"),  # the quartiles hold 1
        ([0.84, 1.0, 1.0, 1.16], "within the noise"),  # quartiles 0.96 and 1.04 are near enough
        ([0.8, 0.9, 1.1, 1.2], "not steady"),
        ([0.5, 0.5, 0.7, 0.7], "not steady"),  # slower for sure, but by how much?
        ([0.5] + [1.0] * 9, "within the noise"),  # one bad turn
    ],
)
def test_verdict(bench, ratios, expected):
    assert bench.compare.verdict(ratios) == expected


def test_ratio_is_of_the_pairs(bench):
    result = bench.compare.result_of("row", [4.0, 20.0, 6.0], [1.0, 10.0, 2.0], "")
    assert (result.other, result.ours, result.ratio) == (6.0, 2.0, 3.0)
    assert result.quartiles == (2.5, 3.5)
    assert result.turns == 3


@pytest.mark.parametrize(
    ("other", "ours", "text"),
    [
        ({"a": 1.0}, {"a": 1.0005}, ""),
        ({"a": 0.0}, {"a": 0.0}, ""),
        ({"a": 1.0}, {"a": 1.01}, "a 1 there, 1.01 here"),
        ({"a": 1.0}, {"a": float("nan")}, "a 1 there, nan here"),
        ({"a": float("nan")}, {"a": float("nan")}, "a nan there, nan here"),
        ({"a": 1.0}, {"b": 1.0}, "a 1 there, missing here; b missing there, 1 here"),
    ],
)
def test_outputs_are_compared(bench, other, ours, text):
    assert bench.compare.differences(other, ours) == text


# -- turns -----------------------------------------------------------------------------------------


class FakeSide:
    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, iter(seconds), log

    def output(self):
        self.log.append(self.name.upper())
        return {}

    def turn(self):
        self.log.append(self.name)
        return next(self.seconds)

    def close(self):
        self.log.append("x")


def measured(bench, ratios_of_round, **limits):
    """What `measure` logs and returns where round n has the ratios that a function gives."""
    log = []

    def open_pair(number):
        ratios = ratios_of_round(number)
        return FakeSide("a", ratios, log), FakeSide("b", [1.0] * len(ratios), log)

    other, ours, _ = bench.compare.measure(open_pair, bench.compare.Limits(settle=0.0, **limits))
    assert ours == [1.0] * len(other)
    return "".join(log), other


def test_turns_go_in_turn_and_rounds_are_new_processes(bench):
    log, other = measured(bench, lambda number: [1.0, 1.0, 1.0], turns=3, rounds=2)
    assert log == "ABabbaabxx" + "ABbaabbaxx"
    assert other == [1.0] * 6


def test_an_unsteady_row_is_repeated_until_it_is_steady(bench):
    # Two rounds spoilt; with enough good ones the quartiles come near to each other.
    _, other = measured(bench, lambda n: [0.5, 2.0] if n < 2 else [1.0, 1.0], turns=2, rounds=2)
    assert bench.compare.is_steady(other)
    assert not bench.compare.is_steady(other[:-2])
    assert len(other) < 40


@pytest.mark.parametrize(
    "limits", [{"most_turns": 10}, {"most_turns": 1}, {"most_seconds": 0.0, "rounds": 2}]
)
def test_a_row_that_stays_unsteady_ends_at_a_limit(bench, limits):
    _, other = measured(bench, lambda n: [0.5, 2.0, 0.5, 2.0], turns=4, **limits)
    assert len(other) == limits.get("most_turns", 8)
    assert bench.compare.verdict([0.5, 2.0]) == "not steady"


def test_sides_are_closed_where_one_fails(bench):
    closed = []

    class Broken(FakeSide):
        def turn(self):
            raise bench.compare.SideError("it broke")

        def close(self):
            closed.append(self.name)

    def open_pair(number):
        return Broken("a", [], []), Broken("b", [], [])

    with pytest.raises(bench.compare.SideError) as caught:
        bench.compare.measure(open_pair, bench.compare.Limits(settle=0.0))
    assert caught.value.side == 0
    assert closed == ["a", "b"]


def test_the_suites(bench):
    suites = bench.compare.suites_in(FOLDER)
    assert {"train_step", "input", "evaluate", "export", "loss"} == set(bench.compare.JUDGES)
    assert set(bench.compare.JUDGES) < set(suites)
    assert set(suites) == set(bench.run.SUITES)

"""The benchmarks run, in a form so small that their figures say nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from statistics import median
from timeit import Timer

import pytest

from benchmarks import cycle, enqueue, harness, latency, passing, position, running, waiting
from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness import Report
from tests.support import ROOT

pytestmark = pytest.mark.alone

SMALLEST: dict[str, Callable[[], Report]] = {
    "pass": lambda: passing.run(turns=1, calls=1),
    "run": lambda: running.run(turns=1, calls=1),
    "enqueue": lambda: enqueue.run(turns=2),
    "cycle": lambda: cycle.run(turns=1, jobs=2, repeats=1),
    "position": lambda: position.run(longest=200, turns=1),
    "latency": lambda: latency.run(requests=1, rounds=1, clients=2),
    "waiting": lambda: waiting.run(browsers=3, seconds=1),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_returns_its_rows(name: str) -> None:
    """Catches: a benchmark that no longer fits what it measures."""
    report = SMALLEST[name]()

    assert report.rows
    assert all(len(row) == len(report.columns) for row in report.rows)
    assert report.rows[0][0] in report.text()


def test_every_benchmark_is_tried_here() -> None:
    """Catches: a new benchmark that this test does not know."""
    assert SMALLEST.keys() == BENCHMARKS.keys()


def test_the_sides_take_turns() -> None:
    """Catches: all turns of one side before those of the other."""
    seen: list[str] = []
    sides = {name: Timer(f"seen.append({name!r})", globals={"seen": seen}) for name in "AB"}

    found = harness.interleaved(sides, turns=2, calls=2, between=lambda: seen.append("-"))

    assert "".join(seen) == "AABB" + "AABB-" * 2
    assert {name: len(seconds) for name, seconds in found.items()} == {"A": 2, "B": 2}


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent: int, value: int) -> None:
    """Catches: an index that is off by one."""
    values = list(range(100, 0, -1))

    assert harness.percentile(values, percent) == value
    assert harness.percentile([7.0], percent) == 7.0
    assert harness.percentile([1.0, 2.0, 3.0], 50) == median([1.0, 2.0, 3.0])


def test_columns_are_aligned() -> None:
    """Catches: widths taken from the heads alone."""
    report = Report("title", "how", ("", "time"), [("a long name", "1"), ("b", "1000000")])

    *_, first, second = report.text().splitlines()

    assert first == "  a long name        1"
    assert second == "  b            1000000"


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    """Catches: a misspelt name that runs nothing, or everything."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "enqeue"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "no benchmark 'enqeue'; expected one of pass, run, enqueue," in done.stderr
    assert not done.stdout

"""Steps of the store that are cut short: by a kill, or by a call that fails."""

from __future__ import annotations

import random
import shutil
import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.reliability.children import run
from tests.reliability.size import sized
from tests.reliability.steps import STEPS, contents, die_at, named, opened, small, sweep, template

#: Points of each step at which a process is killed.
POINTS = sized(5, 1000)


@pytest.fixture(scope="module")
def start(quick_folder: Path) -> Path:
    """A database with a ticket in each state, to be copied."""
    folder = quick_folder / "template"
    folder.mkdir()
    template(folder / "line.db")
    return folder


def killed(name: str, path: Path, number: int) -> int:
    """Do a step in another process, killed at this point; return the points of the step if it was not."""
    told = path.parent.parent / "told"
    code = run(die_at, name, path, number, told)
    if code == 0:
        return int(told.read_text())
    assert code == -signal.SIGKILL, f"{name} at {number}: {code}"
    return 0


def chosen(points: int) -> list[int]:
    """Return the points to look at: all, or some of them with the first and the last."""
    if points <= POINTS:
        return list(range(1, points + 1))
    dice = random.Random(points)  # noqa: S311 - repeatable
    return [1, *sorted(dice.sample(range(2, points), POINTS - 2)), points]


@pytest.mark.parametrize("name", [*STEPS, "carry over"])
def test_a_step_that_a_kill_cuts_short_was_done_or_not(start: Path, quick_path: Path, name: str) -> None:
    """Catches: a step in two transactions, a body without its row or a row without its body, a commit too early."""
    before = contents(shutil.copytree(start, quick_path / "before") / "line.db")
    done = shutil.copytree(start, quick_path / "done") / "line.db"
    points = killed(name, done, 0)
    assert points > 3
    after = contents(done)
    seen = []
    for number in chosen(points):
        path = shutil.copytree(start, quick_path / str(number)) / "line.db"
        if killed(name, path, number):
            assert name == "carry over", "the same step has the same points"  # but here time decides how many
            continue
        found = contents(path)
        seen.append(found == after)
        if name == "carry over":
            assert found["waits"] == before["waits"]
            continue
        assert found in (before, after), f"{name} was half done after a kill at {number}"
        assert sweep(path) == set()
        if found != after:
            with closing(opened(path)) as store:
                STEPS[name](store)
        assert contents(path) == after, f"{name} could not be done after a kill at {number}"
        assert sweep(path) == set()
        shutil.rmtree(path.parent)
    assert seen == sorted(seen), "what was done at one point was not at a later one"


def test_a_store_whose_making_was_cut_short_is_made_by_the_next(quick_path: Path) -> None:
    """Catches: half a schema that is refused, or taken for a whole one."""
    points = killed("open", quick_path / "0" / "line.db", 0)
    assert points > 3
    for number in chosen(points):
        path = quick_path / str(number) / "line.db"
        assert killed("open", path, number) == 0
        with closing(opened(path)) as store:
            assert store.put(named("new"), small(), now=0).number == 1
            assert store.health()["journal_mode"] == "wal"

"""One byte of the database is another than was written."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.children import run
from tests.reliability.flipping import flip, look, look_beside, prepare
from tests.reliability.size import sized

PAGES = sized(8, 200)
#: Of these so many from the beginning of the file, where the roots of the tables and indexes are.
ROOTS = sized(5, 60)
#: So many more of the bytes of the header, of which each means something else.
HEADER = sized(3, 99)
#: But for the one that says which version of this package has made it: with another one there it is another version's.
VERSION = 63
#: And so many in the log, while two processes have it open.
IN_LOG = sized(3, 40)


class Flip(NamedTuple):
    """What a site did whose database had one wrong byte."""

    where: str
    died: bool
    wrong: list[tuple[str, str]]


@pytest.fixture(scope="module")
def flips(quick_folder: Path) -> list[Flip]:
    """A site for each of so many pages of the database and of its log."""
    start = quick_folder / "template"
    start.mkdir()
    sent = prepare(start)
    with closing(sqlite3.connect(start / "admission.db")) as connection:
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
        ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    assert pages >= 200
    dice = random.Random("flips")  # noqa: S311 - repeatable
    found = []
    chosen = [*dice.choices(range(24), k=ROOTS), *dice.sample(range(24, pages), PAGES - ROOTS)]
    places = [page * size + dice.randrange(size) for page in chosen]
    places += dice.sample([place for place in range(100) if place != VERSION], HEADER)
    for place in places:
        with copied(start, quick_folder / "site") as folder:
            bit = dice.randrange(8)
            flip(folder / "admission.db", place, bit)
            found.append(told(f"page {place // size}, {place % size}, bit {bit}", look, folder, sent))
    for number in range(IN_LOG):
        with copied(start, quick_folder / "site") as folder:
            found.append(told(f"log {number}", look_beside, folder, sent, number))
    return found


@contextmanager
def copied(start: Path, folder: Path) -> Iterator[Path]:
    """Copy a site to a folder that is removed afterwards."""
    shutil.copytree(start, folder)
    config = (folder / "admission.ini").read_text().replace(str(start), str(folder))
    (folder / "admission.ini").write_text(config)
    yield folder
    shutil.rmtree(folder)


def told(where: str, step: Callable[..., None], folder: Path, sent: dict[str, int], *how: int) -> Flip:
    """Let a process look at a site; return what it told."""
    file = folder / "told"
    code = run(step, folder, sent, file, *how)
    wrong = json.loads(file.read_text()) if file.exists() else []
    return Flip(where, code != 0 or not file.exists(), [(kind, what) for kind, what in wrong])


def test_the_site_stays_up_whichever_byte_is_wrong(flips: list[Flip]) -> None:
    """Catches: a process that dies or hangs, an error that the server gets to see, damage found and not told of."""
    down = [flip for flip in flips if flip.died or any(kind in {"down", "slow", "not told"} for kind, _ in flip.wrong)]
    assert down == []


def test_a_wrong_byte_is_found_or_harmless(flips: list[Flip]) -> None:
    """Catches: an answer that is not the app's, a ticket that is lost or stuck while nobody is told."""
    silent = [flip for flip in flips if any(kind in {"lost", "stuck", "wrong answer"} for kind, _ in flip.wrong)]
    kinds = Counter(kind for flip in silent for kind in {kind for kind, _ in flip.wrong})
    assert silent == [], f"{len(silent)} of {len(flips)} bytes: {kinds}"

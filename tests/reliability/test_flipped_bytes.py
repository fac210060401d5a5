"""One byte of the database is another than was written."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.reliability.children import run
from tests.reliability.flipping import look, prepare
from tests.reliability.size import sized

PAGES = sized(8, 200)
#: Of these so many from the beginning of the file, where the roots of the tables and indexes are.
ROOTS = sized(5, 60)


class Flip(NamedTuple):
    """What a site did whose database had one wrong byte."""

    page: int
    offset: int
    died: bool
    wrong: list[tuple[str, str]]


@pytest.fixture(scope="module")
def flips(quick_folder: Path) -> list[Flip]:
    """A site for each of so many pages."""
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
    for number, page in enumerate(chosen):
        folder = shutil.copytree(start, quick_folder / str(number))
        offset = dice.randrange(size)
        with (folder / "admission.db").open("r+b") as file:
            file.seek(page * size + offset)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ (1 << dice.randrange(8))]))
        config = (folder / "admission.ini").read_text().replace(str(start), str(folder))
        (folder / "admission.ini").write_text(config)
        told = folder / "told"
        code = run(look, folder, sent, told)
        wrong = json.loads(told.read_text()) if told.exists() else []
        found.append(Flip(page, offset, code != 0, [(kind, what) for kind, what in wrong]))
        shutil.rmtree(folder)
    return found


def test_the_site_stays_up_whichever_byte_is_wrong(flips: list[Flip]) -> None:
    """Catches: a process that dies or hangs, an error that the server gets to see, damage found and not told of."""
    down = [flip for flip in flips if flip.died or any(kind in {"down", "slow", "not told"} for kind, _ in flip.wrong)]
    assert down == []


def test_a_wrong_byte_is_found_or_harmless(flips: list[Flip]) -> None:
    """Catches: an answer that is not the app's, a ticket that is lost or stuck while nobody is told."""
    silent = [flip for flip in flips if any(kind in {"lost", "stuck", "wrong answer"} for kind, _ in flip.wrong)]
    kinds = Counter(kind for flip in silent for kind in {kind for kind, _ in flip.wrong})
    assert silent == [], f"{len(silent)} of {len(flips)} bytes: {kinds}"

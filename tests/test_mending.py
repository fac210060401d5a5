"""A damaged database: what is noticed, what is kept, and that the line goes on."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.store_model import ROUTES, read, recording, ticket
from wsgi_admission.errors import (
    AdmissionError,
    DamagedRecording,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    UnknownTicket,
)
from wsgi_admission.stores import beside, checkpoints, copies, headers, mending, opening, upkeep
from wsgi_admission.stores.bodies import Bodies
from wsgi_admission.stores.connections import Connection
from wsgi_admission.stores.records import INLINE_BODY
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a line of 60 tickets in it, that nobody has open."""
    found = tmp_path / "line.db"
    store = SQLiteStore(found, durability="normal")
    for number in range(60):
        store.put(ticket(f"client {number % 7}"), recording(b"x" * 1500), now=0)
    store.put(ticket(), recording(b"x" * (INLINE_BODY + 1)), now=0)
    store.close()
    with closing(sqlite3.connect(found)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found


def damage(path: Path, page: int, offset: int = 0) -> bytes:
    """Turn over one byte of a page (0 is the first); return what the file holds then."""
    content = bytearray(path.read_bytes())
    content[page * PAGE + offset] ^= 0xFF
    path.write_bytes(content)
    return bytes(content)


def use(store: SQLiteStore) -> None:
    """Do what workers and clients do, until something is damaged."""
    made = store.put(ticket(), recording(b"x" * 5000), now=1)
    store.ahead(made.id)
    store.counts()
    while (claimed := store.claim("w", now=1, lease=30, routes=ROUTES)) is not None:
        store.request(claimed.id).body.close()
        store.cancel(claimed.id, now=2)
        store.release(claimed.id, claimed.attempt, now=3)
    store.prune(before=10, now=10)


def works(store: SQLiteStore) -> None:
    """Put a ticket and claim it."""
    made = store.put(ticket(), recording(), now=1)
    while (claimed := store.claim("w", now=1, lease=30, routes=ROUTES)) is not None:
        if claimed.id == made.id:
            return
    pytest.fail("it was not claimed")


def test_a_byte_in_any_page_is_found_or_harmless_and_the_line_goes_on(path: Path) -> None:
    """Catches: a store that fails for ever, one that raises what its callers do not expect, a damage that spreads."""
    sound = path.read_bytes()
    chance = random.Random(5)  # noqa: S311 - the same each time
    found = 0
    pages = len(sound) // PAGE
    start = [(page, (100 if page == 0 else 0) + chance.randrange(12)) for page in range(pages)]
    inside = [(page, chance.randrange(112, PAGE)) for page in range(0, pages, 3)]
    for page, offset in start + inside:
        for old in path.parent.iterdir():
            if old.is_file():
                old.unlink()
        (path.parent / "line.db-mark").write_bytes(b"")
        path.write_bytes(sound)
        content = damage(path, page, offset)
        store = SQLiteStore(path, durability="normal")
        other = SQLiteStore(path, durability="normal")
        try:
            use(store)
        except StoreUnavailable:
            found += 1
            store.maintain(now=20)
            (copy,) = copies.aside(path)
            assert len((path.parent / copy).read_bytes()) >= len(content)
            works(store)
            other.changed()
            assert other.counts()
        except AdmissionError:
            pass  # a request was lost: its ticket fails
        finally:
            store.close()
            other.close()
        if found:
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert found > 5


def damaged(path: Path) -> SQLiteStore:
    """Return a store that has noticed that its first ticket pages are damaged."""
    with closing(sqlite3.connect(path)) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tickets'").fetchall()
    damage(path, root - 1)
    store = SQLiteStore(path, durability="normal")
    with pytest.raises(StoreUnavailable, match="malformed"):
        store.put(ticket(), recording(), now=1)
    return store


def test_the_damaged_content_is_kept_and_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: data thrown away that somebody could still read; an operator who is not told."""
    bodies = path.with_name("line.db.bodies")
    names = {entry.name for entry in bodies.iterdir()}
    store = damaged(path)
    content = path.read_bytes()
    with caplog.at_level(logging.ERROR):
        store.maintain(now=20)
    (name,) = copies.aside(path)
    assert path.with_name(name).read_bytes() == content
    assert path.with_name(name).stat().st_mode & 0o777 == 0o600
    assert {entry.name for entry in path.with_name(f"{name}.bodies").iterdir()} == names
    assert not bodies.exists()
    assert name in caplog.text
    assert store.health()["damaged"] == name
    works(store)
    store.close()


LARGE = b"y" * (INLINE_BODY + 1)


def test_no_large_body_of_the_new_line_is_put_aside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a 202, or an answer, whose body is moved away with what was in the line before."""
    store = damaged(path)
    other = SQLiteStore(path, durability="normal")
    empty = mending._empty
    made: list[Ticket] = []

    def and_then(connection: sqlite3.Connection, path: Path) -> None:
        empty(connection, path)
        made.append(other.put(ticket(), recording(LARGE), now=20))
        made.append(other.put(ticket(), recording(LARGE), now=20))
        claimed = other.claim("w", now=20, lease=30, routes=ROUTES)
        assert claimed is not None
        other.finish(claimed.id, 1, State.COMPLETED, recording(LARGE), now=20)

    monkeypatch.setattr(mending, "_empty", and_then)
    store.maintain(now=20)
    assert read(store.response(made[0].id)) == (recording().head, LARGE, len(LARGE))
    assert read(store.request(made[1].id)) == (recording().head, LARGE, len(LARGE))
    (copy,) = copies.aside(path)
    assert len(list(path.with_name(f"{copy}.bodies").iterdir())) == 1
    store.close()
    other.close()


@pytest.mark.parametrize("what", ["request", "response"])
def test_a_large_body_that_was_put_aside_before_its_row_is_there_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Catches: a ticket of the new line that names a file which went with the old one."""
    store = damaged(path)
    other = SQLiteStore(path, durability="normal")
    write = Bodies._write

    def mended_meanwhile(bodies: Bodies, *content: Any) -> tuple[str, int]:
        written = write(bodies, *content)
        monkeypatch.setattr(Bodies, "_write", write)
        store.maintain(now=20)
        if what == "response":  # as if the other one's ticket were in the new line, too
            store.put(mine, recording(), now=20)
            store.claim("w", now=20, lease=30, routes=ROUTES)
        return written

    mine = ticket()
    monkeypatch.setattr(Bodies, "_write", mended_meanwhile)
    steps = {
        "request": lambda: other.put(mine, recording(LARGE), now=20),
        "response": lambda: other.finish(mine.id, 1, State.COMPLETED, recording(LARGE), now=20),
    }
    with pytest.raises(StoreUnavailable, match="put aside"):
        steps[what]()
    if what == "request":
        with pytest.raises(UnknownTicket):
            store.get(mine.id)
    else:
        assert store.get(mine.id).state is State.PROCESSING
    store.close()
    other.close()


def test_a_line_that_was_emptied_by_a_process_that_died_then_is_told_and_its_bodies_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a line that is gone and called mended; bodies that are swept although the copy's rows name them."""
    names = {entry.name for entry in path.with_name("line.db.bodies").iterdir()}
    store = damaged(path)

    def died(*_args: Any) -> None:
        raise OSError(errno.EIO, "planted")

    with monkeypatch.context() as patch:
        patch.setattr(copies, "finish", died)
        with pytest.raises(StoreUnavailable, match="planted"):
            store.maintain(now=20)
    works(store)
    with caplog.at_level(logging.ERROR):
        store.maintain(now=30)
    assert "the line begins anew" in caplog.text
    (copy,) = copies.aside(path)
    assert {entry.name for entry in path.with_name(f"{copy}.bodies").iterdir()} == names
    store.close()


def test_bodies_that_an_attempt_has_moved_are_kept_with_those_of_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a body that is lost, or a line that is never mended, because a process died while it mended it."""
    bodies = path.with_name("line.db.bodies")
    names = {entry.name for entry in bodies.iterdir()}
    store = damaged(path)
    copies.put_bodies_aside(path)  # and then it died
    bodies.mkdir(mode=0o700)
    (bodies / "another").write_bytes(LARGE)
    store.maintain(now=20)
    (copy,) = copies.aside(path)
    assert {entry.name for entry in path.with_name(f"{copy}.bodies").iterdir()} == {*names, "another"}
    works(store)
    store.close()


def test_a_line_that_was_damaged_while_nobody_ran_is_begun_anew(path: Path) -> None:
    """Catches: a site that never has a line again."""
    content = damage(path, 0, 100)  # the kind of the first page
    store = SQLiteStore(path, durability="normal")
    (name,) = copies.aside(path)
    assert path.with_name(name).read_bytes()[100:] == content[100:]
    works(store)
    store.close()


def test_somebody_elses_damaged_database_is_left_alone(path: Path) -> None:
    """Catches: a wrong path in the configuration that empties what it names."""
    path.with_name("line.db-mark").unlink()
    content = damage(path, 0, 100)
    with pytest.raises(StoreError, match="malformed"):
        SQLiteStore(path)
    assert path.read_bytes() == content
    assert copies.aside(path) == []


def test_without_room_for_a_copy_nothing_is_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the only copy destroyed on a full disk."""
    store = damaged(path)

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wsgi_admission.stores.copies.shutil.copyfileobj", full)
        with pytest.raises(StoreUnavailable, match="No space left"):
            store.maintain(now=20)
        store.maintain(now=20 + upkeep.RETRY - 0.1)  # not tried again at once
    assert copies.aside(path) == []
    with pytest.raises(StoreUnavailable, match="malformed"):
        store.put(ticket(), recording(), now=1)
    store.maintain(now=20 + upkeep.RETRY)
    works(store)
    store.close()


def test_where_a_copy_would_not_fit_none_is_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the last room of a disk filled again and again with copies that are thrown away."""
    store = damaged(path)
    usage = shutil.disk_usage(path)._replace(free=path.stat().st_size - 1)
    monkeypatch.setattr("wsgi_admission.stores.copies.shutil.disk_usage", lambda _path: usage)
    monkeypatch.setattr(copies, "_copy_file", lambda *_args: pytest.fail("begun"))
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.maintain(now=20)
    store.close()


def test_attempts_that_fail_leave_one_copy_that_the_next_one_uses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a disk that is filled with copies, one a second, of a database that cannot be mended."""
    store = damaged(path)
    unfinished = path.with_name("line.db.damaged-unfinished")
    bodies = path.with_name("line.db.bodies")
    names = {entry.name for entry in bodies.iterdir()}

    def locked(*_args: Any) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(mending, "_empty", locked)
        inodes = set()
        for attempt in range(4):
            with pytest.raises(StoreUnavailable, match="locked"):
                store.maintain(now=20 + attempt * upkeep.RETRY)
            with suppress(StoreUnavailable):
                SQLiteStore(path, durability="normal").close()  # as a process does that is started meanwhile
            assert copies.aside(path) == [unfinished.name]
            assert {entry.name for entry in bodies.iterdir()} == names
            inodes.add(unfinished.stat().st_ino)
        assert len(inodes) == 1
        kept = unfinished.open("rb")  # its number is not given to another file
        content = damage(path, len(unfinished.read_bytes()) // PAGE - 1)
        with pytest.raises(StoreUnavailable, match="locked"):
            store.maintain(now=50)
        assert unfinished.read_bytes() == content
        assert unfinished.stat().st_ino not in inodes
        kept.close()
    store.maintain(now=60)
    (name,) = copies.aside(path)
    assert path.with_name(name).read_bytes() == content
    works(store)
    store.close()


def test_of_copies_there_are_only_so_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a disk that damages whatever is written to it, and is filled with copies."""
    monkeypatch.setattr(copies, "KEPT", 3)
    sound = path.read_bytes()
    first: list[str] = []
    for _ in range(6):
        overwrite(path, sound)
        store = damaged(path)
        store.maintain(now=20)
        store.close()
        first = first or copies.aside(path)
    assert len(copies.aside(path)) == 3
    assert copies.aside(path)[:1] == first


def first_pages(path: Path) -> list[int]:
    """Return where in the log the first page of the database stands, oldest first."""
    log = path.with_name(f"{path.name}-wal").read_bytes()
    frames = range(32, len(log), 24 + PAGE)
    return [frame + 24 for frame in frames if log[frame : frame + 4] == b"\0\0\0\1"]


@pytest.mark.parametrize("length", [1, 24, 100, PAGE], ids=["a byte", "its beginning", "the header", "the page"])
def test_a_damaged_first_page_in_the_log_is_mended_for_all_who_have_it_open(path: Path, length: int) -> None:
    """Catches: a database whose header is mended in the file, while the one that counts is in the log."""
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        for _ in range(60):
            one.put(ticket(), recording(b"x" * 5000), now=0)
        before = one.counts(), two.counts()
        assert before[0] == before[1]
        log = path.with_name("line.db-wal")
        with log.open("r+b") as file:
            file.seek(first_pages(path)[-1])
            file.write(JUNK[:length])
        content = log.read_bytes()
        for store in (one, two):
            store._connections._close_idle()
            with pytest.raises(StoreUnavailable, match="not a database"):
                store.put(ticket(), recording(), now=1)
        for now in (100.0, 101.0, 102.0):
            for store in (one, two):
                store.maintain(now=now)
        (copy,) = copies.aside(path)
        assert path.with_name(f"{copy}-wal").read_bytes() == content
        assert (one.counts() == before[0]) is (length < PAGE)
        for store in (one, two):
            works(store)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_what_was_mended_in_the_log_is_kept_when_all_processes_are_killed(path: Path) -> None:
    """Catches: a log of which nobody reads on behind the frame that was mended."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        for _ in range(60):
            store.put(ticket(), recording(b"x" * 5000), now=0)
        assert store.counts()  # keeps the log open
        with path.with_name("line.db-wal").open("r+b") as file:
            file.seek(first_pages(path)[-1])
            file.write(JUNK[:100])
        store._connections._close_idle()
        store._connections.broken = True
        store.maintain(now=100)
        last = store.put(ticket(), recording(), now=1)
        left = path.with_name("left.db")
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", f"{left}{end}")
    with closing(SQLiteStore(left)) as store:
        assert store.get(last.id).id == last.id
        assert sum(tally.queued for tally in store.counts().values()) == 61 + 60 + 1


@pytest.mark.parametrize("pages", [1, 3, 10.5])
def test_a_file_that_was_cut_short_is_mended(path: Path, pages: float) -> None:
    """Catches: a database that SQLite refuses to write to, because it is shorter than its header says."""
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        assert one.counts() == two.counts()
        overwrite(path, path.read_bytes()[: int(pages * PAGE)])
        with pytest.raises(StoreUnavailable, match="malformed"):
            use(one)
        for store in (one, two):
            store.maintain(now=100)
        assert len(copies.aside(path)) == 1
        for store in (one, two):
            works(store)


def test_one_process_mends_and_the_others_go_on_with_what_it_left(path: Path) -> None:
    """Catches: two that empty the line one after the other, and tickets that were accepted in between."""
    store = damaged(path)
    with checkpoints.host_lock(f"{path}-lock") as held:
        assert held
        store.maintain(now=20)
        with pytest.raises(StoreUnavailable):
            store.put(ticket(), recording(), now=1)
    other = SQLiteStore(path, durability="normal")
    with pytest.raises(StoreUnavailable):
        other.put(ticket(), recording(), now=1)
    other.maintain(now=21)
    kept = other.put(ticket(), recording(), now=1)
    store.maintain(now=22)
    assert len(copies.aside(path)) == 1
    assert store.get(kept.id) == kept
    store.close()
    other.close()


def test_a_wrong_byte_in_a_recording_is_told_instead_of_served(path: Path) -> None:
    """Catches: an answer that is not the app's; a request that nobody sent, run."""
    store = SQLiteStore(path, durability="normal")
    run = store.claim("w", now=1, lease=30, routes=ROUTES)
    assert run is not None
    store.finish(run.id, 1, State.COMPLETED, recording(b"the answer" * 50), now=2)
    waiting = store.claim("w", now=1, lease=30, routes=ROUTES)
    assert waiting is not None
    with store._connections.writing() as connection:  # as a disk does it, but without a look for the page
        connection.execute("UPDATE responses SET body = CAST(replace(body, 'answer', 'Answer') AS BLOB)")
        connection.execute("UPDATE requests SET head = replace(head, 'POST', 'PUSH')")
    with pytest.raises(DamagedRecording, match="response"):
        store.response(run.id)
    with pytest.raises(DamagedRecording, match="request"):
        store.request(waiting.id)
    assert store._connections.damaged  # where one byte is wrong there may be more
    store.close()


def test_a_damaged_index_is_found_after_a_start_and_mended_without_loss(path: Path) -> None:
    """Catches: a line that stands still, or a ticket that nobody finds, because an index says something else."""
    with closing(sqlite3.connect(path)) as connection:
        (before,) = connection.execute("SELECT COUNT(*) FROM tickets").fetchone()
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'queued'").fetchall()
    content = bytearray(path.read_bytes())
    # The last cell of the index's first page: a route that no ticket has.
    place = content.rindex(b"image", (root - 1) * PAGE, root * PAGE)
    content[place] ^= 0x20
    path.write_bytes(content)
    store = SQLiteStore(path, durability="normal")
    other = SQLiteStore(path, durability="normal")
    store.maintain(now=time.time())
    other.maintain(now=time.time())
    assert len(copies.aside(path)) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT COUNT(*) FROM tickets").fetchone() == (before,)
    works_through(store, before)
    store.close()
    other.close()


def works_through(store: SQLiteStore, number: int) -> None:
    """Claim every ticket of the line."""
    claimed = {getattr(store.claim("w", now=1, lease=30, routes=ROUTES), "id", None) for _ in range(number)}
    assert None not in claimed
    assert len(claimed) == number


def test_a_sound_database_is_looked_through_once_after_a_start_and_once_a_day(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a database that is read from end to end every second; one that never is."""
    looks: list[Path] = []

    def mend(path: Path, **_keys: float) -> mending.Look:
        looks.append(path)
        os.utime(f"{path}-lock")
        return mending.Look.SOUND

    monkeypatch.setattr(mending, "mend", mend)
    (path.parent / "line.db-lock").touch()
    os.utime(path.parent / "line.db-lock", (0, 0))
    store = SQLiteStore(path, durability="normal")
    now = time.time()
    for later in (0, 1, 100, mending.LOOK_EVERY + 100, mending.LOOK_EVERY + 101):
        store.maintain(now=now + later)
    assert len(looks) == 2
    store.close()
    monkeypatch.setattr(mending, "LOOKED_THROUGH", 100)
    os.utime(path.parent / "line.db-lock", (0, 0))
    large = SQLiteStore(path, durability="normal")
    large.maintain(now=now)
    assert len(looks) == 2
    large.close()


@pytest.mark.parametrize(
    "change",
    [
        "ANALYZE",
        "CREATE INDEX my_report ON tickets (created_at)",
        "CREATE TABLE my_notes (id TEXT)",
        "ALTER TABLE tickets ADD COLUMN mine TEXT DEFAULT 'x'",
        "DROP INDEX {index}",
    ],
)
def test_what_somebody_changes_in_the_schema_costs_no_ticket(path: Path, change: str) -> None:
    """Catches: a line that is emptied because somebody has added an index, or asked for ANALYZE."""
    with closing(SQLiteStore(path)) as store:
        before = store.counts()
        assert sum(tally.queued for tally in before.values()) == 61
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            ((index,),) = connection.execute(
                "SELECT MIN(name) FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall()
            connection.execute(change.format(index=index))
        store.maintain(now=time.time())
        assert store.counts() == before
        assert store.claim("w", now=1, lease=30, routes=ROUTES) is not None
        store.put(ticket(), recording(), now=1)
        assert copies.aside(path) == []
    SQLiteStore(path).close()


def test_a_line_of_another_version_is_never_emptied(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: an old process that wipes what a new one, which runs beside it, has migrated."""
    with closing(SQLiteStore(path)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("ALTER TABLE tickets ADD COLUMN newer TEXT")
            connection.execute(f"PRAGMA user_version = {opening.SCHEMA_VERSION + 1}")
        with pytest.raises(StoreMismatch, match="a newer version"):
            store.maintain(now=time.time())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(newer IS NULL) FROM tickets").fetchone() == (61,)
        assert connection.execute("PRAGMA user_version").fetchone() == (opening.SCHEMA_VERSION + 1,)
    assert copies.aside(path) == []


def test_a_full_disk_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a line that is emptied, or looked through every second, because the disk is full."""
    store = SQLiteStore(path, durability="normal")
    looks = []
    mend = mending.mend

    def counted(*args: Any, **keys: Any) -> mending.Look:
        looks.append(args)
        return mend(*args, **keys)

    monkeypatch.setattr(mending, "mend", counted)
    for now in (100.0, 101.0, 159.0, 160.0, 161.0):
        store._connections.failed(sqlite3.OperationalError("database or disk is full"))
        store.maintain(now=now)
    assert len(looks) == 2
    assert copies.aside(path) == []
    assert store.claim("w", now=1, lease=30, routes=ROUTES) is not None
    store.close()


@pytest.mark.parametrize("started", [False, True], ids=["at the start", "in use"])
@pytest.mark.parametrize("of", [b"CREATE TABLE tickets", b"CREATE INDEX", b"CREATE UNIQUE INDEX", b"tabletickets"])
def test_a_schema_that_is_no_text_any_more_is_mended(path: Path, of: bytes, *, started: bool) -> None:
    """Catches: an error of Python's in the place of SQLite's, which nobody takes for damage."""
    first = path.read_bytes().index(of)
    for place in range(first, first + len(of) + 60, 13):
        damaged = Path(shutil.copytree(path.parent, path.parent / "damaged", ignore=lambda *_: ["damaged"])) / path.name
        with ExitStack() as stores:
            store = stores.enter_context(closing(SQLiteStore(damaged, durability="normal"))) if started else None
            change(damaged, place, 0x80)
            store = store or stores.enter_context(closing(SQLiteStore(damaged, durability="normal")))
            store._connections._close_idle()
            for now in (time.time() + mending.LOOK_EVERY, time.time() + mending.LOOK_EVERY + 4):
                with suppress(StoreUnavailable):
                    store.put(ticket(), recording(), now=1)
                store.maintain(now=now)
            if of.startswith(b"CREATE"):  # in a name it is another table
                assert sum(tally.queued for tally in store.counts().values()) >= 61
            works(store)
        shutil.rmtree(damaged.parent)


def test_a_database_that_is_read_only_is_not_looked_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a large file that is read from end to end, again and again, while its disk lets nobody write."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        now = time.time()
        store.maintain(now=now)
        monkeypatch.setattr(mending, "mend", pytest.fail)
        for later in range(1, 200):
            store._connections.failed(sqlite3.OperationalError("attempt to write a readonly database"))
            store.maintain(now=now + later)


def test_a_broken_database_is_mended_within_seconds_however_short_ago_it_was_looked_through(path: Path) -> None:
    """Catches: a site without a line for a minute after a start, a full disk, or the damage before this one."""
    sound = path.read_bytes()
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        one._connections.failed(sqlite3.OperationalError("database or disk is full"))
        one.maintain(now=100)
        two.maintain(now=100)
        for broken in (101, 106, 111):
            one._upkeep._checkpointer._carry_over("TRUNCATE")
            overwrite(path, JUNK[:100] + sound[100:])
            for store in (one, two):
                store._connections._close_idle()
                with pytest.raises(StoreUnavailable, match="not a database"):
                    store.put(ticket(), recording(), now=1)
            for now in range(broken, broken + 5):
                for store in (two, one):  # who was quicker leaves the other one nothing to mend
                    store.maintain(now=now)
            for store in (one, two):
                works(store)
        assert len(copies.aside(path)) == 3


@pytest.mark.parametrize("outcome", [mending.Look.SOUND, OSError("planted")], ids=["sound", "failed"])
def test_a_look_that_mends_nothing_is_not_repeated_every_second(
    path: Path, monkeypatch: pytest.MonkeyPatch, outcome: object
) -> None:
    """Catches: a processor that does nothing else while SQLite insists that the database is broken."""
    looks: list[Path] = []

    def mend(path: Path, **_keys: float) -> object:
        looks.append(path)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(mending, "mend", mend)
    with closing(SQLiteStore(path, durability="normal")) as store:
        for now in range(200, 207):
            store._connections.failed(sqlite3.DatabaseError("database disk image is malformed"))
            with suppress(StoreUnavailable):
                store.maintain(now=now)
    assert len(looks) == 3


def test_a_run_that_was_under_way_is_refused_and_nothing_breaks(path: Path) -> None:
    """Catches: an answer kept for a ticket that is no longer there."""
    store = SQLiteStore(path, durability="normal")
    claimed = store.claim("w", now=1, lease=30, routes=ROUTES)
    assert claimed is not None
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store = damaged(path)
    store.maintain(now=20)
    assert store.renew([(claimed.id, 1)], lease=30) == set()
    with pytest.raises(UnknownTicket):
        store.get(claimed.id)
    store.close()


JUNK = random.Random(9).randbytes(20_000)  # noqa: S311 - the same each time
HEADLESS = [
    pytest.param(lambda content: JUNK[:100] + content[100:], id="header"),
    pytest.param(lambda _content: b"", id="empty"),
    pytest.param(lambda content: content[:50], id="cut short"),
    pytest.param(lambda _content: JUNK, id="junk"),
    pytest.param(lambda _content: b"too short", id="short junk"),
    pytest.param(lambda content: content[:18] + b"\x03\x03" + content[20:], id="a format to come"),
]


def overwrite(path: Path, content: bytes) -> None:
    """Change what the file holds, in its place."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


@pytest.mark.parametrize("break_it", HEADLESS)
def test_a_file_that_is_no_database_any_more_is_mended_at_the_start(
    path: Path, break_it: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a site without a line until somebody moves the file away; a line begun anew without a word."""
    broken = break_it(path.read_bytes())
    overwrite(path, broken)
    with closing(SQLiteStore(path, durability="normal")) as store:
        works(store)
        (copy,) = copies.aside(path)
        assert (path.parent / copy).read_bytes() == broken
        assert store.health()["damaged"] == copy
        assert copy in caplog.text


@pytest.mark.parametrize("others_wrote", [False, True], ids=["all carried over", "with a log"])
@pytest.mark.parametrize("break_it", HEADLESS)
def test_a_file_that_becomes_no_database_in_use_is_mended_for_all_who_have_it_open(
    path: Path, break_it: Callable[[bytes], bytes], *, others_wrote: bool
) -> None:
    """Catches: a line that stands still; one process that goes on with what another has replaced."""
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        for store in (one, two):
            works(store)
        if not others_wrote:
            one._upkeep._checkpointer._carry_over("RESTART")
        overwrite(path, break_it(path.read_bytes()))
        for store in (one, two):  # as a process does that has more to do than before
            store._connections._close_idle()
        for now in (100.0, 101.0, 102.0):
            for store in (one, two):
                with suppress(StoreUnavailable, UnknownTicket):
                    use(store)
                store.maintain(now=now)
        assert copies.aside(path)
        for store in (one, two):
            works(store)
            assert store.counts() == one.counts()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA auto_vacuum").fetchall() == [(2,)]


def test_a_broken_header_alone_loses_no_ticket(path: Path) -> None:
    """Catches: a line thrown away of which everything can be read."""
    with closing(sqlite3.connect(path)) as connection:
        (before,) = connection.execute("SELECT COUNT(*) FROM tickets").fetchone()
    overwrite(path, JUNK[:100] + path.read_bytes()[100:])
    with closing(SQLiteStore(path, durability="normal")) as store:
        assert len(copies.aside(path)) == 1
        works_through(store, before)


# Bytes of the header: the version that SQLite must know to write, and our numbers, but for the last of the version.
TELLING = [18, *range(60, 63), *range(68, 72)]
WRONG = [pytest.param(place, change, id=f"{place}-{change:08b}") for place in TELLING for change in (1, 255)]


def change(path: Path, place: int, bits: int) -> None:
    """Turn over some bits of one byte of the file, in its place."""
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    overwrite(path, bytes(content))


@pytest.mark.parametrize(("place", "bits"), WRONG)
def test_a_wrong_byte_in_the_header_loses_no_ticket(path: Path, place: int, bits: int) -> None:
    """Catches: a site that does not come up, has no line for good, or an empty one, while every ticket is there."""
    change(path, place, bits)
    broken = path.read_bytes()
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path)) as two:
        for store in (one, two):
            with suppress(StoreUnavailable):
                store.put(ticket(), recording(), now=1)
        kept = sum(tally.queued for tally in one.counts().values())
        assert kept >= 61
        for store in (one, two):
            store.maintain(now=time.time())
        (copy,) = copies.aside(path)
        works_through(one, kept)
        works(two)
    assert (path.parent / copy).read_bytes()[:100] == broken[:100]


@pytest.mark.parametrize("logged", [False, True], ids=["all carried over", "in the log"])
@pytest.mark.parametrize("place", [18, 62, 70])
def test_a_byte_of_the_header_that_goes_wrong_in_use_is_put_right_for_all(
    path: Path, place: int, *, logged: bool
) -> None:
    """Catches: connections that never write again; a number that keeps the next start from coming up."""
    now = time.time() + mending.LOOK_EVERY + 1
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        for store in (one, two):
            works(store)
            store.maintain(now=now - 1)
        if logged:
            with closing(sqlite3.connect(path)) as other:
                other.execute("CREATE TABLE somebodys (id TEXT)")  # which writes the first page
                other.commit()
            ((file, first),) = headers._first_page_in_log(path)
        else:
            one._upkeep._checkpointer._carry_over("TRUNCATE")
            file, first = path, 0
        change(file, first + place, 4)
        for store in (one, two):
            store._connections._close_idle()
            with suppress(StoreUnavailable):
                store.put(ticket(), recording(), now=1)
        for later in (0, 1):
            for store in (one, two):
                store.maintain(now=now + mending.LOOK_EVERY + later)
        assert len(copies.aside(path)) == 1
        for store in (one, two):
            works(store)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (opening.SCHEMA_VERSION,)
        assert connection.execute("PRAGMA application_id").fetchone() == (opening.APPLICATION_ID,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("number", "refused"),
    [
        (f"user_version = {opening.SCHEMA_VERSION ^ 1}", "an older version"),
        (f"user_version = {opening.SCHEMA_VERSION ^ 4}", "a newer version"),
        (f"user_version = {opening.SCHEMA_VERSION + (257 << 8)}", "a newer version"),
        (f"application_id = {opening.APPLICATION_ID ^ 257}", "another program"),
    ],
)
def test_another_number_is_refused_and_the_file_left_as_it_is(path: Path, number: str, refused: str) -> None:
    """Catches: a line of another version, or another program's database, that is taken for a damaged one of ours."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA {number}")
    content = path.read_bytes()
    with pytest.raises(StoreError, match=refused):
        SQLiteStore(path)
    assert path.read_bytes() == content
    assert copies.aside(path) == []


def test_a_file_that_we_never_had_open_is_refused_for_its_numbers(path: Path) -> None:
    """Catches: somebody's file, changed because it looks like one of ours."""
    path.with_name("line.db-mark").unlink()
    change(path, 70, 1)
    content = path.read_bytes()
    with pytest.raises(StoreError, match="a byte of its header is wrong"):
        SQLiteStore(path)
    assert path.read_bytes() == content


def test_connections_that_have_read_a_wrong_header_are_not_used_again(path: Path) -> None:
    """Catches: answers that are refused hours after the mending, as the connections that wait are taken out again."""
    change(path, 18, 1)
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        taken = [one._connections._take() for _ in range(3)]
        for connection in taken:
            assert connection.execute("SELECT COUNT(*) FROM tickets").fetchone() == (61,)
            one._connections._give(connection)
        with pytest.raises(StoreUnavailable, match="readonly"):
            two.put(ticket(), recording(), now=1)
        two.maintain(now=time.time())
        with pytest.raises(StoreUnavailable, match="readonly"):
            one.put(ticket(), recording(), now=1)
        for _ in range(5):
            one.put(ticket(), recording(), now=1)


@pytest.fixture
def roomy(path: Path) -> Path:
    """The same database with free pages in it, among those that are in use."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        large = [store.put(ticket(), recording(b"x" * 9000), now=1) for _ in range(20)]
        for one in large[::2]:
            store.cancel(one.id, now=1)
    with closing(sqlite3.connect(path)) as connection:
        ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
    assert free > 10
    return path


# In the header and on the page of pointers.  Not where the list of free pages would begin at a page that is in use:
# SQLite does not know which of the two is wrong.
ACCOUNTS = [*range(32, 35), *range(36, 40), *range(52, 56), PAGE, PAGE + 5, PAGE + 9]


@pytest.mark.parametrize("place", ACCOUNTS)
def test_pages_that_are_accounted_for_wrongly_lose_no_ticket(roomy: Path, place: int) -> None:
    """Catches: a line thrown away of which everything can be read."""
    change(roomy, place, 2)
    with closing(SQLiteStore(roomy, durability="normal")) as store:
        store.maintain(now=time.time())
        assert len(copies.aside(roomy)) == 1
        works_through(store, 71)
    with closing(sqlite3.connect(roomy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA auto_vacuum").fetchall() == [(2,)]


def test_a_broken_header_loses_no_ticket_of_a_line_that_has_free_pages(roomy: Path) -> None:
    """Catches: a new header, which knows of no free pages, that costs the line."""
    overwrite(roomy, JUNK[:100] + roomy.read_bytes()[100:])
    with closing(SQLiteStore(roomy, durability="normal")) as store:
        store.maintain(now=time.time())
        works_through(store, 71)


@pytest.mark.parametrize("error", ["database or disk is full", "disk I/O error", "database is locked"])
@pytest.mark.parametrize(("step", "place"), [("REINDEX", 0), ("PRAGMA user_version =", 62), ("VACUUM", 39)])
def test_a_line_that_cannot_be_mended_just_now_is_kept(
    roomy: Path, monkeypatch: pytest.MonkeyPatch, step: str, place: int, error: str
) -> None:
    """Catches: every ticket thrown away because the disk was full while an index was made anew."""
    if place:
        change(roomy, place, 1)
    else:
        with closing(sqlite3.connect(roomy)) as connection:
            ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'queued'").fetchall()
        change(roomy, (root - 1) * PAGE + PAGE - 5, 1)
    with ExitStack() as stores:
        execute = Connection.execute

        def fail(connection: Connection, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith(step):
                raise sqlite3.OperationalError(error)
            return execute(connection, sql, *parameters)

        with monkeypatch.context() as planted:
            planted.setattr(Connection, "execute", fail)
            planted.setattr(mending, "is_short", lambda _path: True)
            with pytest.raises(StoreUnavailable, match=error):
                stores.enter_context(closing(SQLiteStore(roomy, durability="normal"))).maintain(now=time.time())
        store = stores.enter_context(closing(SQLiteStore(roomy, durability="normal")))
        store.maintain(now=time.time() + mending.LOOK_EVERY)
        works_through(store, 71)


@pytest.mark.parametrize("place", [0, 18, "CREATE TABLE tickets"])
@pytest.mark.parametrize("running", [False, True], ids=["at the start", "in use"])
def test_a_damaged_line_of_another_version_is_left_to_that_version(
    path: Path, place: int | str, *, running: bool
) -> None:
    """Catches: an old process that empties what a new one can mend, or alone can read."""
    with ExitStack() as stores:
        store = stores.enter_context(closing(SQLiteStore(path, durability="normal"))) if running else None
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA user_version = {opening.SCHEMA_VERSION + 1}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        change(path, place if isinstance(place, int) else path.read_bytes().index(place.encode()) + 1, 1)
        content = path.read_bytes()
        for later in (0, 60):
            with pytest.raises(StoreMismatch, match="a newer version"):
                SQLiteStore(path)
            if store is not None:
                store._connections.broken = True
                with pytest.raises(StoreMismatch, match="a newer version"):
                    store.maintain(now=time.time() + later)
        assert path.read_bytes() == content
        assert copies.aside(path) == []


def test_the_header_is_not_read_beside_somebody_who_mends_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a descriptor that one thread closes while another writes a header through it."""
    looks: list[Path] = []
    monkeypatch.setattr(headers, "forbids_writing", looks.append)
    with closing(SQLiteStore(path, durability="normal")) as store:
        store.maintain(now=time.time())
        store._connections.failed(sqlite3.OperationalError("attempt to write a readonly database"))
        with checkpoints.host_lock(f"{path}-lock"):
            store.maintain(now=time.time())
        assert looks == []
        store.maintain(now=time.time())
    assert looks == [path]


def test_looking_through_a_sound_database_leaves_nothing_open(path: Path) -> None:
    """Catches: a disk that cannot be unmounted although the store is closed."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, of what comes and goes
    with closing(SQLiteStore(path, durability="normal")) as store:
        store.maintain(now=time.time())
        store._connections.broken = True
        store.maintain(now=time.time() + mending.LOOK_EVERY)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_no_descriptor_is_left_of_a_file_that_was_replaced(tmp_path: Path) -> None:
    """Catches: the space of a removed file that is not given back."""
    file = tmp_path / "file"
    file.touch()
    before = beside.descriptor(file)
    file.unlink()
    file.write_bytes(b"other")
    assert beside.content(file) == b"other"
    assert beside.descriptor(file) == before  # the lowest number that is free
    beside._descriptors.pop(file)
    os.close(before)


def fresh(folder: Path) -> Path:
    """Make another database with one ticket in it; return its path."""
    other = folder / "other.db"
    with closing(SQLiteStore(other, durability="normal")) as store:
        store.put(ticket("other"), recording(), now=0)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return other


@pytest.mark.parametrize("how", ["deleted", "all deleted", "replaced"])
def test_a_file_that_is_no_longer_at_its_path_gets_no_ticket_and_the_one_there_is_taken_up(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a 202 for what is written into a file that nobody will find; a log that is taken for another's."""
    with closing(SQLiteStore(path, durability="normal")) as one, closing(SQLiteStore(path, durability="normal")) as two:
        for store in (one, two):
            works(store)
        if how == "replaced":
            fresh(path.parent).rename(path)
        else:
            for file in path.parent.glob("line.db*" if how == "all deleted" else "line.db"):
                if file.is_file():
                    file.unlink()
        for store in (one, two):
            with pytest.raises(StoreUnavailable, match="removed"):
                store.put(ticket(), recording(), now=1)
            with pytest.raises(StoreUnavailable, match="removed"):
                store.health()
            store._watch._sure_until = 0.0  # as after `SURE` seconds
            with pytest.raises(StoreUnavailable, match="removed"):
                store.counts()
        one.maintain(now=1)
        works(one)
        held = one.put(ticket("held"), recording(), now=1)
        two.maintain(now=1)
        assert caplog.text.count("was removed or replaced") == 2
        assert two.get(held.id).client == "held"
        assert two.counts() == one.counts()
        assert two.counts()["donor", "image"].accepted == (3 if how == "replaced" else 2)
        works(two)
        assert one.get(held.id).client == "held"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT COUNT(*) FROM tickets").fetchone() == (4 if how == "replaced" else 3,)


def test_a_ticket_that_was_written_just_before_its_file_was_deleted_is_not_accepted(path: Path) -> None:
    """Catches: looking only before the writing."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        with pytest.raises(StoreUnavailable, match="removed"), store._connections.writing():
            path.unlink()
        store.maintain(now=1)
        works(store)


def test_a_file_of_which_nothing_can_be_told_is_not_taken_for_moved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a ticket that is there although its client was told that it is not."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        works(store)

        def failing(*_args: object, **_keys: object) -> None:
            raise OSError(errno.EIO, "planted")

        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", failing)
            kept = store.put(ticket(), recording(), now=1)
        assert store.get(kept.id).id == kept.id


def test_a_database_that_is_made_anew_has_nothing_of_the_log_of_another(path: Path) -> None:
    """Catches: a start after somebody deleted the database and left its log."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        works(store)
        path.unlink()
        with closing(SQLiteStore(path, durability="normal")) as other:
            works(other)
            assert len(other.listing(State.PROCESSING)) == 1
        store.maintain(now=1)
        assert len(store.listing(State.PROCESSING)) == 1
        works(store)


def test_a_file_that_was_emptied_is_not_opened_while_somebody_else_mends_it(path: Path) -> None:
    """Catches: SQLite, which takes an empty file for new, and deletes the log that the others have open."""
    with closing(SQLiteStore(path, durability="normal")) as store, closing(SQLiteStore(path)) as other:
        works(store)
        works(other)
        log = path.with_name("line.db-wal").stat()
        overwrite(path, b"")
        with checkpoints.host_lock(f"{path}-lock"), pytest.raises(StoreUnavailable, match="mending"):
            SQLiteStore(path, durability="normal")
        store._connections._close_idle()
        with pytest.raises(StoreUnavailable, match="empty"):
            store.get("one")
        assert os.path.samestat(path.with_name("line.db-wal").stat(), log)
        store.maintain(now=1)
        works(store)


def test_a_file_that_is_emptied_while_it_is_looked_through_keeps_its_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a look that opens the file again after it was found to have a header."""
    compared = opening.empty

    def meanwhile() -> sqlite3.Connection:
        overwrite(path, b"")
        return compared()

    with closing(SQLiteStore(path, durability="normal")) as store, closing(SQLiteStore(path)) as other:
        works(store)
        works(other)
        log = path.with_name("line.db-wal").stat()
        monkeypatch.setattr(mending, "empty", meanwhile)
        with suppress(StoreError):
            store.maintain(now=100)
        monkeypatch.undo()
        assert os.path.samestat(path.with_name("line.db-wal").stat(), log)
        for now in (103, 106):
            store.maintain(now=now)
            other.maintain(now=now)
        assert copies.aside(path)
        for one in (store, other):
            works(one)
            assert one.counts() == store.counts()


def test_a_new_file_is_not_taken_for_one_that_was_emptied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a process that mends the file which another one is making in this moment."""
    path.unlink()
    making = opening._make_schema
    tried: list[str] = []

    def slowly(*args: Any, **keys: Any) -> None:
        if not tried:
            tried.append("another one")
            with pytest.raises(StoreUnavailable, match="mending"):
                SQLiteStore(path, durability="normal")
        making(*args, **keys)

    monkeypatch.setattr(opening, "_make_schema", slowly)
    with closing(SQLiteStore(path, durability="normal")) as store:
        works(store)
    assert tried
    assert copies.aside(path) == []

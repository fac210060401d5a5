"""What only the SQLite store has to do: its files, its failures, its connections."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.store_model import ROUTES, Clock, read, recording, ticket
from tests.support import until
from wsgi_admission.errors import (
    DamagedRecording,
    KeyReused,
    LeaseLost,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    UnknownTicket,
)
from wsgi_admission.stores import bodies, checkpoints, connections, opening, pruning, room, rows, watch
from wsgi_admission.stores.bodies import Bodies, Stored
from wsgi_admission.stores.breaker import PAUSE, Tripped
from wsgi_admission.stores.checkpoints import INTERVAL, WAL_LIMIT, wal_race
from wsgi_admission.stores.connections import KEPT, Locked
from wsgi_admission.stores.mark import Mark
from wsgi_admission.stores.opening import filesystem_type, refuse_network
from wsgi_admission.stores.records import INLINE_BODY, Passed, Tally, Worker
from wsgi_admission.stores.rows import SQL
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket

BIG = b"x" * (INLINE_BODY + 1)
OpenStore = Callable[..., SQLiteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "line.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    """Open the store, as often as wanted."""
    opened = []

    def open_it(name: str = "main", *, durability: str = "normal", patience: float = 2.0) -> SQLiteStore:
        opened.append(SQLiteStore(path, name=name, durability=durability, patience=patience))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> SQLiteStore:
    """A new store."""
    return open_store()


def files(path: Path) -> list[str]:
    """Return the names of the large bodies."""
    directory = path.with_name(f"{path.name}.bodies")
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def run_one(store: SQLiteStore) -> Ticket:
    """Claim the first ticket."""
    run = store.claim("worker", now=0, lease=30, routes=ROUTES)
    assert run is not None
    return run


def test_a_pause_is_known_to_all_and_kept(path: Path) -> None:
    """Catches: a line that an operator paused, and that goes on after a restart or in another process."""
    with closing(SQLiteStore(path)) as one, closing(SQLiteStore(path)) as two:
        one.put(ticket(), recording(), now=0)
        assert two.paused() is False
        one.pause(paused=True)
        assert two.paused() is True
        assert two.claim("worker", now=0, lease=30, routes=ROUTES) is None
    with closing(SQLiteStore(path)) as store:
        assert store.paused() is True
        store.pause(paused=False)
        assert run_one(store).attempt == 1


def test_a_lease_of_another_boot_has_run_out(path: Path) -> None:
    """Catches: a ticket that nobody runs until the host is up as long as it was before."""
    with closing(SQLiteStore(path, boot="first", clock=lambda: 1e6)) as store:
        store.put(ticket(), recording(), now=0)
        run = run_one(store)
        assert store.requeue_expired(now=0) == 0
    with closing(SQLiteStore(path, boot="second", clock=lambda: 20.0)) as store:
        assert store.requeue_expired(now=9) == 1
        assert store.get(run.id).crashes == 1
        again = run_one(store)
        assert store.requeue_expired(now=9) == 0
    with closing(SQLiteStore(path, boot="third", clock=lambda: 20.0)) as store:
        assert store.renew([(again.id, 2)], lease=30) == {(again.id, 2)}
        assert store.requeue_expired(now=9) == 0


@pytest.mark.parametrize(("first", "second"), [("", "told"), ("told", "")])
def test_a_boot_that_the_system_does_not_tell_is_no_other_one(path: Path, first: str, second: str) -> None:
    """Catches: a process that cannot read the boot, and each second takes all that runs on the host for crashed."""
    with closing(SQLiteStore(path, boot=first, clock=lambda: 20.0)) as store:
        store.put(ticket(), recording(), now=0)
        run_one(store)
    with closing(SQLiteStore(path, boot=second, clock=lambda: 40.0)) as store:
        assert store.requeue_expired(now=9) == 0
    with closing(SQLiteStore(path, boot=second, clock=lambda: 50.0)) as store:
        assert store.requeue_expired(now=9) == 1, "its time is over all the same"


@pytest.mark.parametrize("file", ["/proc/sys/kernel/random/boot_id", "/proc/self/mountinfo"])
def test_what_the_system_cannot_tell_just_now_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Catches: a store on a network file system, or without a boot, because a descriptor was missing for a moment."""
    reading = Path.read_text

    def read(asked: Path, *args: str) -> str:
        if asked == Path(file):
            raise OSError(errno.EMFILE, "Too many open files")
        return reading(asked, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read)
        with pytest.raises(StoreUnavailable, match="Too many open files"):
            SQLiteStore(path)
        assert not path.exists()
    SQLiteStore(path).close()


# The files


def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    """Catches: a database, a log or a body that others on the host can read."""
    path = tmp_path / "var" / "line.db"
    with closing(SQLiteStore(path)) as store:
        store.put(ticket(), recording(BIG), now=0)
        store.maintain(now=0)
        store.maintain(now=INTERVAL)
        modes = {entry.name: oct(stat.S_IMODE(entry.stat().st_mode)) for entry in path.parent.iterdir()}
        assert modes == {
            "line.db": "0o600",
            "line.db-wal": "0o600",
            "line.db-shm": "0o600",
            "line.db-lock": "0o600",
            "line.db-mark": "0o600",
            "line.db.bodies": "0o700",
        }
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        (body,) = (path.parent / "line.db.bodies").iterdir()
        assert stat.S_IMODE(body.stat().st_mode) == 0o600


def test_a_link_is_refused(path: Path) -> None:
    """Catches: following a link that somebody put where the database should be."""
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(StoreError, match=r"line\.db is not a plain file"):
        SQLiteStore(path)
    assert not path.with_name("elsewhere").exists()


@pytest.mark.parametrize("end", ["-wal", "-shm", "-lock", "-mark"])
def test_a_link_in_place_of_what_stands_beside_it_is_refused(path: Path, end: str) -> None:
    """Catches: writing to whatever a link that somebody put there leads to."""
    SQLiteStore(path).close()
    beside = path.with_name(f"{path.name}{end}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(path.with_name("elsewhere"))
    path.with_name("elsewhere").write_text("theirs")
    with pytest.raises(StoreError, match=rf"line\.db{end} is not a plain file"):
        SQLiteStore(path)
    assert path.with_name("elsewhere").read_text() == "theirs"


def test_what_is_there_already_is_made_private(path: Path) -> None:
    """Catches: prompts and answers that every user can read, because somebody has made the file before."""
    path.touch()
    path.chmod(0o666)
    bodies = path.with_name(f"{path.name}.bodies")
    bodies.mkdir()
    bodies.chmod(0o777)
    with closing(SQLiteStore(path)) as store:
        store.put(ticket(), recording(b"x" * (INLINE_BODY + 1)), now=0)
        modes = {
            stat.S_IMODE(file.stat().st_mode) for file in (path, path.with_name(f"{path.name}-shm"), *bodies.iterdir())
        }
        assert modes == {0o600}
        assert stat.S_IMODE(bodies.stat().st_mode) == 0o700


def test_a_line_that_others_could_read_is_made_private_with_its_log(path: Path) -> None:
    """Catches: files beside the database that SQLite makes with its old mode."""
    SQLiteStore(path).close()
    path.chmod(0o664)
    with closing(SQLiteStore(path)) as store:
        store.put(ticket(), recording(), now=0)
        beside = [path, *(path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm"))]
        assert {stat.S_IMODE(file.stat().st_mode) for file in beside} == {0o600}


def test_every_folder_that_is_made_is_private(tmp_path: Path) -> None:
    """Catches: a folder on the way that others can look into."""
    SQLiteStore(tmp_path / "var" / "line" / "a.db").close()
    assert [stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "var", tmp_path / "var" / "line")] == [0o700, 0o700]


def test_a_folder_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    """Catches: a line that anybody can replace; but /tmp, where nobody can, is none of them."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="can be written to by everybody"):
        SQLiteStore(folder / "a.db")
    folder.chmod(0o1777)
    SQLiteStore(folder / "a.db").close()


def test_a_file_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a worker that takes over a file made by root, or by nobody."""
    uid = os.geteuid()
    SQLiteStore(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(StoreError, match=rf"belongs to user {uid}; this process runs as user {uid + 1}"):
        SQLiteStore(path)


MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 / /srv rw,relatime shared:1 master:2 - nfs4 host:/export rw,vers=4.2
41 40 0:41 / /srv/local\040disk rw - xfs /dev/vdb rw
42 27 0:42 / /mnt rw - ext4 /dev/vdc rw
43 42 0:43 / /mnt rw - cifs //host/share rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/srvother", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/a/b", "nfs4"),
        ("/srv/local disk/a", "xfs"),
        ("/mnt/a", "cifs"),
        ("/proc/self", "proc"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(path: str, found: str) -> None:
    """Catches: prefixes that end inside a name, escapes that are not undone, mounts that are hidden by later ones."""
    assert filesystem_type(path, MOUNTS) == found


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "lustre"),
        *("vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs", "fuse.prl_fsd"),
    ],
)
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    """Catches: SQLite on a file system whose locks do not hold."""
    with pytest.raises(StoreError, match=rf"{kind}, a network file system.*Redis"):
        refuse_network(tmp_path, f"1 0 0:1 / / rw - {kind} host rw")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", ""])
def test_local_file_systems_are_accepted(tmp_path: Path, kind: str) -> None:
    """Catches: a match on parts of the name."""
    refuse_network(tmp_path, f"1 0 0:1 / / rw - {kind} host rw" if kind else "")


@pytest.mark.parametrize("mounted", ["", "line.db"], ids=["the folder", "the file"])
def test_the_file_and_its_folder_must_both_be_local(path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str) -> None:
    """Catches: a database that is mounted into a local folder from another machine, or whose log would be there."""
    mounts = {str(path.parent): "ext4", str(path): "ext4", str(path.parent / mounted): "nfs4"}
    mountinfo = "\n".join(f"1 0 0:1 / {point} rw - {kind} host rw" for point, kind in mounts.items())
    reading = Path.read_text

    def read(file: Path, *args: str) -> str:
        return mountinfo if file == Path("/proc/self/mountinfo") else reading(file, *args)

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(StoreError, match="nfs4, a network file system"):
        SQLiteStore(path)
    assert not path.exists()


@pytest.mark.parametrize("found", [b"a text file that is longer than nothing at all\n" * 100, b"\0" * 4096])
def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path, found: bytes) -> None:
    """Catches: a mistyped path that overwrites somebody's file."""
    path.write_bytes(found)
    with pytest.raises(StoreError, match=r"line\.db"):
        SQLiteStore(path)
    assert path.read_bytes() == found


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    """Catches: our tables among those of the site; a file that the site cannot read any more."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE users (name)")
    path.chmod(0o664)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"line\.db is a database of another program"):
        SQLiteStore(path)
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("version", "words"), [(0, "an older"), (opening.SCHEMA_VERSION + 1, "a newer")])
def test_another_schema_is_refused_and_kept(path: Path, version: int, words: str) -> None:
    """Catches: a store that is wiped or misread after an upgrade or a downgrade."""
    with closing(SQLiteStore(path)) as store:
        kept = store.put(ticket(), recording(), now=0)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreMismatch, match=rf"line\.db has schema {version}, written by {words} version"):
        SQLiteStore(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {opening.SCHEMA_VERSION}")
    with closing(SQLiteStore(path)) as store:
        assert store.get(kept.id) == kept


def test_a_corrupt_file_is_an_error_of_the_store(path: Path) -> None:
    """Catches: SQLite's own errors that reach the caller."""
    with closing(SQLiteStore(path)) as store:
        for _ in range(50):
            store.put(ticket(), recording(b"y" * 2000), now=0)
        ((page,),) = store._connections.query("PRAGMA page_size")
        roots = store._connections.query("SELECT rootpage FROM sqlite_master")
    content = path.read_bytes()
    with path.open("r+b") as file:  # the schema stays readable, the rest does not
        for (root,) in roots:
            file.seek((root - 1) * page)
            file.write(b"\xff" * page)
    with closing(SQLiteStore(path)) as store, pytest.raises(StoreUnavailable, match=r"line\.db") as failed:
        store.put(ticket(), recording(), now=1)
    assert isinstance(failed.value.__cause__, sqlite3.DatabaseError)
    path.write_bytes(b"no SQLite format" + content[16:])
    path.with_name("line.db-mark").unlink()  # what was never ours is nothing to mend; see test_mending.py
    with pytest.raises(StoreError, match=r"line\.db is not a SQLite database that can be read"):
        SQLiteStore(path)


@pytest.mark.parametrize(("code", "later"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
@pytest.mark.parametrize(("owner", "call"), [(os, "mknod"), (Path, "mkdir")])
def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    call: str,
    code: int,
    later: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Catches: a bare OSError; a full disk that is taken for a lack of rights, or the other way round."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(StoreError, match=rf"line\.db.*{os.strerror(code)}") as failed:
        SQLiteStore(tmp_path / "new" / "line.db")
    assert isinstance(failed.value, StoreUnavailable) is later
    assert isinstance(failed.value.__cause__, OSError)


def test_a_database_that_became_read_only_is_unavailable(store: SQLiteStore) -> None:
    """Catches: a bare OperationalError, and a half-done put."""
    kept = store.put(ticket(), recording(), now=0)
    with all_connections(store, "PRAGMA query_only = 1", "PRAGMA query_only = 0"):
        with pytest.raises(StoreUnavailable, match="readonly"):
            store.put(ticket(), recording(BIG), now=0)
        assert store.get(kept.id) == kept
    store.put(ticket(), recording(), now=0)


@contextmanager
def all_connections(store: SQLiteStore, before: str, after: str) -> Iterator[None]:
    """Have something executed on every connection of a store."""
    idle = list(store._connections._idle)
    assert idle
    for connection in idle:
        connection.execute(before)
    yield
    for connection in idle:
        with suppress(sqlite3.ProgrammingError):  # closed meanwhile
            connection.execute(after)


# How it is set up


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_durability_decides_what_is_on_the_disk(open_store: OpenStore, durability: str, synchronous: int) -> None:
    """Catches: puts that power loss undoes, and claims that wait for the disk for nothing."""
    store = open_store(durability=durability)
    pragma = "PRAGMA synchronous"
    with store._connections.writing() as connection:
        assert connection.execute(pragma).fetchone() == (synchronous,)
    with store._connections.writing(durable=False) as connection:
        assert connection.execute(pragma).fetchone() == (1,)


def test_only_what_somebody_outside_builds_on_waits_for_the_disk(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an accepted request or a told answer that a power loss undoes; claims and leases as slow as those."""
    store = open_store(durability="full")
    waited: list[bool] = []
    begin = connections.Connection.execute

    def execute(connection: connections.Connection, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            ((synchronous,),) = begin(connection, "PRAGMA synchronous").fetchall()
            waited.append(synchronous == 2)
        return begin(connection, sql, *parameters)

    monkeypatch.setattr(connections.Connection, "execute", execute)
    worker = Worker("w", "host", 1, 2, 5)
    one, two = ticket(), ticket()
    found = {}
    steps: dict[str, Callable[[], object]] = {
        "put": lambda: [store.put(one, recording(), now=0), store.put(two, recording(), now=0)],
        "report": lambda: store.report(worker, now=0),
        "claim": lambda: [run_one(store) for _ in range(2)],
        "renew": lambda: store.renew([(one.id, 1)], lease=30),
        "progress": lambda: store.progress(one.id, 1, 0.5, ""),
        "observe": lambda: store.observe([Passed("donor", "image", 1.0, shadowed=False)], now=0),
        "finish": lambda: store.finish(one.id, 1, State.COMPLETED, recording(), now=0),
        "release": lambda: store.release(two.id, 1, now=0),
        "cancel": lambda: store.cancel(two.id, now=0),
    }
    for name, step in steps.items():
        waited.clear()
        step()
        found[name] = set(waited)
    durable = {"put", "finish", "release", "cancel"}
    assert found == {name: {name in durable} for name in found}


@pytest.mark.parametrize(
    ("durability", "crash_retries", "waits"), [("full", 0, True), ("full", 1, False), ("normal", 0, False)]
)
def test_a_claim_of_what_must_not_run_twice_is_on_the_disk(
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
    crash_retries: int,
    waits: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Catches: a run that a power cut undoes, so that it is begun again; a wait for the disk at every other claim."""
    store = open_store(durability=durability)
    store.put(ticket(crash_retries=crash_retries), recording(), now=0)
    told: list[bool] = []
    wait_for_disk = connections.Connection.wait_for_disk

    def spy(connection: connections.Connection, *, full: bool) -> None:
        told.append(full)
        wait_for_disk(connection, full=full)

    monkeypatch.setattr(connections.Connection, "wait_for_disk", spy)
    run = run_one(store)
    assert run.attempt == 1
    assert told[-1] is waits
    assert store.counts()["donor", "image"] == Tally(processing=1, accepted=1, started=1)
    assert store.claim("worker", now=0, lease=30, routes=ROUTES) is None


def test_the_file_is_set_up_as_it_must_be(open_store: OpenStore) -> None:
    """Catches: checkpoints by every connection, a journal that is not a log, space that is never given back."""
    for store in (open_store(), open_store()):
        settings = {
            name: store._connections.query(f"PRAGMA {name}")[0][0]
            for name in ("wal_autocheckpoint", "busy_timeout", "journal_mode", "auto_vacuum")
        }
        assert settings == {"wal_autocheckpoint": 0, "busy_timeout": 0, "journal_mode": "wal", "auto_vacuum": 2}


def test_the_columns_are_the_fields(store: SQLiteStore) -> None:
    """Catches: a field that was added to a class and not to its table."""

    def columns(table: str) -> list[str]:
        return [column[1] for column in store._connections.query(f"PRAGMA table_info({table})")]

    assert columns("tickets")[: len(fields(Ticket))] == [field.name for field in fields(Ticket)]
    assert columns("tallies")[5:] == [field.name for field in fields(Tally)]


STATEMENTS = (
    "rank", "first", "ahead", "expired", "leased", "past_retention", "running", "recall",
    "get", "is_overdue", "overdue", "list_final",
)  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_statement_reads_the_whole_line(store: SQLiteStore, statement: str) -> None:
    """Catches: an index that does not fit, so that a step takes longer the more tickets wait."""
    names = ("line", "tier", "client", "routes", "id", "total", "clock", "boot", "before", "batch")
    values = dict.fromkeys((*names, "route", "key", "state", "limit"), "[]")
    plan = store._connections.query(f"EXPLAIN QUERY PLAN {SQL[statement]}", values)
    about_tickets = [row[-1] for row in plan if "tickets" in row[-1] or "head" in row[-1]]
    assert about_tickets
    assert all(step.startswith("SEARCH") for step in about_tickets), about_tickets
    if statement == "ahead":
        assert any("COVERING INDEX queued" in step and "start<" in step for step in about_tickets)
    if statement == "is_overdue":
        assert "COVERING INDEX queued" in about_tickets[0]
    if statement == "list_final":
        assert not any("TEMP B-TREE" in row[-1] for row in plan)
    if statement == "rank":
        assert about_tickets == ["SEARCH tickets USING INDEX own (line=? AND tier=? AND client=?)"]
        assert not any("TEMP B-TREE" in row[-1] for row in plan)


def test_health_says_which_sqlite_this_is(store: SQLiteStore, path: Path) -> None:
    """Catches: an operator who cannot see whether the checkpoint race is possible."""
    store.put(ticket(), recording(), now=0)
    health = store.health()
    assert {name: health[name] for name in ("kind", "version", "path", "journal_mode", "durability", "wal_race")} == {
        "kind": "sqlite",
        "version": sqlite3.sqlite_version,
        "path": str(path),
        "journal_mode": "wal",
        "durability": "normal",
        "wal_race": wal_race(sqlite3.sqlite_version_info),
    }
    assert int(health["size"]) == path.stat().st_size
    assert int(health["wal_size"]) > 0


@pytest.mark.parametrize(
    ("version", "race"),
    [
        ((3, 40, 1), "possible"),
        ((3, 44, 5), "possible"),
        ((3, 44, 6), "fixed"),
        ((3, 45, 0), "possible"),
        ((3, 50, 6), "possible"),
        ((3, 50, 7), "fixed"),
        ((3, 51, 2), "possible"),
        ((3, 51, 3), "fixed"),
        ((3, 52, 0), "fixed"),
        ((4, 0, 0), "fixed"),
    ],
)
def test_the_versions_with_the_race_are_known(version: tuple[int, int, int], race: str) -> None:
    """Catches: backported fixes that count for later branches too."""
    assert wal_race(version) == race


# When it is locked or full


def test_a_file_that_others_keep_locked_is_unavailable(open_store: OpenStore, path: Path) -> None:
    """Catches: waiting for ever, and a put that is half done."""
    store = open_store(patience=0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"line\.db.*locked") as failed:
            store.put(ticket(), recording(BIG), now=0)
        assert isinstance(failed.value.__cause__, sqlite3.OperationalError)
        assert files(path) == []
        assert store.counts() == {}, "reading goes on"
        other.execute("ROLLBACK")
    store._connections._begin_anew()
    store.put(ticket(), recording(BIG), now=0)
    assert store.counts()["donor", "image"].accepted == 1


def test_a_file_that_is_locked_for_a_moment_is_waited_for(open_store: OpenStore, path: Path) -> None:
    """Catches: a put that fails because somebody else was writing."""
    store = open_store(patience=30)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=store.put, args=(ticket(), recording()), kwargs={"now": 0})
        thread.start()
        thread.join(timeout=0.05)
        assert thread.is_alive(), "it waits"
        other.execute("ROLLBACK")
        thread.join(timeout=30)
    assert store.counts()["donor", "image"].accepted == 1


def test_after_waiting_in_vain_nobody_waits_until_one_has_tried_again(open_store: OpenStore, path: Path) -> None:
    """Catches: every request of a site waiting for a file that stays locked; a store that does not come back."""
    store, clock = open_store(patience=0.01), Clock()
    store._connections._writing._clock = clock
    made = store.put(ticket(), recording(), now=0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for cause in (Locked, Tripped, Tripped):
            with pytest.raises(StoreUnavailable) as failed:
                store.put(ticket(), recording(), now=0)
            assert isinstance(failed.value.__cause__, cause)
        with pytest.raises(StoreUnavailable):
            store.health()
        assert store.get(made.id).id == made.id, "reading goes on"
        clock.go_on(PAUSE)
        assert store.health()["kind"] == "sqlite", "nothing is known against it"
        with pytest.raises(StoreUnavailable) as failed:
            run_one(store)
        assert isinstance(failed.value.__cause__, Locked)
    with pytest.raises(StoreUnavailable):
        run_one(store)
    clock.go_on(PAUSE)
    assert run_one(store).id == made.id
    assert store.put(ticket(), recording(), now=0).number == 2


def test_who_waits_behind_one_that_waits_in_vain_does_not_wait_anew(open_store: OpenStore, path: Path) -> None:
    """Catches: threads of one process that wait for a locked file one after the other."""
    store = open_store(patience=0.3)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(5) as threads:
        other.execute("BEGIN IMMEDIATE")
        puts = [threads.submit(store.put, ticket(), recording(), now=0) for _ in range(5)]
        causes = [type(error.__cause__) for put in puts if (error := put.exception()) is not None]
    assert len(causes) == 5
    assert causes.count(Locked) == 1


def test_a_file_that_cannot_even_be_read_is_waited_for_once(open_store: OpenStore, path: Path) -> None:
    """Catches: a request that waits for each thing that it reads, and then again to be kept."""
    store = open_store(patience=0.01)
    store.close()
    store = open_store(patience=0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        steps: list[Callable[[], object]] = [
            store.counts,
            store.counts,
            lambda: store.put(ticket(), recording(), now=0),
            lambda: store.get("one"),
            store.changed,
        ]
        causes = []
        for step in steps:
            with pytest.raises(StoreUnavailable) as failed:
                step()
            causes.append(type(failed.value.__cause__))
        assert causes == [Locked, Tripped, Tripped, Tripped, Tripped]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond a limit, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("body", [b"small" * 1000, BIG], ids=["row", "file"])
def test_a_full_disk_refuses_and_leaves_nothing(store: SQLiteStore, path: Path, body: bytes) -> None:
    """Catches: errors of the system that reach the caller, and files or rows that stay behind."""
    kept = store.put(ticket(), recording(), now=0)
    refused = ticket()
    with full_disk(path.with_name("line.db-wal").stat().st_size + 1000):
        with pytest.raises(StoreUnavailable) as failed:
            store.put(refused, recording(body), now=0)
        assert isinstance(failed.value.__cause__, (sqlite3.OperationalError, OSError))
        assert files(path) == []
        with pytest.raises(UnknownTicket):
            store.get(refused.id)
    store.put(refused, recording(body), now=1)
    assert (run_one(store).id, run_one(store).id) == (kept.id, refused.id)
    assert read(store.request(refused.id)) == ('{"method": "POST"}', body, len(body))


@pytest.mark.parametrize(
    ("free", "blocks", "refused"), [(-1, 1, True), (0, 1, False), (-1, 0, False), (None, 1, False)]
)
def test_the_last_of_the_disk_is_for_what_was_accepted(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, free: int | None, blocks: int, *, refused: bool
) -> None:
    """Catches: an accepted ticket without room for its answer; a file system that tells nothing, taken for full."""
    kept = store.put(ticket(), recording(), now=0, key="k", digest="d")
    real = os.statvfs(store._path)

    def statvfs(_path: object) -> os.statvfs_result:
        if free is None:
            raise OSError(errno.ENOSYS, "cannot be told")
        return os.statvfs_result((1, 1, blocks, *real[3:4], room.RESERVE + free, *real[5:10]))

    monkeypatch.setattr("wsgi_admission.stores.room.os.statvfs", statvfs)
    with pytest.raises(StoreUnavailable, match="8 MiB") if refused else nullcontext():
        store.put(ticket(), recording(), now=0)
    assert ("full" in store.health()) is refused
    assert store.put(ticket(), recording(), now=0, key="k", digest="d") == kept, "nothing new"
    run = run_one(store)
    store.finish(run.id, 1, State.COMPLETED, recording(), now=1)


def test_a_finish_on_a_full_disk_can_be_tried_again(store: SQLiteStore, path: Path) -> None:
    """Catches: a finish that ends the ticket and loses the answer."""
    store.put(ticket(), recording(BIG), now=0)
    run = run_one(store)
    with full_disk(path.with_name("line.db-wal").stat().st_size), pytest.raises(StoreUnavailable):
        store.finish(run.id, 1, State.COMPLETED, recording(BIG), now=1)
    assert store.get(run.id) == run
    assert len(files(path)) == 1, "the request"
    store.finish(run.id, 1, State.COMPLETED, recording(BIG), now=1)
    assert read(store.response(run.id)) == ('{"method": "POST"}', BIG, len(BIG))


# Large bodies


def test_files_live_as_long_as_their_recordings(store: SQLiteStore, path: Path) -> None:
    """Catches: files that outlive their rows."""
    store.put(ticket("ann"), recording(BIG), now=0)
    waiting = store.put(ticket("bob"), recording(BIG), now=0)
    requests, run = files(path), run_one(store)
    store.finish(run.id, 1, State.COMPLETED, recording(BIG), now=1)
    assert len(requests) == len(files(path)) == 2
    assert len(set(files(path)) - set(requests)) == 1
    store.cancel(waiting.id, now=1)
    assert len(files(path)) == 1
    assert read(store.response(run.id)) is not None
    store.prune(before=2, now=2)
    assert files(path) == []


@pytest.mark.parametrize("why", ["id taken", "key known", "key reused", "lease lost", "cancelled"])
def test_a_body_that_is_not_kept_leaves_no_file(store: SQLiteStore, path: Path, why: str) -> None:
    """Catches: the files of steps that were refused."""
    new = store.put(ticket(), recording(), now=0, key="k", digest="d")
    if why == "key known":
        assert store.put(ticket(), recording(BIG), now=0, key="k", digest="d") == new
    elif why == "key reused":
        with pytest.raises(KeyReused):
            store.put(ticket(), recording(BIG), now=0, key="k", digest="e")
    elif why == "id taken":
        with pytest.raises(StoreError):
            store.put(new, recording(BIG), now=0)
    elif why == "lease lost":
        with pytest.raises(LeaseLost):
            store.finish(new.id, 1, State.COMPLETED, recording(BIG), now=0)
    else:
        run_one(store)
        store.cancel(new.id, now=0)
        store.finish(new.id, 1, State.COMPLETED, recording(BIG), now=0)
    assert files(path) == []


def test_a_pruned_request_leaves_no_file_and_no_row(store: SQLiteStore, path: Path) -> None:
    """Catches: the large requests of what failed and was never retried, kept for ever."""
    store.put(ticket(), recording(BIG), now=0)
    run = run_one(store)
    store.finish(run.id, 1, State.FAILED, None, now=1, keep_request=True)
    assert len(files(path)) == 1
    store.prune(before=2, now=2)
    assert files(path) == store._connections.query("SELECT number FROM requests") == []


def test_a_body_that_cannot_be_read_leaves_nothing(store: SQLiteStore, path: Path) -> None:
    """Catches: the file of a request whose body broke off."""

    class Broken:
        def __init__(self) -> None:
            self.parts = [BIG, b"more"]

        def read(self, _size: int = -1) -> bytes:
            if not self.parts:
                raise ValueError("broken off")
            return self.parts.pop(0)

    request = recording()
    object.__setattr__(request, "body", Broken())
    with pytest.raises(ValueError, match="broken off"):
        store.put(ticket(), request, now=0)
    assert files(path) == []
    assert store.counts() == {}


@pytest.mark.parametrize("broken", [BIG[:-1] + b"y", BIG[:-1], BIG + b"x", b""])
def test_a_large_body_with_a_wrong_byte_is_told_and_not_used(store: SQLiteStore, path: Path, broken: bytes) -> None:
    """Catches: somebody who gets, and an app that runs, what nobody has sent."""
    store.put(ticket(), recording(BIG), now=0)
    run = run_one(store)
    (kept,) = Path(f"{path}.bodies").iterdir()
    kept.write_bytes(broken)
    with pytest.raises(DamagedRecording, match="request"):
        store.request(run.id)
    store.finish(run.id, 1, State.COMPLETED, recording(BIG), now=1)
    assert read(store.response(run.id)) == read(recording(BIG))
    (kept,) = Path(f"{path}.bodies").iterdir()
    kept.write_bytes(broken)
    with pytest.raises(DamagedRecording, match="response"):
        store.response(run.id)
    assert not store._connections.damaged, "the database is sound"


def test_a_body_of_a_version_without_checksums_is_still_read(store: SQLiteStore, path: Path) -> None:
    """Catches: an update that loses what waits."""
    folder = Path(f"{path}.bodies")
    folder.mkdir()
    (folder / "0123456789abcdef0123456789abcdef").write_bytes(BIG)
    old = Stored("{}", None, "0123456789abcdef0123456789abcdef", len(BIG))
    found = store._bodies.recording(lambda: old)
    assert read(found) == ("{}", BIG, len(BIG))


def test_a_file_that_is_erased_during_a_sweep_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a sweep that ends without a word as soon as anybody else erases something."""
    for name in ("erased", "orphan"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))

    @contextmanager
    def scandir(directory: Path) -> Iterator[list[os.DirEntry[str]]]:
        with os.scandir(directory) as entries:
            found = list(entries)
        (tmp_path / "erased").unlink()
        yield sorted(found, key=lambda entry: entry.name)

    monkeypatch.setattr(bodies, "os", SimpleNamespace(**{**vars(os), "scandir": scandir}))
    Bodies(tmp_path, durable=False).sweep(list, now=1e9)
    assert list(tmp_path.iterdir()) == []


def test_only_old_files_that_nobody_names_are_swept(open_store: OpenStore, path: Path) -> None:
    """Catches: sweeping the files of other lines, or of puts that are under way."""
    store, other = open_store(), open_store("other")
    mine, theirs = (one.put(ticket(), recording(BIG), now=0) for one in (store, other))
    directory = path.with_name("line.db.bodies")
    named = files(path)
    for name in ("orphan", "orphan.part", "fresh"):
        (directory / name).write_bytes(b"left behind")
    now = time.time()
    for name in [*named, "orphan", "orphan.part"]:
        os.utime(directory / name, (now - bodies.ORPHANED - 1,) * 2)
    store.prune(before=0, now=now)
    assert files(path) == sorted([*named, "fresh"])
    for one, kept in ((store, mine), (other, theirs)):
        assert read(one.request(kept.id)) == ('{"method": "POST"}', BIG, len(BIG))


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_on_the_disk_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    """Catches: a row that survives power loss and a body that does not."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename
    kinds = {True: "directory", False: "file"}

    def note_fsync(descriptor: int) -> None:
        steps.append(f"sync {kinds[stat.S_ISDIR(os.fstat(descriptor).st_mode)]}")
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    with Bodies(tmp_path / "bodies", durable=durable).stored(recording(BIG)) as stored:
        assert stored.body is None
    synced = ["sync directory", "sync file", "rename", "sync directory"]
    assert steps == (synced if durable else ["rename"])


def test_a_body_that_is_erased_while_it_is_looked_up_is_not_there(tmp_path: Path) -> None:
    """Catches: a reader that trips over a file removed between the two reads, and one that loops for ever."""
    there = Stored("{}", None, "missing", 1)
    found = iter([there, None])
    assert Bodies(tmp_path, durable=False).recording(lambda: next(found)) is None
    with pytest.raises(StoreError, match=r"missing is missing"):
        Bodies(tmp_path, durable=False).recording(lambda: there)


def test_space_is_given_back(store: SQLiteStore) -> None:
    """Catches: a file that stays as large as the longest line ever was."""
    body = b"z" * INLINE_BODY
    for _ in range(20):
        store.put(ticket(), recording(body), now=0)
        run = run_one(store)
        store.finish(run.id, 1, State.COMPLETED, recording(body), now=1)
    ((full,),) = store._connections.query("PRAGMA page_count")
    for _ in range(10):
        store.prune(before=2, now=2)
    ((after,),) = store._connections.query("PRAGMA page_count")
    assert after < full / 4


# The log


def fill_log(store: SQLiteStore, size: int = WAL_LIMIT) -> None:
    """Write more than this."""
    for _ in range(size // INLINE_BODY + 1):
        store.put(ticket(), recording(b"w" * INLINE_BODY), now=0)


def log_size(path: Path) -> int:
    """Return the size of the log."""
    return path.with_name("line.db-wal").stat().st_size


def is_carried_over(store: SQLiteStore, path: Path) -> bool:
    """Whether the log is begun anew: then what is written next does not make it longer."""
    before = log_size(path)
    store.report(Worker("w", "host", 1, 1, 1), now=0)
    return log_size(path) == before


def test_the_log_is_carried_over_when_it_has_grown(store: SQLiteStore, path: Path) -> None:
    """Catches: a log that grows without end, or that is carried over by every connection."""
    store.put(ticket(), recording(), now=0)
    store.maintain(now=0)
    assert not is_carried_over(store, path), "small and young"
    fill_log(store)
    assert log_size(path) > WAL_LIMIT, "nobody does it in passing"
    store.maintain(now=1)
    assert is_carried_over(store, path)
    for now in range(2, 16):
        fill_log(store)
        store.maintain(now=now)
        assert log_size(path) < checkpoints.WAL_CUT + 2 * WAL_LIMIT
    assert store.counts()["donor", "image"].queued == 1 + 15 * (WAL_LIMIT // INLINE_BODY + 1)


def test_a_log_that_became_very_large_is_cut(store: SQLiteStore, path: Path) -> None:
    """Catches: a disk that stays full of what one busy minute left."""
    fill_log(store, checkpoints.WAL_CUT)
    store.maintain(now=0)
    assert log_size(path) == 0


def test_the_log_is_carried_over_when_it_is_old(store: SQLiteStore, path: Path) -> None:
    """Catches: commits that stay in the log for days on a quiet site."""
    store.maintain(now=100)
    store.put(ticket(), recording(), now=100)
    store.maintain(now=100 + INTERVAL - 1)
    assert not is_carried_over(store, path)
    store.maintain(now=100 + INTERVAL)
    assert is_carried_over(store, path)


def test_readers_do_not_keep_the_log_from_being_carried_over(store: SQLiteStore, path: Path) -> None:
    """Catches: reads that stay open between the steps."""
    fill_log(store)
    new = store.put(ticket(), recording(), now=0)
    store.counts()
    store.statistics(now=0)
    store.ahead(new.id)
    request = store.request(new.id)
    store.maintain(now=1)
    assert is_carried_over(store, path)
    assert read(request) == ('{"method": "POST"}', b"body", 4)


def test_one_at_a_time_carries_the_log_over(open_store: OpenStore, path: Path) -> None:
    """Catches: two threads or stores of one process, whom record locks do not keep apart."""
    first, second = open_store(), open_store("second")
    fill_log(first)
    with checkpoints.host_lock(f"{path}-lock") as held:
        assert held
        second.maintain(now=0)
    assert not is_carried_over(first, path)
    second.maintain(now=1)
    assert is_carried_over(first, path)


def test_upkeep_that_fails_says_so(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a bare OSError in the housekeeper."""
    fill_log(store)

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreUnavailable, match="Too many open files"):
        store.maintain(now=1)


# Watching


def test_counts_are_read_again_only_after_a_change(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a query for each request, and counts that lag behind another connection."""
    store, other = open_store(), open_store()
    reads = []
    tallies = rows.tallies

    def note(connection: sqlite3.Connection, line: str) -> object:
        reads.append(line)
        return tallies(connection, line)

    monkeypatch.setattr(rows, "tallies", note)
    for number in range(3):
        assert store.counts().get(("donor", "image"), Tally()).queued == number
        assert store.counts() is store.counts()
        assert len(reads) == number + 1
        before = store.changed()
        other.put(ticket(), recording(), now=0)
        assert store.changed() != before


def test_a_store_that_cannot_be_read_is_unavailable(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: SQLite's own errors on the way of every matching request."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(rows, "tallies", fail)
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        store.counts()


# Connections and forks


def open_files(path: Path) -> list[str]:
    """Return the files of the store that this process has open."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()))
        except FileNotFoundError:
            pass  # the one that was used to list them
    return [target for target in targets if target.startswith(str(path))]


def test_close_closes_everything(open_store: OpenStore, path: Path) -> None:
    """Catches: connections that are left to the garbage collector, which warns since Python 3.13."""
    store = open_store(durability="full")
    store.put(ticket(), recording(), now=0)
    run_one(store)
    store.counts()
    assert open_files(path)
    with store._connections.writing():
        store.close()
    assert open_files(path) == []


def test_a_connection_is_used_by_one_step_at_a_time(store: SQLiteStore) -> None:
    """Catches: two threads inside one transaction."""
    with store._connections.writing() as one:
        other = store._connections._take()
        assert other is not one
        store._connections._give(other)


def test_a_refused_step_does_not_cost_a_connection(store: SQLiteStore) -> None:
    """Catches: refusals that leave a transaction open, or throw the connection away."""
    store.put(ticket(), recording(), now=0)
    (before,) = store._connections._idle
    with pytest.raises(LeaseLost):
        store.progress("nobody", 1, 0.5, "")
    assert list(store._connections._idle) == [before]
    assert not before.in_transaction


def test_a_connection_that_cannot_leave_its_transaction_is_not_used_again(store: SQLiteStore) -> None:
    """Catches: every later step refused, because it gets a connection that is in a transaction already."""

    def forbid(action: int, *_names: object) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK

    def stumble() -> None:
        with store._connections.writing() as connection:
            connection.set_authorizer(forbid)

    with pytest.raises(StoreUnavailable, match="not authorized"):
        stumble()
    for _ in range(2):
        store.put(ticket(), recording(), now=0)


def test_another_durability_is_refused(path: Path) -> None:
    """Catches: a misspelt word that means the weaker of the two."""
    with pytest.raises(ValueError, match="'ful': expected full or normal"):
        SQLiteStore(path, durability="ful")
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_store_is_usable_on_both_sides_of_a_fork(open_store: OpenStore, path: Path) -> None:
    """Catches: a child without locks of its own: another process could take the log away from under it."""
    store = open_store(durability="full")
    before = store.put(ticket(), recording(), now=0)
    counted, token = store.counts(), store.changed()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        answer = b"failed"
        try:
            with closing(SQLiteStore(path)) as another:
                another.put(ticket(), recording(), now=0)
                store.put(ticket(), recording(), now=0)
                seen = store.counts()["donor", "image"].queued == 3 and store.get(before.id) == before
                locked = any(f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines())
                answer = f"{seen} {locked}".encode()
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "True True"
    os.waitpid(child, 0)
    assert counted["donor", "image"].queued == 1
    assert store.counts()["donor", "image"].queued == 3
    assert store.changed() != token
    assert run_one(store).id == before.id


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_waits_for_a_transaction_of_another_thread(store: SQLiteStore) -> None:
    """Catches: a child that is born in the middle of a transaction."""
    begun, finish = threading.Event(), threading.Event()

    def write() -> None:
        with store._connections.writing() as connection:
            begun.set()
            finish.wait(timeout=30)
            connection.execute("PRAGMA user_version").fetchone()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(timeout=30)
    threading.Timer(0.05, finish.set).start()
    child = os.fork()
    if not child:
        os._exit(0 if finish.is_set() and store._connections._opened == 0 else 1)
    thread.join(timeout=30)
    assert os.waitpid(child, 0)[1] == 0
    store.put(ticket(), recording(), now=0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_that_was_left_in_its_parent(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a store that is busy for ever in a child that was born while a thread of its parent began to write."""
    store = open_store(patience=0.5)
    store.put(ticket(), recording(), now=0)
    beginning, forked = threading.Event(), threading.Event()
    refuse = store._connections.refuse_inherited

    def slow() -> None:  # the first that a step does once it has its turn
        if threading.current_thread() is thread:
            beginning.set()
            assert forked.wait(30)
        refuse()

    monkeypatch.setattr(store._connections, "refuse_inherited", slow)
    thread = threading.Thread(target=lambda: store.put(ticket(), recording(), now=0))
    thread.start()
    assert beginning.wait(30)
    child = os.fork()
    if not child:
        done = 1
        try:
            store.put(ticket(), recording(), now=0)
            done = 0
        finally:
            os._exit(done)
    forked.set()
    thread.join(30)
    assert os.waitpid(child, 0)[1] == 0
    assert store.counts()["donor", "image"].queued == 3


@pytest.mark.parametrize(("sure", "expected"), [(0.0, "5"), (3600.0, "3")], ids=["later", "at once"])
def test_a_fork_that_python_was_not_told_of_is_refused(
    open_store: OpenStore, path: Path, monkeypatch: pytest.MonkeyPatch, sure: float, expected: str
) -> None:
    """Catches: a server that forks in C and whose children share a connection.

    What was read a moment ago needs none: the counts and the mark of change.
    """
    monkeypatch.setattr(watch, "SURE", sure)
    store = open_store()
    store.put(ticket(), recording(), now=0)
    store.counts()
    reader, writer = os.pipe()
    child = ctypes.CDLL(None).fork()
    if not child:
        refused = 0
        try:
            steps = (
                lambda: store.get("x"),
                lambda: store.statistics(now=0),
                store.counts,
                store.changed,
                lambda: SQLiteStore(path),
            )
            for step in steps:
                try:
                    step()
                except StoreError as error:
                    refused += "inherited" in str(error)
        finally:
            os.write(writer, str(refused).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == expected
    os.waitpid(child, 0)


def test_a_schema_made_while_the_file_is_looked_at_is_no_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: two processes that start together, one of which takes the other's half for a stranger's database."""
    path = tmp_path / "admission.db"
    interrupted: list[str] = []

    def execute(connection: sqlite3.Connection, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql == "PRAGMA user_version" and not interrupted:  # the application_id has been read
            interrupted.append(sql)
            with suppress(StoreUnavailable):  # it may have to wait for the one that looks
                opening.prepare(path, patience=0.0)
        return sqlite3.Connection.execute(connection, sql, *parameters)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(connections.Connection, "execute", execute)
    opening.prepare(path, patience=5.0)
    assert interrupted
    with closing(SQLiteStore(path)) as store:
        assert not store.counts()


def no_map(*_: object, **__: object) -> None:
    """Stand for a file system that maps nothing."""
    raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize("maps", [True, False], ids=["mapped", "read by calls"])
def test_a_commit_is_seen_at_once_although_nobody_asks_sqlite(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, maps: bool
) -> None:
    """Catches: a newcomer that overtakes because another process's put is noticed later only."""
    monkeypatch.setattr(watch, "SURE", 3600.0)
    if not maps:
        monkeypatch.setattr(mmap, "mmap", no_map)
    with closing(SQLiteStore(path)) as mine, closing(SQLiteStore(path)) as other:
        before = mine.changed()
        assert mine.changed() == before
        other.put(ticket(), recording(), now=0)
        assert mine.changed() != before
        assert sum(tally.queued for tally in mine.counts().values()) == 1


@pytest.mark.parametrize("before", [b"", b"short"])
def test_a_mark_that_cannot_be_made_long_enough_is_read_by_calls(tmp_path: Path, before: bytes) -> None:
    """Catches: a page mapped beyond the end of the file, which kills the process that reads it, on a full disk."""
    path = tmp_path / "mark"
    path.write_bytes(before)
    with full_disk(0):
        reader = Mark(path)
        assert reader.read() == before
        reader.renew()
        assert reader.read() == before
    writer = Mark(path)
    found = reader.read()
    assert found == writer.read()
    assert len(found) == 8
    writer.renew()
    assert reader.read() == writer.read() != found


def test_a_mark_may_be_read_while_it_is_closed(tmp_path: Path) -> None:
    """Catches: a request in another thread that dies on a closed mapping, or reads what has its descriptor now."""
    mark = Mark(tmp_path / "mark")
    assert mark.read()
    mark.close()
    assert mark.read() == b""


def test_a_commit_without_a_mark_is_seen_when_sqlite_is_asked_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a line that stands still because a writer died between its commit and its mark."""
    with closing(SQLiteStore(path)) as mine, closing(SQLiteStore(path)) as other:
        mine.counts()
        monkeypatch.setattr(other._connections.mark, "renew", lambda: None)
        other.put(ticket(), recording(), now=0)
        until(lambda: sum(tally.queued for tally in mine.counts().values()) == 1, patience=5)


def test_a_closed_store_opens_nothing_again(path: Path) -> None:
    """Catches: a thread that outlives its process's store and makes new files, or writes into another's descriptor."""
    store = SQLiteStore(path)
    store.counts()
    store.close()
    store.close()
    for step in (store.counts, store.changed, lambda: store.get("x"), lambda: store.put(ticket(), recording(), now=0)):
        with pytest.raises(StoreError, match="was closed"):
            step()


def test_bodies_are_not_put_where_somebody_else_could_change_them(path: Path, tmp_path: Path) -> None:
    """Catches: a link for a directory, through which others swap what is served as the app's answer."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.with_name(f"{path.name}.bodies").symlink_to(elsewhere)
    with closing(SQLiteStore(path)) as store, pytest.raises(StoreUnavailable, match="it is a link"):
        store.put(ticket(), recording(BIG), now=0)
    assert list(elsewhere.iterdir()) == []


def test_threads_may_fork_at_the_same_time(path: Path) -> None:
    """Catches: hooks of two forks that take each other's locks away and leave the store blocked for ever."""
    with closing(SQLiteStore(path)) as store:
        store.counts()

        def fork() -> None:
            for _ in range(20):
                child = os.fork()
                if not child:
                    os._exit(0)
                os.waitpid(child, 0)
                store.counts()

        threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)


def test_a_long_prune_pauses_and_goes_on_when_called_again(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: leases that run out while millions of tickets are removed; a rest that is never removed."""
    monkeypatch.setattr(pruning, "BATCH", 2)
    monkeypatch.setattr(pruning, "AT_ONCE", 4)
    for number in range(7):
        store.cancel(store.put(ticket(f"client {number}"), recording(), now=0).id, now=1)
    assert [store.prune(before=2, now=2) for _ in range(3)] == [4, 3, 0]


def test_a_crowd_leaves_few_connections_behind(path: Path) -> None:
    """Catches: memory that grows for hours, while one after another of many connections meets every statement."""
    with closing(SQLiteStore(path)) as store:
        meet = threading.Barrier(8)

        def visit(_number: int) -> None:
            connection = store._connections._take()
            meet.wait(30)
            store._connections._give(connection)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(visit, range(8)))
        assert len(store._connections._idle) == store._connections._opened == KEPT
        assert store.counts() == {}

"""The rows of the SQLite store: its statements, and what they mean in the words of the contract.

Every function works inside the caller's transaction.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from wsgi_admission.errors import GoneTicket, KeyReused, LeaseLost, StoreError, UnknownTicket
from wsgi_admission.policy.ordering import place
from wsgi_admission.stores import moves
from wsgi_admission.stores.bodies import Stored
from wsgi_admission.stores.opening import script
from wsgi_admission.stores.records import RATE_MINUTES, RUN_TIMES, Counts, Passed, Tally, Worker
from wsgi_admission.ticket import State, Ticket

_FIELDS = [field.name for field in fields(Ticket)]
_STATE = _FIELDS.index("state")
_FLAGS = (_FIELDS.index("cancelling"), _FIELDS.index("retryable"))
_NOTHING: Mapping[str, float] = {field.name: 0 for field in fields(Tally)}
_SAME_LEASE: Mapping[str, Any] = {"worker": None, "until": None, "boot": None}
#: What stands in place of the minute in the tallies since the beginning.
TOTAL = 1 << 40
#: The rank under which requests are counted that had no ticket, and so none of their own.
_NO_RANK = -1


def _load(text: str) -> dict[str, str]:
    _, *parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    columns = ", ".join(_FIELDS)
    return {name: part.replace("{ticket}", columns) for name, part in zip(parts[::2], parts[1::2], strict=True)}


#: Every statement by its name in queries.sql.
SQL = _load(script("queries.sql"))


class Facts(NamedTuple):
    """What `Statistics` is made of; the workers with when they were seen last."""

    running: tuple[tuple[str, float], ...]
    run_times: Mapping[str, tuple[float, ...]]
    workers: tuple[tuple[Worker, float], ...]
    completions: int


def ticket_of(row: Sequence[Any]) -> Ticket:
    """Return the ticket in a row of ``{ticket}`` columns."""
    values = list(row)
    values[_STATE] = State(values[_STATE])
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    return Ticket(*values)


def find(connection: sqlite3.Connection, line: str, ticket_id: str) -> Ticket | None:
    """Return the ticket with this id, if there is one."""
    row = connection.execute(SQL["get"], {"line": line, "id": ticket_id}).fetchone()
    return None if row is None else ticket_of(row)


def first(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> Ticket | None:
    """Return the first ticket of the line in the wanted routes, if one waits."""
    row = connection.execute(SQL["first"], wanted).fetchone()
    return None if row is None else ticket_of(row)


def missing(ticket_id: str, gone: Sequence[tuple[str]]) -> GoneTicket | UnknownTicket:
    """Return what to raise for a ticket that is not there.

    :param gone: what ``gone_owner`` found.
    """
    return GoneTicket(ticket_id, gone[0][0]) if gone else UnknownTicket(ticket_id)


def existing(connection: sqlite3.Connection, line: str, ticket_id: str) -> Ticket:
    """Return the ticket with this id.  Raises `UnknownTicket` and `GoneTicket`."""
    ticket = find(connection, line, ticket_id)
    if ticket is None:
        raise missing(ticket_id, connection.execute(SQL["gone_owner"], {"line": line, "id": ticket_id}).fetchall())
    return ticket


def recalled(found: Sequence[tuple[Any, ...]], digest: str) -> Ticket | None:
    """Return the ticket that ``recall`` found, if any.  Raises `KeyReused` when its digest is another."""
    for known, *row in found:
        ticket = ticket_of(row)
        if known != digest:
            raise KeyReused(ticket.id)
        return ticket
    return None


def held(connection: sqlite3.Connection, line: str, ticket_id: str, attempt: int) -> Ticket:
    """Return the ticket if this attempt at it is under way.  Raises `LeaseLost`."""
    ticket = find(connection, line, ticket_id)
    if ticket is None or ticket.state is not State.PROCESSING or ticket.attempt != attempt:
        raise LeaseLost(ticket_id, attempt)
    return ticket


def add(
    connection: sqlite3.Connection,
    line: str,
    ticket: Ticket,
    *,
    now: float,
) -> Ticket:
    """Rank a new ticket and insert it, without its request; return it with its rank and number.

    :raises StoreError: when the id is taken.
    """
    where = {"line": line, "tier": ticket.tier, "client": ticket.client}
    start = place(*connection.execute(SQL["rank"], where).fetchone())
    row = {**vars(ticket), "state": State.QUEUED.value, "start": start, "line": line}
    try:
        number = connection.execute(SQL["put_ticket"], row).lastrowid
    except sqlite3.IntegrityError as error:
        raise StoreError(f"A ticket {ticket.id} cannot be added: {error}.") from error
    assert number is not None  # noqa: S101 - an INSERT that did not raise has one
    _count(connection, line, ticket, moves.delta(None, ticket), now)
    return replace(ticket, state=State.QUEUED, start=start, number=number)


def move(
    connection: sqlite3.Connection,
    line: str,
    before: Ticket,
    after: Ticket,
    *,
    now: float,
    lease: Mapping[str, Any] = _SAME_LEASE,
) -> list[str]:
    """Save what became of a ticket and count it; return the names of files to remove after the commit.

    The request of a ticket that is final now is erased, unless it may be run again.

    :param lease: ``worker``, ``until`` and ``boot`` of a new lease.
    """
    save(connection, after, lease)
    change = moves.delta(before, after)
    if change:
        _count(connection, line, after, change, now)
    return erase(connection, "request", after.number) if after.state.final and not after.retryable else []


def save(connection: sqlite3.Connection, ticket: Ticket, lease: Mapping[str, Any] = _SAME_LEASE) -> None:
    """Write what can change in a ticket, and whose it is if that is new."""
    connection.execute(SQL["save"], {**vars(ticket), "state": ticket.state.value, **lease})


def crash(
    connection: sqlite3.Connection, statement: str, where: Mapping[str, Any], *, now: float
) -> tuple[int, list[str]]:
    """Let the workers of what ``statement`` finds be dead.

    :return: how many tickets there were, and the names of files to remove after the commit.
    """
    erased: list[str] = []
    found = [ticket_of(row) for row in connection.execute(SQL[statement], where).fetchall()]
    for before in found:
        erased += move(connection, where["line"], before, moves.crashed(before, now=now), now=now)
    return len(found), erased


def charge(connection: sqlite3.Connection, line: str, claimed: Ticket) -> None:
    """Move the tier's virtual time to a claimed ticket, and its client's finish, if that is later."""
    row = {"line": line, **vars(claimed)}
    connection.execute(SQL["move_virtual_time"], row)
    connection.execute(SQL["charge"], row)


def keep(connection: sqlite3.Connection, statement: str, number: int, stored: Stored) -> None:
    """Insert a recording, by ``put_request`` or ``put_response``."""
    connection.execute(SQL[statement], (number, stored.head, stored.body, stored.file, stored.length, stored.crc))


def erase(connection: sqlite3.Connection, kind: str, number: int) -> list[str]:
    """Delete the ``request`` or ``response`` of a ticket; return the names of files to remove after the commit."""
    names = [name for (name,) in connection.execute(SQL[f"{kind}_file"], (number,)).fetchall()]
    connection.execute(SQL[f"erase_{kind}"], (number,))
    return names


def count_late(connection: sqlite3.Connection, line: str, ticket_id: str, *, now: float) -> None:
    """Count a finish that was refused, if the ticket is still there."""
    ticket = find(connection, line, ticket_id)
    if ticket is not None:
        _count(connection, line, ticket, {"late": 1}, now)


def _count(connection: sqlite3.Connection, line: str, ticket: Ticket, change: Mapping[str, float], now: float) -> None:
    """Add a change to the tallies of the ticket's tier and route: in all, and in this minute."""
    where = {"tier_rank": ticket.tier_rank, "tier": ticket.tier, "route": ticket.route}
    connection.execute(SQL["count"], {**_NOTHING, **where, **change, **_times(line, now)})


def _times(line: str, now: float) -> dict[str, Any]:
    return {"line": line, "total": TOTAL, "minute": int(now // 60)}


def add_run_times(connection: sqlite3.Connection, line: str, route: str, seconds: Iterable[float]) -> None:
    """Remember run times of a route, and forget the oldest beyond `RUN_TIMES`."""
    where = {"line": line, "route": route, "kept": RUN_TIMES}
    connection.executemany(SQL["add_run_time"], [{**where, "seconds": value} for value in seconds])
    connection.execute(SQL["trim_run_times"], where)


def count_passed(connection: sqlite3.Connection, line: str, passed: Iterable[Passed], *, now: float) -> None:
    """Count requests that ran at once, and remember their run times."""
    counts: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: {"passed": 0, "shadowed": 0})
    times: dict[str, list[float]] = defaultdict(list)
    for one in passed:
        counts[one.tier, one.route]["passed"] += 1
        counts[one.tier, one.route]["shadowed"] += one.shadowed
        times[one.route].append(one.seconds)
    for (tier, route), change in counts.items():
        where = {"tier_rank": _NO_RANK, "tier": tier, "route": route}
        connection.execute(SQL["count"], {**_NOTHING, **where, **change, **_times(line, now)})
    for route, seconds in times.items():
        add_run_times(connection, line, route, seconds[-RUN_TIMES:])


def tallies(connection: sqlite3.Connection, line: str) -> Counts:
    """Return the tallies by tier and route."""
    rows = connection.execute(SQL["tallies"], {"line": line, "total": TOTAL}).fetchall()
    return MappingProxyType({(tier, route): Tally(*counters) for tier, route, *counters in rows})


def facts(connection: sqlite3.Connection, line: str, minute: int) -> Facts:
    """Return what statistics are made of in this minute."""
    parameters = {"line": line, "minute": minute - RATE_MINUTES + 1, "total": TOTAL}
    run_times: dict[str, list[float]] = defaultdict(list)
    for route, seconds in connection.execute(SQL["run_times"], parameters).fetchall():
        run_times[route].append(seconds)
    workers = connection.execute(SQL["workers"], parameters).fetchall()
    ((completions,),) = connection.execute(SQL["completions"], parameters).fetchall()
    return Facts(
        tuple(connection.execute(SQL["running"], parameters).fetchall()),
        MappingProxyType({route: tuple(seconds) for route, seconds in run_times.items()}),
        tuple((replace(Worker(*values), reported=seen), seen) for *values, seen in workers),
        completions,
    )

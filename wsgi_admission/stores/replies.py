"""What is sent to the scripts of a line in Redis and what they answer, in the words of the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from wsgi_admission.errors import FinalTicket, GoneTicket, KeyReused, NotRetryable, UnknownTicket
from wsgi_admission.stores.records import Counts, Minute, Statistics, Tally, Worker
from wsgi_admission.stores.scripts import FIELDS
from wsgi_admission.stores.wire import decode
from wsgi_admission.ticket import State, Ticket

_NUMBERS: dict[str, Callable[[str], Any]] = {"float": float, "int": int, "float | None": float}


def kept(ticket: Ticket, **more: str) -> str:
    """Return a ticket as it is kept, with fields that are not its own."""
    values = [*map(_text, vars(ticket).values()), *(more.get(name, "") for name in FIELDS[len(_READERS) :])]
    return json.dumps(values, ensure_ascii=False)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.value if isinstance(value, State) else value
    if value is None:
        return ""
    return repr(int(value) if isinstance(value, bool) else value)


def _reader(kind: str) -> Callable[[str], Any]:
    if kind == "str":
        return str
    if kind == "State":
        return State
    if kind == "bool":
        return lambda text: text == "1"
    number = _NUMBERS[kind]
    return lambda text: number(text) if text else None


_READERS = [_reader(str(field.type)) for field in fields(Ticket)]


def ticket_of(answer: bytes) -> Ticket:
    """Return a ticket that was kept."""
    return Ticket(*(read(text) for read, text in zip(_READERS, parsed(answer), strict=False)))


def parsed(answer: bytes) -> Any:
    """Return what JSON says; an empty list of Lua is an empty object in it, and is false as well."""
    return json.loads(decode(answer))


def told(answer: list[Any], ticket_id: str) -> list[Any]:
    """Return what follows ``ok`` in an answer about a ticket, or raise what the answer says."""
    word = answer[0]
    if word == b"gone":
        raise GoneTicket(ticket_id, decode(answer[1]))
    if word == b"unknown":
        raise UnknownTicket(ticket_id)
    if word == b"not retryable":
        raise NotRetryable(ticket_id)
    if word == b"reused":
        raise KeyReused(decode(answer[1]))
    if word == b"final":
        raise FinalTicket(ticket_id, decode(answer[1]))
    return answer[1:]


_TALLY = {field.name: _NUMBERS[str(field.type)] for field in fields(Tally)}


def tallies_of(answer: bytes) -> tuple[bool, Counts]:
    """Return what ``counts`` answered: whether the line is paused, and the tallies."""
    (paused, *found), tallies = parsed(answer), {}
    for tier, route, sums in zip(found[::3], found[1::3], found[2::3], strict=True):
        tallies[tier, route] = Tally(**{name: _TALLY[name](number) for name, number in json.loads(sums).items()})
    return paused == "1", MappingProxyType(tallies)


def facts_of(answer: bytes) -> tuple[Statistics, list[tuple[Worker, float]]]:
    """Return what ``statistics`` answered, and the workers with when they were seen last."""
    running, run_times, reports, completions = parsed(answer)
    started = sorted((float(start), int(number), route) for route, start, number in running)
    lines = zip(run_times[::2], run_times[1::2], strict=True) if run_times else ()
    times = {route: tuple(map(float, json.loads(line))) for route, line in lines}
    workers = []
    for report in sorted(map(json.loads, reports), key=lambda each: str(each["id"])):
        seen = report.pop("seen")
        workers.append((Worker(**{**report, "reported": seen}), seen))
    statistics = Statistics(
        tuple((route, start) for start, _, route in started), MappingProxyType(times), completions=completions
    )
    return statistics, workers


def minutes_of(answer: bytes) -> list[Minute]:
    """Return what ``minutes`` answered, oldest first."""
    found = sorted(parsed(answer) or [])
    return [Minute(minute, tier, route, *map(int, counts)) for minute, tier, route, *counts in found]

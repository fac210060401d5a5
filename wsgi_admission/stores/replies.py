"""What is sent to the scripts of a line in Redis and what they answer, in the words of the contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from wsgi_admission.errors import FinalTicket, GoneTicket, UnknownTicket
from wsgi_admission.stores.records import Counts, Statistics, Tally, Worker
from wsgi_admission.stores.wire import Argument, decode
from wsgi_admission.ticket import State, Ticket

_NUMBERS: dict[str, Callable[[bytes | str], Any]] = {"float": float, "int": int, "float | None": float}


def values(ticket: Ticket) -> Iterable[Argument]:
    """Return the fields of a ticket as texts."""
    for value in vars(ticket).values():
        if isinstance(value, bool):
            yield "1" if value else "0"
        elif isinstance(value, State):
            yield value.value
        else:
            yield "" if value is None else value


def _reader(kind: str) -> Callable[[bytes], Any]:
    if kind == "State":
        return lambda value: State(decode(value))
    if kind == "bool":
        return lambda value: value == b"1"
    number = _NUMBERS.get(kind)
    if number is None:
        return decode
    return lambda value: number(value) if value else None


_READERS = [_reader(str(field.type)) for field in fields(Ticket)]


def ticket_of(values: list[bytes]) -> Ticket:
    """Return the ticket with these fields."""
    return Ticket(*(read(value) for read, value in zip(_READERS, values)))  # noqa: B905 - a field of our own follows


def told(answer: list[Any], ticket_id: str) -> list[Any]:
    """Return what follows ``ok`` in an answer about a ticket, or raise what the answer says."""
    word = answer[0]
    if word == b"gone":
        raise GoneTicket(ticket_id, decode(answer[1]))
    if word == b"unknown":
        raise UnknownTicket(ticket_id)
    if word == b"final":
        raise FinalTicket(ticket_id, decode(answer[1]))
    return answer[1:]


_TALLY = {field.name: _NUMBERS[str(field.type)] for field in fields(Tally)}


def tallies_of(found: list[bytes]) -> Counts:
    """Return what ``counts`` answered."""
    tallies = {}
    for tier, route, sums in zip(found[::3], found[1::3], found[2::3], strict=True):
        pairs = (pair.split("=") for pair in decode(sums).split())
        tallies[decode(tier), decode(route)] = Tally(**{name: _TALLY[name](sum_) for name, sum_ in pairs})
    return MappingProxyType(tallies)


def facts_of(found: list[Any]) -> tuple[Statistics, list[tuple[Worker, float]]]:
    """Return what ``statistics`` answered, and the workers with when they were seen last."""
    running, run_times, reports, completions = found
    started = sorted((float(start), int(number), decode(route)) for route, start, number in running)
    times = {
        decode(route): tuple(map(float, line.split()))
        for route, line in zip(run_times[::2], run_times[1::2], strict=True)
    }
    workers = []
    for report in sorted(map(json.loads, reports), key=lambda each: str(each["id"])):
        seen = report.pop("seen")
        workers.append((Worker(**report), seen))
    statistics = Statistics(
        tuple((route, start) for start, _, route in started), MappingProxyType(times), completions=completions
    )
    return statistics, workers

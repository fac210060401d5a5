"""What happened in a run, as its processes wrote it down, and what was wrong with it.

Every process appends to one file, one line of JSON for each event, with the times of the host's monotonic clock.
What a process *did* is written after it was done, what it *may do* before: a process that is killed in between
leaves too little, never too much.  So the checker knows of each wait of a ticket in the line for certain only a
part of the time, and of the rest that it is possible; a fault is what cannot be true under any reading.

    submitted  request, keyed, at                a client is about to send a request, if ``keyed`` again and again
    answered   request, other, at                it got an answer of the app instead of a 202, and to which request
    accepted   request, ticket, at               it got a 202
    listed     ticket, rank, route, retries      a row of the store, at the end of the run: its place in the order,
                                                 and how often it may run again after a crash
    put        ticket, at                        the store returned from ``put``
    claimed    ticket, attempt, routes, asked, at, pid    the store was asked for one of these routes, and returned
    started    ticket, attempt, request, at, pid the app was called with this request
    releasing  ticket, attempt, at               a worker is about to give the ticket back
    finished   ticket, attempt, state, at, pid   the store returned from ``finish``
    ran        request, begin, at                the app was called at once, without a ticket, and has returned
    told       pid, at                           a worker of gunicorn was told to leave
    seen       ticket, state, attempt, position, asked, at    what a client was told; state None: no such ticket
    answer     ticket, request, at               the recorded answer, and for which request the app made it: as a client
                                                 got it, and as it is in the store at the end of the run
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Event = Mapping[str, Any]
FINAL = {"completed", "failed", "cancelled"}


class Writer:
    """Appends events to a history, from any thread or process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, what: str, **event: Any) -> None:
        """Write one event, in one call: those of several processes do not mix."""
        event.setdefault("at", time.monotonic())
        os.write(self._descriptor, f"{json.dumps({'what': what, **event})}\n".encode())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read(path: Path) -> list[Event]:
    """Return the events of a history, in the order in which they were written."""
    return parse(path.read_text())


def parse(text: str) -> list[Event]:
    """Return the events in some lines of a history."""
    events = []
    for line in text.splitlines():
        # Whoever is killed in the middle of a line leaves a part of it in front of the next one.
        start = line.rfind('{"what": ')
        try:
            events.append(json.loads(line[start:]))
        except ValueError:
            continue
    return events


class Tail:
    """The end of a history that is still written."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def news(self) -> list[Event]:
        """Return the events since the last time."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            text, end, _ = file.read().rpartition(b"\n")
        self._read += len(text) + len(end)
        return parse(text.decode())


class Fault(NamedTuple):
    """Something that must not have happened.

    :param kind: ``lost``, ``not kept``, ``doubled``, ``out of order``, ``position`` or ``wrong answer``.
    """

    kind: str
    ticket: str
    what: str


@dataclass(frozen=True)
class Wait:
    """A ticket's time in the line between two attempts.

    It certainly waited from ``since`` to ``until``, if that is not empty, and certainly not before ``earliest`` or
    after ``latest``.
    """

    ticket: str
    attempt: int
    route: str
    rank: tuple[float, ...]
    earliest: float
    since: float
    until: float
    latest: float

    def surely(self, start: float, end: float) -> bool:
        """Whether it waited all the time from ``start`` to ``end``."""
        return self.since <= start and end <= self.until

    def possibly(self, start: float, end: float) -> bool:
        """Whether it may have waited at some time between them."""
        return self.earliest <= end and start <= self.latest


@dataclass
class Told:
    """The events of one ticket, by what they are."""

    ticket: str
    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def first(self, what: str) -> Event | None:
        """Return the first event of this kind."""
        return next(iter(self.events[what]), None)

    def evidence(self) -> list[Event]:
        """Return the events that tell in which attempt it was."""
        return [event for what in ("claimed", "started", "seen") for event in self.events[what]]

    def attempts(self) -> int:
        """Return how often it was claimed, as far as anybody knows."""
        return max((event["attempt"] or 0 for event in self.evidence()), default=0)

    def waits(self, submitted: Mapping[str, float]) -> Iterator[Wait]:
        """Return its times in the line, if it is known where it stood."""
        listed = self.first("listed")
        if listed is None:
            return
        seen = self.events["seen"]
        claims = {event["attempt"]: event for event in self.events["claimed"]}
        evidence, attempts = self.evidence(), self.attempts()
        ends = [event for event in (*seen, *self.events["finished"]) if event["state"] in FINAL]
        # Nobody comes back from the attempt in which he ends, unless he is cancelled.
        ended_in = {event["attempt"] for event in ends if event["state"] != "cancelled"}
        earliest = min((submitted.get(e["request"], -math.inf) for e in self.events["accepted"]), default=-math.inf)
        for attempt in range(attempts + 1):
            queued = [event for event in seen if (event["state"], event["attempt"]) == ("queued", attempt)]
            since = [event["at"] for event in queued]
            until = [event["asked"] for event in queued]
            if attempt == 0:
                since += [event["at"] for what in ("put", "accepted") for event in self.events[what]]
            else:
                running = [e["asked"] for e in seen if (e["state"], e["attempt"]) == ("processing", attempt)]
                earliest = max([earliest, *running])
            after = claims.get(attempt + 1)
            if after is not None:
                until.append(after["asked"])
            left = [event["at"] for event in (*evidence, *ends) if (event["attempt"] or 0) > attempt]
            left += [event["at"] for event in ends]
            if attempt not in ended_in:
                yield Wait(
                    self.ticket,
                    attempt,
                    listed["route"],
                    tuple(listed["rank"]),
                    earliest,
                    min(since, default=math.inf),
                    max(until, default=-math.inf),
                    min(left, default=math.inf),
                )
            if after is not None:
                earliest = after["asked"]


class Waits:
    """The waits of all tickets, found by time."""

    def __init__(self, waits: Iterable[Wait]) -> None:
        known = list(waits)
        times = [t for wait in known for t in (wait.earliest, wait.latest) if math.isfinite(t)]
        self._first, self._last = int(min(times, default=0)), int(max(times, default=0))
        self._seconds: dict[int, list[Wait]] = defaultdict(list)
        self._own: dict[str, list[Wait]] = defaultdict(list)
        for wait in known:
            self._own[wait.ticket].append(wait)
            for second in self._between(wait.earliest, wait.latest):
                self._seconds[second].append(wait)

    def _between(self, start: float, end: float) -> range:
        return range(int(max(start, self._first)), int(min(end, self._last)) + 1)

    def of(self, ticket: str, attempt: int) -> Wait | None:
        """Return one wait of a ticket."""
        return next((wait for wait in self._own.get(ticket, ()) if wait.attempt == attempt), None)

    def around(self, start: float, end: float) -> set[Wait]:
        """Return those that may have stood in the line between the two times."""
        found = {wait for second in self._between(start, end) for wait in self._seconds[second]}
        return {wait for wait in found if wait.possibly(start, end)}


class Checked(NamedTuple):
    """What was wrong, and how much there was to look at."""

    faults: list[Fault]
    accepted: int
    starts: int
    orders: int
    positions: int


def check(events: Collection[Event]) -> Checked:
    """Look for everything that must not have happened."""
    told: dict[str, Told] = {}
    submitted: dict[str, float] = {}
    for event in events:
        if event["what"] == "submitted":
            submitted[event["request"]] = event["at"]
        elif event.get("ticket") is not None:
            one = told.setdefault(event["ticket"], Told(event["ticket"]))
            one.events[event["what"]].append(event)
    faults = [fault for one in told.values() for fault in (*_kept(one), *_doubled(one), *_answers(one))]
    faults += _keys(events)
    waits = Waits(wait for one in told.values() for wait in one.waits(submitted))
    orders = positions = 0
    for one in told.values():
        for event in one.events["claimed"]:
            orders += 1
            faults += _order(one, event, waits)
        for event in one.events["seen"]:
            if event["position"] is not None:
                positions += 1
                faults += _position(one, event, waits)
    accepted = sum(bool(one.events["accepted"]) for one in told.values())
    return Checked(faults, accepted, sum(len(one.events["started"]) for one in told.values()), orders, positions)


def _kept(one: Told) -> Iterator[Fault]:
    """A ticket that was promised has a row at once, and is final at the end."""
    accepted = one.first("accepted")
    if accepted is None:
        return
    seen = [event for event in one.events["seen"] if event["asked"] >= accepted["at"]]
    if any(event["state"] is None for event in seen):
        yield Fault("not kept", one.ticket, "a client got a 202, and later there was no such ticket")
    elif not seen or seen[-1]["state"] not in FINAL:
        state = seen[-1]["state"] if seen else "never looked at"
        yield Fault("lost", one.ticket, f"a client got a 202, and at the end the ticket was {state}")
    else:
        yield from _deserved(one, seen[-1]["state"])


def _deserved(one: Told, state: str) -> Iterator[Fault]:
    """Nobody cancels, and no app fails: what was promised has its answer, unless its workers ended too often."""
    listed = one.first("listed")
    retries = listed["retries"] if listed is not None else 0
    if state == "cancelled":
        yield Fault("lost", one.ticket, "a client got a 202, and it was cancelled by nobody")
    elif state == "completed" and not one.events["answer"]:
        yield Fault("lost", one.ticket, "it was completed, and nobody could read its answer")
    elif state == "failed" and one.attempts() <= retries:
        yield Fault("lost", one.ticket, f"it failed after {one.attempts()} attempts and {retries + 1} were allowed")
    elif state == "failed" and retries and any(event["state"] == state for event in one.events["finished"]):
        yield Fault("lost", one.ticket, "a worker let it fail that lived, and it may run again")


def _doubled(one: Told) -> Iterator[Fault]:
    """A ticket ends once, and runs no more often than its crashes and its workers' leaving allow."""
    finished = [f"{event['state']} in attempt {event['attempt']}" for event in one.events["finished"]]
    if len(finished) > 1:
        yield Fault("doubled", one.ticket, f"it ended more than once: {', '.join(finished)}")
    if any(event["attempt"] < one.attempts() for event in one.events["finished"]):
        yield Fault("doubled", one.ticket, f"it ended {', '.join(finished)}, and was in attempt {one.attempts()}")
    ends = list(dict.fromkeys(event["state"] for event in one.events["seen"] if event["state"] in FINAL))
    later = [event["state"] for event in one.events["seen"]]
    first = next((number for number, state in enumerate(later) if state in FINAL), len(later))
    if len(ends) > 1 or set(later[first:]) - {*ends, None}:
        yield Fault("doubled", one.ticket, f"it changed after its end: {', '.join(map(str, later[first:]))}")
    starts = [event["attempt"] for event in one.events["started"]]
    if len(starts) > len(set(starts)):
        yield Fault("doubled", one.ticket, f"an attempt ran more than once: {starts}")
    listed = one.first("listed")
    released = {event["attempt"] for event in one.events["releasing"]}
    if listed is not None and len(set(starts)) > 1 + listed["retries"] + len(released):
        yield Fault(
            "doubled",
            one.ticket,
            f"it ran in attempts {starts}; {listed['retries']} crashes and {len(released)} returns were allowed",
        )


def _answers(one: Told) -> Iterator[Fault]:
    """The app is called with, and the client gets, what belongs to the ticket's own request."""
    accepted = one.first("accepted")
    for event in (*one.events["started"], *one.events["answer"]):
        if accepted is not None and event["request"] != accepted["request"]:
            yield Fault(
                "wrong answer",
                one.ticket,
                f"{event['what']} for request {event['request']}, and it was {accepted['request']}",
            )


def _keys(events: Collection[Event]) -> Iterator[Fault]:
    """A request that is sent again with its key is one ticket, and gets its own answer."""
    tickets: dict[str, set[str]] = defaultdict(set)
    keyed = {event["request"] for event in events if event["what"] == "submitted" and event.get("keyed")}
    for event in events:
        if event["what"] in {"accepted", "started"} and event["request"] in keyed:
            tickets[event["request"]].add(event["ticket"])
        elif event["what"] == "answered" and event["other"] != event["request"]:
            yield Fault("wrong answer", "", f"request {event['request']} got the answer to {event['other']}")
    for same in tickets.values():
        if len(same) > 1:
            yield Fault("doubled", min(same), f"one key, and the tickets {', '.join(sorted(same))}")


def _order(one: Told, claim: Event, waits: Waits) -> Iterator[Fault]:
    """Nobody is claimed while somebody better waits whose route could run."""
    own = waits.of(one.ticket, claim["attempt"] - 1)
    if own is None:
        return
    for other in waits.around(claim["asked"], claim["at"]):
        if other.rank < own.rank and other.route in claim["routes"] and other.surely(claim["asked"], claim["at"]):
            yield Fault(
                "out of order", one.ticket, f"claimed at {own.rank}, while {other.ticket} waited at {other.rank}"
            )
            return


def _position(one: Told, seen: Event, waits: Waits) -> Iterator[Fault]:
    """A position counts those that waited before the ticket at one moment between question and answer."""
    own = waits.of(one.ticket, seen["attempt"])
    asked, at = seen["asked"], seen["at"]
    if own is None or not own.surely(asked, at):
        return  # it may have been claimed while it was looked up
    better = [wait for wait in waits.around(asked, at) if wait.rank < own.rank]
    least = len({wait.ticket for wait in better if wait.surely(asked, at)}) + 1
    most = len({wait.ticket for wait in better}) + 1
    if not least <= seen["position"] <= most:
        yield Fault("position", one.ticket, f"told {seen['position']}, and it was {least} to {most}")

"""The checker finds each fault that is planted in a history, and none in a sound one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.history import Event, Writer, check, read


def event(what: str, at: float, ticket: str = "a", **more: Any) -> Event:
    """Return one event."""
    return {"what": what, "at": at, "ticket": ticket, **more}


def submitted(ticket: str, at: float, rank: float, *, route: str = "r", retries: int = 1) -> list[Event]:
    """A ticket is put into the line; its request has its name."""
    return [
        event("submitted", at, request=ticket),
        event("put", at + 0.1, ticket),
        event("accepted", at + 0.2, ticket, request=ticket),
        event("listed", 1000.0, ticket, rank=[0, rank, rank], route=route, retries=retries),
    ]


def claimed(ticket: str, at: float, attempt: int = 1, routes: tuple[str, ...] = ("r",)) -> list[Event]:
    """A ticket is claimed, and the app called."""
    return [
        event("claimed", at, ticket, attempt=attempt, asked=at - 0.1, routes=list(routes)),
        event("started", at + 0.1, ticket, attempt=attempt, request=ticket),
    ]


def seen(ticket: str, at: float, state: str | None, position: int | None = None, attempt: int = 0) -> Event:
    """A client looks."""
    return event("seen", at, ticket, asked=at - 0.1, state=state, position=position, attempt=attempt)


def ended(ticket: str, at: float, attempt: int = 1) -> list[Event]:
    """A ticket is completed, its client looks and reads the answer."""
    return [
        event("finished", at, ticket, attempt=attempt, state="completed"),
        seen(ticket, at + 0.5, "completed", attempt=attempt),
        event("answer", at + 0.6, ticket, request=ticket),
    ]


def sound() -> list[Event]:
    """Two tickets: ``b`` waits behind ``a``, whose first worker dies, and moves up when it is claimed."""
    return [
        *submitted("a", 0, rank=1),
        *submitted("b", 1, rank=2),
        seen("a", 2, "queued", 1),
        seen("b", 2, "queued", 2),
        *claimed("a", 3),
        seen("b", 4, "queued", 1),
        seen("a", 6, "queued", 1, attempt=1),
        seen("b", 6.5, "queued", 2),
        *claimed("a", 7, attempt=2),
        seen("b", 8, "queued", 1),
        *claimed("b", 9),
        *ended("a", 10, attempt=2),
        *ended("b", 11),
    ]


def test_nothing_is_found_in_a_sound_history() -> None:
    """Catches: a checker that takes a crash, its second attempt or a step back by it for a fault."""
    found = check(sound())
    assert found.faults == []
    assert (found.accepted, found.starts, found.orders, found.positions) == (2, 3, 3, 6)


def without(ticket: str, *whats: str) -> list[Event]:
    """The sound history without these events of a ticket."""
    return [one for one in sound() if one.get("ticket") != ticket or one["what"] not in whats]


def replaced(number: int, **changes: Any) -> list[Event]:
    """The sound history with something changed in one event."""
    events = sound()
    return [*events[:number], {**events[number], **changes}, *events[number + 1 :]]


def at(what: str, ticket: str, turn: int = 0) -> int:
    """Where the n-th event of a kind stands in the sound history."""
    return [n for n, one in enumerate(sound()) if (one["what"], one.get("ticket")) == (what, ticket)][turn]


PLANTED: dict[str, tuple[str, str, list[Event]]] = {
    "never final": ("lost", "b", [one for one in sound() if one["at"] < 8.9 or one.get("ticket") != "b"]),
    "never looked at": ("lost", "b", without("b", "seen", "finished")),
    "a 202 without a row": (
        "not kept",
        "b",
        [*without("b", "claimed", "started", "finished", "seen"), seen("b", 9, None)],
    ),
    "cancelled by nobody": ("lost", "a", [*submitted("a", 0, rank=1), seen("a", 5, "cancelled")]),
    "failed and never run": ("lost", "a", [*submitted("a", 0, rank=1, retries=0), seen("a", 5, "failed")]),
    "failed too early": (
        "lost",
        "a",
        [*submitted("a", 0, rank=1), *claimed("a", 3), seen("a", 5, "failed", attempt=1)],
    ),
    "failed while its worker lived": (
        "lost",
        "a",
        [
            *submitted("a", 0, rank=1),
            *claimed("a", 3),
            *claimed("a", 4, 2),
            event("finished", 5, attempt=2, state="failed"),
            seen("a", 6, "failed", attempt=2),
        ],
    ),
    "an answer that nobody can read": ("lost", "b", without("b", "answer")),
    "ended by an attempt that was over": (
        "doubled",
        "a",
        [*submitted("a", 0, rank=1), *claimed("a", 3), *claimed("a", 4, 2), *ended("a", 8)],
    ),
    "gone after its end": ("not kept", "a", [*sound(), seen("a", 20, None)]),
    "finished twice": ("doubled", "a", [*sound(), event("finished", 12, attempt=2, state="failed")]),
    "another end": ("doubled", "a", [*sound(), seen("a", 20, "failed", attempt=2)]),
    "in the line after its end": (
        "doubled",
        "a",
        [*sound(), seen("a", 20, "queued", attempt=2), *ended("a", 21, 3)[1:]],
    ),
    "one run too many": ("doubled", "b", [*sound(), *claimed("b", 12, 2), *claimed("b", 13, 3)]),
    "a crash that is not allowed": ("doubled", "a", replaced(at("listed", "a"), retries=0)),
    "an attempt that ran twice": ("doubled", "b", [*sound(), event("started", 9.5, "b", attempt=1, request="b")]),
    "somebody better waited": (
        "out of order",
        "a",
        [
            *submitted("a", 0, rank=2),
            *submitted("b", 1, rank=1),
            *claimed("a", 5),
            *claimed("b", 6),
            *ended("a", 7),
            *ended("b", 7),
        ],
    ),
    "somebody better had come back": (
        "out of order",
        "b",
        [
            *submitted("a", 0, rank=1),
            *submitted("b", 1, rank=2),
            *claimed("a", 3),
            seen("a", 4, "queued", attempt=1),
            *claimed("b", 5),
            *claimed("a", 6, 2),
            *ended("a", 7, 2),
            *ended("b", 7),
        ],
    ),
    "two at one position": ("position", "b", replaced(at("seen", "b"), position=1)),
    "a place too low": ("position", "a", replaced(at("seen", "a"), position=2)),
    "a rise while nobody came": ("position", "b", replaced(at("seen", "b", 3), position=2)),
    "a rise beyond who came": ("position", "b", replaced(at("seen", "b", 2), position=3)),
    "the answer to another": ("wrong answer", "a", replaced(at("answer", "a"), request="b")),
    "two tickets for one key": (
        "doubled",
        "a",
        [
            event("submitted", 0, request="x", keyed=True),
            *[{**one, "request": "x"} if "request" in one else one for one in sound() if one["what"] != "submitted"],
        ],
    ),
    "a key that finds another's answer": (
        "wrong answer",
        "",
        [*sound(), event("answered", 12, request="a", other="b")],
    ),
    "called with another's request": ("wrong answer", "b", replaced(at("started", "b"), request="a")),
}


@pytest.mark.parametrize(("kind", "ticket", "events"), PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_found(kind: str, ticket: str, events: list[Event]) -> None:
    """Catches: a checker that is blind to one of the faults, or sees it as another, or elsewhere too."""
    assert {(fault.kind, fault.ticket) for fault in check(events).faults} == {(kind, ticket)}


ALLOWED: dict[str, list[Event]] = {
    "a worker that left gave it back": [
        *submitted("a", 0, rank=1, retries=0),
        *claimed("a", 3),
        event("releasing", 4, attempt=1),
        *claimed("a", 5, 2),
        *ended("a", 6, 2),
    ],
    "a worker that left let fail what may not run again": [
        *submitted("a", 0, rank=1, retries=0),
        *claimed("a", 3),
        event("finished", 5, attempt=1, state="failed"),
        seen("a", 6, "failed", attempt=1),
    ],
    "its workers died too often, and one left no word": [
        *submitted("a", 0, rank=1),
        *claimed("a", 3),
        seen("a", 6, "failed", attempt=2),
    ],
    "the better one's route was full": [
        *submitted("a", 0, rank=2),
        *submitted("b", 1, rank=1, route="full"),
        *claimed("a", 5),
        *claimed("b", 6, routes=("r", "full")),
        *ended("a", 7),
        *ended("b", 7),
    ],
    "the better one came while the other was claimed": [
        *submitted("a", 0, rank=2),
        *submitted("b", 4.85, rank=1),
        *claimed("a", 5),
        *claimed("b", 6),
        *ended("a", 7),
        *ended("b", 7),
    ],
    "who died left no word of the claim": [
        *submitted("a", 0, rank=1),
        *submitted("b", 1, rank=2),
        *claimed("b", 5),
        *claimed("a", 6, 2),
        *ended("a", 7, 2),
        *ended("b", 7),
    ],
    "who died left no word of the request": [
        *[one for one in submitted("a", 0, rank=1) if one["what"] == "listed"],
        *submitted("b", 1, rank=2),
        seen("b", 2, "queued", 2),
        *claimed("a", 3),
        seen("b", 4, "queued", 1),
        *claimed("b", 6),
        *ended("a", 7),
        *ended("b", 7),
    ],
    "claimed while it was looked up": [
        *submitted("a", 0, rank=1),
        *submitted("b", 1, rank=2),
        seen("b", 5, "queued", 1),
        *claimed("b", 5.05),
        *claimed("a", 4.9),
        *ended("a", 7),
        *ended("b", 7),
    ],
}


@pytest.mark.parametrize("events", ALLOWED.values(), ids=ALLOWED)
def test_what_may_be_is_not_called_a_fault(events: list[Event]) -> None:
    """Catches: a checker that is surer than the events are, and so fails runs in which nothing went wrong."""
    assert check(events).faults == []


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Catches: a line that a kill cut short, and that takes the next one along."""
    file = tmp_path / "history"
    one, two = Writer(file), Writer(file)
    one.note("put", ticket="a", at=1.0)
    with file.open("a") as torn:
        torn.write('{"what": "put", "tick')
    two.note("put", ticket="b", at=2.0)
    one.note("put", ticket="c\n", at=3.0)
    with file.open("a") as torn:
        torn.write('{"what": "pu')
    one.close()
    two.close()
    assert [one["ticket"] for one in read(file)] == ["a", "b", "c\n"]
    assert json.loads(file.read_text().splitlines()[0]) == {"what": "put", "ticket": "a", "at": 1.0}

"""Decide what happens to a matching request: run it now, or give it a place in the line."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class Mode(str, enum.Enum):
    """How the line behaves (``[admission] mode``)."""

    AUTO = "auto"  # queue above the load threshold
    QUEUE_ALL = "queue_all"  # queue every matching request
    PASS_THROUGH = "pass_through"  # queue nothing; what waits is still replayed
    SHADOW = "shadow"  # decide and count, but always let through


class Verdict(enum.Enum):
    """What is done with a request."""

    PASS = "pass"  # not ours: the app, without a slot
    RUN = "run"  # the app at once, holding a slot
    QUEUE = "queue"  # a ticket


@dataclass(frozen=True)
class Decision:
    """A verdict and the reason for it, one word: mode, paused, line, slots, cpu, memory, or idle."""

    verdict: Verdict
    reason: str


class LoadView(Protocol):
    """What a decision needs of the load."""

    @property
    def above(self) -> str:
        """The name of the first sensor that is above its threshold, or an empty string."""


@dataclass(frozen=True)
class Line:
    """What waits that a newcomer must not overtake.

    :param waiting: queued tickets of the newcomer's or a better tier that could use a free slot.
    :param paused: an operator has stopped the line: nothing starts, and nobody goes past it.
    """

    waiting: int
    paused: bool = False


_IDLE = Decision(Verdict.RUN, "idle")
_PAUSED = Decision(Verdict.QUEUE, "paused")
_WAITING = Decision(Verdict.QUEUE, "line")
_BY_MODE = Decision(Verdict.QUEUE, "mode")
_PASS = Decision(Verdict.PASS, "mode")
# Python before 3.12 takes longer for a member of an enumeration than for all the rest of `decide`.
_QUEUE_ALL, _PASS_THROUGH = Mode.QUEUE_ALL, Mode.PASS_THROUGH


def decide(mode: Mode, load: LoadView, line: Line) -> Decision:
    """Return the verdict on a newcomer.

    In shadow mode this is what would have happened; the caller lets the request through all the same.
    """
    if mode is _QUEUE_ALL:
        return _BY_MODE
    if mode is _PASS_THROUGH:
        return _PASS
    if line.paused:
        return _PAUSED
    if line.waiting:
        return _WAITING
    if load.above:
        return Decision(Verdict.QUEUE, load.above)
    return _IDLE

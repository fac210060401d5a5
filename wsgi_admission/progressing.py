"""Progress: what the app says of a replayed call while it runs, and whether anybody still waits for its end.

The app calls `progress` and `cancelled`; neither raises because of the store.  What it says is only noted there, and
the housekeeper writes the last of it to the store (see process.py), so that a slow store never holds the app up.

The run that a call belongs to is found by a context variable.  A thread that the app starts has a context of its own:
it is given ``environ["wsgi_admission.progress"]`` and ``environ["wsgi_admission.cancelled"]``, or runs in a copy of
the context (``contextvars.copy_context``; ``asyncio.to_thread`` makes one by itself).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, SupportsFloat

from wsgi_admission.errors import LeaseLost, StoreError, TicketError
from wsgi_admission.ticket import State, Ticket

#: Seconds between writes of one run's progress, and for which an answer of `cancelled` counts.
INTERVAL = 0.25
#: The longest note, in characters.
LONGEST_NOTE = 200
PROGRESS_KEY, CANCELLED_KEY = "wsgi_admission.progress", "wsgi_admission.cancelled"
#: Not printable by Python's reckoning, but harmless: the hard blank, and what joins letters and emoji.
_HARMLESS = "\u00a0\u200c\u200d"


class Progress:
    """What one attempt says of itself.  Safe to use from several threads.

    :param write: takes the fraction and the note to the store; raises as `Store.progress` does.
    :param look: returns the ticket as it is now; raises as `Store.get` does.
    :param attempt: the attempt that this is.
    :param clock: returns seconds of a clock that does not jump.
    """

    def __init__(
        self,
        write: Callable[[float, str], None],
        look: Callable[[], Ticket],
        attempt: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._look = look
        self._attempt = attempt
        self._clock = clock
        self._writing = threading.Lock()
        self._said: tuple[float, str] | None = None
        self._written: tuple[float, str] | None = None
        self._unwanted = False
        self._looked = -math.inf

    def report(self, fraction: float, note: str = "") -> None:
        """Do what the function `progress` says, for this run."""
        self._said = _checked(fraction, note)

    def cancelled(self) -> bool:
        """Do what the function `cancelled` says, for this run."""
        now = self._clock()
        if self._unwanted or now - self._looked < INTERVAL:
            return self._unwanted
        self._looked = now
        try:
            ticket = self._look()
        except TicketError:
            self._unwanted = True
        except StoreError:
            pass  # nobody can know; the work goes on
        else:
            ours = ticket.state is State.PROCESSING and ticket.attempt == self._attempt
            self._unwanted = ticket.cancelling or not ours
        return self._unwanted

    def flush(self) -> None:
        """Take the last of what was said to the store, if it is not there; what fails is tried again next time."""
        with self._writing:  # or an older value could be written last
            said = self._said
            if said is None or said == self._written or self._unwanted:
                return
            try:
                self._write(*said)
                self._written = said
            except LeaseLost:
                self._unwanted = True
            except StoreError:
                pass

    @property
    def environ(self) -> dict[str, Any]:
        """What the environ of the call gets."""
        return {PROGRESS_KEY: self.report, CANCELLED_KEY: self.cancelled}


_current: ContextVar[Progress | None] = ContextVar("wsgi_admission.progress", default=None)


@contextmanager
def current(run: Progress) -> Iterator[None]:
    """Have `progress` and `cancelled` speak of this run, in this context."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def progress(fraction: float, note: str = "") -> None:
    """Say how far the request in hand is; whoever waits for it is shown that.

    It costs microseconds and may be called as often as is handy: about every quarter of a second the last value is
    written down.  For a request that was not queued, and outside of any, it does nothing but check its parameters.

    :param fraction: 0 to 1; what is beyond that is taken for the nearer of the two.
    :param note: a few words for people, such as ``step 20 of 50``; control characters become blanks, and more than
        200 characters are cut.
    :raises TypeError: for a fraction that is no number or a note that is no text.
    :raises ValueError: for a fraction that is not finite.
    """
    run = _current.get()
    if run is None:
        _checked(fraction, note)
    else:
        run.report(fraction, note)


def cancelled() -> bool:
    """Return whether nobody waits for the request in hand any more, so that the app may give it up.

    That is when its cancellation was asked for, or when it was taken from this process and belongs to another attempt;
    the answer of the app is dropped in both cases.  It may be a quarter of a second old.  It is False for a
    request that was not queued, outside of any, and while the store does not answer.
    """
    run = _current.get()
    return run is not None and run.cancelled()


#: What the environ of a request gets that matches a route and runs at once.
NOT_QUEUED = {PROGRESS_KEY: progress, CANCELLED_KEY: cancelled}


def _checked(fraction: object, note: object) -> tuple[float, str]:
    if not isinstance(fraction, SupportsFloat):
        raise TypeError(f"progress: the fraction is a number from 0 to 1, not {fraction!r:.80}")
    if not isinstance(note, str):
        raise TypeError(f"progress: the note is a text, not {note!r:.80}")
    try:
        number = float(fraction)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"progress: the fraction is a number from 0 to 1, not {number}")
    if len(note) > LONGEST_NOTE:
        note = f"{note[: LONGEST_NOTE - 1]}…"
    if not note.isprintable():
        note = "".join(c if c.isprintable() or c in _HARMLESS else " " for c in note)
    return min(1.0, max(0.0, number)), note.strip()

"""Server-sent events about one ticket, as WHATWG's EventSource reads them.

The identity of an event is the ticket's state.  A browser that comes back says which was the last that it got: after
the final one there is nothing more to tell.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsgi_admission.errors import AdmissionError
from wsgi_admission.ticket import State
from wsgi_admission.web.answers import Environ, StartResponse, shared_headers
from wsgi_admission.web.holding import Seat

EVENT_STREAM = "text/event-stream"

#: Seconds between two events of one stream, at the least.
SPACING = 0.5
#: Seconds of silence after which a comment is sent.
BEAT = 15.0
#: Seconds between the two halves of a comment.  The first write to a client that has gone often succeeds, and only
#: what it is answered with lets the second one fail.
HALF = 0.5
#: Milliseconds after which a browser comes back when its stream ends because this process leaves.
SOON = 1000

#: Seconds after which it does, at the latest, when its stream is lost: they are no more than a process has threads.
LOST = 5

#: What does not count as news: the advice has jitter, and a wait that shrinks by a second is told in words.
_ADVICE = frozenset({"retry_suggestion"})
_SECONDS = frozenset({"estimated_wait_time", "estimated_wait_p90"})


@dataclass
class View:
    """What the owner of a ticket sees of it, and the headers that go with that."""

    data: dict[str, Any]
    headers: list[tuple[str, str]]
    state: State

    @property
    def final(self) -> bool:
        """Whether it stays so."""
        return self.state.final

    @cached_property
    def tag(self) -> str:
        """The entity tag: another one when anything but the advice has changed."""
        return f'"{self._digest(_ADVICE)}"'

    @cached_property
    def news(self) -> str:
        """The same as long as nothing has changed for which one would wake somebody up."""
        return self._digest(_ADVICE | _SECONDS)

    def _digest(self, without: frozenset[str]) -> str:
        steady = repr([item for item in self.data.items() if item[0] not in without])
        return hashlib.blake2b(steady.encode(), digest_size=12).hexdigest()


def event_text(view: View, *, at_most: int = 300) -> str:
    """Return the event that tells of a view.

    :param at_most: seconds after which the browser comes back when this answer has ended, if the advice is longer.
    """
    seconds = min(at_most, int(dict(view.headers).get("Retry-After", "1")))
    return f"retry: {seconds * 1000}\nid: {view.state.value}\nevent: status\ndata: {json.dumps(view.data)}\n\n"


class Stream:
    """An answer that goes on: one event at once, one for each change, and the end after the final one.

    :param view: what is seen now, and ``token`` the store's token of before that was read.
    :param seat: is freed when the stream is closed.
    :param look: returns the token and the view anew.
    :param clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        view: View,
        token: Hashable,
        seat: Seat,
        look: Callable[[], tuple[Hashable, View]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view = view
        self._token = token
        self._seat = seat
        self._look = look
        self._clock = clock

    def send(self, _environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the WSGI call."""
        # nginx would collect the events before it passes them on.
        own = [("Content-Type", EVENT_STREAM), ("X-Accel-Buffering", "no"), *self._view.headers]
        start_response("200 OK", shared_headers(own))
        return self

    def __iter__(self) -> Iterator[bytes]:
        seat, view, token = self._seat, self._view, self._token
        yield event_text(view, at_most=LOST).encode()
        wrote = self._clock()
        while not view.final:
            seat.rest(token, wrote + BEAT - self._clock())
            if seat.leaving:
                yield f"retry: {SOON}\n\n".encode()
                return
            told = view.tag
            try:
                token, view = self._look()
            except AdmissionError:
                return  # the browser comes back, and is told then
            if view.tag != told:
                yield event_text(view, at_most=LOST).encode()
            elif self._clock() - wrote >= BEAT:
                yield b":\n"
                seat.pause(HALF)
                yield b"\n"
            else:
                continue
            wrote = self._clock()

    def close(self) -> None:
        """Free the seat; the server calls this also when the client has gone."""
        self._seat.close()

"""The calls of the queue API that are about one ticket.

They answer for every ticket of the line, whichever process or machine accepted or runs it.  A ticket of a
signed-in client answers to that client only; to everybody else it does not exist.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable

from wsgi_admission.errors import UnknownTicket
from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web.answers import Answer, Environ, Recorded, Sendable, json_answer, not_modified, problem
from wsgi_admission.web.outlook import Forecast
from wsgi_admission.web.views import Views

log = logging.getLogger("wsgi_admission.api")


class Tickets:
    """Answers for tickets; the parameters are those of `Api`."""

    def __init__(
        self, store: Store, identify: Resolver, forecast: Forecast, views: Views, *, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._identify = identify
        self._forecast = forecast
        self._views = views
        self._clock = clock

    def find(self, environ: Environ, ticket_id: str) -> Ticket:
        """Return a ticket that answers to whoever sent the request.  Raises as `Store.get` does."""
        ticket = self._store.get(ticket_id)
        if ticket.owner and ticket.owner != self._identify(environ).owner:
            raise UnknownTicket(ticket_id)
        return ticket

    def admitted(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Answer a request that was queued."""
        if ticket.state.final:
            return self.result(environ, ticket)
        data, headers = self._views.accepted(environ, ticket)
        return json_answer(202, data, *headers)

    def status(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Tell where the ticket stands."""
        data, headers = self._views.status(environ, ticket)
        # The advice has jitter: it says nothing new.
        steady = repr([item for item in data.items() if item[0] != "retry_suggestion"])
        tag = f'"{hashlib.blake2b(steady.encode(), digest_size=12).hexdigest()}"'
        headers.append(("ETag", tag))
        if not_modified(environ, tag):
            return Answer(304, headers, b"")
        return json_answer(200, data, *headers)

    def result(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Give the app's own answer, once it is there."""
        if not ticket.state.final:
            data, headers = self._views.status(environ, ticket)
            return json_answer(202, data, *headers, ("Location", data["result_url"]))
        if ticket.state is State.CANCELLED:
            return problem(410, "The request was cancelled; it has no result.")
        response = self._store.response(ticket.id)
        if response is None:
            return problem(500, ticket.error or "The request failed without an answer.")
        return Recorded(response, _timing(ticket))

    def cancel(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Cancel it, or ask for that."""
        ticket = self._store.cancel(ticket.id, now=self._clock())
        name = "ticket.cancelled" if ticket.state.final else "ticket.cancelling"
        event(log, name, ticket=ticket.id, route=ticket.route)
        data, headers = self._views.status(environ, ticket)
        return json_answer(200, data, *headers)

    def retry(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Run a failed request again, as a new ticket at the end of its client's."""
        now = self._clock()
        again = ticket.again(cost=self._forecast.expected(ticket.route, now=now), now=now)
        again = self._store.retry(ticket.id, again, now=now)
        event(log, "ticket.queued", ticket=again.id, route=again.route, tier=again.tier, retry_of=ticket.id)
        data, headers = self._views.accepted(environ, again)
        return json_answer(202, data, *headers)

    def events(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Send one event and close: an EventSource comes back by itself, after the advised time."""
        if ticket.state.final and environ.get("HTTP_LAST_EVENT_ID") == ticket.state.value:
            return Answer(204, [], b"")  # the one answer after which an EventSource stays away
        data, headers = self._views.status(environ, ticket)
        seconds = int(dict(headers).get("Retry-After", "1"))
        text = f"retry: {seconds * 1000}\nid: {ticket.state.value}\nevent: status\ndata: {json.dumps(data)}\n\n"
        return Answer(200, [("Content-Type", "text/event-stream"), *headers], text.encode())


def _timing(ticket: Ticket) -> list[tuple[str, str]]:
    """Return the Server-Timing of a result: how long its request waited and how long the app ran, in milliseconds.

    The app's own Server-Timing stays as it is: the field may stand there more than once.
    """
    if ticket.started_at is None or ticket.completed_at is None:
        return []
    queue, run = ticket.started_at - ticket.created_at, ticket.completed_at - ticket.started_at
    # The time of day may have been set meanwhile.
    return [("Server-Timing", f"queue;dur={max(0.0, queue) * 1000:.0f}, app;dur={max(0.0, run) * 1000:.0f}")]

"""The calls of the queue API that are about one ticket.

They answer for every ticket of the line, whichever process or machine accepted or runs it.  A ticket of a
signed-in client answers to that client only; to everybody else it does not exist.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable

from wsgi_admission.errors import FinalTicket, UnknownTicket
from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web.answers import Answer, Environ, Recorded, Sendable, json_answer, not_modified, problem
from wsgi_admission.web.outlook import Forecast
from wsgi_admission.web.pages import foreign, prefers_html
from wsgi_admission.web.rooms import Rooms
from wsgi_admission.web.views import Views

log = logging.getLogger("wsgi_admission.api")

_FOREIGN = problem(403, "This form was sent from another site.")


class Tickets:
    """Answers for tickets; the parameters are those of `Api`."""

    def __init__(
        self,
        store: Store,
        identify: Resolver,
        forecast: Forecast,
        views: Views,
        rooms: Rooms,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._identify = identify
        self._forecast = forecast
        self._views = views
        self._rooms = rooms
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
        if prefers_html(environ):
            return self._rooms.admitted(environ, ticket)
        data, headers = self._views.accepted(environ, ticket)
        return json_answer(202, data, *headers)

    def status(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Tell where the ticket stands."""
        if prefers_html(environ):
            return self._rooms.status(environ, ticket)
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
            if prefers_html(environ):
                return self._rooms.status(environ, ticket, code=202)
            data, headers = self._views.status(environ, ticket)
            return json_answer(202, data, *headers, ("Location", data["result_url"]))
        if ticket.state is State.CANCELLED:
            return problem(410, "The request was cancelled; it has no result.")
        response = self._store.response(ticket.id)
        if response is None:
            if prefers_html(environ):
                return self._rooms.status(environ, ticket, code=500)
            return problem(500, ticket.error or "The request failed without an answer.")
        return Recorded(response)

    def cancel(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Cancel it, or ask for that."""
        ticket = self._store.cancel(ticket.id, now=self._clock())
        name = "ticket.cancelled" if ticket.state.final else "ticket.cancelling"
        event(log, name, ticket=ticket.id, route=ticket.route)
        data, headers = self._views.status(environ, ticket)
        return json_answer(200, data, *headers)

    def cancel_form(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Do what `cancel` does, for a form, and lead back to the page."""
        if foreign(environ):
            return _FOREIGN
        try:
            self.cancel(environ, ticket)
        except FinalTicket:
            pass  # the page tells what became of it
        return self._rooms.lead(environ, f"status/{ticket.id}")

    def retry(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Run a failed request again, as a new ticket at the end of its client's."""
        page = prefers_html(environ)
        if page and foreign(environ):
            return _FOREIGN
        now = self._clock()
        again = ticket.again(cost=self._forecast.expected(ticket.route, now=now), now=now)
        again = self._store.retry(ticket.id, again, now=now)
        event(log, "ticket.queued", ticket=again.id, route=again.route, tier=again.tier, retry_of=ticket.id)
        if page:
            return self._rooms.lead(environ, f"status/{again.id}")
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

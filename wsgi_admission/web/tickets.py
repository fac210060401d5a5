"""The calls of the queue API that are about one ticket.

They answer for every ticket of the line, whichever process or machine accepted or runs it.  A ticket of a
signed-in client answers to that client only; to everybody else it does not exist.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Hashable
from contextlib import closing, suppress
from functools import partial
from urllib.parse import urlsplit

from wsgi_admission.errors import BodyTooLarge, FinalTicket, NotRetryable, StoreError, UnknownTicket
from wsgi_admission.logs import event
from wsgi_admission.receiving import receive
from wsgi_admission.recording import address
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web.answers import Answer, Environ, Recorded, Sendable, json_answer, not_modified, problem
from wsgi_admission.web.events import EVENT_STREAM, SPACING, Stream, View, event_text
from wsgi_admission.web.holding import Readers, Seat
from wsgi_admission.web.outlook import Forecast
from wsgi_admission.web.pages import foreign, navigates, prefers_html
from wsgi_admission.web.preferences import Applied, asked_wait, preferences
from wsgi_admission.web.results import address_of, page_address
from wsgi_admission.web.rooms import Rooms
from wsgi_admission.web.views import Views

log = logging.getLogger("wsgi_admission.api")

#: Seconds between two looks at whether a ticket is final, which cost little.
SHORT_SPACING = 0.1
_FOREIGN = problem(403, "This form was sent from another site.")


class Tickets:
    """Answers for tickets; the parameters are those of `Api`.

    :param longest_body: bytes of a body that are read of a client before it is sent on with it.
    """

    def __init__(
        self,
        store: Store,
        identify: Resolver,
        forecast: Forecast,
        views: Views,
        rooms: Rooms,
        readers: Readers,
        *,
        clock: Callable[[], float],
        longest_body: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._identify = identify
        self._forecast = forecast
        self._views = views
        self._rooms = rooms
        self._clock = clock
        self._longest_body = longest_body
        self._monotonic = monotonic
        self.readers = readers

    def find(self, environ: Environ, ticket_id: str) -> Ticket:
        """Return a ticket that answers to whoever sent the request.  Raises as `Store.get` does."""
        ticket = self._store.get(ticket_id)
        if ticket.owner and ticket.owner != self._identify(environ).owner:
            raise UnknownTicket(ticket_id)
        return ticket

    def admitted(self, environ: Environ, ticket: Ticket, *, ask: bool = True, patience: float = 0.0) -> Sendable:
        """Answer a request that was queued; if its client prefers to wait, after that.

        :param ask: whether the store is asked for its place; not when it was slow already.
        :param patience: seconds to wait for its end if the client does not say how long.
        """
        wanted = preferences(environ)
        applied = ["respond-async"] if wanted.respond_async else []
        if ask and (wanted.wait or patience) and not ticket.state.final:
            try:
                later, seconds = self._until_final(environ, ticket, wanted.wait or patience)
                applied += [f"wait={seconds:.0f}"] if seconds and wanted.wait else []
                if later.state.final:
                    return self._applied(self._result(environ, later), applied[-1:])
            except StoreError:
                pass  # it is in the line all the same, and whoever is told of an error sends it again
        if ticket.state.final:
            return self._result(environ, ticket)
        if prefers_html(environ):
            return self._applied(self._rooms.admitted(environ, ticket, ask=ask), applied)
        data, headers = self._views.accepted(environ, ticket, ask=ask)
        return self._applied(json_answer(202, data, *headers), applied)

    @staticmethod
    def _applied(answer: Sendable, applied: list[str]) -> Sendable:
        return Applied(answer, ", ".join(applied)) if applied else answer

    def status(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Tell where the ticket stands; with ``?wait=`` when that has changed."""
        if prefers_html(environ):
            return self._rooms.status(environ, ticket)
        wait = asked_wait(environ)
        token, view = self._look(environ, ticket.id) if wait else (None, self._view(environ, ticket))
        known = "HTTP_IF_NONE_MATCH" not in environ or not_modified(environ, view.tag)
        if wait and known and not view.final and (seat := self.readers.seat(environ, spacing=SPACING)):
            with closing(seat):
                view = self._next_view(environ, ticket.id, token, view, seat, wait)
        headers = [*view.headers, ("ETag", view.tag)]
        if not_modified(environ, view.tag):
            return Answer(304, headers, b"")
        return json_answer(200, view.data, *headers)

    def result(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Give the app's own answer, once it is there; with ``?wait=`` as soon as it is.

        A browser is led to the address at which the page's relative links work.
        """
        if wait := asked_wait(environ):
            ticket, _ = self._until_final(environ, ticket, wait)
        answer = self._result(environ, ticket)
        if not isinstance(answer, Recorded):
            return answer
        if "redirect=manual" in environ.get("QUERY_STRING", "").split("&"):
            return _telling(environ, answer)
        if navigates(environ) and (below := page_address(answer.response)):
            answer.response.body.close()
            return self._rooms.lead(environ, f"result/{ticket.id}", below)
        return answer

    def below_result(self, environ: Environ, ticket: Ticket, path: str) -> Sendable:
        """Give the app's answer at its own path and query; lead from all others to the same ones of the site.

        So the links, pictures and forms of a page mean what they meant at the address that was asked.

        :param path: what stands behind the ticket's id.
        """
        answer = self._result(environ, ticket) if ticket.state.final else None
        if not isinstance(answer, Recorded):
            raise UnknownTicket(ticket.id)
        asked, own = address(path, environ.get("QUERY_STRING", "")), address_of(answer.response)
        if asked == own and environ.get("REQUEST_METHOD") in {"GET", "HEAD"}:
            return answer
        answer.response.body.close()
        if not own:
            raise UnknownTicket(ticket.id)
        with suppress(BodyTooLarge):
            # Some servers reset the connection of whoever still sends, and the answer is lost.
            if body := receive(environ, max_body=self._longest_body):
                body.file.close()
        # One slash in front: with two a browser would take what follows for a host.
        asked = "/" + asked.lstrip("/")
        return Answer(307, [("Location", asked), ("Content-Type", "text/plain; charset=utf-8")], asked.encode())

    def _result(self, environ: Environ, ticket: Ticket) -> Sendable:
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
        # A cookie is often a session, into which nobody gets by having the address of an anonymous client's ticket.
        mine = self._identify(environ).client == ticket.client
        return Recorded(response, _timing(ticket), cookies=mine)

    def _until_final(self, environ: Environ, ticket: Ticket, seconds: float) -> tuple[Ticket, float]:
        """Return the ticket as it is when it is final, or after so many seconds, and the seconds that were granted."""
        seconds = min(seconds, self.readers.longest_hold)
        seat = None if ticket.state.final else self.readers.seat(environ, spacing=SHORT_SPACING)
        if seat is None:
            return ticket, 0.0
        with closing(seat):
            end = self._monotonic() + seconds
            while True:
                token = self._store.changed()
                ticket = self._store.get(ticket.id)
                left = end - self._monotonic()
                if ticket.state.final or left <= 0 or seat.leaving:
                    return ticket, seconds
                seat.rest(token, left)

    def _next_view(
        self, environ: Environ, ticket_id: str, token: Hashable, known: View, seat: Seat, seconds: float
    ) -> View:
        """Return what is seen of a ticket once that is news, or after so many seconds."""
        end = self._monotonic() + min(seconds, self.readers.longest_hold)
        view = known
        while view.news == known.news and not seat.leaving and (left := end - self._monotonic()) > 0:
            seat.rest(token, left)
            token, view = self._look(environ, ticket_id)
        return view

    def _look(self, environ: Environ, ticket_id: str) -> tuple[Hashable, View]:
        """Return what is seen of a ticket, and the store's token of change from before."""
        return self._store.changed(), self._view(environ, self._store.get(ticket_id))

    def _view(self, environ: Environ, ticket: Ticket) -> View:
        data, headers = self._views.status(environ, ticket)
        return View(data, headers, ticket.state)

    def events(self, environ: Environ, ticket: Ticket) -> Sendable:
        """Stream an event for each change; only one if too many wait already.

        An EventSource comes back by itself after a stream has ended, and stays away after a 204 only.
        """
        if ticket.state.final and environ.get("HTTP_LAST_EVENT_ID") == ticket.state.value:
            return Answer(204, [], b"")
        token, view = self._look(environ, ticket.id)
        seat = None if view.final else self.readers.seat(environ, spacing=SPACING)
        if seat is None:
            return Answer(200, [("Content-Type", EVENT_STREAM), *view.headers], event_text(view).encode())
        look = partial(self._look, environ, ticket.id)
        return Stream(view, token, seat, look, clock=self._monotonic)

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
        try:
            again = self._store.retry(ticket.id, again, now=now)
        except NotRetryable:
            # Whoever asks twice, perhaps because the first answer was lost, is told of the same new ticket.
            with suppress(UnknownTicket):
                again = self._store.get(again.id)
                return self._rooms.lead(environ, f"status/{again.id}") if page else self.admitted(environ, again)
            raise
        event(log, "ticket.queued", ticket=again.id, route=again.route, tier=again.tier, retry_of=ticket.id)
        if page:
            return self._rooms.lead(environ, f"status/{again.id}")
        data, headers = self._views.accepted(environ, again)
        return json_answer(202, data, *headers)


def _telling(environ: Environ, answer: Recorded) -> Sendable:
    """Return where the app wants the request to be sent again (307, 308), if that is on this host; else the answer.

    A browser would send what asked for the result there, which is a GET, and tell its script nothing of it.
    """
    head = json.loads(answer.response.head)
    location = next((value for name, value in head["headers"] if name.lower() == "location"), "")
    elsewhere = urlsplit(location).netloc not in {"", environ.get("HTTP_HOST")}
    if not head["status"].startswith(("307", "308")) or not location or elsewhere:
        return answer
    answer.response.body.close()
    # A browser that follows a redirect by itself takes the cookies of it.
    cookies = [(name, value) for name, value in head["headers"] if answer.cookies and name.lower() == "set-cookie"]
    return Answer(204, [("Location", location), ("Admission-Status", "redirect"), *cookies, *answer.headers], b"")


def _timing(ticket: Ticket) -> list[tuple[str, str]]:
    """Return the Server-Timing of a result: how long its request waited and how long the app ran, in milliseconds.

    The app's own Server-Timing stays as it is: the field may stand there more than once.
    """
    if ticket.started_at is None or ticket.completed_at is None:
        return []
    queue, run = ticket.started_at - ticket.created_at, ticket.completed_at - ticket.started_at
    # The time of day may have been set meanwhile.
    return [("Server-Timing", f"queue;dur={max(0.0, queue) * 1000:.0f}, app;dur={max(0.0, run) * 1000:.0f}")]

"""The queue API: one small WSGI app over a store.

It answers for every ticket of the line, whichever process or machine accepted or runs it.  A ticket of a
signed-in client answers to that client only; to everybody else it does not exist.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from wsgi_admission.config import Config
from wsgi_admission.errors import DamagedRecording, FinalTicket, GoneTicket, NotRetryable, StoreError, UnknownTicket
from wsgi_admission.load import Load
from wsgi_admission.logs import event
from wsgi_admission.replay import Recording, serve
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web import metrics
from wsgi_admission.web.answers import Answer, Environ, StartResponse, json_answer, problem, retry_later
from wsgi_admission.web.outlook import Forecast
from wsgi_admission.web.views import Views

log = logging.getLogger("wsgi_admission.api")

_TICKET_PATH = re.compile(r"/(status|result|events)/(.*)", re.DOTALL)
#: The same bytes for what is no id, for an id that never was and for another's ticket.
_UNKNOWN = problem(404, "There is no such ticket.")


class Api:
    """Answers what lies below the API prefix, and words the answer to a request that was queued.

    :param load: returns this host's load now.
    :param slots_in_use: returns how many slots of this host are taken.
    :param clock: returns seconds since the epoch.
    :param uniform: returns a uniform draw from 0 to 1, for the jitter of retry advice.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        identify: Resolver,
        load: Callable[[], Load],
        *,
        slots_in_use: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._config = config
        self._identify = identify
        self._load = load
        self._slots_in_use = slots_in_use
        self._clock = clock
        self.forecast = Forecast(store, config, slots_in_use)
        self._views = Views(store, config, load, self.forecast, clock=clock, uniform=uniform)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request whose PATH_INFO lies below the prefix."""
        return self._answer(self._route, environ, start_response)

    def admitted(
        self, ticket: Ticket, environ: Environ, start_response: StartResponse, *, ask: bool = True
    ) -> Iterable[bytes]:
        """Answer a request that is in the line as ``ticket``: with its place, or with its result if that is there.

        It is there when the request was sent before, under the same Idempotency-Key.

        :param ask: whether the store is asked for the place; not when it was slow already.
        """
        return self._answer(lambda environ: self._admitted(environ, ticket, ask=ask), environ, start_response)

    def _answer(
        self, call: Callable[[Environ], Answer | Recording], environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            answer = call(environ)
        except UnknownTicket:
            answer = _UNKNOWN
        except GoneTicket as gone:
            answer = self._gone(environ, gone)
        except NotRetryable:
            answer = problem(409, "The request of this ticket is not kept: it cannot be run again from here.")
        except FinalTicket as final:
            answer = problem(409, f"The ticket is {final.state} already.")
        except DamagedRecording as damaged:
            event(log, "ticket.damaged", level=logging.ERROR, ticket=damaged.ticket_id, kind=damaged.kind)
            answer = problem(500, "The answer to this request was damaged while it was kept, and is lost.")
        except StoreError as error:
            event(log, "store.failing", level=logging.ERROR, step="api", error=error)
            answer = retry_later("The queue cannot be read just now.", self._load().value)
        if isinstance(answer, Answer):
            return answer.send(environ, start_response)
        return serve(answer, environ, start_response)

    def _admitted(self, environ: Environ, ticket: Ticket, *, ask: bool) -> Answer | Recording:
        if ticket.state.final:
            return self._result(environ, ticket)
        data, headers = self._views.accepted(environ, ticket, ask=ask)
        return json_answer(202, data, *headers)

    def _route(self, environ: Environ) -> Answer | Recording:
        path = environ.get("PATH_INFO", "")[len(self._config.api.prefix) :]
        method = environ.get("REQUEST_METHOD", "")
        calls = self._calls(path)
        if not calls:
            return problem(404, "The queue API has no such address.")
        if "GET" in calls:
            calls["HEAD"] = calls["GET"]
        if method in calls:
            return calls[method](environ)
        allow = ("Allow", ", ".join([*calls, "OPTIONS"]))
        if method == "OPTIONS":
            return Answer(204, [allow], b"")
        return problem(405, f"This address takes {', '.join(calls)}.", allow)

    def _calls(self, path: str) -> dict[str, Callable[[Environ], Answer | Recording]]:
        """Return what can be asked of an address, by method."""
        if path == "/metrics":
            return {"GET": self._metrics}
        if path == "/health":
            return {"GET": self._health}
        found = _TICKET_PATH.fullmatch(path)
        if found is None:
            return {}
        ticket_id = found[2]
        if found[1] == "status" and ticket_id.endswith("/retry"):
            ticket_id = ticket_id.removesuffix("/retry")
            return {"POST": lambda environ: self._retry(environ, self._ticket(environ, ticket_id))}
        if found[1] == "result":
            return {"GET": lambda environ: self._result(environ, self._ticket(environ, ticket_id))}
        if found[1] == "events":
            return {"GET": lambda environ: self._events(environ, self._ticket(environ, ticket_id))}
        return {
            "GET": lambda environ: self._status(environ, self._ticket(environ, ticket_id)),
            "DELETE": lambda environ: self._cancel(environ, self._ticket(environ, ticket_id)),
        }

    def _ticket(self, environ: Environ, ticket_id: str) -> Ticket:
        ticket = self._store.get(ticket_id)
        if ticket.owner and ticket.owner != self._identify(environ).owner:
            raise UnknownTicket(ticket_id)
        return ticket

    def _gone(self, environ: Environ, gone: GoneTicket) -> Answer:
        if gone.owner and gone.owner != self._identify(environ).owner:
            return _UNKNOWN
        return problem(410, "The ticket and its result were removed after their retention.")

    def _status(self, environ: Environ, ticket: Ticket) -> Answer:
        data, headers = self._views.status(environ, ticket)
        # The advice has jitter: it says nothing new.
        steady = repr([item for item in data.items() if item[0] != "retry_suggestion"])
        tag = f'"{hashlib.blake2b(steady.encode(), digest_size=12).hexdigest()}"'
        headers.append(("ETag", tag))
        asked = {part.strip().removeprefix("W/") for part in environ.get("HTTP_IF_NONE_MATCH", "").split(",")}
        if tag in asked or "*" in asked:
            return Answer(304, headers, b"")
        return json_answer(200, data, *headers)

    def _result(self, environ: Environ, ticket: Ticket) -> Answer | Recording:
        if not ticket.state.final:
            data, headers = self._views.status(environ, ticket)
            return json_answer(202, data, *headers, ("Location", data["result_url"]))
        if ticket.state is State.CANCELLED:
            return problem(410, "The request was cancelled; it has no result.")
        response = self._store.response(ticket.id)
        if response is None:
            return problem(500, ticket.error or "The request failed without an answer.")
        return response

    def _cancel(self, environ: Environ, ticket: Ticket) -> Answer:
        ticket = self._store.cancel(ticket.id, now=self._clock())
        name = "ticket.cancelled" if ticket.state.final else "ticket.cancelling"
        event(log, name, ticket=ticket.id, route=ticket.route)
        data, headers = self._views.status(environ, ticket)
        return json_answer(200, data, *headers)

    def _retry(self, environ: Environ, ticket: Ticket) -> Answer | Recording:
        """Run a failed request again, as a new ticket at the end of its client's.

        Whoever asks twice, perhaps because the first answer was lost, is told of the same new ticket.
        """
        now = self._clock()
        again = ticket.again(cost=self.forecast.expected(ticket.route, now=now), now=now)
        try:
            again = self._store.retry(ticket.id, again, now=now)
        except NotRetryable:
            with suppress(UnknownTicket):
                return self._admitted(environ, self._store.get(again.id), ask=True)
            raise
        event(log, "ticket.queued", ticket=again.id, route=again.route, tier=again.tier, retry_of=ticket.id)
        data, headers = self._views.accepted(environ, again)
        return json_answer(202, data, *headers)

    def _events(self, environ: Environ, ticket: Ticket) -> Answer:
        """Send one event and close: an EventSource comes back by itself, after the advised time."""
        if ticket.state.final and environ.get("HTTP_LAST_EVENT_ID") == ticket.state.value:
            return Answer(204, [], b"")  # the one answer after which an EventSource stays away
        data, headers = self._views.status(environ, ticket)
        seconds = int(dict(headers).get("Retry-After", "1"))
        text = f"retry: {seconds * 1000}\nid: {ticket.state.value}\nevent: status\ndata: {json.dumps(data)}\n\n"
        return Answer(200, [("Content-Type", "text/event-stream"), *headers], text.encode())

    def _metrics(self, environ: Environ) -> Answer:
        api = self._config.api
        if api.metrics == "token":
            given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, f"Bearer {api.admin_token}".encode()):
                return problem(401, "The metrics need the admin token.", ("WWW-Authenticate", "Bearer"))
        return json_answer(200, metrics.summary(self._store, self._config, self._load(), now=self._clock()))

    def _health(self, _environ: Environ) -> Answer:
        status, data = metrics.health(self._store, self._config, self._load(), self._slots_in_use(), now=self._clock())
        return json_answer(status, data)

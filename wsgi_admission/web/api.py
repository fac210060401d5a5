"""The queue API: one small WSGI app over a store.

Here is which call has which address, and what is answered when a call fails; the calls are in tickets.py and
beside it.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from functools import partial

from wsgi_admission.config import Config
from wsgi_admission.errors import (
    DamagedRecording,
    FinalTicket,
    GoneTicket,
    NotRetryable,
    RequestRefused,
    StoreError,
    UnknownTicket,
)
from wsgi_admission.load import Load
from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.ticket import Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web import metrics, openapi, prometheus
from wsgi_admission.web.answers import Answer, Environ, Sendable, StartResponse, json_answer, problem, retry_later
from wsgi_admission.web.assets import CLIENT, asset
from wsgi_admission.web.dashboard import Dashboard
from wsgi_admission.web.holding import Readers, Server
from wsgi_admission.web.origins import Origins
from wsgi_admission.web.outlook import Forecast
from wsgi_admission.web.pages import Pages
from wsgi_admission.web.rooms import Rooms
from wsgi_admission.web.tickets import Tickets
from wsgi_admission.web.views import Views

log = logging.getLogger("wsgi_admission.api")

_TICKET_PATH = re.compile(r"/(status|result|events)/(.*)", re.DOTALL)
_BELOW_RESULT = re.compile(r"/result/([^/]*)(/.*)", re.DOTALL)
#: The same bytes for what is no id, for an id that never was and for another's ticket.
_UNKNOWN = problem(404, "There is no such ticket.")

#: A call of the API: what it answers to a request.
Call = Callable[[Environ], Sendable]


class Api:
    """Answers what lies below the API prefix, and words the answer to a request that was queued.

    :param load: returns this host's load now.
    :param slots_in_use: returns how many slots of this host are taken.
    :param server: what the server in front is like.
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
        server: Server = Server(),  # noqa: B008 - it is immutable
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
        views = self._views = Views(store, config, load, self.forecast, clock=clock, uniform=uniform)
        self._pages = Pages(config)
        self._origins = Origins(config.api)
        self._dashboard = Dashboard(store, config, self._pages, load, slots_in_use=slots_in_use, clock=clock)
        rooms = Rooms(store, config, self._pages, views, load, clock=clock)
        self.readers = Readers(store.changed, server)
        longest = max((route.max_body for route in config.routes), default=0)
        self._tickets = Tickets(
            store, identify, self.forecast, views, rooms, self.readers, clock=clock, longest_body=longest
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request whose PATH_INFO lies below the prefix."""
        return self._answer(self._route, environ, start_response)

    def admitted(
        self,
        ticket: Ticket,
        environ: Environ,
        start_response: StartResponse,
        *,
        ask: bool = True,
        patience: float = 0.0,
    ) -> Iterable[bytes]:
        """Answer a request that is in the line as ``ticket``: with its place, or with its result if that is there.

        It is there when the request was sent before, under the same Idempotency-Key.

        :param ask: whether the store is asked for the place; not when it was slow already.
        :param patience: seconds to wait for the end of what may start at once, if a thread can be spared for that.
        """

        def call(environ: Environ) -> Sendable:
            return self._tickets.admitted(environ, ticket, ask=ask, patience=patience)

        return self._answer(call, environ, start_response)

    def _answer(self, call: Call, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        answer: Sendable
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
        except RequestRefused as error:
            answer = problem(int(error.status[:3]), str(error))
        except StoreError as error:
            event(log, "store.failing", level=logging.ERROR, step="api", error=error)
            answer = retry_later("The queue cannot be read just now.", self._load().value)
        if isinstance(answer, Answer):
            answer = self._pages.problem(environ, answer)
        return answer.send(environ, self._origins.telling(environ, start_response))

    def _route(self, environ: Environ) -> Sendable:
        path = environ.get("PATH_INFO", "")[len(self._config.api.prefix) :]
        method = environ.get("REQUEST_METHOD", "")
        if below := _BELOW_RESULT.fullmatch(path):
            return self._of(below[1], partial(self._tickets.below_result, path=below[2]))(environ)
        calls = self._calls(path)
        if not calls:
            return problem(404, "The queue API has no such address.")
        if "GET" in calls:
            calls["HEAD"] = calls["GET"]
        if method in calls:
            return calls[method](environ)
        allow = ("Allow", ", ".join([*calls, "OPTIONS"]))
        if method == "OPTIONS":
            return Answer(204, [allow, *self._origins.preflight(environ, ", ".join(calls))], b"")
        return problem(405, f"This address takes {', '.join(calls)}.", allow)

    def _calls(self, path: str) -> dict[str, Call]:
        """Return what can be asked of an address, by method."""
        fixed = {"/metrics": self._metrics, "/health": self._health, "/openapi.json": self._description}
        if path in fixed:
            return {"GET": fixed[path]}
        if path.startswith("/dashboard"):
            return self._dashboard.calls(path)
        if path == f"/{CLIENT}" or path.startswith("/static/"):
            return {"GET": lambda environ: asset(environ, path[1:].removeprefix("static/"))}
        found = _TICKET_PATH.fullmatch(path)
        if found is None:
            return {}
        ticket_id = found[2]
        tickets = self._tickets
        for ending, call in (("/retry", tickets.retry), ("/cancel", tickets.cancel_form)):
            if found[1] == "status" and ticket_id.endswith(ending):
                return {"POST": self._of(ticket_id.removesuffix(ending), call)}
        if found[1] != "status":
            return {"GET": self._of(ticket_id, {"result": tickets.result, "events": tickets.events}[found[1]])}
        return {"GET": self._of(ticket_id, tickets.status), "DELETE": self._of(ticket_id, tickets.cancel)}

    def _of(self, ticket_id: str, call: Callable[[Environ, Ticket], Sendable]) -> Call:
        """Return the call for one ticket, for whoever may see it."""
        return lambda environ: call(environ, self._tickets.find(environ, ticket_id))

    def _gone(self, environ: Environ, gone: GoneTicket) -> Answer:
        if gone.owner and gone.owner != self._identify(environ).owner:
            return _UNKNOWN
        return problem(410, "The ticket and its result were removed after their retention.")

    def _metrics(self, environ: Environ) -> Answer:
        if self._config.api.metrics == "token" and self._dashboard.access.operator(environ) is None:
            return problem(401, "The metrics need the admin token.", ("WWW-Authenticate", "Bearer"))
        now, load = self._clock(), self._load()
        if prometheus.asked_for(environ):
            return prometheus.exposition(
                environ, prometheus.Figures(self._store, self._config, load, self._slots_in_use(), now)
            )
        return json_answer(200, metrics.summary(self._store, self._config, load, now=now))

    def _description(self, environ: Environ) -> Answer:
        return json_answer(200, openapi.description(self._views.base(environ)))

    def _health(self, _environ: Environ) -> Answer:
        status, data = metrics.health(self._store, self._config, self._load(), self._slots_in_use(), now=self._clock())
        return json_answer(status, data)

"""The dashboard: what operators see of the line, and what they do with it.

It is off without an ``admin_token``.  People sign in with it; programs send it as ``Authorization: Bearer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from urllib.parse import parse_qs

from wsgi_admission import operators
from wsgi_admission.config import Config
from wsgi_admission.errors import AdmissionError, FinalTicket, GoneTicket, UnknownTicket
from wsgi_admission.languages import ENGLISH
from wsgi_admission.load import Load
from wsgi_admission.logs import event
from wsgi_admission.receiving import receive
from wsgi_admission.stores import Store
from wsgi_admission.web.access import Access
from wsgi_admission.web.answers import Answer, Environ, Sendable, json_answer, mounted, problem
from wsgi_admission.web.board import board
from wsgi_admission.web.overview import tables
from wsgi_admission.web.pages import Pages

log = logging.getLogger("wsgi_admission.operators")

#: Bytes of the largest form.
LARGEST_FORM = 4096
#: Seconds between two looks of a page that runs no scripts.
REFRESH = 10

Form = dict[str, str]


class Dashboard:
    """Answers below ``dashboard``; the parameters are those of `Api`."""

    def __init__(
        self,
        store: Store,
        config: Config,
        pages: Pages,
        load: Callable[[], Load],
        *,
        slots_in_use: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._config = config
        self._pages = pages
        self._name = config.admission.name
        self._load = load
        self._slots_in_use = slots_in_use
        self._clock = clock
        self.access = Access(config.api.admin_token, clock=clock)
        self._actions: dict[str, Callable[[Form], None]] = {
            "pause": lambda _form: self._pause(paused=True),
            "resume": lambda _form: self._pause(paused=False),
            "cancel": self._cancel,
        }

    def calls(self, path: str) -> dict[str, Callable[[Environ], Sendable]]:
        """Return what can be asked of an address below the prefix, by method."""
        if path not in {"/dashboard", "/dashboard/data", "/dashboard/sign-out"} and (
            path.removeprefix("/dashboard/") not in self._actions
        ):
            return {}
        if not self.access.possible:
            return dict.fromkeys(
                ("GET", "POST"), lambda _environ: problem(404, "The dashboard is off: there is no [api] admin_token.")
            )
        if path == "/dashboard":
            return {"GET": self._show, "POST": self._sign_in}
        if path == "/dashboard/data":
            return {"GET": self._data}
        if path == "/dashboard/sign-out":
            return {"POST": self._sign_out}
        return {"POST": lambda environ: self._act(environ, path.removeprefix("/dashboard/"))}

    def _show(self, environ: Environ) -> Answer:
        operator = self.access.operator(environ)
        if operator is None:
            return self._sign_in_page(environ)
        data = self._board()
        return self._pages.answer(
            environ,
            200,
            "dashboard.html",
            language=ENGLISH,
            name=self._name,
            data=data,
            tables=tables(data),
            form_token=operator.form_token,
            refresh=REFRESH,
        )

    def _sign_in_page(self, environ: Environ, status: int = 200, fault: str = "") -> Answer:
        return self._pages.answer(environ, status, "sign_in.html", language=ENGLISH, name=self._name, fault=fault)

    def _sign_in(self, environ: Environ) -> Answer:
        cookie = self.access.sign_in(environ, _form(environ).get("token", ""), path=self._base(environ))
        if cookie is None:
            event(log, "operator.refused", level=logging.WARNING)
            return self._sign_in_page(environ, status=403, fault="That is not the admin token.")
        event(log, "operator.signed_in")
        return self._back(environ, ("Set-Cookie", cookie))

    def _sign_out(self, environ: Environ) -> Answer:
        operator = self.access.operator(environ)
        if operator is not None and self.access.may_change(operator, _form(environ).get("form_token", "")):
            return self._back(environ, ("Set-Cookie", self.access.sign_out(environ, path=self._base(environ))))
        return self._back(environ)

    def _data(self, environ: Environ) -> Answer:
        if self.access.operator(environ) is None:
            return _unknown()
        return json_answer(200, self._board())

    def _act(self, environ: Environ, action: str) -> Answer:
        operator = self.access.operator(environ)
        if operator is None:
            return _unknown()
        form = _form(environ)
        if not self.access.may_change(operator, form.get("form_token", "")):
            return problem(403, "The form is not from this dashboard, or its session has ended: reload the page.")
        try:
            self._actions[action](form)
        except (UnknownTicket, GoneTicket):
            return problem(404, "There is no such ticket.")
        except FinalTicket as final:
            return problem(409, f"The ticket is {final.state} already.")
        if not operator.form_token or "application/json" in environ.get("HTTP_ACCEPT", ""):
            return json_answer(200, operators.summary(self._store, self._config))
        return self._back(environ)

    def _pause(self, *, paused: bool) -> None:
        self._store.pause(paused)
        event(log, "line.paused" if paused else "line.resumed")

    def _cancel(self, form: Form) -> None:
        ticket = self._store.cancel(form.get("id", ""), now=self._clock(), reason=operators.CANCELLED)
        name = "ticket.cancelled" if ticket.state.final else "ticket.cancelling"
        event(log, name, ticket=ticket.id, route=ticket.route, by="operator")

    def _board(self) -> dict[str, object]:
        return board(self._store, self._config, self._load(), self._slots_in_use(), now=self._clock())

    def _back(self, environ: Environ, *headers: tuple[str, str]) -> Answer:
        place = f"{self._base(environ)}/dashboard"
        return Answer(303, [("Location", place), ("Content-Type", "text/plain"), *headers], place.encode())

    def _base(self, environ: Environ) -> str:
        return mounted(environ, self._config.api.prefix)


def _unknown() -> Answer:
    return problem(401, "This needs the admin token.", ("WWW-Authenticate", "Bearer"))


def _form(environ: Environ) -> Form:
    """Return the fields of a form (application/x-www-form-urlencoded); of one that cannot be read, none."""
    try:
        body = receive(environ, max_body=LARGEST_FORM)
    except AdmissionError:
        return {}
    if body is None:
        return {}
    with body.file as file:
        text = file.read(LARGEST_FORM).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}

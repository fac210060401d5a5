"""What browsers are told of pages of other origins: ours to say for our answers, and the app's for its own."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest

from tests.test_api import Desk, crashed
from tests.test_middleware import Site
from tests.wsgi import Result, call
from wsgi_admission import AdmissionMiddleware, StoreUnavailable
from wsgi_admission.config import Api
from wsgi_admission.recording import Recording
from wsgi_admission.ticket import State, Ticket

PAGE = "https://www.example.org"
ALLOW, CREDENTIALS = "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"
TOKEN = "0123456789abcdef01"  # noqa: S105 - made up


def shared(result: Result) -> tuple[list[str], list[str], bool]:
    """Return who may read an answer, with what, and whether a cache may give it to everybody."""
    found = [[value for name, value in result.headers if name == wanted] for wanted in (ALLOW, CREDENTIALS)]
    return found[0], found[1], ("Vary", "Origin") not in result.headers


OURS = ([PAGE], ["true"], False)


def answered(desk: Desk, *headers: tuple[str, str]) -> Ticket:
    """Return a ticket that the app has answered."""
    desk.put()
    ticket = desk.claim()
    head = json.dumps({"method": "POST", "status": "200 OK", "headers": [["Content-Type", "text/plain"], *headers]})
    desk.store.finish(ticket.id, ticket.attempt, State.COMPLETED, Recording(head, BytesIO(b"x"), 1), now=desk.now)
    return ticket


def test_every_call_about_a_ticket_is_for_the_pages_that_are_listed() -> None:
    """Catches: a call that was forgotten, an answer that a shared cache gives to another page."""
    desk = Desk(allow_origins=("https://other.example.org", PAGE))
    failed = crashed(desk)
    done, ticket = answered(desk), desk.put()
    asked = [
        desk.ask("status", ticket, HTTP_ORIGIN=PAGE),
        desk.ask("result", ticket, HTTP_ORIGIN=PAGE),
        desk.ask("events", ticket, HTTP_ORIGIN=PAGE),
        desk.ask("result", done, HTTP_ORIGIN=PAGE),
        desk.ask("status", f"{failed.id}/retry", "POST", HTTP_ORIGIN=PAGE),
        desk.ask("status", "nobody", HTTP_ORIGIN=PAGE),
        desk.ask("status", ticket, "DELETE", HTTP_ORIGIN=PAGE),
        desk.ask("status", ticket, "DELETE", HTTP_ORIGIN=PAGE),
    ]
    assert [result.status[:3] for result in asked] == ["200", "202", "200", "200", "202", "404", "200", "409"]
    assert [shared(result) for result in asked] == [OURS] * 8

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return desk.api.admitted(ticket, environ, start_response)

    assert shared(call(app, "/image", "POST", HTTP_ORIGIN=PAGE)) == OURS


@pytest.mark.parametrize(
    "origin", ["https://www.example.org.evil.test", "http://www.example.org", "null", "", PAGE + "/"]
)
def test_a_page_that_is_not_listed_learns_nothing(origin: str) -> None:
    """Catches: an origin that resembles one of the list; a preflight that lets it through."""
    desk = Desk(allow_origins=(PAGE,))
    ticket = desk.put()
    keys = {"HTTP_ORIGIN": origin, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "DELETE"}
    assert shared(desk.ask("status", ticket, HTTP_ORIGIN=origin)) == ([], [], False)
    asked = desk.ask("status", ticket, "OPTIONS", **keys)
    assert not [name for name, _ in asked.headers if name.startswith("Access-Control-Allow")]


def test_without_a_list_nothing_changes() -> None:
    """Catches: headers of the line on a site that does all this in front of it."""
    desk = Desk()
    ticket = desk.put()
    assert shared(desk.ask("status", ticket, HTTP_ORIGIN=PAGE)) == ([], [], True)


def test_everybody_may_read_without_credentials() -> None:
    """Catches: cookies for the pages of all the world; an answer that a browser refuses."""
    desk = Desk(allow_origins=("*",))
    assert shared(desk.ask("status", desk.put(), HTTP_ORIGIN=PAGE)) == (["*"], [], True)


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_a_recorded_answer_keeps_what_the_app_has_said(origins: tuple[str, ...]) -> None:
    """Catches: a header that stands there twice, which browsers refuse; the app's decision overruled."""
    desk = Desk(allow_origins=origins)
    ticket = answered(desk, ("access-control-allow-origin", "https://app.example.org"))
    result = desk.ask("result", ticket, HTTP_ORIGIN=PAGE)
    told = [(name, value) for name, value in result.headers if name.lower().startswith("access-control-allow")]
    assert told == [("access-control-allow-origin", "https://app.example.org")]
    half = desk.ask("result", answered(desk, ("access-control-allow-credentials", "true")), HTTP_ORIGIN=PAGE)
    assert sum(name.lower() == CREDENTIALS.lower() for name, _ in half.headers) == 1


def test_a_preflight_is_answered() -> None:
    """Catches: a page that may read but not cancel, or not send the headers of its call."""
    desk = Desk(allow_origins=(PAGE,))
    ticket = desk.put()
    keys = {"HTTP_ORIGIN": PAGE, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "DELETE"}
    result = desk.ask("status", ticket, "OPTIONS", **keys, HTTP_ACCESS_CONTROL_REQUEST_HEADERS="authorization,x-tenant")
    assert (result.status, shared(result)) == ("204 No Content", OURS)
    assert result.header("Access-Control-Allow-Methods") == "GET, DELETE, HEAD"
    assert result.header("Access-Control-Allow-Headers") == "authorization,x-tenant"
    assert result.header("Access-Control-Max-Age") == "7200"
    odd = desk.ask("status", ticket, "OPTIONS", **keys, HTTP_ACCESS_CONTROL_REQUEST_HEADERS="a: b")
    assert odd.header("Access-Control-Allow-Headers") is None
    plain = desk.ask("status", ticket, "OPTIONS", HTTP_ORIGIN=PAGE)
    assert plain.header("Access-Control-Allow-Methods") is None


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/data", "/dashboard/pause", "/metrics"])
@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_what_operators_see_is_for_no_other_site(path: str, origins: tuple[str, ...]) -> None:
    """Catches: a page that reads the dashboard with the cookie of an operator who visits it."""
    desk = Desk(allow_origins=origins, admin_token=TOKEN)
    keys: dict[str, Any] = {"HTTP_ORIGIN": PAGE, "HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    for method in ("GET", "POST", "OPTIONS"):
        asked = call(desk.api, f"/api/queue{path}", method, **keys, HTTP_ACCESS_CONTROL_REQUEST_METHOD="POST")
        assert not [name for name, _ in asked.headers if name.startswith("Access-Control-Allow")]


def test_a_refusal_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a page that sees a network error where it should read when to come back."""
    site = Site(slots=1)
    config = replace(site.config, api=Api(allow_origins=(PAGE,)))
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    try:
        process = site.middleware.process()
        slot = process.slots.take("image")
        monkeypatch.setattr(process.store, "put", _full)
        refused = site.call(HTTP_ORIGIN=PAGE)
        assert (refused.status[:3], shared(refused)) == ("503", OURS)
        large = site.call(HTTP_ORIGIN=PAGE, CONTENT_LENGTH="999999999999")
        assert (large.status[:3], shared(large)) == ("413", OURS)
        # A preflight of a route is the app's.
        asked = site.call(method="OPTIONS", HTTP_ORIGIN=PAGE, HTTP_ACCESS_CONTROL_REQUEST_METHOD="POST")
        assert shared(asked) == ([], [], True)
        assert slot is not None
    finally:
        site.middleware.close()


def _full(*_args: Any, **_keys: Any) -> None:
    raise StoreUnavailable("full")

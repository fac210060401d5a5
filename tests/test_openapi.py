"""The description of the API, and the check that holds all other tests' answers against it."""

from __future__ import annotations

import json
import re
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import pytest
from openapi_spec_validator import validate

from tests import described
from tests.test_api import Desk
from tests.wsgi import call
from wsgi_admission.ticket import State
from wsgi_admission.web.views import Views

TOKEN = "0123456789abcdef01"  # noqa: S105 - made up


def test_the_description_is_valid_and_names_the_site_that_was_asked() -> None:
    """Catches: a document that no generator reads; a server address that lacks the mount or the prefix."""
    desk = Desk(base_url="https://example.org", prefix="/line")
    result = call(desk.api, "/line/openapi.json", SCRIPT_NAME="/shop")
    assert result.header("Content-Type") == "application/json"
    data = result.json()
    validate(data)
    assert data["servers"] == [{"url": "https://example.org/shop/line"}]
    assert call(Desk().api, "/api/queue/openapi.json").json()["servers"] == [{"url": "/api/queue"}]
    calls = [call for calls in data["paths"].values() for name, call in calls.items() if name != "parameters"]
    assert len({call["operationId"] for call in calls}) == len(calls) == 23


def test_a_generated_client_can_sign_in_and_act() -> None:
    """Catches: a form without its fields, which a client that was made of the description cannot send."""
    data = call(Desk().api, "/api/queue/openapi.json").json()

    def form(path: str) -> Any:
        return data["paths"][path]["post"]["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]

    desk = Desk(admin_token=TOKEN)
    ticket = desk.put()
    signed = call(
        desk.api,
        "/api/queue/dashboard",
        "POST",
        urlencode(dict.fromkeys(form("/dashboard")["required"], TOKEN)).encode(),
    )
    given = SimpleCookie(signed.header("Set-Cookie"))
    scheme = data["components"]["securitySchemes"]["cookie"]
    assert (scheme["in"], scheme["name"]) == ("cookie", next(iter(given)))
    cookie = f"{scheme['name']}={given[scheme['name']].value}"
    page = call(desk.api, "/api/queue/dashboard", HTTP_COOKIE=cookie).body.decode()
    values = {"id": ticket.id, "form_token": re.findall('name="form_token" value="([^"]+)"', page)[0]}
    for path in ("pause", "resume", "cancel", "sign-out"):
        fields = {name: values[name] for name in form(f"/dashboard/{path}")["properties"]}
        result = call(desk.api, f"/api/queue/dashboard/{path}", "POST", urlencode(fields).encode(), HTTP_COOKIE=cookie)
        assert result.status == "303 See Other", path
    assert desk.store.get(ticket.id).state is State.CANCELLED
    named = {
        name
        for calls in data["paths"].values()
        for one in calls.values()
        if isinstance(one, dict)
        for way in one.get("security", [])
        for name in way
    }
    assert named == set(data["components"]["securitySchemes"])


def test_the_waiting_room_is_described_wherever_it_is_shown() -> None:
    """Catches: a page where a generated client is told of JSON alone."""
    desk = Desk()
    ticket = desk.put()
    for name in ("status", "result"):
        assert desk.ask(name, ticket, HTTP_ACCEPT="text/html").header("Content-Type") == "text/html; charset=utf-8"


def test_every_object_of_ours_is_closed() -> None:
    """Catches: a schema that lets any field through, so that the check finds nothing."""

    def objects(node: Any) -> list[Any]:
        if isinstance(node, list):
            return [found for item in node for found in objects(item)]
        if not isinstance(node, dict):
            return []
        own = [node] if node.get("type") == "object" and "properties" in node else []
        return own + [found for item in node.values() for found in objects(item)]

    schemas = call(Desk().api, "/api/queue/openapi.json").json()["components"]["schemas"]
    found = objects(schemas)
    assert len(found) > 10
    open_ones = [one for one in found if one["additionalProperties"] is not False]
    assert [set(one["properties"]) for one in open_ones] == [{"status"}]  # the facts of a store


JSON = [("Content-Type", "application/json")]
PROBLEM = [("Content-Type", "application/problem+json")]
LINE = [*JSON, ("Admission-Status", "queued")]


@pytest.mark.parametrize(
    ("path", "method", "status", "headers", "body", "sentence"),
    [
        ("/api/queue/status/x", "GET", 418, JSON, {}, "is not described"),
        ("/api/queue/status/x", "PUT", 200, JSON, {}, "is not described"),
        ("/api/queue/nothing", "GET", 200, JSON, {}, "is not described"),
        ("/api/queue/static/x", "GET", 200, JSON, {}, "is not among"),
        ("/shop/api/queue/health", "GET", 200, [("Content-Type", "text/plain")], {}, "text/plain is not among"),
        ("/api/queue/health?x=1", "GET", 200, JSON, {"status": "fine"}, "is no Health"),
        ("/api/queue/status/x", "GET", 404, PROBLEM, {"title": "x"}, "is no Problem"),
        ("/api/queue/result/x", "GET", 202, LINE, {"status": "queued"}, "is no Status"),
        ("/image", "POST", 202, LINE, {"queued": True}, "is no Accepted"),
        ("/image", "POST", 503, PROBLEM, {"title": 3}, "is no Problem"),
        ("/api/queue/status/x", "GET", 304, JSON, {}, "a body where none"),
    ],
)
def test_an_answer_that_is_not_as_described_fails_the_test(
    path: str, method: str, status: int, headers: Any, body: Any, sentence: str
) -> None:
    """Catches: a check that is blind to a code, a content type or a field."""
    with pytest.raises(AssertionError, match=sentence):
        described.check(path, method, status, headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("path", "status", "headers"),
    [
        ("/image", 200, JSON),
        ("/image", 202, JSON),
        ("/api/queue/result/x", 299, JSON),
        ("/api/queue/result/x", 202, JSON),
    ],
)
def test_what_the_app_answers_is_its_own_business(path: str, status: int, headers: Any) -> None:
    """Catches: a check that holds recorded answers against our schemas."""
    described.check(path, "GET", status, headers, b'{"any": "thing"}')


def test_a_field_that_nobody_described_fails_whatever_test_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the check not being where the tests get their answers."""
    plain = Views.status

    def more(self: Views, environ: Any, ticket: Any) -> Any:
        data, headers = plain(self, environ, ticket)
        return {**data, "mood": "good"}, headers

    monkeypatch.setattr(Views, "status", more)
    desk = Desk()
    ticket = desk.put()
    for name in ("status", "result"):
        with pytest.raises(AssertionError, match="mood"):
            desk.ask(name, ticket)

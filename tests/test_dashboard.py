"""The dashboard: its numbers, who may see and change what, and what a browser shows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.browsers import page_of
from tests.support import gunicorn, ini
from tests.test_api import NOW, Desk
from tests.wsgi import Result, call
from wsgi_admission.stores.records import Minute
from wsgi_admission.ticket import State
from wsgi_admission.web.access import COOKIE, SESSION
from wsgi_admission.web.board import MINUTES, history

TOKEN = "the-secret-of-operators"  # noqa: S105 - of the tests
BEARER: dict[str, Any] = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
PATH = "/api/queue/dashboard"


@pytest.fixture
def desk() -> Desk:
    """An API with operators."""
    return Desk(admin_token=TOKEN)


def post(desk: Desk, path: str, fields: dict[str, Any], **keys: Any) -> Result:
    """Send a form."""
    form: dict[str, Any] = {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
    return call(desk.api, path, "POST", urlencode(fields).encode(), **form, **keys)


def signed_in(desk: Desk) -> dict[str, Any]:
    """Sign in, and return the keys of later requests."""
    answer = post(desk, PATH, {"token": TOKEN})
    assert (answer.status, answer.header("Location")) == ("303 See Other", PATH)
    cookie = answer.header("Set-Cookie") or ""
    assert {"HttpOnly", "SameSite=Strict", "Path=/api/queue"} <= set(cookie.split("; "))
    return {"HTTP_COOKIE": cookie.partition(";")[0]}


def form_token(desk: Desk, session: dict[str, Any]) -> str:
    """Return what the forms of the page bring along."""
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', call(desk.api, PATH, **session).body.decode())
    assert found is not None
    return found[1]


# Who may


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["", "/data", "/pause", "/cancel", "/sign-out"])
def test_without_a_token_there_is_no_dashboard(path: str, method: str) -> None:
    """Catches: an empty token that anybody can send."""
    desk = Desk()
    tried: list[dict[str, Any]] = [{}, {"HTTP_AUTHORIZATION": "Bearer "}, {"HTTP_COOKIE": f"{COOKIE}=.."}]
    for keys in tried:
        assert call(desk.api, PATH + path, method, **keys).status == "404 Not Found"
    assert not desk.store.paused()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"HTTP_AUTHORIZATION": "Bearer another token of mine"},
        {"HTTP_AUTHORIZATION": f"Basic {TOKEN}"},
        {"HTTP_AUTHORIZATION": "Bearer \xff"},
        {"HTTP_COOKIE": f"{COOKIE}=9999999999.aa.{'0' * 64}"},
        {"HTTP_COOKIE": f"{COOKIE}=\xff.\xff.\xff"},
        {"HTTP_COOKIE": f"{COOKIE}={TOKEN}"},
        {"HTTP_COOKIE": "@;=;;"},
    ],
)
def test_whoever_has_no_token_sees_and_changes_nothing(desk: Desk, keys: dict[str, Any]) -> None:
    """Catches: a cookie that anybody can make, and an answer that tells something before the token was looked at."""
    ticket = desk.put()
    assert call(desk.api, f"{PATH}/data", **keys).status == "401 Unauthorized"
    page = call(desk.api, PATH, **keys)
    assert b"Admin token" in page.body
    assert ticket.id.encode() not in page.body
    for path in ("pause", "resume", "cancel"):
        assert post(desk, f"{PATH}/{path}", {"id": ticket.id}, **keys).status == "401 Unauthorized"
    assert not desk.store.paused()
    assert desk.store.get(ticket.id).state is State.QUEUED


def test_a_wrong_token_signs_nobody_in(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a sign-in that is refused in the text of the page only, or that nobody hears of."""
    for fields in ({"token": "wrong"}, {"token": ""}, {}, {"token": TOKEN + "x" * 5000}, {"token": "\udcff"}):
        body = urlencode(fields, errors="surrogatepass").encode()
        answer = call(desk.api, PATH, "POST", body, CONTENT_TYPE="application/x-www-form-urlencoded")
        assert answer.status == "403 Forbidden"
        assert answer.header("Set-Cookie") is None
    assert "operator.refused" in caplog.text
    assert TOKEN not in caplog.text


def test_a_session_ends_by_itself_and_with_the_token(desk: Desk) -> None:
    """Catches: a cookie that opens the dashboard for ever."""
    session = signed_in(desk)
    assert call(desk.api, f"{PATH}/data", **session).status == "200 OK"
    assert call(Desk(admin_token=TOKEN).api, f"{PATH}/data", **session).status == "200 OK", "another process"
    assert call(Desk(admin_token=TOKEN[::-1]).api, f"{PATH}/data", **session).status == "401 Unauthorized"
    desk.now += SESSION
    assert call(desk.api, f"{PATH}/data", **session).status == "401 Unauthorized"


def test_a_cookie_is_sent_over_https_only_where_that_is_used(desk: Desk) -> None:
    """Catches: a cookie in clear text, and one that a site without TLS never gets back."""
    for scheme, secure in (("http", False), ("https", True)):
        answer = post(desk, PATH, {"token": TOKEN}, **{"wsgi.url_scheme": scheme})
        assert ("Secure" in (answer.header("Set-Cookie") or "")) is secure


def test_another_site_cannot_change_anything(desk: Desk) -> None:
    """Catches: a form on another site that pauses the line by the cookie of a visiting operator."""
    session = signed_in(desk)
    own = form_token(desk, session)
    for fields in ({}, {"form_token": ""}, {"form_token": "0" * 64}, {"form_token": form_token(desk, signed_in(desk))}):
        assert post(desk, f"{PATH}/pause", fields, **session).status == "403 Forbidden"
    assert not desk.store.paused()
    answer = post(desk, f"{PATH}/pause", {"form_token": own}, **session)
    assert (answer.status, answer.header("Location")) == ("303 See Other", PATH)
    assert desk.store.paused()
    answer = post(desk, f"{PATH}/sign-out", {"form_token": own}, **session)
    assert "Max-Age=0" in (answer.header("Set-Cookie") or "")


# What is done


def test_a_program_pauses_resumes_and_cancels(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: actions that only a browser can do, or that nobody can read of in the log."""
    caplog.set_level("INFO")
    ticket = desk.put()
    paused = post(desk, f"{PATH}/pause", {}, **BEARER)
    assert (paused.status, paused.json()["paused"]) == ("200 OK", True)
    assert post(desk, f"{PATH}/resume", {}, **BEARER).json()["paused"] is False
    assert post(desk, f"{PATH}/cancel", {"id": ticket.id}, **BEARER).json()["queued"] == 0
    assert desk.store.get(ticket.id).error == "An operator cancelled it."
    assert post(desk, f"{PATH}/cancel", {"id": ticket.id}, **BEARER).status == "409 Conflict"
    assert post(desk, f"{PATH}/cancel", {"id": "nobody"}, **BEARER).status == "404 Not Found"
    for name in ("line.paused", "line.resumed", "ticket.cancelled"):
        assert name in caplog.text


def test_the_cookie_has_the_path_that_it_is_meant_for(desk: Desk) -> None:
    """Catches: a mount that adds attributes of its own to the cookie."""
    answer = post(desk, PATH, {"token": TOKEN}, SCRIPT_NAME="/;Domain=x.example")
    assert "Path=/%3BDomain=x.example/api/queue" in (answer.header("Set-Cookie") or "").split("; ")


def test_the_pages_are_in_english_and_say_so(desk: Desk) -> None:
    """Catches: a header of the reader's language over a text that is in another."""
    for keys in ({}, signed_in(desk)):
        page = call(desk.api, PATH, **{**keys, "HTTP_ACCEPT_LANGUAGE": "de"})
        assert page.status == "200 OK"
        assert page.header("Content-Language") == "en"


def test_only_a_post_changes_something(desk: Desk) -> None:
    """Catches: a link that pauses the line."""
    for path in ("pause", "resume", "cancel", "sign-out"):
        assert call(desk.api, f"{PATH}/{path}", **BEARER).status == "405 Method Not Allowed"
    assert call(desk.api, f"{PATH}/nothing", **BEARER).status == "404 Not Found"


# What is shown


def test_the_data_tell_what_is_so(desk: Desk) -> None:
    """Catches: a picture of something else than the store and the load say."""
    first = desk.put(tier="donor")
    desk.put(owner="user:ann")
    desk.in_use = 1
    claimed = desk.store.claim("w", now=desk.now, lease=30, routes={"image"})
    assert claimed is not None
    desk.store.progress(claimed.id, 1, 0.5, "half of it")
    failed = desk.put()
    run = desk.store.claim("w", now=desk.now, lease=30, routes={"image"})
    assert run is not None
    desk.store.finish(run.id, 1, State.FAILED, None, now=desk.now, error="It broke.")
    data = call(desk.api, f"{PATH}/data", **BEARER).json()
    assert (data["queued"], data["processing"], data["failed"]) == (1, 1, 1)
    assert data["sensors"] == [{"name": "cpu", "reading": 0.85, "threshold": 0.8, "failing": False}]
    assert data["slots"] == {"in_use": 1, "limit": 1}
    assert [(one["request_id"], one["progress"], one["progress_note"]) for one in data["running"]] == [
        (first.id, 0.5, "half of it")
    ]
    assert [one["error"] for one in data["failures"]] == ["It broke."]
    assert failed.id
    assert sum(one["numbers"][-1] for one in data["history"]["line"]) == 2
    assert data["history"]["arrivals"][-1] == 3
    assert len(data["history"]["arrivals"]) == MINUTES


def test_the_last_hour_follows_from_what_is_there_now() -> None:
    """Catches: a line that is counted from nothing, and forgets whom the hour began with."""
    last = int(NOW // 60)
    minutes = [
        Minute(last - MINUTES, "donor", "image", 100, 0),
        Minute(last - 2, "donor", "image", 5, 1),
        Minute(last - 1, "donor", "image", 0, 2, failures=1, cancellations=1),
        Minute(last, "registered", "image", 2, 0),
    ]
    found = history(minutes, {("donor", "image"): 3, ("registered", "image"): 2, ("anonymous", "image"): 0}, now=NOW)
    assert found["first_minute"] == last - MINUTES + 1
    numbers = {one["tier"]: one["numbers"][-4:] for one in found["line"]}
    assert numbers == {"donor": [2, 6, 3, 3], "registered": [0, 0, 0, 2]}
    assert found["completions"][-3:] == [1, 2, 0]
    assert found["failures"][-2:] == [1, 0]


def test_what_the_page_holds_stays_text() -> None:
    """Catches: a name of the line, or of a tier, that becomes markup."""
    desk = Desk(admin_token=TOKEN)
    desk.put(owner="user:<script>alert(1)</script>")
    page = call(desk.api, PATH, SCRIPT_NAME='/"><script>', **BEARER)
    text = page.body.decode()
    assert "<script>" not in text
    assert "default-src 'none'" in (page.header("Content-Security-Policy") or "")
    assert (page.header("Referrer-Policy"), page.header("Cache-Control")) == ("no-referrer", "no-store")


def test_the_page_is_read_without_scripts(desk: Desk) -> None:
    """Catches: a dashboard that says nothing to a browser that runs no scripts."""
    ticket = desk.put(tier="donor")
    text = call(desk.api, PATH, **BEARER).body.decode()
    assert f'http-equiv="refresh" content="{10}"' in text
    assert "<td>donor</td>" in text
    assert ticket.id not in text


def test_an_operator_sees_and_steers_the_line(tmp_path: Path, browser: Browser) -> None:
    """Catches: pictures that do not follow the line, buttons without effect, what assistive technology cannot read."""
    config = ini(
        tmp_path,
        f"[admission]\nmode = queue_all\nmax_concurrent = 1\nworker_threads = 1\n[api]\nadmin_token = {TOKEN}\n"
        "[route:gated]\npath = /gated\n",
    )
    with gunicorn(tmp_path, config) as site, page_of(browser) as page:
        tickets: list[dict[str, Any]] = [site.ask("/gated", "POST", b"x").json() for _ in range(3)]
        page.goto(site.url + PATH)
        page.get_by_label("Admin token").fill("wrong token that is long")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the admin token.")
        page.get_by_label("Admin token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("img", name="3 in the line now")).to_be_visible()
        expect(page.locator("#processing")).to_have_text("1")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("status")).to_have_text("Paused")
        page.get_by_role("button", name="by route").click()
        expect(page.locator("#line-key")).to_have_text("gated: 3")
        page.get_by_role("button", name=re.compile("Cancel ")).click()
        # The click alone disables the button; "Cancelling" is what the line answers.
        expect(page.get_by_role("button", name=re.compile("Cancel "))).to_have_text("Cancelling")
        site.open_gate()
        expect(page.locator("#cancelled")).to_have_text("1")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#completed")).to_have_text("2")
        states = [json.loads(site.ask(one["status_url"]).body)["status"] for one in tickets]
        assert sorted(states) == ["cancelled", "completed", "completed"]
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Admin token")).to_be_visible()

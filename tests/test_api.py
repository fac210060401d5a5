"""The queue API over a memory store, with the clock and the jitter given."""

from __future__ import annotations

import io
import json
import logging
import uuid
from typing import Any

import pytest

from tests.wsgi import Result, call
from wsgi_admission.config import Admission, Config, Route, Tier, Tiers
from wsgi_admission.config import Api as ApiOptions
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.load import Load
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web.api import Api

NOW = 1_767_268_800.0  # 2026-01-01T12:00:00Z
TIERS = Tiers(
    order=(
        Tier(name="donor", priority="high"),
        Tier(name="registered", priority="medium"),
        Tier(name="anonymous", priority="low", hint="Sign in to move up the line."),
    )
)


class Desk:
    """An API, its store, and the time."""

    def __init__(self, **api: Any) -> None:
        admission = Admission(max_concurrent=1)
        self.config = Config(
            admission=admission, tiers=TIERS, api=ApiOptions(**api), routes=(Route(name="image", path=("/image",)),)
        )
        self.now = NOW
        self.store: Store = MemoryStore(clock=lambda: self.now)
        names = [tier.name for tier in TIERS.order]
        self.in_use = 0
        self.load = Load(value=0.85, above="cpu", readings={"cpu": 0.85}, failed={}, memory_above=False)
        self.api = Api(
            self.store, self.config, Resolver(names), lambda: self.load,
            slots_in_use=lambda: self.in_use, clock=lambda: self.now, uniform=lambda: 0.5,
        )  # fmt: skip

    def put(self, owner: str = "", tier: str = "registered") -> Ticket:
        """Queue one more request."""
        rank = [t.name for t in TIERS.order].index(tier)
        ticket = Ticket(
            id=str(uuid.uuid4()), route="image", tier=tier, tier_rank=rank, client=owner or "addr:10.0.0.1",
            owner=owner, cost=30.0, crash_retries=1, created_at=self.now,
        )  # fmt: skip
        return self.store.put(ticket, Recording("{}", io.BytesIO(b""), 0), now=self.now)

    def claim(self) -> Ticket:
        """Start the first of the line."""
        ticket = self.store.claim("worker", now=self.now, lease=30, routes={"image"})
        assert ticket is not None
        return ticket

    def answer(
        self, ticket: Ticket, status: str = "200 OK", body: bytes = b"done", address: str = "", **headers: str
    ) -> None:
        """Give the ticket an answer of the app; without ``address`` one of those that were recorded without it."""
        given = [[name.replace("_", "-"), value] for name, value in {"Content_Type": "text/plain", **headers}.items()]
        parts = {"method": "POST", "status": status, "headers": given}
        head = json.dumps({**parts, "address": address} if address else parts)
        state = State.COMPLETED if status < "5" else State.FAILED
        self.store.finish(ticket.id, ticket.attempt, state, Recording(head, io.BytesIO(body), len(body)), now=self.now)

    def ask(self, call_name: str, ticket: Ticket | str, method: str = "GET", **keys: Any) -> Result:
        """Call the API about a ticket."""
        name = ticket if isinstance(ticket, str) else ticket.id
        return call(self.api, f"/api/queue/{call_name}/{name}", method, **keys)


def test_a_queued_request_is_answered_as_the_contract_says() -> None:
    """Catches: a field or a header of the 202 that is missing, renamed or of another type."""
    desk = Desk()
    desk.put()
    ticket = desk.put()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return desk.api.admitted(ticket, environ, start_response)

    result = call(app, "/image", "POST")
    base = "/api/queue"
    assert result.status == "202 Accepted"
    assert result.header("Location") == f"{base}/result/{ticket.id}"
    assert result.header("Cache-Control") == "no-store"
    assert result.header("Admission-Status") == "queued"
    assert int(result.header("Retry-After") or "0") >= 1
    data = result.json()
    wait = data["queue_info"]["estimated_wait_time"]
    assert wait > 0
    assert data == {
        "queued": True,
        "request_id": ticket.id,
        "status": "queued",
        "message": f"📋 You're #2 in queue. Estimated wait: {data['queue_info']['estimated_wait_human']}",
        "queue_info": {
            "position_in_queue": 2,
            "estimated_wait_time": wait,
            "estimated_wait_human": data["queue_info"]["estimated_wait_human"],
            "priority": "medium",
            "created_at": "2026-01-01T12:00:00Z",
        },
        "server_load": 0.85,
        "status_url": f"{base}/status/{ticket.id}",
        "result_url": f"{base}/result/{ticket.id}",
        "cancel_url": f"{base}/status/{ticket.id}",
        "events_url": f"{base}/events/{ticket.id}",
        "retry_suggestion": {
            "delay_seconds": 5,  # 2 s * (1 + 2 * 0.85) * 1.0
            "delay_human": "5 seconds",
            "message": "The server is busy (85% load). To try again instead of waiting, wait 5 seconds first.",
            "retry_after": "2026-01-01T12:00:05Z",
        },
    }


def test_the_status_has_the_fields_of_the_contract_in_each_state() -> None:
    """Catches: a made-up position or wait, a time that is not one."""
    desk = Desk()
    ticket = desk.put(tier="anonymous")
    queued = desk.ask("status", ticket).json()
    assert set(queued) == {
        "request_id", "status", "created_at", "started_at", "completed_at", "priority", "position_in_queue",
        "estimated_wait_time", "estimated_wait_human", "message", "estimated_wait_p90", "progress", "progress_note",
        "attempt", "cancelling", "status_url", "result_url", "cancel_url", "events_url",
    }  # fmt: skip
    assert (queued["position_in_queue"], queued["priority"], queued["started_at"]) == (1, "low", None)
    assert queued["message"].endswith("Sign in to move up the line.")
    assert queued["estimated_wait_p90"] >= queued["estimated_wait_time"]
    desk.now += 5
    claimed = desk.claim()
    processing = desk.ask("status", ticket).json()
    assert (processing["status"], processing["started_at"]) == ("processing", "2026-01-01T12:00:05Z")
    assert processing["position_in_queue"] is processing["estimated_wait_time"] is None
    desk.now += 5
    desk.answer(claimed)
    done = desk.ask("status", ticket)
    assert (done.json()["status"], done.json()["completed_at"]) == ("completed", "2026-01-01T12:00:10Z")
    assert done.header("Retry-After") is None
    assert done.header("Admission-Status") is None


def test_a_status_that_has_not_changed_is_not_sent_again() -> None:
    """Catches: an ETag that changes by itself, or that does not change with the state."""
    desk = Desk()
    ticket = desk.put()
    tag = desk.ask("status", ticket).header("ETag") or ""
    for asked in (tag, f'"x", W/{tag}', "*"):
        again = desk.ask("status", ticket, HTTP_IF_NONE_MATCH=asked)
        assert (again.status, again.body) == ("304 Not Modified", b"")
    desk.claim()
    assert desk.ask("status", ticket, HTTP_IF_NONE_MATCH=tag).status == "200 OK"


def test_the_tag_of_a_failed_ticket_stays_whatever_the_advice_says() -> None:
    """Catches: an ETag that changes with the jitter of the advice, or that the body does not come with."""
    desk = Desk()
    desk.put()
    claimed = desk.claim()
    desk.store.finish(claimed.id, claimed.attempt, State.FAILED, None, now=desk.now, error="It broke.")
    first = desk.ask("status", claimed)
    desk.now += 60
    desk.load = Load(value=0.1, above="", readings={}, failed={}, memory_above=False)
    again = desk.ask("status", claimed)
    assert first.json()["retry_suggestion"] != again.json()["retry_suggestion"]
    tag = first.header("ETag") or "none"
    assert again.header("ETag") == tag
    assert desk.ask("status", claimed, HTTP_IF_NONE_MATCH=tag).status == "304 Not Modified"


def test_a_result_is_pending_then_final_and_can_be_read_again() -> None:
    """Catches: a result that is gone after the first read; an answer of ours mistaken for the app's."""
    desk = Desk()
    ticket = desk.put()
    pending = desk.ask("result", ticket)
    assert (pending.status, pending.header("Admission-Status")) == ("202 Accepted", "queued")
    assert pending.header("Location") == f"/api/queue/result/{ticket.id}"
    claimed = desk.claim()
    assert desk.ask("result", ticket).header("Admission-Status") == "processing"
    desk.answer(claimed, "202 Later")
    for _ in range(3):
        final = desk.ask("result", ticket)
        assert (final.status, final.body, final.header("Admission-Status")) == ("202 Later", b"done", None)
    assert desk.ask("result", ticket, "HEAD").body == b""


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
OWN = "/shop/draw?a=%27&b=1"


def painted(desk: Desk, status: str = "200 OK", address: str = OWN, owner: str = "", **headers: str) -> Ticket:
    """Return a ticket with an answer of the app to ``address``; it is a page if ``headers`` do not say otherwise."""
    ticket = desk.put(owner)
    desk.answer(desk.claim(), status, b"a page", address, **{"Content_Type": "Text/HTML; charset=utf-8", **headers})
    return ticket


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Broken"])
@pytest.mark.parametrize("mount", ["", "/shop"])
def test_a_page_is_shown_at_an_address_where_its_links_work(mount: str, status: str) -> None:
    """Catches: a page below whose address there is nothing."""
    desk = Desk()
    ticket = painted(desk, status)
    for call_name in ("status", "result"):
        led = desk.ask(call_name, ticket, SCRIPT_NAME=mount, HTTP_ACCEPT=BROWSER)
        assert (led.status, led.header("Cache-Control")) == ("303 See Other", "no-store")
        assert led.header("Location") == f"{mount}/api/queue/result/{ticket.id}{OWN}"
    for query in ("a=%27&b=1", "a='&b=1"):
        shown = desk.ask("result", f"{ticket.id}/shop/draw?{query}", SCRIPT_NAME=mount, HTTP_ACCEPT=BROWSER)
        assert (shown.status, shown.body) == (status, b"a page")
    assert desk.ask("result", f"{ticket.id}{OWN}", "HEAD").status == status


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"HTTP_ACCEPT": "*/*"}, {}),
        ({"HTTP_ACCEPT": BROWSER, "HTTP_SEC_FETCH_MODE": "cors"}, {}),
        ({}, {"Content_Type": "image/svg+xml"}),
        ({}, {"Content_Disposition": "attachment; filename=page.html"}),
        ({}, {"status": "302 Found", "Location": "/elsewhere"}),
        ({}, {"address": ""}),
        ({}, {"address": "/a/../b"}),
    ],
    ids=["program", "fetch", "picture", "download", "redirect", "older", "dots"],
)
def test_what_is_no_page_in_a_browser_is_given_where_it_is_asked_for(
    asked: dict[str, str], answer: dict[str, str]
) -> None:
    """Catches: a program, or a script, that is sent on; an address that a browser changes, and never meets."""
    desk = Desk()
    result = desk.ask("result", painted(desk, **answer), **{"HTTP_ACCEPT": BROWSER, **asked})
    assert (result.status, result.body) == (answer.get("status", "200 OK"), b"a page")


@pytest.mark.parametrize(
    ("method", "asked", "location"),
    [
        ("GET", "/shop/next?page=2", "/shop/next?page=2"),
        ("POST", "/shop/draw?a=%27&b=1", OWN),
        ("GET", "/shop/draw", "/shop/draw"),
        ("PUT", "/", "/"),
        ("PATCH", "/tea pot;v=1", "/tea%20pot;v=1"),
        ("GET", "//evil.example/x", "/evil.example/x"),
        ("GET", "///evil.example", "/evil.example"),
        ("GET", "/\\evil.example", "/%5Cevil.example"),
        ("GET", "/\r\nX: y?\r\nX: y", "/%0D%0AX:%20y?%0D%0AX:%20y"),
        ("GET", "/\t/evil.example", "/%09/evil.example"),
        ("GET", "/100%25", "/100%2525"),
        ("GET", "/gr\xc3\xbc\xff?\xfc", "/gr%C3%BC%FF?%FC"),
        ("GET", "/#x?#y", "/%23x?%23y"),
    ],
)
def test_what_a_page_refers_to_is_found_on_the_site(method: str, asked: str, location: str) -> None:
    """Catches: a form that loses its method; a redirect to another host, or with a header in it."""
    desk = Desk()
    led = desk.ask("result", f"{painted(desk).id}{asked}", method, SCRIPT_NAME="/shop", HTTP_ACCEPT=BROWSER)
    assert (led.status, led.header("Location")) == ("307 Temporary Redirect", location)


@pytest.mark.parametrize(("size", "read"), [(300_000, 300_000), (20_000_000, 0)])
def test_what_is_sent_on_with_a_form_is_read_first(size: int, read: int) -> None:
    """Catches: an upload to a page's own form that gunicorn answers with a reset, while the browser still sends."""
    desk = Desk()
    sent = io.BytesIO(b"x" * size)
    keys: dict[str, Any] = {"wsgi.input": sent, "CONTENT_LENGTH": str(size)}
    led = desk.ask("result", painted(desk).id + OWN, "POST", **keys)
    assert (led.status, led.header("Location")) == ("307 Temporary Redirect", OWN)
    assert sent.tell() == read


def test_below_what_is_no_page_to_see_there_is_nothing() -> None:
    """Catches: a redirect for whoever has no ticket, and what was meant for another's eyes."""
    desk = Desk()
    unknown = desk.ask("result", str(uuid.uuid4()))
    mine, older = painted(desk, owner="user:ada"), painted(desk, address="")
    cancelled = desk.put()
    desk.store.cancel(cancelled.id, now=desk.now)
    for name in (str(uuid.uuid4()), "", mine.id, older.id, cancelled.id, desk.put().id):
        for path, method in ((OWN, "GET"), (OWN, "POST"), ("//evil.example", "GET")):
            other = desk.ask("result", name + path, method, REMOTE_USER="bob")
            assert (other.status, other.headers, other.body) == (unknown.status, unknown.headers, unknown.body)
    assert desk.ask("result", mine.id + OWN, REMOTE_USER="ada").body == b"a page"
    assert desk.ask("result", f"{mine.id}/x", REMOTE_USER="ada").header("Location") == "/x"


def test_a_signed_in_clients_ticket_does_not_exist_for_others() -> None:
    """Catches: another's status, result, events or cancel; a 404 that tells the two cases apart."""
    desk = Desk()
    ticket = desk.put(owner="user:ada")
    unknown = desk.ask("status", str(uuid.uuid4()))
    for name, method in (("status", "GET"), ("status", "DELETE"), ("result", "GET"), ("events", "GET")):
        for keys in ({}, {"REMOTE_USER": "bob"}):
            other = desk.ask(name, ticket, method, **keys)
            assert (other.status, other.headers, other.body) == (unknown.status, unknown.headers, unknown.body)
        assert desk.store.get(ticket.id).state is State.QUEUED
    assert desk.ask("status", ticket, REMOTE_USER="ada").status == "200 OK"


@pytest.mark.parametrize("shape", ["upper", "short", "none", "slash", "dots", "newline", "bytes"])
def test_what_is_no_id_is_answered_like_an_unknown_one(shape: str) -> None:
    """Catches: an answer that tells how ids look, or a ticket that is found under another spelling."""
    desk = Desk()
    mine = desk.put().id
    name = {
        "upper": mine.upper(), "short": mine[:-1], "none": "", "slash": f"{mine}/", "dots": f"../status/{mine}",
        "newline": f"{mine}\n", "bytes": "\x00\xff",
    }[shape]  # fmt: skip
    for call_name, method in (("status", "GET"), ("status", "DELETE"), ("result", "GET"), ("result", "PUT")):
        # Behind an id there are addresses too.
        unknown = desk.ask(call_name, f"{uuid.uuid4()}{'/' if '/' in name else ''}", method)
        other = desk.ask(call_name, name, method)
        assert (other.status, other.headers, other.body) == (unknown.status, unknown.headers, unknown.body)
    assert desk.store.get(mine).state is State.QUEUED


def test_an_anonymous_ticket_answers_to_whoever_has_the_id() -> None:
    """Catches: somebody whose address changed and who cannot come back."""
    desk = Desk()
    ticket = desk.put()
    assert desk.ask("status", ticket, REMOTE_ADDR="10.9.9.9").status == "200 OK"


@pytest.mark.parametrize("below", ["", OWN])
def test_a_cookie_of_the_app_is_for_the_client_that_asked(below: str) -> None:
    """Catches: a link to a result that lets a friend, or whoever reads it in a log, into one's session."""
    desk = Desk()
    anonymous = painted(desk, set_cookie="session=secret", X_Own="kept").id + below
    signed_in = painted(desk, owner="user:ada", Set_Cookie="session=secret", X_Own="kept").id + below
    for name, cookie, keys in (
        (anonymous, "session=secret", {"REMOTE_ADDR": "10.0.0.1"}),
        (anonymous, None, {"REMOTE_ADDR": "10.0.0.2"}),
        (anonymous, None, {"REMOTE_ADDR": "10.0.0.1", "REMOTE_USER": "bob"}),
        (signed_in, "session=secret", {"REMOTE_ADDR": "10.0.0.2", "REMOTE_USER": "ada"}),
    ):
        for _ in range(2):
            result = desk.ask("result", name, **keys)
            assert (result.body, result.header("X-Own"), result.header("Set-Cookie")) == (b"a page", "kept", cookie)


def test_the_cookies_of_a_redirect_that_keeps_the_method_are_set() -> None:
    """Catches: a sign-in that a script's 307 loses; one that anybody who has the id gets."""
    desk = Desk()
    desk.put()
    head = {"method": "POST", "status": "307 Temporary Redirect", "headers": [
        ["Location", "/next"], ["Set-Cookie", "a=1"], ["X-Own", "kept"], ["set-cookie", "b=2; Path=/"],
    ]}  # fmt: skip
    claimed = desk.claim()
    answer = Recording(json.dumps(head), io.BytesIO(b""), 0)
    desk.store.finish(claimed.id, claimed.attempt, State.COMPLETED, answer, now=desk.now)
    for sender, cookies in (("10.0.0.1", ["a=1", "b=2; Path=/"]), ("10.0.0.2", [])):
        told = desk.ask("result", f"{claimed.id}?redirect=manual", REMOTE_ADDR=sender)
        assert (told.status, told.header("Location"), told.header("X-Own")) == ("204 No Content", "/next", None)
        assert [value for name, value in told.headers if name.lower() == "set-cookie"] == cookies


def test_what_retention_removed_is_gone_and_for_others_unknown() -> None:
    """Catches: 410 that tells others of a ticket."""
    desk = Desk()
    mine, anonymous = desk.put(owner="user:ada"), desk.put()
    for _ in range(2):
        desk.answer(desk.claim())
    desk.store.prune(before=desk.now + 1, now=desk.now + 1)
    assert desk.ask("result", anonymous).status == "410 Gone"
    assert desk.ask("result", mine, REMOTE_USER="ada").status == "410 Gone"
    assert desk.ask("result", mine).status == "404 Not Found"


def test_cancelling_ends_a_ticket_once() -> None:
    """Catches: a second cancel that succeeds; a cancelled ticket with a result."""
    desk = Desk()
    ticket = desk.put()
    assert desk.ask("status", ticket, "DELETE").json()["status"] == "cancelled"
    conflict = desk.ask("status", ticket, "DELETE")
    assert conflict.status == "409 Conflict"
    assert conflict.header("Content-Type") == "application/problem+json"
    assert conflict.json() == {
        "type": "about:blank", "title": "Conflict", "status": 409, "detail": "The ticket is cancelled already.",
    }  # fmt: skip
    assert desk.ask("result", ticket).status == "410 Gone"


def test_a_run_that_is_being_cancelled_promises_no_answer() -> None:
    """Catches: the owner of a running ticket that somebody cancels who is told that its answer will come."""
    desk = Desk()
    ticket = desk.put()
    assert desk.ask("status", ticket).json()["cancelling"] is False
    claimed = desk.claim()
    running = desk.ask("status", ticket)
    assert running.json()["cancelling"] is False
    for asked in (desk.ask("status", ticket, "DELETE"), desk.ask("status", ticket), desk.ask("result", ticket)):
        told = asked.json()
        assert (told["status"], told["cancelling"]) == ("processing", True)
        assert told["message"] == "🚫 Your request is being cancelled; its answer will be dropped."
    assert desk.ask("status", ticket).header("ETag") != running.header("ETag")
    desk.answer(claimed)
    ended = desk.ask("status", ticket).json()
    assert (ended["status"], ended["cancelling"]) == ("cancelled", False)


def test_a_failure_without_an_answer_is_told_without_the_reason_of_the_app() -> None:
    """Catches: 200 for a failed run; a status without the advice to retry."""
    desk = Desk()
    desk.put()
    claimed = desk.claim()
    desk.store.finish(claimed.id, claimed.attempt, State.FAILED, None, now=desk.now, error="It broke.")
    status = desk.ask("status", claimed).json()
    assert (status["error_message"], status["message"]) == ("It broke.", "❌ Your request failed. It broke.")
    assert status["retry_suggestion"]["delay_seconds"] == 5
    result = desk.ask("result", claimed)
    assert (result.status, result.json()["detail"]) == ("500 Internal Server Error", "It broke.")


def crashed(desk: Desk, owner: str = "") -> Ticket:
    """Return a ticket whose worker died once too often."""
    ticket = desk.put(owner)
    for _ in range(2):
        desk.claim()
        desk.now += 31
        desk.store.requeue_expired(now=desk.now)
    return ticket


def test_what_failed_by_crashes_can_be_run_again_with_one_call() -> None:
    """Catches: an upload that has to be sent again although it is still here; an answer that is no new 202."""
    desk = Desk()
    ticket = crashed(desk)
    status = desk.ask("status", ticket).json()
    assert status["status"] == "failed"
    assert "kept here" in status["retry_suggestion"]["message"]
    assert status["retry_url"] == f"/api/queue/status/{ticket.id}/retry"
    again = call(desk.api, status["retry_url"], "POST")
    assert again.status == "202 Accepted"
    assert again.header("Location") == again.json()["result_url"]
    new = desk.store.get(again.json()["request_id"])
    assert new.id != ticket.id
    assert (new.state, new.tier, new.client, new.created_at) == (State.QUEUED, ticket.tier, ticket.client, desk.now)
    assert desk.claim().id == new.id


def test_a_second_retry_is_told_of_the_ticket_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a double click that runs it twice; an answer that was lost, and with it the id of the new ticket."""
    desk = Desk()
    ticket = crashed(desk)
    retry = desk.store.retry

    def lost(*old_and_new: Any, **how: Any) -> Ticket:
        retry(*old_and_new, **how)
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(desk.store, "retry", lost)
        assert desk.ask("status", f"{ticket.id}/retry", "POST").status == "503 Service Unavailable"
    assert "retry_url" not in desk.ask("status", ticket).json()
    first, second = (desk.ask("status", f"{ticket.id}/retry", "POST") for _ in range(2))
    assert first.status == second.status == "202 Accepted"
    run = desk.claim()
    assert first.json()["request_id"] == second.json()["request_id"] == run.id
    assert sum(tally.accepted for tally in desk.store.counts().values()) == 2
    desk.answer(run, "200 OK")
    assert desk.ask("status", f"{ticket.id}/retry", "POST").body == desk.ask("result", run).body


def test_what_is_done_through_the_api_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a ticket that ends, or begins anew, and of which the log knows nothing."""
    caplog.set_level(logging.INFO)
    desk = Desk()
    failed = crashed(desk)
    again = desk.ask("status", f"{failed.id}/retry", "POST").json()["request_id"]
    waiting = desk.put()
    running = desk.claim()
    for ticket_id in (waiting.id, running.id):
        desk.ask("status", ticket_id, "DELETE")
    assert running.id == again
    assert caplog.messages == [
        f"ticket.queued ticket={again[:8]} route=image tier=registered retry_of={failed.id[:8]}",
        f"ticket.cancelled ticket={waiting.id[:8]} route=image",
        f"ticket.cancelling ticket={again[:8]} route=image",
    ]


def test_only_its_owner_has_a_ticket_run_again() -> None:
    """Catches: somebody else's slot taken, and his place seen, by knowing an id."""
    desk = Desk()
    ticket = crashed(desk, "user:ann")
    stranger = desk.ask("status", f"{ticket.id}/retry", "POST", REMOTE_USER="bob")
    unknown = desk.ask("status", f"{uuid.uuid4()}/retry", "POST", REMOTE_USER="bob")
    assert (stranger.status, stranger.headers, stranger.body) == (unknown.status, unknown.headers, unknown.body)
    assert stranger.status == "404 Not Found"
    assert desk.ask("status", f"{ticket.id}/retry", "POST", REMOTE_USER="ann").status == "202 Accepted"


def test_what_waits_or_was_answered_is_not_run_again() -> None:
    """Catches: a run that nobody asked to repeat."""
    desk = Desk()
    waiting = desk.put()
    assert desk.ask("status", f"{waiting.id}/retry", "POST").status == "409 Conflict"
    desk.answer(desk.claim(), "503 Busy")
    assert desk.ask("status", f"{waiting.id}/retry", "POST").status == "409 Conflict"
    get = desk.ask("status", f"{waiting.id}/retry")
    assert (get.status, get.header("Allow")) == ("405 Method Not Allowed", "POST, OPTIONS")


def test_one_event_is_sent_and_after_the_final_one_no_more() -> None:
    """Catches: an EventSource that comes back for ever."""
    desk = Desk()
    ticket = desk.put()
    events = desk.ask("events", ticket)
    assert events.header("Content-Type") == "text/event-stream"
    lines = events.body.decode().split("\n")
    assert lines[0].startswith("retry: ")
    assert lines[1:3] == ["id: queued", "event: status"]
    assert json.loads(lines[3].removeprefix("data: "))["request_id"] == ticket.id
    assert lines[4:] == ["", ""]
    assert desk.ask("events", ticket, HTTP_LAST_EVENT_ID="queued").status == "200 OK"
    desk.answer(desk.claim())
    assert desk.ask("events", ticket, HTTP_LAST_EVENT_ID="queued").status == "200 OK"
    assert desk.ask("events", ticket, HTTP_LAST_EVENT_ID="completed").status == "204 No Content"


@pytest.mark.parametrize(
    ("script", "base_url", "expected"),
    [
        ("", "", "/api/queue"),
        ("/shop", "", "/shop/api/queue"),
        ("/a b\xc3\xbc", "", "/a%20b%C3%BC/api/queue"),
        ("/shop", "https://example.org", "https://example.org/shop/api/queue"),
    ],
)
def test_urls_start_where_the_app_is_mounted(script: str, base_url: str, expected: str) -> None:
    """Catches: links that leave the mount point, or that are no URLs."""
    desk = Desk(base_url=base_url)
    ticket = desk.put()
    status = desk.ask("status", ticket, SCRIPT_NAME=script).json()
    assert status["status_url"] == f"{expected}/status/{ticket.id}"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/status",
        "/status/",
        "/status/x",
        "/status/../health",
        "/status/2f1c7f0e-6f0b-4c9e-9b7d-0d6a4a1f3c55/x",
        "/nothing",
    ],
)
def test_other_addresses_do_not_exist(path: str) -> None:
    """Catches: a traceback for a path that nobody thought of."""
    result = call(Desk().api, f"/api/queue{path}")
    assert result.status == "404 Not Found"
    assert result.header("Content-Type") == "application/problem+json"


def test_methods_are_told() -> None:
    """Catches: 404 or 500 for a method that an address does not take."""
    desk = Desk()
    ticket = desk.put()
    options = desk.ask("status", ticket, "OPTIONS")
    assert (options.status, options.header("Allow")) == ("204 No Content", "GET, DELETE, HEAD, OPTIONS")
    assert desk.ask("result", ticket, "DELETE").header("Allow") == "GET, HEAD, OPTIONS"
    assert call(desk.api, "/api/queue/health", "POST").status == "405 Method Not Allowed"


@pytest.mark.parametrize(
    ("value", "queued", "status"),
    [(0.7, 50, "healthy"), (0.71, 0, "warning"), (0.1, 51, "warning"), (0.91, 0, "degraded"), (0.1, 101, "degraded")],
)
def test_health_by_load_and_length(value: float, queued: int, status: str) -> None:
    """Catches: a bound off by one; what a sensor raised, shown to everybody."""
    desk = Desk()
    desk.load = Load(
        value=value, above="", readings={"cpu": value}, failed={"memory": "OSError('/proc/x')."}, memory_above=False
    )
    for _ in range(queued):
        desk.put()
    result = call(desk.api, "/api/queue/health")
    assert result.status == "200 OK"
    assert result.json()["status"] == status
    assert result.json()["checks"]["load"]["failed"] == {"memory": "failing"}


def test_a_pause_is_seen_by_the_owner_of_a_ticket_and_in_the_health() -> None:
    """Catches: an estimate while nothing moves; a client that asks every second; a pause that nobody notices."""
    desk = Desk()
    desk.load = Load(value=0.1, above="", readings={}, failed={}, memory_above=False)
    ticket = desk.put()
    assert call(desk.api, "/api/queue/health").json()["checks"]["paused"] == {"status": "ok"}
    desk.store.pause(paused=True)
    status = desk.ask("status", ticket)
    data = status.json()
    assert data["message"].startswith("⏸️ You're #1 in queue.")
    assert data["position_in_queue"] == 1
    for name in ("estimated_wait_time", "estimated_wait_human", "estimated_wait_p90"):
        assert data[name] is None
    assert 13 <= int(status.header("Retry-After") or 0) <= 17
    accepted = call(lambda *told: desk.api.admitted(ticket, *told), "/image", "POST").json()
    assert accepted["message"] == data["message"]
    assert accepted["retry_suggestion"]["message"].startswith("The queue is paused just now.")
    health = call(desk.api, "/api/queue/health").json()
    assert (health["status"], health["checks"]["paused"]) == ("warning", {"status": "paused"})


def test_a_dead_store_is_503_only_when_nothing_can_run_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a shared fault that takes every node out of the load balancer."""
    desk = Desk()

    def dead() -> Any:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(desk.store, "counts", dead)
    degraded = call(desk.api, "/api/queue/health")
    assert (degraded.status, degraded.json()["status"]) == ("200 OK", "degraded")
    assert degraded.json()["checks"]["store"]["status"] == "failing"
    desk.in_use = desk.config.admission.max_concurrent
    assert call(desk.api, "/api/queue/health").status == "503 Service Unavailable"
    metrics = call(desk.api, "/api/queue/metrics")
    assert metrics.status == "503 Service Unavailable"
    assert int(metrics.header("Retry-After") or "0") >= 1


@pytest.mark.parametrize("step", ["get", "ahead", "statistics", "counts"])
@pytest.mark.parametrize("call_name", ["status", "result", "events"])
def test_a_store_that_fails_in_the_middle_of_a_status_means_come_back_later(
    monkeypatch: pytest.MonkeyPatch, step: str, call_name: str
) -> None:
    """Catches: a 500 for a ticket that is safe, or half a status that a client takes for the truth."""
    desk = Desk()
    ticket = desk.put()

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(desk.store, step, dead)
        failing = desk.ask(call_name, ticket)
    assert failing.status == "503 Service Unavailable"
    assert failing.header("Content-Type") == "application/problem+json"
    assert int(failing.header("Retry-After") or "0") >= 1
    assert desk.ask(call_name, ticket).status == ("202 Accepted" if call_name == "result" else "200 OK")


def test_metrics_ask_for_the_token_when_told_to() -> None:
    """Catches: figures shown to everybody although the site's owner said no."""
    desk = Desk(metrics="token", admin_token="a-token-of-some-length")  # noqa: S106 - of this test
    assert call(desk.api, "/api/queue/metrics").status == "401 Unauthorized"
    wrong = call(desk.api, "/api/queue/metrics", HTTP_AUTHORIZATION="Bearer a-token-of-some-lengtX")
    assert (wrong.status, wrong.header("WWW-Authenticate")) == ("401 Unauthorized", "Bearer")
    right = call(desk.api, "/api/queue/metrics", HTTP_AUTHORIZATION="Bearer a-token-of-some-length")
    assert right.status == "200 OK"


def test_metrics_add_up() -> None:
    """Catches: an average over the wrong count; a state that is counted twice."""
    desk = Desk()
    first = desk.put()
    desk.put(tier="donor")
    desk.put(tier="anonymous")
    desk.now += 10
    claimed = desk.claim()
    desk.now += 4
    desk.answer(claimed)
    desk.store.cancel(first.id, now=desk.now)
    figures = call(desk.api, "/api/queue/metrics").json()
    assert figures == {
        "total_requests": 3,
        "queued_requests": 1,
        "processing_requests": 0,
        "completed_requests": 1,
        "failed_requests": 0,
        "cancelled_requests": 1,
        "passed_requests": 0,
        "shadowed_requests": 0,
        "average_wait_time": 10.0,
        "average_processing_time": 4.0,
        "queue_throughput": 0.2,
        "server_load": 0.85,
        "queue_lengths": {"high_priority": 0, "medium_priority": 0, "low_priority": 1},
        "max_concurrent_requests": 1,
    }


def test_a_run_that_its_worker_never_ended_is_no_part_of_the_average() -> None:
    """Catches: an average lowered by tickets whose run times nobody knows."""
    desk = Desk()
    desk.put()
    desk.put()
    first, _ = desk.claim(), desk.claim()
    desk.now += 8
    desk.answer(first)
    for _ in range(2):  # the other one dies with its worker as often as it may
        desk.now += 100
        desk.store.requeue_expired(now=desk.now)
        desk.store.claim("worker", now=desk.now, lease=30, routes={"image"})
    figures = call(desk.api, "/api/queue/metrics").json()
    assert (figures["completed_requests"], figures["failed_requests"]) == (1, 1)
    assert figures["average_processing_time"] == 8.0


def test_the_load_is_part_of_the_advice() -> None:
    """Catches: advice that ignores the load."""
    desk = Desk()
    waits = []
    for value in (0.0, 1.0):
        desk.load = Load(value=value, above="", readings={}, failed={}, memory_above=False)
        desk.put()
        claimed = desk.claim()
        desk.store.finish(claimed.id, claimed.attempt, State.FAILED, None, now=desk.now, error="x")
        waits.append(desk.ask("status", claimed).json()["retry_suggestion"]["delay_seconds"])
    assert waits == [2, 6]


def test_a_result_tells_how_long_it_waited_and_ran_behind_the_apps_own_headers() -> None:
    """Catches: the app's own Server-Timing replaced, ours in front of its headers, seconds for milliseconds."""
    desk = Desk()
    ticket = desk.put()
    desk.now += 2
    claimed = desk.claim()
    desk.now += 0.25
    headers = [["Server-Timing", "db;dur=53"], ["Content-Type", "text/plain"]]
    head = json.dumps({"method": "POST", "status": "200 OK", "headers": headers})
    answer = Recording(head, io.BytesIO(b"done"), 4)
    desk.store.finish(ticket.id, claimed.attempt, State.COMPLETED, answer, now=desk.now)
    expected = [*map(tuple, headers), ("Server-Timing", "queue;dur=2000, app;dur=250")]
    assert desk.ask("result", ticket).headers == expected
    assert desk.ask("status", ticket).header("Server-Timing") is None

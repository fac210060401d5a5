"""The adapters for programs, over sites that are played and over a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from email.message import Message
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import psutil
import pytest
import requests
from requests.adapters import HTTPAdapter
from rich.console import Console
from urllib3 import HTTPResponse, Timeout
from urllib3.exceptions import MaxRetryError, NewConnectionError

from tests.support import ROOT, Server, gunicorn, ini, until
from wsgi_admission.client import (
    AdmissionAdapter,
    AdmissionTransport,
    AsyncAdmissionTransport,
    ForeignAddress,
    RetryBudget,
    Terms,
    TicketCancelled,
    TicketLost,
    UnexpectedAnswer,
    Unreachable,
    Update,
    WaitedTooLong,
    WaitingError,
)
from wsgi_admission.client.answers import looking, retry_after, same_origin
from wsgi_admission.client.bars import Bars

SITE = "http://site.test"
URL = f"{SITE}/api/generate"
Script = list[Any]
REFUSED, BROKEN = "refused", "broken"


def pending(state: str = "queued", pause: str = "7", **fields: Any) -> Any:
    """Return what the line answers while a ticket waits."""
    urls = {"status_url": "/q/status/1", "result_url": "/q/result/1", "cancel_url": "/q/status/1"}
    data = {"request_id": "1", "status": state, **urls, **fields}
    return 202, {"Admission-Status": state, "Retry-After": pause, "Location": "/q/result/1"}, json.dumps(data).encode()


def status(state: str, pause: str = "7", **fields: Any) -> Any:
    """Return what the status of a ticket is."""
    head = {} if state in {"completed", "failed", "cancelled"} else {"Admission-Status": state, "Retry-After": pause}
    return 200, head, json.dumps({"request_id": "1", "status": state, **fields}).encode()


DONE = (200, {"Content-Type": "text/plain"}, b"a picture")


class Played:
    """A site that answers by a script, a clock that moves in pauses only, and what was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, str, httpx.Headers, bytes]] = []
        self.pauses: list[float] = []
        self.updates: list[Update] = []
        self.now = 1000.0
        self.terms = Terms(clock=lambda: self.now, uniform=lambda: 0.5)

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> Any:
        """Take the next answer of the script; an exception in it is raised."""
        self.asked.append((method, url, httpx.Headers(dict(headers)), body))
        if method == "DELETE":
            return 200, {}, b"{}"
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.pauses.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        """Let the time pass, on an event loop."""
        self.sleep(seconds)

    @property
    def calls(self) -> list[str]:
        """What was asked, in short."""
        return [f"{method} {url.removeprefix(SITE)}" for method, url, _, _ in self.asked]


def options_of(site: Played, given: dict[str, Any]) -> dict[str, Any]:
    """Return the adapter's parameters, those of ``given`` before those of the site that is played."""
    mine: dict[str, Any] = {name: given.pop(name) for name in ("max_wait", "terms", "on_update") if name in given}
    return {"terms": site.terms, "on_update": site.updates.append, **mine}


def handled(site: Played, request: httpx.Request) -> httpx.Response:
    """Answer a request of httpx."""
    answer = site.answer(request.method, str(request.url), request.headers, request.read())
    if answer == REFUSED:
        raise httpx.ConnectError("refused")
    if answer == BROKEN:
        raise httpx.RemoteProtocolError("broken")
    return httpx.Response(answer[0], headers=answer[1], content=answer[2])


def by_httpx(site: Played, method: str, url: str = URL, **given: Any) -> Any:
    """Send a request and return the answer."""
    options = options_of(site, given)
    inner = httpx.MockTransport(lambda request: handled(site, request))
    with httpx.Client(transport=AdmissionTransport(inner, sleep=site.sleep, **options)) as client:
        return client.request(method, url, **given)


def by_async_httpx(site: Played, method: str, url: str = URL, **given: Any) -> Any:
    """Send a request and return the answer."""
    options = options_of(site, given)

    async def answer(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return handled(site, request)

    async def main() -> httpx.Response:
        transport = AsyncAdmissionTransport(httpx.MockTransport(answer), sleep=site.sleep_async, **options)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, url, **given)

    return asyncio.run(main())


def by_requests(site: Played, method: str, url: str = URL, **given: Any) -> Any:
    """Send a request and return the answer."""
    options = options_of(site, given)

    def send(self: HTTPAdapter, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        given: Any = request.body
        body = given.read() if hasattr(given, "read") else given.encode() if isinstance(given, str) else given
        answer = site.answer(str(request.method), str(request.url), request.headers, body or b"")
        if answer == REFUSED:
            cause = MaxRetryError(None, "", NewConnectionError(None, "refused"))  # type: ignore[arg-type] # no pool here
            raise requests.exceptions.ConnectionError(cause)
        if answer == BROKEN:
            raise requests.exceptions.ConnectionError("broken")
        raw = HTTPResponse(BytesIO(answer[2]), headers=answer[1], status=answer[0], preload_content=False)
        message = Message()
        for field in answer[1].items():
            message.add_header(*field)
        raw._original_response = SimpleNamespace(msg=message, isclosed=lambda: True, close=lambda: None)  # type: ignore[assignment] # where requests looks for cookies
        return self.build_response(request, raw)

    with pytest.MonkeyPatch.context() as patch, requests.Session() as session:
        patch.setattr(HTTPAdapter, "send", send)
        session.mount("http://", AdmissionAdapter(sleep=site.sleep, **options))
        return session.request(method, url, **given)


Via = Callable[..., Any]


async def pieces() -> AsyncIterator[bytes]:
    """Yield a body."""
    yield b"x"


#: A body that can be read once, for each library.
ONCE: dict[Via, Callable[[], dict[str, Any]]] = {
    by_requests: lambda: {"data": iter([b"x"])},
    by_httpx: lambda: {"content": iter([b"x"])},
    by_async_httpx: lambda: {"content": pieces()},
}


@pytest.fixture(params=[by_requests, by_httpx, by_async_httpx], ids=["requests", "httpx", "async"])
def via(request: pytest.FixtureRequest) -> Via:
    """Send a request by one of the libraries."""
    return request.param  # type: ignore[no-any-return] # pytest has no type for it


LIBRARY = (requests.RequestException, httpx.TransportError)


def test_the_answer_comes_as_if_it_had_been_quick(via: Via) -> None:
    """Catches: the 202 or a look's answer returned, its address shown, a pause that is not the one asked for."""
    place = {"position_in_queue": 3, "estimated_wait_time": 120}
    half = status("processing", "2", progress=0.5, progress_note="step 2\x1b[2J", estimated_wait_p90=9)
    site = Played([pending(queue_info=place, message="#3"), half, status("completed"), DONE])
    answer = via(site, "POST", content=b"x") if via is not by_requests else via(site, "POST", data=b"x")
    assert (answer.status_code, answer.content, str(answer.url), answer.history) == (200, b"a picture", URL, [])
    assert (answer.request.method, str(answer.request.url)) == ("POST", URL)
    assert site.calls == ["POST /api/generate", "GET /q/status/1", "GET /q/status/1", "GET /q/result/1"]
    assert site.pauses == [7, 2]
    assert site.updates[0] == Update("queued", 3, 120, message="#3", ticket="1")
    assert site.updates[1] == Update("processing", p90=9, progress=0.5, note="step 2[2J", ticket="1")
    assert site.updates[2].state == "completed"


def test_a_202_of_the_app_is_left_alone(via: Via) -> None:
    """Catches: an app's own Location being polled."""
    site = Played([(202, {"Location": "/jobs/1", "Retry-After": "1"}, b"{}")])
    assert via(site, "POST").status_code == 202
    assert (len(site.asked), site.pauses) == (1, [])


def test_one_key_for_each_request_and_its_retries(via: Via) -> None:
    """Catches: a new key for a retry, a key on a GET, the caller's key replaced."""
    site = Played([BROKEN, (503, {"Retry-After": "9"}, b""), DONE, DONE, DONE, DONE])
    assert via(site, "POST").content == b"a picture"
    via(site, "POST")
    via(site, "GET")
    via(site, "POST", headers={"idempotency-key": "mine"})
    keys = [headers.get("Idempotency-Key") for _, _, headers, _ in site.asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert len(keys[0]) == 38
    assert keys[4:] == [None, "mine"]
    assert site.pauses == [1.0, 9.0]


@pytest.mark.parametrize(
    ("timeout", "prefer"),
    [
        (5, "wait=2"),
        (0.5, "wait=0"),
        (19.9, "wait=9"),
        (20, None),
        (None, None),
        ((20, 5), "wait=2"),
        ((5, None), None),
    ],
)
def test_a_site_may_hold_a_request_for_half_the_read_timeout(via: Via, timeout: Any, prefer: str | None) -> None:
    """Catches: a request that an idle site holds until its client has given up, and does not know its ticket."""
    if isinstance(timeout, tuple) and via is not by_requests:
        timeout = httpx.Timeout(timeout[0], read=timeout[1])
    site = Played([pending(), status("completed"), DONE, DONE])
    via(site, "POST", timeout=timeout)
    assert [headers.get("Prefer") for _, _, headers, _ in site.asked] == [prefer, None, None]
    via(site, "GET", timeout=timeout)
    assert "Prefer" not in site.asked[-1][2]  # only what has a key is held without being asked


@pytest.mark.parametrize(
    ("max_wait", "timeout", "prefer"),
    [(2, None, "wait=2"), (0.5, None, "wait=0"), (9, 8, "wait=4"), (2, 60, "wait=2"), (600, None, None)],
)
def test_a_site_may_hold_a_request_for_max_wait(via: Via, max_wait: float, timeout: Any, prefer: str | None) -> None:
    """Catches: a request that an idle site holds beyond max_wait; one that a busy site holds for no reason."""
    site = Played([pending(), status("completed"), DONE])
    with suppress(WaitedTooLong):
        via(site, "POST", max_wait=max_wait, timeout=timeout)
    assert site.asked[0][2].get("Prefer") == prefer


def test_a_retry_is_held_for_what_is_left_of_max_wait(via: Via) -> None:
    """Catches: a retry that may take all of max_wait once more."""
    site = Played([(503, {"Retry-After": "3"}, b""), DONE])
    via(site, "POST", max_wait=9, timeout=None)
    assert [headers.get("Prefer") for _, _, headers, _ in site.asked] == ["wait=9", "wait=6"]


def test_a_timeout_of_urllib3_is_understood() -> None:
    """Catches: an adapter that stumbles over what requests takes too, or misses the limit of all."""
    for timeout in (Timeout(5), Timeout(read=5), Timeout(5, read=9)):
        site = Played([DONE])
        by_requests(site, "POST", timeout=timeout)
        assert site.asked[0][2]["Prefer"] == "wait=2"


@pytest.mark.parametrize(
    ("mine", "prefer"),
    [
        ("wait=60", "wait=60"),
        ("return=minimal, Wait = 7", "return=minimal, Wait = 7"),
        ("respond-async", "respond-async"),
        ("return=minimal", "return=minimal, wait=2"),
        ("x=awaits", "x=awaits, wait=2"),
    ],
)
def test_what_the_caller_prefers_stays(via: Via, mine: str, prefer: str) -> None:
    """Catches: a preference of the caller that is replaced or doubled; one that keeps ours away for no reason."""
    site = Played([DONE])
    via(site, "PUT", timeout=5, headers={"prefer": mine, "Idempotency-Key": "mine"})
    assert site.asked[0][2].get_list("Prefer") == [prefer]


def test_the_body_is_sent_again_whole(via: Via, tmp_path: Path) -> None:
    """Catches: a file that is at its end when the request is sent again."""
    (tmp_path / "x").write_bytes(b"a whole body")
    site = Played([BROKEN, DONE])
    with (tmp_path / "x").open("rb") as file:
        # requests reads a form with files into memory; a file that is the body it sends as it is.
        via(site, "POST", headers=MINE, **({"data": file} if via is by_requests else {"files": {"x": file}}))
    assert len(site.asked) == 2
    assert all(b"a whole body" in body for _, _, _, body in site.asked)


def test_retries_end(via: Via) -> None:
    """Catches: more tries than are allowed, a retry without budget, one later than may be waited for."""
    trouble: Any = (503, {}, b"busy")
    site = Played([trouble] * 9)
    assert via(site, "POST").content == b"busy"
    assert len(site.asked) == 4
    site = Played([trouble] * 9)
    assert via(site, "POST", terms=Terms(clock=lambda: 0.0, budget=RetryBudget(0.1, 1))).status_code == 503
    assert len(site.asked) == 2
    site = Played([(503, {"Retry-After": "3600"}, b"")])
    assert via(site, "POST").status_code == 503
    assert site.pauses == []


def test_what_is_sent_twice_is_the_callers_choice(via: Via) -> None:
    """Catches: resend that is not obeyed, or that keeps a request back that never arrived."""
    site = Played([REFUSED, BROKEN, DONE])
    with pytest.raises(LIBRARY):
        via(site, "POST", terms=Terms(resend=False, clock=lambda: 0.0))
    assert len(site.asked) == 2


def test_a_restart_is_survived(via: Via) -> None:
    """Catches: a place in the line given up because the server is not there for a moment."""
    gone: Any = (502, {}, b"")
    site = Played([pending(), *[REFUSED] * 8, BROKEN, gone, status("completed"), BROKEN, gone, DONE])
    assert via(site, "POST").content == b"a picture"
    site = Played([pending(), *[REFUSED] * 99])
    with pytest.raises(Unreachable, match="has not told") as raised:
        via(site, "POST")
    assert isinstance(raised.value, LIBRARY)
    assert 300 <= site.now - 1007 < 340


def test_a_recorded_failure_is_the_answer(via: Via) -> None:
    """Catches: the app's own 503 taken for a server in trouble."""
    site = Played([pending(), status("failed"), (503, {"Retry-After": "1"}, b"no paint")])
    assert via(site, "POST").content == b"no paint"


def test_max_wait_cancels(via: Via) -> None:
    """Catches: a wait without end, a pause beyond it, a ticket that nobody waits for."""
    site = Played([pending(pause="40"), *[status("queued", "40")] * 9])
    with pytest.raises(WaitedTooLong, match="60 seconds") as raised:
        via(site, "POST", max_wait=60)
    assert isinstance(raised.value, (requests.Timeout, httpx.TimeoutException))
    assert site.pauses == [40, 20]
    assert site.calls[-1] == "DELETE /q/status/1"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_cancels(via: Via, stop: type[BaseException]) -> None:
    """Catches: a ticket that runs for nobody."""

    def interrupt(_: Update) -> None:
        raise stop

    site = Played([pending()])
    with pytest.raises(stop):
        via(site, "POST", on_update=interrupt)
    assert site.calls[-1] == "DELETE /q/status/1"


#: A key of the caller's own.
MINE = {"Idempotency-Key": "mine"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_cancels_what_an_idle_site_holds(via: Via, stop: type[BaseException]) -> None:
    """Catches: a request that runs for nobody because its ticket was not told yet."""
    site = Played([stop(), pending()])
    with pytest.raises(stop):
        via(site, "POST", headers={**MINE, "Prefer": "wait=60", "Accept": "text/html"}, data={"a": "b"})
    assert site.calls == ["POST /api/generate", "POST /api/generate", "DELETE /q/status/1"]
    (_, _, first, body), (_, _, again, same) = site.asked[:2]
    assert (again["Idempotency-Key"], same) == (first["Idempotency-Key"], body)
    assert (again["Prefer"], again["Accept"]) == ("wait=0", "application/json")
    site = Played([BROKEN, stop(), pending()])
    with pytest.raises(stop):
        via(site, "PUT", headers=MINE)
    assert [headers.get("Idempotency-Key") for _, _, headers, _ in site.asked] == ["mine", "mine", "mine", None]
    assert site.calls[-1] == "DELETE /q/status/1"


def test_a_file_is_sent_whole_to_learn_its_ticket(via: Via, tmp_path: Path) -> None:
    """Catches: another body under the same key, which is refused."""
    (tmp_path / "x").write_bytes(b"a whole body")
    site = Played([KeyboardInterrupt(), pending()])
    with (tmp_path / "x").open("rb") as file, pytest.raises(KeyboardInterrupt):
        via(site, "POST", headers=MINE, **({"data": file} if via is by_requests else {"files": {"x": file}}))
    assert [b"a whole body" in body for _, _, _, body in site.asked] == [True, True, False]


@pytest.mark.parametrize("answer", [DONE, BROKEN, REFUSED, pending(cancel_url="http://evil.test/q/1")])
def test_the_interruption_is_told_whatever_the_site_says(via: Via, answer: Any) -> None:
    """Catches: an error of the cancelling in the place of the interruption."""
    site = Played([KeyboardInterrupt(), answer])
    with pytest.raises(KeyboardInterrupt):
        via(site, "POST", headers=MINE)
    assert len(site.asked) == 2


def test_what_has_no_ticket_to_learn_is_not_sent_again(via: Via) -> None:
    """Catches: a request sent twice that has none of the caller's keys, whose body is gone, or may not be resent."""
    once = Terms(resend=False, clock=lambda: 0.0)
    for more in ({}, {"headers": MINE, "terms": once}, {"headers": MINE, **ONCE[via]()}):
        site = Played([KeyboardInterrupt(), pending()])
        with pytest.raises(KeyboardInterrupt):
            via(site, "POST", **more)
        assert len(site.asked) == 1
    failed: Any
    for failed in (BROKEN, (503, {}, b"")):
        site = Played([failed, failed, failed, failed])
        with suppress(*LIBRARY):
            via(site, "POST")
        assert len(site.asked) == 4


@pytest.mark.parametrize("by", ["task", "scope"])
def test_a_cancelled_task_cancels_what_an_idle_site_holds(by: str) -> None:
    """Catches: the request for its ticket cancelled with the task."""
    site = Played([pending()])

    async def main() -> None:
        held = asyncio.Event()

        async def answer(request: httpx.Request) -> httpx.Response:
            if not held.is_set():
                held.set()
                await anyio.sleep_forever()
            await anyio.lowlevel.checkpoint()
            return handled(site, request)

        transport = AsyncAdmissionTransport(httpx.MockTransport(answer))
        async with httpx.AsyncClient(transport=transport) as client, anyio.create_task_group() as group:
            if by == "scope":
                group.start_soon(partial(client.post, URL, headers=MINE))
                await held.wait()
                group.cancel_scope.cancel()
                return
            task = asyncio.create_task(client.post(URL, headers=MINE))
            await held.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert site.calls == ["POST /api/generate", "DELETE /q/status/1"]


@pytest.mark.parametrize("by", ["task", "scope"])
def test_a_cancelled_task_cancels(by: str) -> None:
    """Catches: an await that is cancelled with its task, or with the scope around it, so that no DELETE is sent."""
    site = Played([pending()])

    async def slow(request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return handled(site, request)

    async def main() -> None:
        waits = asyncio.Event()
        transport = AsyncAdmissionTransport(
            httpx.MockTransport(slow), on_update=lambda _: waits.set(), sleep=lambda _: anyio.sleep_forever()
        )
        async with httpx.AsyncClient(transport=transport) as client, anyio.create_task_group() as group:
            if by == "scope":
                group.start_soon(client.post, URL)
                await waits.wait()
                group.cancel_scope.cancel()
                return
            task = asyncio.create_task(client.post(URL))
            await waits.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()

    asyncio.run(main())
    assert site.calls[-1] == "DELETE /q/status/1"


@pytest.mark.parametrize(
    ("look", "error"),
    [
        ((404, {}, b""), TicketLost),
        ((410, {}, b""), TicketLost),
        (status("cancelled", message="It was cancelled."), TicketCancelled),
        ((401, {}, b""), UnexpectedAnswer),
        ((200, {}, b"<h1>Sign in</h1>"), UnexpectedAnswer),
        ((302, {"Location": "http://other.test/"}, b""), UnexpectedAnswer),
    ],
)
def test_a_ticket_that_cannot_be_followed_is_told(via: Via, look: Any, error: type[WaitingError]) -> None:
    """Catches: polling for ever, or an answer about the ticket taken for the app's."""
    site = Played([pending(), look])
    with pytest.raises(error) as raised:
        via(site, "POST")
    assert isinstance(raised.value, LIBRARY)
    assert raised.value.url == f"{SITE}/q/status/1"
    assert ("DELETE /q/status/1" in site.calls) == (error is UnexpectedAnswer)


def test_credentials_go_to_the_same_origin_only(via: Via) -> None:
    """Catches: a poll without the credentials of the request, or one that takes them elsewhere."""
    head = {"Authorization": "Bearer x", "Cookie": "a=1", "X-Tenant": "t", "Te-Nant": "u", "If-None-Match": "*"}
    site = Played([pending(), status("completed"), DONE])
    via(site, "POST", headers=head, data={"a": "b"})
    for _, _, headers, _ in site.asked[1:]:
        assert [headers[name] for name in ("Authorization", "Cookie", "X-Tenant", "Te-Nant")] == [
            "Bearer x", "a=1", "t", "u",
        ]  # fmt: skip
        assert not {"content-type", "content-length", "if-none-match", "idempotency-key"} & set(headers)
    for name in ("status_url", "result_url", "cancel_url"):
        site = Played([pending(**{name: "http://evil.test/q/1"})])
        with pytest.raises(ForeignAddress, match="evil"):
            via(site, "POST", headers=head)
        assert len(site.asked) == 1


@pytest.mark.parametrize(
    "given",
    ["//evil.test/x", "https://site.test/x", "http://site.test:81/x", "http://u@site.test/x", "http://site.test\\@e/x",
     "/\\evil.test", "/x y", "/x\r\ny", "http://site.test:x/", "javascript:x"],
)  # fmt: skip
def test_addresses_of_another_origin_are_refused(given: str) -> None:
    """Catches: a way to write another host that passes for the same one."""
    with pytest.raises(ForeignAddress, match=r"is refused\. If that is|is no address"):
        same_origin(URL, given)


@pytest.mark.parametrize(
    ("asked", "given", "address"),
    [
        (URL, "/q/1?a=b", "http://site.test/q/1?a=b"),
        (URL, "http://SITE.test:80/q", "http://site.test/q"),
        ("https://u:p@site.test/x", "https://site.test:443/q", "https://site.test/q"),
        ("http://[::1]:8000/x", "/q", "http://[::1]:8000/q"),
    ],
)
def test_addresses_of_the_same_origin_are_taken(asked: str, given: str, address: str) -> None:
    """Catches: a default port or a name in capitals taken for another origin."""
    assert same_origin(asked, given) == address


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "5"}, 5.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT", "Date": "Thu, 01 Jan 1970 00:01:30 GMT"}, 10.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    """Catches: a date that is not understood, or counted from another clock than its own."""
    assert retry_after(headers, 60.0) == seconds


def test_a_page_for_people_is_followed(via: Via) -> None:
    """Catches: a client that asked for HTML and cannot find its ticket."""
    page = (202, {"Admission-Status": "queued", "Location": "/q/result/1", "Retry-After": "3"}, b"<h1>Wait</h1>")
    site = Played([page, pending(), status("completed"), DONE])
    assert via(site, "POST", headers={"Accept": "text/html"}).content == b"a picture"
    assert site.asked[1][2]["Accept"] == "application/json"
    assert site.asked[3][2]["Accept"] == "*/*"
    site = Played([page, DONE, DONE])
    assert via(site, "POST", headers={"Accept": "text/html"}).content == b"a picture"


def test_a_redirect_of_the_app_is_followed_as_ever(via: Via) -> None:
    """Catches: a relative redirect that starts from the ticket's address; the answer's cookie lost."""
    there = (303, {"Location": "picture/1", "Set-Cookie": "seen=1"}, b"")
    site = Played([pending(), status("completed"), there, DONE])
    more = {} if via is by_requests else {"follow_redirects": True}
    answer = via(site, "POST", **more)
    assert str(answer.url) == f"{SITE}/api/picture/1"
    assert [str(before.url) for before in answer.history] == [URL]
    assert "seen=1" in site.asked[-1][2].get("Cookie", "")


def test_a_head_gets_the_head_of_its_result(via: Via) -> None:
    """Catches: a recorded HEAD fetched by GET, whose body never comes."""
    page = (*pending()[:2], b"")
    site = Played([page, pending(), status("completed"), (200, {"X-A": "1"}, b"")])
    assert via(site, "HEAD").headers["X-A"] == "1"
    assert site.calls[-1] == "HEAD /q/result/1"


def test_the_budget_is_a_share_and_a_minimum() -> None:
    """Catches: a bucket that never fills, fills too fast or has no bottom."""
    budget = RetryBudget(0.5, 2)
    assert [budget.take(0) for _ in range(3)] == [True, True, False]
    budget.deposit(0)
    assert not budget.take(0)
    budget.deposit(0)
    assert budget.take(0)
    assert [budget.take(30), budget.take(30)] == [True, False]
    assert sum(budget.take(1e9) for _ in range(99)) == 10


def test_only_what_is_used_must_be_installed() -> None:
    """Catches: the import of one library for the other's adapter; an error that does not tell what to install."""
    program = """
import sys
sys.modules["{absent}"] = None
import wsgi_admission.client as client
client.{present}
try:
    client.{wanted}
except ImportError as error:
    print(error)
"""
    for absent, present, wanted in [
        ("httpx", "AdmissionAdapter", "AdmissionTransport"),
        ("requests", "AdmissionTransport", "AdmissionAdapter"),
        ("rich", "AdmissionAdapter", "AdmissionAdapter(progress=True)"),
    ]:
        source = program.format(absent=absent, present=present, wanted=wanted)
        told = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
        assert f"needs {absent}: pip install 'wsgi-admission[client]'" in told.stdout


def test_a_bar_shows_where_it_stands() -> None:
    """Catches: a bar that does not go away, text of the site read as markup."""
    output = StringIO()
    bars = Bars(Console(file=output, force_terminal=True, width=100))
    with bars.one() as show, bars.one() as other:
        show(Update("queued", message="You're [red]#3"))
        other(Update("processing", progress=0.5, message="Half"))
        assert len(bars._progress.tasks) == 2
    assert bars._progress.tasks == []
    assert "[red]#3" in output.getvalue()


def test_looking_keeps_what_tells_who_asks() -> None:
    """Catches: a header dropped because its name begins like another's."""
    given = [("Te-Nant", "1"), ("TE", "trailers"), ("Accept", "a"), ("Content-MD5", "x")]
    assert looking(given, "b") == [("Te-Nant", "1"), ("Accept", "b")]


# ---------------------------------------------------------------- a real server

QUEUE_ALL = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
[route:echo]
path = /echo
[route:page]
path = /page
"""


@pytest.fixture
def gated(tmp_path: Path) -> Any:
    """A real server whose every request is queued."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL)) as site:
        yield site


def test_a_killed_worker_is_survived(gated: Server) -> None:
    """Catches: an adapter that gives up when the process that runs its request dies."""
    answers: list[bytes] = []

    def ask() -> None:
        with requests.Session() as session:
            session.mount("http://", AdmissionAdapter(max_wait=60))
            answers.append(session.post(f"{gated.url}/gated?a").content)

    thread = threading.Thread(target=ask)
    thread.start()
    until(gated.starts, "the run")
    for worker in psutil.Process(gated.process.pid).children():
        os.kill(worker.pid, signal.SIGKILL)
    gated.open_gate()
    thread.join(60)
    assert answers == [b"gated a"]


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_an_idle_site_is_waited_for_beyond_the_read_timeout(tmp_path: Path, library: str) -> None:
    """Catches: an idle site that holds the request until the read timeout, where a busy one is waited for."""
    text = QUEUE_ALL.replace("queue_all", "auto") + "[load]\nthreshold = 100%\n"
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:

        def went_in(_: Update) -> None:
            site.open_gate()

        if library == "requests":
            with requests.Session() as session:
                session.mount("http://", AdmissionAdapter(max_wait=60, on_update=went_in))
                assert session.post(f"{site.url}/gated?a", timeout=1.9).content == b"gated a"
        else:
            transport = AdmissionTransport(max_wait=60, on_update=went_in)
            with httpx.Client(transport=transport, timeout=1.9) as client:
                assert client.post(f"{site.url}/gated?a").content == b"gated a"
        assert len(site.starts()) == 1


def test_a_program_that_asks_for_html_gets_the_page_itself(gated: Server) -> None:
    """Catches: a program taken for a browser and led to where the links of a page work."""
    head = {"Accept": "text/html"}
    with requests.Session() as session:
        session.mount("http://", AdmissionAdapter(max_wait=60))
        page = session.post(f"{gated.url}/page", headers=head)
        assert (page.content, page.url, page.history) == (b"<p>a page", f"{gated.url}/page", [])
    with httpx.Client(transport=AdmissionTransport(max_wait=60), headers=head) as client:
        answer = client.post(f"{gated.url}/page")
        assert (answer.status_code, answer.content) == (200, b"<p>a page")


def test_an_interrupted_program_leaves_no_ticket(gated: Server) -> None:
    """Catches: a program that is stopped with Ctrl-C and whose request runs all the same."""
    program = (
        "import requests\nfrom wsgi_admission.client import AdmissionAdapter\n"
        "session = requests.Session()\n"
        "session.mount('http://', AdmissionAdapter(on_update=lambda update: print(update.ticket, flush=True)))\n"
        f"session.post('{gated.url}/gated?a')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
    )
    assert process.stdout
    with httpx.Client(timeout=30) as other:
        other.post(f"{gated.url}/gated?first")  # it has the slot; this one is not waited for
        ticket = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
        process.stdout.close()
        gated.open_gate()
        state = until(
            lambda: (s := other.get(f"{gated.url}/api/queue/status/{ticket}").json()["status"]) != "processing" and s
        )
    assert state == "cancelled"


def test_an_interrupted_program_leaves_nothing_on_an_idle_site(tmp_path: Path) -> None:
    """Catches: a program that is stopped while the site holds its request, which then runs to its end for nobody."""
    text = QUEUE_ALL.replace("queue_all", "auto") + "[load]\nthreshold = 100%\n"
    program = (
        "import sys, requests\nfrom wsgi_admission.client import AdmissionAdapter\n"
        "session = requests.Session()\nsession.mount('http://', AdmissionAdapter())\n"
        "session.post(sys.argv[1], data='a body', headers={'Prefer': 'wait=300', 'Idempotency-Key': 'mine'})\n"
    )
    with gunicorn(tmp_path, ini(tmp_path, text)) as site, httpx.Client(timeout=30) as other:
        command = [sys.executable, "-c", program, f"{site.url}/gated?a"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            until(site.starts, "the run")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) != 0
        site.open_gate()
        until(lambda: other.get(f"{site.url}/api/queue/metrics").json()["cancelled_requests"], "the end of its ticket")
        assert len(site.starts()) == 1


def test_answers_come_byte_for_byte_and_in_pieces(gated: Server) -> None:
    """Catches: a body that is read as a whole before the caller sees any of it, or changed."""
    whole = bytes(range(256)) + b"POST|x"
    with requests.Session() as session:
        session.mount("http://", AdmissionAdapter(max_wait=60))
        with session.post(f"{gated.url}/echo", data=b"x", stream=True) as answer:
            assert not answer._content_consumed  # type: ignore[attr-defined] # what tells it is private
            assert (answer.status_code, answer.reason) == (203, "Quite All Right")
            assert b"".join(answer.iter_content(7)) == whole
        assert session.cookies.get_dict() == {"a": "1", "b": "2"}
    with (
        httpx.Client(transport=AdmissionTransport(max_wait=60)) as client,
        client.stream("POST", f"{gated.url}/echo", content=b"x") as piecewise,
    ):
        assert not piecewise.is_stream_consumed
        assert b"".join(piecewise.iter_bytes(7)) == whole

    async def main() -> bytes:
        async with httpx.AsyncClient(transport=AsyncAdmissionTransport(max_wait=60)) as client:
            return (await client.post(f"{gated.url}/echo", content=b"x")).content

    assert asyncio.run(main()) == whole

"""The script for pages that call the site themselves, in a real browser against real gunicorn."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.browsers import Streams, hide, page_of
from tests.docs_pages import blocks
from tests.support import ROOT, Server, free_port, gunicorn, ini, until
from tests.test_api import Desk
from tests.wsgi import call

CONFIG = """
[admission]
mode = {mode}
max_concurrent = 1
worker_threads = 1
[load]
threshold = 100%
[route:calls]
path = /call/<path:rest>
methods = GET, POST, PUT
expected_time = 2s
"""
#: Notes what happens; `begun` calls a function and notes how its promise ends.
TOOLS = """() => {
  window.seen = []
  for (const name of ["queued", "update", "done"])
    window.addEventListener("wsgi-admission:" + name, (event) => seen.push([name, event.detail]))
  window.begin = (promise) => {
    window.end = null
    promise.then((value) => { window.end = [value] }, (error) => { window.end = [error.name] })
  }
  window.sent = (how, path, body) => new Promise((resolve) => {
    const xhr = new XMLHttpRequest(), events = []
    for (const name of ["loadstart", "readystatechange", "progress", "load", "loadend", "error", "abort", "timeout"])
      xhr.addEventListener(name, () => events.push(name + (name === "readystatechange" ? xhr.readyState : "")))
    xhr.open("POST", path)
    Object.assign(xhr, how)
    xhr.onloadend = () => resolve([xhr, events])
    xhr.send(body)
    window.last = xhr
  })
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site that queues every call, for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("site")
    with gunicorn(folder, ini(folder, CONFIG.format(mode="queue_all")), app="tests.front_app:app") as running:
        yield running


@contextmanager
def fresh(folder: Path, mode: str = "queue_all", settings: str = "") -> Iterator[Server]:
    """Start a site of one's own."""
    config = ini(folder, CONFIG.format(mode=mode))
    with gunicorn(folder, config, app="tests.front_app:app", settings=settings) as running:
        yield running


@contextmanager
def front(browser: Browser, site: Server) -> Iterator[Page]:
    """Open the page, whose policy lets in no script but the site's own."""
    with page_of(browser) as page:
        page.goto(site.url + "/page")
        page.evaluate(TOOLS)
        yield page


def shows(page: Page, condition: str) -> None:
    """Wait for a condition of the page; Playwright's own way is refused by the page's policy."""
    until(lambda: page.evaluate(condition), condition)


def ended(page: Page) -> Any:
    """Wait for the promise that the page began, and return what became of it."""
    shows(page, "window.end")
    return page.evaluate("window.end[0]")


def statuses(site: Server, page: Page) -> list[str]:
    """Return how the tickets that the page was told of stand."""
    ids = page.evaluate("[...new Set(seen.map(([, ticket]) => ticket.id))]")
    return [site.ask(f"/api/queue/status/{ticket}").json()["status"] for ticket in ids]


# ---------------------------------------------------------------- how it is served


def test_the_script_is_small_and_kept() -> None:
    """Catches: a script that grew, of a type that browsers refuse, or sent anew with every page."""
    desk = Desk()
    first = call(desk.api, "/api/queue/client.js")
    assert (first.status, first.header("Content-Type")) == ("200 OK", "text/javascript; charset=utf-8")
    assert first.header("Cache-Control") == "no-cache"
    assert 0 < len(first.body) < 6 * 1024
    again = call(desk.api, "/api/queue/client.js", HTTP_IF_NONE_MATCH=first.header("ETag"))
    assert (again.status, again.body) == ("304 Not Modified", b"")


# ---------------------------------------------------------------- fetch


def test_a_fetch_gets_the_answer_of_the_app(browser: Browser, site: Server) -> None:
    """Catches: a promise that ends with our 202; another status, header, body or address than without the line."""
    with front(browser, site) as page:
        told = page.evaluate(
            """async () => {
              const headers = {"Content-Type": "text/x-prompt", "X-Say": "hello"}
              const answer = await fetch("/call/json?q=1", {method: "POST", body: "a lake", headers})
              return [answer.status, answer.ok, answer.redirected, answer.url, answer.type,
                      answer.headers.get("X-Said"), await answer.json()]
            }"""
        )
        seen = {"method": "POST", "query": "q=1", "body": "a lake", "type": "text/x-prompt"}
        assert told == [201, True, False, f"{site.url}/call/json?q=1", "basic", "hello", seen]
        names = page.evaluate("seen.map(([name]) => name)")
        assert (names[0], names[-1]) == ("queued", "done")
        ticket = page.evaluate("seen[0][1]")
        assert ticket["status"] == "queued"
        assert ticket["position"] in (1, None)  # no place is told at once if the store was slow
        assert ticket["message"]
        assert page.evaluate("seen.at(-1)[1].status") == "completed"
        assert page.evaluate("WSGIAdmission.tickets()") == []


def test_a_fetch_of_a_picture_can_be_read_in_pieces(browser: Browser, site: Server) -> None:
    """Catches: a body that was read as text on its way."""
    with front(browser, site) as page:
        size, kind, width = page.evaluate(
            """async () => {
              const blob = await (await fetch(new Request("/call/picture", {method: "POST"}))).blob()
              const image = await createImageBitmap(blob)
              return [blob.size, blob.type, image.width]
            }"""
        )
        assert (kind, width) == ("image/png", 1)
        pieces = "fetch('/call/picture', {method: 'POST'}).then((a) => a.body.getReader().read())"
        assert page.evaluate(f"{pieces}.then(({{value}}) => value.length)") == size


def test_two_fetches_at_once_each_get_their_own(browser: Browser, site: Server) -> None:
    """Catches: tickets that share what belongs to one; more streams than a browser has connections."""
    with front(browser, site) as page:
        told = page.evaluate(
            """() => Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(
              (n) => fetch("/call/json?" + n, {method: "POST"}).then((answer) => answer.json())))"""
        )
        assert [each["query"] for each in told] == list("12345678")


TWICE = "[1, 2].forEach(() => fetch('/call/gated', {method: 'POST'}).catch(() => 0))"


def test_many_pages_leave_connections_to_others(browser: Browser, tmp_path: Path) -> None:
    """Catches: pages that hold every connection which a browser has to a host."""
    with fresh(tmp_path, settings="workers = 1\nthreads = 40") as site, front(browser, site) as page:
        streams = Streams(page.context)
        tabs = [page, *(page.context.new_page() for _ in range(2))]
        for tab in tabs:
            tab.goto(site.url + "/page")
            tab.evaluate(TWICE)
            shows(tab, "WSGIAdmission.tickets().length === 2")
        page.context.new_page().goto(site.url + "/ping")
        until(lambda: streams.of(*tabs) == 2, "two streams")


def test_pages_that_cannot_know_of_each_other_hold_one_stream(browser: Browser, tmp_path: Path) -> None:
    """Catches: a site without TLS that is never live, or whose pages block each other."""
    with fresh(tmp_path) as site, page_of(browser) as page:
        page.add_init_script("Object.defineProperty(navigator, 'locks', {value: undefined})")
        streams = Streams(page.context)
        page.goto(site.url + "/page")
        page.evaluate(TOOLS)
        page.evaluate(TWICE)
        shows(page, "new Set(seen.filter(([name]) => name === 'update').map(([, ticket]) => ticket.id)).size === 2")
        assert streams.of(page) == 1


def test_a_page_in_the_background_holds_no_stream(browser: Browser, tmp_path: Path) -> None:
    """Catches: tabs that nobody looks at and that block those in front; a call that is forgotten meanwhile."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        streams = Streams(page.context)
        page.evaluate("begin(fetch('/call/gated?gate=.x', {method: 'POST'}).then((answer) => answer.json()))")
        until(lambda: streams.of(page) == 1, "its stream")
        with page.expect_request("**/api/queue/status/*", timeout=20_000):  # a silent stream ends after 30 s
            hide(page, hidden=True)
        assert streams.of(page) == 0
        with page.expect_request("**/api/queue/events/*"):
            hide(page, hidden=False)
        hide(page, hidden=True)
        Path(f"{site.gate}.x").touch()
        assert ended(page)["query"] == "gate=.x"


@pytest.mark.parametrize(
    ("path", "init", "expected"),
    [
        ("/call/own202", {"method": "POST"}, [202, "taken", "/call/own202", False]),
        ("/call/failing", {"method": "POST"}, [503, "no paint left", "/call/failing", False]),
        ("/call/moved", {"method": "POST"}, [201, '"query": "after"', "/call/json?after", True]),
        ("/ping", {}, [200, "pong", "/ping", False]),
        ("/call/json", {"method": "HEAD"}, [201, "", "/call/json", False]),
        ("/call/json", {"credentials": "omit"}, [201, '"method": "GET"', "/call/json", False]),
    ],
    ids=["own202", "failing", "moved", "not-queued", "head", "omit"],
)
def test_every_other_answer_is_the_apps_too(
    browser: Browser, site: Server, path: str, init: dict[str, str], expected: list[Any]
) -> None:
    """Catches: an app's own 202 taken for ours, a 5xx asked for again, a redirect that is not followed or not told."""
    with front(browser, site) as page:
        told = page.evaluate(
            """async ([path, init]) => {
              const answer = await fetch(path, init)
              return [answer.status, await answer.text(), answer.url, answer.redirected]
            }""",
            [path, init],
        )
        assert told[0] == expected[0]
        assert expected[1] in told[1]
        assert told[2:] == [site.url + expected[2], expected[3]]


FORM = "(() => { const form = new FormData(); form.set('prompt', 'a lake'); return form })()"


@pytest.mark.parametrize("code", [307, 308])
@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("fetch(url, {method: 'PUT', body: 'a lake', headers})", "a lake"),
        ("fetch(new Request(url, {method: 'PUT', body: 'a lake', headers}))", "a lake"),
        ("fetch(new Request(url, {method: 'PUT', body: 'a hill', headers}), {body: 'a lake'})", "a lake"),
        (f"fetch(url, {{method: 'PUT', body: {FORM}, headers: {{'X-Say': 'hello'}}}})", 'name="prompt"'),
        (f"fetch(new Request(url, {{method: 'PUT', body: {FORM}, headers: {{'X-Say': 'hello'}}}}))", 'name="prompt"'),
    ],
    ids=["init", "request", "both", "form", "request-form"],
)
def test_a_redirect_that_keeps_the_method_keeps_it(
    browser: Browser, site: Server, code: int, call: str, body: str
) -> None:
    """Catches: a 307 that arrives as a GET without a body, because the question for the result followed it."""
    with front(browser, site) as page:
        told = page.evaluate(
            f"""async (url) => {{
              const headers = {{"X-Say": "hello", "Content-Type": "text/x-prompt"}}
              const answer = await {call}
              return [answer.status, answer.url, answer.redirected, answer.headers.get("X-Said"), await answer.json()]
            }}""",
            f"/call/{code}",
        )
        assert told[:4] == [201, f"{site.url}/call/json?again", True, "hello"]
        assert (told[4]["method"], told[4]["query"]) == ("PUT", "again")
        assert body in told[4]["body"]
        assert told[4]["type"].startswith("multipart/form-data; boundary=" if "Form" in call else "text/x-prompt")


@pytest.mark.parametrize(
    "call", ["fetch('/call/307', {method: 'POST', body: 'a lake'})", "sent({}, '/call/307', 'a lake')"]
)
def test_a_redirect_that_keeps_the_method_sets_its_cookies(browser: Browser, site: Server, call: str) -> None:
    """Catches: a sign-in that is lost because what we tell of a 307 has not the app's cookies."""
    with front(browser, site) as page:
        page.evaluate(f"() => {call}.then(() => null)")
        assert page.evaluate("document.cookie.split('; ').sort()") == ["first=307", "second=307"]


def test_a_redirect_of_an_xhr_keeps_its_method_too(browser: Browser, site: Server) -> None:
    """Catches: the same for XMLHttpRequest; an event for what lies in between; a header or the type that is lost."""
    with front(browser, site) as page:
        status, seen, events, said = page.evaluate(
            """() => sent({responseType: "json"}, "/call/307", "a lake").then(
              ([xhr, events]) => [xhr.status, xhr.response, events, xhr.getResponseHeader("X-Said")])"""
        )
        assert (status, said) == (201, "")
        assert seen == {"method": "POST", "query": "again", "body": "a lake", "type": "text/plain;charset=UTF-8"}
        assert [events.count(name) for name in ("loadstart", "load", "loadend", "readystatechange2")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"redirect": "manual"}, ["opaqueredirect", 0, False]),
        ({"redirect": "error"}, "TypeError"),
        ({"redirect": "follow"}, ["basic", 201, True]),
    ],
    ids=["manual", "error", "follow"],
)
def test_a_redirect_is_followed_as_the_caller_says(
    browser: Browser, site: Server, init: dict[str, str], expected: object
) -> None:
    """Catches: a caller who wants no redirect and gets its target, or a 204 of ours."""
    with front(browser, site) as page:
        told = page.evaluate(
            """(init) => fetch("/call/307", {method: "POST", ...init}).then(
              (answer) => [answer.type, answer.status, answer.redirected], (error) => error.name)""",
            init,
        )
        assert told == expected


def test_redirects_in_a_round_end(browser: Browser, site: Server) -> None:
    """Catches: an app that sends a call to itself, and a page that runs it for ever."""
    with front(browser, site) as page:
        assert page.evaluate("fetch('/call/round', {method: 'POST'}).then((answer) => answer.status)") == 204
        assert len(set(page.evaluate("seen.map(([, ticket]) => ticket.id)"))) == 21


def test_a_clone_looks_like_its_answer(browser: Browser, site: Server) -> None:
    """Catches: a service of the page that keeps clones, under the address of a ticket."""
    with front(browser, site) as page:
        clones = "[answer, answer.clone(), answer.clone().clone()].map((each) => [each.url, each.redirected])"
        told = page.evaluate(f"fetch('/call/json', {{method: 'POST'}}).then((answer) => {clones})")
        assert told == [[f"{site.url}/call/json", False]] * 3


def test_a_worker_may_load_it(browser: Browser, site: Server) -> None:
    """Catches: a worker that ends with an error; it has no document to tell of tickets, and keeps its own fetch."""
    with page_of(browser, bypass_csp=True) as page:
        page.goto(site.url + "/page")
        assert (
            page.evaluate(
                """() => new Promise((told) => {
              const script = `importScripts("${location.origin}/api/queue/client.js"); postMessage(fetch.toString())`
              const worker = new Worker(URL.createObjectURL(new Blob([script])))
              worker.onmessage = (event) => told(event.data.includes("native code"))
              worker.onerror = (event) => told(event.message)
            })"""
            )
            is True
        )


def test_who_asks_for_the_202_gets_it(browser: Browser, site: Server) -> None:
    """Catches: pages that do the waiting themselves and can no more."""
    with front(browser, site) as page:
        asked = "fetch('/call/json', {method: 'POST', headers: {Prefer: 'respond-async'}})"
        assert page.evaluate(f"{asked}.then((answer) => answer.status)") == 202
        assert page.evaluate("seen") == []


def test_what_fetch_refuses_it_refuses_still(browser: Browser, site: Server) -> None:
    """Catches: an error that is swallowed, raised at once, or of another kind."""
    with front(browser, site) as page:
        for bad in ("fetch('http:///')", "fetch()", "fetch('/', {method: 'GET', body: 'x'})"):
            assert page.evaluate(f"{bad}.catch((error) => error.name)") == "TypeError"
    with page_of(browser, bypass_csp=True) as page:  # the policy refuses other hosts
        page.goto(site.url + "/page")
        other = site.url.replace("127.0.0.1", "localhost")
        assert page.evaluate(f"fetch('{other}/ping').catch((error) => error.name)") == "TypeError"
        assert page.evaluate(f"fetch('{other}/ping', {{mode: 'no-cors'}}).then((answer) => answer.type)") == "opaque"


def test_loaded_twice_it_wraps_once(browser: Browser, site: Server) -> None:
    """Catches: a second copy that takes the place of the first, or throws."""
    with front(browser, site) as page:
        page.evaluate("window.kept = [fetch, XMLHttpRequest, WSGIAdmission], 0")
        page.add_script_tag(url=f"{site.url}/api/queue/client.js")
        page.add_script_tag(url=f"{site.url}/api/queue/static/status.js")
        assert page.evaluate("[fetch, XMLHttpRequest, WSGIAdmission].every((part, i) => part === kept[i])") is True


# ---------------------------------------------------------------- giving up


@pytest.mark.parametrize("way", ["signal", "event", "button", "xhr"])
def test_giving_up_cancels_the_ticket(browser: Browser, tmp_path: Path, way: str) -> None:
    """Catches: an abort that leaves the work in the line, or that the caller hears of in another way than usual."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        site.ask("/call/gated", "POST")
        if way == "xhr":
            page.evaluate("begin(sent({}, '/call/json').then(([xhr, events]) => [xhr.status, events]))")
        else:
            page.evaluate(
                """() => {
                  window.control = new AbortController()
                  begin(fetch("/call/json", {method: "POST", signal: control.signal}))
                }"""
            )
        shows(page, "seen.length")
        if way == "button":
            page.get_by_role("button", name="Cancel").click()
        else:
            page.evaluate({"signal": "control.abort()", "event": "seen[0][1].cancel()", "xhr": "last.abort()"}[way])
        end = ended(page)
        if way == "xhr":
            assert end == [0, ["readystatechange1", "loadstart", "readystatechange4", "abort", "loadend"]]
            assert page.evaluate("last.readyState") == 0
        else:
            assert end == "AbortError"
        until(lambda: statuses(site, page) == ["cancelled"], "the cancelled ticket")
        assert page.evaluate("seen.at(-1)[0] + seen.at(-1)[1].status") == "donecancelled"


def test_leaving_the_page_cancels_nothing(browser: Browser, tmp_path: Path) -> None:
    """Catches: work that is lost because a tab was closed."""
    with fresh(tmp_path) as site:
        site.ask("/call/gated", "POST")
        with front(browser, site) as page:
            page.evaluate("begin(fetch('/call/json', {method: 'POST'}))")
            shows(page, "seen.length")
            ticket = page.evaluate("seen[0][1].id")
            page.goto(site.url + "/ping")
        site.open_gate()
        until(lambda: site.ask(f"/api/queue/status/{ticket}").json()["status"] == "completed", "its end")


def test_a_ticket_that_is_cancelled_elsewhere_ends_the_call(browser: Browser, tmp_path: Path) -> None:
    """Catches: a page that waits for ever."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        site.ask("/call/gated", "POST")
        page.evaluate("begin(fetch('/call/json', {method: 'POST'}).then((answer) => answer.status))")
        shows(page, "seen.length")
        assert site.ask(f"/api/queue/status/{page.evaluate('seen[0][1].id')}", "DELETE").status == 200
        assert ended(page) == 410


# ---------------------------------------------------------------- trouble in between


@pytest.mark.parametrize("how", ["fetch", "xhr"])
def test_killed_workers_in_between_are_not_noticed(browser: Browser, tmp_path: Path, how: str) -> None:
    """Catches: a call that ends with the connection, or with the server's restart."""
    asked = {
        "fetch": "fetch('/call/gated?gate=.x', {method: 'POST'}).then((answer) => answer.json())",
        "xhr": "sent({responseType: 'json'}, '/call/gated?gate=.x').then(([xhr]) => xhr.response)",
    }[how]
    with fresh(tmp_path) as site, front(browser, site) as page:
        page.evaluate(f"begin({asked})")
        until(lambda: site.starts() == ["start gate=.x"], "the start")
        for worker in psutil.Process(site.process.pid).children():
            os.kill(worker.pid, signal.SIGKILL)
        until(lambda: len(site.starts()) == 2, "the second run")
        Path(f"{site.gate}.x").touch()
        assert ended(page)["query"] == "gate=.x"


def test_a_connection_that_was_lost_is_looked_for(browser: Browser, tmp_path: Path) -> None:
    """Catches: a phone in a tunnel that is told of an error."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        site.ask("/call/gated", "POST")
        page.evaluate("begin(fetch('/call/json?here', {method: 'POST'}).then((answer) => answer.json()))")
        shows(page, "seen.length")
        with page.expect_event("requestfailed"):
            page.context.set_offline(True)
            hide(page, hidden=True)  # what is open already outlives this way of being offline
        site.open_gate()
        page.context.set_offline(False)
        assert ended(page)["query"] == "here"


def test_without_a_stream_it_asks_for_the_status(browser: Browser, site: Server) -> None:
    """Catches: a page that hangs where a proxy lets no event stream through."""
    with front(browser, site) as page:
        page.route("**/api/queue/events/*", lambda route: route.fulfill(status=502))
        assert page.evaluate("fetch('/call/json', {method: 'POST'}).then((answer) => answer.status)") == 201


def test_a_status_that_does_not_answer_is_asked_for_again(browser: Browser, site: Server) -> None:
    """Catches: a lost question that ends the call, a ticket that is no more and is asked for for ever."""
    asked: list[int] = []

    def trouble(route: Any) -> None:
        asked.append(len(asked))
        route.abort() if len(asked) == 1 else route.fulfill(status=503 if len(asked) == 2 else 404)

    with front(browser, site) as page:
        page.route("**/api/queue/events/*", lambda route: route.fulfill(status=404))
        page.route("**/api/queue/status/*", trouble)
        page.route("**/api/queue/result/*", lambda route: route.fulfill(status=410))
        page.evaluate("begin(fetch('/call/json', {method: 'POST'}).then((answer) => answer.status))")
        assert ended(page) == 410
        assert len(asked) == 3


def test_a_gateways_error_is_not_taken_for_the_result(browser: Browser, site: Server) -> None:
    """Catches: a restart at the very end that is handed to the caller as if it were the app's answer."""
    answers: list[int] = []

    def once(route: Any) -> None:
        answers.append(len(answers))
        route.abort() if len(answers) == 1 else route.fulfill(status=502) if len(answers) == 2 else route.continue_()

    with front(browser, site) as page:
        page.route("**/api/queue/result/*", once)
        assert page.evaluate("fetch('/call/json', {method: 'POST'}).then((answer) => answer.status)") == 201
        assert len(answers) == 3


def test_a_page_of_another_origin_is_served_as_one_of_the_same(browser: Browser, tmp_path: Path) -> None:
    """Catches: a line that breaks the calls of pages for which the app has allowed them."""
    port = free_port()
    page_at, call_at = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
    text = f"{CONFIG.format(mode='queue_all')}[api]\nallow_origins = {page_at}\n"
    running = gunicorn(tmp_path, ini(tmp_path, text), app="tests.front_app:shared_app", port=port)
    with running as site, page_of(browser, bypass_csp=True) as page:
        page.goto(f"{page_at}/page")
        page.evaluate(TOOLS)
        listened: list[str] = []
        page.on("request", lambda asked: listened.append(asked.url) if "/events/" in asked.url else None)
        how = {"method": "POST", "body": "{}", "headers": {"Content-Type": "application/json", "X-Say": "hi"}}
        told = page.evaluate(
            """([url, how]) => fetch(url, how).then(
              async (answer) => [answer.status, answer.url, answer.headers.get("X-Said"), await answer.json()])""",
            [f"{call_at}/call/json?far", how],
        )
        assert told[:3] == [201, f"{call_at}/call/json?far", "hi"]
        assert (told[3]["query"], told[3]["body"]) == ("far", "{}")
        assert page.evaluate(f"sent({{}}, '{call_at}/call/json').then(([xhr]) => xhr.status)") == 201
        assert listened
        assert page.evaluate("seen[0][1].position") == 1

        page.evaluate(f"begin(fetch('{call_at}/call/gated', {{method: 'POST', headers: {{'X-Say': 'stop'}}}}))")
        until(site.starts, "the run")
        # The run must not end before the site has heard of it.
        with page.expect_response(lambda answer: answer.request.method == "DELETE" and answer.ok):
            page.evaluate("WSGIAdmission.tickets()[0].cancel()")
        assert ended(page) == "AbortError"
        site.open_gate()
        until(lambda: statuses(site, page)[-1] == "cancelled", "the cancelled ticket")


# ---------------------------------------------------------------- XMLHttpRequest


@pytest.mark.parametrize(
    ("kind", "path", "read", "expected"),
    [
        ("", "/call/json?x", "JSON.parse(xhr.responseText).query", "x"),
        ("text", "/call/json?x", "JSON.parse(xhr.response).query", "x"),
        ("json", "/call/json?x", "xhr.response.query", "x"),
        ("blob", "/call/picture", "xhr.response.type", "image/png"),
        ("arraybuffer", "/call/picture", "new Uint8Array(xhr.response)[0]", 0x89),
        ("document", "/call/xml", "xhr.responseXML.querySelector('b').textContent", "text"),
    ],
)
def test_an_xhr_gets_the_answer_in_its_type(
    browser: Browser, site: Server, kind: str, path: str, read: str, expected: object
) -> None:
    """Catches: a type that is lost with the first answer; an event too much, or one for the 202."""
    with front(browser, site) as page:
        told, events, status = page.evaluate(
            f"sent({{responseType: '{kind}'}}, '{path}', 'body').then(([xhr, events]) => [{read}, events, xhr.status])"
        )
        assert (told, status) == (expected, 200 if path != "/call/json?x" else 201)
        # As often as data arrives, readyState 3 and progress.
        order = list(dict.fromkeys(events))
        assert order == [
            "readystatechange1", "loadstart", "readystatechange2", "readystatechange3", "progress",
            "readystatechange4", "load", "loadend",
        ]  # fmt: skip
        assert [events.count(name) for name in ("loadstart", "load", "loadend", "readystatechange2")] == [1, 1, 1, 1]


def test_an_xhr_as_jquery_and_as_axios_use_it(browser: Browser, site: Server) -> None:
    """Catches: a library whose handlers are set in another order or look at another member."""
    with front(browser, site) as page:
        jquery = page.evaluate(
            """() => new Promise((complete, fail) => {
              const xhr = new window.XMLHttpRequest()
              xhr.open("POST", "/call/json?jquery", true, undefined, undefined)
              xhr.setRequestHeader("X-Requested-With", "XMLHttpRequest")
              xhr.setRequestHeader("X-Say", "twice")
              const callback = (type) => () => {
                if (type === "abort") xhr.abort()
                else if (type === "error") fail(xhr.status)
                else complete([xhr.status, xhr.statusText, xhr.responseText, xhr.getAllResponseHeaders()])
              }
              xhr.onload = callback("load")
              const broken = xhr.onerror = xhr.ontimeout = callback("error")
              xhr.onabort = broken
              xhr.onreadystatechange = () => { if (xhr.readyState === 4) setTimeout(() => broken && 0) }
              xhr.send("a=1")
            })"""
        )
        assert jquery[:2] == [201, "Created"]
        assert '"query": "jquery", "body": "a=1"' in jquery[2]
        assert "x-said: twice" in jquery[3]
        axios = page.evaluate(
            """() => new Promise((resolve, reject) => {
              let request = new XMLHttpRequest()
              request.open("POST", "/call/json?axios", true)
              request.timeout = 20000
              request.onloadend = () => request && setTimeout(() => {
                resolve([request.status, request.response, request.responseURL, request.getResponseHeader("X-Said")])
                request = null
              })
              request.onabort = request.onerror = request.ontimeout = (event) => reject(new Error(event.type))
              request.setRequestHeader("Content-Type", "application/json")
              let sent = 0
              request.upload.addEventListener("load", () => sent++)
              request.withCredentials = true
              request.send(JSON.stringify({prompt: "a lake"}))
            })"""
        )
        assert axios[0] == 201
        assert "a lake" in axios[1]
        assert axios[3] == ""


def test_a_waiting_xhr_is_sent_already(browser: Browser, tmp_path: Path) -> None:
    """Catches: a second send() that is let through; a second end of an upload, when what waits is aborted."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        page.evaluate(
            """() => {
              window.uploads = []
              const xhr = window.last = new XMLHttpRequest()
              for (const name of ["load", "abort", "loadend"])
                xhr.upload.addEventListener(name, () => uploads.push(name))
              xhr.open("POST", "/call/gated")
              xhr.send("a lake")
            }"""
        )
        shows(page, "seen.length && last.readyState === 1")
        assert page.evaluate("() => { try { last.send() } catch (error) { return error.name } }") == "InvalidStateError"
        page.evaluate("last.abort()")
        assert page.evaluate("uploads") == ["load", "loadend"]
        page.evaluate("last.open('POST', '/ping'), last.send('more')")
        shows(page, "uploads.length === 4")


def test_other_uses_of_an_xhr_are_left_alone(browser: Browser, site: Server) -> None:
    """Catches: an app's own 202 that is waited for, a synchronous call that changes, an object used once only."""
    with front(browser, site) as page:
        assert page.evaluate("sent({}, '/call/own202').then(([xhr]) => [xhr.status, xhr.response])") == [202, "taken"]
        assert page.evaluate(
            """() => {
              const xhr = new XMLHttpRequest()
              xhr.open("POST", "/call/json", false)
              xhr.send()
              return [xhr.status, xhr.getResponseHeader("Admission-Status")]
            }"""
        ) == [202, "queued"]
        assert page.evaluate(
            """async () => {
              const [xhr] = await sent({}, "/call/json?1")
              const again = new Promise((resolve) => xhr.addEventListener("load", () => resolve(xhr.response)))
              xhr.open("POST", "/call/json?2")
              xhr.send()
              return [xhr instanceof XMLHttpRequest, JSON.parse(await again).query]
            }"""
        ) == [True, "2"]


def test_the_timeout_of_an_xhr_does_not_count_the_line(browser: Browser, tmp_path: Path) -> None:
    """Catches: a call that times out because it waits for its turn."""
    with fresh(tmp_path) as site, front(browser, site) as page:
        site.ask("/call/gated", "POST")
        page.evaluate("begin(sent({timeout: 1500}, '/call/json').then(([xhr, events]) => [xhr.status, events.at(-2)]))")
        shows(page, "seen.length")
        page.wait_for_timeout(1600)  # the browser's own clock runs
        site.open_gate()
        assert ended(page) == [201, "load"]


# ---------------------------------------------------------------- the element


def test_the_element_shows_the_position_falling(browser: Browser, tmp_path: Path) -> None:
    """Catches: an element that stands still, stays behind, or is stopped by the page's policy."""
    with fresh(tmp_path, mode="auto") as site, front(browser, site) as page:
        page.evaluate("window.first = fetch('/call/gated').then((answer) => answer.status), 0")
        until(lambda: site.starts() == ["start "], "the call that has the only slot")
        page.evaluate("window.before = new AbortController()")
        page.evaluate("fetch('/call/json', {signal: before.signal}).catch(() => 0), 0")
        rows = page.locator("wsgi-admission-status [part=row]")
        rows.filter(has_text="next in line").last.wait_for()
        # On a machine that is busy with something else the first call was queued too.
        until(lambda: rows.filter(has_text="next in line").count() == 1, "news of the first call")
        others = rows.count() - 1
        page.evaluate("begin(fetch('/call/gated?gate=.2').then((answer) => answer.json()))")
        rows.filter(has_text="#2 in queue").wait_for()
        assert rows.count() == 2 + others

        page.evaluate("before.abort()")
        until(lambda: rows.count() == 1 + others, "the end of the other row")
        rows.filter(has_text="next in line").wait_for()
        bar = rows.last.locator("progress")
        assert bar.is_hidden()
        assert rows.last.evaluate("(row) => getComputedStyle(row).display") == "flex"

        site.open_gate()
        bar.wait_for()
        assert bar.get_attribute("value") is None  # this app does not tell how far it is
        Path(f"{site.gate}.2").touch()
        assert ended(page)["query"] == "gate=.2"
        assert page.evaluate("first") == 201
        assert rows.count() == 0
        positions = page.evaluate(
            "seen.filter(([, t]) => t.id === seen.at(-1)[1].id && t.position).map(([, t]) => t.position)"
        )
        assert (positions[0], positions[-1]) == (2, 1)


def test_the_element_has_no_fault_of_accessibility(browser: Browser, tmp_path: Path) -> None:
    """Catches: a bar without a name, words that are not read out."""
    with fresh(tmp_path) as site, page_of(browser, bypass_csp=True) as page:
        page.goto(site.url + "/page")
        page.evaluate("fetch('/call/gated?1'), fetch('/call/gated?2'), 0")
        # Either may have come first and run: the other one's bar is hidden.
        page.locator("wsgi-admission-status progress:not([hidden])").wait_for()
        until(lambda: page.locator("wsgi-admission-status [part=row]").count() == 2, "both rows")
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]})
        assert found.response["violations"] == []


# ---------------------------------------------------------------- the documentation

FRONT_ENDS = ROOT / "docs" / "front-ends.rst"


def test_the_snippets_of_the_page_for_front_ends(browser: Browser, tmp_path: Path) -> None:
    """Catches: a snippet that does not work as it stands, or does not cancel what it says it does."""
    html = "<!doctype html><button id=stop>Stop</button><p id=place></p>"
    html += "".join(block.text for block in blocks("html", pages=(FRONT_ENDS,)))
    config = ini(tmp_path, CONFIG.format(mode="queue_all").replace("/call/<path:rest>", "/api/generate"))
    with gunicorn(tmp_path, config, app="tests.front_app:app") as site, page_of(browser) as page:
        page.route("**/mine", lambda route: route.fulfill(content_type="text/html", body=html))
        page.goto(site.url + "/mine")
        page.evaluate(TOOLS)
        for block in blocks("javascript", pages=(FRONT_ENDS,)):
            page.add_script_tag(content=block.text)
        assert page.evaluate("draw('a lake')").count("prompt=a+lake") == 1
        assert page.locator("#place").inner_text() == ""

        site.ask("/api/generate?gate=.x", "POST")
        page.evaluate("begin(draw('a mistake'))")
        page.locator("#place").filter(has_text="next in line").wait_for()
        assert page.get_by_role("button", name="Give up").count() == 1
        page.locator("#stop").click()
        assert ended(page) == "AbortError"
        until(lambda: statuses(site, page)[-1] == "cancelled", "the cancelled ticket")

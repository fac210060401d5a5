"""The waiting room in a real browser."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.browsers import Streams, hide, page_of
from tests.rooms import HOSTILE, Room, served
from tests.support import PATIENCE, ROOT, Server, gunicorn, ini, until
from wsgi_admission.languages import ENGLISH, shipped
from wsgi_admission.replay import Recording
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web.durations import wait_range

CONFIG = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
replay_processes = 0
[pages]
name = A site
[route:slow]
path =
    /gated
    /500
methods = POST
expected_time = 2s
"""
HEADING = "[data-live=heading]"

expect.set_options(timeout=PATIENCE * 1000)


@contextmanager
def site(folder: Path) -> Iterator[Server]:
    """Start a server that runs one request after the other."""
    with gunicorn(folder, ini(folder, CONFIG)) as running:
        yield running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Server]:
    """A server that runs one request after the other."""
    with site(tmp_path) as server:
        yield server


def send(page: Page, server: Server, query: str) -> None:
    """Send a form from a page of the site, and be in the waiting room."""
    page.goto(f"{server.url}/ping")
    page.set_content(f'<form method="post" action="/gated?{query}"><button>Draw</button></form>')
    with page.expect_response(f"**/gated?{query}") as response:
        page.get_by_role("button").click()
    assert response.value.status == 202
    expect(page.locator("h1")).to_be_visible()


def ticket_of(page: Page) -> str:
    """Return the address of the ticket that the page shows."""
    href = page.get_by_role("link", name="Address of this page").get_attribute("href")
    assert href
    return href


def test_a_form_leads_to_the_waiting_room_and_to_the_answer(running: Server, browser: Browser) -> None:
    """Catches: a page that stands still, a reload that sends the form again, an answer that is never shown."""
    first = running.ask("/gated?first", "POST", b"")
    until(running.starts)
    with page_of(browser) as page:
        send(page, running, "mine")
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        page.wait_for_url("**/api/queue/status/*")
        page.reload()
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        address = page.url
        page.goto("about:blank")
        page.goto(address)
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        running.open_gate()
        page.wait_for_url("**/api/queue/result/*")
        expect(page.locator("body")).to_have_text("gated mine")
        page.go_back()
    assert running.final(first)["status"] == "completed"
    assert running.starts() == ["start first", "start mine"]


def test_a_picture_comes_out_of_the_line(tmp_path: Path, browser: Browser) -> None:
    """Catches: a form of a real site whose page is not shown at the end."""
    config = (ROOT / "conf" / "admission.ini").read_text("utf-8").replace("mode = auto", "mode = queue_all")
    config = config.replace("sqlite:///var/admission.db", f"sqlite:///{tmp_path}/admission.db")
    with (
        gunicorn(tmp_path, ini(tmp_path, config), app="wsgi_admission.demo.site:app") as server,
        page_of(browser) as page,
    ):
        page.goto(f"{server.url}/generate-txt2img-ui")
        page.get_by_label(re.compile("prompt|picture|words|draw", re.IGNORECASE)).first.fill("a lake at night")
        with page.expect_response(lambda response: response.status == 202):
            page.locator("main button").click()
        page.wait_for_url("**/api/queue/result/**")
        picture = page.locator("figure img")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 100


def test_the_position_falls_while_one_looks(running: Server, browser: Browser) -> None:
    """Catches: a page that only a reload brings up to date."""
    running.ask("/gated?a", "POST", b"")
    until(running.starts)
    ahead = running.ask("/gated?b", "POST", b"").json()
    with page_of(browser) as page:
        send(page, running, "c")
        expect(page.locator(HEADING)).to_have_text("You are number 2 in line")
        expect(page.locator("[data-live=ahead]")).to_have_text("1")
        page.evaluate("window.same = true")
        running.ask(ahead["cancel_url"], "DELETE")
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        expect(page.locator("[data-live=ahead]")).to_have_text("0")
        expect(page.locator("[data-live=said]")).to_contain_text("You are next in line")
        assert page.title() == "You are next in line · A site"
        assert page.evaluate("window.same"), "the page was not loaded again"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_button_cancels(running: Server, browser: Browser, scripts: bool) -> None:  # noqa: FBT001 - a parameter
    """Catches: a button that needs scripts, or that a browser's own headers make look like another site's."""
    running.ask("/gated?a", "POST", b"")
    until(running.starts)
    with page_of(browser, java_script_enabled=scripts) as page:
        send(page, running, "b")
        address = ticket_of(page)
        page.get_by_role("button", name="Cancel my request").click()
        expect(page.locator("h1")).to_have_text("Your request was cancelled")
        assert page.url.endswith(address)
        assert running.ask(address).json()["status"] == "cancelled"


def test_without_scripts_the_page_comes_back_by_itself(running: Server, browser: Browser) -> None:
    """Catches: a browser without JavaScript that waits for ever, or sends the form again."""
    with page_of(browser, java_script_enabled=False) as page:
        send(page, running, "mine")
        page.wait_for_url("**/api/queue/status/*")
        expect(page.get_by_role("link", name="Look again now")).to_be_visible()
        running.open_gate()
        page.wait_for_url("**/api/queue/result/*")
        expect(page.locator("body")).to_have_text("gated mine")
    assert running.starts() == ["start mine"]


def test_a_server_that_restarts_is_waited_for(running: Server, browser: Browser) -> None:
    """Catches: a page that gives up, or forgets its place, when its connection drops or every worker is replaced."""
    with page_of(browser) as page:
        send(page, running, "mine")
        expect(page.locator(HEADING)).to_have_text("Your request is being worked on")
        page.context.set_offline(True)
        page.evaluate("dispatchEvent(new Event('online'))")
        page.context.set_offline(False)
        running.process.send_signal(signal.SIGHUP)
        until(lambda: running.text().count("Booting worker") >= 4, "the new workers")
        running.open_gate()
        page.wait_for_url("**/api/queue/result/*")
        expect(page.locator("body")).to_have_text("gated mine")


def test_many_tabs_leave_connections_to_others(tmp_path: Path, browser: Browser) -> None:
    """Catches: waiting rooms that hold every connection a browser has to a host; a right that dies with its tab."""
    busy = gunicorn(tmp_path, ini(tmp_path, CONFIG), settings="workers = 1\nthreads = 40")
    with busy as running, page_of(browser) as page:
        streams = Streams(page.context)
        tabs = [page, *(page.context.new_page() for _ in range(5))]
        for number, tab in enumerate(tabs):
            send(tab, running, str(number))
        page.context.new_page().goto(f"{running.url}/ping")
        until(lambda: streams.of(*tabs) == 2, "two streams")
        listening = [tab for tab in tabs if streams.of(tab)]
        others = [tab for tab in tabs if tab not in listening]
        for tab in listening:
            tab.close()
        until(lambda: streams.of(*others) == 2, "the streams of the others")


def test_a_tab_in_the_background_holds_no_connection(running: Server, browser: Browser) -> None:
    """Catches: tabs that nobody looks at and that block those in front; one that is forgotten, or stays so."""
    with page_of(browser) as page:
        streams = Streams(page.context)
        send(page, running, "mine")
        until(lambda: streams.of(page) == 1, "its stream")
        with page.expect_response(lambda response: response.request.resource_type == "fetch"):
            hide(page, hidden=True)
        assert streams.of(page) == 0
        hide(page, hidden=False)
        until(lambda: streams.of(page) == 1, "its stream again")


def test_the_apps_own_error_is_shown(running: Server, browser: Browser) -> None:
    """Catches: a failure of the app that our page hides."""
    with page_of(browser) as page:
        page.goto(f"{running.url}/ping")
        page.set_content('<form method="post" action="/500"><button>Draw</button></form>')
        page.get_by_role("button").click()
        page.wait_for_url("**/api/queue/result/*")
        expect(page.locator("body")).to_have_text("no paint left")


# ---------------------------------------------------------------- pages of made-up tickets


def fail(room: Room, error: str = "It was interrupted.") -> Ticket:
    """Return a ticket that failed without an answer, and is kept."""
    room.put()
    claimed = room.claim()
    room.store.finish(claimed.id, claimed.attempt, State.FAILED, None, now=room.now, error=error, keep_request=True)
    return claimed


def test_a_failed_request_is_run_again_by_a_button(browser: Browser) -> None:
    """Catches: a retry that leads nowhere."""
    room = Room()
    failed = fail(room)
    with served(room.api) as url, page_of(browser) as page:
        page.goto(f"{url}/api/queue/status/{failed.id}")
        expect(page.locator("h1")).to_have_text("Your request failed")
        page.get_by_role("button", name="Run it again").click()
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        assert failed.id not in page.url


def test_a_request_that_fails_while_one_looks(browser: Browser) -> None:
    """Catches: a page that goes on waiting for what has failed."""
    room = Room()
    ticket = room.put()
    with served(room.api) as url, page_of(browser) as page:
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        fail(room)
        expect(page.locator("h1")).to_have_text("Your request failed")


def test_a_run_that_is_cancelled_elsewhere_while_one_looks(browser: Browser) -> None:
    """Catches: a page that goes on promising the answer, and offers to cancel, because somebody else has cancelled."""
    room = Room()
    ticket = room.put()
    claimed = room.claim()
    with served(room.api) as url, page_of(browser, locale="de") as page:
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        button = page.get_by_role("button", name="Anfrage abbrechen")
        expect(page.locator(HEADING)).to_have_text("Ihre Anfrage wird bearbeitet")
        expect(button).to_be_visible()
        expect(page.locator(".keep")).to_be_visible()
        room.store.cancel(ticket.id, now=room.now)
        expect(page.locator(HEADING)).to_have_text("Ihre Anfrage wird abgebrochen")
        expect(page.locator("[data-live=doing]")).to_contain_text("Die Antwort wird verworfen")
        expect(page.locator("[data-live=said]")).to_have_text("Ihre Anfrage wird abgebrochen")
        expect(button).to_be_hidden()
        expect(page.locator(".keep")).to_be_hidden()
        room.answer(claimed)
        expect(page.locator("h1")).to_have_text("Ihre Anfrage wurde abgebrochen")


@pytest.mark.parametrize(
    ("status", "header"),
    [
        ("200 OK", ["Content-Disposition", "attachment; filename=picture.bin"]),
        ("204 No Content", ["X-Nothing", "there"]),
    ],
    ids=["download", "nothing"],
)
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_an_answer_that_leaves_the_page_where_it_is_is_told(
    browser: Browser,
    status: str,
    header: list[str],
    scripts: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Catches: a page that says for ever that the request is being worked on, beside the downloaded answer."""
    room = Room()
    ticket = room.put()
    body = b"" if status.startswith("204") else b"bytes"
    with served(room.api) as url, page_of(browser, java_script_enabled=scripts) as page:
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        expect(page.locator(HEADING)).to_have_text("You are next in line")
        claimed = room.claim()
        head = json.dumps({"status": status, "headers": [header], "method": "POST"})
        answer = Recording(head, io.BytesIO(body), len(body))
        room.store.finish(claimed.id, claimed.attempt, State.COMPLETED, answer, now=room.now)
        expect(page.locator("h1")).to_have_text("Your answer is ready")
        expect(page.get_by_role("link", name="Show the answer")).to_be_visible()
        expect(page.get_by_role("button", name="Cancel my request")).to_have_count(0)


SHOP_PAGE = b"""<!doctype html><h1>Painted</h1><a href="next?page=2">Next</a><img src="../lake.svg">
<form method="post"><input name="more" value="paint">
<button>Again</button></form>"""


def shop(room: Room) -> Any:
    """Return a site with a queue API and pages of its own, which tell how they were asked."""

    def site(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/api/queue/"):
            return room.api(environ, start_response)
        if path == "/lake.svg":
            start_response("200 OK", [("Content-Type", "image/svg+xml")])
            return [b'<svg xmlns="http://www.w3.org/2000/svg" width="120" height="9"/>']
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{environ['REQUEST_METHOD']} {path}?{environ['QUERY_STRING']} ".encode(), body]

    return site


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_what_a_page_refers_to_is_where_it_was(browser: Browser, scripts: bool) -> None:  # noqa: FBT001 - a parameter
    """Catches: links, pictures and forms of the answer that lead below the queue API, where there is nothing."""
    room = Room()
    ticket = room.put()
    with served(shop(room)) as url, page_of(browser, java_script_enabled=scripts) as page:
        room.answer(room.claim(), body=SHOP_PAGE, address="/shop/draw?x=1", Content_Type="text/html")
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        assert page.url == f"{url}/api/queue/result/{ticket.id}/shop/draw?x=1"
        expect(page.locator("img")).to_have_js_property("naturalWidth", 120)
        page.get_by_role("link", name="Next").click()
        expect(page.locator("body")).to_have_text("GET /shop/next?page=2")
        page.go_back()
        page.get_by_role("button", name="Again").click()
        expect(page.locator("body")).to_have_text("POST /shop/draw?x=1 more=paint")
        assert page.url == f"{url}/shop/draw?x=1"


def test_a_lost_connection_is_told_and_mended(browser: Browser) -> None:
    """Catches: a page that says nothing while it hears nothing; one that stays away when the stream is refused."""
    room = Room()
    ticket = room.put()
    broken = [True]

    def polled(route: Route) -> None:
        if broken and route.request.resource_type == "fetch":
            route.fulfill(status=502)
        else:
            route.fallback()

    with served(room.api) as url, page_of(browser) as page:
        page.route("**/events/*", lambda route: route.fulfill(status=502))
        page.route("**/status/*", polled)
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        expect(page.locator("[data-live=doing]")).to_contain_text("The connection is lost")
        room.claim()
        broken.clear()
        expect(page.locator(HEADING)).to_have_text("Your request is being worked on")
        expect(page.locator("[data-live=doing]")).to_contain_text("It runs right now")


def event(**data: object) -> str:
    """Return an event with a status."""
    status = {"status": "queued", "position_in_queue": 3, "estimated_wait_time": 60, "estimated_wait_p90": 90}
    return f"retry: 60000\nevent: status\ndata: {json.dumps({**status, **data})}\n\n"


def stream(page: Page, text: str) -> None:
    """Let every stream of events be this text."""
    page.unroute("**/events/*")
    page.route("**/events/*", lambda route: route.fulfill(content_type="text/event-stream", body=text))


def test_progress_moves_while_one_looks(browser: Browser) -> None:
    """Catches: a bar that stands still, one that stays where nothing is known any more."""
    room = Room()
    ticket = room.put()
    with served(room.api) as url, page_of(browser) as page:
        stream(page, event(status="processing", position_in_queue=None, progress=0.42, progress_note="step 21 of 50"))
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        bar = page.get_by_role("progressbar")
        expect(bar).to_have_js_property("value", 0.42)
        expect(page.locator("[data-live=note]")).to_have_text("step 21 of 50")
        expect(page.locator("[data-live=percent]")).to_have_text("42%")
        expect(page.locator("[data-live=wait]")).to_be_hidden()
        stream(page, event(status="processing", position_in_queue=None, progress=None))
        page.reload()
        expect(bar).to_be_visible()
        assert bar.get_attribute("value") is None


@pytest.mark.parametrize("tag", ["en", "de"])
def test_the_script_words_a_wait_as_the_page_does(browser: Browser, tag: str) -> None:
    """Catches: two wordings of the same wait that drift apart."""
    room = Room()
    ticket = room.put()
    language = ENGLISH if tag == "en" else shipped()[tag]
    waits = [
        (0, 4),
        (2, 12),
        (12, 31),
        (20, 70),
        (110, 230),
        (170, 175),
        (1500, 5399),
        (1500, 5401),
        (200_000, 400_000),
    ]
    with served(room.api) as url, page_of(browser, locale=tag) as page:
        for p50, p90 in waits:
            stream(page, event(estimated_wait_time=p50, estimated_wait_p90=p90))
            page.goto(f"{url}/api/queue/status/{ticket.id}")
            expect(page.locator("[data-live=wait]")).to_have_text(wait_range(p50, p90, language))


def elements(page: Page) -> int:
    """Return how many elements there are."""
    return int(page.evaluate("document.querySelectorAll('*').length"))


def test_hostile_texts_stay_texts(browser: Browser) -> None:
    """Catches: a text of others that becomes an element, or runs, at first or when the page is brought up to date."""
    counts = set()
    asked: list[str] = []
    with page_of(browser) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        for text in ("harmless", *HOSTILE):
            room = Room(hint=text, name=text, note=text)
            ticket = room.put(tier="anonymous")
            claimed = room.claim()
            room.store.progress(ticket.id, claimed.attempt, 0.5, text)
            words = {"progress_note": text, "message": text}
            stream(page, event(status="processing", progress=0.7, position_in_queue=None, **words))
            with served(room.api) as url:
                page.goto(f"{url}/api/queue/status/{ticket.id}")
                expect(page.locator("[data-live=percent]")).to_have_text("70%")
            assert page.locator("[data-live=note]").evaluate("e => e.textContent") == text
            assert page.evaluate("typeof hacked") == "undefined"
            counts.add(elements(page))
            assert all(address.startswith((url, "data:,")) for address in asked), asked
            asked.clear()
    assert len(counts) == 1, counts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_everybody_can_use_the_page(browser: Browser, scheme: str, width: int) -> None:
    """Catches: too little contrast, a control without a name, a page that is wider than a phone."""
    room = Room(hint="Sign in to move up the line.", name="A site", note="Tea is in the kitchen.", colour="#ffcc00")
    failed = fail(room)
    running, _, queued = (room.put(tier="anonymous") for _ in range(3))
    claimed = room.claim()
    room.store.progress(claimed.id, claimed.attempt, 0.4, "step 20 of 50")
    size = {"width": width, "height": 800}
    how = {"color_scheme": scheme, "viewport": size, "bypass_csp": True, "reduced_motion": "reduce"}
    with served(room.api) as url, page_of(browser, **how) as page:
        for name in (queued.id, running.id, failed.id, "nobody"):
            page.goto(f"{url}/api/queue/status/{name}")
            expect(page.locator("h1")).to_be_visible()
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") <= width


#: The words of a page that stand on more than one line.
BROKEN = """() => {
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), broken = []
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange()
      range.setStart(texts.currentNode, word.index)
      range.setEnd(texts.currentNode, word.index + word[0].length)
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) broken.push(word[0])
    }
  }
  return broken
}"""


@pytest.mark.parametrize("tag", ["en", "de", "es"])
def test_a_page_at_400_percent_is_read_downwards_only(browser: Browser, tag: str) -> None:
    """Catches: a page that must be moved sideways, or whose words are broken, on a screen of 1280 pixels at 400 %."""
    room = Room(hint="Sign in to move up the line.", name="A site")
    tickets = [room.put(tier="anonymous") for _ in range(14)]
    failed = fail(room)
    claimed = room.claim()
    with served(room.api) as url, page_of(browser, locale=tag, viewport={"width": 320, "height": 256}) as page:
        for seconds in (0, 25, 130, 5400):
            room.now = claimed.created_at + seconds
            for ticket in (claimed, tickets[-1], failed):
                page.goto(f"{url}/api/queue/status/{ticket.id}")
                expect(page.locator("h1")).to_be_visible()
                assert page.evaluate("document.documentElement.scrollWidth") <= 320
                assert page.evaluate(BROKEN) == []


def test_reduced_motion_is_respected(browser: Browser) -> None:
    """Catches: a pulse or a moving bar for those who asked for none."""
    room = Room()
    ticket = room.put()
    room.claim()
    with served(room.api) as url, page_of(browser, reduced_motion="reduce") as page:
        page.goto(f"{url}/api/queue/status/{ticket.id}")
        expect(page.get_by_role("progressbar")).to_be_visible()
        assert page.evaluate("document.getAnimations().length") == 0

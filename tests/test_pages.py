"""Our pages, rendered without a browser."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.docs_pages import Block, blocks
from tests.rooms import BROWSER, HOSTILE, Room
from tests.support import ROOT
from tests.wsgi import Result, call, environ
from wsgi_admission import AdmissionMiddleware
from wsgi_admission.config import Admission, Config, PagesOptions, Route, StoreOptions
from wsgi_admission.errors import ConfigError, StoreUnavailable
from wsgi_admission.languages import ENGLISH, Language, preferred, shipped
from wsgi_admission.policy.decision import Mode
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web import answers
from wsgi_admission.web.answers import Answer
from wsgi_admission.web.colours import PAPER, contrast, shades
from wsgi_admission.web.durations import duration, wait_range
from wsgi_admission.web.pages import prefers_html
from wsgi_admission.web.rooms import LIVE


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", True),
        ("application/json", False),
        ("text/html;q=0.5, application/json", False),
        ("application/json;q=0.5, text/html", True),
        ("text/html, application/json", False),
        ("text/*;q=0.3", True),
        ("text/html;q=0, */*", False),
        ("TEXT/HTML ; Q=0.7, */*;q=0.1", True),
        ("text/html;level=1", True),
        ("image/avif,image/webp,*/*;q=0.8", False),
        ("text/html;q=nan", False),
        ("text/html;q=1e9, application/json", False),
        (";;,,;q=,=", False),
        ("text/event-stream", False),
    ],
)
def test_who_gets_a_page(accept: str | None, html: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Catches: a program that gets HTML, a person who gets JSON, a quality that is not looked at."""
    keys: dict[str, Any] = {} if accept is None else {"HTTP_ACCEPT": accept}
    assert prefers_html(environ("/", **keys)) is html


@pytest.mark.parametrize(
    ("header", "tag"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,en;q=0.5", "de"),
        ("fr, es;q=0.3", "es"),
        ("fr", "en"),
        ("en-GB, de;q=0.9", "en"),
        ("de;q=0, es", "es"),
        ("de;q=0.4, es;q=0.6", "es"),
        ("*", "en"),
        ("DE-ch", "de"),
        ("de;q=broken, es;q=0.1", "es"),
        ("../../etc/passwd", "en"),
        (",;=" * 5000, "en"),
    ],
)
def test_which_language_a_client_reads(header: str, tag: str) -> None:
    """Catches: a wish that is not understood, a region that hides its language, a header that breaks the page."""
    assert preferred(header, shipped()).tag == tag


def used_texts() -> set[str]:
    """Return every English text that our pages translate."""
    web = ROOT / "wsgi_admission" / "web"
    found = set(LIVE)
    for file in [*web.rglob("*.py"), *web.rglob("*.html"), *web.rglob("*.js")]:
        found |= set(re.findall(r"\bt\(\s*[\"']([^\"'`$]{4,})[\"'][,)]", file.read_text("utf-8")))
    return found


@pytest.mark.parametrize("tag", ["de", "es"])
def test_a_language_has_every_text(tag: str) -> None:
    """Catches: a text that was changed or added in English only, a part of it that the translation lacks."""
    texts = shipped()[tag].texts
    assert used_texts() - set(texts) == set()
    assert list(texts) == list(shipped()["de"].texts)
    for english, text in texts.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", text)), english
        assert text.strip() == text != ""


def test_a_text_of_a_site_is_no_format_of_python() -> None:
    """Catches: str.format with a text from a file, which reads attributes."""
    language = Language("de", {"{number} days": "{number.__class__} {number} {other}"})
    assert language("{number} days", number=3) == "{number.__class__} 3 {other}"


@pytest.mark.parametrize(
    ("p50", "p90", "text"),
    [
        (0, 4, "a few seconds"),
        (2, 12, "up to 15 seconds"),
        (12, 31, "about 10 to 35 seconds"),
        (20, 70, "up to 2 minutes"),
        (61, 59.9, "about 1 minute"),
        (110, 230, "about 2 to 4 minutes"),
        (170, 175, "about 3 minutes"),
        (1500, 5399, "about 25 to 90 minutes"),
        (1500, 5401, "up to 2 hours"),
        (7000, 9000, "about 2 to 3 hours"),
        (200_000, 400_000, "about 2 to 5 days"),
    ],
)
def test_a_wait_is_told_as_a_range(p50: float, p90: float, text: str) -> None:
    """Catches: a range of nothing, one that is too exact, one that ends before nine in ten have started."""
    assert wait_range(p50, p90, ENGLISH) == text


def test_durations_are_told_in_the_language() -> None:
    """Catches: English units on a German page, a plural for one."""
    german = shipped()["de"]
    assert duration(3661, german) == "1 Stunde 1 Minute"
    assert duration(0.2, german) == "ein Augenblick"
    assert wait_range(110, 230, german) == "etwa 2 bis 4 Minuten"


@pytest.mark.parametrize("colour", ["#000000", "#ffffff", "#ffff00", "#4f46e5", "#808080", "#ff0000", "#101217"])
def test_any_colour_of_a_site_can_be_read(colour: str) -> None:
    """Catches: a yellow button with white words, a black bar on a dark page."""
    for scheme, (shade, ink) in shades(colour).items():
        assert contrast(shade, PAPER[scheme]) >= 4.5
        assert contrast(ink, shade) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def page(room: Room, ticket: Ticket | str, name: str = "status", method: str = "GET", **keys: Any) -> Result:
    """Call the API about a ticket as a browser does."""
    return room.ask(name, ticket, method, **{"HTTP_ACCEPT": BROWSER, **keys})


def posted(room: Room, ticket: Ticket, **keys: Any) -> Result:
    """Return the answer to a form whose request is in the line as ``ticket``."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return room.api.admitted(ticket, environ, start_response)

    return call(app, "/image", "POST", **keys)


def test_a_form_gets_the_waiting_room_and_a_program_json() -> None:
    """Catches: a person who gets JSON; a page without a way on for a browser that runs no scripts."""
    room = Room()
    room.put()
    ticket = room.put()
    result = posted(room, ticket, HTTP_ACCEPT=BROWSER, HTTP_ACCEPT_LANGUAGE="de")
    assert result.status == "202 Accepted"
    assert (result.header("Content-Type"), result.header("Content-Language")) == ("text/html; charset=utf-8", "de")
    seconds = result.header("Retry-After")
    assert result.header("Refresh") == f"{seconds}; url=/api/queue/status/{ticket.id}"
    assert result.header("Admission-Status") == "queued"
    assert "Sie sind Nummer 2 in der Reihe" in result.body.decode()
    assert posted(room, ticket, HTTP_ACCEPT="*/*").json()["queued"] is True
    assert posted(room, ticket).json()["queued"] is True


def test_a_page_lets_nothing_else_run() -> None:
    """Catches: a policy that is too wide, a nonce that is used twice, an address that leaks, a page that is kept."""
    room = Room(logo="/static/logo.svg", name="A site")
    ticket = room.put()
    one, two = (page(room, ticket) for _ in range(2))
    csp = one.header("Content-Security-Policy") or ""
    nonce = re.findall("'nonce-([^']+)'", csp)[0]
    assert f"script-src 'nonce-{nonce}';" in csp
    assert f"style-src 'nonce-{nonce}';" in csp
    rules = ("default-src 'none'", "connect-src 'self'", "form-action 'self'", "frame-ancestors 'none'")
    assert set(rules) | {"base-uri 'none'"} <= {rule.strip() for rule in csp.split(";")}
    assert nonce not in (two.header("Content-Security-Policy") or "")
    assert one.header("Referrer-Policy") == "no-referrer"
    assert one.header("X-Frame-Options") == "DENY"
    assert one.header("Cache-Control") == "no-store"
    assert {value for name, value in one.headers if name == "Vary"} >= {"Accept-Language"}
    text = one.body.decode()
    assert not re.search(r"(?:src|href|action)=\"(?!/(?!/)|data:,\")", text), "everything is of this host"
    assert not re.search(r"\son\w+=|style=", text), "no inline handlers or styles"
    for opened in re.findall(r"<(?:script(?! type=\"application/json\")|style|link rel=\"stylesheet\")[^>]*>", text):
        assert f'nonce="{nonce}"' in opened


def test_every_address_of_a_page_is_below_the_mount() -> None:
    """Catches: a button or a script that leads out of the app's folder."""
    room = Room()
    ticket = room.put()
    result = page(room, ticket, SCRIPT_NAME="/shop")
    text = result.body.decode()
    found = re.findall(r"(?:src|href|action)=\"(/[^\"]*)|\"(/[^\"]*/(?:status|events|result)/[^\"]*)\"", text)
    paths = [a or b for a, b in found]
    assert len(paths) >= 6
    assert all(path.startswith("/shop/api/queue/") for path in paths)
    assert "url=/shop/api/queue/status/" in (result.header("Refresh") or "")


def test_the_page_follows_the_ticket_through_its_states() -> None:
    """Catches: a page that tells of another state, a final page that keeps refreshing, an answer that is not shown."""
    room = Room()
    ticket, other = room.put(), room.put()
    assert "You are next in line" in page(room, ticket).body.decode()
    claimed = room.claim()
    room.store.progress(claimed.id, claimed.attempt, 0.4, "step 20 of 50")
    running = page(room, ticket).body.decode()
    assert "Your request is being worked on" in running
    assert 'value="0.4"' in running
    assert "step 20 of 50" in running
    room.answer(claimed)
    done = page(room, ticket)
    assert (done.status, done.header("Location")) == ("303 See Other", f"/api/queue/result/{ticket.id}")
    assert page(room, ticket, "result").body == b"done"
    room.answer(room.claim(), "500 Broken")
    assert page(room, other).header("Location") == f"/api/queue/result/{other.id}"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("204 No Content", {}),
        ("205 Reset Content", {}),
        ("304 Not Modified", {}),
        ("200 OK", {"Content_Disposition": 'Attachment; filename="a.zip"'}),
        ("200 OK", {"content_disposition": "attachment"}),
    ],
)
def test_a_page_that_the_answer_would_leave_as_it_is_says_that_it_is_there(
    status: str, headers: dict[str, str]
) -> None:
    """Catches: a page without scripts that stands still, because its refresh has led to a download or to nothing."""
    room = Room()
    ticket = room.put()
    room.answer(room.claim(), status, b"", **headers)
    shown = page(room, ticket, HTTP_ACCEPT_LANGUAGE="de")
    assert (shown.status, shown.header("Refresh")) == ("200 OK", None)
    assert "Ihre Antwort ist fertig" in shown.body.decode()
    assert f'href="/api/queue/result/{ticket.id}"' in shown.body.decode()


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("en", "It may still run for a while. Its answer will be dropped."),
        ("de", "Sie läuft vielleicht noch eine Weile. Die Antwort wird verworfen."),
        ("es", "Puede que aún se ejecute un rato. La respuesta se descartará."),
    ],
)
def test_a_page_of_what_is_being_cancelled_promises_nothing(tag: str, text: str) -> None:
    """Catches: a page without scripts that says that the answer appears here, or that can cancel what is cancelled."""
    room = Room()
    ticket = room.put()
    room.claim()
    before = page(room, ticket, HTTP_ACCEPT_LANGUAGE=tag).body.decode()
    room.store.cancel(ticket.id, now=room.now)
    shown = page(room, ticket, HTTP_ACCEPT_LANGUAGE=tag).body.decode()
    said, kept = (f'data-live="doing">{text}<', 'class="keep soft"')
    assert (said in before, kept in before, "/cancel" in before) == (False, True, True)
    assert (said in shown, kept in shown, "/cancel" in shown) == (True, False, False)


def test_what_a_browser_shows_beside_its_download_button_is_led_to() -> None:
    """Catches: a picture with a name for whoever saves it that is taken for a download."""
    room = Room()
    ticket = room.put()
    room.answer(room.claim(), Content_Disposition="inline; filename=attachment.png")
    assert page(room, ticket).status == "303 See Other"


def test_a_failure_without_an_answer_can_be_run_again() -> None:
    """Catches: a failed page without a way on, a retry that is posted twice by a reload."""
    room = Room()
    ticket = room.put()
    claimed = room.claim()
    room.store.finish(
        ticket.id, claimed.attempt, State.FAILED, None, now=room.now, error="It <broke>.", keep_request=True
    )
    shown = page(room, ticket)
    assert shown.header("Refresh") is None
    assert "Your request failed" in shown.body.decode()
    assert "It &lt;broke&gt;." in shown.body.decode()
    assert f'action="/api/queue/status/{ticket.id}/retry"' in shown.body.decode()
    assert page(room, ticket, "result").status.startswith("500")
    refused = page(room, f"{ticket.id}/retry", method="POST", HTTP_SEC_FETCH_SITE="cross-site")
    assert refused.status == "403 Forbidden"
    again = page(room, f"{ticket.id}/retry", method="POST", HTTP_SEC_FETCH_SITE="same-origin")
    assert again.status == "303 See Other"
    assert "You are next in line" in page(room, (again.header("Location") or "").rpartition("/")[2]).body.decode()


def test_a_form_cancels() -> None:
    """Catches: a cancel button that needs scripts, one that a page of another site can press."""
    room = Room()
    ticket = room.put()
    where = f"{ticket.id}/cancel"
    for foreign in (
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_ORIGIN": "https://evil.example"},
    ):
        assert page(room, where, method="POST", **foreign).status == "403 Forbidden"
    assert room.store.get(ticket.id).state is State.QUEUED
    for _ in range(2):  # the second finds it cancelled
        done = page(room, where, method="POST", HTTP_ORIGIN="null")
        assert (done.status, done.header("Location")) == ("303 See Other", f"/api/queue/status/{ticket.id}")
    shown = page(room, ticket)
    assert "Your request was cancelled" in shown.body.decode()
    assert shown.header("Refresh") is None
    assert page(room, where).status == "405 Method Not Allowed"


def test_errors_are_pages_for_people_and_problems_for_programs() -> None:
    """Catches: JSON in a browser, a page with another text, status or advice."""
    room = Room()
    shown = page(room, "nobody", HTTP_ACCEPT_LANGUAGE="de")
    assert shown.status == "404 Not Found"
    assert "Eine solche Anfrage gibt es hier nicht." in shown.body.decode()
    assert "There is no such ticket." in page(room, "nobody").body.decode()
    assert room.ask("status", "nobody").json()["detail"] == "There is no such ticket."
    ticket = room.put()
    room.store.cancel(ticket.id, now=room.now)
    assert page(room, ticket, "result").status == "410 Gone"


def test_a_store_that_fails_is_a_page_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a page that loses Retry-After, or the 202 to a request that is in the line all the same."""
    room = Room()
    ticket = room.put()

    def fail(_id: str) -> Ticket:
        raise StoreUnavailable("down")

    monkeypatch.setattr(room.store, "ahead", fail)
    assert posted(room, ticket, HTTP_ACCEPT=BROWSER).status == "202 Accepted"
    monkeypatch.setattr(room.store, "get", fail)
    shown = page(room, ticket)
    assert shown.status == "503 Service Unavailable"
    assert int(shown.header("Retry-After") or 0) >= 1
    assert "You can try again in:" in shown.body.decode()


def test_what_the_middleware_refuses_is_a_page() -> None:
    """Catches: JSON for a person whose upload is too large."""
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="x", path=("/x",), max_body=4),),
    )
    site = AdmissionMiddleware(lambda _environ, _start: [b""], config, replays=False)
    try:
        shown = call(site, "/x", "POST", b"12345", HTTP_ACCEPT=BROWSER)
        assert shown.status == "413 Content Too Large"
        assert "The body is larger than 4 bytes." in shown.body.decode()
        assert call(site, "/x", "POST", b"12345").json()["status"] == 413
    finally:
        site.close()


class Tags(HTMLParser):
    """Notes the elements and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.seen.append((tag, *(name for name, _ in attrs)))


@cache
def shown_with(text: str) -> list[str]:
    """Return pages that show a text wherever a text of others goes."""
    room = Room(hint=text, name=text, note=text)
    queued, failed, running = (room.put(tier="anonymous") for _ in range(3))
    pages = [page(room, queued), posted(room, queued, HTTP_ACCEPT=BROWSER)]
    first, second = room.claim(), room.claim()
    assert first.id == queued.id
    room.store.progress(first.id, first.attempt, 0.5, text)
    pages.append(page(room, queued))
    room.store.finish(second.id, second.attempt, State.FAILED, None, now=room.now, error=text, keep_request=True)
    pages += [page(room, failed), page(room, text.encode().decode("latin-1")), page(room, running)]
    problem = room.api._pages.problem(environ("/", HTTP_ACCEPT=BROWSER), problem_of(text))
    return [result.body.decode() for result in pages] + [problem.body.decode()]


def problem_of(text: str) -> Answer:
    """Return a problem with this text."""
    return answers.problem(400, text)


def test_there_are_fifty_hostile_texts() -> None:
    """Catches: a list that shrinks."""
    assert len(set(HOSTILE)) == 50


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_a_text(text: str) -> None:
    """Catches: a text that is put into a page without being escaped."""
    for hostile, harmless in zip(shown_with(text), shown_with("harmless"), strict=True):
        assert Tags(hostile).seen == Tags(harmless).seen
        assert hostile.count("harmless") == 0
        assert ">49" not in hostile, "it is no template"


def test_a_template_of_the_site_is_shown(tmp_path: Path) -> None:
    """Catches: an own template that cannot extend ours, or is not used."""
    own = tmp_path / "waiting.html"
    own.write_text('{% extends "admission/waiting.html" %}{% block intro %}<p>Tea? {{ position }}</p>{% endblock %}')
    room = Room(template=str(own))
    text = page(room, room.put()).body.decode()
    assert "<p>Tea? 1</p>" in text
    assert "You are next in line" in text


@pytest.mark.parametrize("block", blocks("jinja"), ids=lambda block: block.name)
def test_templates_in_the_docs_are_shown(block: Block, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a block or a name in the docs that our templates do not have."""
    own = tmp_path / "own.html"
    own.write_text(block.text)
    room = Room(template=str(own))
    text = page(room, room.put()).body.decode()
    assert caplog.text == ""
    assert max(block.text.splitlines(), key=len)[-20:] in text
    ours = (ROOT / "wsgi_admission" / "web" / "templates" / "waiting.html").read_text()
    assert set(re.findall(r"block (\w+)", block.text)) <= set(re.findall(r"block (\w+)", ours))


def test_a_template_that_fails_is_replaced_by_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: somebody who is in the line and told of an error, because of a name misspelt in a template."""
    own = tmp_path / "own.html"
    own.write_text("{{ positon }}")
    room = Room(template=str(own))
    assert "You are next in line" in page(room, room.put()).body.decode()
    assert str(own) in caplog.text


def test_texts_of_the_site_replace_ours_and_add_languages(tmp_path: Path) -> None:
    """Catches: a folder that is not read, a language that loses our other texts."""
    (tmp_path / "en.json").write_text('{"You are next in line": "It is your turn"}')
    (tmp_path / "fr.json").write_text('{"You are next in line": "C\'est votre tour"}')
    room = Room(texts=str(tmp_path))
    ticket = room.put()
    assert "It is your turn" in page(room, ticket).body.decode()
    french = page(room, ticket, HTTP_ACCEPT_LANGUAGE="fr-CA, de;q=0.5")
    assert french.header("Content-Language") == "fr"
    assert "C&#39;est votre tour" in french.body.decode()
    assert "Sie sind" in page(room, ticket, HTTP_ACCEPT_LANGUAGE="de").body.decode()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("colour", "blue", "is not '#' and six hexadecimal digits"),
        ("logo", "https://evil.example/x.svg", "our pages load nothing from elsewhere"),
        ("logo", "//evil.example/x.svg", "our pages load nothing from elsewhere"),
        ("template", "nowhere.html", "cannot be read (No such file or directory)"),
        ("template", "broken.html", "line 2: "),
        ("texts", "nowhere", "is no folder"),
        ("texts", "unknown", "there is no text 'Hello'"),
        ("texts", "parts", "has parts that"),
        ("texts", "list", "is no JSON object of texts"),
        ("texts", "name", "which is not named for a language"),
        ("name", "a\nb", "must be one line"),
    ],
)
def test_options_of_the_pages_are_checked(
    option: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a mistake that is found by the first visitor, or makes our pages load what is another's."""
    monkeypatch.chdir(tmp_path)
    Path("broken.html").write_text("\n{% if %}")
    for folder, name, text in (
        ("unknown", "fr", '{"Hello": "Bonjour"}'),
        ("parts", "fr", '{"Your request failed": "{who}"}'),
        ("list", "fr", "[]"),
        ("name", "french!", "{}"),
    ):
        Path(folder).mkdir()
        Path(folder, f"{name}.json").write_text(text)
    with pytest.raises(ConfigError) as raised:
        PagesOptions(**{option: value})
    assert f"[pages] {option}" in str(raised.value)
    assert reason in str(raised.value)

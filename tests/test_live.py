"""Event streams, held answers and preferences, without a server."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from tests.support import until
from tests.test_api import Desk
from tests.wsgi import Result, call, environ
from wsgi_admission import AdmissionMiddleware, Config
from wsgi_admission.config import Admission, Route, StoreOptions
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.policy.decision import Mode
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver
from wsgi_admission.web import holding
from wsgi_admission.web.api import Api
from wsgi_admission.web.events import BEAT, HALF, Stream, View
from wsgi_admission.web.holding import Readers, Server
from wsgi_admission.web.preferences import Preferences, preferences

THREADS: dict[str, Any] = {"wsgi.multithread": True}


def live(threads: int = 8, timeout: float | None = None) -> Desk:
    """Return a desk whose server has threads."""
    desk = Desk()
    desk.api = Api(
        desk.store, desk.config, Resolver([tier.name for tier in desk.config.tiers.order]), lambda: desk.load,
        server=Server(threads, timeout), clock=lambda: desk.now, uniform=lambda: 0.5,
    )  # fmt: skip
    return desk


class Reading:
    """An event stream that is read piece by piece."""

    def __init__(self, desk: Desk, ticket: Ticket, **keys: Any) -> None:
        self.headers: dict[str, str] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
            assert status == "200 OK"
            self.headers.update(headers)

        env = environ(f"/api/queue/events/{ticket.id}", **{**THREADS, **keys})
        self.answer: Any = desk.api(env, start_response)
        self.pieces = iter(self.answer)

    def event(self) -> dict[str, Any]:
        """Return the data of the next event."""
        return data(next(self.pieces))

    def close(self) -> None:
        """Leave."""
        self.answer.close()


def data(piece: bytes) -> dict[str, Any]:
    """Return the data of an event."""
    fields = dict(line.split(": ", 1) for line in piece.decode().strip().split("\n"))
    found: dict[str, Any] = json.loads(fields["data"])
    assert fields["id"] == found["status"]
    return found


def test_a_stream_tells_of_every_change_and_ends_after_the_final_one() -> None:
    """Catches: a change that is missed or told twice; a stream without an end; a nginx that keeps the events back."""
    desk = live()
    first, ticket = desk.put(), desk.put()
    stream = Reading(desk, ticket)
    assert stream.headers["Content-Type"] == "text/event-stream"
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert stream.headers["Cache-Control"] == "no-store"
    assert "Content-Length" not in stream.headers
    assert stream.event()["position_in_queue"] == 2
    desk.store.cancel(first.id, now=desk.now)
    assert stream.event()["position_in_queue"] == 1
    claimed = desk.claim()
    assert stream.event()["status"] == "processing"
    desk.store.progress(claimed.id, claimed.attempt, 0.5, "half")
    assert stream.event()["progress"] == 0.5
    desk.answer(claimed)
    assert stream.event()["status"] == "completed"
    assert list(stream.pieces) == []
    stream.close()
    assert desk.ask("events", ticket, HTTP_LAST_EVENT_ID="completed", **THREADS).status == "204 No Content"


def test_that_a_run_is_being_cancelled_is_news(held: Any) -> None:
    """Catches: a page that hears of it only when the run ends."""
    desk = live()
    ticket = desk.put()
    claimed = desk.claim()
    stream = Reading(desk, ticket)
    assert stream.event()["cancelling"] is False
    answer = held(desk, "status", f"{ticket.id}?wait=25")
    until(lambda: seated(desk) == 2)
    desk.store.cancel(ticket.id, now=desk.now)
    assert stream.event()["cancelling"] is True
    assert answer().json()["cancelling"] is True
    desk.answer(claimed)
    assert stream.event()["status"] == "cancelled"
    stream.close()


def test_a_change_between_the_look_and_the_wait_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a token that is read after the view: the stream then sleeps on what it has not told."""
    desk = live()
    monkeypatch.setattr(holding, "LOOK_INTERVAL", 60.0)
    ticket = desk.put()
    get = desk.store.get
    gets: list[str] = []

    def claimed_right_after(ticket_id: str) -> Ticket:
        found = get(ticket_id)
        gets.append(ticket_id)
        if len(gets) == 2:  # the first is by whoever asks whose ticket it is
            desk.claim()
        return found

    monkeypatch.setattr(desk.store, "get", claimed_right_after)
    stream = Reading(desk, ticket)
    began = time.monotonic()
    assert [stream.event()["status"] for _ in range(2)] == ["queued", "processing"]
    assert time.monotonic() - began < BEAT / 2
    stream.close()


@pytest.mark.parametrize(("threads", "seats"), [(1, 0), (3, 0), (4, 1), (7, 1), (16, 4), (1000, 64)])
def test_a_quarter_of_the_threads_may_wait(threads: int, seats: int) -> None:
    """Catches: a share that is rounded up, or has no bound."""
    desk = live(threads)
    readings = [Reading(desk, desk.put()) for _ in range(seats)]
    single = Reading(desk, desk.put())
    assert single.headers["Content-Length"]
    assert len(list(single.pieces)) == 1
    for reading in readings:
        assert "Content-Length" not in reading.headers
        reading.close()
    if seats:
        again = Reading(desk, desk.put())
        assert "Content-Length" not in again.headers, "the seats were given back"
        again.close()


def test_a_stream_that_was_never_read_or_never_closed_gives_its_seat_back() -> None:
    """Catches: a seat freed in a generator's finally, which does not run before the first piece."""
    desk = live(4)
    unread = Reading(desk, desk.put())
    unread.close()
    dropped = Reading(desk, desk.put())
    assert "Content-Length" not in dropped.headers
    del dropped
    gc.collect()
    again = Reading(desk, desk.put())
    assert "Content-Length" not in again.headers
    again.close()


@pytest.mark.parametrize("keys", [{"wsgi.multithread": False}, {"REQUEST_METHOD": "HEAD"}], ids=["sync", "HEAD"])
def test_no_stream_where_it_would_block_everybody_or_tell_nothing(keys: dict[str, Any]) -> None:
    """Catches: a sync worker that is killed for its silence; a HEAD that hangs."""
    desk = live()
    ticket = desk.put()
    single = Reading(desk, ticket, **keys)
    assert single.headers["Content-Length"]
    assert len(list(single.pieces)) == 1
    assert desk.ask("status", f"{ticket.id}?wait=20", **{**THREADS, **keys}).status == "200 OK"


def test_a_stream_that_is_lost_is_taken_up_again_soon_and_a_poll_waits_as_advised() -> None:
    """Catches: a page that shows nothing new for a minute because its server's process was killed."""
    desk = live()
    ticket = [desk.put() for _ in range(30)][-1]
    stream, single = Reading(desk, ticket), Reading(desk, ticket, **{"wsgi.multithread": False})
    seconds = [
        int(next(iter(each.pieces)).split(b"\n")[0].removeprefix(b"retry: ")) // 1000 for each in (stream, single)
    ]
    stream.close()
    assert seconds[0] == 5
    assert seconds[1] == int(single.headers["Retry-After"]) > 60


def test_streams_end_at_once_when_the_process_leaves() -> None:
    """Catches: a shutdown that waits for the browsers; one that keeps them away for long; a new stream afterwards."""
    desk = live()
    stream = Reading(desk, desk.put())
    stream.event()
    desk.api.readers.leave()
    assert list(stream.pieces) == [b"retry: 1000\n\n"]
    assert Reading(desk, desk.put()).headers["Content-Length"]


def test_a_store_that_fails_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a traceback in the middle of a stream, or one that tells nothing for ever."""
    desk = live()
    stream = Reading(desk, desk.put())
    stream.event()

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(desk.store, "get", dead)
    monkeypatch.setattr(desk.store, "changed", dead)
    desk.api.readers._changed = dead
    assert list(stream.pieces) == []


class Chair:
    """A seat on which time passes as the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.leaving = False
        self.closed = False
        self.rests: list[float] = []

    def rest(self, _token: Hashable, seconds: float) -> None:
        """Let the time pass, five seconds at the most."""
        self.rests.append(seconds)
        self.now += min(5.0, seconds)

    def pause(self, seconds: float) -> None:
        """Let the time pass."""
        self.now += seconds

    def close(self) -> None:
        """Note it."""
        self.closed = True


def test_silence_is_broken_by_a_comment_in_two_writes() -> None:
    """Catches: a proxy that cuts a silent stream; a client that has gone and is noticed one comment later only."""
    chair = Chair()
    view = View({"status": "queued"}, [], State.QUEUED)
    looks: list[float] = []

    def look() -> tuple[Hashable, View]:
        looks.append(chair.now)
        return 1, View({"status": "queued"}, [], State.QUEUED)

    stream = iter(Stream(view, 1, chair, look, clock=lambda: chair.now))  # type: ignore[arg-type]  # it does what a seat does
    assert data(next(stream)) == {"status": "queued"}
    assert next(stream) == b":\n"
    assert chair.now == 100.0 + BEAT
    assert next(stream) == b"\n"
    assert chair.now == 100.0 + BEAT + HALF
    assert next(stream) == b":\n"
    assert chair.now == 100.0 + BEAT + HALF + BEAT


def test_looks_are_spaced_and_one_thread_asks_for_all() -> None:
    """Catches: a look for each change at a high rate; a question to the store for each reader."""
    asked: set[str] = set()
    token = [0]

    def changed() -> int:
        token[0] += 1  # something changes all the time
        asked.add(threading.current_thread().name)
        return token[0]

    readers = Readers(changed, Server(threads=4), interval=0.001)
    seat = readers.seat(environ("/", **THREADS), spacing=0.05)
    assert seat is not None
    began = time.monotonic()
    for _ in range(4):
        seat.rest(token[0], 10.0)
    assert 0.15 <= time.monotonic() - began < 5.0
    until(lambda: "wsgi-admission-readers" in asked, "the watcher's question")
    seat.close()
    until(lambda: readers._watcher is None, "the end of the watcher")


def test_who_cannot_be_woken_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an error, and a seat that is lost, when the system has no thread left."""
    readers = Readers(lambda: 1, Server(threads=4), interval=0.001)
    start = threading.Thread.start

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(3):
        assert readers.seat(environ("/", **THREADS), spacing=0.0) is None
    monkeypatch.setattr(threading.Thread, "start", start)
    seat = readers.seat(environ("/", **THREADS), spacing=0.0)
    assert seat is not None
    seat.close()


def test_the_watcher_ends_with_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a server that joins its threads at the end, and never comes to its end."""
    readers = Readers(lambda: 1, Server(threads=4), interval=0.001)
    seat = readers.seat(environ("/", **THREADS), spacing=0.0)
    assert seat is not None
    ended = threading.Thread()
    monkeypatch.setattr(threading, "main_thread", lambda: ended)
    seat.rest(1, 20.0)
    assert seat.leaving
    seat.close()


@pytest.fixture
def held() -> Iterator[Callable[..., Callable[[], Result]]]:
    """Return a function that asks in a thread; what it returns waits for the answer."""
    threads: list[threading.Thread] = []

    def ask(desk: Desk, name: str, target: str, **keys: Any) -> Callable[[], Result]:
        got: list[Result] = []
        thread = threading.Thread(target=lambda: got.append(desk.ask(name, target, **{**THREADS, **keys})))
        thread.start()
        threads.append(thread)

        def answer() -> Result:
            thread.join(10)
            return got[0]

        answer.thread = thread  # type: ignore[attr-defined]  # for those who look whether it still waits
        return answer

    yield ask
    for thread in threads:
        thread.join(30)


def seated(desk: Desk) -> int:
    """Return how many wait."""
    return desk.api.readers._taken


def test_a_held_status_is_answered_when_something_has_changed(held: Any) -> None:
    """Catches: an answer at once, or only at the end of the time."""
    desk = live()
    first, ticket = desk.put(), desk.put()
    answer = held(desk, "status", f"{ticket.id}?wait=25")
    until(lambda: seated(desk) == 1)
    desk.store.cancel(first.id, now=desk.now)
    assert answer().json()["position_in_queue"] == 1
    assert seated(desk) == 0


def test_a_held_status_compares_with_what_the_client_has(held: Any) -> None:
    """Catches: a change that was there before the question, and for which the client waits in vain."""
    desk = live()
    ticket = desk.put()
    tag = desk.ask("status", ticket).header("ETag")
    answer = held(desk, "status", f"{ticket.id}?wait=25", HTTP_IF_NONE_MATCH=tag)
    until(lambda: seated(desk) == 1)
    claimed = desk.claim()
    assert answer().json()["status"] == "processing"
    began = time.monotonic()
    old = desk.ask("status", f"{ticket.id}?wait=25", HTTP_IF_NONE_MATCH=tag, **THREADS)
    assert time.monotonic() - began < 10
    assert old.json()["status"] == "processing"
    desk.answer(claimed)
    assert desk.ask("status", f"{ticket.id}?wait=25", **THREADS).json()["status"] == "completed"


def test_a_held_status_ends_with_its_time_and_with_the_process(held: Any) -> None:
    """Catches: caps that are not kept; a hold that outlives the server's patience, or its shutdown."""
    desk = live(timeout=0.2)
    assert desk.api.readers.longest_hold == 0.1
    ticket = desk.put()
    tag = desk.ask("status", ticket).header("ETag")
    assert desk.ask("status", f"{ticket.id}?wait=999", HTTP_IF_NONE_MATCH=tag, **THREADS).status == "304 Not Modified"
    desk = live(timeout=300)
    assert desk.api.readers.longest_hold == 30.0
    ticket = desk.put()
    answers = [held(desk, name, f"{ticket.id}?wait=25") for name in ("status", "result")]
    until(lambda: seated(desk) == 2)
    desk.api.readers.leave()
    assert [answer().status for answer in answers] == ["200 OK", "202 Accepted"]


def test_who_finds_no_seat_is_answered_at_once() -> None:
    """Catches: held answers that take all threads."""
    desk = live(4)
    stream = Reading(desk, desk.put())
    ticket = desk.put()
    for name in ("status", "result"):
        assert desk.ask(name, f"{ticket.id}?wait=25", **THREADS).json()["status"] == "queued"
    stream.close()


def test_a_held_result_is_the_apps_answer(held: Any) -> None:
    """Catches: a result that is handed out as pending because something else has changed."""
    desk = live()
    ticket = desk.put()
    answer = held(desk, "result", f"{ticket.id}?wait=25")
    until(lambda: seated(desk) == 1)
    claimed = desk.claim()
    assert not answer.thread.join(0.3)  # the start alone is no answer
    assert answer.thread.is_alive()
    desk.answer(claimed, "203 Painted", b"a picture")
    assert (answer().status, answer().body) == ("203 Painted", b"a picture")


@pytest.mark.parametrize("value", ["", "x", "-1", "2.5", "1e3", "٣", "+1", "1 "])
@pytest.mark.parametrize("name", ["status", "result"])
def test_a_wait_that_is_none_is_refused(name: str, value: str) -> None:
    """Catches: a traceback, or a time that nobody has asked for."""
    desk = live()
    ticket = desk.put()
    refused = call(desk.api, f"/api/queue/{name}/{ticket.id}", QUERY_STRING=f"wait={value}", **THREADS)
    assert (refused.status, refused.header("Content-Type")) == ("400 Bad Request", "application/problem+json")
    assert refused.json()["detail"] == "wait must be a whole number of seconds."
    assert desk.ask(name, f"{ticket.id}?wait=0&other=x", **THREADS).json()["status"] == "queued"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("respond-async", Preferences(respond_async=True)),
        ("Respond-Async, wait=10", Preferences(respond_async=True, wait=10)),
        ("wait=10,respond-async", Preferences(respond_async=True, wait=10)),
        ('wait = "10"', Preferences(wait=10)),
        ("wait=10; a=b; c", Preferences(wait=10)),
        ("wait=10, wait=20", Preferences(wait=10)),
        ('respond-async=""', Preferences(respond_async=True)),
        ('x="a, wait=5", wait=7', Preferences(wait=7)),
        ('x="a\\", wait=5", wait=7', Preferences(wait=7)),
        ("wait=-1", Preferences()),
        ("wait=1.5, respond-async", Preferences(respond_async=True)),
        ("wait", Preferences()),
        ("=3, wait=4", Preferences(wait=4)),
        ("wait=4 5, respond-async", Preferences(respond_async=True)),
        (",, ;,wait=3", Preferences(wait=3)),
        ("", Preferences()),
        ("return=minimal; foo, handling=lenient", Preferences()),
        ("\x00\xff", Preferences()),
        ("wait=" + "9" * 900, Preferences(wait=float("inf"))),
        ('"' * 5000, Preferences()),
        ("a;" * 5000, Preferences()),
    ],
)
def test_preferences_are_read_as_rfc_7240_says(field: str, expected: Preferences) -> None:
    """Catches: a quoted comma that splits, a later value that wins, junk that is not ignored or takes for ever."""
    assert preferences({"HTTP_PREFER": field}) == expected
    assert preferences({}) == Preferences()


class Shop:
    """A site with one slot, which answers when it is told to."""

    def __init__(self, mode: Mode = Mode.AUTO) -> None:
        config = Config(
            admission=Admission(mode=mode, max_concurrent=2, worker_threads=1),
            store=StoreOptions(url="memory://"),
            routes=(Route(name="image", path=("/image",), methods=frozenset({"POST", "GET"})),),
        )
        self.go = threading.Event()
        self.middleware = AdmissionMiddleware(self.app, config, server_threads=8)

    def app(self, env: dict[str, Any], start_response: Any) -> list[bytes]:
        """Answer with the method, when told to."""
        assert self.go.wait(30)
        start_response("203 Painted", [("Content-Type", "text/plain"), ("X-Own", "yes")])
        return [env["REQUEST_METHOD"].encode()]

    def call(self, prefer: str, path: str = "/image", method: str = "POST", **keys: Any) -> Result:
        """Send a request with preferences."""
        return call(self.middleware, path, method, HTTP_PREFER=prefer, **{**THREADS, **keys})


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Shop]]:
    """Return a function that opens a site; it is closed at the end."""
    monkeypatch.setattr("wsgi_admission.process.LoadMeter.sample", lambda _self, _now: None)
    made: list[Shop] = []

    def opened(mode: Mode = Mode.AUTO) -> Shop:
        made.append(Shop(mode))
        return made[-1]

    yield opened
    for one in made:
        one.go.set()
        one.middleware.close()


def test_who_prefers_to_be_queued_is_queued_by_an_idle_server(shop: Callable[..., Shop]) -> None:
    """Catches: a preference that is not looked at, not confirmed, or taken for an order where nothing can be queued."""
    site = shop()
    queued = site.call("respond-async")
    assert (queued.status, queued.header("Preference-Applied")) == ("202 Accepted", "respond-async")
    assert queued.header("Admission-Status") == "queued"
    site.go.set()
    until(lambda: call(site.middleware, queued.json()["result_url"]).status == "203 Painted")
    direct = site.call("return=minimal")
    assert (direct.status, direct.header("Preference-Applied")) == ("203 Painted", None)
    websocket = site.call("respond-async", method="GET", HTTP_UPGRADE="websocket")
    assert websocket.status == "203 Painted"
    chunked = site.call("respond-async", HTTP_TRANSFER_ENCODING="chunked", CONTENT_LENGTH="")
    assert chunked.status == "203 Painted", "what cannot be read cannot be queued"
    through = shop(Mode.PASS_THROUGH)
    through.go.set()
    assert through.call("respond-async").status == "203 Painted"


def test_who_prefers_to_wait_gets_the_apps_answer(shop: Callable[..., Shop]) -> None:
    """Catches: a 202 for what was ready in time; an answer without the app's status or headers."""
    site = shop(Mode.QUEUE_ALL)
    threading.Timer(0.2, site.go.set).start()
    answer = site.call("wait=20", path="/image?wait=of the app", method="GET")
    assert (answer.status, answer.body, answer.header("X-Own")) == ("203 Painted", b"GET", "yes")
    assert answer.header("Preference-Applied") == "wait=20"
    assert answer.header("Admission-Status") is None


def test_who_has_waited_long_enough_is_told_its_place(shop: Callable[..., Shop]) -> None:
    """Catches: a hold longer than asked; a preference that is confirmed although there was no seat for it."""
    site = shop(Mode.QUEUE_ALL)
    held = site.call("wait=1, respond-async")
    assert (held.status, held.header("Preference-Applied")) == ("202 Accepted", "respond-async, wait=1")
    alone = call(site.middleware, "/image", "POST", HTTP_PREFER="wait=20")
    assert (alone.status, alone.header("Preference-Applied")) == ("202 Accepted", None)


@pytest.mark.parametrize("step", ["changed", "get", "response"])
def test_a_store_that_fails_while_the_answer_is_held_still_means_202(
    shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Catches: an error for what is in the line, so that the client sends it again and it runs twice."""
    site = shop(Mode.QUEUE_ALL)
    site.go.set()

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    process = site.middleware.process()
    monkeypatch.setattr(process.store, step, dead)
    held = site.call("wait=20")
    assert (held.status, held.header("Admission-Status")) == ("202 Accepted", "queued")


def test_closing_the_middleware_ends_what_waits(shop: Callable[..., Shop]) -> None:
    """Catches: a held request or a stream that keeps the process from ending."""
    site = shop(Mode.QUEUE_ALL)
    got: list[Result] = []
    thread = threading.Thread(target=lambda: got.append(site.call("wait=30")))
    thread.start()
    readers = site.middleware.process().api.readers
    until(lambda: readers._taken == 1)
    site.go.set()
    site.middleware.drain(0.0)
    thread.join(5)
    assert got

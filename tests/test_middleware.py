"""The middleware in one process: who passes, who runs, who is queued, and what a server sees."""

from __future__ import annotations

import errno
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import until
from tests.wsgi import Result, call, environ
from wsgi_admission import AdmissionMiddleware, Config, ConfigError, StoreUnavailable, logs
from wsgi_admission.config import Admission, Api, LogOptions, Route, StoreOptions
from wsgi_admission.passing import line_reader
from wsgi_admission.policy.decision import Mode
from wsgi_admission.replay import MARK
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.ticket import Ticket


class Site:
    """An app whose requests wait until told to go, behind the line."""

    def __init__(self, *, mode: Mode = Mode.AUTO, slots: int = 2, replays: bool = False, **route: Any) -> None:
        self.go = threading.Event()
        self.environs: list[dict[str, Any]] = []
        self.closed = 0
        self.config = Config(
            admission=Admission(mode=mode, max_concurrent=slots, worker_threads=1),
            store=StoreOptions(url="memory://"),
            routes=(Route(name="image", path=("/image",), methods=frozenset({"POST", "GET"}), **route),),
        )
        self.middleware = AdmissionMiddleware(self.app, self.config, replays=replays)

    def app(self, env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer with what came."""
        self.environs.append(env)
        start_response("200 OK", [("Content-Type", "text/plain")])
        length = int(env.get("CONTENT_LENGTH") or 0)
        return [env["wsgi.input"].read(length) if length else b"nothing"]

    def open(self, path: str = "/image", method: str = "POST", **keys: Any) -> tuple[str, Any]:
        """Call the middleware and leave its answer open; return the status and the iterable."""
        told: list[str] = []

        def start_response(status: str, _headers: Any, _exc_info: Any = None) -> Callable[[bytes], object]:
            told.append(status)
            return lambda _data: None

        answer = self.middleware(environ(path, method, **keys), start_response)
        return told[0], answer

    def call(self, path: str = "/image", method: str = "POST", body: bytes = b"", **keys: Any) -> Result:
        """Call the middleware under the validator."""
        return call(self.middleware, path, method, body, **keys)


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the load be that of the slots alone: what else this machine does is not the tests' subject."""
    monkeypatch.setattr("wsgi_admission.process.LoadMeter.sample", lambda _self, _now: None)


@pytest.fixture
def made() -> Iterator[list[Site]]:
    """Sites to close at the end."""
    sites: list[Site] = []
    yield sites
    for site in sites:
        site.middleware.close()


def test_a_request_that_matches_nothing_reaches_the_app_untouched() -> None:
    """Catches: an environ copied or added to, an iterable wrapped, parts made without need."""
    answer = [b"x"]
    seen: list[dict[str, Any]] = []

    def app(env: dict[str, Any], _start_response: Any) -> list[bytes]:
        seen.append(env)
        return answer

    middleware = AdmissionMiddleware(app, Site().config)
    env = environ("/elsewhere")
    before = dict(env)
    assert middleware(env, lambda *_args: None) is answer  # type: ignore[arg-type]  # never called
    assert seen[0] is env
    assert env == before
    assert middleware._process is None


def test_slots_below_the_threshold_run_at_once_and_are_given_back_on_close(made: list[Site]) -> None:
    """Catches: a slot given back before the answer was sent, or never."""
    site = Site()
    made.append(site)
    status, first = site.open()
    assert status == "200 OK"
    assert b"".join(first) == b"nothing"
    # One of two slots is half the load; with the second one the threshold of 80 % would be passed.
    _, second = site.open()
    third, _ = site.open()
    assert third == "202 Accepted"
    first.close()
    first.close()
    second.close()
    assert site.middleware.process().slots.in_use() == 0


def test_an_answer_that_is_dropped_unclosed_gives_its_slot_back(made: list[Site]) -> None:
    """Catches: a server that forgets close() and so uses up the slots."""
    site = Site(slots=1)
    made.append(site)
    _, answer = site.open()
    assert site.middleware.process().slots.in_use() == 1
    del answer
    assert site.middleware.process().slots.in_use() == 0


@pytest.mark.parametrize("ending", ["call", "iterate", "close"])
def test_an_app_that_raises_gives_its_slot_back(made: list[Site], ending: str) -> None:
    """Catches: a slot lost with each error of the app; an error swallowed; close() not called on the app's iterable."""
    site = Site(slots=1)
    made.append(site)
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            if ending == "iterate":
                raise RuntimeError(ending)

        def close(self) -> None:
            closed.append(ending)
            if ending == "close":
                raise RuntimeError(ending)

    def app(_env: Any, start_response: Any) -> Iterable[bytes]:
        if ending == "call":
            raise RuntimeError(ending)
        start_response("200 OK", [])
        return Body()

    site.middleware.app = app

    def serve() -> None:
        _, answer = site.open()
        try:
            list(answer)
        finally:
            answer.close()

    with pytest.raises(RuntimeError, match=ending):
        serve()
    assert closed == ([] if ending == "call" else [ending])
    assert site.middleware.process().slots.in_use() == 0


def test_the_length_of_a_list_stays_known_to_the_server(made: list[Site]) -> None:
    """Catches: an answer that servers can no longer give a Content-Length."""
    site = Site()
    made.append(site)
    _, answer = site.open()
    assert len(answer) == 1
    answer.close()


def test_a_newcomer_does_not_overtake_one_that_waits(made: list[Site]) -> None:
    """Catches: a request that runs at once although another of its tier waits and a slot is free."""
    site = Site(slots=5)
    made.append(site)
    held = [site.open()[1] for _ in range(4)]
    assert site.open()[0] == "202 Accepted"
    for answer in held:
        answer.close()
    # All slots are free now, and nobody replays in this process: the waiting one is still first.
    assert site.open()[0] == "202 Accepted"
    better, answer = site.open(REMOTE_USER="ada")  # nobody of her tier or a better one waits
    assert better == "200 OK"
    answer.close()


def test_who_waits_for_a_full_route_is_not_overtaken_by_leaving_slots_idle(made: list[Site]) -> None:
    """Catches: a route at its own limit that holds up the other routes' newcomers."""
    site = Site()
    made.append(site)
    config = Config(
        admission=Admission(max_concurrent=10),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="video", path=("/video",), max_concurrent=1), Route(name="image", path=("/image",))),
    )
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    status, video = site.open("/video")
    assert status == "200 OK"
    assert site.open("/video")[0] == "202 Accepted"
    status, image = site.open("/image")
    assert status == "200 OK"
    video.close()
    assert site.open("/image")[0] == "202 Accepted"
    image.close()


def test_a_slot_of_a_route_that_comes_free_is_for_those_who_wait_for_it(
    made: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a newcomer that passes the whole line of its route, because the slot came free while it looked."""
    site = Site()
    made.append(site)
    config = Config(
        admission=Admission(max_concurrent=10),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="video", path=("/video",), max_concurrent=1),),
    )
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    _, video = site.open("/video")
    assert site.open("/video")[0] == "202 Accepted"
    slots = site.middleware.process().slots
    take = slots.take

    def late(route: str | None) -> Any:
        video.close()  # in the moment between the decision and the slot
        return take(route)

    monkeypatch.setattr(slots, "take", late)
    assert site.open("/video")[0] == "202 Accepted"


def test_every_mode_does_what_it_says(made: list[Site]) -> None:
    """Catches: a mode that is parsed and ignored; a shadow that queues or does not count."""
    for mode, expected in ((Mode.QUEUE_ALL, "202 Accepted"), (Mode.PASS_THROUGH, "200 OK"), (Mode.SHADOW, "200 OK")):
        site = Site(mode=mode, slots=1)
        made.append(site)
        answers = [site.open() for _ in range(3)]
        assert [status for status, _ in answers] == [expected] * 3
        for _, answer in answers:
            if hasattr(answer, "close"):
                answer.close()
        process = site.middleware.process()
        process.passing.flush(process.store)
        tally = process.store.counts().get(("anonymous", "image"))
        if mode is Mode.SHADOW:
            assert tally is not None
            assert (tally.passed, tally.shadowed, tally.accepted) == (3, 2, 0)
        elif mode is Mode.PASS_THROUGH:
            assert tally is None
        else:
            assert tally is not None
            assert (tally.passed, tally.accepted) == (0, 3)


def test_a_queued_request_is_replayed_with_its_ticket_and_never_queued_again(made: list[Site]) -> None:
    """Catches: a replay that is queued, or a client that passes by a header which looks like the mark."""
    site = Site(mode=Mode.QUEUE_ALL, replays=True)
    made.append(site)
    outer = AdmissionMiddleware(site.middleware.app, site.config)
    site.middleware.app = outer  # the app is wrapped twice
    site.middleware.close()
    accepted = site.call(body=b"the body", HTTP_WSGI_ADMISSION_TICKET="x").json()
    result = until(lambda: (r := site.call(accepted["result_url"], "GET")).status == "200 OK" and r)
    assert result.body == b"the body"
    assert site.environs[0][MARK].id == accepted["request_id"]
    outer.close()


def test_what_cannot_be_replayed_is_never_queued_and_does_not_get_around_the_line(made: list[Site]) -> None:
    """Catches: a websocket answered with 202; an Upgrade header as a way past the slots."""
    site = Site(slots=1)
    made.append(site)
    upgrade = {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
    status, held = site.open(method="GET", **upgrade)
    assert status == "200 OK"
    assert site.open(method="GET", **upgrade)[0] == "503 Service Unavailable"
    assert site.open(HTTP_UPGRADE="h2c")[0] == "202 Accepted"
    held.close()
    assert site.open(method="GET", **upgrade)[0] == "503 Service Unavailable", "another waits"
    assert site.open(HTTP_UPGRADE="websocket")[0] == "202 Accepted", "no way around the line"
    assert site.open(method="OPTIONS")[0] == "200 OK"


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"CONTENT_LENGTH": "10"}, "400 Bad Request"),
        ({"CONTENT_LENGTH": "abc"}, "400 Bad Request"),
        ({"CONTENT_LENGTH": "101"}, "413 Content Too Large"),
        ({"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}, "411 Length Required"),
    ],
)
def test_a_body_that_cannot_be_recorded_is_refused_and_nothing_is_queued(
    made: list[Site], keys: dict[str, Any], status: str
) -> None:
    """Catches: half a body in the line."""
    site = Site(mode=Mode.QUEUE_ALL, max_body=100)
    made.append(site)
    told, answer = site.open(body=b"short", **keys)
    assert told == status
    assert b'"detail"' in b"".join(answer)
    assert not site.middleware.process().store.counts()


class Watched(io.BytesIO):
    """A body that does something when it is read first."""

    def __init__(self, body: bytes, then: Callable[[], object]) -> None:
        super().__init__(body)
        self.then: Callable[[], object] | None = then

    def read(self, size: int | None = -1) -> bytes:
        """Read it."""
        then, self.then = self.then, None
        if then is not None:
            then()
        return super().read(size)


def test_no_slot_is_held_while_a_body_is_read(made: list[Site]) -> None:
    """Catches: a few clients that send slowly, and stop the line and everybody else."""
    site = Site(slots=1)
    made.append(site)
    inside: list[int] = []
    body = Watched(b"slow", lambda: inside.append(site.middleware.process().slots.in_use()))
    keys: dict[str, Any] = {"CONTENT_LENGTH": "4", "wsgi.input": body}
    _, answer = site.open(**keys)
    assert inside == [0]
    assert b"".join(answer) == b"slow"
    assert site.middleware.process().slots.in_use() == 1
    answer.close()
    assert site.environs[0]["wsgi.input"].closed


def test_who_comes_while_a_body_is_read_is_not_overtaken(made: list[Site]) -> None:
    """Catches: a decision that was right when the body began to come."""
    site = Site(slots=1)
    made.append(site)

    def another() -> None:
        _, held = site.open()
        assert site.open()[0] == "202 Accepted"
        held.close()

    keys: dict[str, Any] = {"CONTENT_LENGTH": "4", "wsgi.input": Watched(b"slow", another)}
    assert site.open(**keys)[0] == "202 Accepted"


def test_a_body_that_we_cannot_read_is_the_apps_as_long_as_nothing_waits(made: list[Site]) -> None:
    """Catches: a server whose chunked uploads work without the line and are refused behind it."""
    site = Site()
    made.append(site)
    keys: dict[str, Any] = {
        "CONTENT_LENGTH": "",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": io.BytesIO(b"chunks"),
    }
    status, answer = site.open(**keys)
    assert status == "200 OK"
    assert site.environs[0]["wsgi.input"] is keys["wsgi.input"]
    answer.close()


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.QUEUE_ALL])
def test_too_large_a_body_is_refused_whether_the_line_is_long_or_not(made: list[Site], mode: Mode) -> None:
    """Catches: a limit that holds only under load, where nobody finds it before the users do."""
    site = Site(mode=mode, max_body=3)
    made.append(site)
    assert site.open(body=b"four")[0] == "413 Content Too Large"
    assert site.environs == []


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.PASS_THROUGH])
def test_modes_that_let_through_let_every_body_through(made: list[Site], mode: Mode) -> None:
    """Catches: a trial of the line that changes what the site does."""
    site = Site(mode=mode, max_body=3)
    made.append(site)
    keys: dict[str, Any] = {"CONTENT_LENGTH": "4", "wsgi.input": io.BytesIO(b"four")}
    assert site.open(**keys)[0] == "200 OK"
    assert site.environs[0]["wsgi.input"] is keys["wsgi.input"]


def test_a_body_that_cannot_be_kept_means_503(made: list[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a 500 when the disk of the temporary files is full."""
    site = Site()
    made.append(site)

    def full(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("A request body cannot be kept: No space left on device.")

    monkeypatch.setattr("wsgi_admission.arrivals.receive", full)
    refused = site.call(body=b"kept")
    assert refused.status == "503 Service Unavailable"
    assert refused.header("Retry-After")
    assert site.environs == []


def test_a_store_that_cannot_keep_a_request_means_running_or_503_but_never_202(
    made: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a 202 without a ticket; a body lost on the way to the direct run."""
    site = Site(mode=Mode.QUEUE_ALL, slots=1)
    made.append(site)

    def full(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(site.middleware.process().store, "put", full)
    direct = site.call(body=b"kept")
    assert (direct.status, direct.body) == ("200 OK", b"kept")
    _, held = site.open()
    refused = site.call()
    assert refused.status == "503 Service Unavailable"
    assert int(refused.header("Retry-After") or "0") >= 1
    assert refused.header("Content-Type") == "application/problem+json"
    held.close()


def test_a_client_whose_request_was_slow_to_keep_is_not_told_its_place_too(
    made: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: somebody who waits for each of the steps of a slow store."""
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    store = site.middleware.process().store
    put, now = store.put, 100.0

    def slow(*args: Any, **keys: Any) -> Ticket:
        nonlocal now
        now += 0.6
        return put(*args, **keys)

    def ahead(_ticket_id: str) -> dict[str, int]:
        raise AssertionError("asked")

    monkeypatch.setattr(store, "put", slow)
    monkeypatch.setattr(store, "ahead", ahead)
    monkeypatch.setattr("wsgi_admission.middleware.time", SimpleNamespace(time=time.time, monotonic=lambda: now))
    accepted = site.call(body=b"kept")
    assert accepted.status == "202 Accepted"
    assert accepted.header("Retry-After") == "1"
    assert accepted.json()["queue_info"]["position_in_queue"] is None


def test_who_is_refused_is_told_to_come_back_as_the_load_and_chance_will(
    made: list[Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches: the advice of a full server on an idle one; clients that come back all at once."""

    def full(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    def advice(site: Site, jitter: float, path: str = "/image", **keys: Any) -> int:
        monkeypatch.setattr("wsgi_admission.web.answers.random.random", lambda: jitter)
        refused = site.call(path, "GET" if path != "/image" else "POST", **keys)
        assert refused.status == "503 Service Unavailable"
        return int(refused.header("Retry-After") or "0")

    keyed = {"HTTP_IDEMPOTENCY_KEY": '"one"'}
    site = Site(mode=Mode.QUEUE_ALL, slots=2)
    made.append(site)
    store = site.middleware.process().store
    monkeypatch.setattr(store, "put", full)
    assert [advice(site, jitter, **keyed) for jitter in (0.0, 0.5, 0.999)] == [1, 2, 3]
    _, one = site.open()
    assert advice(site, 0.5, **keyed) == 4
    _, two = site.open()
    assert [advice(site, jitter) for jitter in (0.0, 0.5, 0.999)] == [3, 6, 9]
    one.close()
    two.close()
    assert advice(site, 0.5, **keyed) == 2

    lost = Site(slots=2)
    made.append(lost)
    lost.middleware.config = replace(lost.config, store=StoreOptions(url=f"sqlite:///{tmp_path}/none/file/line.db"))
    (tmp_path / "none").touch()
    assert advice(lost, 0.5, "/api/queue/metrics") == 2
    _, one = lost.open()
    assert advice(lost, 0.5, "/api/queue/metrics") == 4
    _, two = lost.open()
    assert advice(lost, 0.5) == 6
    one.close()
    two.close()


def test_a_request_with_a_key_that_cannot_be_kept_is_told_once(
    made: list[Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: one failure that counts as two in the log."""
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)

    def full(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(site.middleware.process().store, "put", full)
    assert site.call(HTTP_IDEMPOTENCY_KEY='"one"').status == "503 Service Unavailable"
    assert [record.getMessage().split()[1] for record in caplog.records] == ["step=put"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_queued_is_told_without_what_the_client_sent(
    made: list[Site], caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """Catches: a cookie, a query value or a whole id in the log; a format that is not the configured one."""
    caplog.set_level(logging.INFO)
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    config = replace(site.config, log=LogOptions(format=form))
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    try:
        accepted = site.call("/image?prompt=private", HTTP_COOKIE="session=private")
    finally:
        logs.use("text")
    ticket = accepted.json()["request_id"]
    if form == "text":
        assert caplog.messages[-1] == f"ticket.queued ticket={ticket[:8]} route=image tier=anonymous"
    else:
        assert json.loads(caplog.messages[-1])["ticket"] == ticket[:8]
    assert "private" not in caplog.text
    assert ticket not in caplog.text


def test_a_store_that_cannot_be_opened_leaves_the_site_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a 500 on every request because of a wrong file; no way back when it is mended."""
    wrong = tmp_path / "admission.db"
    wrong.mkdir()
    site = Site()
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL, max_concurrent=1),
        store=StoreOptions(url=f"sqlite:///{wrong}"),
        routes=site.config.routes,
    )
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    status, held = site.open()
    assert status == "200 OK"
    assert site.call().status == "503 Service Unavailable"
    assert site.call("/api/queue/health", "GET").status == "503 Service Unavailable"
    held.close()
    health = site.call("/api/queue/health", "GET")
    assert (health.status, health.json()["status"]) == ("200 OK", "degraded")
    assert site.open("/elsewhere")[0] == "200 OK"
    assert "store.failing step=open error=" in caplog.text
    wrong.rmdir()
    site.middleware._failed_at = -1e9  # as if a second had passed
    assert site.call().status == "202 Accepted"
    site.middleware.close()


def test_a_wrong_configuration_is_told_when_the_middleware_is_built(tmp_path: Path) -> None:
    """Catches: an error that shows at the first request only."""
    file = tmp_path / "admission.ini"
    file.write_text("[admission]\nmode = sideways\n[route:x]\npath = /x\n")
    with pytest.raises(ConfigError, match="sideways"):
        AdmissionMiddleware(Site().app, file)


def test_closing_hands_back_and_a_later_request_begins_anew(tmp_path: Path) -> None:
    """Catches: threads or files left behind; a closed middleware that answers no more."""
    site = Site()
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL),
        store=StoreOptions(url=f"sqlite:///{tmp_path}/admission.db"),
        routes=site.config.routes,
    )
    before = threading.active_count()
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    first = site.call().json()
    site.middleware.close()
    assert threading.active_count() == before
    assert site.call(first["status_url"], "GET").json()["position_in_queue"] == 1
    site.middleware.close()


def closed(folder: Path, **api: Any) -> AdmissionMiddleware:
    """Return a middleware whose store cannot be opened."""
    config = Config(
        store=StoreOptions(url=f"sqlite:///{folder}"), api=Api(**api), routes=(Route(name="x", path=("/x",)),)
    )
    return AdmissionMiddleware(lambda _environ, _start: [b""], config, replays=False)


def test_what_needs_no_store_is_there_when_it_cannot_be_opened(tmp_path: Path) -> None:
    """Catches: a page that was loaded meanwhile and has no script for its calls, also when the store is back."""
    site = closed(tmp_path)
    for name in ("client.js", "static/waiting.js", "static/queue.css", "openapi.json"):
        got = call(site, f"/api/queue/{name}")
        assert (got.status, bool(got.body)) == ("200 OK", True), name
    assert call(site, "/api/queue/client.js", "DELETE").status == "405 Method Not Allowed"
    for name in ("status/x", "result/x", "events/x", "metrics"):
        refused = call(site, f"/api/queue/{name}")
        assert refused.status == "503 Service Unavailable", name
        assert int(refused.header("Retry-After") or "0") >= 1
    health = call(site, "/api/queue/health")
    assert (health.status, health.json()["checks"]["store"]) == ("200 OK", {"status": "failing"})


def test_a_store_that_cannot_be_opened_is_told_to_prometheus(tmp_path: Path) -> None:
    """Catches: an alert that never fires, because the figure that it looks at is not there."""
    for query, accept in (("format=prometheus", "*/*"), ("", "application/openmetrics-text")):
        told = call(closed(tmp_path), f"/api/queue/metrics?{query}", HTTP_ACCEPT=accept)
        assert told.status == "200 OK"
        assert b'\nwsgi_admission_store_up{line="main"} 0.0\n' in told.body
        assert b'\nwsgi_admission_host_slots_in_use{line="main"} 0.0\n' in told.body
    guarded = closed(tmp_path, metrics="token", admin_token="s" * 24)
    assert call(guarded, "/api/queue/metrics?format=prometheus").status == "401 Unauthorized"


@pytest.mark.parametrize("broken", [("counts",), ("ahead",), ("counts", "ahead", "get", "statistics"), ()])
def test_an_accepted_request_is_answered_202_although_the_store_fails_right_after(
    made: list[Site], monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    """Catches: an error for a request that is in the line, which its client sends again; a 202 without addresses."""
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    process = site.middleware.process()
    store, put = process.store, process.store.put

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is gone.")

    with monkeypatch.context() as patch:

        def put_and_die(*args: Any, **keys: Any) -> Any:
            ticket = put(*args, **keys)
            for name in broken:
                patch.setattr(store, name, dead)
            if not broken:  # instead, the kernel no longer tells which slots are taken
                patch.setattr(process.slots, "in_use", dead)
            return ticket

        patch.setattr(store, "put", put_and_die)
        accepted = site.call()
    assert accepted.status == "202 Accepted"
    assert int(accepted.header("Retry-After") or "0") >= 1
    data = accepted.json()
    assert store.get(data["request_id"]).state.value == data["status"] == "queued"
    assert accepted.header("Location") == data["result_url"] == f"/api/queue/result/{data['request_id']}"
    assert data["status_url"] == data["cancel_url"] == f"/api/queue/status/{data['request_id']}"
    assert data["queue_info"]["position_in_queue"] == (None if broken else 1)


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.PASS_THROUGH])
@pytest.mark.parametrize("trouble", ["cannot be opened", "fails later", "websocket"])
def test_a_mode_that_lets_through_never_refuses(
    made: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, trouble: str
) -> None:
    """Catches: 503 from a line that is only tried out, or switched off."""
    site = Site(mode=mode, slots=1)
    made.append(site)
    keys: dict[str, Any] = {}
    if trouble == "cannot be opened":
        url = f"sqlite:///{tmp_path}"  # a directory
        config = Config(
            admission=Admission(mode=mode, max_concurrent=1), store=StoreOptions(url=url), routes=site.config.routes
        )
        site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    elif trouble == "fails later":

        def dead() -> Any:
            raise StoreUnavailable("The disk is gone.")

        monkeypatch.setattr(site.middleware.process().store, "counts", dead)
    else:
        keys = {"method": "GET", "HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
    answers = [site.open(**keys) for _ in range(2)]
    assert [status for status, _ in answers] == ["200 OK", "200 OK"]


def test_a_kernel_that_cannot_lock_means_no_slot_and_no_error(
    made: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a 500 for every matching request when the system is out of locks."""
    site = Site()
    made.append(site)
    config = Config(store=StoreOptions(url=f"sqlite:///{tmp_path}/a.db"), routes=site.config.routes)
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    slots = site.middleware.process().slots

    def fail(*_args: Any) -> Any:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("wsgi_admission.locks.fcntl.lockf", fail)
        assert site.open()[0] == "202 Accepted"
        patch.setattr("wsgi_admission.locks.fcntl.fcntl", fail)
        with pytest.raises(StoreUnavailable):
            slots.in_use()


def test_the_tickets_of_a_tier_that_is_configured_no_more_are_not_overtaken(made: list[Site]) -> None:
    """Catches: those who waited through a change of the configuration, passed by everybody."""
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    site.call()
    process = site.middleware.process()
    assert line_reader(process.store, process.slots, {"gold": 0, "silver": 1})(0, "image").waiting == 1


def test_memory_shared_by_several_processes_is_warned_of_once(
    made: list[Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a line for each process, in silence; a warning for each request, or for a store that can be shared."""
    site = Site()
    made.append(site)
    shared = AdmissionMiddleware(
        site.app, Config(store=StoreOptions(url=f"sqlite:///{tmp_path}/a.db"), routes=site.config.routes), replays=False
    )
    several: dict[str, Any] = {"wsgi.multiprocess": True}
    call(shared, "/image", "POST", **several)
    shared.close()
    site.call()
    site.call("/other", **several)
    assert "memory://" not in caplog.text
    site.call(**several)
    site.call("/api/queue/health", "GET", **several)
    (told,) = [record for record in caplog.records if "memory://" in record.getMessage()]
    assert told.levelname == "WARNING"
    assert "several processes" in told.getMessage()


def test_leases_are_renewed_before_lost_ones_are_looked_for(made: list[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a process that takes its own running tickets for lost, after it was stopped or the store was away."""
    running, go = threading.Event(), threading.Event()

    def app(_env: Any, start_response: Any) -> list[bytes]:
        running.set()
        assert go.wait(30)
        start_response("200 OK", [])
        return [b"once"]

    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    site.middleware = AdmissionMiddleware(app, site.config)
    accepted = site.call().json()
    assert running.wait(30)
    process = site.middleware.process()
    process.housekeeper.stop()
    assert isinstance(process.store, MemoryStore)
    now = time.monotonic() + 3600
    process.store._clock = lambda: now
    process.leases()
    assert process.store.get(accepted["request_id"]).crashes == 0

    def dead(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is gone.")

    now += 3600
    monkeypatch.setattr(process.store, "renew", dead)
    with pytest.raises(StoreUnavailable):
        process.leases()
    assert process.store.get(accepted["request_id"]).crashes == 0
    go.set()
    site.middleware.close()


def test_a_drained_process_does_not_report_that_it_replays(made: list[Site]) -> None:
    """Catches: a process that claims nothing and keeps others from taking over."""
    site = Site(replays=True)
    made.append(site)
    process = site.middleware.process()
    process.report()
    assert process.replayed(time.time())
    site.middleware.drain(0.0)
    process.report()
    assert not process.replayed(time.time())


def test_urls_cannot_be_led_to_another_host(made: list[Site]) -> None:
    """Catches: a Location that a browser takes for another site's."""
    site = Site(mode=Mode.QUEUE_ALL)
    made.append(site)
    assert (site.call(SCRIPT_NAME="//evil.example").header("Location") or "").startswith("/evil.example/")


def test_the_trace_goes_through_the_line_to_the_app_and_nowhere_else() -> None:
    """Catches: a recording that loses the context of a trace, or an answer that shows it to somebody else."""
    parent, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "congo=t61rcWkgMzE"
    seen: list[tuple[str, str]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ["HTTP_TRACEPARENT"], environ["HTTP_TRACESTATE"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    routes = (Route(name="image", path=("/image",)),)
    config = Config(admission=Admission(mode=Mode.QUEUE_ALL), store=StoreOptions(url="memory://"), routes=routes)
    middleware = AdmissionMiddleware(app, config)
    try:
        accepted = call(middleware, "/image", "POST", HTTP_TRACEPARENT=parent, HTTP_TRACESTATE=state)
        urls = accepted.json()
        until(lambda: call(middleware, urls["status_url"]).json()["status"] == "completed")
        answers = [accepted, *(call(middleware, urls[name]) for name in ("status_url", "events_url", "result_url"))]
    finally:
        middleware.close()
    assert seen == [(parent, state)]
    assert "0af7651916cd43dd" not in repr(answers)
    assert "congo" not in repr(answers)

"""Event streams, held answers and pollers written by others, with real servers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core import PipelineClient
from azure.core.polling import LROPoller
from azure.core.polling.base_polling import LocationPolling, LROBasePolling
from azure.core.rest import HttpRequest
from gunicorn.config import Config
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from tests.support import PATIENCE, Reply, Server, free_port, gunicorn, ini, until
from wsgi_admission.integrations.limits import server_of

GATED = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
expected_time = 2s
[route:echo]
path = /echo
"""


class EventSource:
    """Reads a stream as a browser does."""

    def __init__(self, site: Server, accepted: Reply) -> None:
        self.connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=PATIENCE)
        self.connection.request("GET", accepted.json()["events_url"])
        self.response = self.connection.getresponse()
        assert self.response.getheader("Content-Type") == "text/event-stream"

    @property
    def streams(self) -> bool:
        """Whether the answer goes on after its first event."""
        return self.response.getheader("Content-Length") is None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self.response:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))

    def close(self) -> None:
        """Leave."""
        self.response.close()
        self.connection.close()


Source = Callable[[Server, Reply], EventSource]


@pytest.fixture
def source() -> Iterator[Source]:
    """Return a function that opens an event source; all are closed at the end."""
    opened: list[EventSource] = []

    def make(site: Server, accepted: Reply) -> EventSource:
        opened.append(EventSource(site, accepted))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_streams_are_live_and_leave_most_threads_to_others(tmp_path: Path, source: Source) -> None:
    """Catches: changes that are told late, streams beyond the share, a site that is full of streams."""
    with gunicorn(tmp_path, ini(tmp_path, GATED), settings="workers = 1") as site:
        running, first, second, third = (site.ask("/gated", "POST") for _ in range(4))
        until(lambda: site.ask(running.json()["status_url"]).json()["status"] == "processing")
        readers = [source(site, ticket) for ticket in (second, third)]
        events = [iter(reader) for reader in readers]
        assert [reader.streams for reader in readers] == [True, True]
        assert [next(one)["position_in_queue"] for one in events] == [2, 3]

        polling = source(site, third)
        assert not polling.streams
        assert [event["position_in_queue"] for event in polling] == [3]
        held = site.ask(first.json()["status_url"] + "?wait=20")
        assert held.json()["status"] == "queued", "streams and held answers share the seats"
        for _ in range(20):
            assert site.ask("/ping").body == b"pong"

        began = time.monotonic()
        site.ask(first.json()["status_url"], "DELETE")
        assert [next(one)["position_in_queue"] for one in events] == [1, 2]
        assert time.monotonic() - began < 5.0

        site.open_gate()
        for reader, one in zip(readers, events, strict=True):
            assert [event["status"] for event in one][-1] == "completed"
            reader.close()
        again = source(site, third)
        assert [event["status"] for event in again] == ["completed"]


def test_a_reader_that_went_away_frees_its_seat(tmp_path: Path, source: Source) -> None:
    """Catches: a seat that is held by nobody."""
    with gunicorn(tmp_path, ini(tmp_path, GATED), settings="workers = 1\nthreads = 4", options="replays=False") as site:
        tickets = [site.ask("/gated", "POST") for _ in range(3)]
        gone = source(site, tickets[-1])
        assert gone.streams
        assert not source(site, tickets[-1]).streams
        gone.close()

        def freed() -> bool:
            site.ask(site.ask("/gated", "POST").json()["status_url"], "DELETE")  # something changes
            site.ask(tickets[0].json()["status_url"], "DELETE")
            tickets[0] = tickets[1]
            reader = source(site, tickets[-1])
            streams = reader.streams
            reader.close()
            return streams

        until(freed, "a free seat")


@pytest.mark.parametrize("which", ["TERM", "HUP"])
def test_streams_end_when_the_server_leaves(tmp_path: Path, source: Source, which: str) -> None:
    """Catches: web workers that are told nothing, and wait for the browsers until they are killed."""
    with gunicorn(tmp_path, ini(tmp_path, GATED), options="replays=False") as site:
        reader = source(site, site.ask("/gated", "POST"))
        assert reader.streams
        assert next(iter(reader))["status"] == "queued"
        began = time.monotonic()
        os.kill(site.process.pid, getattr(signal, f"SIG{which}"))
        rest = reader.response.read()
        took = time.monotonic() - began
        assert rest.endswith(b"retry: 1000\n\n")
        if which == "TERM":
            assert took < 5.0  # 0.25 s on a machine that has nothing else to do
            site.process.wait(PATIENCE)
            assert time.monotonic() - began < 10.0, "graceful_timeout is 15 s"
        else:
            assert took < 10.0  # gunicorn starts new workers first


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (ThreadWorker, {"threads": 12, "timeout": 40}, {"server_threads": 12, "server_timeout": 40}),
        (SyncWorker, {"threads": 1, "timeout": 0}, {"server_threads": 1, "server_timeout": None}),
        (AsyncWorker, {"worker_connections": 500, "timeout": 40}, {"server_threads": 500, "server_timeout": 40}),
    ],
)
def test_gunicorn_says_how_many_may_wait_and_how_long(
    kind: type[Any], settings: dict[str, int], told: dict[str, Any]
) -> None:
    """Catches: gevent's greenlets counted as one thread; a timeout of 0, which means none, taken for no time."""
    config = Config()
    for name, value in settings.items():
        config.set(name, value)
    worker = object.__new__(kind)  # a whole one would need sockets
    worker.cfg = config
    assert server_of(worker) == told


def test_a_sync_worker_never_waits(tmp_path: Path, source: Source) -> None:
    """Catches: a server of one thread that answers nobody, and is killed for it."""
    settings = "workers = 1\nworker_class = 'sync'\nthreads = 1"
    with gunicorn(tmp_path, ini(tmp_path, GATED), settings=settings, options="replays=False") as site:
        ticket = site.ask("/gated", "POST", Prefer="wait=20")
        assert (ticket.status, ticket.header("Preference-Applied")) == (202, None)
        reader = source(site, ticket)
        assert not reader.streams
        assert [event["position_in_queue"] for event in reader] == [1]
        for name in ("status_url", "result_url"):
            assert site.ask(ticket.json()[name] + "?wait=20").json()["status"] == "queued"


def test_waiting_is_over_as_soon_as_the_answer_is_there(tmp_path: Path) -> None:
    """Catches: a preference that is not honoured by web workers that do not replay."""
    with gunicorn(tmp_path, ini(tmp_path, GATED)) as site:
        answer = site.ask("/echo", "POST", b"paint", Prefer="wait=20")
        assert (answer.status, answer.reason) == (203, "Quite All Right")
        assert answer.body.endswith(b"|paint")
        assert answer.header("Preference-Applied") == "wait=15", "half of the server's 30 s"
        accepted = site.ask("/echo", "POST", b"more paint")
        assert site.ask(accepted.json()["result_url"] + "?wait=15").body.endswith(b"|more paint")


def azure_client(url: str) -> Any:
    """Return what the clients that azure-core's generator writes are built on."""
    return PipelineClient(url)


def test_the_poller_of_azure_core_gets_the_apps_answer(tmp_path: Path) -> None:
    """Catches: a Location or a status with which a poller that others wrote does not come to an end."""
    port = free_port()
    config = ini(tmp_path, f"{GATED}\n[api]\nbase_url = http://127.0.0.1:{port}\n")
    with gunicorn(tmp_path, config, port=port) as site, azure_client(site.url) as client:
        site.open_gate()

        def send(path: str) -> LROPoller[bytes]:
            def final(response: Any) -> bytes:
                assert response.http_response.status_code == 200
                body: bytes = response.http_response.content
                return body

            request = HttpRequest("POST", site.url + path, content=b"")
            initial: Any = client.send_request(request, _return_pipeline_response=True)
            assert initial.http_response.status_code == 202
            return LROPoller(client, initial, final, LROBasePolling(0.1, lro_algorithms=[LocationPolling()]))

        pollers = [send(f"/gated?{number}") for number in range(3)]
        assert [poller.result(PATIENCE) for poller in pollers] == [b"gated 0", b"gated 1", b"gated 2"]
        assert all(poller.status() == "Succeeded" for poller in pollers)

"""``waiting``: what 200 browsers that wait cost everybody else, under real gunicorn with two web workers.

Each browser has its stream of events; who finds no seat gets one event and comes back when that says so, as an
EventSource does.  Meanwhile requests come and are cancelled, so that places change, and a cheap page is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from benchmarks.harness import Report, ms, percentile, times, verdict
from benchmarks.latency import _silence_unless_failing
from tests.support import Server, ask, gunicorn, ini

QUICK = {"browsers": 200, "seconds": 6}
#: Seconds between two requests for the cheap page, and between two changes of the line.
PING, CHANGE = 0.025, 0.5
#: The cheap page's p99 while they wait, as a multiple of that while nobody does.
MOST = 2.0
CONFIG = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
"""


def run(*, browsers: int = 200, seconds: int = 20) -> Report:
    """Ask for the cheap page for so many seconds with nobody waiting, and then with so many browsers."""
    with ExitStack() as stack:
        stack.enter_context(_silence_unless_failing())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        site = stack.enter_context(gunicorn(folder, ini(folder, CONFIG)))
        idle = _pings(site, seconds)
        waiting = _Browsers(site, [_submit(site) for _ in range(browsers)])
        stack.callback(waiting.end)
        loaded = _pings(site, seconds)
        events = waiting.events
    ratio = percentile(loaded, 99) / percentile(idle, 99)
    return Report(
        f"waiting: {browsers} browsers wait at a server of 2 web workers with 8 threads each",
        f"GET /ping every {PING * 1000:.0f} ms on connections of its own for {seconds} s, first with nobody waiting."
        f" Then every browser follows its ticket, and one request comes and is cancelled every {CHANGE} s;"
        f" {events / seconds:.0f} events a second reached them. All of it runs on this machine.",
        ("", "p50", "p99", "ratio of p99", "at most", "target"),
        [
            ("nobody waits", ms(percentile(idle, 50)), ms(percentile(idle, 99)), "", "", ""),
            (
                f"{browsers} wait",
                ms(percentile(loaded, 50)),
                ms(percentile(loaded, 99)),
                times(ratio),
                times(MOST),
                verdict(met=ratio <= MOST),
            ),
        ],
    )


def _submit(site: Server) -> str:
    answer = site.ask("/gated", "POST", b"x")
    assert answer.status == 202
    url: str = answer.json()["events_url"]
    return url


def _pings(site: Server, seconds: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        assert ask(f"{site.url}/ping").status == 200
        found.append(time.perf_counter() - begin)
        time.sleep(max(0.0, PING - found[-1]))
    return found


class _Browsers:
    """Follow tickets, in a thread of their own, and change the line now and then."""

    def __init__(self, site: Server, addresses: list[str]) -> None:
        self.events = 0
        self._site = site
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=lambda: asyncio.run(self._all(addresses))),
            threading.Thread(target=self._change),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let them go."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    async def _all(self, addresses: list[str]) -> None:
        tasks = [asyncio.create_task(self._follow(address)) for address in addresses]
        while not self._over.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, address: str) -> None:
        parts = urlsplit(self._site.url)
        while True:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            retry = 3.0
            try:
                writer.write(f"GET {address} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                while line := await reader.readline():
                    if line.startswith(b"retry:"):
                        retry = int(line[6:]) / 1000
                    self.events += line.startswith(b"data:")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await asyncio.sleep(retry)

    def _change(self) -> None:
        while not self._over.wait(CHANGE):
            answer = json.loads(self._site.ask("/gated", "POST", b"x").body)
            self._site.ask(answer["cancel_url"], "DELETE")

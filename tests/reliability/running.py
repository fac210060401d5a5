"""What the runs of the reliability tests share: the site's configuration, its visitors, and the look at its end."""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.redis_servers import started
from tests.reliability.history import Event, Writer, read
from tests.reliability.visitors import Visitor
from tests.support import PATIENCE, Reply, Server, until
from wsgi_admission.stores import open_store
from wsgi_admission.ticket import State

#: Seconds within which every request is answered in trouble, with some more for a busy machine and the run itself.
ANSWERED = 2.0 + 0.5
#: Seconds within which requests are kept again once the trouble is over.
BACK = 5.0
#: The status of a request whose connection was closed without an answer.
CLOSED = 0
CONFIG = """
[admission]
mode = queue_all
max_concurrent = 6
worker_threads = 2
[route:twice]
path = /twice
crash_retries = 1
[route:once]
path = /once
crash_retries = 0
[route:narrow]
path = /narrow
max_concurrent = 1
crash_retries = 2
"""


@contextmanager
def line_of(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a line: ``sqlite`` in a folder, or ``redis`` in a server of its own."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/admission.db"
        return
    with TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as place:
        server = started(Path(place))
        yield server.url
        server.stop()


class Visits:
    """Visitors of a server, in threads of this process, and how long it let them wait."""

    def __init__(self, site: Server, history: Path, *, slow: float = 0.0, keyed: float = 0.0) -> None:
        self._site = site
        self._writer = Writer(history)
        self._over = threading.Event()
        self._slow, self._keyed = slow, keyed
        self.longest = 0.0
        self.statuses: Counter[int] = Counter()
        #: Refusals that do not say as they should when to come back.
        self.bare: list[Reply] = []
        self._threads = [threading.Thread(target=self._visit, args=(number,), daemon=True) for number in range(3)]

    def start(self) -> None:
        """Send the visitors."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait until each has seen the end of what he sent."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a visitor still waits"
        self._writer.close()
        assert self.bare == []

    def _visit(self, number: int) -> None:
        dice = random.Random(f"visitor {number}")  # noqa: S311 - repeatable
        visitor = self.visitor(dice, keyed=self._keyed)
        if number == 0 and self._slow:
            visitor = self.visitor(dice, seconds=(self._slow, self._slow), routes=["/twice"])
        while not self._over.is_set():
            visitor.visit(1 if self._slow and number == 0 else dice.randrange(1, 6))
        visitor.again()

    def visitor(self, dice: random.Random, **how: Any) -> Visitor:
        """Return one more visitor, who does nothing by himself; ``how`` is as for `Visitor`."""
        return Visitor(self._ask, self._writer, dice, **how)

    def _ask(self, path: str, method: str, body: bytes, who: str, **headers: str) -> Reply:
        asked = time.monotonic()
        status = CLOSED
        try:
            reply = self._site.ask(path, method, body, Who=who, **headers)
            status = reply.status
        except (OSError, http.client.HTTPException):
            reply = Reply(503, "the server has closed the connection", [], b"")
        self.longest = max(self.longest, time.monotonic() - asked)
        if method == "POST":
            self.statuses[status] += 1
        if status == 503 and not (
            int(reply.header("Retry-After") or 0) >= 1
            and reply.header("Content-Type") == "application/problem+json"
            and reply.json()["status"] == status
        ):
            self.bare.append(reply)
        return reply


@contextmanager
def visited(site: Server, history: Path, *, slow: float = 0.0, keyed: float = 0.0) -> Iterator[Visits]:
    """Visitors who come during the block.

    :param slow: seconds that each request of one of them takes; nobody's takes long without it.
    :param keyed: how many of the requests have an Idempotency-Key, 0 to 1.
    """
    visits = Visits(site, history, slow=slow, keyed=keyed)
    visits.start()
    try:
        yield visits
    finally:
        visits.end()


def at_once(events: Iterable[Event]) -> int:
    """Return how many requests ran at the same time without a ticket, at most."""
    ran = [event for event in events if event["what"] == "ran"]
    changes = sorted([(one["begin"], 1) for one in ran] + [(one["at"], -1) for one in ran])
    return max(accumulate((change for _, change in changes), initial=0))


def go_on(visits: Visits, tickets: int, patience: float = PATIENCE) -> None:
    """Wait until so many more tickets have been accepted."""
    goal = visits.statuses[202] + tickets
    until(lambda: visits.statuses[202] >= goal, "some tickets", patience)


def emptied(url: str) -> Counter[str]:
    """Wait until nothing is in the line and nothing runs; return the sums of the tallies."""
    with closing(open_store(url)) as store:
        until(lambda: all(t.queued == t.processing == 0 for t in store.counts().values()), "the end of the line")
        totals: Counter[str] = Counter()
        for tally in store.counts().values():
            totals.update(vars(tally))
        return totals


def at_the_end(url: str, history: Path) -> list[Event]:
    """Return a history to which what the store has at the end was added."""
    writer = Writer(history)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(open_store(url)) as store:
        tickets = [ticket for state in State for ticket in store.listing(state, limit=10**9)]
        for one in tickets:
            response = store.response(one.id) if one.state is State.COMPLETED else None
            if response is not None:
                with response.body as body:
                    writer.note("answer", ticket=one.id, request=json.loads(body.read())["request"])
    for one in tickets:
        rank = (one.tier_rank, one.start, one.number)
        writer.note("listed", ticket=one.id, rank=rank, route=one.route, retries=one.crash_retries)
        writer.note(
            "seen", ticket=one.id, asked=time.monotonic(), state=one.state.value, attempt=one.attempt, position=None
        )
    known = {one.id for one in tickets}
    events = read(history)
    for event in events:
        if event["what"] == "accepted" and event["ticket"] not in known:
            writer.note("seen", ticket=event["ticket"], asked=time.monotonic(), state=None, attempt=None, position=None)
    writer.close()
    return read(history)

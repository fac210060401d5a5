"""The site of the reliability tests: its app and its store write down what they do.

Imported by gunicorn it is an app like any other.  Run as a program it is a node: a process that accepts requests
through the middleware, for visitors of its own, and replays too.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tests.reliability.history import Writer
from tests.reliability.visitors import Visitor
from tests.support import Reply
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware, process
from wsgi_admission.recording import Recording
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket

history = Writer(os.environ["ADMISSION_TEST_HISTORY"])


class Noted(SQLiteStore):
    """The store, with a history of its steps."""

    def put(self, ticket: Ticket, request: Recording, *, now: float, key: str = "", digest: str = "") -> Ticket:
        """Note the put when it is done."""
        kept = super().put(ticket, request, now=now, key=key, digest=digest)
        history.note("put", ticket=kept.id)
        return kept

    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Note the claim when it is done, and between which times that was."""
        asked = time.monotonic()
        claimed = super().claim(worker, now=now, lease=lease, routes=routes)
        if claimed is not None:
            history.note("claimed", ticket=claimed.id, attempt=claimed.attempt, routes=list(routes), asked=asked)
        return claimed

    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Note that it will be done."""
        history.note("releasing", ticket=ticket_id, attempt=attempt)
        super().release(ticket_id, attempt, now=now)

    def finish(self, ticket_id: str, attempt: int, state: State, *response: Any, **how: Any) -> Ticket:
        """Note the end when it is reached."""
        ended = super().finish(ticket_id, attempt, state, *response, **how)
        history.note("finished", ticket=ticket_id, attempt=attempt, state=ended.state.value)
        return ended


def open_noted(url: str, *, name: str, durability: str) -> SQLiteStore:
    """Open what `open_store` would, with its history."""
    return Noted(url.removeprefix("sqlite:///"), name=name, durability=durability)


vars(process)["open_store"] = open_noted  # the parts of a process are made of it


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Take as long as the request says, and answer with the name of the request."""
    asked: dict[str, Any] = {}
    if environ["REQUEST_METHOD"] == "POST":
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        ticket = environ.get("wsgi_admission.ticket")
        if ticket is not None:
            asked.pop("large", None)
            history.note("started", ticket=ticket.id, attempt=ticket.attempt, **asked)
        time.sleep(asked["seconds"])  # the work
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"request": asked.get("request")}).encode()]


def who(environ: dict[str, Any]) -> tuple[str, str] | None:
    """Say who asks: a header names tier and client."""
    tier, _, client = environ.get("HTTP_WHO", "").partition(":")
    return (tier, client) if client else None


def node(config: str, seed: str, visitors: int) -> None:
    """Accept and replay until the file ``over`` is there; visit until ``enough`` is."""
    folder = Path(config).parent
    site = AdmissionMiddleware(app, config, resolver=who)
    site.process()

    def ask(path: str, method: str, body: bytes, who: str) -> Reply:
        result = call(site, path, method, body, HTTP_WHO=who)
        return Reply(int(result.status[:3]), result.status[4:], result.headers, result.body)

    def visit(number: int) -> None:
        dice = random.Random(f"{seed} {number}")  # noqa: S311 - repeatable
        visitor = Visitor(ask, history, dice)
        while not (folder / "enough").exists():
            visitor.visit(dice.randrange(1, 8))

    threads = [threading.Thread(target=visit, args=(number,), daemon=True) for number in range(visitors)]
    for thread in threads:
        thread.start()
    history.note("up", pid=os.getpid())
    while not (folder / "over").exists():
        time.sleep(0.02)  # waits for the test
    site.close()


if __name__ == "__main__":
    node(sys.argv[1], sys.argv[2], int(sys.argv[3]))

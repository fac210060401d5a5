"""The site of the reliability tests: its app and its store write down what they do.

Imported by gunicorn it is an app like any other.  Run as a program it is a node: a process that accepts requests
through the middleware, for visitors of its own, and replays too.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tests.apps import wait_for
from tests.reliability.history import Writer
from tests.reliability.visitors import Visitor
from tests.support import Reply
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware, process
from wsgi_admission.stores import Store, open_store
from wsgi_admission.ticket import Ticket

history = Writer(os.environ["ADMISSION_TEST_HISTORY"])


def noted(store: Store) -> Store:
    """Let a store write a history of its steps; return it."""
    put, claim, release, finish = store.put, store.claim, store.release, store.finish

    def noted_put(ticket: Ticket, *request: Any, **how: Any) -> Ticket:
        kept = put(ticket, *request, **how)
        history.note("put", ticket=kept.id)
        return kept

    def noted_claim(worker: str, *, routes: Collection[str], **how: Any) -> Ticket | None:
        asked = time.monotonic()
        claimed = claim(worker, routes=routes, **how)
        if claimed is not None:
            history.note(
                "claimed",
                ticket=claimed.id,
                attempt=claimed.attempt,
                routes=list(routes),
                asked=asked,
                pid=os.getpid(),
            )
        return claimed

    def noted_release(ticket_id: str, attempt: int, **how: Any) -> None:
        history.note("releasing", ticket=ticket_id, attempt=attempt)  # it may do it and be killed
        release(ticket_id, attempt, **how)

    def noted_finish(ticket_id: str, attempt: int, *end: Any, **how: Any) -> Ticket:
        ended = finish(ticket_id, attempt, *end, **how)
        history.note("finished", ticket=ticket_id, attempt=attempt, state=ended.state.value, pid=os.getpid())
        return ended

    vars(store).update(put=noted_put, claim=noted_claim, release=noted_release, finish=noted_finish)
    return store


def open_noted(url: str, **how: str) -> Store:
    """Open what `open_store` would, with its history."""
    return noted(open_store(url, **how))


vars(process)["open_store"] = open_noted  # the parts of a process are made of it


# A worker shares its master's memory until its first full collection, which writes to every object: that may come after
# half an hour, and would then look as if the worker grew by it.
gc.collect()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Take as long as the request says, and answer with the name of the request.

    With ``gate`` in it a first attempt runs until that file exists.
    """
    asked: dict[str, Any] = {}
    if environ["REQUEST_METHOD"] == "POST":
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        ticket = environ.get("wsgi_admission.ticket")
        if ticket is not None:
            asked.pop("large", None)
            gate = asked.pop("gate", None)
            history.note("started", ticket=ticket.id, attempt=ticket.attempt, pid=os.getpid(), **asked)
            if gate is not None and ticket.attempt == 1:
                wait_for(Path(gate))
        begin = time.monotonic()
        time.sleep(asked["seconds"])  # the work
        if ticket is None:
            history.note("ran", request=asked["request"], begin=begin)
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

    def ask(path: str, method: str, body: bytes, who: str, **headers: str) -> Reply:
        further = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        result = call(site, path, method, body, HTTP_WHO=who, **further)
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

"""Visitors of the demo site: each asks for one picture, waits its turn and fetches it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from rich.console import Console
from rich.live import Live

from wsgi_admission.demo.table import lines, summary, table
from wsgi_admission.demo.visitor import Visitor
from wsgi_admission.demo.who import TIERS

_TIMEOUT = 60.0  # seconds for one answer: fifty at once wait for the server's threads first
_LOOK = 1.0  # seconds between looks, for a table that moves; Retry-After is what a program of one's own should obey
_PATIENCE = 10  # looks in a row that may fail for want of a connection
_PATH = "/api/generate"
_PNG = b"\x89PNG\r\n\x1a\n"


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def visit(url: str, count: int, console: Console | None = None) -> int:
    """Send ``count`` visitors at once and show how they fare, live on a terminal, else line by line.

    :param url: where the demo runs.
    :return: the exit status: 0 when every one got its picture, 1 when not, 2 when nobody answers at the URL, 130
        when it was interrupted.
    """
    console = console or Console()
    try:
        _call("GET", urljoin(url, "/ping"), {})
    except (OSError, http.client.HTTPException, ValueError) as error:
        console.print(f"Error: nobody answers at {url} ({error}); start it with  wsgi-admission demo", markup=False)
        return 2
    visitors = [Visitor(number, TIERS[number % len(TIERS)]) for number in range(count)]
    leave = threading.Event()
    threads = [threading.Thread(target=_go, args=(visitor, url, leave), daemon=True) for visitor in visitors]
    begun = time.time()
    interrupted = False
    try:
        for thread in threads:
            thread.start()
        _watch(visitors, threads, console)
    except KeyboardInterrupt:
        interrupted = True
        leave.set()
    console.print(summary(visitors, time.time() - begun))
    if interrupted:
        return 130
    return 0 if all(visitor.state == "completed" for visitor in visitors) else 1


def _watch(visitors: list[Visitor], threads: list[threading.Thread], console: Console) -> None:
    """Show the visitors until all have left."""
    if not console.is_terminal:
        said: dict[int, str] = {}
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            for line in lines(visitors, said):
                console.print(line, markup=False, highlight=False)
        for line in lines(visitors, said):
            console.print(line, markup=False, highlight=False)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while any(thread.is_alive() for thread in threads):
            live.update(table(visitors, console.height), refresh=True)
            time.sleep(0.2)


def _go(visitor: Visitor, url: str, leave: threading.Event) -> None:
    """Be one visitor, from the question to the picture."""
    visitor.sent = time.time()
    try:
        _ask(visitor, url, leave)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        visitor.state = "refused" if visitor.state == "sending" else "failed"
        visitor.note = f"{type(error).__name__}: {error}"
    visitor.ended = time.time()


def _ask(visitor: Visitor, url: str, leave: threading.Event) -> None:
    wish = json.dumps({"prompt": f"visitor number {visitor.number}", "seed": visitor.number}).encode()
    answer = _call("POST", urljoin(url, _PATH), visitor.headers | {"Content-Type": "application/json"}, wish)
    if answer.status == 202:
        _follow(visitor, url, json.loads(answer.body), leave)
    elif answer.status == 200:
        visitor.at_once, visitor.started = True, visitor.sent
        _receive(visitor, answer)
    else:
        visitor.state, visitor.note = "refused", f"status {answer.status}"


def _follow(visitor: Visitor, url: str, accepted: dict[str, object], leave: threading.Event) -> None:
    """Look at the ticket until it is final, then fetch the result."""
    visitor.state = "queued"
    status_url, result_url = (urljoin(url, str(accepted[name])) for name in ("status_url", "result_url"))
    failures = 0
    # The visitors look at different moments, as people would.
    while not leave.wait(_LOOK * (1 + visitor.number % 10 / 20)):
        try:
            answer = _call("GET", status_url, visitor.headers)
        except (OSError, http.client.HTTPException):
            failures += 1
            if failures == _PATIENCE:
                raise
            continue
        failures = 0
        if answer.status != 200:
            continue
        data = json.loads(answer.body)
        visitor.position, visitor.estimate = data["position_in_queue"], data["estimated_wait_time"]
        visitor.started = _seconds(data["started_at"])
        if data["status"] == "completed":
            _receive(visitor, _call("GET", result_url, visitor.headers))
            return
        visitor.note = data.get("error_message") or ""
        visitor.state = data["status"]
        if data["status"] in {"failed", "cancelled"}:
            return


def _receive(visitor: Visitor, answer: Answer) -> None:
    whole = answer.status == 200 and answer.body.startswith(_PNG)
    if not whole:
        visitor.note = f"no picture, but status {answer.status} and {len(answer.body)} bytes"
    visitor.state = "completed" if whole else "failed"


def _call(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
    """Make one call; raise OSError or HTTPException when no whole answer comes, ValueError at a URL that is none."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is no http:// or https:// URL")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT)
    try:
        path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def _seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

"""A site whose database has one wrong byte: what it says, asked by somebody who knows what it should say."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.reliability.children import run
from tests.reliability.running import BACK
from tests.support import ini, until
from tests.wsgi import Result, call
from wsgi_admission import AdmissionMiddleware
from wsgi_admission.stores import copies
from wsgi_admission.stores.checkpoints import host_lock

CONFIG = """
[admission]
mode = queue_all
max_concurrent = 2
worker_threads = 1
[route:echo]
path = /echo
"""
#: Seconds in which every request must be answered, with some more for a busy machine.
ANSWERED = 2.0 + 1.0
#: Seconds in which all tickets end.
ENDED = 3.0
TICKETS = 60
#: How many of them still wait.
WAIT = 20
#: Where the stores tell what they did for the database.
LOG = "stores.log"
#: Sizes of the log's header, of a frame's, and of a page.
LOG_HEADER, FRAME_HEADER, PAGE = 32, 24, 4096


def echo(environ: dict[str, object], start_response: object) -> list[bytes]:
    """Answer with the digest of the body, and as many bytes."""
    length = int(str(environ.get("CONTENT_LENGTH") or 0))
    body = environ["wsgi.input"].read(length) if length else b""  # type: ignore[attr-defined]  # an input
    start_response("200 OK", [("Content-Type", "application/octet-stream")])  # type: ignore[operator]  # a callable
    return [answer(body)]


def answer(body: bytes) -> bytes:
    """Return the right answer to a body."""
    return (hashlib.sha256(body).hexdigest() * (len(body) // 64 + 1)).encode()


def body(number: int) -> bytes:
    """Return the body of a ticket; they are of many lengths."""
    return f"{number} ".encode() * (1 + number * 397 % 16000)


def flip(file: Path, place: int, bit: int) -> None:
    """Turn over one bit of a byte."""
    with file.open("r+b") as content:
        content.seek(place)
        byte = content.read(1)[0]
        content.seek(place)
        content.write(bytes([byte ^ (1 << bit)]))


def prepare(folder: Path) -> dict[str, int]:
    """Make a database with tickets of which some still wait; return id -> number."""
    sent = {}
    config = ini(folder, CONFIG)
    for replays, numbers in ((True, range(WAIT, TICKETS)), (False, range(WAIT))):
        with closing(AdmissionMiddleware(echo, config, replays=replays)) as site:
            for number in numbers:
                sent[call(site, "/echo", "POST", body(number)).json()["request_id"]] = number
            store = site.process().store
            until(lambda: not replays or not any(t.queued + t.processing for t in store.counts().values()))  # noqa: B023 - called at once
    return sent


def look_beside(folder: Path, sent: dict[str, int], told: Path, number: int) -> None:
    """Ask a site whose log has one wrong byte, while another process has it open and written it.

    :param number: which byte: 0 is one of the newest first page, the others are anywhere.
    """
    log = folder / "admission.db-wal"
    with _logged(folder), closing(AdmissionMiddleware(echo, folder / "admission.ini", replays=False)) as site:
        new = {call(site, "/echo", "POST", body(more)).json()["request_id"]: more for more in range(WAIT)}
        content = log.read_bytes()
        frames = range(LOG_HEADER, len(content), FRAME_HEADER + PAGE)
        dice = random.Random(number)  # noqa: S311 - repeatable
        place = dice.choice(frames) + dice.randrange(FRAME_HEADER + PAGE)
        if number == 0:
            place = [frame for frame in frames if content[frame : frame + 4] == b"\0\0\0\1"][-1] + FRAME_HEADER
        flip(log, place, dice.randrange(8))
        code = run(look, folder, sent | new, told)
        wrong = json.loads(told.read_text()) if told.exists() else []
        _line(Asked(site, wrong), wrong)
    if code == 0:
        told.write_text(json.dumps(wrong))


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Keep what the stores say of the database, of all processes that have it open."""
    handler = logging.FileHandler(folder / LOG)
    logger = logging.getLogger("wsgi_admission.stores")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _begins_anew(folder: Path, kept: list[str]) -> bool:
    """Whether the log says that what was in the line is lost; it is told once the copy has its name."""

    def said() -> list[str]:
        return [line for line in (folder / LOG).read_text().splitlines() if any(copy in line for copy in kept)]

    return any("the line begins anew" in line for line in until(said, f"a word of {kept}"))


def _line(asked: Asked, wrong: list[tuple[str, str]]) -> None:
    """Wait until new requests get a place in the line."""
    end = time.monotonic() + BACK
    while (result := asked.ask("/echo", "POST", b"new")) is None or result.status[:3] != "202":
        if time.monotonic() > end:
            wrong.append(("down", f"no line: {result and (result.status, result.body[:200])}"))
            return
        time.sleep(0.05)  # waits for the housekeeper


class Asked:
    """Asks a site and remembers what was wrong with its answers."""

    def __init__(self, site: AdmissionMiddleware, told: list[tuple[str, str]]) -> None:
        self._site, self._told = site, told

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> Result | None:
        """Ask; None when the server would have answered for the site."""
        began = time.monotonic()
        try:
            return call(self._site, path, method, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, the site was down for this request
            self._told.append(("down", f"{method} {path.split('/')[3:4]}: {error!r}"))
            return None
        finally:
            if time.monotonic() - began > ANSWERED:
                self._told.append(("slow", f"{method} {path.split('/')[3:4]}: {time.monotonic() - began:.1f} s"))


def look(folder: Path, sent: dict[str, int], told: Path) -> None:
    """Ask a site for everything; write down what was wrong."""
    wrong: list[tuple[str, str]] = []
    began = time.time()
    with _logged(folder), closing(AdmissionMiddleware(echo, folder / "admission.ini", replays=True)) as site:
        asked = Asked(site, wrong)
        for _ in range(3):
            result = asked.ask("/echo", "POST", b"new")
            if result is not None and result.status[:3] not in {"200", "202", "503"}:
                wrong.append(("down", f"POST /echo: {result.status}"))
        asked.ask("/api/queue/health")
        asked.ask("/api/queue/metrics")
        gone = _gone(asked, sent, wrong)
        _line(asked, wrong)
        # Until then a ticket whose index is damaged is not found.
        until(lambda: _looked_through(folder / "admission.db-lock", began), "the look after the start")
        # The line is there a moment before the copy has its name.
        until(lambda: not (folder / f"admission.db{copies.ASIDE}{copies.UNFINISHED}").exists())
        kept = copies.aside(folder / "admission.db")
        if len(kept) > 1:
            wrong.append(("down", f"{kept} fill the disk"))
        if not kept:
            wrong += gone.values()
        elif not _begins_anew(folder, kept):
            again = _gone(asked, sent, wrong)
            if len(again) > 1:  # a wrong byte in the row of one ticket looks like one in an index
                wrong += again.values()
        if kept:
            health = asked.ask("/api/queue/health")
            if health is not None and kept[0] not in str(health.json()["checks"]):
                wrong.append(("not told", f"{kept}, and the health says {health.json()}"))
    told.write_text(json.dumps(wrong))


def _looked_through(lock: Path, since: float) -> bool:
    """Whether the database was looked through, and what was to be mended is."""
    with host_lock(str(lock)) as free:
        return free and lock.stat().st_mtime >= since


def _gone(asked: Asked, sent: dict[str, int], wrong: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Ask for these tickets; return what is to be said of those that are lost or do not end."""
    end = time.monotonic() + ENDED
    answers = {ticket: _ask_for(asked, ticket, number, end, wrong) for ticket, number in sent.items()}
    return {ticket: said for ticket, said in answers.items() if said is not None}


def _ask_for(
    asked: Asked, ticket: str, number: int, end: float, wrong: list[tuple[str, str]]
) -> tuple[str, str] | None:
    while True:
        status = asked.ask(f"/api/queue/status/{ticket}")
        if status is None or status.status[:3] == "503":
            return None  # found
        if status.status[:3] != "200":
            return "lost", f"{status.status}, and it was accepted"
        state = status.json()["status"]
        if state == "failed":
            return None  # found, and its owner is told
        if state == "completed":
            break
        if time.monotonic() > end:
            return "stuck", f"{state} for ever"
        time.sleep(0.01)  # waits for a replay
    result = asked.ask(f"/api/queue/result/{ticket}")
    if result is None or result.status[0] == "5":
        return None  # found
    if result.status[:3] in {"404", "410"}:  # the line was begun anew in between, or else
        return "lost", f"the result is {result.status}, and it was completed"
    if (result.status, result.body) != ("200 OK", answer(body(number))):
        wrong.append(("wrong answer", f"{result.status}, {len(result.body)} bytes"))
    return None

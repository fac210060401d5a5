"""What the benchmarks put the line in front of, and what they ask of it."""

from __future__ import annotations

import io
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wsgi_admission import AdmissionMiddleware, Config
from wsgi_admission.config import Admission, LoadOptions, Route, StoreOptions
from wsgi_admission.policy.decision import Mode
from wsgi_admission.receiving import receive
from wsgi_admission.replay import Recording, record
from wsgi_admission.ticket import Ticket

BODY = b"x" * 2048
ROUTES = ("text-to-image", "text-to-video", "image-to-image", "image-to-video")
TIERS = ("donor", "registered", "anonymous")


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with the time at which it ran."""
    body = repr(time.time()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def idle(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Do as little as an app can."""
    start_response("200 OK", [])
    return [b""]


def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], None]:
    """Take the head of an answer as a server does, and drop it."""
    return lambda _data: None


def environ(method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    """Return the environ of a request as gunicorn makes it for a browser behind a proxy."""
    return {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.url_scheme": "https",
        "SERVER_SOFTWARE": "gunicorn/27.0.0",
        "REQUEST_METHOD": method,
        "QUERY_STRING": "",
        "RAW_URI": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.org",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "HTTP_ACCEPT": "application/json, text/plain, */*",
        "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
        "HTTP_COOKIE": "session=eyJfcGVybWFuZW50Ijp0cnVlfQ.ZpQ1Ug.bXkK3gfT0vXW2n5J2k4kq2r1v0c; theme=dark",
        "HTTP_X_FORWARDED_FOR": "203.0.113.7",
        "HTTP_X_FORWARDED_PROTO": "https",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "REMOTE_ADDR": "203.0.113.7",
        "REMOTE_PORT": "41234",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
    }


def middleware(
    url: str, *, mode: Mode = Mode.AUTO, threads: int = 3, durability: str = "normal"
) -> AdmissionMiddleware:
    """Put the line in front of `idle`, with `ROUTES`; it starts no replay thread by itself."""
    config = Config(
        admission=Admission(mode=mode, worker_threads=threads),
        load=LoadOptions(threshold=1.0, resume=0.99),
        store=StoreOptions(url=url, durability=durability),
        routes=tuple(Route(name=name, path=(f"/{name}",)) for name in ROUTES),
    )
    return AdmissionMiddleware(idle, config, replays=False)


def sqlite_url(folder: Path) -> str:
    """Return the url of a store in a folder."""
    return f"sqlite:///{folder}/admission.db"


def ticket(number: int, now: float) -> Ticket:
    """Return a new ticket of one of many clients: 10 % donors, 30 % registered, 60 % anonymous."""
    rank = (0, 1, 1, 1, 2, 2, 2, 2, 2, 2)[number % 10]
    return Ticket(
        id=str(uuid.uuid4()),
        route=ROUTES[number % 7 % len(ROUTES)],
        tier=TIERS[rank],
        tier_rank=rank,
        client=f"addr:10.0.{number % 199}.{number % 251}",
        owner="",
        cost=30.0,
        crash_retries=1,
        created_at=now,
    )


def request() -> Recording:
    """Return a recorded request with `BODY`; ``body.seek(0)`` makes it usable again."""
    request = environ("POST", f"/{ROUTES[0]}", BODY)
    recorded = record(request, receive(request, max_body=len(BODY)))
    with recorded.body:
        return Recording(recorded.head, io.BytesIO(recorded.body.read()), recorded.length)

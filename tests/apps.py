"""The plain WSGI app that the tests put behind the line, and its gate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import wsgi_admission

StartResponse = Callable[..., Callable[[bytes], object]]


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer by path; what it needs to know stands in environment variables of its process.

    ``ADMISSION_TEST_GATE``: `/gated` runs until this file exists.  ``ADMISSION_TEST_LOG``: every run of it appends
    its query string to this file.
    """
    path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
    if path == "/gated":
        _note(f"start {query}")
        wait_for(Path(os.environ["ADMISSION_TEST_GATE"]))
        return _answer(start_response, "200 OK", f"gated {query}".encode())
    if path == "/steps":
        wsgi_admission.progress(0.4, "step 20 of 50")
        wait_for(Path(os.environ["ADMISSION_TEST_GATE"]), wsgi_admission.cancelled)
        return _answer(start_response, "200 OK", b"50 steps")
    if path == "/echo":
        return _echo(environ, start_response)
    if path == "/pid":
        return _answer(start_response, "200 OK", str(os.getpid()).encode())
    if path == "/500":
        return _answer(start_response, "500 Out Of Paint", b"no paint left")
    if path == "/raise":
        raise RuntimeError("a secret of the app")
    if path == "/half":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return _half()
    if path == "/replayed":
        return _answer(start_response, "200 OK", repr(type(environ.get("wsgi_admission.ticket"))).encode())
    body, kind = (b"<p>a page", "text/html") if path == "/page" else (b"pong", "text/plain")
    return _answer(start_response, "200 OK", body, kind)


def _answer(start_response: StartResponse, status: str, body: bytes, kind: str = "text/plain") -> list[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def _echo(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer with everything that must come through: repeated headers, an odd reason, any bytes, the body."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length else b""
    start_response(
        "203 Quite All Right",
        [
            ("Content-Type", "application/octet-stream"),
            ("Set-Cookie", "a=1; Path=/"),
            ("Set-Cookie", "b=2"),
            ("X-Latin", "gr\xfc\xdfe"),
            ("X-Query", environ.get("QUERY_STRING", "")),
            ("X-Content-Type", environ.get("CONTENT_TYPE", "")),
            ("Location", "/elsewhere"),
        ],
    )
    return [bytes(range(256)), environ["REQUEST_METHOD"].encode(), b"|", body]


def _half() -> Iterator[bytes]:
    yield b"the first half"
    raise RuntimeError("a secret of the app")


def _note(line: str) -> None:
    log = os.environ.get("ADMISSION_TEST_LOG")
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())  # one write: lines of several processes do not mix
        os.close(descriptor)


def wait_for(gate: Path, unwanted: Callable[[], bool] = lambda: False) -> None:
    """Run until this file exists, or nobody wants that any more."""
    deadline = time.monotonic() + 60
    while not gate.exists() and not unwanted():
        if time.monotonic() > deadline:
            raise TimeoutError(str(gate))
        time.sleep(0.005)  # waits for the test that opens the gate

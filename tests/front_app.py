"""A site whose pages call it with fetch and XMLHttpRequest; they know nothing of the line but a script tag."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tests.apps import _note, wait_for

StartResponse = Callable[..., Callable[[bytes], object]]

#: One red pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
MOVED = {
    "/call/moved": ("303 See Other", "/call/json?after"),
    "/call/307": ("307 Temporary Redirect", "json?again"),
    "/call/308": ("308 Permanent Redirect", "json?again"),
    "/call/round": ("307 Temporary Redirect", "/call/round"),
}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:"
HTML = """<!doctype html>
<html lang="en"><title>Pictures</title>
<script src="{mount}/api/queue/client.js"></script>
<script src="{mount}/api/queue/static/status.js"></script>
<h1>Pictures</h1>
<wsgi-admission-status></wsgi-admission-status>
"""


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer by path; what lies below `/call` are the calls of the page."""
    path = environ["PATH_INFO"]
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length else b""
    if path == "/ping":
        return _answer(start_response, "200 OK", "text/plain", b"pong")
    if path == "/page":
        page = HTML.format(mount=escape(environ.get("SCRIPT_NAME", "")))
        return _answer(
            start_response, "200 OK", "text/html; charset=utf-8", page.encode(), ("Content-Security-Policy", POLICY)
        )
    if path == "/call/own202":
        return _answer(start_response, "202 Accepted", "text/plain", b"taken", ("Location", "/somewhere"))
    if path == "/call/picture":
        return _answer(start_response, "200 OK", "image/png", PICTURE)
    if path == "/call/xml":
        return _answer(start_response, "200 OK", "application/xml", b"<a><b>text</b></a>")
    if path == "/call/failing":
        return _answer(start_response, "503 No Paint", "text/plain", b"no paint left")
    if path in MOVED:
        status, place = MOVED[path]
        cookies = [("Set-Cookie", f"{name}={status[:3]}; Path=/") for name in ("first", "second")]
        return _answer(start_response, status, "text/plain", b"", ("Location", place), *cookies)
    if path == "/call/gated" or "gate=" in environ.get("QUERY_STRING", ""):
        _gated(environ)
    seen = {
        "method": environ["REQUEST_METHOD"],
        "query": environ.get("QUERY_STRING", ""),
        "body": body.decode("latin-1"),
        "type": environ.get("CONTENT_TYPE", ""),
    }
    said = ("X-Said", environ.get("HTTP_X_SAY", ""))
    return _answer(start_response, "201 Created", "application/json", json.dumps(seen).encode(), said)


def shared_app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer as `app` does, also to the pages of other origins: the app does its CORS itself."""
    origin = environ.get("HTTP_ORIGIN", "")
    allow = [("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Headers", "content-type, x-say")]
    if origin:
        allow.append(("Access-Control-Expose-Headers", "X-Said"))
    if environ["REQUEST_METHOD"] == "OPTIONS":
        start_response("204 No Content", allow)
        return []
    return app(environ, lambda status, headers: start_response(status, [*headers, *allow]))


def _gated(environ: dict[str, Any]) -> None:
    query = environ.get("QUERY_STRING", "")
    _note(f"start {query}")
    name = parse_qs(query).get("gate", [""])[0]
    wait_for(Path(os.environ["ADMISSION_TEST_GATE"] + name))


def _answer(
    start_response: StartResponse, status: str, content_type: str, body: bytes, *headers: tuple[str, str]
) -> list[bytes]:
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers])
    return [body]

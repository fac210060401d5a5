"""HTTP answers of our own: JSON, problems (RFC 9457), and the headers that all of them share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from wsgi_admission.policy import backoff
from wsgi_admission.recording import Recording, serve

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]


class Sendable(Protocol):
    """What answers a WSGI call."""

    def send(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the WSGI call."""


class Recorded(NamedTuple):
    """The app's own answer, as it was recorded, and what stands behind its headers.

    :param cookies: whether the app's cookies are for this client.
    """

    response: Recording
    headers: Sequence[tuple[str, str]] = ()
    cookies: bool = True

    def send(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the WSGI call."""

        def started(status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], object]:
            kept = [(name, value) for name, value in headers if self.cookies or name.lower() != "set-cookie"]
            return start_response(status, [*kept, *self.headers])

        return serve(self.response, environ, started)  # type: ignore[arg-type]  # serve passes no exc_info


class Answer(NamedTuple):
    """A whole answer: status code, headers beside the shared ones, and the body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def send(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the WSGI call."""
        bodiless = self.status in {204, 304}
        headers = shared_headers(self.headers)
        if not bodiless:
            headers.append(("Content-Length", str(len(self.body))))
        start_response(f"{self.status} {reason(self.status)}", headers)
        return [b""] if bodiless or environ.get("REQUEST_METHOD") == "HEAD" else [self.body]


def shared_headers(own: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return an answer's own headers, and with them those that all our answers carry."""
    headers = [
        *own,
        ("Vary", "Cookie, Authorization, Accept"),
        ("X-Content-Type-Options", "nosniff"),
        ("Access-Control-Expose-Headers", "Location, Retry-After, Admission-Status, Preference-Applied"),
    ]
    if all(name != "Cache-Control" for name, _ in headers):
        # It is about one client at one moment.
        headers.append(("Cache-Control", "no-store"))
    return headers


def reason(status: int) -> str:
    """Return the reason phrase of a status code (RFC 9110)."""
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or HTTPStatus(status).phrase


def json_answer(
    status: int, data: Mapping[str, Any], *headers: tuple[str, str], content_type: str = "application/json"
) -> Answer:
    """Return ``data`` as JSON."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Answer(status, [("Content-Type", content_type), *headers], body)


def not_modified(environ: Environ, tag: str) -> bool:
    """Whether the client has what the entity tag names (RFC 9110, If-None-Match)."""
    asked = {part.strip().removeprefix("W/") for part in environ.get("HTTP_IF_NONE_MATCH", "").split(",")}
    return tag in asked or "*" in asked


def problem(status: int, detail: str, *headers: tuple[str, str]) -> Answer:
    """Return a problem (RFC 9457) with one sentence of ``detail``."""
    data = {"type": "about:blank", "title": reason(status), "status": status, "detail": detail}
    return json_answer(status, data, *headers, content_type="application/problem+json")


def retry_later(detail: str, load: float) -> Answer:
    """Return a 503 that tells when to come back: by exponential backoff with jitter, at this load (0 to 1)."""
    seconds = backoff.delay(0, load, random.random())  # noqa: S311 - jitter, not a secret
    return problem(503, detail, ("Retry-After", str(max(1, round(seconds)))))


def mounted(environ: Environ, path: str) -> str:
    """Return the address of a path of ours, from the root of the host, wherever we are mounted."""
    mount = environ.get("SCRIPT_NAME", "").strip("/")
    # One slash in front: with two a browser would take what follows for a host.
    mount = quote(f"/{mount}" if mount else "", safe="/:@!$&'()*+=~", encoding="latin-1")
    return f"{mount}{quote(path)}"


def iso(seconds: float | None) -> str | None:
    """Return a time in seconds since the epoch as RFC 3339 text in UTC, to the second."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
